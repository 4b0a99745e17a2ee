//! How long to wait before trying again: full jitter, so that failures that began together do not
//! come back together.
//! <https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/>

use std::time::Duration;

/// Returns the wait before the attempt after this one: a point, chosen by a jitter from 0 to 1,
/// between a few milliseconds and the ceiling. Attempts count from 1.
pub fn jittered_delay(attempt: u32, jitter: f64) -> Duration {
    let jitter = if jitter.is_nan() {
        1.0
    } else {
        jitter.clamp(0.0, 1.0)
    };
    let ceiling = delay_ceiling(attempt);
    (FLOOR + (ceiling - FLOOR).mul_f64(jitter)).min(ceiling)
}

/// Returns the longest wait after an attempt; it doubles with each until the cap.
pub fn delay_ceiling(attempt: u32) -> Duration {
    let doublings = attempt.saturating_sub(1);
    FIRST
        .saturating_mul(2_u32.saturating_pow(doublings))
        .min(CAP)
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
