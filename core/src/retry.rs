//! How long requests may take, how long after its sender stopped one may still take effect, and how
//! long to wait before trying again: with jitter, so that failures that began together do not come
//! back together.
//! <https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/>

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

/// Returns the full-jitter wait before the attempt after this one: a point, chosen by a jitter from
/// 0 to 1, between a few milliseconds and the ceiling. Attempts count from 1.
pub fn jittered_delay(attempt: u32, jitter: f64) -> Duration {
    let ceiling = delay_ceiling(attempt);
    between(FLOOR, ceiling, jitter)
}

/// Returns the longest wait after an attempt; it doubles with each until the cap.
pub fn delay_ceiling(attempt: u32) -> Duration {
    doubled(FIRST, attempt.saturating_sub(1), CAP)
}

/// Returns a wait that has doubled this many times, up to a longest.
pub fn doubled(first: Duration, doublings: u32, longest: Duration) -> Duration {
    first
        .saturating_mul(2_u32.saturating_pow(doublings))
        .min(longest)
}

/// Returns the equal-jitter wait of a ceiling: a point, chosen by a jitter from 0 to 1, between
/// half of it and all. A full jitter would bring some of what failed together back at once.
pub fn equal_jitter(ceiling: Duration, jitter: f64) -> Duration {
    between(ceiling / 2, ceiling, jitter)
}

fn between(shortest: Duration, longest: Duration, jitter: f64) -> Duration {
    let jitter = if jitter.is_nan() {
        1.0
    } else {
        jitter.clamp(0.0, 1.0)
    };
    (shortest + (longest - shortest).mul_f64(jitter)).min(longest)
}

// A wait of nothing would be a busy loop for the unlucky; this is about a round trip in a Region.
const FLOOR: Duration = Duration::from_millis(10);
// S3 answers again in well under a second after most 5xx.
const FIRST: Duration = Duration::from_millis(200);
// A recovered service is found again within a minute.
const CAP: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    #[test]
    fn the_ceiling_doubles_from_200_ms_to_a_minute() {
        let ceilings =
            [1, 2, 3, 8, 9, 10, 11, u32::MAX].map(|attempt| delay_ceiling(attempt).as_millis());
        assert_eq!(
            ceilings,
            [200, 400, 800, 25_600, 51_200, 60_000, 60_000, 60_000]
        );
        assert_eq!(delay_ceiling(0), delay_ceiling(1));
    }

    #[test]
    fn the_ends_of_the_jitter_give_the_floor_and_the_ceiling() {
        assert_eq!(jittered_delay(4, 0.0), FLOOR);
        assert_eq!(jittered_delay(4, 1.0), delay_ceiling(4));
    }

    #[test]
    fn a_jitter_that_is_no_fraction_does_no_harm() {
        for jitter in [f64::NAN, f64::INFINITY, 2.0, f64::MAX] {
            assert_eq!(jittered_delay(3, jitter), delay_ceiling(3));
        }
        for jitter in [f64::NEG_INFINITY, -1.0, -0.0] {
            assert_eq!(jittered_delay(3, jitter), FLOOR);
        }
    }

    #[test]
    fn an_equal_jitter_gives_half_of_the_ceiling_or_more() {
        let ceiling = Duration::from_secs(60);
        assert_eq!(equal_jitter(ceiling, 0.0), ceiling / 2);
        assert_eq!(equal_jitter(ceiling, f64::NAN), ceiling);
    }

    proptest! {
        #[test]
        fn a_wait_is_never_nothing_and_never_above_the_cap(attempt in any::<u32>(), jitter in any::<f64>()) {
            let delay = jittered_delay(attempt, jitter);
            prop_assert!(delay >= FLOOR);
            prop_assert!(delay <= delay_ceiling(attempt) && delay <= CAP);
        }

        #[test]
        fn the_ceiling_never_falls(attempt in 0..u32::MAX) {
            prop_assert!(delay_ceiling(attempt) <= delay_ceiling(attempt + 1));
        }

        #[test]
        fn more_jitter_is_never_a_shorter_wait(attempt in 0..20u32, a in 0.0..=1.0_f64, b in 0.0..=1.0_f64) {
            prop_assert!(jittered_delay(attempt, a.min(b)) <= jittered_delay(attempt, a.max(b)));
        }
    }
}
