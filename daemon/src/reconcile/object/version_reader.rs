//! One version of an object, read by its id: whatever is written meanwhile, it is this one.

use aws_smithy_types::body::SdkBody;
use replicator_core::failure::{Failure, FailureKind, Operation, Reason, ResponseInfo};
use replicator_core::object::{Bucket, Key};
use replicator_core::parts::{self, Layout, Part};
use replicator_core::plan::SourceVersion;
use replicator_core::retry;
use replicator_core::rule::Rule;

use crate::limit::quotas::Flow;
use crate::reconcile::Context;
use crate::reconcile::part_bytes_preferred;
use crate::s3::accounts::AccountClients;
use crate::s3::accounts::error::Side;
use crate::s3::checksum::Measure;
use crate::s3::client::{BodyReader, Filled, ResponseHead, S3Error, S3Request};

/// A version and where it is.
#[derive(Debug)]
pub(in crate::reconcile) struct VersionReader<'a> {
    cx: Context<'a>,
    pub(in crate::reconcile) access: &'a AccountClients,
    side: Side,
    bucket: &'a Bucket,
    key: &'a Key,
    version: &'a SourceVersion,
}

impl<'a> VersionReader<'a> {
    /// Names a version of a task's key at one of its sides.
    pub(in crate::reconcile) fn new(
        cx: Context<'a>,
        side: Side,
        version: &'a SourceVersion,
    ) -> Self {
        let (access, bucket, key) = cx.at(side);
        Self {
            cx,
            access,
            side,
            bucket,
            key,
            version,
        }
    }

    /// Begins a GET.
    pub(in crate::reconcile) fn get_call(&self) -> S3Request<'a> {
        self.of_this(S3Request::get_object(self.side, self.bucket, self.key))
    }

    /// Names this very version. The ETag detects a `null` version that was overwritten.
    fn of_this(&self, call: S3Request<'a>) -> S3Request<'a> {
        let SourceVersion {
            version,
            etag,
            size_bytes,
            ..
        } = self.version;
        call.version(version.id.as_str())
            .identified(etag.as_ref(), *size_bytes)
    }

    /// Reads its headers, checksums included.
    pub(in crate::reconcile) async fn head(&self) -> Result<ResponseHead, S3Error> {
        let call = || self.of_this(self.cx.head(self.side));
        Ok(self.access.send_for_checksums(call).await?.into_head())
    }

    /// Reads a part and its headers, into memory that was paid for.
    pub(in crate::reconcile) async fn part(
        &self,
        part: Part,
        measure: Option<Measure>,
    ) -> Result<(ResponseHead, Filled), Failure> {
        let (head, body) = self
            .access
            .wire
            .send(self.get_call().bytes(part))
            .await?
            .split();
        Ok((head, self.finish(part, body, measure).await?))
    }

    /// Reads a body to its end, into memory that was paid for, and computes what is to be measured.
    pub(in crate::reconcile) async fn finish(
        &self,
        part: Part,
        body: SdkBody,
        measure: Option<Measure>,
    ) -> Result<Filled, Failure> {
        let mut filling = BodyReader::new(part).with_measure(measure);
        self.fill(&mut filling, body).await?;
        Ok(filling.finish())
    }

    /// Reads a body to its end, and when the connection breaks what is left of it by another
    /// request.
    async fn fill(&self, filling: &mut BodyReader, body: SdkBody) -> Result<(), Failure> {
        let mut read = filling.read(body).await;
        for attempt in 1..RESUMED_MAX {
            let Err(broken) = read else { break };
            let rest = filling.rest();
            if rest.len == 0 {
                return Err(broken);
            }
            tokio::time::sleep(retry::jittered_delay(attempt, fastrand::f64())).await;
            let (_, body) = self
                .access
                .wire
                .send(self.get_call().bytes(rest))
                .await?
                .split();
            read = filling.read(body).await;
        }
        read
    }

    /// Reads everything, part by part, for its checksums. Nothing is kept, so nothing is paid for:
    /// the caller may hold memory already.
    pub(in crate::reconcile) async fn read_through(
        &self,
        rule: &Rule,
        measure: Option<Measure>,
    ) -> Result<Filled, Failure> {
        let engine = self.cx.engine;
        let layout = lay_out(self.version.size_bytes, part_bytes_preferred(engine, rule))?;
        let mut filling = BodyReader::passing().with_measure(measure);
        for part in layout.parts() {
            let payer = Flow {
                rule,
                is_bulk: true,
            };
            {
                let _rests = engine.watchdog.key_waits(&self.cx.task.target);
                engine.limits.acquire_bytes(payer, part.len).await;
            }
            let (_, body) = self
                .access
                .wire
                .send(self.get_call().bytes(part))
                .await?
                .split();
            filling.want_more(part.len);
            self.fill(&mut filling, body).await?;
            engine.watchdog.record_progress();
        }
        Ok(filling.finish())
    }

    /// Reads how large the parts are in which it was uploaded, if the first indicates that all but
    /// the last are as large.
    pub(in crate::reconcile) async fn uploaded_part_bytes(
        &self,
        count: u32,
    ) -> Result<Option<u64>, Failure> {
        let Some(head) = self.uploaded_part(1).await? else {
            return Ok(None);
        };
        let stated: Option<u32> = head
            .header("x-amz-mp-parts-count")
            .and_then(|count| count.parse().ok());
        let part_bytes = head.content_length().filter(|_| stated == Some(count));
        let makes_the_whole =
            |part_bytes: &u64| self.version.size_bytes.div_ceil(*part_bytes) == u64::from(count);
        Ok(part_bytes
            .filter(|part_bytes| *part_bytes > 0)
            .filter(makes_the_whole))
    }

    /// Reads whether all parts in which it was uploaded but the last have this size: a request for
    /// each, for rare doubts.
    pub(in crate::reconcile) async fn has_equal_parts(
        &self,
        part_bytes: u64,
        count: u32,
    ) -> Result<bool, Failure> {
        for number in 2..=count {
            let len = self
                .uploaded_part(number)
                .await?
                .and_then(|head| head.content_length());
            let before = u64::from(number - 1) * part_bytes;
            if len
                != Some(
                    self.version
                        .size_bytes
                        .saturating_sub(before)
                        .min(part_bytes),
                )
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads a part in which it was uploaded; none where the store does not support that.
    async fn uploaded_part(&self, number: u32) -> Result<Option<ResponseHead>, Failure> {
        let call = self.of_this(self.cx.head(self.side)).uploaded_part(number);
        let is_unsupported =
            |info: ResponseInfo| info.is_own && matches!(info.status, 400 | 405 | 416 | 501);
        match self.access.wire.send(call).await {
            Ok(answer) => Ok(Some(answer.into_head())),
            Err(refusal) if refusal.failure.answer.is_some_and(is_unsupported) => Ok(None),
            Err(refusal) => Err(refusal.into()),
        }
    }
}

/// Divides an object into parts.
pub(crate) fn lay_out(size_bytes: u64, part_bytes: u64) -> Result<Layout, Failure> {
    parts::plan_layout(size_bytes, part_bytes).map_err(|error| {
        let kind = FailureKind::Ineligible(Reason::SrcObjectNotEligible);
        Failure::with_source(kind, Operation::LayOutParts, error)
    })
}

// A connection that breaks costs what was on its way, a few times, before the whole task waits.
const RESUMED_MAX: u32 = 3;
