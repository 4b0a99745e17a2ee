//! GetObject and HeadObject.

use std::ops::Range;
use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use s3s::dto::{
    GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput, StreamingBlob, Timestamp,
};
use s3s::{Body, S3Response, S3Result};

use super::Call;
use super::conditions::{Read, text};
use super::dress::{describe_checksum, described};
use super::entry::{Encryption, Entry, Object};
use super::minting::is_version_id;
use super::refusal::{bad_request, no_such_key, no_such_version, refuse, with_headers};
use super::state::{Bucket, State, set};
use super::times::http_date;
use super::traits::Traits;

/// Answers GetObject.
pub(super) fn get(
    state: &mut State,
    call: &Call,
    input: &GetObjectInput,
) -> S3Result<S3Response<GetObjectOutput>> {
    let reading = Reading {
        call,
        modified_since: input.if_modified_since.clone(),
        unmodified_since: input.if_unmodified_since.clone(),
        range: input.range,
        part: input.part_number,
    };
    let bucket = state.bucket(&input.bucket)?;
    let (entry, object) = find(
        bucket,
        &input.key,
        input.version_id.as_deref(),
        &state.traits,
    )?;
    state.usable(&object.encryption)?;
    if matches!(object.storage_class.as_str(), "GLACIER" | "DEEP_ARCHIVE") {
        let message = "the operation is not valid for the object's storage class";
        return Err(refuse(StatusCode::FORBIDDEN, "InvalidObjectState", message));
    }
    let (headers, span) = reading.answer(bucket, &entry, &object)?;
    let bytes = object
        .bytes
        .get(span.start..span.end)
        .map(|part| object.bytes.slice_ref(part))
        .unwrap_or_default();
    let output = GetObjectOutput {
        body: Some(StreamingBlob::from(Body::from(bytes))),
        content_range: content_range(&headers),
        ..Default::default()
    };
    Ok(S3Response::with_headers(output, headers))
}

/// Answers HeadObject.
pub(super) fn head(
    state: &mut State,
    call: &Call,
    input: &HeadObjectInput,
) -> S3Result<S3Response<HeadObjectOutput>> {
    let reading = Reading {
        call,
        modified_since: input.if_modified_since.clone(),
        unmodified_since: input.if_unmodified_since.clone(),
        range: input.range,
        part: input.part_number,
    };
    let bucket = state.bucket(&input.bucket)?;
    let (entry, object) = find(
        bucket,
        &input.key,
        input.version_id.as_deref(),
        &state.traits,
    )?;
    if reading.wants_checksum() {
        state.usable(&object.encryption)?;
    }
    let (headers, _) = reading.answer(bucket, &entry, &object)?;
    Ok(S3Response::with_headers(
        HeadObjectOutput::default(),
        headers,
    ))
}

/// Finds the object that is meant, or says with the words of S3 why there is none.
pub(super) fn find(
    bucket: &Bucket,
    key: &str,
    version_id: Option<&str>,
    traits: &Traits,
) -> S3Result<(Arc<Entry>, Object)> {
    let entry = match version_id {
        Some(id) if !is_version_id(id) => {
            return Err(bad_request(
                "InvalidArgument",
                "Invalid version id specified",
            ));
        }
        Some(id) => bucket.version(key, id).ok_or_else(no_such_version)?,
        None => bucket.current(key).ok_or_else(no_such_key)?,
    };
    match &entry.object {
        Some(object) => Ok((Arc::clone(entry), object.clone())),
        None if version_id.is_some() && traits.marker_version == 404 => Err(no_such_key()),
        None if version_id.is_some() => {
            let error = refuse(
                StatusCode::METHOD_NOT_ALLOWED,
                "MethodNotAllowed",
                "a delete marker cannot be read",
            );
            let time = http_date(entry.last_modified);
            let headers = [
                ("x-amz-delete-marker", "true"),
                ("x-amz-version-id", entry.version_id.as_str()),
                ("last-modified", time.as_str()),
                ("allow", "DELETE"),
            ];
            Err(with_headers(error, &headers))
        }
        None if !traits.names_markers => Err(no_such_key()),
        None => {
            let headers = [
                ("x-amz-delete-marker", "true"),
                ("x-amz-version-id", entry.version_id.as_str()),
            ];
            Err(with_headers(no_such_key(), &headers))
        }
    }
}

/// What a GET or HEAD asks for.
struct Reading<'a> {
    call: &'a Call,
    modified_since: Option<Timestamp>,
    unmodified_since: Option<Timestamp>,
    range: Option<s3s::dto::Range>,
    part: Option<i32>,
}

impl Reading<'_> {
    /// Returns the headers of the answer and which bytes it has.
    fn answer(
        &self,
        bucket: &Bucket,
        entry: &Entry,
        object: &Object,
    ) -> S3Result<(HeaderMap, Range<usize>)> {
        let conditions = Read {
            if_match: text(&self.call.headers, "if-match"),
            if_none_match: text(&self.call.headers, "if-none-match"),
            modified_since: self.modified_since.clone(),
            unmodified_since: self.unmodified_since.clone(),
        };
        conditions.check(entry, object)?;
        check_customer_key(self.call, &object.encryption)?;
        let mut headers = described(entry, object, bucket.versioning);
        let span = self.span(object)?;
        if let Some(span) = &span {
            let last = span.end.saturating_sub(1);
            set(
                &mut headers,
                "content-range",
                &format!("bytes {}-{last}/{}", span.start, object.bytes.len()),
            );
        } else if self.wants_checksum() {
            describe_checksum(&mut headers, object.checksum.as_ref());
        }
        if self.part.is_some() && !object.parts.is_empty() {
            set(
                &mut headers,
                "x-amz-mp-parts-count",
                &object.parts.len().to_string(),
            );
        }
        let span = span.unwrap_or(0..object.bytes.len());
        set(&mut headers, "content-length", &span.len().to_string());
        Ok((headers, span))
    }

    fn wants_checksum(&self) -> bool {
        text(&self.call.headers, "x-amz-checksum-mode")
            .is_some_and(|mode| mode.eq_ignore_ascii_case("ENABLED"))
    }

    /// The bytes of the range or part; `None` is all of them.
    fn span(&self, object: &Object) -> S3Result<Option<Range<usize>>> {
        let outside = || {
            refuse(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "InvalidRange",
                "the range cannot be satisfied",
            )
        };
        let total = object.bytes.len();
        if let Some(range) = &self.range {
            let span = range.check(total as u64).map_err(|_| outside())?;
            let end = |at: u64| usize::try_from(at).unwrap_or(total);
            return Ok(Some(end(span.start)..end(span.end)));
        }
        let Some(part) = self.part else {
            return Ok(None);
        };
        let wanted = usize::try_from(part).unwrap_or(0);
        if object.parts.is_empty() && wanted == 1 {
            return Ok(Some(0..total));
        }
        let sizes = object
            .parts
            .get(..wanted)
            .filter(|_| wanted > 0)
            .ok_or_else(outside)?;
        let end: usize = sizes.iter().sum();
        Ok(Some(end - sizes.last().copied().unwrap_or(0)..end))
    }
}

/// What a customer's own key encrypted is read with that key only.
pub(super) fn check_customer_key(call: &Call, encryption: &Encryption) -> S3Result<()> {
    let Encryption::Customer { key_md5 } = encryption else {
        return Ok(());
    };
    match text(
        &call.headers,
        "x-amz-server-side-encryption-customer-key-md5",
    ) {
        Some(sent) if sent == key_md5 => Ok(()),
        Some(_) => Err(super::refusal::forbidden(
            "the key is not that of the object",
        )),
        None => Err(bad_request(
            "InvalidRequest",
            "The object was stored using a form of Server Side Encryption.",
        )),
    }
}

fn content_range(headers: &HeaderMap) -> Option<String> {
    text(headers, "content-range").map(str::to_owned)
}
