//! Events that wait hidden in their queue, for the delay of a version delete or until a work queue
//! takes messages: a bounded number, because a queue that has 120,000 messages in flight gives out
//! no more.
//! <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html>

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use replicator_core::failure::Reason;
use tokio::time::Instant;

use crate::message::{AckAction, Message};
use crate::metrics::Metrics;

/// When they come back.
#[derive(Debug, Default)]
pub(crate) struct HiddenEvents(BinaryHeap<Reverse<Instant>>);

// Several daemons receive from one queue, and each counts its own.
const AWAY_MAX: usize = 10_000;

impl HiddenEvents {
    /// Says what becomes of an event that has to wait for so long.
    pub(crate) fn disposal(
        &mut self,
        message: &Message,
        wait: Duration,
        metrics: &Metrics,
    ) -> AckAction {
        match self.goes_for(wait) {
            true => AckAction::ReturnAfter(wait),
            false => message.refuse_and_park(
                metrics,
                Reason::VersionDeletesPerHour,
                "too many of them wait for their delay",
            ),
        }
    }

    /// Records that one more is away for so long; returns false if there are too many.
    pub(crate) fn goes_for(&mut self, time: Duration) -> bool {
        let now = Instant::now();
        while self.0.peek().is_some_and(|Reverse(back)| *back <= now) {
            self.0.pop();
        }
        let has_room = self.0.len() < AWAY_MAX;
        if has_room {
            self.0.push(Reverse(now + time));
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_so_many_are_away_at_once() {
        let (mut away, delay) = (HiddenEvents::default(), Duration::from_secs(900));
        assert!((0..AWAY_MAX).all(|_| away.goes_for(delay)));
        assert!(!away.goes_for(delay));
        tokio::time::advance(delay).await;
        assert!(away.goes_for(delay), "they are back");
    }
}
