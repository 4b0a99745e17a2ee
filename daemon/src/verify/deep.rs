//! Whether a replica has all that its original and the rule give it (`--deep`): by what both state
//! of themselves, and by the bytes only where that does not tell.

use std::collections::BTreeSet;
use std::error::Error;
use std::str::FromStr;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use http::{HeaderName, HeaderValue};
use replicator_core::compare::{Difference, HistoryDifference, has_content_of};
use replicator_core::failure::{Failure, FailureKind, Operation};
use replicator_core::object::{Key, Timestamp, parse_rfc3339};
use replicator_core::plan::SourceVersion;
use sha2::{Digest, Sha256};

use super::report::{Compared, Explanation, is_archived};
use super::{Pair, Verifier};
use crate::clock;
use crate::reconcile::attributes::{
    Attributes, ENCRYPTION, ENCRYPTION_KEY, LEGAL_HOLD, LOCK_MODE, RETAIN_UNTIL, STAMP,
    STORAGE_CLASS, Stated, choose_encryption, choose_key,
};
use crate::reconcile::envelope::{may_be_rewrapped, may_hold_key};
use crate::reconcile::{Tags, lay_out, read_tags};
use crate::s3::accounts::error::{Side, from_sdk_error, object_refusal};
use crate::s3::client::{BodyReader, ResponseHead, S3Request, plain_text};

/// Which share of the keys a sample takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleShare(f64);

impl FromStr for SampleShare {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.strip_suffix('%').unwrap_or(text).parse::<f64>().ok();
        let percent = number.filter(|percent| *percent > 0.0 && *percent <= 100.0);
        let words = "not a share like 1% or 0.1%, above 0 and up to 100%";
        percent.map(|percent| Self(percent / 100.0)).ok_or(words)
    }
}

impl SampleShare {
    /// Says whether it takes a key, by a digest of it.
    pub(super) fn takes(self, key: &Key, seed: u64) -> bool {
        let digest = Sha256::new_with_prefix(seed.to_be_bytes());
        let digest = digest.chain_update(key.as_str()).finalize();
        let (first, _) = digest.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
        f64::from(u32::from_be_bytes(*first)) < self.0 * f64::from(u32::MAX)
    }
}

/// In what a replica differs, and how.
type Differing = (Difference, String);

/// A replica and its original, and what both state.
struct DeepPair<'p> {
    keys: (&'p Key, &'p Key),
    versions: (&'p SourceVersion, &'p SourceVersion),
    heads: (ResponseHead, ResponseHead),
    attributes: (Attributes, Attributes),
}

impl Verifier<'_> {
    /// Compares the versions of a key with their replicas in all that lists do not tell.
    pub(super) async fn compare_deep(
        &self,
        compared: &mut Compared,
        replicas: &[(SourceVersion, SourceVersion)],
    ) -> Result<(), Failure> {
        for (original, replica) in replicas {
            let pair = match self.read_pair(&compared.pair, (original, replica)).await {
                Ok(Some(pair)) => pair,
                Ok(None) => continue,
                Err(failure) => {
                    let why = object_refusal(&failure).ok_or(failure)?;
                    compared.uncompared.push(why);
                    continue;
                }
            };
            let mut found: Vec<Differing> = self.compare_headers(&pair);
            found.extend(self.compare_lock(&pair).await?);
            found.extend(self.compare_tags(&pair).await?);
            match self.compare_bytes(&pair, &compared.findings).await? {
                Contents::Equal => {}
                Contents::Differ(how) => found.push((Difference::Bytes, how)),
                Contents::Unread(why) => compared.uncompared.push(why),
            }
            compared.deep += 1;
            let finding = |(difference, how)| {
                let finding = HistoryDifference {
                    difference,
                    source: Some(original.version.clone()),
                    replica: Some(replica.version.id.clone()),
                };
                (finding, Some(Explanation::Detail(how)))
            };
            compared.findings.extend(found.into_iter().map(finding));
        }
        Ok(())
    }

    /// Reads what both sides state of a version; none if one of them is gone by now.
    async fn read_pair<'p>(
        &self,
        pair: &'p Pair,
        versions: (&'p SourceVersion, &'p SourceVersion),
    ) -> Result<Option<DeepPair<'p>>, Failure> {
        let keys = (&pair.key, &pair.target);
        let original = self.read_stated(Side::Source, keys.0, versions.0).await?;
        let replica = self.read_stated(Side::Destination, keys.1, versions.1);
        let Some(heads) = original.zip(replica.await?) else {
            return Ok(None);
        };
        let mut attributes = (Attributes::from(&heads.0), Attributes::from(&heads.1));
        // A retention that is over locks nothing.
        attributes.0.drop_past_retention(clock::now());
        attributes.1.drop_past_retention(clock::now());
        Ok(Some(DeepPair {
            keys,
            versions,
            heads,
            attributes,
        }))
    }

    async fn read_stated(
        &self,
        side: Side,
        key: &Key,
        version: &SourceVersion,
    ) -> Result<Option<ResponseHead>, Failure> {
        let (access, _) = self.at(side);
        let id = &version.version.id;
        let ask = || self.head_of(side, key).version(id.as_str());
        let head = match access.send_for_checksums(ask).await {
            Ok(answer) => answer.into_head(),
            Err(refusal) if refusal.is_absent() => return Ok(None),
            Err(refusal) => return Err(refusal.into()),
        };
        // `null` is overwritten in place.
        let is_this = !id.is_null() || head.etag() == version.etag;
        Ok(is_this.then_some(head))
    }

    /// Compares what the headers state: metadata, storage class, encryption.
    fn compare_headers(&self, pair: &DeepPair<'_>) -> Vec<Differing> {
        let metadata = self.compare_metadata(pair).into_iter();
        let class = self.rule.storage_class.as_deref();
        let class = class.and_then(|class| compare_class(class, &pair.attributes.1));
        let encryption = self.compare_encryption(pair);
        metadata
            .chain(class)
            .map(|how| (Difference::Metadata, how))
            .chain(encryption.map(|how| (Difference::Encryption, how)))
            .collect()
    }

    fn compare_metadata(&self, pair: &DeepPair<'_>) -> Vec<String> {
        let rewraps = !self.rule.client_side_keys.is_empty();
        let (original, replica) = &pair.attributes;
        let (original, replica) = (&original.reader_headers, &replica.reader_headers);
        let names: BTreeSet<&str> = { original.keys() }
            .chain(replica.keys())
            .filter(|name| **name != STAMP && !(rewraps && may_hold_key(name)))
            // Where the original has none, the store chooses one.
            .filter(|name| **name != http::header::CONTENT_TYPE || original.contains_key(*name))
            .map(HeaderName::as_str)
            .collect();
        let differs = |name: &&str| {
            let texts = [original, replica].map(|headers| headers.get(*name).map(plain_text));
            texts[0] != texts[1]
        };
        names
            .into_iter()
            .filter(differs)
            .map(|name| match (original.get(name), replica.get(name)) {
                (Some(_), None) => format!("{name} is missing"),
                (None, Some(_)) => format!("{name} is there, and not at the source"),
                _ => format!("{name} has another value"),
            })
            .collect()
    }

    fn compare_encryption(&self, pair: &DeepPair<'_>) -> Option<String> {
        let (original, replica) = &pair.attributes;
        let rule = &self.rule.encryption;
        // Without a key for it, there is none that the replica has to be under.
        let key = choose_key(rule, original, self.destination.region()).ok()?;
        let asked = choose_encryption(rule, original, key);
        let asked = |name: &str| { asked.iter() }.find(|(other, _)| *other == name);
        let (_, mode) = asked(ENCRYPTION)?;
        let found = replica.encryption.as_deref().unwrap_or("none");
        if mode != found {
            return Some(format!("{found} instead of {mode}"));
        }
        let (_, key) = asked(ENCRYPTION_KEY)?;
        let found = replica.kms_key.as_deref()?;
        (!is_same_key(key, found)).then(|| format!("under {found} instead of {key}"))
    }

    /// Compares Object Lock. What the original lacks, the destination may add by its default.
    async fn compare_lock(&self, pair: &DeepPair<'_>) -> Result<Option<Differing>, Failure> {
        let original = LockState::from(&pair.attributes.0);
        let replica = LockState::from(&pair.attributes.1);
        let lacks_retention = original.retention.is_some() && replica.retention.is_none();
        let lacks_hold = original.is_held && !replica.is_held;
        let how = match () {
            () if lacks_retention => "it has no retention",
            () if lacks_hold => "it has no legal hold",
            () if original.retention.is_some() && original.retention != replica.retention => {
                "it has another retention"
            }
            () => return Ok(None),
        };
        if lacks_retention || lacks_hold {
            self.confirm_unlocked(pair, lacks_retention).await?;
        }
        Ok(Some((Difference::Lock, how.to_owned())))
    }

    /// Makes sure that a lock is not there which the headers do not state: S3 leaves it out of them
    /// where reading it is not permitted.
    /// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-lock-managing.html>
    async fn confirm_unlocked(
        &self,
        pair: &DeepPair<'_>,
        is_retention: bool,
    ) -> Result<(), Failure> {
        let s3 = &self.destination.s3;
        let bucket = self.rule.destination.bucket.as_str();
        let (key, id) = (pair.keys.1.as_str(), pair.versions.1.version.id.as_str());
        if is_retention {
            let ask = s3.get_object_retention().bucket(bucket).key(key);
            let answer = ask.version_id(id).send().await;
            return unlocked(answer.map(drop), Operation::GetObjectRetention);
        }
        let ask = s3.get_object_legal_hold().bucket(bucket).key(key);
        let answer = ask.version_id(id).send().await;
        unlocked(answer.map(drop), Operation::GetObjectLegalHold)
    }

    async fn compare_tags(&self, pair: &DeepPair<'_>) -> Result<Option<Differing>, Failure> {
        let original = self.tags_of(Side::Source, pair.keys.0, pair.versions.0);
        let original = original.await?;
        let replica = self.tags_of(Side::Destination, pair.keys.1, pair.versions.1);
        let Some((original, replica)) = original.zip(replica.await?) else {
            return Ok(None);
        };
        let names: BTreeSet<&String> = original.keys().chain(replica.keys()).collect();
        let differ = |name: &&&String| original.get(**name) != replica.get(**name);
        let names: Vec<&str> = names
            .iter()
            .filter(differ)
            .map(|name| name.as_str())
            .collect();
        let how = || (Difference::Tags, names.join(", "));
        Ok((!names.is_empty()).then(how))
    }

    /// Reads the tags of a version; none if it is gone. A store without tags has none of any.
    async fn tags_of(
        &self,
        side: Side,
        key: &Key,
        version: &SourceVersion,
    ) -> Result<Option<Tags>, Failure> {
        let (access, bucket) = self.at(side);
        let call = S3Request::tags(side, bucket, key).version(version.version.id.as_str());
        match read_tags(access, call).await {
            Ok(tags) => Ok(Some(tags)),
            Err(refusal) if refusal.is_absent() => Ok(None),
            Err(refusal) if refusal.failure.kind == FailureKind::NotImplemented => {
                Ok(Some(Tags::new()))
            }
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// Compares the content by the checksums that both sides state, and reads what states none; not
    /// where the lists proved it equal, or what was found before says that it differs.
    async fn compare_bytes(
        &self,
        pair: &DeepPair<'_>,
        found: &[(HistoryDifference, Option<Explanation>)],
    ) -> Result<Contents, Failure> {
        let is_named = |(finding, _): &(HistoryDifference, _)| {
            matches!(finding.difference, Difference::Size | Difference::Bytes)
                && finding.replica.as_ref() == Some(&pair.versions.1.version.id)
        };
        if has_content_of(pair.versions.0, pair.versions.1) || found.iter().any(is_named) {
            return Ok(Contents::Equal);
        }
        let (heads, attributes) = (&pair.heads, &pair.attributes);
        let rewraps = !self.rule.client_side_keys.is_empty();
        if rewraps && may_be_rewrapped(&heads.0) {
            return Ok(Contents::Unread("its data key was wrapped anew"));
        }
        let is_aws = self.source.is_aws && self.destination.is_aws;
        let stated = (&attributes.0.stated[..], &attributes.1.stated[..]);
        if let Some(is_equal) = compare_stated(stated, is_aws) {
            return Ok(match is_equal {
                true => Contents::Equal,
                false => Contents::Differ("its checksum is another one".to_owned()),
            });
        }
        if is_archived(&heads.0) || is_archived(&heads.1) {
            return Ok(Contents::Unread("it is archived"));
        }
        let original = self.crc64_of(Side::Source, pair.keys.0, pair.versions.0, stated.0);
        let replica = self.crc64_of(Side::Destination, pair.keys.1, pair.versions.1, stated.1);
        let read = async { Ok::<bool, Failure>(original.await? == replica.await?) };
        match read.await {
            Ok(true) => Ok(Contents::Equal),
            Ok(false) => Ok(Contents::Differ("other bytes were read".to_owned())),
            Err(failure) => object_refusal(&failure)
                .map(Contents::Unread)
                .ok_or(failure),
        }
    }

    /// Returns the CRC-64/NVME of a version, and reads all of it where that is not stated.
    async fn crc64_of(
        &self,
        side: Side,
        key: &Key,
        version: &SourceVersion,
        stated: &[Stated],
    ) -> Result<u64, Failure> {
        if let Some(crc64) = stated.iter().find_map(Stated::crc64) {
            return Ok(crc64);
        }
        let (access, bucket) = self.at(side);
        let layout = lay_out(version.size_bytes, PART_BYTES)?;
        let mut reading = BodyReader::passing();
        for part in layout.parts() {
            reading.want_more(part.len);
            let mut attempt = 1;
            while reading.rest().len > 0 {
                let call = S3Request::get_object(side, bucket, key);
                let call = call.version(version.version.id.as_str());
                let call = call.identified(version.etag.as_ref(), version.size_bytes);
                let answer = access.wire.send(call.bytes(reading.rest())).await?;
                match reading.read(answer.split().1).await {
                    Err(broken) if attempt == READS_MAX => return Err(broken),
                    // What came before it broke is kept.
                    _ => attempt += 1,
                }
            }
        }
        Ok(reading.finish().crc64)
    }
}

// As much as passes in a fraction of a second, so that a connection that breaks costs little.
const PART_BYTES: u64 = 16 << 20;

// A connection that breaks more often than this within one part breaks always.
const READS_MAX: u32 = 5;

/// Whether two versions have the same content.
enum Contents {
    Equal,
    Differ(String),
    /// It could not be told, and why.
    Unread(&'static str),
}

/// Compares checksums of the same algorithm; none if they tell nothing. Of parts, and of a store
/// that may make its ETags otherwise than AWS, only equal ones do.
fn compare_stated((original, replica): (&[Stated], &[Stated]), is_aws: bool) -> Option<bool> {
    let mut told = None;
    for one in original {
        let is_like =
            |other: &&Stated| (one.algorithm, one.parts) == (other.algorithm, other.parts);
        for other in replica.iter().filter(is_like) {
            let is_sure = one.parts.is_none() && (is_aws || !(one.is_etag() || other.is_etag()));
            match one.value == other.value {
                true => return Some(true),
                false if is_sure => told = Some(false),
                false => {}
            }
        }
    }
    told
}

/// Object Lock as the headers state it.
struct LockState {
    /// In which mode, and until when.
    retention: Option<(HeaderValue, Option<Timestamp>)>,
    is_held: bool,
}

impl From<&Attributes> for LockState {
    fn from(attributes: &Attributes) -> Self {
        let header = |name| attributes.store_headers.get(name);
        let until = header(RETAIN_UNTIL).and_then(|until| parse_rfc3339(until.to_str().ok()?));
        Self {
            retention: header(LOCK_MODE).map(|mode| (mode.clone(), until)),
            is_held: header(LEGAL_HOLD).is_some_and(|hold| hold == "ON"),
        }
    }
}

/// Takes the answer about a lock that is not there.
fn unlocked<E>(
    answer: Result<(), SdkError<E, HttpResponse>>,
    during: Operation,
) -> Result<(), Failure>
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    match answer {
        Err(error) if error.code().is_none_or(|code| !NO_LOCK.contains(&code)) => {
            Err(from_sdk_error(Side::Destination, during, error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

// Of an object without a lock, a bucket that has none, and a store that knows none.
// https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html#ObjectLockErrorCodeList
const NO_LOCK: [&str; 4] = [
    "InvalidRequest",
    "NoSuchObjectLockConfiguration",
    "NotImplemented",
    "ObjectLockConfigurationNotFoundError",
];

/// Compares the storage class that the rule sets. A lifecycle rule of the destination may have moved
/// the object further down.
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/lifecycle-transition-general-considerations.html>
fn compare_class(wanted: &str, replica: &Attributes) -> Option<String> {
    let found = replica.store_headers.get(STORAGE_CLASS);
    let found = found.map_or(Some(CLASSES[0]), |found| found.to_str().ok())?;
    let place = |class: &str| CLASSES.iter().position(|one| *one == class);
    let is_further = place(wanted)
        .zip(place(found))
        .is_some_and(|(wanted, found)| wanted < found);
    (found != wanted && !is_further).then(|| format!("storage class {found} instead of {wanted}"))
}

// From the top down; an answer without a class means the first.
const CLASSES: [&str; 7] = [
    "STANDARD",
    "STANDARD_IA",
    "INTELLIGENT_TIERING",
    "ONEZONE_IA",
    "GLACIER_IR",
    "GLACIER",
    "DEEP_ARCHIVE",
];

/// Says whether two names are of one KMS key, as far as they tell: an alias may be any key's, and a
/// store may leave the front of an ARN out.
fn is_same_key(asked: &str, found: &str) -> bool {
    let id = |name: &str| name.rsplit_once("key/").map(|(_, id)| id.to_owned());
    match (id(asked), id(found)) {
        (Some(_), Some(_)) => asked == found,
        (Some(id), None) => id == found,
        (None, _) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_checksums_prove_equal_content_and_others_differ_where_they_can_tell() {
        let crc32 = |value: &'static str| ("x-amz-checksum-crc32", value);
        let stated = |header: (&str, &str)| {
            let head = ResponseHead::for_tests(&[header]);
            Attributes::from(&head).stated
        };
        let compare = |one, other, is_aws| compare_stated((&stated(one), &stated(other)), is_aws);
        let (one, other) = (crc32("AAAAAA=="), crc32("AAAAAQ=="));
        assert_eq!(compare(one, one, false), Some(true));
        assert_eq!(compare(one, other, false), Some(false));
        let (one, other) = (crc32("AAAAAA==-2"), crc32("AAAAAQ==-2"));
        assert_eq!(compare(one, one, false), Some(true));
        assert_eq!(compare(one, other, true), None, "the parts may differ");
        let md5 = |digit: &str| format!("\"{}\"", digit.repeat(32));
        let (one, other) = (md5("0"), md5("1"));
        let (one, other) = (("etag", one.as_str()), ("etag", other.as_str()));
        assert_eq!(compare(one, other, true), Some(false));
        assert_eq!(compare(one, other, false), None, "it may be no MD5");
        assert_eq!(compare(one, crc32("AAAAAA=="), true), None);
    }

    #[test]
    fn a_replica_that_a_lifecycle_rule_moved_down_has_the_class_of_its_rule() {
        let class = |found: Option<&str>| {
            let headers: Vec<(&str, &str)> = { found.iter() }
                .map(|class| ("x-amz-storage-class", *class))
                .collect();
            let replica = Attributes::from(&ResponseHead::for_tests(&headers));
            compare_class("STANDARD_IA", &replica)
        };
        assert_eq!(class(Some("STANDARD_IA")), None);
        assert_eq!(class(Some("GLACIER")), None);
        let words = "storage class STANDARD instead of STANDARD_IA";
        assert_eq!(class(None).as_deref(), Some(words));
        assert!(class(Some("OTHER")).is_some());
    }

    #[test]
    fn an_alias_may_be_any_key() {
        let key = "arn:aws:kms:us-east-1:111111111111:key/1234";
        assert!(is_same_key(key, key) && is_same_key(key, "1234"));
        assert!(!is_same_key(
            key,
            "arn:aws:kms:us-east-1:111111111111:key/5678"
        ));
        assert!(!is_same_key(key, "5678"));
        assert!(is_same_key(
            "arn:aws:kms:us-east-1:111111111111:alias/a",
            key
        ));
    }
}
