//! The only place that classifies the refusals of services and the SDK's errors: each becomes a
//! failure that says what to do. Definite are the service's own error codes, and headers that S3
//! alone sends; any other answer may come from a proxy and counts as trouble that may pass.

mod refusal;

use std::error::Error;
use std::fmt;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use replicator_core::failure::{
    Dependency, Failure, FailureKind, Operation, Reason, ResponseInfo, error_chain,
};

use crate::s3::client::{TruncatedAnswer, is_unsent};
pub(crate) use refusal::ErrorBody;

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
    /// Names the dependency that serves the request.
    pub(crate) fn asked_dependency(self) -> Dependency {
        match self {
            Self::Source => Dependency::Source,
            Self::Destination | Self::Write | Self::Prepare => Dependency::Destination,
        }
    }
}

/// Turns an error of the SDK into a failure.
pub(crate) fn from_sdk_error<E>(
    side: Side,
    during: Operation,
    error: SdkError<E, HttpResponse>,
) -> Failure
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    if let Some(body) = error_body(&error) {
        return from_refusal(side, during, body);
    }
    let is_unsendable = matches!(&error, SdkError::DispatchFailure(failure) if failure.is_user());
    if is_unsendable || matches!(error, SdkError::ConstructionFailure(_)) {
        return from_unbuilt(side, during);
    }
    match RefusedRole::find_in_causes(&error) {
        Some(role) => from_refused_role(side, during, role),
        None if is_unsent(&error) => from_no_connection(side, during, error.into()),
        None => from_lost_answer(side, during, error.into()),
    }
}

/// Reads the answer that an error of the SDK holds.
fn error_body<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Option<ErrorBody> {
    let response = error.raw_response()?;
    let text = String::from_utf8_lossy(response.body().bytes().unwrap_or_default());
    let headers = response.headers();
    let mut body =
        ErrorBody::parse_refusal(response.status().as_u16(), |name| headers.get(name), &text);
    if body.code.is_empty() {
        body.code = error.code().unwrap_or_default().to_owned();
        body.message = error.message().unwrap_or_default().to_owned();
    }
    Some(body)
}

/// Turns a service's refusal into a failure.
pub(crate) fn from_refusal(side: Side, during: Operation, body: ErrorBody) -> Failure {
    let kind = refusal::kind(side, during, &body);
    let dependency = responsible_dependency(side, &body.code);
    let answer = Some(ResponseInfo {
        status: body.status,
        is_own: body.is_own(),
    });
    let header = body.header.as_deref().map(Box::from);
    Failure {
        answer,
        header,
        ..Failure::with_source(kind, during, Cause::Answered(body)).of(dependency)
    }
}

/// Turns the loss of an answer into a failure: the request may have been carried out.
pub(crate) fn from_lost_answer(side: Side, during: Operation, error: BoxError) -> Failure {
    let is_unreadable = is_unreadable(error.as_ref());
    let failure = Failure::with_source(
        refusal::lost_answer_kind(side),
        during,
        Cause::Silent(error),
    )
    .of(responsible_dependency(side, ""));
    Failure {
        is_unreadable,
        ..failure
    }
}

/// Turns a connection that could not be made, or ended before anything was sent on it, into a
/// failure.
pub(crate) fn from_no_connection(side: Side, during: Operation, error: BoxError) -> Failure {
    Failure::with_source(FailureKind::Transient, during, Cause::Silent(error))
        .of(responsible_dependency(side, ""))
}

/// Says whether bytes came that are no HTTP, or more of it than is read: more headers, say.
fn is_unreadable(error: &(dyn Error + 'static)) -> bool {
    let is_no_http = |cause: &(dyn Error + 'static)| {
        cause
            .downcast_ref::<hyper::Error>()
            .is_some_and(hyper::Error::is_parse)
    };
    error_causes(error).any(|cause| is_no_http(cause) || cause.is::<TruncatedAnswer>())
}

fn error_causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// Turns an error that kept a request from being sent into a failure; it passes, unless the role
/// was refused.
pub(crate) fn unsent(side: Side, during: Operation, error: BoxError) -> Failure {
    match RefusedRole::find_in_causes(error.as_ref()) {
        Some(role) => from_refused_role(side, during, role),
        None => Failure::with_source(FailureKind::Unauthenticated, during, Cause::Silent(error))
            .of(responsible_dependency(side, "")),
    }
}

/// Turns the refusal of a role into a failure. STS answers "access denied" for a role that does not
/// exist, does not trust the daemon's principal, or requires another external id: that stays until
/// an operator changes it.
fn from_refused_role(side: Side, during: Operation, role: RefusedRole) -> Failure {
    let kind = match role.code.as_str() {
        "AccessDenied" => FailureKind::NeedsOperator(Reason::AssumeRoleNotPermitted),
        _ => FailureKind::Unauthenticated,
    };
    Failure::with_source(kind, during, Cause::Role(role)).of(responsible_dependency(side, ""))
}

/// Turns an error that kept a request from being built into a failure, which is permanent.
pub(crate) fn from_unbuilt(side: Side, during: Operation) -> Failure {
    let kind = FailureKind::NeedsOperator(Reason::RequestRefused);
    Failure::with_source(kind, during, Cause::Unbuilt).of(responsible_dependency(side, ""))
}

/// Names the dependency that an error is about: S3 passes on errors of KMS, under names of its own.
fn responsible_dependency(side: Side, code: &str) -> Dependency {
    match side {
        Side::Source => Dependency::Source,
        Side::Write | Side::Prepare if code.starts_with("KMS.") => Dependency::DestinationKey,
        Side::Destination | Side::Write | Side::Prepare => Dependency::Destination,
    }
}

/// Says why one object cannot be read, where the service's refusal is about nothing but that object.
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/ServerSideEncryptionCustomerKeys.html>
pub(crate) fn object_refusal(failure: &Failure) -> Option<&'static str> {
    let source = failure.source.as_ref()?;
    let Cause::Answered(body) = source.downcast_ref()? else {
        return None;
    };
    match body.code.as_str() {
        "InvalidObjectState" => Some("it is archived"),
        "InvalidRequest" if body.message.contains("Server Side Encryption") => {
            Some("it is encrypted with a customer's key")
        }
        _ => None,
    }
}

/// Describes in one line an error of the SDK, whose own texts end in dumps of its structures.
pub(crate) fn error_words<E>(error: &SdkError<E, HttpResponse>) -> String
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    if let Some(body) = error_body(error) {
        return body.to_string();
    }
    RefusedRole::find_in_causes(error).map_or_else(|| error_chain(error), |role| role.to_string())
}

/// How a service refused to answer a question about a set-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) kind: RefusalKind,
    /// The service's own error code; empty where there is none.
    pub(crate) code: String,
    /// What the service said, in one line.
    pub(crate) words: String,
    /// The Region that the bucket is in, where the answer says so.
    pub(crate) region: Option<String>,
}

/// What a refusal means for a set-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefusalKind {
    /// The principal is not permitted to do it.
    Denied,
    /// There is nothing of that name.
    Absent,
    /// The bucket is in another Region.
    Elsewhere,
    /// The service does not know the request.
    Unimplemented,
    /// No credentials could be had to sign it with, because STS refused the role.
    RoleRefused,
    /// No credentials could be had to sign it with, for another cause.
    Unsigned,
    /// The service does not accept the credentials that signed it.
    Unauthenticated,
    /// It is permitted, and the object cannot give that: it is gone or archived, has no tags, lock
    /// or byte in range, or is encrypted under its client's own key.
    Inapplicable,
    /// The service refused it by a code of its own that is none of the above.
    Refused,
    /// There was no definite answer.
    Silent,
}

impl Refusal {
    /// Makes one of a request that has no definite answer.
    pub(crate) fn silent(words: impl Into<String>) -> Self {
        Self {
            kind: RefusalKind::Silent,
            code: String::new(),
            words: words.into(),
            region: None,
        }
    }

    /// Makes one of a request that was not answered in time.
    pub(crate) fn unanswered(timeout: std::time::Duration) -> Self {
        Self::silent(format!("no answer within {timeout:?}"))
    }

    /// Says whether the question stays open, because the service itself did not answer it.
    pub(crate) fn leaves_open(&self) -> bool {
        matches!(
            self.kind,
            RefusalKind::Silent | RefusalKind::Unsigned | RefusalKind::RoleRefused
        )
    }

    /// Says what became of an action.
    pub(crate) fn describe(&self, action: &str) -> String {
        let verb = if self.kind == RefusalKind::Denied {
            "is denied"
        } else if self.kind == RefusalKind::Unimplemented {
            "is not known to the endpoint"
        } else if self.leaves_open() {
            "got no answer"
        } else {
            "is refused"
        };
        format!("{action} {verb}: {}", self.words)
    }

    /// Reads an error of the SDK.
    pub(crate) fn from_sdk<E>(error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        if let Some(body) = error_body(error) {
            let headers = error.raw_response().map(HttpResponse::headers);
            let region = headers.and_then(|headers| headers.get("x-amz-bucket-region"));
            return Self::from_body(body, region);
        }
        let (kind, code) = match RefusedRole::find_in_causes(error) {
            Some(role) => (RefusalKind::RoleRefused, role.code),
            None if has_no_credentials(error) => (RefusalKind::Unsigned, String::new()),
            None => (RefusalKind::Silent, String::new()),
        };
        Self {
            kind,
            code,
            words: error_words(error),
            region: None,
        }
    }

    /// Reads the answer of a service.
    pub(crate) fn from_body(body: ErrorBody, region: Option<&str>) -> Self {
        Self {
            kind: refusal::question_kind(&body),
            words: body.to_string(),
            code: body.code,
            region: region.map(str::to_owned),
        }
    }
}

fn has_no_credentials(error: &(dyn Error + 'static)) -> bool {
    error_causes(error).any(|cause| cause.is::<CredentialsError>())
}

/// Says whether a queue will refuse a message however often it is sent: it is too long, or has
/// characters that SQS refuses.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html>
pub(crate) fn is_never_taken<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    let codes = ["InvalidParameterValue", "InvalidMessageContents"];
    error
        .code()
        .is_some_and(|code| codes.iter().any(|start| code.starts_with(start)))
}

/// What KMS says for certain of the use of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyAnswer {
    /// It can be used: a dry run is refused for being one.
    Usable,
    /// Its policy, or the principal's, does not allow this request.
    Denied,
    /// Its state, or its kind, does not allow it.
    InvalidState,
    /// There is none, or none in this Region.
    NotFound,
}

/// Reads what a refusal of KMS says of a key, if it is KMS's own and about the key.
/// <https://docs.aws.amazon.com/kms/latest/APIReference/API_GenerateDataKey.html#API_GenerateDataKey_Errors>
pub(crate) fn key_answer<E>(error: &SdkError<E, HttpResponse>) -> Option<KeyAnswer>
where
    E: ProvideErrorMetadata,
{
    let status = error.raw_response()?.status().as_u16();
    let code = error.code().filter(|_| (400..500).contains(&status))?;
    match code {
        "DryRunOperationException" => Some(KeyAnswer::Usable),
        "AccessDeniedException" => Some(KeyAnswer::Denied),
        "DisabledException" | "KMSInvalidStateException" | "InvalidKeyUsageException" => {
            Some(KeyAnswer::InvalidState)
        }
        "NotFoundException" | "InvalidArnException" => Some(KeyAnswer::NotFound),
        _ => None,
    }
}

/// Says whether KMS found something wrapped with another key than the request names.
pub(crate) fn is_other_key<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    error.code() == Some("IncorrectKeyException")
}

/// Turns a refusal of KMS to wrap a data key anew into a failure.
pub(crate) fn from_kms_error<E>(during: Operation, error: SdkError<E, HttpResponse>) -> Failure
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let is_refused =
        key_answer(&error).is_some() || error.code() == Some("InvalidCiphertextException");
    let failure = from_sdk_error(Side::Source, during, error);
    let kind = match is_refused {
        true => FailureKind::NeedsOperator(Reason::ClientSideKeyRefused),
        false => failure.kind,
    };
    // Its trouble says nothing of a bucket.
    Failure {
        kind,
        dependency: None,
        ..failure
    }
}

/// The cause of a request's failure.
#[derive(Debug)]
enum Cause {
    /// The service, or a proxy, answered with an error.
    Answered(ErrorBody),
    /// STS refused the role to sign with.
    Role(RefusedRole),
    /// The request could not be built; the SDK's words would quote what it was built from.
    Unbuilt,
    /// Nothing answered.
    Silent(BoxError),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(body) => body.fmt(f),
            Self::Role(role) => role.fmt(f),
            Self::Unbuilt => f.write_str("cannot be written as a request"),
            Self::Silent(error) if is_unreadable(error.as_ref()) => {
                f.write_str("an answer that cannot be read")
            }
            Self::Silent(_) => f.write_str("no answer"),
        }
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Silent(error) => Some(error.as_ref()),
            // The SDK's chain below only repeats the text.
            Self::Answered(_) | Self::Role(_) | Self::Unbuilt => None,
        }
    }
}

/// The error of STS that refused a role.
#[derive(Debug)]
struct RefusedRole {
    code: String,
    message: String,
}

impl RefusedRole {
    /// Looks for it among the causes of an error.
    fn find_in_causes(error: &(dyn Error + 'static)) -> Option<Self> {
        let refusal =
            error_causes(error).find_map(|cause| cause.downcast_ref::<AssumeRoleError>())?;
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        Some(Self {
            code: text(refusal.code()),
            message: text(refusal.message()),
        })
    }
}

impl fmt::Display for RefusedRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code.as_str(), self.message.as_str()) {
            ("", _) => f.write_str("AssumeRole was refused without a code"),
            (code, "") => write!(f, "AssumeRole answered {code}"),
            (code, message) => write!(f, "AssumeRole answered {code}: {message}"),
        }
    }
}

#[cfg(test)]
mod tests;
