//! Which kind of failure a refusal is, by its code, and by its status where that is all there is.

use replicator_core::failure::{FailureKind, Reason};
use replicator_core::operation::Operation;

use super::{ErrorBody, Side};

/// Says which kind of failure an answer is.
pub(super) fn kind(side: Side, during: Operation, said: &ErrorBody) -> FailureKind {
    if said.code.is_empty() {
        return by_status(side, said);
    }
    by_code(side, during, said).unwrap_or_else(|| by_class(side, during, said.status))
}

/// Says what the loss of an answer is.
pub(super) fn lost_answer_kind(side: Side) -> FailureKind {
    match side {
        Side::Write => FailureKind::OutcomeUnknown,
        Side::Source | Side::Destination | Side::Prepare => FailureKind::Transient,
    }
}

/// S3's error codes: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>
fn by_code(side: Side, during: Operation, said: &ErrorBody) -> Option<FailureKind> {
    let (code, message) = (said.code.as_str(), said.message.as_str());
    let kind = match code {
        "SlowDown"
        | "ServiceUnavailable"
        | "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "KMS.ThrottlingException"
        | "TooManyRequestsException" => FailureKind::Throttled,
        "PreconditionFailed" => FailureKind::PreconditionFailed,
        // What the write was to go over is not there any more.
        "NoSuchKey" | "NoSuchVersion" if said.status == 404 && is_append(side, during) => {
            FailureKind::PreconditionFailed
        }
        "NoSuchKey" | "NoSuchVersion" if said.status == 404 => absence_kind(side),
        "MethodNotAllowed" if said.is_marker => absence_kind(side),
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
        // Clocks and tokens mend without the task's doing.
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
        // SSE-C:
        // <https://docs.aws.amazon.com/AmazonS3/latest/userguide/ServerSideEncryptionCustomerKeys.html>
        "InvalidRequest" if side == Side::Source && message.contains("Server Side Encryption") => {
            FailureKind::Ineligible(Reason::SrcObjectNotEligible)
        }
        "InvalidRequest" if message.contains("Object Lock") => {
            FailureKind::NeedsOperator(Reason::DstBucketObjectLockConfigMissing)
        }
        "InvalidArgument" | "InvalidRequest" if said.minds_header() => FailureKind::NotImplemented,
        _ => FailureKind::NeedsOperator(reason(side, during, said)?),
    };
    Some(kind)
}

/// Codes that stay until an operator changes something, by the name that native replication has for
/// it.
fn reason(side: Side, during: Operation, said: &ErrorBody) -> Option<Reason> {
    let reason = match said.code.as_str() {
        "NoSuchBucket" => pick_by_side(side, Reason::SrcBucketNotFound, Reason::DstBucketNotFound),
        "PermanentRedirect"
        | "TemporaryRedirect"
        | "Redirect"
        | "IllegalLocationConstraintException" => region_reason(side),
        // It is also what a malformed date is called.
        "AuthorizationHeaderMalformed" if said.elsewhere.is_some() => region_reason(side),
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

/// Codes that are not listed here: the status says what class they are of.
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

/// Answers without a code: those to a HEAD have no text, and all others are not S3's. Nothing of
/// them is definite but headers that S3 alone sends.
fn by_status(side: Side, said: &ErrorBody) -> FailureKind {
    match said.status {
        _ if said.is_redirect() => FailureKind::NeedsOperator(region_reason(side)),
        404 | 405 if said.is_marker => absence_kind(side),
        429 => FailureKind::Throttled,
        // A HEAD is slowed down without a word; of a write that something in between answers
        // nothing is known.
        503 if side != Side::Write => FailureKind::Throttled,
        _ => lost_answer_kind(side),
    }
}

/// Says what it is that a version, or a key, is not there.
fn absence_kind(side: Side) -> FailureKind {
    match side {
        Side::Source => FailureKind::SourceVersionMissing,
        Side::Destination | Side::Write | Side::Prepare => FailureKind::NotFound,
    }
}

/// Says whether a request puts something on top of a key, and names nothing but what it goes over.
fn is_append(side: Side, during: Operation) -> bool {
    side == Side::Write
        && matches!(
            during,
            Operation::PutObject | Operation::CompleteMultipartUpload | Operation::DeleteObject
        )
}

/// Says whether a request names a version, as an event or a stamp may have told it.
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
