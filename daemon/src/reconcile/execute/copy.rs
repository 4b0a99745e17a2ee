//! Copying one version: what single and multipart transfers have in common, and a small object: one
//! GetObject, one PutObject, the body in memory in between.

use std::error::Error;
use std::sync::Arc;

use aws_smithy_types::body::SdkBody;
use http::HeaderValue;
use replicator_core::failure::{Failure, FailureKind, Operation, Reason};
use replicator_core::object::ETag;
use replicator_core::parts::Part;
use replicator_core::plan::{Precondition, SourceVersion};
use replicator_core::retry::body_timeout;
use replicator_core::rule::Rule;
use replicator_core::stamp::{OriginKey, Stamp};
use tracing::warn;

use crate::clock::{self, BootInstant};
use crate::engine::Due;
use crate::failpoint::Step;
use crate::kms::ResolvedKey;
use crate::limit::quotas::Flow;
use crate::limit::quotas::MemoryPermit;
use crate::limit::single_flight::{Body, Leader, RangeKey, Subscriber};
use crate::metrics::Unproved;
use crate::reconcile::Context;
use crate::reconcile::attempt::Extras;
use crate::reconcile::object::attributes::{
    Attributes, Header, ReplicaHeaders, STORAGE_CLASS, choose_encryption, choose_key, encoded_words,
};
use crate::reconcile::object::envelope;
use crate::reconcile::object::proof::{self, Choice, Proof};
use crate::reconcile::object::tags::{self, Tags};
use crate::reconcile::object::version_reader::VersionReader;
use crate::reconcile::observe::StartedGet;
use crate::reconcile::observe::destination::Snapshot;
use crate::reconcile::observe::head::read_claim;
use crate::s3::accounts::error::Side;
use crate::s3::checksum::{CRC64_NVME, crc64_header};
use crate::s3::client::{Filled, S3Request};

/// One version on its way to one destination.
#[derive(Debug)]
pub(in crate::reconcile) struct CopyJob<'a> {
    pub(in crate::reconcile) cx: Context<'a>,
    pub(crate) reader: &'a Subscriber,
    pub(crate) rule: &'a Rule,
    pub(crate) version: &'a SourceVersion,
    pub(crate) condition: &'a Precondition,
    /// What the condition was made from.
    pub(crate) snapshot: &'a Snapshot,
    /// The version's tags, where choosing the rule needed them.
    pub(crate) tags: Option<Tags>,
    /// What its writes need beyond the plain request.
    pub(crate) extras: Extras,
}

/// A write that was answered.
#[derive(Debug)]
pub(in crate::reconcile) struct Written {
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

impl Written {
    /// Reads what the answer to a write leaves out: some stores name no ETag, or no version id. The
    /// write is known to have landed, but where neither is named.
    pub(in crate::reconcile) async fn complete(
        copy: &CopyJob<'_>,
        operation: Operation,
        (etag, version): (Option<ETag>, Option<String>),
        sent: BootInstant,
    ) -> Result<Self, Failure> {
        let unknown = |cause: Box<dyn Error + Send + Sync>| {
            Failure::with_source(FailureKind::OutcomeUnknown, operation, cause)
        };
        let current = || copy.cx.head(Side::Destination);
        let ask = async |call| match copy.cx.destination.wire.send(call).await {
            Ok(answer) => Ok(answer.into_head()),
            Err(refusal) => Err(unknown(Failure::from(refusal).into())),
        };
        let (destination_version, etag) = match (etag, version.filter(|id| !id.is_empty())) {
            (Some(etag), Some(version)) => (Some(version), etag),
            (None, None) => {
                let cause = "the answer names neither ETag nor version id";
                return Err(unknown(cause.into()));
            }
            (None, Some(version)) => {
                let head = ask(current().version(&version)).await?;
                let cause = "neither the answer nor a HEAD of its version names an ETag";
                let etag = head.etag().ok_or_else(|| unknown(cause.into()))?;
                (Some(version), etag)
            }
            // Another daemon may have written on top meanwhile.
            (Some(etag), None) => {
                let head = ask(current()).await?;
                let is_ours = read_claim(&head, copy.cx.task.original())
                    .is_none_or(|claim| claim.version == copy.version.version);
                if head.etag().as_ref() != Some(&etag) || !is_ours {
                    let cause = "the answer names no version id, and another object is current";
                    return Err(unknown(cause.into()));
                }
                (head.version_id(), etag)
            }
        };
        Ok(Self {
            operation,
            destination_version,
            etag,
            sent,
            tags: Tags::new(),
            unproved: None,
        })
    }
}

impl CopyJob<'_> {
    /// Names what is copied.
    pub(in crate::reconcile) fn original(&self) -> VersionReader<'_> {
        VersionReader::new(self.cx, Side::Source, self.version)
    }

    /// Names the rule and line that the limits count this for.
    pub(in crate::reconcile) fn payer_for(&self, is_bulk: bool) -> Flow<'_> {
        Flow {
            rule: self.rule,
            is_bulk,
        }
    }

    /// Waits until a part may be written; the only one of a small object, or one of a large.
    pub(in crate::reconcile) async fn admitted(
        &self,
        part: Part,
        is_bulk: bool,
    ) -> (Due<'_>, MemoryPermit) {
        let version = self.version.version.clone();
        let piece = RangeKey {
            version,
            is_part: is_bulk,
            offset: part.offset,
            len: part.len,
        };
        self.cx
            .engine
            .admit_copy(
                (self.payer_for(is_bulk), &self.cx.task.target),
                self.reader,
                &piece,
            )
            .await
    }

    /// Reads from the source what the replica carries. Tags are counted by some endpoints for GET
    /// and not for HEAD, LocalStack among them.
    pub(in crate::reconcile) async fn read_headers_again(&self) -> Result<ReplicaHeaders, Failure> {
        let asked = BootInstant::now();
        let head = self.original().head().await?;
        self.headers_from(Attributes::from(&head), asked, self.cx.source.is_aws)
            .await
    }

    /// Decides from the source's answer what the replica carries, or that the version is not to be
    /// replicated.
    async fn headers_from(
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
        let (encryption, key) = self.encryption_under_keys(&attributes)?;
        let tags = self.read_tags(&attributes, counts_tags).await?;
        if let Some(class) = &self.rule.storage_class {
            let class = HeaderValue::try_from(class).map_err(|error| {
                let kind = FailureKind::NeedsOperator(Reason::RequestRefused);
                Failure::with_source(kind, Operation::SetStorageClass, error)
            })?;
            attributes.store_headers.insert(STORAGE_CLASS, class);
        }
        let rewrapped = envelope::rewrap_metadata(self, &mut attributes).await?;
        if self.cx.destination.is_aws {
            attributes
                .reader_headers
                .values_mut()
                .for_each(|value| *value = encoded_words(value));
        }
        self.stamp(&mut attributes);
        Ok(ReplicaHeaders {
            attributes,
            tags,
            encryption,
            key,
            rewrapped,
            asked,
        })
    }

    /// Chooses the encryption of the replica, unless the rule does not take the source's, or a key
    /// that it needs cannot be used.
    fn encryption_under_keys(
        &self,
        attributes: &Attributes,
    ) -> Result<(Vec<Header>, Option<ResolvedKey>), Failure> {
        if attributes.is_kms() && !self.rule.sse_kms_objects {
            return Err(Failure::new(
                FailureKind::Ineligible(Reason::SrcObjectNotEligible),
                Operation::CheckEncryption,
            ));
        }
        let (keys, region) = (&self.cx.engine.keys, self.cx.destination.region());
        if let Some(key) = attributes.kms_key.as_ref().filter(|_| attributes.is_kms()) {
            keys.for_reading(self.rule, key)?;
        }
        let key = choose_key(&self.rule.encryption, attributes, region).map_err(|key| {
            let cause = format!("{key} is no multi-Region key, and key_map does not have it");
            let kind = FailureKind::NeedsOperator(Reason::DstKmsKeyNotFound);
            Failure::with_source(kind, Operation::CheckEncryption, cause)
        })?;
        let key = key
            .map(|key| keys.for_replica(self.rule, key))
            .transpose()?;
        let id = key.as_ref().map(|key| key.id().to_owned());
        Ok((
            choose_encryption(&self.rule.encryption, attributes, id),
            key,
        ))
    }

    fn stamp(&self, attributes: &mut Attributes) {
        let task = self.cx.task;
        let event = self.cx.event_of(&self.version.version.id);
        let stamp = Stamp {
            place: OriginKey::of_key(&task.source.bucket, &task.source_key),
            version: self.version.version.clone(),
            sequencer: event.and_then(|event| event.sequencer.clone()),
        };
        if !attributes.stamp(&stamp) {
            let (rule, key) = (&self.rule.id, task.source_key.as_str());
            let metrics = &self.cx.engine.metrics;
            metrics.count_failed(rule, Reason::StampTooLarge.as_str());
            warn!(
                rule,
                key, "no room for the stamp beside the user's metadata"
            );
        }
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
        let place = &self.cx.task.source;
        match attributes.tag_count.as_deref() {
            Some("0") => return Ok(Tags::new()),
            Some(_) if counts_tags => self.cx.source.capabilities.counted_tags(),
            None if counts_tags && self.cx.engine.counts_tags(place) => return Ok(Tags::new()),
            Some(_) | None => {}
        }
        let tags = tags::read_source(self.cx, &self.version.version.id).await?;
        self.cx.engine.tags_read.mark_seen(place);
        Ok(tags)
    }
}

/// Copies a version whose body fits into one part.
pub(in crate::reconcile) async fn copy_whole(
    copy: &CopyJob<'_>,
    opened: Option<Box<StartedGet>>,
) -> Result<Written, Failure> {
    let whole = Part {
        number: 1,
        offset: 0,
        len: copy.version.size_bytes,
    };
    if copy.cx.engine.keys.has_bad(copy.rule) {
        // A HEAD tells whether this object needs the key, before its body is on the way.
        let head = copy.original().head().await?;
        copy.encryption_under_keys(&Attributes::from(&head))?;
    }
    let (due, _share) = copy.admitted(whole, false).await;
    let (body, headers) = match due {
        Due::Have(body) => {
            let headers = copy
                .headers_from(Attributes::from(&body.head), body.read, true)
                .await?;
            (body, headers)
        }
        Due::Read(lead, paid) => read(copy, (whole, opened), lead, paid).await?,
    };
    let headers = if headers.is_old() {
        copy.read_headers_again().await?
    } else {
        headers
    };
    put(copy, &headers, &body).await
}

/// Reads the object, here and for the other destinations that take it. That it is not to be
/// replicated is known before its body has come.
async fn read(
    copy: &CopyJob<'_>,
    (whole, opened): (Part, Option<Box<StartedGet>>),
    mut lead: Leader<'_>,
    paid: MemoryPermit,
) -> Result<(Arc<Body>, ReplicaHeaders), Failure> {
    let original = copy.original();
    let (head, body, read) = match opened.map(|opened| *opened) {
        Some(StartedGet {
            head, body, asked, ..
        }) => (head, body, asked),
        None => {
            let asked = BootInstant::now();
            let (head, body) = copy
                .cx
                .source
                .send_for_checksums(|| original.get_call())
                .await?
                .split();
            (head, body, asked)
        }
    };
    let attributes = Attributes::from(&head);
    if copy.claimed_origin(&attributes).is_some() {
        // A request to the destination comes first, and the other readers do not wait for that.
        lead.step_aside();
    }
    let headers = copy.headers_from(attributes, read, true).await?;
    let choice = Proof::choose(copy, &headers.attributes.stated, whole.len).await?;
    let (filled, unproved) = match prove(&original, whole, body, &choice).await {
        // A bit that changed on its way may come right the next time.
        Err(failure) if failure.kind == MISMATCH => {
            let (_, body) = copy.cx.source.wire.send(original.get_call()).await?.split();
            prove(&original, whole, body, &choice).await?
        }
        proved => proved?,
    };
    Ok((
        lead.share(Body {
            head,
            read,
            filled,
            unproved,
            paid,
        }),
        headers,
    ))
}

const MISMATCH: FailureKind = FailureKind::NeedsOperator(Reason::ChecksumMismatch);

/// Reads a body to its end, and holds it against what the source states.
async fn prove(
    original: &VersionReader<'_>,
    whole: Part,
    body: SdkBody,
    choice: &Choice,
) -> Result<(Filled, Option<Unproved>), Failure> {
    let measure = choice.as_ref().ok().map(Proof::measure);
    let filled = original.finish(whole, body, measure).await?;
    let unproved = match choice {
        Ok(proof) => proof.check(original, &filled).await?,
        Err(cause) => Some(*cause),
    };
    Ok((filled, unproved))
}

async fn put(
    copy: &CopyJob<'_>,
    headers: &ReplicaHeaders,
    body: &Body,
) -> Result<Written, Failure> {
    let (if_match, if_none_match) = copy.conditions();
    let rewritten = envelope::rewrap_instructions(copy, &headers.attributes, &body.filled).await?;
    let filled = rewritten.as_ref().unwrap_or(&body.filled);
    let checksum = copy.extras.checked.then(|| crc64_header(filled.crc64));
    copy.snapshot
        .confirm(copy.cx, &copy.version.version.id)
        .await?;
    let target = &copy.cx.task.target;
    let call = S3Request::put_object(
        &target.destination.bucket,
        &target.key,
        filled.chunks.clone(),
    )
    .with_timeout(body_timeout(copy.version.size_bytes))
    .header("if-match", if_match.as_deref())
    .header("if-none-match", if_none_match.as_deref())
    .header(CRC64_NVME, checksum.as_deref());
    let sent = BootInstant::now();
    let request = Box::pin(copy.cx.destination.wire.send(headers.on(call)));
    let answer = copy
        .cx
        .engine
        .failpoints
        .around(Step::PutObject, request)
        .await?;
    let answer = answer.into_head();
    let answered = proof::compare_answer(&answer, filled, true);
    let written = Box::pin(Written::complete(
        copy,
        Operation::PutObject,
        (answer.etag(), answer.version_id()),
        sent,
    ))
    .await?;
    let written = Written {
        tags: headers.tags.clone(),
        ..written
    };
    Box::pin(proof::check_written(
        copy,
        written,
        answered,
        (filled.crc64, filled.chunks.len(), body.unproved),
    ))
    .await
}
