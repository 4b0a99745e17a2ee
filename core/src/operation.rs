//! What a task was doing when something failed: an operation of a service's API, or a step of the
//! daemon's own.

use std::fmt;

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// An operation that can fail.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Operation {
            $($(#[$doc])* $name,)*
        }

        impl Operation {
            /// Returns the name that people read: the one in the service's API reference, if it has
            /// one.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

operations! {
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html>
    AbortMultipartUpload = "AbortMultipartUpload",
    /// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html>
    ChangeMessageVisibility = "ChangeMessageVisibility",
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html>
    CompleteMultipartUpload = "CompleteMultipartUpload",
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateMultipartUpload.html>
    CreateMultipartUpload = "CreateMultipartUpload",
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObject.html>
    DeleteObject = "DeleteObject",
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketVersioning.html>
    GetBucketVersioning = "GetBucketVersioning",
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html>
    GetObject = "GetObject",
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObjectTagging.html>
    GetObjectTagging = "GetObjectTagging",
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html>
    HeadObject = "HeadObject",
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListMultipartUploads.html>
    ListMultipartUploads = "ListMultipartUploads",
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html>
    ListObjectVersions = "ListObjectVersions",
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListParts.html>
    ListParts = "ListParts",
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html>
    PutObject = "PutObject",
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObjectTagging.html>
    PutObjectTagging = "PutObjectTagging",
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPart.html>
    UploadPart = "UploadPart",

    /// Looking an account of the configuration up.
    FindAccount = "account",
    /// Reading or writing the ledger.
    AccessLedger = "the ledger",
    /// Dividing an object into parts.
    LayOutParts = "part layout",
    /// Deciding what a rule replicates of an encrypted object.
    CheckEncryption = "encryption opt-in",
    /// Setting the storage class that a rule names.
    SetStorageClass = "storage class",
    /// Finding out whether a version is itself a replica of its destination.
    CheckOrigin = "replica of its destination",
    /// Repeating the deletion of a version.
    DeleteVersion = "version delete",
    /// Bringing a key up to date, pass by pass.
    Reconcile = "catching up",
    /// The whole task of a key.
    RunTask = "task",
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
