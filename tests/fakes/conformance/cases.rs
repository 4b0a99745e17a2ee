//! The cases, by subject.

use crate::case::{Case, Outcome};
use crate::ground::Ground;

mod conditions;
mod listing;
mod locks;
mod markers;
mod multipart;
mod objects;

/// All of them.
pub(crate) fn all() -> Vec<Case> {
    [conditions::CASES, markers::CASES, listing::CASES, multipart::CASES, objects::CASES, locks::CASES].concat()
}

// The documents that decide.
const WRITES: &str = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html";
const DELETES: &str = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-deletes.html";
const READS: &str = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-reads.html";
const MARKERS: &str = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/DeleteMarker.html";
const SUSPENDED: &str =
    "https://docs.aws.amazon.com/AmazonS3/latest/userguide/AddingObjectstoVersionSuspendedBuckets.html";
const VERSIONS: &str = "https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html";
const UPLOADS: &str = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html";
const COMPLETE: &str = "https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html";
const ABORT: &str = "https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html";
const CHECKSUMS: &str = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html";
const LOCK: &str = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-lock.html";
const METADATA: &str = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html";
const TAGS: &str = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html";
const RESTORING: &str = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/RestoringPreviousVersions.html";
const COPY: &str = "https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html";
const GET: &str = "https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html";
const HEAD: &str = "https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html";
const DELETE: &str = "https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObject.html";

/// Makes a case of a function.
macro_rules! case {
    ($name:literal, $document:ident, $run:ident, $aws:literal) => {
        Case {
            name: $name,
            document: super::$document,
            aws: $aws,
            run: |ground: Ground| -> Outcome { Box::pin($run(ground)) },
        }
    };
}
use case;

/// The key states that three outcomes are about.
const STATES: [&str; 3] = ["nothing", "object", "marker"];
