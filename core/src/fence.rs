//! How long a write may live, and so how long the two kinds of write that no condition protects have
//! to wait (protocol rule 5): a marker over an object, and content that stood at the key before.

use std::time::Duration;

use crate::object::ETag;
use crate::parts::PART_BYTES_MIN;
use crate::plan::{Kind, SourceVersion};

/// What was read of the destination is trusted for this long; then it is looked at again before a
/// write goes out.
pub const READING_AGE_MAX: Duration = Duration::from_secs(15);

/// What is cut off at its deadline may still land for this long, because the server has read it.
pub const LANDING: Duration = Duration::from_secs(20);

/// S3 may take minutes to put a large upload together, and says so by white space:
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html>
pub const COMPLETE_TIMEOUT_MAX: Duration = Duration::from_secs(600);

// A request has this long to be answered, beside the time that its body takes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

// Slower than this a body is not waited for: 1 Mbit/s for each of the bodies in flight.
const BYTES_PER_SECOND_MIN: u64 = 128 << 10;

// Servers state when an object was written by the second.
const CLOCK_STEP: Duration = Duration::from_secs(1);

/// Returns the deadline of a request with a body of this size.
pub fn body_timeout(bytes: u64) -> Duration {
    ANSWER_TIMEOUT + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN)
}

/// Returns the deadline of the request that makes a multipart upload of this size visible.
pub fn complete_timeout(bytes: u64) -> Duration {
    if bytes > PART_BYTES_MIN { COMPLETE_TIMEOUT_MAX } else { body_timeout(bytes) }
}

/// Returns how old the destination's current entry has to be before nothing that was planned before
/// it can land any more: the longest life of any write that this history can be the reason for.
pub fn window(history: &[SourceVersion]) -> Duration {
    let life = |entry: &SourceVersion| body_timeout(entry.size_bytes).max(complete_timeout(entry.size_bytes));
    let longest = history.iter().map(life).fold(body_timeout(0), Duration::max);
    READING_AGE_MAX + longest + LANDING + CLOCK_STEP
}

/// Returns the window for a history of which not every version is known.
pub fn window_max() -> Duration {
    READING_AGE_MAX + COMPLETE_TIMEOUT_MAX + LANDING + CLOCK_STEP
}

/// Says whether a version's content stands at the key already, so that its replica may get an ETag
/// that another writer's condition takes for what it read long ago.
pub fn recurs<'a>(
    entry: &SourceVersion,
    history: &[SourceVersion],
    mut replicas: impl Iterator<Item = &'a ETag>,
) -> bool {
    // The ETag of an object in parts depends on the parts, which may be others than ours.
    let may_equal = |other: &SourceVersion| entry.size_bytes > PART_BYTES_MIN && other.size_bytes == entry.size_bytes;
    let same = |other: &&SourceVersion| other.kind == Kind::Object && (other.etag == entry.etag || may_equal(other));
    let older = history.iter().take_while(|other| other.version != entry.version);
    older.filter(same).count() > 0 || replicas.any(|etag| Some(etag) == entry.etag.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Timestamp, VersionId};
    use crate::plan::VersionRef;

    fn object(id: &str, etag: &str, size_bytes: u64) -> SourceVersion {
        let etag = ETag::try_from(etag).ok();
        let version = VersionRef::new(VersionId::try_from(id).unwrap(), Timestamp::UNIX_EPOCH, etag.as_ref());
        SourceVersion { version, kind: Kind::Object, etag, size_bytes }
    }

    #[test]
    fn the_window_outlives_every_write_of_the_history() {
        let small = [object("1", "a", 1 << 20)];
        assert_eq!(window(&[]), Duration::from_secs(15 + 30 + 20 + 1));
        assert_eq!(window(&small), Duration::from_secs(15 + 30 + 8 + 20 + 1));
        let large = [object("1", "a", 1 << 20), object("2", "b-9", 40 << 20)];
        assert!(window(&large) > READING_AGE_MAX + COMPLETE_TIMEOUT_MAX + LANDING);
        assert!(window(&[object("1", "a", 100 << 20)]) > body_timeout(100 << 20) + LANDING);
    }

    #[test]
    fn large_objects_of_one_size_may_be_the_same_whatever_their_parts() {
        let history = [object("1", "a-5", 40 << 20), object("2", "b", 1), object("3", "c-3", 40 << 20)];
        assert!(recurs(&history[2], &history, std::iter::empty()));
        assert!(window(&history) <= window_max());
    }

    #[test]
    fn content_recurs_when_it_stood_below_and_not_when_it_stands_above() {
        let history = [object("1", "a", 1), object("2", "b", 1), object("3", "a", 1)];
        let none = || std::iter::empty::<&ETag>();
        assert!(recurs(&history[2], &history, none()));
        assert!(!recurs(&history[0], &history, none()));
        assert!(!recurs(&history[1], &history, none()));
        let at_destination = ETag::try_from("b").unwrap();
        assert!(recurs(&history[1], &history, [&at_destination].into_iter()), "known by a replica alone");
    }
}
