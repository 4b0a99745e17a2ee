//! The only module that reads the wall clock.

use std::cell::Cell;
use std::ops::{Add, Sub};
use std::sync::OnceLock;
use std::time::Duration;

use replicator_core::object::Timestamp;
use rustix::time::{ClockId, Timespec, clock_gettime};
use tokio::time::Instant;

thread_local! {
    static SIMULATED: Cell<Option<(Timestamp, Instant)>> = const { Cell::new(None) };
}

/// Lets the time of this thread be `beginning` now, and go with the runtime's clock from here on.
/// For simulations, whose clock stands still and jumps.
pub fn simulate(beginning: Timestamp) {
    SIMULATED.set(Some((beginning, Instant::now())));
}

/// Returns the current time.
#[allow(
    clippy::disallowed_methods,
    reason = "every other file gets the time from here"
)]
pub(crate) fn now() -> Timestamp {
    match SIMULATED.get() {
        Some((beginning, since)) => beginning + since.elapsed(),
        None => Timestamp::from(std::time::SystemTime::now()),
    }
}

// Services refuse what was signed a quarter of an hour from their time, and a time zone that is set
// wrong makes fourteen hours. What is further off is a broken clock, or a forged date.
const ERROR_MAX: time::Duration = time::Duration::DAY;

/// Says whether a time that a service says it is now may be true.
pub(crate) fn is_near(time: Timestamp) -> bool {
    (now() - time).abs() <= ERROR_MAX
}

/// Returns a time so much later, or the last one that there is: a time that a server states may be
/// the end of all time.
pub(crate) fn saturating_later(time: Timestamp, by: Duration) -> Timestamp {
    time.saturating_add(time::Duration::try_from(by).unwrap_or(time::Duration::MAX))
}

/// A moment on the runtime's clock, to which the time is added that the machine slept: that clock
/// stands still meanwhile, and the world does not. What other daemons and clients may do in the
/// meantime is judged by this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BootInstant(Instant);

impl BootInstant {
    pub(crate) fn now() -> Self {
        Self(Instant::now() + time_asleep())
    }

    /// Returns how long ago it was.
    pub(crate) fn elapsed(self) -> Duration {
        Self::now().since(self)
    }

    /// Returns how much later it is than another one; nothing if it is earlier.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }
}

impl Add<Duration> for BootInstant {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0 + by)
    }
}

impl Sub<Duration> for BootInstant {
    type Output = Self;

    fn sub(self, by: Duration) -> Self {
        Self(self.0 - by)
    }
}

/// Returns for how long the machine has slept since the first call, in whole seconds: the two
/// clocks are read one after the other.
fn time_asleep() -> Duration {
    static AT_FIRST: OnceLock<Duration> = OnceLock::new();
    #[cfg(test)]
    if let Some(slept) = SLEPT.get() {
        return slept;
    }
    if SIMULATED.get().is_some() {
        return Duration::ZERO;
    }
    let apart = since_boot(ClockId::Boottime).saturating_sub(since_boot(ClockId::Monotonic));
    Duration::from_secs(
        apart
            .saturating_sub(*AT_FIRST.get_or_init(|| apart))
            .as_secs(),
    )
}

fn since_boot(clock: ClockId) -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
    Duration::new(
        u64::try_from(tv_sec).unwrap_or(0),
        u32::try_from(tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
thread_local! {
    static SLEPT: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// Lets the machine have slept for so long, as this thread sees it.
#[cfg(test)]
pub(crate) fn sleep_through(time: Duration) {
    SLEPT.set(Some(time_asleep() + time));
}

/// Returns the seconds from `past` until now, never negative: clocks of two hosts differ.
pub(crate) fn seconds_since(past: Timestamp) -> f64 {
    (now() - past).as_seconds_f64().max(0.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMES: std::ops::RangeInclusive<i64> = -377_705_116_800..=253_402_300_799;

    proptest! {
        #[test]
        fn no_time_and_no_distance_is_too_much(seconds in TIMES, by in any::<u64>(), nanos in 0..1_000_000_000_u32) {
            let time = Timestamp::from_unix_timestamp(seconds).unwrap();
            let later = saturating_later(time, Duration::new(by, nanos));
            prop_assert!(later >= time);
            prop_assert_eq!(is_near(time), (now().unix_timestamp() - seconds).abs() <= 86_400);
            prop_assert!(seconds_since(later) >= 0.0);
        }
    }

    #[test]
    fn the_ends_of_time_are_not_near() {
        for seconds in [*TIMES.start(), 0, *TIMES.end()] {
            let end = Timestamp::from_unix_timestamp(seconds).unwrap();
            assert!(!is_near(end), "{end}");
        }
        let end = Timestamp::from_unix_timestamp(*TIMES.end()).unwrap();
        assert_eq!(saturating_later(end, Duration::from_secs(1)).year(), 9999);
        assert!(is_near(now()));
    }

    #[test]
    fn what_the_machine_slept_counts() {
        let before = BootInstant::now();
        sleep_through(Duration::from_secs(3600));
        assert!(before.elapsed() >= Duration::from_secs(3600));
    }
}
