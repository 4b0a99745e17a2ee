//! The time of the fakes: a wall clock that goes with tokio's, so that it stops and jumps with it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// A wall clock: the time it was given at the start, plus what has passed on tokio's clock since.
#[derive(Debug, Clone)]
pub struct Clock {
    base: SystemTime,
    start: Instant,
}

impl Clock {
    /// Starts a clock that shows `base` now.
    pub fn starting_at(base: SystemTime) -> Self {
        Self {
            base,
            start: Instant::now(),
        }
    }

    /// Starts a clock that shows so many seconds since 1970 now.
    pub fn starting_at_unix(seconds: u64) -> Self {
        Self::starting_at(UNIX_EPOCH + Duration::from_secs(seconds))
    }

    /// Returns the wall time.
    pub fn now(&self) -> SystemTime {
        self.base + self.start.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_clock_follows_tokios_paused_time() {
        let clock = Clock::starting_at_unix(1_700_000_000);
        let before = clock.now();
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!(
            clock.now().duration_since(before).unwrap(),
            Duration::from_secs(90)
        );
        assert_eq!(before, UNIX_EPOCH + Duration::from_secs(1_700_000_000));
    }
}
