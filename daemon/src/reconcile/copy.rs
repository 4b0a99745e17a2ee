//! Copying one version: what single and multipart transfers have in common.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use replicator_core::failure::{Failure, FailureKind, Reason};
use replicator_core::object::ETag;
use replicator_core::operation::Operation;
use replicator_core::parts::Part;
use replicator_core::plan::{Precondition, SourceVersion};
use replicator_core::retry::READING_AGE_MAX;
use replicator_core::rule::Rule;
use replicator_core::stamp::{OriginKey, Stamp};
use tracing::warn;

use super::attempt::Extras;
use super::attributes::{Attributes, STAMP, STORAGE_CLASS, encoded_words};
use super::encryption::{self, Headers};
use super::snapshot::Snapshot;
use super::tags::{self, Tags};
use super::version_reader::VersionReader;
use crate::accounts::AccountClients;
use crate::budget::MemoryPermit;
use crate::checksum::crc64_of;
use crate::clock::{self, BootInstant};
use crate::engine::{Due, Engine};
use crate::limits::Flow;
use crate::metrics::Unproved;
use crate::s3_http::S3Request;
use crate::single_flight::{RangeKey, Subscriber};
use crate::task::Task;

/// One version on its way to one destination.
#[derive(Debug)]
pub(crate) struct CopyJob<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) task: &'a Task,
    pub(crate) reader: &'a Subscriber,
    pub(crate) source: &'a AccountClients,
    pub(crate) destination: &'a AccountClients,
    pub(crate) rule: Arc<Rule>,
    pub(crate) version: &'a SourceVersion,
    pub(crate) condition: &'a Precondition,
    /// What the condition was made from.
    pub(crate) basis: &'a Snapshot,
    /// The version's tags, where choosing the rule needed them.
    pub(crate) tags: Option<Tags>,
    /// What its writes need beyond the plain request.
    pub(crate) extras: Extras,
}

/// A write that was answered.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) operation: Operation,
    pub(crate) destination_version: Option<String>,
    pub(crate) etag: ETag,
    /// When it was sent.
    pub(crate) sent: BootInstant,
    /// Why nothing proves that it holds the source's bytes, if so.
    pub(crate) unproved: Option<Unproved>,
    /// What the replica is to have.
    pub(crate) tags: Tags,
}

/// Everything a replica gets beside its bytes.
#[derive(Debug)]
pub(crate) struct ReplicaHeaders {
    pub(crate) attributes: Attributes,
    pub(crate) tags: Tags,
    pub(crate) encryption: Headers,
    /// When the request to the source was sent.
    asked: BootInstant,
}

impl CopyJob<'_> {
    /// Names what is copied.
    pub(super) fn original(&self) -> VersionReader<'_> {
        VersionReader::pin_source(self.source, self.task, self.version)
    }

    /// Names the rule and line that the limits count this for.
    pub(super) fn payer_for(&self, is_bulk: bool) -> Flow<'_> {
        Flow {
            rule: &self.rule,
            is_bulk,
        }
    }

    /// Waits until a part may be written; the only one of a small object, or one of a large.
    pub(super) async fn admitted(&self, part: Part, is_bulk: bool) -> (Due<'_>, MemoryPermit) {
        let version = self.version.version.clone();
        let piece = RangeKey {
            version,
            is_part: is_bulk,
            offset: part.offset,
            len: part.len,
        };
        self.engine
            .admit_copy(
                (self.payer_for(is_bulk), &self.task.target),
                self.reader,
                &piece,
            )
            .await
    }

    /// Reads from the source what the replica carries. Tags are counted by some endpoints for GET
    /// and not for HEAD, LocalStack among them.
    pub(super) async fn read_headers_again(&self) -> Result<ReplicaHeaders, Failure> {
        let asked = BootInstant::now();
        let head = self.original().head().await?;
        self.headers_from(Attributes::from(&head), asked, self.source.is_aws)
            .await
    }

    /// Decides from what the source said what the replica carries, or that the version is not to be
    /// replicated.
    pub(super) async fn headers_from(
        &self,
        mut attributes: Attributes,
        asked: BootInstant,
        counts_tags: bool,
    ) -> Result<ReplicaHeaders, Failure> {
        self.check_origin(&attributes).await?;
        if attributes.is_partial {
            let cause =
                "the source has user metadata that it cannot put into headers (x-amz-missing-meta)";
            return Err(Failure::with_source(
                FailureKind::NeedsOperator(Reason::SrcMetadataUnreadable),
                Operation::GetObject,
                cause,
            ));
        }
        attributes.drop_past_retention(clock::now());
        if attributes.is_kms() && !self.rule.sse_kms_objects {
            return Err(Failure::new(
                FailureKind::Ineligible(Reason::SrcObjectNotEligible),
                Operation::CheckEncryption,
            ));
        }
        let tags = self.read_tags(&attributes, counts_tags).await?;
        let encryption = encryption::choose_headers(&self.rule.encryption, &attributes);
        if let Some(class) = &self.rule.storage_class {
            let invalid = |error| {
                Failure::with_source(
                    FailureKind::NeedsOperator(Reason::RequestRefused),
                    Operation::SetStorageClass,
                    error,
                )
            };
            attributes.kept.insert(
                STORAGE_CLASS,
                HeaderValue::try_from(class).map_err(invalid)?,
            );
        }
        if self.destination.is_aws {
            attributes
                .told
                .values_mut()
                .for_each(|value| *value = encoded_words(value));
        }
        let stamp = Stamp {
            place: OriginKey::of_key(&self.task.source.bucket, &self.task.source_key),
            version: self.version.version.clone(),
            sequencer: self.sequencer(),
        };
        if !attributes.stamp(&stamp) {
            self.engine
                .metrics
                .count_failed(&self.rule.id, Reason::StampTooLarge.as_str());
            warn!(
                rule = self.rule.id,
                key = self.task.source_key.as_str(),
                "no room for the stamp beside the user's metadata"
            );
        }
        Ok(ReplicaHeaders {
            attributes,
            tags,
            encryption,
            asked,
        })
    }

    /// Returns the condition as the two headers `If-Match` and `If-None-Match`.
    pub(crate) fn conditions(&self) -> (Option<String>, Option<String>) {
        match self.condition {
            _ if !self.extras.conditional => (None, None),
            Precondition::Absent => (None, Some("*".to_owned())),
            Precondition::Over(etag) => (Some(etag.to_quoted()), None),
        }
    }

    async fn read_tags(&self, attributes: &Attributes, counts_tags: bool) -> Result<Tags, Failure> {
        if let Some(tags) = &self.tags {
            return Ok(tags.clone());
        }
        let place = &self.task.source;
        match attributes.tag_count.as_deref() {
            Some("0") => return Ok(Tags::new()),
            Some(_) if counts_tags => self.source.capabilities.counted_tags(),
            None if counts_tags && self.engine.counts_tags(place) => return Ok(Tags::new()),
            Some(_) | None => {}
        }
        let (key, version) = (&self.task.source_key, &self.version.version.id);
        let tags = tags::read_source(self.source, &place.bucket, key, version).await?;
        self.engine.tags_read.mark_seen(place);
        Ok(tags)
    }

    fn sequencer(&self) -> Option<replicator_core::sequencer::Sequencer> {
        let id = &self.version.version.id;
        let pending = self
            .task
            .events
            .iter()
            .find(|pending| pending.version.as_ref() == Some(id))?;
        pending.sequencer.clone()
    }
}

impl ReplicaHeaders {
    /// Says whether it is too old for a write, as any reading: nothing tells of a lock that
    /// changed.
    pub(super) fn is_old(&self) -> bool {
        self.asked.elapsed() > READING_AGE_MAX
    }

    /// Returns a number that differs when a replica would carry something else.
    pub(crate) fn digest(&self) -> u64 {
        let tags = tags::tags_header(&self.tags);
        let own = self.encryption.named().into_iter().chain([(TAGGING, tags)]);
        let own = own.filter_map(|(name, value)| Some((name.to_owned(), value?.into_bytes())));
        // The stamp may name the sequencer of whichever event woke the task.
        let carried = self.carried().filter(|(name, _)| **name != STAMP);
        let carried =
            carried.map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_owned()));
        let mut lines: Vec<(String, Vec<u8>)> = own.chain(carried).collect();
        lines.sort_unstable();
        let lines = lines
            .into_iter()
            .map(|(name, value)| [name.as_bytes(), b":", &value, b"\n"].concat());
        crc64_of(&lines.collect::<Vec<_>>().concat())
    }

    /// Puts on a request everything that a write carries beside the body, its checksum and its
    /// conditions.
    pub(crate) fn on<'a>(&self, call: S3Request<'a>) -> S3Request<'a> {
        let call = call.headers(
            self.carried()
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        );
        let own = self
            .encryption
            .named()
            .into_iter()
            .chain([(TAGGING, tags::tags_header(&self.tags))]);
        own.fold(call, |call, (name, value)| {
            call.header(name, value.as_deref())
        })
    }

    fn carried(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.attributes.told.iter().chain(&self.attributes.kept)
    }
}

const TAGGING: &str = "x-amz-tagging";
