//! Refusals as S3 words them.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use s3s::{S3Error, S3ErrorCode};

/// A refusal with a status and a code.
pub(super) fn refuse(
    status: StatusCode,
    code: &str,
    message: impl Into<Cow<'static, str>>,
) -> S3Error {
    let code = S3ErrorCode::from_bytes(code.as_bytes()).unwrap_or(S3ErrorCode::InternalError);
    let mut error = S3Error::with_message(code, message);
    error.set_status_code(status);
    error
}

/// The refusal with headers of its own.
pub(super) fn with_headers(mut error: S3Error, headers: &[(&'static str, &str)]) -> S3Error {
    // The service replaces all headers by these.
    let mut map = HeaderMap::from_iter([(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("application/xml"),
    )]);
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            map.insert(HeaderName::from_static(name), value);
        }
    }
    error.set_headers(map);
    error
}

pub(super) fn no_such_bucket() -> S3Error {
    refuse(
        StatusCode::NOT_FOUND,
        "NoSuchBucket",
        "the bucket does not exist",
    )
}

pub(super) fn no_such_key() -> S3Error {
    refuse(StatusCode::NOT_FOUND, "NoSuchKey", "the key does not exist")
}

pub(super) fn no_such_version() -> S3Error {
    refuse(
        StatusCode::NOT_FOUND,
        "NoSuchVersion",
        "the version does not exist",
    )
}

pub(super) fn no_such_upload() -> S3Error {
    refuse(
        StatusCode::NOT_FOUND,
        "NoSuchUpload",
        "the upload does not exist; it may be completed or aborted",
    )
}

pub(super) fn precondition_failed(condition: &str) -> S3Error {
    let message = format!("a precondition did not hold: {condition}");
    refuse(
        StatusCode::PRECONDITION_FAILED,
        "PreconditionFailed",
        message,
    )
}

pub(super) fn bad_request(code: &str, message: impl Into<Cow<'static, str>>) -> S3Error {
    refuse(StatusCode::BAD_REQUEST, code, message)
}

pub(super) fn forbidden(message: &'static str) -> S3Error {
    refuse(StatusCode::FORBIDDEN, "AccessDenied", message)
}

pub(super) fn not_implemented(message: &'static str) -> S3Error {
    refuse(StatusCode::NOT_IMPLEMENTED, "NotImplemented", message)
}
