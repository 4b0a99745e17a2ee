//! Replicas without a stamp, because the user's metadata left it no room. When the ledger does not
//! know one either, after a lost answer or a lost disk, its content tells.

use std::collections::HashMap;

use aws_sdk_s3::types::ChecksumMode;
use replicator_core::failure::Failure;
use replicator_core::plan::SourceVersion;
use replicator_core::stamp::USER_METADATA_BYTES_MAX;

use super::copy::{Written, etag_of};
use crate::accounts::Access;
use crate::accounts::refusal::{Side, failure};
use crate::engine::Engine;
use crate::task::Task;

/// Says whether the object that is current, of which nothing is known, is the replica of this
/// version: the same metadata, too full for a stamp, and the same bytes.
pub(super) async fn recognise(
    engine: &Engine,
    task: &Task,
    version: &SourceVersion,
) -> Result<Option<Written>, Failure> {
    let (source, destination) = (engine.access(&task.source)?, engine.access(&task.lane.destination)?);
    let original = head(source, Side::Source, task, Some(version.version.id.as_str())).await?;
    let metadata = original.metadata.clone().unwrap_or_default();
    if has_room(&metadata) {
        return Ok(None);
    }
    let current = head(destination, Side::Destination, task, None).await?;
    let same_bytes = current.content_length == original.content_length
        && current.checksum_crc64_nvme.is_some()
        && current.checksum_crc64_nvme == original.checksum_crc64_nvme;
    if !same_bytes || current.metadata.unwrap_or_default() != metadata {
        return Ok(None);
    }
    let etag = etag_of(current.e_tag.as_deref(), "HeadObject")?;
    Ok(Some(Written { destination_version: current.version_id, etag }))
}

// More than a stamp ever takes: the longest names of bucket and version, a time, a sequencer.
const STAMP_BYTES_MAX: usize = 256;

fn has_room(metadata: &HashMap<String, String>) -> bool {
    let used: usize = metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
    used + STAMP_BYTES_MAX <= USER_METADATA_BYTES_MAX
}

async fn head(
    access: &Access,
    side: Side,
    task: &Task,
    version: Option<&str>,
) -> Result<aws_sdk_s3::operation::head_object::HeadObjectOutput, Failure> {
    let (bucket, key) = match side {
        Side::Source => (&task.source.bucket, &task.source_key),
        Side::Destination | Side::Write | Side::Prepare => (&task.lane.destination.bucket, &task.lane.key),
    };
    let request = access.s3.head_object().bucket(bucket.as_str()).key(key.as_str());
    request
        .set_version_id(version.map(str::to_owned))
        .checksum_mode(ChecksumMode::Enabled)
        .send()
        .await
        .map_err(|error| failure(side, "HeadObject", error))
}
