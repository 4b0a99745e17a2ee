//! The error body of a service, and which kind of failure it is: by its code, and by its status
//! where there is no code.

use std::collections::BTreeMap;
use std::fmt;

use replicator_core::failure::{FailureKind, Operation, Reason};
use serde_json::Value;

use crate::s3::accounts::error::{RefusalKind, Side};
use crate::s3::xml::{self, NotXml};

/// An answer that refuses a request.
#[derive(Debug, Default)]
pub(crate) struct ErrorBody {
    pub(crate) status: u16,
    /// The service's own error code. It is empty where the answer has none: that to a HEAD, and
    /// that of a proxy.
    pub(crate) code: String,
    pub(crate) message: String,
    /// The request header that it is about, in lower case.
    pub(super) header: Option<String>,
    /// Whether the headers say that a delete marker is there, as S3 alone does.
    is_marker: bool,
    /// The place of a bucket that is elsewhere, in words.
    elsewhere: Option<String>,
    /// The type of the answer's body.
    media: Option<String>,
    /// Names of the request's headers beyond the plain ones, for a service that does not say which
    /// one it refuses.
    request_headers: String,
}

impl ErrorBody {
    /// Reads a refusal: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>
    pub(crate) fn parse_refusal<'h>(
        status: u16,
        header: impl Fn(&str) -> Option<&'h str>,
        text: &str,
    ) -> Self {
        let mut words = BTreeMap::<&str, String>::new();
        let read = xml::visit_elements(text, |path, text| {
            let name = match path {
                [.., "Error", name] => ELEMENTS.iter().find(|element| *element == name),
                _ => None,
            };
            if let Some(name) = name.filter(|_| !text.trim().is_empty()) {
                words.entry(name).or_insert_with(|| shorten_text(&text));
            }
            Ok::<_, NotXml>(())
        });
        // A service sends whole documents.
        if read.is_err() {
            words.clear();
        }
        let mut word = |name| words.remove(name).unwrap_or_default();
        let (code, message) = (word("Code"), word("Message"));
        let named = ["Header", "ArgumentName"].map(&mut word);
        let (region, endpoint) = (word("Region"), word("Endpoint"));
        let is_redirect = matches!(status, 301 | 307);
        let region = header("x-amz-bucket-region")
            .filter(|_| is_redirect)
            .unwrap_or(&region);
        let elsewhere = if is_name(region) {
            Some(format!("in Region {region}"))
        } else {
            is_name(&endpoint).then(|| format!("at {endpoint}"))
        };
        Self {
            status,
            header: named
                .iter()
                .find_map(|name| header_name(name))
                .or_else(|| named_header(&message)),
            is_marker: header("x-amz-delete-marker") == Some("true"),
            elsewhere,
            media: header("content-type")
                .map(|media| media.chars().take(MEDIA_CHARS_MAX).collect()),
            code,
            message,
            request_headers: String::new(),
        }
    }

    /// Reads a refusal in JSON:
    /// <https://smithy.io/2.0/aws/protocols/aws-json-1_1-protocol.html#operation-error-serialization>
    pub(crate) fn parse_json_refusal(status: u16, text: &str) -> Self {
        let body: Value = serde_json::from_str(text).unwrap_or_default();
        let mut found = ["__type", "message", "Message"].into_iter().map(|name| {
            let text = body.get(name).and_then(Value::as_str);
            shorten_text(text.unwrap_or_default())
        });
        let code = found.next().unwrap_or_default();
        let (_, code) = code.rsplit_once('#').unwrap_or(("", &code));
        Self {
            status,
            code: code.to_owned(),
            message: found.find(|text| !text.is_empty()).unwrap_or_default(),
            ..Self::default()
        }
    }

    /// Adds the names of the request's headers beyond the plain ones.
    pub(crate) fn with_request(self, request_headers: String) -> Self {
        Self {
            request_headers,
            ..self
        }
    }

    /// Says whether the service itself sent it: it has a code, or headers that S3 alone sends.
    pub(super) fn is_own(&self) -> bool {
        !self.code.is_empty() || self.is_marker || self.is_redirect()
    }

    /// Says whether a redirect names where the bucket is.
    fn is_redirect(&self) -> bool {
        matches!(self.status, 301 | 307) && self.elsewhere.is_some()
    }

    /// Says whether the refusal is about a header, or about the feature that it needs.
    fn refuses_header(&self) -> bool {
        let message = self.message.to_ascii_lowercase();
        self.header.is_some() && UNSUPPORTED.iter().any(|words| message.contains(words))
    }
}

// "Unsupported header 'x-amz-…' received for this API call" (Backblaze B2), "Header 'x-amz-…' with
// value … not implemented" (Cloudflare R2), "The algorithm type you specified in x-amz-checksum-
// header is invalid" (S3, of an algorithm that it does not support).
const UNSUPPORTED: [&str; 4] = [
    "unsupported",
    "not supported",
    "not implemented",
    "algorithm type",
];

// A longer media type says no more about the server that answered.
const MEDIA_CHARS_MAX: usize = 64;

/// The elements of an error document that are read; the first of each counts.
const ELEMENTS: [&str; 6] = [
    "Code",
    "Message",
    "Header",
    "ArgumentName",
    "Region",
    "Endpoint",
];

/// Shortens a text to the length of a service's messages; it is stored, and logged, with each task
/// that it is about.
fn shorten_text(text: &str) -> String {
    text.trim().chars().take(TEXT_CHARS_MAX).collect()
}

const TEXT_CHARS_MAX: usize = 512;

/// Finds the header that a message names.
fn named_header(message: &str) -> Option<String> {
    message
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        .find_map(header_name)
}

/// Returns the name of a header that a request of ours may carry; a message may end in the middle
/// of one.
fn header_name(text: &str) -> Option<String> {
    let name = text.trim().to_ascii_lowercase();
    let is_header =
        name.starts_with("x-amz-") || matches!(name.as_str(), "if-match" | "if-none-match");
    is_header.then_some(name)
}

/// Says whether a text can be the name of a Region or a host.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-.:".contains(&b))
}

impl fmt::Display for ErrorBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "answered {}", self.status)?;
        match (self.code.as_str(), self.media.as_deref()) {
            ("", _) if self.is_own() => {}
            ("", media) => {
                let media = media.unwrap_or("unknown");
                let lack = if (200..300).contains(&self.status) {
                    "cannot be read"
                } else {
                    "has no S3 error code"
                };
                write!(f, " with a body of type {media:?} that {lack}")?;
            }
            (code, _) => write!(f, " {code}")?,
        }
        match (self.message.as_str(), self.request_headers.as_str()) {
            ("", "") => {}
            ("", headers) => write!(f, ", without a message; the request has {headers}")?,
            (message, _) => write!(f, ": {message}")?,
        }
        self.elsewhere.as_ref().map_or(Ok(()), |elsewhere| {
            write!(f, " (the bucket is {elsewhere})")
        })
    }
}

/// Returns the kind of failure that an answer is.
pub(super) fn kind(side: Side, during: Operation, body: &ErrorBody) -> FailureKind {
    if body.code.is_empty() {
        return by_status(side, body);
    }
    by_code(side, during, body).unwrap_or_else(|| by_class(side, during, body.status))
}

/// Returns the kind of failure that the loss of an answer is.
pub(super) fn lost_answer_kind(side: Side) -> FailureKind {
    match side {
        Side::Write => FailureKind::OutcomeUnknown,
        Side::Source | Side::Destination | Side::Prepare => FailureKind::Transient,
    }
}

/// S3's error codes: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>
fn by_code(side: Side, during: Operation, body: &ErrorBody) -> Option<FailureKind> {
    let (code, message) = (body.code.as_str(), body.message.as_str());
    let kind = match code {
        "SlowDown"
        | "ServiceUnavailable"
        | "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "KMS.ThrottlingException"
        | "TooManyRequestsException" => FailureKind::Throttled,
        "PreconditionFailed" => FailureKind::PreconditionFailed,
        // The entry that the write was to replace is not there any more.
        "NoSuchKey" | "NoSuchVersion" if body.status == 404 && is_append(side, during) => {
            FailureKind::PreconditionFailed
        }
        "NoSuchKey" | "NoSuchVersion" if body.status == 404 => absence_kind(side),
        "MethodNotAllowed" if body.is_marker => absence_kind(side),
        // S3 never gave such an id to a version, so there is none of it; any client that may write
        // to the queue can name it.
        "InvalidArgument" if is_of_version(during) && message.contains("version id") => {
            absence_kind(side)
        }
        "NoSuchUpload" => FailureKind::NotFound,
        "ConditionalRequestConflict" | "OperationAborted" => FailureKind::ConcurrentWrite,
        // The upload's parts are not what the ledger holds of them: it is begun anew.
        "InvalidPart" | "InvalidPartOrder" | "EntityTooSmall" => FailureKind::ConcurrentWrite,
        "NotImplemented" => FailureKind::NotImplemented,
        "RequestTimeout"
        | "InternalError"
        | "KMS.InternalException"
        | "KMS.DependencyTimeoutException" => lost_answer_kind(side),
        // Clocks and tokens recover without the task's doing.
        "ExpiredToken" | "RequestTimeTooSkewed" | "InvalidToken" | "ExpiredTokenException" => {
            FailureKind::Unauthenticated
        }
        "BadDigest"
        | "InvalidDigest"
        | "XAmzContentChecksumMismatch"
        | "XAmzContentSHA256Mismatch" => FailureKind::Transient,
        // The object is not as long as it was listed, or begins anew.
        "InvalidRange" => lost_answer_kind(side),
        "InvalidObjectState" if side == Side::Source => {
            FailureKind::Ineligible(Reason::SrcObjectNotEligible)
        }
        "InvalidRequest" if side == Side::Source && is_of_own_key(body) => {
            FailureKind::Ineligible(Reason::SrcObjectNotEligible)
        }
        "InvalidRequest" if message.contains("Object Lock") => {
            FailureKind::NeedsOperator(Reason::DstBucketObjectLockConfigMissing)
        }
        "InvalidArgument" | "InvalidRequest" if body.refuses_header() => {
            FailureKind::NotImplemented
        }
        _ => FailureKind::NeedsOperator(reason(side, during, body)?),
    };
    Some(kind)
}

/// Returns what an answer means for a set-up: definite are the codes of S3, SQS, SNS, EventBridge, STS and
/// KMS.
pub(super) fn question_kind(body: &ErrorBody) -> RefusalKind {
    let code = body.code.rsplit(['.', '#']).next().unwrap_or_default();
    match code {
        "" if body.is_redirect() => RefusalKind::Elsewhere,
        "" => RefusalKind::Silent,
        "AccessDenied"
        | "AccessDeniedException"
        | "AllAccessDisabled"
        | "AuthorizationError"
        | "AuthorizationErrorException"
        | "UnauthorizedOperation" => RefusalKind::Denied,
        "NoSuchKey"
        | "NoSuchVersion"
        | "NoSuchTagSet"
        | "NoSuchObjectLockConfiguration"
        | "InvalidRange"
        | "InvalidObjectState" => RefusalKind::Inapplicable,
        "InvalidRequest" if is_of_own_key(body) => RefusalKind::Inapplicable,
        // What S3 says of a key of KMS is no absence of what S3 was asked for.
        "NotFoundException" if body.code.starts_with("KMS.") => RefusalKind::Refused,
        "NoSuchBucket" | "NotFound" | "NotFoundException" | "NonExistentQueue"
        | "QueueDoesNotExist" => RefusalKind::Absent,
        "PermanentRedirect"
        | "TemporaryRedirect"
        | "Redirect"
        | "IllegalLocationConstraintException" => RefusalKind::Elsewhere,
        "AuthorizationHeaderMalformed" if body.elsewhere.is_some() => RefusalKind::Elsewhere,
        "NotImplemented"
        | "MethodNotAllowed"
        | "InvalidAction"
        | "UnknownOperationException"
        | "UnsupportedOperation" => RefusalKind::Unimplemented,
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "InvalidToken"
        | "RequestTimeTooSkewed" => RefusalKind::Unauthenticated,
        _ if body.status == 501 => RefusalKind::Unimplemented,
        _ if body.status >= 500 || body.status == 429 => RefusalKind::Silent,
        "RequestThrottled" => RefusalKind::Silent,
        _ if passes_by_itself(body) => RefusalKind::Silent,
        _ => RefusalKind::Refused,
    }
}

/// Says whether a code is one of those that a task is tried again for as it is.
fn passes_by_itself(body: &ErrorBody) -> bool {
    let kind = by_code(Side::Source, Operation::GetObject, body);
    matches!(
        kind,
        Some(FailureKind::Throttled | FailureKind::Transient | FailureKind::ConcurrentWrite)
    )
}

/// Says whether an object is encrypted under a key of its client (SSE-C):
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/ServerSideEncryptionCustomerKeys.html>
fn is_of_own_key(body: &ErrorBody) -> bool {
    body.code == "InvalidRequest" && body.message.contains("Server Side Encryption")
}

/// Codes that stay until an operator changes something, by the name that native replication has for
/// it.
fn reason(side: Side, during: Operation, body: &ErrorBody) -> Option<Reason> {
    let reason = match body.code.as_str() {
        "NoSuchBucket" => pick_by_side(side, Reason::SrcBucketNotFound, Reason::DstBucketNotFound),
        "PermanentRedirect"
        | "TemporaryRedirect"
        | "Redirect"
        | "IllegalLocationConstraintException" => region_reason(side),
        // It is also what a malformed date is called.
        "AuthorizationHeaderMalformed" if body.elsewhere.is_some() => region_reason(side),
        // A key that the service does not recognise, or whose secret is another, permits nothing
        // until an operator changes it.
        "AccessDenied" | "AllAccessDisabled" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" => {
            denied_reason(side, during)
        }
        "KMS.NotFoundException" => pick_by_side(
            side,
            Reason::SrcKmsKeyInvalidState,
            Reason::DstKmsKeyNotFound,
        ),
        other if other.starts_with("KMS.") => pick_by_side(
            side,
            Reason::SrcKmsKeyInvalidState,
            Reason::DstKmsKeyInvalidState,
        ),
        _ => return None,
    };
    Some(reason)
}

/// Classifies codes that are not listed here, by their status.
fn by_class(side: Side, during: Operation, status: u16) -> FailureKind {
    match status {
        401 | 403 => FailureKind::NeedsOperator(denied_reason(side, during)),
        409 => FailureKind::ConcurrentWrite,
        412 => FailureKind::PreconditionFailed,
        429 | 503 => FailureKind::Throttled,
        501 => FailureKind::NotImplemented,
        400..=499 if status != 404 => FailureKind::NeedsOperator(Reason::RequestRefused),
        // An error inside of a 200, too.
        _ => lost_answer_kind(side),
    }
}

/// Classifies answers without a code: those to a HEAD have no text, and all others are not S3's.
/// Nothing in them is definite but headers that S3 alone sends.
fn by_status(side: Side, body: &ErrorBody) -> FailureKind {
    match body.status {
        _ if body.is_redirect() => FailureKind::NeedsOperator(region_reason(side)),
        404 | 405 if body.is_marker => absence_kind(side),
        429 => FailureKind::Throttled,
        // A HEAD is throttled without a code; the outcome of a write that a proxy answers is not
        // known.
        503 if side != Side::Write => FailureKind::Throttled,
        _ => lost_answer_kind(side),
    }
}

/// Returns the kind of failure that a missing version, or key, is.
fn absence_kind(side: Side) -> FailureKind {
    match side {
        Side::Source => FailureKind::SourceVersionMissing,
        Side::Destination | Side::Write | Side::Prepare => FailureKind::NotFound,
    }
}

/// Says whether a request writes a new version on top of a key, and names at most the entry that it
/// replaces.
fn is_append(side: Side, during: Operation) -> bool {
    side == Side::Write
        && matches!(
            during,
            Operation::PutObject | Operation::CompleteMultipartUpload | Operation::DeleteObject
        )
}

/// Says whether a request names a version, which may come from an event or a stamp.
fn is_of_version(during: Operation) -> bool {
    matches!(
        during,
        Operation::GetObject
            | Operation::HeadObject
            | Operation::GetObjectTagging
            | Operation::PutObjectTagging
            | Operation::DeleteObject
    )
}

fn region_reason(side: Side) -> Reason {
    pick_by_side(
        side,
        Reason::SrcBucketInvalidRegion,
        Reason::DstBucketInvalidRegion,
    )
}

fn denied_reason(side: Side, during: Operation) -> Reason {
    match (side, during) {
        (Side::Source, Operation::GetObjectTagging) => Reason::SrcGetTaggingNotPermitted,
        (Side::Source, Operation::ListObjectVersions) => Reason::SrcListVersionsNotPermitted,
        (Side::Source, _) => Reason::SrcGetObjectNotPermitted,
        (_, Operation::ListObjectVersions) => Reason::DstListVersionsNotPermitted,
        (_, Operation::GetBucketVersioning) => Reason::DstGetVersioningNotPermitted,
        (Side::Destination, _) => Reason::DstHeadObjectNotPermitted,
        (_, Operation::DeleteObject) => Reason::DstDelObjNotPermitted,
        (_, Operation::PutObjectTagging) => Reason::DstPutTaggingNotPermitted,
        (_, Operation::CreateMultipartUpload) => Reason::DstMultipartInitNotPermitted,
        (_, Operation::UploadPart) => Reason::DstMultipartUploadNotPermitted,
        (_, Operation::CompleteMultipartUpload) => Reason::DstMultipartCompleteNotPermitted,
        (_, Operation::AbortMultipartUpload) => Reason::DstMultipartAbortNotPermitted,
        (Side::Write | Side::Prepare, _) => Reason::DstPutObjectNotPermitted,
    }
}

fn pick_by_side(side: Side, source: Reason, destination: Reason) -> Reason {
    match side {
        Side::Source => source,
        Side::Destination | Side::Write | Side::Prepare => destination,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::accounts::error::Refusal;

    #[test]
    fn a_question_is_answered_by_a_service_alone_and_not_by_what_passes() {
        use RefusalKind::{Absent, Denied, Inapplicable, Refused, Silent, Unimplemented};
        let own_key = "The object was stored using a form of Server Side Encryption.";
        let cases = [
            (403, "AccessDenied", "", Denied),
            (403, "", "", Silent),
            (404, "NoSuchBucket", "", Absent),
            (404, "NoSuchKey", "", Inapplicable),
            (404, "NoSuchObjectLockConfiguration", "", Inapplicable),
            (416, "InvalidRange", "", Inapplicable),
            (403, "InvalidObjectState", "", Inapplicable),
            (400, "InvalidRequest", own_key, Inapplicable),
            (400, "InvalidRequest", "", Refused),
            (400, "NotFoundException", "", Absent),
            (400, "KMS.NotFoundException", "", Refused),
            (400, "KMS.DisabledException", "", Refused),
            (400, "KMS.ThrottlingException", "", Silent),
            (400, "RequestTimeout", "", Silent),
            (409, "OperationAborted", "", Silent),
            (200, "InternalError", "", Silent),
            (503, "SlowDown", "", Silent),
            (501, "NotImplemented", "", Unimplemented),
        ];
        for (status, code, message, expected) in cases {
            let refusal = {
                let text =
                    format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
                let body = ErrorBody::parse_refusal(status, |_| None, &text);
                Refusal::from_body(body, None)
            };
            assert_eq!(refusal.kind, expected, "{status} {code}");
        }
    }
}
