//! How long requests may take, and how long after its sender stopped one may still take effect:
//! what the next writer of a key has to wait for.

use std::time::Duration;

use crate::parts::PART_BYTES_MIN;

/// What was read of the destination is trusted for this long; then it is read again before a write
/// goes out.
pub const READING_AGE_MAX: Duration = Duration::from_secs(15);

/// What is cut off at its deadline may still land for this long, because the server has read it.
pub const LANDING: Duration = Duration::from_secs(20);

/// S3 may take minutes to put a large upload together, and says so by white space:
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html>
pub const COMPLETE_TIMEOUT_MAX: Duration = Duration::from_secs(600);

// A request has this long to be answered, beside the time that its body takes.
const WRITE_TIMEOUT_MIN: Duration = Duration::from_secs(30);

// Slower than this a body is not waited for: 1 Mbit/s for each of the bodies in flight.
const BYTES_PER_SECOND_MIN: u64 = 128 << 10;

/// Returns the deadline of a request with a body of this size.
pub fn body_timeout(bytes: u64) -> Duration {
    WRITE_TIMEOUT_MIN + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN)
}

/// Returns the deadline of the request that makes a multipart upload of this size visible.
pub fn complete_timeout(bytes: u64) -> Duration {
    if bytes > PART_BYTES_MIN {
        COMPLETE_TIMEOUT_MAX
    } else {
        body_timeout(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_body_has_the_time_that_a_slow_line_needs() {
        assert_eq!(body_timeout(0), Duration::from_secs(30));
        assert_eq!(body_timeout(1 << 20), Duration::from_secs(38));
        assert_eq!(
            complete_timeout(PART_BYTES_MIN),
            body_timeout(PART_BYTES_MIN)
        );
        assert_eq!(complete_timeout(PART_BYTES_MIN + 1), COMPLETE_TIMEOUT_MAX);
    }
}
