//! The one table of what the daemon's requests need: each action of IAM, where, for which requests,
//! and when a rule makes them.

use replicator_core::parts::PART_BYTES_MIN;
use replicator_core::rule::{BucketRef, Encryption, History, Rule};
use strum::Display;

/// Every action that the daemon's requests need.
///
/// Which action a request needs: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html>;
/// headers that S3 leaves out without a permission: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html>;
/// batches need what single requests do: <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-api-permissions-reference.html>;
/// keys: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingKMSEncryption.html>.
pub const PERMISSIONS: &[Permission] = {
    use Need::{
        Always, Check, DeleteMarkers, KmsReplicas, KmsSources, LatestHistory, Parts, VersionDeletes,
    };
    use Place::{
        DeadLetterQueue, DestinationBucket, DestinationKeys, EventBus, EventBusRules, EventsQueue,
        Replicas, Role, SourceBucket, SourceKeys, SourceObjects, WorkQueue,
    };
    const READS: &[&str] = &["GetObject", "HeadObject"];
    const LISTERS: &[&str] = &["GetObject", "HeadObject", "HeadBucket"];
    const PREFIX_LISTERS: &[&str] = &["GetObject", "HeadObject", "HeadBucket", "ListObjectsV2"];
    const WRITES: &[&str] = &["PutObject", "CreateMultipartUpload"];
    &[
        row(
            SourceBucket,
            "s3:ListBucketVersions",
            &["ListObjectVersions"],
            Always,
        ),
        // Without it what is not there is 403, too.
        row(SourceBucket, "s3:ListBucket", PREFIX_LISTERS, Always),
        row(
            SourceBucket,
            "s3:GetBucketVersioning",
            &["GetBucketVersioning"],
            Check,
        ),
        row(
            SourceBucket,
            "s3:GetBucketNotification",
            &["GetBucketNotificationConfiguration"],
            Check,
        ),
        row(
            SourceBucket,
            "s3:GetBucketObjectLockConfiguration",
            &["GetObjectLockConfiguration"],
            Check,
        ),
        row(SourceObjects, "s3:GetObjectVersion", READS, Always),
        row(SourceObjects, "s3:GetObject", READS, LatestHistory),
        row(
            SourceObjects,
            "s3:GetObjectVersionTagging",
            &["GetObject", "HeadObject", "GetObjectTagging"],
            Always,
        ),
        row(
            SourceObjects,
            "s3:GetObjectRetention",
            &["GetObject", "HeadObject", "GetObjectRetention"],
            Always,
        ),
        row(
            SourceObjects,
            "s3:GetObjectLegalHold",
            &["GetObject", "HeadObject", "GetObjectLegalHold"],
            Always,
        ),
        row(SourceKeys, "kms:Decrypt", READS, KmsSources),
        row(SourceKeys, "kms:DescribeKey", &["DescribeKey"], KmsSources),
        row(
            DestinationBucket,
            "s3:GetBucketVersioning",
            &["GetBucketVersioning"],
            Always,
        ),
        row(
            DestinationBucket,
            "s3:ListBucketVersions",
            &["ListObjectVersions"],
            Always,
        ),
        row(DestinationBucket, "s3:ListBucket", LISTERS, Always),
        row(
            DestinationBucket,
            "s3:GetBucketObjectLockConfiguration",
            &["GetObjectLockConfiguration"],
            Check,
        ),
        row(
            DestinationBucket,
            "s3:ListBucketMultipartUploads",
            &["ListMultipartUploads"],
            Parts,
        ),
        row(
            Replicas,
            "s3:PutObject",
            &[
                "PutObject",
                "CreateMultipartUpload",
                "UploadPart",
                "CompleteMultipartUpload",
            ],
            Always,
        ),
        row(Replicas, "s3:PutObjectTagging", WRITES, Always),
        row(
            Replicas,
            "s3:PutObjectVersionTagging",
            &["PutObjectTagging"],
            Always,
        ),
        row(Replicas, "s3:PutObjectRetention", WRITES, Always),
        row(Replicas, "s3:PutObjectLegalHold", WRITES, Always),
        row(Replicas, "s3:GetObject", READS, Always),
        row(Replicas, "s3:GetObjectVersion", READS, Always),
        // Of tags that no header has room for.
        row(
            Replicas,
            "s3:GetObjectVersionTagging",
            &["GetObjectTagging"],
            Always,
        ),
        row(
            Replicas,
            "s3:AbortMultipartUpload",
            &["AbortMultipartUpload"],
            Parts,
        ),
        row(
            Replicas,
            "s3:ListMultipartUploadParts",
            &["ListParts"],
            Parts,
        ),
        row(
            Replicas,
            "s3:DeleteObject",
            &["DeleteObject"],
            DeleteMarkers,
        ),
        row(
            Replicas,
            "s3:DeleteObjectVersion",
            &["DeleteObject"],
            VersionDeletes,
        ),
        row(DestinationKeys, "kms:GenerateDataKey", WRITES, KmsReplicas),
        row(
            DestinationKeys,
            "kms:Decrypt",
            &[
                "GetObject",
                "HeadObject",
                "UploadPart",
                "CompleteMultipartUpload",
            ],
            KmsReplicas,
        ),
        row(
            Place::ClientSideKeys,
            "kms:ReEncryptFrom",
            &["ReEncrypt"],
            Need::ClientSideKeys,
        ),
        row(
            Place::ClientSideKeys,
            "kms:ReEncryptTo",
            &["ReEncrypt"],
            Need::ClientSideKeys,
        ),
        row(
            Place::ClientSideKeys,
            "kms:Decrypt",
            &["Decrypt"],
            Need::ClientSideKeys,
        ),
        row(
            Place::ClientSideKeys,
            "kms:Encrypt",
            &["Encrypt"],
            Need::ClientSideKeys,
        ),
        row(
            DestinationKeys,
            "kms:DescribeKey",
            &["DescribeKey"],
            KmsReplicas,
        ),
        row(
            EventsQueue,
            "sqs:ReceiveMessage",
            &["ReceiveMessage"],
            Always,
        ),
        row(
            EventsQueue,
            "sqs:DeleteMessage",
            &["DeleteMessageBatch", "DeleteMessage"],
            Always,
        ),
        row(
            EventsQueue,
            "sqs:ChangeMessageVisibility",
            &["ChangeMessageVisibilityBatch"],
            Always,
        ),
        row(WorkQueue, "sqs:ReceiveMessage", &["ReceiveMessage"], Always),
        row(
            WorkQueue,
            "sqs:DeleteMessage",
            &["DeleteMessageBatch", "DeleteMessage"],
            Always,
        ),
        row(
            WorkQueue,
            "sqs:ChangeMessageVisibility",
            &["ChangeMessageVisibilityBatch"],
            Always,
        ),
        row(WorkQueue, "sqs:SendMessage", &["SendMessageBatch"], Always),
        row(DeadLetterQueue, "sqs:SendMessage", &["SendMessage"], Always),
        row(
            EventsQueue,
            "sqs:GetQueueAttributes",
            &["GetQueueAttributes"],
            Check,
        ),
        row(
            WorkQueue,
            "sqs:GetQueueAttributes",
            &["GetQueueAttributes"],
            Check,
        ),
        row(
            DeadLetterQueue,
            "sqs:GetQueueAttributes",
            &["GetQueueAttributes"],
            Check,
        ),
        row(Role, "sts:AssumeRole", &["AssumeRole"], Always),
        row(
            EventBus,
            "events:ListRuleNamesByTarget",
            &["ListRuleNamesByTarget"],
            Check,
        ),
        row(
            EventBus,
            "events:TestEventPattern",
            &["TestEventPattern"],
            Check,
        ),
        row(
            EventBusRules,
            "events:DescribeRule",
            &["DescribeRule"],
            Check,
        ),
        row(
            EventBusRules,
            "events:ListTargetsByRule",
            &["ListTargetsByRule"],
            Check,
        ),
    ]
};

const fn row(
    place: Place,
    action: &'static str,
    requests: &'static [&'static str],
    need: Need,
) -> Permission {
    Permission {
        place,
        action,
        requests,
        need,
    }
}

/// What an action is allowed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Display)]
pub enum Place {
    /// The bucket of a rule's source.
    #[strum(serialize = "source bucket")]
    SourceBucket,
    /// The objects there that the rule is about.
    #[strum(serialize = "source objects")]
    SourceObjects,
    /// The keys that these are encrypted under.
    #[strum(serialize = "source keys")]
    SourceKeys,
    /// The bucket of a rule's destination.
    #[strum(serialize = "destination bucket")]
    DestinationBucket,
    /// The replicas there.
    #[strum(serialize = "replicas")]
    Replicas,
    /// The keys that these are encrypted under.
    #[strum(serialize = "destination keys")]
    DestinationKeys,
    /// The keys that clients wrap data keys with, on both sides.
    #[strum(serialize = "client-side keys")]
    ClientSideKeys,
    /// A queue of events.
    #[strum(serialize = "events queues")]
    EventsQueue,
    /// A FIFO queue of work.
    #[strum(serialize = "work queues")]
    WorkQueue,
    /// A queue for what can't be done.
    #[strum(serialize = "dead-letter queues")]
    DeadLetterQueue,
    /// A role of the configuration.
    #[strum(serialize = "roles")]
    Role,
    /// EventBridge, where IAM knows nothing narrower.
    #[strum(serialize = "event buses")]
    EventBus,
    /// The rules of the event bus that a source bucket sends to.
    #[strum(serialize = "rules of event buses")]
    EventBusRules,
}

/// When an action is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Whatever the rules say.
    Always,
    /// To find mistakes in a set-up, by `check` and at every start; no task needs it.
    Check,
    /// `history = "latest"`.
    LatestHistory,
    /// `delete_markers`.
    DeleteMarkers,
    /// `version_deletes`.
    VersionDeletes,
    /// Objects that are large enough for parts.
    Parts,
    /// `sse_kms_objects`.
    KmsSources,
    /// `client_side_keys`.
    ClientSideKeys,
    /// `encryption` under a KMS key of the destination's.
    KmsReplicas,
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Permission {
    /// The action by IAM's name.
    pub action: &'static str,
    /// What it is allowed on.
    pub place: Place,
    /// The requests that need it, by the names of the services.
    pub requests: &'static [&'static str],
    /// When a rule needs it.
    pub need: Need,
}

impl Need {
    /// Says whether a rule needs it.
    pub(super) fn holds_for(self, rule: &Rule) -> bool {
        match self {
            Self::Always | Self::Check => true,
            Self::LatestHistory => rule.history == History::Latest,
            Self::DeleteMarkers => rule.delete_markers,
            Self::VersionDeletes => rule.version_deletes,
            Self::Parts => rule.filter.size_max.is_none_or(|max| max > PART_BYTES_MIN),
            Self::ClientSideKeys => !rule.client_side_keys.is_empty(),
            Self::KmsSources => rule.sse_kms_objects,
            Self::KmsReplicas => match &rule.encryption {
                Encryption::S3 => false,
                // The bucket's default key encrypts what no KMS key did.
                Encryption::Same { .. }
                | Encryption::BucketDefault
                | Encryption::Kms { .. }
                | Encryption::Dsse { .. } => true,
            },
        }
    }
}

/// Returns which of two keys an action is for, and the side that asks KMS: within a Region KMS wraps
/// data keys anew, across Regions the daemon does.
pub(super) fn client_key<'r>(
    action: &str,
    (from, to): (&'r String, &'r String),
    rule: &'r Rule,
) -> Option<(&'r str, &'r BucketRef)> {
    let region = |arn: &'r str| arn.split(':').nth(3);
    match (action, region(from) == region(to)) {
        ("kms:ReEncryptFrom", true) | ("kms:Decrypt", false) => Some((from, &rule.source)),
        ("kms:ReEncryptTo", true) => Some((to, &rule.source)),
        ("kms:Encrypt", false) => Some((to, &rule.destination)),
        _ => None,
    }
}

// Access points do not answer these, so they go to the bucket itself:
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/access-points-service-api-support.html
const BESIDE_ACCESS_POINTS: [&str; 2] = [
    "s3:GetBucketVersioning",
    "s3:GetBucketObjectLockConfiguration",
];

impl Permission {
    /// Says whether its requests go to the bucket itself, also where there is an access point.
    pub(super) fn is_beside_access_points(&self) -> bool {
        BESIDE_ACCESS_POINTS.contains(&self.action)
    }
}

/// Lists the rows of a place.
pub(super) fn rows(place: Place) -> impl Iterator<Item = &'static Permission> {
    let rows = PERMISSIONS.iter();
    rows.filter(move |permission| permission.place == place)
}

/// Lists the rows of a place that a rule needs.
pub(super) fn rows_of(place: Place, rule: &Rule) -> impl Iterator<Item = &'static Permission> {
    rows(place).filter(|permission| permission.need.holds_for(rule))
}
