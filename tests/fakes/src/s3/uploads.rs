//! ListParts and ListMultipartUploads.

use s3s::dto::{
    ETag, Initiator, ListMultipartUploadsInput, ListMultipartUploadsOutput, ListPartsInput,
    ListPartsOutput, MultipartUpload, Part as ListedPart, Timestamp,
};
use s3s::{S3Response, S3Result};

use super::Call;
use super::checksums::put_checksum;
use super::multipart::{Upload, upload};
use super::refusal::not_implemented;
use super::state::{Place, State};
use super::times::whole_seconds;

// Both list at most a thousand at a time:
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
const PAGE_MAX: i32 = 1000;

/// Answers ListParts.
pub(super) fn parts(
    state: &mut State,
    _call: &Call,
    input: &ListPartsInput,
) -> S3Result<S3Response<ListPartsOutput>> {
    let upload = upload(
        state,
        &Place::new(&input.bucket, &input.key),
        &input.upload_id,
    )?;
    let max = page(input.max_parts);
    let after = input.part_number_marker.unwrap_or(0);
    let mut found: Vec<ListedPart> = upload
        .parts
        .iter()
        .filter(|(number, _)| **number > after)
        .take(max + 1)
        .map(|(number, part)| {
            let mut listed = ListedPart {
                part_number: Some(*number),
                e_tag: Some(ETag::Strong(part.etag.clone())),
                size: i64::try_from(part.bytes.len()).ok(),
                last_modified: Some(Timestamp::from(whole_seconds(part.at))),
                ..Default::default()
            };
            put_checksum!(listed, &part.checksum);
            listed
        })
        .collect();
    let more = found.len() > max;
    found.truncate(max);
    let output = ListPartsOutput {
        bucket: Some(input.bucket.clone()),
        key: Some(input.key.clone()),
        upload_id: Some(input.upload_id.clone()),
        part_number_marker: Some(after),
        next_part_number_marker: found.last().and_then(|part| part.part_number),
        max_parts: i32::try_from(max).ok(),
        is_truncated: Some(more),
        parts: Some(found),
        ..Default::default()
    };
    Ok(S3Response::new(output))
}

/// Answers ListMultipartUploads: by key, and of one key by when they were begun.
pub(super) fn uploads(
    state: &mut State,
    _call: &Call,
    input: &ListMultipartUploadsInput,
) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
    if input
        .delimiter
        .as_ref()
        .is_some_and(|delimiter| !delimiter.is_empty())
    {
        return Err(not_implemented(
            "the fake lists uploads without a delimiter",
        ));
    }
    let bucket = state.bucket(&input.bucket)?;
    let prefix = input.prefix.as_deref().unwrap_or_default();
    let mut found: Vec<(&String, &Upload)> = bucket
        .uploads
        .iter()
        .filter(|(_, upload)| upload.key.starts_with(prefix))
        .collect();
    found.sort_by_key(|(_, upload)| (&upload.key, upload.rank));
    if let Some(key) = input.key_marker.as_deref().filter(|key| !key.is_empty()) {
        let marker = input.upload_id_marker.as_ref();
        let rank = marker
            .and_then(|id| bucket.uploads.get(id))
            .map_or(u64::MAX, |upload| upload.rank);
        found.retain(|(_, upload)| (upload.key.as_str(), upload.rank) > (key, rank));
    }
    let max = page(input.max_uploads);
    let more = found.len() > max;
    found.truncate(max);
    let next = found.last().filter(|_| more);
    let output = ListMultipartUploadsOutput {
        bucket: Some(input.bucket.clone()),
        key_marker: input.key_marker.clone(),
        prefix: input.prefix.clone(),
        max_uploads: i32::try_from(max).ok(),
        is_truncated: Some(more),
        next_key_marker: next.map(|(_, upload)| upload.key.clone()),
        next_upload_id_marker: next.map(|(id, _)| (*id).clone()),
        uploads: Some(
            found
                .into_iter()
                .map(|(id, upload)| listed(id, upload))
                .collect(),
        ),
        ..Default::default()
    };
    Ok(S3Response::new(output))
}

fn listed(id: &str, upload: &Upload) -> MultipartUpload {
    MultipartUpload {
        upload_id: Some(id.to_owned()),
        key: Some(upload.key.clone()),
        initiated: Some(Timestamp::from(whole_seconds(upload.initiated))),
        storage_class: Some(upload.dress.storage_class.clone().into()),
        initiator: Some(Initiator {
            id: Some(principal(&upload.by)),
            display_name: None,
        }),
        ..Default::default()
    }
}

/// Names the principal of a client: daemons of one role are one, and their sessions are told apart.
fn principal(client: &str) -> String {
    let role = client.split('-').next().unwrap_or_default();
    format!("arn:aws:sts::111111111111:assumed-role/{role}/{client}")
}

fn page(asked: Option<i32>) -> usize {
    usize::try_from(asked.unwrap_or(PAGE_MAX).clamp(0, PAGE_MAX)).unwrap_or(0)
}
