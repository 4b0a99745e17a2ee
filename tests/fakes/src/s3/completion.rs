//! CompleteMultipartUpload: parts become an object, if they are what the writer thinks they are.

use bytes::{Bytes, BytesMut};
use s3s::dto::{CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CompletedPart, ETag};
use s3s::{S3Response, S3Result};

use super::Call;
use super::checksums::{Algorithm, Checksum, claimed, etag_of_parts, put_checksum};
use super::conditions::{Write, check, text};
use super::entry::Encryption;
use super::multipart::{Part, Upload, end, upload};
use super::refusal::bad_request;
use super::state::{Deed, Draft, Place, State};
use super::traits::Order;
use super::writes::written;

/// Answers CompleteMultipartUpload.
pub(super) fn complete(
    state: &mut State,
    call: &Call,
    input: &CompleteMultipartUploadInput,
) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
    let place = Place::new(&input.bucket, &input.key);
    let upload = upload(state, &place, &input.upload_id)?.clone();
    let listed = input
        .multipart_upload
        .as_ref()
        .and_then(|list| list.parts.as_deref())
        .unwrap_or_default();
    let parts = chosen(&upload, listed, state.traits.part_bytes_min)?;
    let bytes = joined(&parts);
    let checksum = whole_checksum(&upload, &parts, &bytes);
    claims_hold(call, &checksum, bytes.len())?;
    let checksum = (upload.algorithm.is_some() || state.traits.adds_checksums).then_some(checksum);
    state.usable(&upload.dress.encryption)?;
    check(state, Write::Complete(upload.rank), &place, call)?;
    let etag = whole_etag(state, &upload, &parts);
    let bytes = state.held_once(&etag, bytes);
    let mut object = upload
        .dress
        .clone()
        .around(bytes, etag.clone(), checksum.clone());
    object.parts = parts.iter().map(|part| part.bytes.len()).collect();
    let (rank, last_modified) = match state.traits.order {
        Order::LastInitiated => (upload.rank, upload.initiated),
        Order::LastCompleted | Order::LastCompletedListedAsBegun => {
            (state.next_rank(), state.clock.now())
        }
    };
    let draft = Draft {
        object: Some(object),
        version_id: upload.version_id.clone(),
        rank,
        begun: upload.rank,
        last_modified,
    };
    let entry = state.land(
        &place,
        draft,
        &Deed {
            call,
            cause: "CompleteMultipartUpload",
        },
    )?;
    end(state, &place, call, &input.upload_id, Some(entry.id))?;
    let mut output = CompleteMultipartUploadOutput {
        location: Some(format!(
            "http://s3.amazonaws.com/{}/{}",
            place.bucket, place.key
        )),
        bucket: Some(place.bucket.clone()),
        key: Some(place.key.clone()),
        e_tag: Some(ETag::Strong(etag)),
        ..Default::default()
    };
    put_checksum!(output, &checksum);
    Ok(S3Response::with_headers(
        output,
        written(state, &place, &entry)?,
    ))
}

/// The parts that the writer lists, if they are what was uploaded.
fn chosen<'a>(
    upload: &'a Upload,
    listed: &[CompletedPart],
    part_bytes_min: usize,
) -> S3Result<Vec<&'a Part>> {
    if listed.is_empty() {
        return Err(bad_request("MalformedXML", "the list of parts is empty"));
    }
    let mut parts = Vec::new();
    let mut last = 0;
    for wanted in listed {
        let number = wanted.part_number.unwrap_or(0);
        if number <= last {
            return Err(bad_request(
                "InvalidPartOrder",
                "the parts are not in ascending order",
            ));
        }
        last = number;
        let part = upload
            .parts
            .get(&number)
            .filter(|part| is_same(part, wanted));
        parts.push(part.ok_or_else(|| {
            bad_request(
                "InvalidPart",
                format!("part {number} is not what was uploaded"),
            )
        })?);
    }
    let inner = parts.len() - 1;
    if parts
        .iter()
        .take(inner)
        .any(|part| part.bytes.len() < part_bytes_min)
    {
        return Err(bad_request(
            "EntityTooSmall",
            "a part before the last one is too small",
        ));
    }
    Ok(parts)
}

fn is_same(part: &Part, wanted: &CompletedPart) -> bool {
    let sent = [
        (Algorithm::Crc64Nvme, &wanted.checksum_crc64nvme),
        (Algorithm::Crc32, &wanted.checksum_crc32),
        (Algorithm::Crc32C, &wanted.checksum_crc32c),
        (Algorithm::Sha1, &wanted.checksum_sha1),
        (Algorithm::Sha256, &wanted.checksum_sha256),
    ];
    let proved = sent.into_iter().all(|(algorithm, value)| {
        value
            .as_ref()
            .is_none_or(|value| *value == algorithm.of(&part.bytes))
    });
    proved
        && wanted
            .e_tag
            .as_ref()
            .is_some_and(|etag| etag.value() == part.etag)
}

fn joined(parts: &[&Part]) -> Bytes {
    if let [only] = parts {
        return only.bytes.clone();
    }
    let mut all = BytesMut::new();
    parts
        .iter()
        .for_each(|part| all.extend_from_slice(&part.bytes));
    all.freeze()
}

/// The ETag tells the parts' bytes only where S3 encrypts them by itself.
fn whole_etag(state: &mut State, upload: &Upload, parts: &[&Part]) -> String {
    match upload.dress.encryption {
        Encryption::Aes256 => etag_of_parts(parts.iter().map(|part| part.etag.as_str())),
        Encryption::Kms { .. } | Encryption::Customer { .. } => {
            format!("{}-{}", state.mint.etag(), parts.len())
        }
    }
}

fn whole_checksum(upload: &Upload, parts: &[&Part], bytes: &Bytes) -> Checksum {
    let algorithm = upload.algorithm.unwrap_or(Algorithm::Crc64Nvme);
    if upload.full {
        return Checksum {
            algorithm,
            value: algorithm.of(bytes),
            full: true,
        };
    }
    let digests: Vec<String> = parts.iter().map(|part| algorithm.of(&part.bytes)).collect();
    Checksum {
        algorithm,
        value: algorithm.composite(&digests),
        full: false,
    }
}

/// What the writer claims of the whole object must be so.
fn claims_hold(call: &Call, checksum: &Checksum, len: usize) -> S3Result<()> {
    let kind = if checksum.full {
        "FULL_OBJECT"
    } else {
        "COMPOSITE"
    };
    if text(&call.headers, "x-amz-checksum-type").is_some_and(|claimed| claimed != kind) {
        return Err(bad_request(
            "BadDigest",
            "the upload was begun with another type of checksum",
        ));
    }
    if text(&call.headers, "x-amz-mp-object-size").is_some_and(|size| size.parse() != Ok(len)) {
        return Err(bad_request("InvalidRequest", "the object has another size"));
    }
    match claimed(&call.headers) {
        Some((algorithm, value)) if algorithm == checksum.algorithm && value != checksum.value => {
            Err(bad_request(
                "BadDigest",
                format!("{} is not that of the object", algorithm.name()),
            ))
        }
        _ => Ok(()),
    }
}
