//! PutObject and CopyObject.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use s3s::dto::{
    CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopySource, ETag, PutObjectInput,
    PutObjectOutput, Timestamp,
};
use s3s::{S3Response, S3Result};

use super::Call;
use super::checksums::{Algorithm, Checksum, md5_hex, put_checksum, verified};
use super::conditions::{Read, Write, check, text};
use super::dress::{Dress, describe_checksum, describe_encryption, name_version};
use super::entry::{Encryption, Entry, Lock, Object};
use super::reads::{check_customer_key, find};
use super::refusal::{bad_request, refuse};
use super::state::{Deed, Place, State, set};
use super::times::whole_seconds;

/// Answers PutObject.
pub(super) fn put(
    state: &mut State,
    call: &Call,
    input: &PutObjectInput,
) -> S3Result<S3Response<PutObjectOutput>> {
    let place = Place::new(&input.bucket, &input.key);
    let dress = Dress::of(&call.headers, state.bucket(&place.bucket)?)?;
    let sent = verified(&call.headers, &call.body)?;
    if dress.lock != Lock::default() && sent.is_none() && !call.headers.contains_key("content-md5")
    {
        let message = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters";
        return Err(bad_request("InvalidRequest", message));
    }
    let mut dress = Dress {
        encryption: state.encrypted(dress.encryption)?,
        ..dress
    };
    if !state.traits.keeps_tags_put {
        dress.tags.clear();
    }
    check(state, Write::Put, &place, call)?;
    let etag = etag(state, &dress.encryption, &call.body);
    let checksum = sent.or_else(|| {
        state
            .traits
            .adds_checksums
            .then(|| own_checksum(&call.body))
    });
    let draft = state.draft(Some(dress.around(call.body.clone(), etag, checksum)));
    let entry = state.land(
        &place,
        draft,
        &Deed {
            call,
            cause: "PutObject",
        },
    )?;
    let mut headers = written(state, &place, &entry)?;
    if let Some(object) = &entry.object {
        set(&mut headers, "etag", &format!("\"{}\"", object.etag));
        describe_checksum(&mut headers, object.checksum.as_ref());
    }
    Ok(S3Response::with_headers(
        PutObjectOutput::default(),
        headers,
    ))
}

/// Answers CopyObject.
pub(super) fn copy(
    state: &mut State,
    call: &Call,
    input: &CopyObjectInput,
) -> S3Result<S3Response<CopyObjectOutput>> {
    let place = Place::new(&input.bucket, &input.key);
    let times = (
        input.copy_source_if_modified_since.clone(),
        input.copy_source_if_unmodified_since.clone(),
    );
    let (source, object) = source(state, call, &input.copy_source, times)?;
    changes_something(call, &place, input)?;
    let dress = dress_of_copy(state, call, &place, &object)?;
    let dress = Dress {
        encryption: state.encrypted(dress.encryption)?,
        ..dress
    };
    check(state, Write::Copy, &place, call)?;
    let etag = etag(state, &dress.encryption, &object.bytes);
    let algorithm = text(&call.headers, "x-amz-checksum-algorithm").and_then(Algorithm::named);
    let algorithm = algorithm.or(object.checksum.as_ref().map(|kept| kept.algorithm));
    let checksum = full_checksum(algorithm.unwrap_or(Algorithm::Crc64Nvme), &object.bytes);
    let draft = state.draft(Some(dress.around(
        object.bytes.clone(),
        etag.clone(),
        Some(checksum.clone()),
    )));
    let entry = state.land(
        &place,
        draft,
        &Deed {
            call,
            cause: "CopyObject",
        },
    )?;
    let mut headers = written(state, &place, &entry)?;
    set(
        &mut headers,
        "x-amz-copy-source-version-id",
        &source.version_id,
    );
    let mut result = CopyObjectResult {
        e_tag: Some(ETag::Strong(etag)),
        last_modified: Some(Timestamp::from(whole_seconds(entry.last_modified))),
        ..Default::default()
    };
    put_checksum!(result, Some(&checksum));
    let output = CopyObjectOutput {
        copy_object_result: Some(result),
        ..Default::default()
    };
    Ok(S3Response::with_headers(output, headers))
}

/// Finds what is to be copied, under the conditions on it; the times are those since when it must
/// and must not have been modified.
pub(super) fn source(
    state: &State,
    call: &Call,
    from: &CopySource,
    times: (Option<Timestamp>, Option<Timestamp>),
) -> S3Result<(Arc<Entry>, Object)> {
    let CopySource::Bucket {
        bucket,
        key,
        version_id,
    } = from
    else {
        return Err(bad_request(
            "InvalidArgument",
            "the fake has no access points",
        ));
    };
    let (entry, object) = find(
        state.bucket(bucket)?,
        key,
        version_id.as_deref(),
        &state.traits,
    )?;
    let conditions = Read {
        if_match: text(&call.headers, "x-amz-copy-source-if-match"),
        if_none_match: text(&call.headers, "x-amz-copy-source-if-none-match"),
        modified_since: times.0,
        unmodified_since: times.1,
    };
    conditions.check_source(&entry, &object)?;
    check_source_key(call, &object.encryption)?;
    state.usable(&object.encryption)?;
    if matches!(object.storage_class.as_str(), "GLACIER" | "DEEP_ARCHIVE") {
        let message = "the source is in an archive";
        return Err(refuse(
            http::StatusCode::FORBIDDEN,
            "InvalidObjectState",
            message,
        ));
    }
    Ok((entry, object))
}

/// The headers for the source's own key have other names than those of a read.
fn check_source_key(call: &Call, encryption: &Encryption) -> S3Result<()> {
    let mut reader = Call {
        headers: HeaderMap::new(),
        ..call.clone()
    };
    if let Some(md5) = call
        .headers
        .get("x-amz-copy-source-server-side-encryption-customer-key-md5")
    {
        reader
            .headers
            .insert("x-amz-server-side-encryption-customer-key-md5", md5.clone());
    }
    check_customer_key(&reader, encryption)
}

/// An object is copied onto itself only to change something about it.
fn changes_something(call: &Call, place: &Place, input: &CopyObjectInput) -> S3Result<()> {
    let CopySource::Bucket {
        bucket,
        key,
        version_id: None,
    } = &input.copy_source
    else {
        return Ok(());
    };
    let itself = **bucket == *place.bucket && **key == *place.key;
    let changing = [
        "x-amz-storage-class",
        "x-amz-server-side-encryption",
        "x-amz-website-redirect-location",
    ];
    let changes = replaces(call, "x-amz-metadata-directive")
        || changing.iter().any(|name| call.headers.contains_key(*name));
    if itself && !changes {
        return Err(bad_request(
            "InvalidRequest",
            "the copy would change nothing",
        ));
    }
    Ok(())
}

/// Metadata and tags come from the source unless they are to be replaced; the rest never does.
fn dress_of_copy(state: &State, call: &Call, place: &Place, object: &Object) -> S3Result<Dress> {
    let mut dress = Dress::of(&call.headers, state.bucket(&place.bucket)?)?;
    if !replaces(call, "x-amz-metadata-directive") {
        let redirect = "x-amz-website-redirect-location";
        let own = dress.headers.remove(redirect);
        dress.headers = object.headers.clone();
        dress.headers.remove(redirect);
        dress
            .headers
            .extend(own.map(|value| (redirect.to_owned(), value)));
    }
    if !replaces(call, "x-amz-tagging-directive") {
        dress.tags = object.tags.clone();
    }
    Ok(dress)
}

fn replaces(call: &Call, directive: &str) -> bool {
    text(&call.headers, directive).is_some_and(|value| value.eq_ignore_ascii_case("REPLACE"))
}

/// Says to a writer which version it wrote and how it is encrypted.
pub(super) fn written(state: &State, place: &Place, entry: &Entry) -> S3Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    name_version(&mut headers, entry, state.bucket(&place.bucket)?.versioning);
    if let Some(object) = &entry.object {
        describe_encryption(&mut headers, &object.encryption);
    }
    Ok(headers)
}

/// The MD5, except where a key other than S3's own encrypts: there every write has its own.
pub(super) fn etag(state: &mut State, encryption: &Encryption, bytes: &[u8]) -> String {
    match encryption {
        Encryption::Aes256 => md5_hex(bytes),
        Encryption::Kms { .. } | Encryption::Customer { .. } => state.mint.etag(),
    }
}

/// The checksum that S3 adds by itself.
fn own_checksum(bytes: &Bytes) -> Checksum {
    full_checksum(Algorithm::Crc64Nvme, bytes)
}

/// The checksum of all bytes.
pub(super) fn full_checksum(algorithm: Algorithm, bytes: &[u8]) -> Checksum {
    Checksum {
        algorithm,
        value: algorithm.of(bytes),
        full: true,
    }
}
