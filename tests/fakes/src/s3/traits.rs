//! The ways in which endpoints that speak S3 differ from AWS, each to be set at any time.

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
    /// Left out.
    Absent,
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
    /// Whether the 404 of a deleted key says that a delete marker is there, and which.
    pub names_markers: bool,
    /// The status of a HEAD of a delete marker by its version id.
    pub marker_version_head: u16,
    /// Whether listings give all versions of a page first and then all its delete markers.
    pub lists_apart: bool,
    /// How finely listings state times.
    pub last_modified: Resolution,
    /// What events say of their order.
    pub sequencers: Sequencers,
    /// The least size of a part that is not the last.
    pub part_bytes_min: usize,
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
            names_markers: true,
            marker_version_head: 405,
            lists_apart: false,
            last_modified: Resolution::Seconds,
            sequencers: Sequencers::Increasing,
            part_bytes_min: PART_BYTES_MIN,
        }
    }
}

impl Default for Traits {
    fn default() -> Self {
        Self::aws()
    }
}
