//! Multipart uploads from beginning to end.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::Bytes;
use http::HeaderMap;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CopyPartResult,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, ETag, Timestamp, UploadPartCopyInput,
    UploadPartCopyOutput, UploadPartInput, UploadPartOutput,
};
use s3s::{S3ErrorCode, S3Response, S3Result};

use super::Call;
use super::checksums::{Algorithm, Checksum, verified};
use super::conditions::text;
use super::dress::{Dress, describe_checksum, describe_encryption};
use super::entry::{EndedUpload, EntryId, Versioning};
use super::refusal::{bad_request, no_such_upload};
use super::state::{Place, State, set};
use super::writes::{etag, source};

/// An upload that is neither completed nor aborted.
#[derive(Debug, Clone)]
pub(super) struct Upload {
    pub(super) key: String,
    pub(super) by: String,
    pub(super) initiated: SystemTime,
    /// Its place in the key's history, where the order is that of beginnings.
    pub(super) rank: u64,
    pub(super) version_id: String,
    pub(super) dress: Dress,
    /// What the writer said of checksums, if anything.
    pub(super) algorithm: Option<Algorithm>,
    /// Whether the checksum is of the whole content.
    pub(super) full: bool,
    pub(super) parts: BTreeMap<i32, Part>,
}

/// A part that was uploaded.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) bytes: Bytes,
    pub(super) etag: String,
    pub(super) checksum: Option<Checksum>,
    pub(super) at: SystemTime,
}

// https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
const PARTS_MAX: i32 = 10_000;

/// Answers CreateMultipartUpload.
pub(super) fn create(
    state: &mut State,
    call: &Call,
    input: &CreateMultipartUploadInput,
) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
    let bucket = state.bucket(&input.bucket)?;
    let versioning = bucket.versioning;
    let dress = Dress::of(&call.headers, bucket)?;
    let mut dress = Dress {
        encryption: state.encrypted(dress.encryption)?,
        ..dress
    };
    if !state.traits.keeps_tags_uploaded {
        dress.tags.clear();
    }
    let (algorithm, full) = checksums_asked_for(&call.headers)?;
    let (upload_id, version_id) = (state.mint.upload_id(), state.mint.version_id());
    let mut headers = HeaderMap::new();
    describe_encryption(&mut headers, &dress.encryption);
    if let Some(algorithm) = algorithm {
        set(&mut headers, "x-amz-checksum-algorithm", algorithm.name());
        set(
            &mut headers,
            "x-amz-checksum-type",
            if full { "FULL_OBJECT" } else { "COMPOSITE" },
        );
    }
    if versioning == Versioning::Enabled {
        set(&mut headers, "x-amz-version-id", &version_id);
    }
    let upload = Upload {
        key: input.key.clone(),
        by: call.caller.clone(),
        initiated: state.clock.now(),
        rank: state.next_rank(),
        version_id,
        dress,
        algorithm,
        full,
        parts: BTreeMap::new(),
    };
    state
        .bucket_mut(&input.bucket)?
        .uploads
        .insert(upload_id.clone(), upload);
    let output = CreateMultipartUploadOutput {
        bucket: Some(input.bucket.clone()),
        key: Some(input.key.clone()),
        upload_id: Some(upload_id),
        ..Default::default()
    };
    Ok(S3Response::with_headers(output, headers))
}

fn checksums_asked_for(headers: &HeaderMap) -> S3Result<(Option<Algorithm>, bool)> {
    let name = text(headers, "x-amz-checksum-algorithm");
    let algorithm = name.map(|name| {
        Algorithm::named(name).ok_or_else(|| bad_request("InvalidRequest", "no such checksum"))
    });
    let algorithm = algorithm.transpose()?;
    let by_default = algorithm
        .unwrap_or(Algorithm::Crc64Nvme)
        .is_full_by_default();
    let full =
        text(headers, "x-amz-checksum-type").map_or(by_default, |kind| kind == "FULL_OBJECT");
    let fits = match algorithm {
        Some(Algorithm::Sha1 | Algorithm::Sha256) => !full,
        Some(Algorithm::Crc64Nvme) | None => full,
        Some(Algorithm::Crc32 | Algorithm::Crc32C) => true,
    };
    if fits {
        Ok((algorithm, full))
    } else {
        Err(bad_request(
            "InvalidRequest",
            "the checksum cannot be of this type",
        ))
    }
}

/// Answers UploadPart.
pub(super) fn upload_part(
    state: &mut State,
    call: &Call,
    input: &UploadPartInput,
) -> S3Result<S3Response<UploadPartOutput>> {
    let place = Place::new(&input.bucket, &input.key);
    let checksum = verified(&call.headers, &call.body)?;
    let part = keep_part(
        state,
        &place,
        (&input.upload_id, input.part_number),
        (call.body.clone(), checksum),
    )?;
    let mut headers = HeaderMap::new();
    set(&mut headers, "etag", &format!("\"{}\"", part.etag));
    describe_encryption(
        &mut headers,
        &upload(state, &place, &input.upload_id)?.dress.encryption,
    );
    describe_checksum(&mut headers, part.checksum.as_ref());
    headers.remove("x-amz-checksum-type");
    Ok(S3Response::with_headers(
        UploadPartOutput::default(),
        headers,
    ))
}

/// Answers UploadPartCopy.
pub(super) fn copy_part(
    state: &mut State,
    call: &Call,
    input: &UploadPartCopyInput,
) -> S3Result<S3Response<UploadPartCopyOutput>> {
    let place = Place::new(&input.bucket, &input.key);
    let times = (
        input.copy_source_if_modified_since.clone(),
        input.copy_source_if_unmodified_since.clone(),
    );
    let (entry, object) = source(state, call, &input.copy_source, times)?;
    let bytes = match &input.copy_source_range {
        None => object.bytes.clone(),
        Some(range) => range_of(&object.bytes, range)?,
    };
    let part = keep_part(
        state,
        &place,
        (&input.upload_id, input.part_number),
        (bytes, None),
    )?;
    let result = CopyPartResult {
        e_tag: Some(ETag::Strong(part.etag)),
        last_modified: Some(Timestamp::from(part.at)),
        ..Default::default()
    };
    let mut headers = HeaderMap::new();
    set(
        &mut headers,
        "x-amz-copy-source-version-id",
        &entry.version_id,
    );
    let output = UploadPartCopyOutput {
        copy_part_result: Some(result),
        ..Default::default()
    };
    Ok(S3Response::with_headers(output, headers))
}

fn range_of(bytes: &Bytes, range: &str) -> S3Result<Bytes> {
    let invalid = || bad_request("InvalidArgument", "the range is not one of the source");
    let (first, last) = range
        .strip_prefix("bytes=")
        .and_then(|range| range.split_once('-'))
        .ok_or_else(invalid)?;
    let (first, last): (usize, usize) = (
        first.parse().map_err(|_| invalid())?,
        last.parse().map_err(|_| invalid())?,
    );
    let part = bytes.get(first..=last).ok_or_else(invalid)?;
    Ok(bytes.slice_ref(part))
}

fn keep_part(
    state: &mut State,
    place: &Place,
    (upload_id, number): (&str, i32),
    (bytes, checksum): (Bytes, Option<Checksum>),
) -> S3Result<Part> {
    let upload = upload(state, place, upload_id)?;
    let (encryption, algorithm, full) = (
        upload.dress.encryption.clone(),
        upload.algorithm,
        upload.full,
    );
    if !(1..=PARTS_MAX).contains(&number) {
        return Err(bad_request(
            "InvalidArgument",
            "Part number must be an integer between 1 and 10000, inclusive",
        ));
    }
    if let Some(asked) = algorithm {
        fits(asked, full, checksum.as_ref())?;
    }
    state.usable(&encryption)?;
    let etag = etag(state, &encryption, &bytes);
    let part = Part {
        bytes: state.held_once(&etag, bytes),
        etag,
        checksum,
        at: state.clock.now(),
    };
    if let Some(upload) = state.bucket_mut(&place.bucket)?.uploads.get_mut(upload_id) {
        upload.parts.insert(number, part.clone());
    }
    Ok(part)
}

/// Parts come with the checksum that was announced; where it is one of the whole S3 adds what
/// lacks.
fn fits(asked: Algorithm, full: bool, sent: Option<&Checksum>) -> S3Result<()> {
    let sent = sent.map(|checksum| checksum.algorithm);
    if sent == Some(asked) || sent.is_none() && full {
        return Ok(());
    }
    let name = |algorithm: Option<Algorithm>| {
        algorithm.map_or("null".to_owned(), |found| found.name().to_lowercase())
    };
    let (asked, sent) = (name(Some(asked)), name(sent));
    let message = format!(
        "Checksum Type mismatch occurred, expected checksum Type: {asked}, actual checksum Type: {sent}"
    );
    Err(bad_request("InvalidRequest", message))
}

/// Answers AbortMultipartUpload.
pub(super) fn abort(
    state: &mut State,
    call: &Call,
    input: &AbortMultipartUploadInput,
) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
    match end(
        state,
        &Place::new(&input.bucket, &input.key),
        call,
        &input.upload_id,
        None,
    ) {
        Err(refusal)
            if !(state.traits.aborts_twice && *refusal.code() == S3ErrorCode::NoSuchUpload) =>
        {
            Err(refusal)?;
        }
        Ok(()) | Err(_) => {}
    }
    Ok(S3Response::new(AbortMultipartUploadOutput::default()))
}

pub(super) fn upload<'a>(state: &'a State, place: &Place, upload_id: &str) -> S3Result<&'a Upload> {
    let upload = state.bucket(&place.bucket)?.uploads.get(upload_id);
    upload
        .filter(|upload| upload.key == place.key)
        .ok_or_else(no_such_upload)
}

pub(super) fn end(
    state: &mut State,
    place: &Place,
    call: &Call,
    upload_id: &str,
    entry: Option<EntryId>,
) -> S3Result<()> {
    let begun_by = upload(state, place, upload_id)?.by.clone();
    state.bucket_mut(&place.bucket)?.uploads.remove(upload_id);
    state.ended.push(EndedUpload {
        upload_id: upload_id.to_owned(),
        bucket: place.bucket.clone(),
        key: place.key.clone(),
        begun_by,
        ended_by: call.caller.clone(),
        entry,
        at: state.clock.now(),
    });
    Ok(())
}
