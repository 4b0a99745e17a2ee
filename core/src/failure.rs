//! Failures that say what to do about them. Reasons are native replication's failure codes, the
//! vocabulary users already search for:
//! <https://docs.aws.amazon.com/AmazonS3/latest/userguide/replication-metrics-events.html>

use std::error::Error;
use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};
use strum::{EnumMessage, EnumString, IntoStaticStr, VariantArray};
use thiserror::Error;

/// An error: its kind, the operation that failed, and the cause.
#[derive(Debug, Error)]
#[error("{operation} {kind}")]
pub struct Failure {
    /// The kind of failure, which decides what happens next.
    pub kind: FailureKind,
    /// The operation that failed, by its name in the service's API.
    pub operation: Operation,
    /// The dependency that failed, as far as an answer, or the lack of one, shows.
    pub dependency: Option<Dependency>,
    /// The rule that it was for, where another than the leading one took the version.
    pub rule: Option<Box<str>>,
    /// What answered, if anything did.
    pub answer: Option<ResponseInfo>,
    /// Bytes came back that cannot be read as an answer: the server is there.
    pub is_unreadable: bool,
    /// The request header that the service's refusal names, in lower case.
    pub header: Option<Box<str>>,
    /// The cause.
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

/// What kind of answer a failure comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponseInfo {
    /// The HTTP status.
    pub status: u16,
    /// Whether the service itself gave it, as its error code proves; else something in between may
    /// have.
    pub is_own: bool,
}

/// The remote dependency of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dependency {
    /// The source bucket, its endpoint or its key.
    Source,
    /// The destination bucket or its endpoint.
    Destination,
    /// The KMS key that replicas are encrypted with.
    DestinationKey,
}

/// What a task was doing when something failed: an operation of a service's API, or a step of the
/// daemon's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display, IntoStaticStr)]
pub enum Operation {
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html>
    AbortMultipartUpload,
    /// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html>
    ChangeMessageVisibility,
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html>
    CompleteMultipartUpload,
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateMultipartUpload.html>
    CreateMultipartUpload,
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObject.html>
    DeleteObject,
    /// <https://docs.aws.amazon.com/kms/latest/APIReference/API_Decrypt.html>
    Decrypt,
    /// <https://docs.aws.amazon.com/kms/latest/APIReference/API_DescribeKey.html>
    DescribeKey,
    /// <https://docs.aws.amazon.com/kms/latest/APIReference/API_Encrypt.html>
    Encrypt,
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketVersioning.html>
    GetBucketVersioning,
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html>
    GetObject,
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObjectLegalHold.html>
    GetObjectLegalHold,
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObjectRetention.html>
    GetObjectRetention,
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObjectTagging.html>
    GetObjectTagging,
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html>
    HeadObject,
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListMultipartUploads.html>
    ListMultipartUploads,
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html>
    ListObjectVersions,
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListParts.html>
    ListParts,
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html>
    PutObject,
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObjectTagging.html>
    PutObjectTagging,
    /// <https://docs.aws.amazon.com/kms/latest/APIReference/API_ReEncrypt.html>
    ReEncrypt,
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPart.html>
    UploadPart,

    /// Looking an account of the configuration up.
    #[strum(serialize = "account")]
    FindAccount,
    /// Reading or writing the ledger.
    #[strum(serialize = "the ledger")]
    AccessLedger,
    /// Dividing an object into parts.
    #[strum(serialize = "part layout")]
    LayOutParts,
    /// Deciding what a rule replicates of an encrypted object.
    #[strum(serialize = "encryption opt-in")]
    CheckEncryption,
    /// Setting the storage class that a rule names.
    #[strum(serialize = "storage class")]
    SetStorageClass,
    /// Finding out whether a version is itself a replica of its destination.
    #[strum(serialize = "replica of its destination")]
    CheckOrigin,
    /// Repeating the deletion of a version.
    #[strum(serialize = "version delete")]
    DeleteVersion,
    /// Bringing a key up to date, pass by pass.
    #[strum(serialize = "catching up")]
    Reconcile,
    /// The whole task of a key.
    #[strum(serialize = "task")]
    RunTask,
}

impl Operation {
    /// Returns the name that logs and metrics use: the one in the service's API reference, if it
    /// has one.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error, IntoStaticStr)]
pub enum FailureKind {
    /// A precondition failed (412, or 404 on a conditional write): another client wrote.
    #[error("was refused: the precondition failed")]
    PreconditionFailed,
    /// Another client is writing at this moment (409).
    #[error("met another write")]
    ConcurrentWrite,
    /// A write that may or may not have landed, or may yet land.
    #[error("got no answer")]
    OutcomeUnknown,
    /// The network, or the service's own trouble: a read that can simply be tried again.
    #[error("failed for now")]
    Transient,
    /// Credentials that expired, could not be fetched, or were signed by a wrong clock: that mends
    /// without the task's doing, and no request is answered until then.
    #[error("was not authenticated")]
    Unauthenticated,
    /// SQS did not confirm in time that the message is still this worker's: nothing is written
    /// until it does.
    #[error("did not confirm the lease in time")]
    LeaseUnsure,
    /// The service throttles.
    #[error("was throttled")]
    Throttled,
    /// A refusal that stays until an operator changes something.
    #[error("was refused ({0})")]
    NeedsOperator(Reason),
    /// The service says that the source has no such version.
    #[error("found the version gone")]
    SourceVersionMissing,
    /// The service says that the destination has no such key, version or upload.
    #[error("found nothing of that name")]
    NotFound,
    /// A version that cannot be replicated, ever.
    #[error("cannot replicate this version ({0})")]
    Ineligible(Reason),
    /// The service does not implement the request.
    #[error("needs what the endpoint does not implement")]
    NotImplemented,
    /// The service does not implement something optional, and the next attempt goes without it.
    #[error("goes without what the endpoint does not implement")]
    FeatureDisabled,
}

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Read again and plan again.
    Replan,
    /// Wait until the write can no longer land, then read and plan again.
    WaitThenReplan,
    /// Try again, later each time.
    Retry,
    /// Try again, later: the service throttles.
    Throttle,
    /// Keep the task durably until an operator acts.
    Park(Reason),
    /// Record that the source lost the version before it was read.
    Gone,
    /// Record that the version is not to be replicated.
    Unsupported(Reason),
}

/// Why something was not replicated, and what puts it right; its code is spelt as native
/// replication does where it has one.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    strum::Display,
    EnumMessage,
    EnumString,
    IntoStaticStr,
    VariantArray,
)]
pub enum Reason {
    /// The role that an account is to be used with may not be assumed.
    #[strum(
        message = "check the role's ARN, its trust policy, `external_id`, and `sts:AssumeRole` of \
                   the caller"
    )]
    AssumeRoleNotPermitted,
    /// KMS does not wrap the data key of an object anew that its client encrypted.
    #[strum(
        message = "correct `client_side_keys`; allow `kms:ReEncryptFrom` and `kms:ReEncryptTo`, \
                   between Regions `kms:Decrypt` and `kms:Encrypt`"
    )]
    ClientSideKeyRefused,
    /// The destination bucket is in another Region than its account's.
    #[strum(message = "use an account with the bucket's Region")]
    DstBucketInvalidRegion,
    /// The destination bucket does not exist.
    #[strum(message = "create the bucket, or correct the rule")]
    DstBucketNotFound,
    /// The replica needs Object Lock and the destination bucket has none.
    #[strum(message = "enable Object Lock on the destination bucket")]
    DstBucketObjectLockConfigMissing,
    /// The destination bucket keeps no versions.
    #[strum(message = "enable versioning of the destination bucket")]
    DstBucketUnversioned,
    /// Deleting at the destination, or writing a delete marker, is not permitted.
    #[strum(
        message = "allow `s3:DeleteObject` for delete markers, `s3:DeleteObjectVersion` for \
                   version deletes"
    )]
    DstDelObjNotPermitted,
    /// Asking whether the destination bucket keeps versions is not permitted.
    #[strum(message = "allow `s3:GetBucketVersioning` on the destination bucket")]
    DstGetVersioningNotPermitted,
    /// The destination's KMS key is disabled or about to be deleted.
    #[strum(message = "enable the key, or change `encryption`")]
    DstKmsKeyInvalidState,
    /// The destination's KMS key does not exist.
    #[strum(message = "correct `encryption.key` or `key_map`; replicate the multi-Region key")]
    DstKmsKeyNotFound,
    /// Listing the destination's versions is not permitted.
    #[strum(message = "allow `s3:ListBucketVersions` on the destination bucket")]
    DstListVersionsNotPermitted,
    /// Aborting a multipart upload is not permitted.
    #[strum(message = "allow `s3:AbortMultipartUpload`")]
    DstMultipartAbortNotPermitted,
    /// Completing a multipart upload is not permitted.
    #[strum(message = "allow `s3:PutObject`, `kms:Decrypt`, `kms:GenerateDataKey`")]
    DstMultipartCompleteNotPermitted,
    /// Creating a multipart upload is not permitted.
    #[strum(
        message = "allow `s3:PutObject`, `kms:Decrypt`, `kms:GenerateDataKey`; \
                   `s3:PutObjectTagging` for objects with tags; `s3:PutObjectRetention`, \
                   `s3:PutObjectLegalHold` for locked ones"
    )]
    DstMultipartInitNotPermitted,
    /// Uploading a part is not permitted.
    #[strum(message = "allow `s3:PutObject`, `kms:Decrypt`, `kms:GenerateDataKey`")]
    DstMultipartUploadNotPermitted,
    /// The destination does not implement what the replica needs.
    #[strum(message = "change the rule, or the store")]
    DstNotImplemented,
    /// Writing an object at the destination is not permitted.
    #[strum(
        message = "allow the action that the detail names, the same ones as for \
                   `DstMultipartInitNotPermitted`"
    )]
    DstPutObjectNotPermitted,
    /// Writing tags at the destination is not permitted.
    #[strum(message = "allow `s3:PutObjectTagging`, `s3:PutObjectVersionTagging`")]
    DstPutTaggingNotPermitted,
    /// The destination keeps versions and answered a write without a version id.
    #[strum(message = "use another store: this one does not version the key")]
    DstVersionIdMissing,
    /// The replica that a change belongs to is not at the destination.
    #[strum(message = "none; look for a lifecycle rule at the destination if unexpected")]
    DstVersionNotFound,
    /// Reading at the destination is not permitted.
    #[strum(
        message = "allow `s3:GetObject`, `s3:GetObjectVersion`, `s3:ListBucket` at the \
                   destination"
    )]
    DstHeadObjectNotPermitted,
    /// The source bucket is in another Region than its account's.
    #[strum(message = "use an account with the bucket's Region")]
    SrcBucketInvalidRegion,
    /// The source bucket does not exist.
    #[strum(message = "correct the rule")]
    SrcBucketNotFound,
    /// The source bucket keeps no versions, so a delete leaves nothing that could be replicated.
    #[strum(message = "enable versioning at the source; delete the replica if it is not wanted")]
    SrcBucketUnversioned,
    /// Reading the object is not permitted.
    #[strum(message = "allow `s3:GetObjectVersion`, `s3:ListBucket`, `kms:Decrypt` at the source")]
    SrcGetObjectNotPermitted,
    /// Reading its tags is not permitted.
    #[strum(message = "allow `s3:GetObjectVersionTagging` at the source")]
    SrcGetTaggingNotPermitted,
    /// The source has user metadata that no header can hold (`x-amz-missing-meta`), so HTTP cannot
    /// transfer it.
    #[strum(message = "rewrite the object's metadata")]
    SrcMetadataUnreadable,
    /// Listing the source's versions is not permitted.
    #[strum(message = "allow `s3:ListBucketVersions` on the source bucket")]
    SrcListVersionsNotPermitted,
    /// The source does not implement what reading the version needs.
    #[strum(message = "use another store as the source")]
    SrcNotImplemented,
    /// The source's KMS key is disabled, unknown or not ours to use.
    #[strum(message = "enable the key, allow `kms:Decrypt`")]
    SrcKmsKeyInvalidState,
    /// The object is of a kind that cannot be replicated: archived, or encrypted with a key that
    /// only its owner has.
    #[strum(
        message = "write the object anew; a restore or a changed rule does not bring it back by \
                   itself"
    )]
    SrcObjectNotEligible,
    /// The replicator did not write the object at the destination, and the rule says to keep it.
    #[strum(
        message = "under `\"keep\"` remove that object, then write the source object anew; under \
                   `\"adopt\"` nothing"
    )]
    DstObjectForeign,
    /// A part of this object would not fit into the memory budget.
    #[strum(message = "raise `memory`")]
    MemoryBudgetTooSmall,
    /// The bytes that arrived are not the bytes the source states.
    #[strum(message = "find what changes bytes in transit: a proxy, a defective store")]
    ChecksumMismatch,
    /// The version came after a newer one had been written.
    #[strum(
        message = "an older version is not written over a newer one, unless `backfill --rewrite-history` asks for it"
    )]
    ArrivedLate,
    /// The version was lost at the source before it was read.
    #[strum(message = "none; a delete or a lifecycle rule came before the event was processed")]
    SrcVersionNotFound,
    /// The rule's version deletes have removed as many replicas in this hour as they may.
    #[strum(
        message = "check that the deletes are wanted; the tasks go on by themselves. Move \
                   dead-letter messages back"
    )]
    VersionDeletesPerHour,
    /// The service refused the request as wrong in itself.
    #[strum(message = "see the detail; usually a limit of the store")]
    RequestRefused,
    /// The answer cannot be read, so what came of the request is not known.
    #[strum(message = "look for a defect of the store, or of a proxy before it")]
    AnswerUnreadable,
    /// Attempts failed for the key's own sake for an hour, or until a message of a work queue was
    /// received twenty times more, or a hundred times in all.
    #[strum(message = "see the detail, which is the last error")]
    RetriesExhausted,
    /// The stamp has no room beside the user's own metadata.
    #[strum(message = "none; the replica is known to this daemon's ledger alone")]
    StampTooLarge,
    /// The stamp of an object at the destination is contradicted by its original, its date or its
    /// content.
    #[strum(message = "find the writer: the stamp was copied or forged")]
    StampNotBorneOut,
    /// A replica is there that this daemon did not write, though it is the only one that may.
    #[strum(message = "stop all daemons but one, or use a work queue")]
    AnotherDaemonWrites,
    /// The rewritten key is one that S3 cannot hold.
    #[strum(message = "shorten `destination.prefix`")]
    DstKeyTooLong,
    /// The key has more versions than are read, or its list does not end.
    #[strum(message = "expire noncurrent versions, or `history = \"latest\"`")]
    KeyVersionsTooMany,
    /// A bug in the daemon ended the work on the key.
    #[strum(message = "report it, with the log")]
    TaskPanicked,
    /// The message could not be read as an event.
    #[strum(message = "see the log's `detail` and the sender")]
    MessageUndecodable,
    /// The message names a bucket that no rule has.
    #[strum(message = "correct the notification or the rules, then move the message back")]
    BucketUnknown,
}

impl Reason {
    /// Every reason there is.
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// Returns the code.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Says in a sentence what is the matter.
    pub fn sentence(self) -> &'static str {
        self.get_documentation().unwrap_or_default()
    }

    /// Says what puts it right, in the words of `docs/operations.md`.
    pub fn remedy(self) -> &'static str {
        self.get_message().unwrap_or_default()
    }
}

impl FailureKind {
    /// Returns the reason's code, or the kind's own name.
    pub fn reason_code(self) -> &'static str {
        if let Self::NeedsOperator(reason) | Self::Ineligible(reason) = self {
            return reason.into();
        }
        if self == Self::SourceVersionMissing {
            return Reason::SrcVersionNotFound.into();
        }
        self.into()
    }
}

impl Failure {
    /// Makes a failure without a deeper cause.
    pub fn new(kind: FailureKind, operation: Operation) -> Self {
        Self {
            kind,
            operation,
            dependency: None,
            rule: None,
            answer: None,
            is_unreadable: false,
            header: None,
            source: None,
        }
    }

    /// Makes a failure with its cause.
    pub fn with_source(
        kind: FailureKind,
        operation: Operation,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self {
            source: Some(source.into()),
            ..Self::new(kind, operation)
        }
    }

    /// Names the dependency that failed.
    #[must_use]
    pub fn of(mut self, dependency: Dependency) -> Self {
        self.dependency = Some(dependency);
        self
    }

    /// Says that bytes came back that cannot be read as an answer.
    #[must_use]
    pub fn with_unreadable_answer(mut self) -> Self {
        self.is_unreadable = true;
        self
    }

    /// Says which rule it was for.
    #[must_use]
    pub fn under(mut self, rule: &str) -> Self {
        self.rule = Some(rule.into());
        self
    }

    /// Says whether the other side answered: what it says then is about this request alone. Not
    /// where it had trouble of its own, or did not take the credentials.
    pub fn is_answer(&self) -> bool {
        let is_heard = self.is_unreadable || self.answer.is_some_and(|answer| answer.status < 500);
        is_heard && self.kind != FailureKind::Unauthenticated
    }

    /// Names the dependency that may be failing for every request, as far as this failure shows.
    pub fn suspected_dependency(&self) -> Option<Dependency> {
        let is_trouble = matches!(
            self.kind,
            FailureKind::OutcomeUnknown | FailureKind::Transient | FailureKind::Unauthenticated
        );
        self.dependency.filter(|_| is_trouble && !self.is_answer())
    }

    /// Says what to do.
    pub fn next_action(&self) -> Action {
        match self.kind {
            FailureKind::PreconditionFailed
            | FailureKind::ConcurrentWrite
            | FailureKind::NotFound
            | FailureKind::FeatureDisabled => Action::Replan,
            FailureKind::NotImplemented if self.dependency == Some(Dependency::Source) => {
                Action::Park(Reason::SrcNotImplemented)
            }
            FailureKind::NotImplemented => Action::Park(Reason::DstNotImplemented),
            FailureKind::OutcomeUnknown => Action::WaitThenReplan,
            FailureKind::Transient | FailureKind::Unauthenticated | FailureKind::LeaseUnsure => {
                Action::Retry
            }
            FailureKind::Throttled => Action::Throttle,
            FailureKind::NeedsOperator(reason) => Action::Park(reason),
            FailureKind::SourceVersionMissing => Action::Gone,
            FailureKind::Ineligible(reason) => Action::Unsupported(reason),
        }
    }
}

/// Writes an error with everything that caused it, as far as a person would read: it is logged and
/// kept for each key, and services can say anything.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = Excerpt(String::new());
    let mut cause = Some(error);
    while let Some(error) = cause {
        let colon = if text.0.is_empty() { "" } else { ": " };
        cause = error.source();
        // It is full, and says so.
        if write!(text, "{colon}{error}").is_err() {
            break;
        }
    }
    text.0
}

/// A text that takes no more than so much.
struct Excerpt(String);

// Some ten lines; what services say when they refuse has one or two.
const CHAIN_BYTES_MAX: usize = 1024;
const CUT: &str = " […]";

impl fmt::Write for Excerpt {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let room = (CHAIN_BYTES_MAX - CUT.len()).saturating_sub(self.0.len());
        if more.len() <= room {
            self.0.push_str(more);
            return Ok(());
        }
        self.0.push_str(
            more.get(..more.floor_char_boundary(room))
                .unwrap_or_default(),
        );
        self.0.push_str(CUT);
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_answer_to_a_write_is_never_just_retried() {
        assert_eq!(
            Failure::new(FailureKind::OutcomeUnknown, Operation::PutObject).next_action(),
            Action::WaitThenReplan
        );
    }

    #[test]
    fn silence_and_500_suspect_the_dependency_and_other_answers_the_request() {
        let destination = Some(Dependency::Destination);
        let silent = |kind| Failure::new(kind, Operation::PutObject).of(Dependency::Destination);
        let answered = |kind, status| {
            Failure {
                answer: Some(ResponseInfo {
                    status,
                    is_own: true,
                }),
                ..silent(kind)
            }
            .suspected_dependency()
        };
        for kind in [FailureKind::Transient, FailureKind::OutcomeUnknown] {
            assert_eq!(silent(kind).suspected_dependency(), destination);
            assert_eq!(answered(kind, 500), destination);
            assert_eq!(answered(kind, 400), None, "BadDigest, say");
            assert_eq!(answered(kind, 200), None, "a body that is no XML");
            assert_eq!(
                silent(kind).with_unreadable_answer().suspected_dependency(),
                None,
                "too many headers"
            );
        }
        assert_eq!(answered(FailureKind::Unauthenticated, 400), destination);
        assert_eq!(
            answered(FailureKind::NeedsOperator(Reason::DstBucketNotFound), 404),
            None
        );
        assert_eq!(
            Failure::new(FailureKind::Transient, Operation::AccessLedger).suspected_dependency(),
            None
        );
    }

    #[test]
    fn what_a_service_says_is_kept_as_far_as_a_person_would_read() {
        let text_of = |length: usize| {
            let failure = Failure::with_source(
                FailureKind::NeedsOperator(Reason::RequestRefused),
                Operation::PutObject,
                "ü".repeat(length),
            );
            error_chain(&failure)
        };
        assert_eq!(text_of(3), "PutObject was refused (RequestRefused): üüü");
        for length in (400..600).chain([60_000, 10 << 20]) {
            let text = text_of(length);
            assert!(
                text.len() <= CHAIN_BYTES_MAX && (text.ends_with(CUT) || text.ends_with('ü')),
                "{length}: {text}"
            );
        }
        assert!(text_of(60_000).len() > CHAIN_BYTES_MAX - 4);
    }

    #[test]
    fn a_refusal_is_parked_with_native_replications_code() {
        let failure = Failure::new(
            FailureKind::NeedsOperator(Reason::DstPutObjectNotPermitted),
            Operation::PutObject,
        );
        assert_eq!(
            failure.next_action(),
            Action::Park(Reason::DstPutObjectNotPermitted)
        );
        assert_eq!(
            failure.to_string(),
            "PutObject was refused (DstPutObjectNotPermitted)"
        );
    }
}
