//! A limit of bytes per second.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::{Mutex, PoisonError};

use super::Counter;

#[derive(Debug)]
pub(super) struct Bandwidth {
    kibibytes: Counter,
    kibibytes_per_second: NonZeroU32,
    /// How many are taken in one turn: a large body lets small ones pass many times before it is
    /// through.
    turn: NonZeroU32,
    /// Bytes that have passed and make no KiB yet.
    rest: Mutex<u64>,
}

// The limiter counts in u32, and a time by the nanosecond for each: by the KiB that is exact to 0.1
// % up to 1 GiB/s.
const UNIT_BYTES: u64 = 1024;

const TURN_UNITS: NonZeroU32 = NonZeroU32::new(64).unwrap();

// Unused bandwidth can be made up for within a quarter of a second: enough for other waits between
// two bodies, and one part in forty of what passes in ten seconds.
const BURSTS_PER_SECOND: u32 = 4;

impl Bandwidth {
    pub(super) fn new(bytes_per_second: NonZeroU64) -> Self {
        let kibibytes_per_second = kibibyte_rate(bytes_per_second);
        let burst = NonZeroU32::new(kibibytes_per_second.get() / BURSTS_PER_SECOND)
            .unwrap_or(NonZeroU32::MIN);
        let turn = burst.min(TURN_UNITS);
        let kibibytes = Counter::new(kibibytes_per_second, burst);
        Self {
            kibibytes,
            kibibytes_per_second,
            turn,
            rest: Mutex::default(),
        }
    }

    /// Says whether this is what such a limit comes to.
    pub(super) fn is_of(&self, bytes_per_second: NonZeroU64) -> bool {
        self.kibibytes_per_second == kibibyte_rate(bytes_per_second)
    }

    /// Returns how many bytes pass in one turn.
    pub(super) fn turn_bytes(&self) -> u64 {
        u64::from(self.turn.get()) * UNIT_BYTES
    }

    pub(super) fn bytes_per_second(&self) -> u64 {
        u64::from(self.kibibytes_per_second.get()) * UNIT_BYTES
    }

    /// Waits until so many bytes, those of a turn at most, have passed, or this limit no longer
    /// holds.
    pub(super) async fn acquire_turn(&self, bytes: u64, is_current: impl Fn() -> bool) {
        if let Some(units) = self.take_units(bytes) {
            let _passed = self.kibibytes.take(units, is_current).await;
        }
    }

    /// Returns how many units to take for so many bytes; what makes no unit is counted with the
    /// next.
    fn take_units(&self, bytes: u64) -> Option<NonZeroU32> {
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        let all = *rest + bytes;
        let units = (all / UNIT_BYTES).min(u64::from(self.turn.get()));
        *rest = all - units * UNIT_BYTES;
        u32::try_from(units).ok().and_then(NonZeroU32::new)
    }
}

fn kibibyte_rate(bytes_per_second: NonZeroU64) -> NonZeroU32 {
    u32::try_from(bytes_per_second.get().div_ceil(UNIT_BYTES))
        .ok()
        .and_then(NonZeroU32::new)
        .unwrap_or(NonZeroU32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_counted_once_however_small_the_bodies() {
        let limit = Bandwidth::new(NonZeroU64::new(1 << 20).unwrap());
        for bytes in [1, 10, 1023, 1025, 1100, 64 << 10] {
            let taken: u64 = (0..10_000)
                .filter_map(|_| limit.take_units(bytes))
                .map(|units| u64::from(units.get()))
                .sum();
            let rest = *limit.rest.lock().unwrap();
            assert!(
                (taken * UNIT_BYTES).abs_diff(10_000 * bytes) <= UNIT_BYTES + rest,
                "{bytes}: {taken}"
            );
            assert!(rest < UNIT_BYTES);
        }
    }
}
