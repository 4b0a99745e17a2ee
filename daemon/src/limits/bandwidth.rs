//! A limit of bytes per second.

use std::num::{NonZeroU32, NonZeroU64};

use super::Counter;

#[derive(Debug)]
pub(super) struct Bandwidth {
    kibibytes: Counter,
    kibibytes_per_second: NonZeroU32,
    /// How many are taken in one turn: a large body lets small ones pass many times before it is through.
    turn: NonZeroU32,
}

// The limiter counts in u32; by the KiB that reaches 4 TiB/s.
const UNIT_BYTES: u64 = 1024;

const TURN_UNITS: NonZeroU32 = NonZeroU32::new(64).unwrap();

// What was not used is good for a quarter of a second, or one turn where that is longer: enough to make up for other waits
// between two bodies, and one part in forty of what passes in ten seconds.
const BURSTS_PER_SECOND: u32 = 4;

/// Counts the units of so many bytes.
pub(super) fn units(bytes: u64) -> u64 {
    bytes.div_ceil(UNIT_BYTES)
}

impl Bandwidth {
    pub(super) fn new(bytes_per_second: NonZeroU64) -> Self {
        let kibibytes_per_second = rate(bytes_per_second);
        let turn = kibibytes_per_second.min(TURN_UNITS);
        let burst =
            NonZeroU32::new(kibibytes_per_second.get() / BURSTS_PER_SECOND).map_or(turn, |burst| burst.max(turn));
        let kibibytes = Counter::new(kibibytes_per_second, burst);
        Self { kibibytes, kibibytes_per_second, turn }
    }

    /// Says whether this is what such a limit comes to.
    pub(super) fn is_of(&self, bytes_per_second: NonZeroU64) -> bool {
        self.kibibytes_per_second == rate(bytes_per_second)
    }

    /// Waits until so many units have passed; returns how many are left when this limit no longer holds.
    pub(super) async fn pass(&self, mut left: u64, is_current: impl Fn() -> bool) -> u64 {
        while let Some(some) = self.next(left)
            && self.kibibytes.take(some, &is_current).await
        {
            left -= u64::from(some.get());
        }
        left
    }

    /// Returns how much is taken in one turn, which lasts a second at most.
    fn next(&self, left: u64) -> Option<NonZeroU32> {
        u32::try_from(left.min(u64::from(self.turn.get()))).ok().and_then(NonZeroU32::new)
    }
}

fn rate(bytes_per_second: NonZeroU64) -> NonZeroU32 {
    u32::try_from(units(bytes_per_second.get())).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MAX)
}
