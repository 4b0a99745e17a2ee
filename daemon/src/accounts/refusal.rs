//! The only place that reads what services say when they refuse, and the SDK's errors: each becomes a
//! failure that says what to do.

use std::error::Error;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use replicator_core::failure::{Answer, Failure, Kind, Party, Reason};

use crate::wire::{Unread, is_unsent};
use crate::xml::{self, NotXml};

/// Which bucket a request was about, and whether it changes anything there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Reading the source.
    Source,
    /// Reading the destination.
    Destination,
    /// Writing the destination so that readers see it.
    Write,
    /// Uploading or aborting what no reader sees: safe to repeat.
    Prepare,
}

impl Side {
    /// Names who is asked.
    pub(crate) fn party(self) -> Party {
        match self {
            Self::Source => Party::Source,
            Self::Destination | Self::Write | Self::Prepare => Party::Destination,
        }
    }
}

/// Turns an error of the SDK into a failure.
pub(crate) fn failure<E>(side: Side, during: &'static str, error: SdkError<E, HttpResponse>) -> Failure
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let status = error.raw_response().map(|response| response.status().as_u16());
    let code = error.code().unwrap_or_default().to_owned();
    let message = error.message().unwrap_or_default().to_owned();
    let kind = match status {
        None => without_answer(side, &error),
        Some(status) => kind(side, during, status, (&code, &message)),
    };
    let party = party(side, &code);
    let answer = status.map(|status| Answer { status, is_own: !code.is_empty() });
    let is_unreadable = is_unreadable(&error);
    let failure = Failure::caused(kind, during, cause(status, code, message, error)).of(party);
    Failure { answer, is_unreadable, ..failure }
}

/// Says whether bytes came that are no HTTP, or more of it than is read: more headers, say.
fn is_unreadable(error: &(dyn Error + 'static)) -> bool {
    let is_no_http =
        |cause: &(dyn Error + 'static)| cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse);
    causes(error).any(|cause| is_no_http(cause) || cause.is::<Unread>())
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// What a service said when it refused.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
}

impl Said {
    /// Reads the body of a refusal: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>
    pub(crate) fn read(status: u16, text: &str) -> Self {
        let mut said = Self { status, ..Self::default() };
        let read = xml::read(text, |path, text| {
            match path.last() {
                Some(&"Code") if said.code.is_empty() => said.code = text.into_owned(),
                Some(&"Message") if said.message.is_empty() => said.message = text.into_owned(),
                _ => {}
            }
            Ok::<_, NotXml>(())
        });
        read.map_or_else(|_| Self { status, ..Self::default() }, |()| said)
    }
}

/// Turns a service's refusal into a failure.
pub(crate) fn answered(side: Side, during: &'static str, said: Said) -> Failure {
    let Said { status, code, message } = said;
    let kind = kind(side, during, status, (&code, &message));
    let party = party(side, &code);
    let answer = Some(Answer { status, is_own: !code.is_empty() });
    let cause = Cause { status: Some(status), code, message, unsent: false, error: "refused".into() };
    Failure { answer, ..Failure::caused(kind, during, cause).of(party) }
}

/// Turns the loss of an answer into a failure: the request may have been carried out.
pub(crate) fn lost(side: Side, during: &'static str, error: BoxError) -> Failure {
    let is_unreadable = is_unreadable(error.as_ref());
    let failure = Failure::caused(unanswered(side), during, no_answer(false, error)).of(party(side, ""));
    Failure { is_unreadable, ..failure }
}

/// Turns what kept a request from being sent into a failure; it passes, unless it is a role that is not ours.
pub(crate) fn unsent(side: Side, during: &'static str, error: BoxError) -> Failure {
    let kind = role_refused(error.as_ref()).unwrap_or(Kind::Unauthenticated);
    Failure::caused(kind, during, no_answer(false, error)).of(party(side, ""))
}

/// STS says no more than this of a role that is not there, does not trust us, or wants another external id.
fn role_refused(error: &(dyn Error + 'static)) -> Option<Kind> {
    let is_refusal = |refusal: &AssumeRoleError| refusal.code() == Some("AccessDenied");
    let is_refused = causes(error).any(|cause| cause.downcast_ref().is_some_and(is_refusal));
    is_refused.then_some(Kind::Refused(Reason::AssumeRoleNotPermitted))
}

/// Turns what kept a request from being built into a failure; it stays.
pub(crate) fn unbuilt(side: Side, during: &'static str, error: BoxError) -> Failure {
    let kind = Kind::Refused(Reason::RequestRefused);
    Failure::caused(kind, during, no_answer(true, error)).of(party(side, ""))
}

fn no_answer(unsent: bool, error: BoxError) -> Cause {
    Cause { status: None, code: String::new(), message: String::new(), unsent, error }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn kind(side: Side, during: &'static str, status: u16, (code, message): (&str, &str)) -> Kind {
    by_code(side, during, code, message)
        .or_else(|| by_status(side, during, status))
        .unwrap_or(Kind::Refused(Reason::RequestRefused))
}

/// S3 passes on what KMS says, under names of its own.
fn party(side: Side, code: &str) -> Party {
    match side {
        Side::Write | Side::Prepare if code.starts_with("KMS.") => Party::DestinationKey,
        Side::Source | Side::Destination | Side::Write | Side::Prepare => side.party(),
    }
}

fn cause<E>(status: Option<u16>, code: String, message: String, error: SdkError<E, HttpResponse>) -> Cause
where
    E: std::error::Error + Send + Sync + 'static,
{
    let unsent = matches!(error, SdkError::ConstructionFailure(_));
    Cause { status, code, message, unsent, error: error.into() }
}

/// An SDK error with what the service said, which the SDK's own text leaves out.
#[derive(Debug)]
struct Cause {
    status: Option<u16>,
    code: String,
    message: String,
    /// The request could not be built; the SDK's words would quote what it was built from.
    unsent: bool,
    error: BoxError,
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.status, self.code.as_str()) {
            (Some(status), "") => write!(f, "answered {status}"),
            (Some(status), code) => write!(f, "answered {status} {code}: {}", self.message),
            (None, _) if self.unsent => f.write_str("cannot be written as a request"),
            (None, _) if is_unreadable(self.error.as_ref()) => f.write_str("an answer that cannot be read"),
            (None, _) => f.write_str("no answer"),
        }
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // What the service said is said; the SDK's chain below only repeats it.
        match self.status {
            None if !self.unsent => Some(self.error.as_ref()),
            Some(_) | None => None,
        }
    }
}

/// A request that could not even be built is wrong in itself; one that was built may have been sent.
fn without_answer<E>(side: Side, error: &SdkError<E, HttpResponse>) -> Kind
where
    E: Error + 'static,
{
    if let SdkError::ConstructionFailure(_) = error {
        return Kind::Refused(Reason::RequestRefused);
    }
    if let SdkError::DispatchFailure(failure) = error
        && failure.is_user()
    {
        return Kind::Refused(Reason::RequestRefused);
    }
    let unsent = || is_unsent(error).then_some(Kind::Transient);
    role_refused(error).or_else(unsent).unwrap_or_else(|| unanswered(side))
}

fn unanswered(side: Side) -> Kind {
    match side {
        Side::Write => Kind::Unanswered,
        Side::Source | Side::Destination | Side::Prepare => Kind::Transient,
    }
}

/// S3's error codes: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>
fn by_code(side: Side, during: &'static str, code: &str, message: &str) -> Option<Kind> {
    let kind = match code {
        "SlowDown"
        | "ServiceUnavailable"
        | "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "KMS.ThrottlingException"
        | "TooManyRequestsException" => Kind::Throttled,
        "PreconditionFailed" => Kind::Conflict,
        // What a condition, or a version id, was about is not there any more.
        "NoSuchKey" | "NoSuchVersion" if matches!(side, Side::Write | Side::Prepare) => Kind::Conflict,
        // S3 never gave such an id to a version, so there is none of it; whoever may write to the queue can ask for it.
        "InvalidArgument" if is_of_version(side, during) && message.contains("version id") => Kind::Gone,
        "ConditionalRequestConflict" | "OperationAborted" => Kind::Contended,
        // The upload's parts are not what the ledger holds of them: it is begun anew.
        "NoSuchUpload" | "InvalidPart" | "InvalidPartOrder" | "EntityTooSmall" => Kind::Contended,
        "NotImplemented" => Kind::NotImplemented,
        "RequestTimeout" | "InternalError" | "KMS.InternalException" | "KMS.DependencyTimeoutException" => {
            unanswered(side)
        }
        // Clocks and tokens mend without the task's doing.
        "ExpiredToken" | "RequestTimeTooSkewed" | "InvalidToken" | "ExpiredTokenException" => Kind::Unauthenticated,
        "NoSuchBucket" => Kind::Refused(pick(side, Reason::SrcBucketNotFound, Reason::DstBucketNotFound)),
        "InvalidObjectState" => Kind::Unsupported(Reason::SrcObjectNotEligible),
        "KMS.NotFoundException" => Kind::Refused(pick(side, Reason::SrcKmsKeyInvalidState, Reason::DstKmsKeyNotFound)),
        "BadDigest" | "InvalidDigest" | "XAmzContentChecksumMismatch" | "XAmzContentSHA256Mismatch" => Kind::Transient,
        // SSE-C: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/ServerSideEncryptionCustomerKeys.html>
        "InvalidRequest" if side == Side::Source && message.contains("Server Side Encryption") => {
            Kind::Unsupported(Reason::SrcObjectNotEligible)
        }
        "InvalidRequest" if message.contains("Object Lock") => Kind::Refused(Reason::DstBucketObjectLockConfigMissing),
        // A key that the service does not know, or whose secret is another, permits nothing until someone changes it.
        "AccessDenied" | "AllAccessDisabled" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" => {
            Kind::Refused(denied(side, during))
        }
        other if other.starts_with("KMS.") => {
            Kind::Refused(pick(side, Reason::SrcKmsKeyInvalidState, Reason::DstKmsKeyInvalidState))
        }
        _ => return None,
    };
    Some(kind)
}

/// Answers to HEAD have no body and so no code: the status alone must do.
fn by_status(side: Side, during: &'static str, status: u16) -> Option<Kind> {
    let kind = match (status, side) {
        (409, _) => Kind::Contended,
        (412, _) => Kind::Conflict,
        // S3 says what it does not find: this was somebody in between.
        (404, Side::Write | Side::Prepare) => unanswered(side),
        (404 | 405, Side::Source) => Kind::Gone,
        (401 | 403, _) => Kind::Refused(denied(side, during)),
        (429 | 503, _) => Kind::Throttled,
        (501, _) => Kind::NotImplemented,
        (500..=599, _) => unanswered(side),
        // An answer that the SDK cannot read: of a read it will never be another.
        (200..=299, Side::Source | Side::Destination) => Kind::Refused(Reason::RequestRefused),
        (200..=299, _) => unanswered(side),
        _ => return None,
    };
    Some(kind)
}

/// Says whether a request names a version of the source, as an event may have told it.
fn is_of_version(side: Side, during: &str) -> bool {
    side == Side::Source && matches!(during, "GetObject" | "HeadObject" | "GetObjectTagging")
}

fn denied(side: Side, during: &'static str) -> Reason {
    match (side, during) {
        (Side::Source, "GetObjectTagging") => Reason::SrcGetTaggingNotPermitted,
        (Side::Source, "ListObjectVersions") => Reason::SrcListVersionsNotPermitted,
        (Side::Source, _) => Reason::SrcGetObjectNotPermitted,
        (Side::Destination, _) => Reason::DstHeadObjectNotPermitted,
        (_, "DeleteObject") => Reason::DstDelObjNotPermitted,
        (_, "PutObjectTagging") => Reason::DstPutTaggingNotPermitted,
        (_, "CreateMultipartUpload") => Reason::DstMultipartInitNotPermitted,
        (_, "UploadPart") => Reason::DstMultipartUploadNotPermitted,
        (_, "CompleteMultipartUpload") => Reason::DstMultipartCompleteNotPermitted,
        (Side::Write | Side::Prepare, _) => Reason::DstPutObjectNotPermitted,
    }
}

fn pick(side: Side, source: Reason, destination: Reason) -> Reason {
    match side {
        Side::Source => source,
        Side::Destination | Side::Write | Side::Prepare => destination,
    }
}

/// Says whether a queue will never take a message, however often it is sent: too long, or with characters
/// that it refuses. <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html>
pub(crate) fn is_never_taken<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    let codes = ["InvalidParameterValue", "InvalidMessageContents"];
    error.code().is_some_and(|code| codes.iter().any(|start| code.starts_with(start)))
}

#[cfg(test)]
mod tests {
    use aws_credential_types::provider::error::CredentialsError;
    use aws_sdk_s3::operation::delete_object::DeleteObjectError;
    use aws_smithy_runtime_api::client::result::ConnectorError;
    use aws_smithy_runtime_api::http::StatusCode;
    use aws_smithy_types::body::SdkBody;
    use aws_smithy_types::error::ErrorMetadata;

    use super::*;

    #[test]
    fn an_answer_decides_by_its_code_and_a_head_by_its_status() {
        assert_eq!(by_code(Side::Write, "PutObject", "SlowDown", ""), Some(Kind::Throttled));
        assert_eq!(by_code(Side::Write, "PutObject", "InternalError", ""), Some(Kind::Unanswered));
        assert_eq!(by_code(Side::Write, "PutObject", "XAmzContentSHA256Mismatch", ""), Some(Kind::Transient));
        assert_eq!(by_code(Side::Source, "GetObject", "InternalError", ""), Some(Kind::Transient));
        assert_eq!(by_status(Side::Source, "HeadObject", 404), Some(Kind::Gone));
        assert_eq!(by_status(Side::Write, "PutObject", 404), Some(Kind::Unanswered));
        assert_eq!(by_code(Side::Write, "PutObject", "NoSuchKey", ""), Some(Kind::Conflict));
        assert_eq!(by_code(Side::Source, "GetObject", "NoSuchKey", ""), None);
        assert_eq!(by_status(Side::Destination, "HeadObject", 418), None);
    }

    #[test]
    fn a_refusal_is_read_from_its_text_and_without_one_from_its_status() {
        let text = "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Please reduce</Message></Error>";
        let said = Said::read(503, text);
        assert_eq!((said.code.as_str(), said.message.as_str()), ("SlowDown", "Please reduce"));
        assert_eq!(answered(Side::Write, "PutObject", said).kind, Kind::Throttled);
        let silent = Said::read(500, "<html>");
        assert_eq!(answered(Side::Write, "PutObject", silent).kind, Kind::Unanswered);
    }

    #[test]
    fn only_what_may_have_been_sent_can_have_been_carried_out() {
        let error = || "broken".into();
        assert_eq!(lost(Side::Write, "PutObject", error()).kind, Kind::Unanswered);
        assert_eq!(unsent(Side::Write, "PutObject", error()).kind, Kind::Unauthenticated);
        assert_eq!(unbuilt(Side::Write, "PutObject", error()).kind, Kind::Refused(Reason::RequestRefused));
    }

    #[test]
    fn a_role_that_may_not_be_assumed_is_named_and_waits_for_someone_to_act() {
        let refused = |code| {
            let error = AssumeRoleError::generic(ErrorMetadata::builder().code(code).build());
            let response = HttpResponse::new(StatusCode::try_from(403).unwrap(), SdkBody::empty());
            CredentialsError::provider_error(SdkError::service_error(error, response))
        };
        let parked = Kind::Refused(Reason::AssumeRoleNotPermitted);
        assert_eq!(unsent(Side::Write, "PutObject", refused("AccessDenied").into()).kind, parked);
        assert_eq!(
            unsent(Side::Write, "PutObject", refused("ExpiredTokenException").into()).kind,
            Kind::Unauthenticated
        );
        let by_sdk = |code| ConnectorError::other(refused(code).into(), None);
        let error = |code| SdkError::<DeleteObjectError, _>::dispatch_failure(by_sdk(code));
        assert_eq!(failure(Side::Write, "DeleteObject", error("AccessDenied")).kind, parked);
        assert_eq!(failure(Side::Write, "DeleteObject", error("Throttling")).kind, Kind::Unanswered);
    }

    #[test]
    fn trouble_is_laid_at_the_door_of_whoever_has_it() {
        assert_eq!(party(Side::Source, "KMS.ThrottlingException"), Party::Source);
        assert_eq!(party(Side::Destination, "SlowDown"), Party::Destination);
        assert_eq!(party(Side::Write, "SlowDown"), Party::Destination);
        assert_eq!(party(Side::Prepare, "KMS.ThrottlingException"), Party::DestinationKey);
    }

    #[test]
    fn an_object_under_a_customers_own_key_is_recorded_and_does_not_block_its_neighbours() {
        let message = "The object was stored using a form of Server Side Encryption.";
        let kind = by_code(Side::Source, "GetObject", "InvalidRequest", message);
        assert_eq!(kind, Some(Kind::Unsupported(Reason::SrcObjectNotEligible)));
    }

    #[test]
    fn a_refusal_names_the_permission_that_is_missing() {
        let cases = [
            (Side::Source, "GetObject", Reason::SrcGetObjectNotPermitted),
            (Side::Source, "HeadObject", Reason::SrcGetObjectNotPermitted),
            (Side::Source, "GetObjectTagging", Reason::SrcGetTaggingNotPermitted),
            (Side::Source, "ListObjectVersions", Reason::SrcListVersionsNotPermitted),
            (Side::Destination, "HeadObject", Reason::DstHeadObjectNotPermitted),
            (Side::Write, "PutObject", Reason::DstPutObjectNotPermitted),
            (Side::Write, "PutObjectTagging", Reason::DstPutTaggingNotPermitted),
            (Side::Write, "DeleteObject", Reason::DstDelObjNotPermitted),
            (Side::Prepare, "CreateMultipartUpload", Reason::DstMultipartInitNotPermitted),
            (Side::Prepare, "UploadPart", Reason::DstMultipartUploadNotPermitted),
            (Side::Write, "CompleteMultipartUpload", Reason::DstMultipartCompleteNotPermitted),
        ];
        for (side, during, reason) in cases {
            for code in ["AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch"] {
                assert_eq!(by_code(side, during, code, ""), Some(Kind::Refused(reason)), "{during} {code}");
            }
            for status in [401, 403] {
                assert_eq!(by_status(side, during, status), Some(Kind::Refused(reason)), "{during} {status}");
            }
        }
    }

    #[test]
    fn what_is_wrong_with_a_bucket_or_a_key_is_named_by_whose_it_is() {
        let cases = [
            ("NoSuchBucket", Reason::SrcBucketNotFound, Reason::DstBucketNotFound),
            ("KMS.NotFoundException", Reason::SrcKmsKeyInvalidState, Reason::DstKmsKeyNotFound),
            ("KMS.DisabledException", Reason::SrcKmsKeyInvalidState, Reason::DstKmsKeyInvalidState),
            ("KMS.KMSInvalidStateException", Reason::SrcKmsKeyInvalidState, Reason::DstKmsKeyInvalidState),
        ];
        for (code, source, destination) in cases {
            assert_eq!(by_code(Side::Source, "GetObject", code, ""), Some(Kind::Refused(source)), "{code}");
            for side in [Side::Write, Side::Prepare] {
                assert_eq!(by_code(side, "PutObject", code, ""), Some(Kind::Refused(destination)), "{code}");
            }
        }
        let lock = "Bucket is missing Object Lock Configuration";
        let unlocked = Some(Kind::Refused(Reason::DstBucketObjectLockConfigMissing));
        assert_eq!(by_code(Side::Write, "PutObject", "InvalidRequest", lock), unlocked);
        // KMS, too, has trouble that passes.
        assert_eq!(by_code(Side::Source, "GetObject", "KMS.InternalException", ""), Some(Kind::Transient));
        assert_eq!(by_code(Side::Write, "PutObject", "KMS.DependencyTimeoutException", ""), Some(Kind::Unanswered));
    }

    #[test]
    fn a_version_whose_name_is_none_is_not_there() {
        let kind = |side, during, message| by_code(side, during, "InvalidArgument", message);
        assert_eq!(kind(Side::Source, "HeadObject", "Invalid version id specified"), Some(Kind::Gone));
        // All else stays a refusal: a wrong marker of a list, an argument that is another one.
        assert_eq!(kind(Side::Source, "ListObjectVersions", "Invalid version id specified"), None);
        assert_eq!(kind(Side::Write, "PutObject", "Invalid version id specified"), None);
        assert_eq!(kind(Side::Source, "HeadObject", "Invalid argument"), None);
    }

    #[test]
    fn clocks_and_tokens_that_ended_are_tried_again() {
        for code in ["ExpiredToken", "ExpiredTokenException", "InvalidToken", "RequestTimeTooSkewed"] {
            for side in [Side::Source, Side::Destination, Side::Write, Side::Prepare] {
                assert_eq!(by_code(side, "PutObject", code, ""), Some(Kind::Unauthenticated), "{code}");
            }
        }
    }
}
