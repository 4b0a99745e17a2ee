//! What an endpoint can do, per operation: found out rather than assumed, given up when the
//! endpoint itself says that it can't or contradicts itself, and tried again after a while.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::warn;
use utoipa::ToSchema;

use crate::s3::client::CHECKSUM_MODE;
use replicator_core::failure::Operation;

/// Something that not every S3-compatible endpoint does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Feature {
    /// `If-Match` and `If-None-Match` on PutObject.
    ConditionalPut,
    /// The same on CompleteMultipartUpload.
    ConditionalComplete,
    /// `If-Match` on DeleteObject.
    ConditionalDelete,
    /// CRC64NVME checksums on PutObject.
    ChecksumPut,
    /// The same on multipart uploads and their parts.
    ChecksumParts,
    /// Stating the checksums of an object that is read, where the request enables it.
    ChecksumRead,
}

impl Feature {
    /// Says whether requests of an operation make use of it.
    pub(crate) fn is_used_by(self, operation: Operation) -> bool {
        match self {
            Self::ConditionalPut | Self::ChecksumPut => operation == Operation::PutObject,
            Self::ConditionalComplete => operation == Operation::CompleteMultipartUpload,
            Self::ConditionalDelete => operation == Operation::DeleteObject,
            Self::ChecksumParts => {
                matches!(
                    operation,
                    Operation::CreateMultipartUpload
                        | Operation::UploadPart
                        | Operation::CompleteMultipartUpload
                )
            }
            Self::ChecksumRead => matches!(operation, Operation::GetObject | Operation::HeadObject),
        }
    }

    /// Says whether a request header needs it.
    pub(crate) fn is_asked_by(self, header: &str) -> bool {
        match self {
            Self::ConditionalPut | Self::ConditionalComplete | Self::ConditionalDelete => {
                matches!(header, "if-match" | "if-none-match")
            }
            Self::ChecksumPut | Self::ChecksumParts => {
                header.starts_with("x-amz-checksum-") || header.starts_with("x-amz-sdk-checksum-")
            }
            Self::ChecksumRead => header == CHECKSUM_MODE,
        }
    }

    /// Returns the checksum that a write with this condition carries, too.
    pub(crate) fn paired_checksum(self) -> Option<Self> {
        match self {
            Self::ConditionalPut => Some(Self::ChecksumPut),
            Self::ConditionalComplete => Some(Self::ChecksumParts),
            Self::ConditionalDelete
            | Self::ChecksumPut
            | Self::ChecksumParts
            | Self::ChecksumRead => None,
        }
    }

    fn is_condition(self) -> bool {
        self == Self::ConditionalDelete || self.paired_checksum().is_some()
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::ConditionalPut => "conditions on PutObject",
            Self::ConditionalComplete => "conditions on CompleteMultipartUpload",
            Self::ConditionalDelete => "conditions on DeleteObject",
            Self::ChecksumPut => "CRC64NVME on PutObject",
            Self::ChecksumParts => "CRC64NVME on multipart uploads",
            Self::ChecksumRead => "checksums of what is read",
        }
    }
}

/// How tags were given to a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TagsGiven {
    /// With PutObject.
    WithPut,
    /// With CreateMultipartUpload.
    WithUpload,
    /// With PutObjectTagging.
    Apart,
}

/// What is known of one endpoint.
#[derive(Debug)]
pub(crate) struct Capabilities {
    /// Whether the configuration lets conditions be used.
    allows_conditions: bool,
    /// What was given up, now or before.
    lacks: Mutex<BTreeMap<Feature, Lack>>,
    /// How often in a row each condition was refused that a fresh read says holds.
    contradictions: Mutex<BTreeMap<Feature, u32>>,
    marker_headers: AtomicBool,
    counts_tags: AtomicBool,
    hashes_parts: AtomicBool,
    keeps_tags: [OnceLock<bool>; 3],
}

#[derive(Debug)]
struct Lack {
    until: Instant,
    why: String,
}

/// A feature that the daemon goes without.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DisabledFeature {
    /// The account whose endpoint it is.
    pub account: String,
    /// What the endpoint lacks.
    pub feature: String,
    /// What it said.
    pub why: String,
    /// When it is tried again.
    pub tried_again_in_seconds: u64,
}

// One refusal that a fresh read contradicts can be another daemon that wrote and removed; the
// second in a row on the same reading is the endpoint's own fault.
const CONTRADICTIONS_MAX: u32 = 2;

// An endpoint that was upgraded is found out as soon as one whose parked tasks are tried again
// (`parking`), and one that was not refuses a few requests an hour.
const GIVEN_UP_FOR: Duration = Duration::from_secs(3600);

impl Capabilities {
    /// Starts in good faith, or without conditions where the configuration says so.
    pub(crate) fn new(allows_conditions: bool) -> Self {
        Self {
            allows_conditions,
            lacks: Mutex::default(),
            contradictions: Mutex::default(),
            marker_headers: AtomicBool::new(false),
            counts_tags: AtomicBool::new(false),
            hashes_parts: AtomicBool::new(false),
            keeps_tags: Default::default(),
        }
    }

    /// Says whether to make use of a feature.
    pub(crate) fn has_feature(&self, feature: Feature) -> bool {
        let lacks = lock(&self.lacks);
        let is_lacking = lacks
            .get(&feature)
            .is_some_and(|lack| lack.until > Instant::now());
        self.is_allowed(feature) && !is_lacking
    }

    /// Says whether every write since the start could make use of a feature: else one may be on
    /// its way without.
    pub(crate) fn always_had(&self, feature: Feature) -> bool {
        self.is_allowed(feature) && !lock(&self.lacks).contains_key(&feature)
    }

    fn is_allowed(&self, feature: Feature) -> bool {
        self.allows_conditions || !feature.is_condition()
    }

    /// Gives a feature up for a while, loudly: the order of writes then has fewer guarantees.
    pub(crate) fn disable_feature(&self, feature: Feature, account: &str, why: &str) {
        let had = self.has_feature(feature);
        let lack = Lack {
            until: Instant::now() + GIVEN_UP_FOR,
            why: why.to_owned(),
        };
        lock(&self.lacks).insert(feature, lack);
        if had {
            warn!(
                account,
                feature = feature.as_str(),
                why,
                "feature not supported by the endpoint, disabled for an hour"
            );
        }
    }

    /// Lists the features that are given up now.
    pub(crate) fn missing_features(&self, account: &str) -> Vec<DisabledFeature> {
        let (lacks, now) = (lock(&self.lacks), Instant::now());
        let disabled = |(feature, lack): (&Feature, &Lack)| DisabledFeature {
            account: account.to_owned(),
            feature: feature.as_str().to_owned(),
            why: lack.why.clone(),
            tried_again_in_seconds: lack.until.duration_since(now).as_secs(),
        };
        let current = lacks.iter().filter(|(_, lack)| lack.until > now);
        current.map(disabled).collect()
    }

    /// Records a refused condition that a fresh read says should have held.
    pub(crate) fn record_contradiction(&self, feature: Feature, account: &str) {
        let count = {
            let mut contradictions = lock(&self.contradictions);
            let count = contradictions.entry(feature).or_default();
            *count += 1;
            *count
        };
        if count >= CONTRADICTIONS_MAX {
            let why = "refused a condition twice that a fresh read says holds";
            self.disable_feature(feature, account, why);
        }
    }

    /// Records that a condition was met as it should be.
    pub(crate) fn record_condition_met(&self, feature: Feature) {
        lock(&self.contradictions).remove(&feature);
    }

    /// Records that a HEAD of a deleted key named its delete marker.
    pub(crate) fn record_marker_header(&self) {
        self.marker_headers.store(true, Ordering::Relaxed);
    }

    /// Says whether a 404 without a delete marker's headers proves that there is none.
    pub(crate) fn sends_marker_headers(&self) -> bool {
        self.marker_headers.load(Ordering::Relaxed)
    }

    /// Records that an answer said how many tags an object has.
    pub(crate) fn counted_tags(&self) {
        self.counts_tags.store(true, Ordering::Relaxed);
    }

    /// Says whether the endpoint is known to count tags.
    pub(crate) fn counts_tags(&self) -> bool {
        self.counts_tags.load(Ordering::Relaxed)
    }

    /// Records that the ETag of an upload in parts was the MD5 of its parts' MD5s.
    pub(crate) fn hashed_parts(&self) {
        self.hashes_parts.store(true, Ordering::Relaxed);
    }

    /// Says whether the endpoint is known to make ETags of uploads in parts from the MD5s of the
    /// parts.
    pub(crate) fn hashes_parts(&self) -> bool {
        self.hashes_parts.load(Ordering::Relaxed)
    }

    /// Records whether tags that were given were there afterwards.
    pub(crate) fn saw_tags(&self, given: TagsGiven, are_there: bool, account: &str) {
        let is_news = self
            .keeps_tags
            .get(given as usize)
            .is_some_and(|known| known.set(are_there).is_ok());
        if is_news && !are_there {
            warn!(
                account,
                ?given,
                "endpoint ignores tags sent with this write, they are sent afterwards"
            );
        }
    }

    /// Says whether the endpoint keeps tags that are given so, if that is known.
    pub(crate) fn keeps_tags(&self, given: TagsGiven) -> Option<bool> {
        self.keeps_tags.get(given as usize)?.get().copied()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What was logged.
    #[derive(Debug, Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_ability_is_given_up_aloud_and_once() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let known = Capabilities::new(true);
            known.disable_feature(
                Feature::ConditionalDelete,
                "archive",
                "answered 501 NotImplemented",
            );
            known.disable_feature(
                Feature::ConditionalDelete,
                "archive",
                "answered 501 NotImplemented",
            );
        });
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let [line] = lines.as_slice() else {
            panic!("{lines:?}")
        };
        for said in [
            "WARN",
            "archive",
            "conditions on DeleteObject",
            "answered 501 NotImplemented",
        ] {
            assert!(line.contains(said), "{line}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_given_up_is_shown_and_tried_again_after_an_hour_and_never_rested_on() {
        let known = Capabilities::new(true);
        known.disable_feature(
            Feature::ConditionalPut,
            "archive",
            "answered 501 NotImplemented",
        );
        assert!(!known.has_feature(Feature::ConditionalPut));
        tokio::time::advance(Duration::from_secs(600)).await;
        let [shown] = known.missing_features("archive").try_into().unwrap();
        assert_eq!(
            (shown.feature.as_str(), shown.tried_again_in_seconds),
            ("conditions on PutObject", 3000)
        );
        tokio::time::advance(Duration::from_secs(3000)).await;
        assert!(
            known.has_feature(Feature::ConditionalPut)
                && known.missing_features("archive").is_empty()
        );
        assert!(
            !known.always_had(Feature::ConditionalPut),
            "a write may have gone without"
        );
        assert!(known.always_had(Feature::ConditionalDelete));
    }

    #[test]
    fn one_contradiction_is_forgiven_and_the_second_withdraws_the_ability() {
        let known = Capabilities::new(true);
        known.record_contradiction(Feature::ConditionalPut, "archive");
        assert!(known.has_feature(Feature::ConditionalPut));
        known.record_contradiction(Feature::ConditionalPut, "archive");
        assert!(!known.has_feature(Feature::ConditionalPut));
        assert!(known.has_feature(Feature::ConditionalComplete));
    }
}
