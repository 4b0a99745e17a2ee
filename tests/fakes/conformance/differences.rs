//! Where the stores differ from AWS.

/// A difference of a store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listed {
    pub(crate) case: &'static str,
    /// What the case comes to there.
    pub(crate) outcome: &'static str,
    /// Whether the fake does the same when it is told to be like that store.
    pub(crate) played: bool,
}

/// What the case comes to at a store that differs.
pub(crate) fn outcome(listed: &[Listed], case: &str) -> Option<&'static str> {
    listed
        .iter()
        .find(|listed| listed.case == case)
        .map(|listed| listed.outcome)
}

/// LocalStack 4.9.2.
pub(crate) const LOCALSTACK: &[Listed] = &[
    Listed {
        case: "CopyObject If-None-Match: * over nothing, an object, a delete marker",
        outcome: "ok, ok, ok",
        played: true,
    },
    Listed {
        case: "CopyObject If-Match: another ETag over nothing, an object, a delete marker",
        outcome: "ok, ok, ok",
        played: true,
    },
    Listed {
        case: "DeleteObject If-Match: another ETag over an object",
        outcome: "501 NotImplemented, current: 1",
        played: true,
    },
    Listed {
        case: "DeleteObject If-Match: the current ETag",
        outcome: "501 NotImplemented, history: 1",
        played: true,
    },
    Listed {
        case: "DeleteObject If-Match: * over an object, a delete marker",
        outcome: "501 NotImplemented, 501 NotImplemented, history of the latter: - 1",
        played: true,
    },
    Listed {
        case: "HeadObject of a delete marker by its version",
        outcome: "405, x-amz-delete-marker: none",
        played: false,
    },
    Listed {
        case: "a version is removed by its id, twice",
        outcome: "ok, 400 InvalidArgument, history: 2",
        played: true,
    },
    Listed {
        case: "ListObjectVersions mixes versions and delete markers, newest first",
        outcome: "- - 3 2 1",
        played: true,
    },
    Listed {
        case: "exactly the newest entry is the latest",
        outcome: "false true false",
        played: true,
    },
    Listed {
        case: "a key with a space, a plus and a control character, encoded",
        outcome: "a%20b%2B%01",
        played: false,
    },
    Listed {
        case: "an upload begun before a put and completed after it is not current",
        outcome: "current: 1, history: 2 1",
        played: true,
    },
    Listed {
        case: "an upload begun before a delete and completed after it stays hidden",
        outcome: "current: 2, history: - 2 1",
        played: true,
    },
    Listed {
        case: "of two uploads the one begun last is current, whichever ends last",
        outcome: "current: 1, history: 2 1",
        played: true,
    },
    Listed {
        case: "an Expires that is no date",
        outcome: "500 InternalError",
        played: false,
    },
    Listed {
        case: "HeadObject counts tags",
        outcome: "none",
        played: false,
    },
    Listed {
        case: "CopyObject of an older version onto its own key",
        outcome: "400 InvalidRequest",
        played: false,
    },
    Listed {
        case: "retention where the bucket has no Object Lock",
        outcome: "ok",
        played: false,
    },
    Listed {
        case: "MaxNumberOfMessages 0, 11",
        outcome: "ok, 400 InvalidParameterValue",
        played: false,
    },
    Listed {
        case: "VisibilityTimeout 43201 at ReceiveMessage",
        outcome: "ok",
        played: false,
    },
    Listed {
        case: "DelaySeconds 901",
        outcome: "ok",
        played: false,
    },
    Listed {
        case: "DeleteMessage by a receipt handle that is not the newest",
        outcome: "ok, 0 visible, 0 hidden, 0 delayed",
        played: false,
    },
    Listed {
        case: "ChangeMessageVisibility by a receipt handle that is not the newest",
        outcome: "ok",
        played: false,
    },
    Listed {
        case: "ChangeMessageVisibility when the visibility is over",
        outcome: "ok, 1 visible, 0 hidden, 0 delayed",
        played: false,
    },
    Listed {
        case: "ChangeMessageVisibility to -1, 43201, 40000, 0 seconds",
        outcome: "ok, ok, ok, ok",
        played: false,
    },
    Listed {
        case: "ChangeMessageVisibility to 12 hours from now, a second after the receipt",
        outcome: "ok",
        played: false,
    },
    Listed {
        case: "of two in flight the second is shown: it waits for the first",
        outcome: "a2 (2)",
        played: false,
    },
    Listed {
        case: "DeleteMessage in a FIFO queue by a receipt handle that is not the newest",
        outcome: "ok, 0 visible, 0 hidden, 0 delayed",
        played: false,
    },
    Listed {
        case: "HeadObject of what a disabled key encrypted, without and with its checksums",
        outcome: "ok, ok",
        played: false,
    },
    Listed {
        case: "the ETag of what a key encrypts is not the MD5",
        outcome: "the same",
        played: false,
    },
];

/// SeaweedFS 4.48.
pub(crate) const SEAWEEDFS: &[Listed] = &[
    Listed {
        case: "PutObject If-Match: another ETag over nothing, an object, a delete marker",
        outcome: "412 PreconditionFailed, 412 PreconditionFailed, 412 PreconditionFailed",
        played: true,
    },
    Listed {
        case: "CompleteMultipartUpload If-Match: another ETag over nothing, an object, a delete marker",
        outcome: "412 PreconditionFailed, 412 PreconditionFailed, 412 PreconditionFailed",
        played: true,
    },
    Listed {
        case: "CompleteMultipartUpload If-None-Match: * when the object was deleted since the upload began",
        outcome: "ok",
        played: true,
    },
    Listed {
        case: "CopyObject If-Match: another ETag over nothing, an object, a delete marker",
        outcome: "412 PreconditionFailed, 412 PreconditionFailed, 412 PreconditionFailed",
        played: true,
    },
    Listed {
        case: "HeadObject of a deleted key",
        outcome: "404, x-amz-delete-marker: none, its version is not named",
        played: true,
    },
    Listed {
        case: "GetObject of a deleted key",
        outcome: "404 NoSuchKey, x-amz-delete-marker: none, its version is not named",
        played: true,
    },
    Listed {
        case: "HeadObject of a delete marker by its version",
        outcome: "404, x-amz-delete-marker: none",
        played: true,
    },
    Listed {
        case: "GetObject of a delete marker by its version",
        outcome: "404 NoSuchKey, x-amz-delete-marker: none",
        played: true,
    },
    Listed {
        case: "PutObject under suspended versioning replaces null and keeps the rest",
        outcome: "history: 1 3",
        played: true,
    },
    Listed {
        case: "DeleteObject under suspended versioning replaces null by a delete marker",
        outcome: "null, history: 1 -",
        played: true,
    },
    Listed {
        case: "a key with a space, a plus and a control character, encoded",
        outcome: "a b+\\u{fffd}",
        played: false,
    },
    Listed {
        case: "an upload begun before a put and completed after it is not current",
        outcome: "current: 1, history: 1 2",
        played: true,
    },
    Listed {
        case: "an upload begun before a delete and completed after it stays hidden",
        outcome: "current: 2, history: 2 - 1",
        played: true,
    },
    Listed {
        case: "of two uploads the one begun last is current, whichever ends last",
        outcome: "current: 1, history: 1 2",
        played: true,
    },
    Listed {
        case: "AbortMultipartUpload twice",
        outcome: "ok, ok",
        played: true,
    },
    Listed {
        case: "an Expires that is no date",
        outcome: "400 MalformedDate",
        played: false,
    },
    Listed {
        case: "an object without a type",
        outcome: "application/octet-stream",
        played: false,
    },
    Listed {
        case: "HeadObject tells a checksum to those who ask",
        outcome: "Lb1nAmRU5LE= none",
        played: false,
    },
    Listed {
        case: "HeadObject tells the checksum that S3 adds by itself",
        outcome: "none none",
        played: true,
    },
    Listed {
        case: "CopyObject keeps metadata and tags but not the storage class",
        outcome: "a=1 tags=1 STANDARD_IA",
        played: false,
    },
    Listed {
        case: "CopyObject onto itself without a change",
        outcome: "ok",
        played: false,
    },
    Listed {
        case: "removing a version under GOVERNANCE, without and with bypass",
        outcome: "403 AccessDenied, 403 AccessDenied",
        played: false,
    },
];
