//! The only place that reads what services say when they refuse, and the SDK's errors: each becomes
//! a failure that says what to do. Definite is what the service's own error code says, or headers
//! that S3 alone sends; any other answer may come from something in between and is trouble that may
//! pass.

mod error_body;
mod kinds;

use std::error::Error;
use std::fmt;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use replicator_core::failure::{
    Dependency, Failure, FailureKind, Reason, ResponseInfo, error_chain,
};
use replicator_core::operation::Operation;

use crate::s3_http::{TruncatedAnswer, is_unsent};
pub(crate) use error_body::ErrorBody;

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
    if let Some(said) = said_of(&error) {
        return from_refusal(side, during, said);
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
fn said_of<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Option<ErrorBody> {
    let response = error.raw_response()?;
    let text = String::from_utf8_lossy(response.body().bytes().unwrap_or_default());
    let headers = response.headers();
    let mut said =
        ErrorBody::parse_refusal(response.status().as_u16(), |name| headers.get(name), &text);
    if said.code.is_empty() {
        said.code = error.code().unwrap_or_default().to_owned();
        said.message = error.message().unwrap_or_default().to_owned();
    }
    Some(said)
}

/// Turns a service's refusal into a failure.
pub(crate) fn from_refusal(side: Side, during: Operation, said: ErrorBody) -> Failure {
    let (kind, dependency) = (
        kinds::kind(side, during, &said),
        responsible_party(side, &said.code),
    );
    let answer = Some(ResponseInfo {
        status: said.status,
        is_own: said.is_own(),
    });
    let header = said.header.as_deref().map(Box::from);
    Failure {
        answer,
        header,
        ..Failure::with_source(kind, during, Cause::Answered(said)).of(dependency)
    }
}

/// Turns the loss of an answer into a failure: the request may have been carried out.
pub(crate) fn from_lost_answer(side: Side, during: Operation, error: BoxError) -> Failure {
    let is_unreadable = is_unreadable(error.as_ref());
    let failure = Failure::with_source(kinds::lost_answer_kind(side), during, Cause::Silent(error))
        .of(responsible_party(side, ""));
    Failure {
        is_unreadable,
        ..failure
    }
}

/// Turns a connection that could not be made, or ended before anything was sent on it, into a
/// failure.
pub(crate) fn from_no_connection(side: Side, during: Operation, error: BoxError) -> Failure {
    Failure::with_source(FailureKind::Transient, during, Cause::Silent(error))
        .of(responsible_party(side, ""))
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

/// Turns what kept a request from being sent into a failure; it passes, unless the role was
/// refused.
pub(crate) fn unsent(side: Side, during: Operation, error: BoxError) -> Failure {
    match RefusedRole::find_in_causes(error.as_ref()) {
        Some(role) => from_refused_role(side, during, role),
        None => Failure::with_source(FailureKind::Unauthenticated, during, Cause::Silent(error))
            .of(responsible_party(side, "")),
    }
}

/// Without its role a request was never sent. STS says no more than "access denied" of a role that
/// is not there, does not trust the daemon's principal, or requires another external id: that stays
/// until an operator changes it.
fn from_refused_role(side: Side, during: Operation, role: RefusedRole) -> Failure {
    let kind = match role.code.as_str() {
        "AccessDenied" => FailureKind::NeedsOperator(Reason::AssumeRoleNotPermitted),
        _ => FailureKind::Unauthenticated,
    };
    Failure::with_source(kind, during, Cause::Role(role)).of(responsible_party(side, ""))
}

/// Turns what kept a request from being built into a failure; it stays.
pub(crate) fn from_unbuilt(side: Side, during: Operation) -> Failure {
    let kind = FailureKind::NeedsOperator(Reason::RequestRefused);
    Failure::with_source(kind, during, Cause::Unbuilt).of(responsible_party(side, ""))
}

/// S3 passes on what KMS says, under names of its own.
fn responsible_party(side: Side, code: &str) -> Dependency {
    match side {
        Side::Source => Dependency::Source,
        Side::Write | Side::Prepare if code.starts_with("KMS.") => Dependency::DestinationKey,
        Side::Destination | Side::Write | Side::Prepare => Dependency::Destination,
    }
}

/// Says in one line why the SDK got no answer, or which: its own texts end in dumps of its
/// structures.
pub(crate) fn error_words<E>(error: &SdkError<E, HttpResponse>) -> String
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    if let Some(said) = said_of(error) {
        return said.to_string();
    }
    RefusedRole::find_in_causes(error).map_or_else(|| error_chain(error), |role| role.to_string())
}

/// Says whether a queue will never take a message, however often it is sent: too long, or with
/// characters that it refuses.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html>
pub(crate) fn is_never_taken<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    let codes = ["InvalidParameterValue", "InvalidMessageContents"];
    error
        .code()
        .is_some_and(|code| codes.iter().any(|start| code.starts_with(start)))
}

type BoxError = Box<dyn Error + Send + Sync>;

/// What is behind a failure of a request.
#[derive(Debug)]
enum Cause {
    /// The service refused, or something in between answered.
    Answered(ErrorBody),
    /// The role to sign with was not given.
    Role(RefusedRole),
    /// The request could not be built; the SDK's words would quote what it was built from.
    Unbuilt,
    /// Nothing answered.
    Silent(BoxError),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(said) => said.fmt(f),
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
            // What was said is said; the SDK's chain below only repeats it.
            Self::Answered(_) | Self::Role(_) | Self::Unbuilt => None,
        }
    }
}

/// What STS said when it refused a role.
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
