//! Which kind of failure a refusal is, by its code, and by its status where that is all there is.

use replicator_core::failure::{Kind, Reason};
use replicator_core::operation::Operation;

use super::{Said, Side};

/// Says which kind of failure an answer is.
pub(super) fn kind(side: Side, during: Operation, said: &Said) -> Kind {
    if said.code.is_empty() {
        return by_status(side, said);
    }
    by_code(side, during, said).unwrap_or_else(|| by_class(side, during, said.status))
}

/// Says what the loss of an answer is.
pub(super) fn unanswered(side: Side) -> Kind {
    match side {
        Side::Write => Kind::Unanswered,
        Side::Source | Side::Destination | Side::Prepare => Kind::Transient,
    }
}

/// S3's error codes: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>
fn by_code(side: Side, during: Operation, said: &Said) -> Option<Kind> {
    let (code, message) = (said.code.as_str(), said.message.as_str());
    let kind = match code {
        "SlowDown"
        | "ServiceUnavailable"
        | "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "KMS.ThrottlingException"
        | "TooManyRequestsException" => Kind::Throttled,
        "PreconditionFailed" => Kind::Conflict,
        // What the write was to go over is not there any more.
        "NoSuchKey" | "NoSuchVersion" if said.status == 404 && is_append(side, during) => Kind::Conflict,
        "NoSuchKey" | "NoSuchVersion" if said.status == 404 => absent(side),
        "MethodNotAllowed" if said.is_marker => absent(side),
        // S3 never gave such an id to a version, so there is none of it; any client that may write
        // to the queue can name it.
        "InvalidArgument" if is_of_version(during) && message.contains("version id") => absent(side),
        "NoSuchUpload" => Kind::Absent,
        "ConditionalRequestConflict" | "OperationAborted" => Kind::Contended,
        // The upload's parts are not what the ledger holds of them: it is begun anew.
        "InvalidPart" | "InvalidPartOrder" | "EntityTooSmall" => Kind::Contended,
        "NotImplemented" => Kind::NotImplemented,
        "RequestTimeout" | "InternalError" | "KMS.InternalException" | "KMS.DependencyTimeoutException" => {
            unanswered(side)
        }
        // Clocks and tokens mend without the task's doing.
        "ExpiredToken" | "RequestTimeTooSkewed" | "InvalidToken" | "ExpiredTokenException" => Kind::Unauthenticated,
        "BadDigest" | "InvalidDigest" | "XAmzContentChecksumMismatch" | "XAmzContentSHA256Mismatch" => Kind::Transient,
        // The object is not as long as it was listed, or begins anew.
        "InvalidRange" => unanswered(side),
        "InvalidObjectState" if side == Side::Source => Kind::Unsupported(Reason::SrcObjectNotEligible),
        // SSE-C: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/ServerSideEncryptionCustomerKeys.html>
        "InvalidRequest" if side == Side::Source && message.contains("Server Side Encryption") => {
            Kind::Unsupported(Reason::SrcObjectNotEligible)
        }
        "InvalidRequest" if message.contains("Object Lock") => Kind::Refused(Reason::DstBucketObjectLockConfigMissing),
        "InvalidArgument" | "InvalidRequest" if said.minds_header() => Kind::NotImplemented,
        _ => Kind::Refused(reason(side, during, said)?),
    };
    Some(kind)
}

/// Codes that stay until an operator changes something, by the name that native replication has for
/// it.
fn reason(side: Side, during: Operation, said: &Said) -> Option<Reason> {
    let reason = match said.code.as_str() {
        "NoSuchBucket" => pick(side, Reason::SrcBucketNotFound, Reason::DstBucketNotFound),
        "PermanentRedirect" | "TemporaryRedirect" | "Redirect" | "IllegalLocationConstraintException" => region(side),
        // It is also what a malformed date is called.
        "AuthorizationHeaderMalformed" if said.elsewhere.is_some() => region(side),
        // A key that the service does not recognise, or whose secret is another, permits nothing
        // until an operator changes it.
        "AccessDenied" | "AllAccessDisabled" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" => denied(side, during),
        "KMS.NotFoundException" => pick(side, Reason::SrcKmsKeyInvalidState, Reason::DstKmsKeyNotFound),
        other if other.starts_with("KMS.") => pick(side, Reason::SrcKmsKeyInvalidState, Reason::DstKmsKeyInvalidState),
        _ => return None,
    };
    Some(reason)
}

/// Codes that are not listed here: the status says what class they are of.
fn by_class(side: Side, during: Operation, status: u16) -> Kind {
    match status {
        401 | 403 => Kind::Refused(denied(side, during)),
        409 => Kind::Contended,
        412 => Kind::Conflict,
        429 | 503 => Kind::Throttled,
        501 => Kind::NotImplemented,
        400..=499 if status != 404 => Kind::Refused(Reason::RequestRefused),
        // An error inside of a 200, too.
        _ => unanswered(side),
    }
}

/// Answers without a code: those to a HEAD have no text, and all others are not S3's. Nothing of
/// them is definite but headers that S3 alone sends.
fn by_status(side: Side, said: &Said) -> Kind {
    match said.status {
        _ if said.is_redirect() => Kind::Refused(region(side)),
        404 | 405 if said.is_marker => absent(side),
        429 => Kind::Throttled,
        // A HEAD is slowed down without a word; of a write that something in between answers nothing is known.
        503 if side != Side::Write => Kind::Throttled,
        _ => unanswered(side),
    }
}

/// Says what it is that a version, or a key, is not there.
fn absent(side: Side) -> Kind {
    match side {
        Side::Source => Kind::Gone,
        Side::Destination | Side::Write | Side::Prepare => Kind::Absent,
    }
}

/// Says whether a request puts something on top of a key, and names nothing but what it goes over.
fn is_append(side: Side, during: Operation) -> bool {
    side == Side::Write
        && matches!(during, Operation::PutObject | Operation::CompleteMultipartUpload | Operation::DeleteObject)
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

fn region(side: Side) -> Reason {
    pick(side, Reason::SrcBucketInvalidRegion, Reason::DstBucketInvalidRegion)
}

fn denied(side: Side, during: Operation) -> Reason {
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

fn pick(side: Side, source: Reason, destination: Reason) -> Reason {
    match side {
        Side::Source => source,
        Side::Destination | Side::Write | Side::Prepare => destination,
    }
}
