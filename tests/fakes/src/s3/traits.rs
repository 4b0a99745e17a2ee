//! The ways in which endpoints that speak S3 differ from AWS, each to be set at any time.

use super::minds::Minded;

/// What an endpoint makes of a condition on a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Conditions {
    /// As AWS documents it.
    #[default]
    Honoured,
    /// 501 as soon as a condition is there.
    NotImplemented,
    /// The write is done as if there were no condition.
    Ignored,
    /// `If-None-Match: *` is refused over a delete marker as if it were an object; else as AWS.
    RefusedOverMarker,
}

/// Which of two multipart uploads of a key, or of an upload and a put, ends up on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// The one that was begun last: a Complete slots in below what was put since it began.
    #[default]
    LastInitiated,
    /// The one that was completed last.
    LastCompleted,
    /// The one that was completed last, but lists have them as they were begun.
    LastCompletedListedAsBegun,
}

/// How finely listings state times; headers always state whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resolution {
    /// Whole seconds.
    #[default]
    Seconds,
    /// Thousandths of a second.
    Milliseconds,
}

/// What the `sequencer` of an event is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sequencers {
    /// Grows with every event of a key, in texts of different lengths.
    #[default]
    Increasing,
    /// Always the same text.
    Constant,
}

/// The manners of an endpoint; the default is AWS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traits {
    /// Conditions on PutObject.
    pub put_conditions: Conditions,
    /// Conditions on CompleteMultipartUpload.
    pub complete_conditions: Conditions,
    /// Conditions on what CopyObject overwrites.
    pub copy_conditions: Conditions,
    /// Conditions on DeleteObject.
    pub delete_conditions: Conditions,
    /// What is current after multipart uploads.
    pub order: Order,
    /// The status of an `If-Match` over nothing, or of a write over a delete marker.
    pub match_over_nothing: u16,
    /// Whether a Complete with `If-None-Match: *` ends in 409 when the key was deleted since the
    /// upload began.
    pub conflicts_after_delete: bool,
    /// Whether the 404 of a deleted key says that a delete marker is there, and which.
    pub names_markers: bool,
    /// The status of a GET or HEAD of a delete marker by its version id: 405, or 404 as if it were
    /// nothing.
    pub marker_version: u16,
    /// Whether listings give all delete markers of a page first and then all its versions.
    pub lists_apart: bool,
    /// Whether listings give the version `null` behind all others of its key, whichever is current.
    pub lists_null_last: bool,
    /// Whether a page is filled folder by folder and sorted only then, so that it can leave out
    /// keys that belong on it.
    pub lists_by_folders: bool,
    /// Whether listings lack the newest entry of each key that has several.
    pub lists_lag: bool,
    /// Whether removing a version that is gone succeeds like the first time, or is a 400.
    pub removes_twice: bool,
    /// Whether aborting an upload that is gone succeeds like the first time, or is a 404.
    pub aborts_twice: bool,
    /// Whether an object whose writer sends no checksum gets one.
    pub adds_checksums: bool,
    /// Whether PutObject keeps the tags that come with it.
    pub keeps_tags_put: bool,
    /// Whether CreateMultipartUpload does.
    pub keeps_tags_uploaded: bool,
    /// Whether PutObjectTagging, which is answered 200, does something.
    pub keeps_tags_apart: bool,
    /// Whether values of headers may be other bytes than ASCII, or have no valid signature then.
    pub takes_raw_values: bool,
    /// Whether what can have a body has to say how long it is.
    pub wants_lengths: bool,
    /// How finely listings state times.
    pub last_modified: Resolution,
    /// What events say of their order.
    pub sequencers: Sequencers,
    /// The least size of a part that is not the last.
    pub part_bytes_min: usize,
    /// Whether the answer to a put of a key that ends in a slash names no version.
    pub folders_lack_versions: bool,
    /// Headers that are refused.
    pub minds: Vec<Minded>,
}

// https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
const PART_BYTES_MIN: usize = 5 << 20;

impl Traits {
    /// Returns the manners of AWS.
    pub fn aws() -> Self {
        Self {
            put_conditions: Conditions::Honoured,
            complete_conditions: Conditions::Honoured,
            copy_conditions: Conditions::Honoured,
            delete_conditions: Conditions::Honoured,
            order: Order::LastInitiated,
            match_over_nothing: 404,
            conflicts_after_delete: true,
            names_markers: true,
            marker_version: 405,
            lists_apart: false,
            lists_null_last: false,
            lists_by_folders: false,
            lists_lag: false,
            removes_twice: true,
            aborts_twice: false,
            adds_checksums: true,
            keeps_tags_put: true,
            keeps_tags_uploaded: true,
            keeps_tags_apart: true,
            takes_raw_values: false,
            wants_lengths: false,
            last_modified: Resolution::Seconds,
            sequencers: Sequencers::Increasing,
            part_bytes_min: PART_BYTES_MIN,
            folders_lack_versions: false,
            minds: Vec::new(),
        }
    }

    /// Returns the manners of LocalStack 4.9.2, as far as they can be set.
    pub fn localstack() -> Self {
        Self {
            copy_conditions: Conditions::Ignored,
            delete_conditions: Conditions::NotImplemented,
            order: Order::LastCompletedListedAsBegun,
            lists_apart: true,
            removes_twice: false,
            takes_raw_values: true,
            sequencers: Sequencers::Constant,
            ..Self::aws()
        }
    }

    /// Returns the manners of SeaweedFS 4.48, as far as they can be set.
    pub fn seaweedfs() -> Self {
        Self {
            order: Order::LastCompleted,
            match_over_nothing: 412,
            conflicts_after_delete: false,
            names_markers: false,
            marker_version: 404,
            lists_null_last: true,
            aborts_twice: true,
            adds_checksums: false,
            takes_raw_values: true,
            ..Self::aws()
        }
    }
}

impl Default for Traits {
    fn default() -> Self {
        Self::aws()
    }
}
