//! One version of an object, read by its id: whatever is written meanwhile, it is this one.

use aws_sdk_s3::operation::get_object::builders::GetObjectFluentBuilder;
use aws_sdk_s3::operation::head_object::builders::HeadObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumMode;
use bytes::{Bytes, BytesMut};
use replicator_core::failure::{Failure, Kind, Reason};
use replicator_core::object::{Bucket, ETag, Key};
use replicator_core::parts::{self, Part};
use replicator_core::plan::SourceVersion;

use super::copy::{crc64, crc64_joined};
use super::part_bytes_preferred;
use crate::accounts::Access;
use crate::accounts::refusal::{Side, failure};
use crate::engine::Engine;
use crate::task::Task;

/// A version and where it is.
#[derive(Debug)]
pub(super) struct Pinned<'a> {
    pub(super) access: &'a Access,
    pub(super) side: Side,
    bucket: &'a Bucket,
    key: &'a Key,
    version: &'a SourceVersion,
}

impl<'a> Pinned<'a> {
    /// Names a version of the source.
    pub(super) fn original(access: &'a Access, task: &'a Task, version: &'a SourceVersion) -> Self {
        Self { access, side: Side::Source, bucket: &task.source.bucket, key: &task.source_key, version }
    }

    /// Names a version of the destination.
    pub(super) fn replica(access: &'a Access, task: &'a Task, version: &'a SourceVersion) -> Self {
        let lane = &task.lane;
        Self { access, side: Side::Destination, bucket: &lane.destination.bucket, key: &lane.key, version }
    }

    /// Begins a GET. The ETag says so if the server's `null` version is another one by now.
    pub(super) fn get(&self) -> GetObjectFluentBuilder {
        let request = self.access.s3.get_object().bucket(self.bucket.as_str()).key(self.key.as_str());
        request.version_id(self.version.version.id.as_str()).set_if_match(self.version.etag.as_ref().map(ETag::quoted))
    }

    /// Begins a HEAD that asks for the checksums too.
    pub(super) fn head(&self) -> HeadObjectFluentBuilder {
        let request = self.access.s3.head_object().bucket(self.bucket.as_str()).key(self.key.as_str());
        request.version_id(self.version.version.id.as_str()).checksum_mode(ChecksumMode::Enabled)
    }

    /// Reads a part into memory that was paid for.
    pub(super) async fn part(&self, part: Part) -> Result<Bytes, Failure> {
        let request = self.get().set_range((part.len > 0).then(|| part.range()));
        let answer = request.send().await.map_err(|error| failure(self.side, "GetObject", error))?;
        collect(answer.body, part.len).await
    }

    /// Reads everything, part by part, for the checksum of the whole.
    pub(super) async fn crc64(&self, engine: &Engine, rule: &str) -> Result<u64, Failure> {
        let unsupported =
            |error| Failure::caused(Kind::Unsupported(Reason::SrcObjectNotEligible), "part layout", error);
        let layout = parts::layout(self.version.size_bytes, part_bytes_preferred(engine)).map_err(unsupported)?;
        let mut whole = crc64(&[]);
        for part in layout.parts() {
            engine.limits.bytes(rule, part.len).await;
            let _paid = engine.budget.pay(part.len).await;
            whole = crc64_joined(whole, crc64(&self.part(part).await?), part.len);
            engine.pulse.beat();
        }
        Ok(whole)
    }
}

/// Reads a body into memory that was paid for, and checks that it is whole.
pub(super) async fn collect(mut body: ByteStream, len: u64) -> Result<Bytes, Failure> {
    let broken = |error| Failure::caused(Kind::Transient, "GetObject", error);
    let mut bytes = BytesMut::with_capacity(usize::try_from(len).unwrap_or_default());
    // One chunk beyond the length is enough to know, and all that is ever held.
    while bytes.len() as u64 <= len
        && let Some(chunk) = body.next().await
    {
        bytes.extend_from_slice(&chunk.map_err(broken)?);
    }
    if bytes.len() as u64 != len {
        let detail = format!("expected {len} bytes, got {}", bytes.len());
        return Err(Failure::caused(Kind::Transient, "GetObject", detail));
    }
    Ok(bytes.freeze())
}
