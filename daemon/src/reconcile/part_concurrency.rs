//! How many parts of one object are on their way at a time: few at first, and more while each needs
//! little of its time. What the whole daemon has on its way is for the memory budget to say.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use replicator_core::parts::Part;
use replicator_core::retry::body_timeout;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

/// The parts of one object.
#[derive(Debug)]
pub(super) struct PartConcurrency {
    room: Semaphore,
    width: AtomicUsize,
    over: CancellationToken,
}

// Four parts of 16 MiB in flight fill a connection of 1 Gbit/s over 500 ms of round trip.
const WIDTH_FIRST: usize = 4;

/// As many as fill 10 Gbit/s:
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance-guidelines.html>
pub(super) const WIDTH_MAX: usize = 16;

// Four times as many take four times as long where the line is full, and still half of their time
// is left.
const SWIFT: u32 = 8;

impl PartConcurrency {
    pub(super) fn new() -> Self {
        Self {
            room: Semaphore::new(WIDTH_FIRST),
            width: AtomicUsize::new(WIDTH_FIRST),
            over: CancellationToken::new(),
        }
    }

    /// Waits until one more may be on its way; none when no more are to begin.
    pub(super) async fn begin(&self) -> Option<SemaphorePermit<'_>> {
        self.room.acquire().await.ok()
    }

    /// Learns from a part that is through.
    pub(super) fn part_took(&self, part: Part, time: Duration) {
        let is_swift = time * SWIFT < body_timeout(part.len);
        if is_swift && self.width.fetch_add(1, Ordering::Relaxed) < WIDTH_MAX {
            self.room.add_permits(1);
        }
    }

    /// Lets none begin any more. Those that are on their way go on: what they carry counts with the
    /// next try.
    pub(super) fn end(&self) {
        self.room.close();
        self.over.cancel();
    }

    /// Waits until none is to begin any more.
    pub(super) async fn over(&self) {
        self.over.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: Part = Part {
        number: 1,
        offset: 0,
        len: 16 << 20,
    };

    #[test]
    fn swift_parts_make_room_for_more_up_to_a_bound_and_slow_ones_for_none() {
        let (swift, slow) = (body_timeout(PART.len) / 9, body_timeout(PART.len) / 8);
        let abreast = PartConcurrency::new();
        abreast.part_took(PART, slow);
        assert_eq!(abreast.room.available_permits(), WIDTH_FIRST);
        abreast.part_took(PART, swift);
        assert_eq!(abreast.room.available_permits(), WIDTH_FIRST + 1);
        (0..100).for_each(|_| abreast.part_took(PART, swift));
        assert_eq!(abreast.room.available_permits(), WIDTH_MAX);
    }
}
