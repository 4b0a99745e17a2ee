//! A message's stages of life: received, in hand while its tasks work, settled.

use std::sync::Arc;
use std::time::Duration;

use replicator_config::Queue;
use replicator_core::event::{self, Notification, Undecodable};
use replicator_core::failure::Reason;
use replicator_core::object::Timestamp;

use crate::clock;
use crate::lease::Lease;
use crate::metrics::Metrics;
use crate::panics;

// Hosts that keep their time are closer than this.
const CLOCK_LEAD_MAX: Duration = Duration::from_secs(60);

/// A queue and the client that reaches it.
#[derive(Debug, Clone)]
pub(crate) struct QueueAccess {
    pub(crate) queue: Queue,
    pub(crate) client: aws_sdk_sqs::Client,
}

/// A message as it was received, hidden from others while it lives.
#[derive(Debug)]
pub(crate) struct Message {
    /// Unique in this process.
    pub(crate) number: u64,
    pub(crate) queue: Arc<QueueAccess>,
    pub(crate) id: String,
    pub(crate) receipt: String,
    pub(crate) body: String,
    /// How often it was delivered, this time included; 0 from a server that does not count.
    pub(crate) receive_count: u32,
    /// When it was sent, by the queue's own word: what it says of itself is its sender's.
    pub(crate) sent: Option<Timestamp>,
    pub(crate) lease: Lease,
}

/// A message and what it says, if that can be read.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) message: Message,
    pub(crate) notification: Result<Notification, Undecodable>,
}

/// A message that nobody works on any more, and what the queue shall do with it.
#[derive(Debug)]
pub(crate) struct Settlement {
    pub(crate) message: Message,
    pub(crate) disposal: Disposal,
}

/// What the queue shall do with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Disposal {
    /// Delete it: each of its tasks is settled.
    Delete,
    /// Keep it where parked messages are kept, then delete it.
    Park(Reason, String),
    /// Its tasks are parked in the ledger: pass it to the dead-letter queue if there is one.
    Pass(Reason),
    /// Deliver it again after this time.
    Release(Duration),
}

// What failed many times is tried four times an hour: soon enough after a repair, and a queue's
// maxReceiveCount of 100 lasts for a day.
pub(crate) const DELAY_MAX: Duration = Duration::from_secs(15 * 60);

/// Reads what a message says. One that meets a bug is kept like any that cannot be read.
pub(crate) fn parse_body(body: &str, metrics: &Metrics) -> Result<Notification, Undecodable> {
    panics::contain(metrics, || event::parse(body)).unwrap_or(Err(Undecodable::Bug))
}

impl Message {
    /// Says whether it was delivered before: then something may have begun that is not in the
    /// ledger. A server that does not count may have delivered it any number of times.
    pub(crate) fn redelivered(&self) -> bool {
        self.receive_count != 1
    }

    /// Returns how long ago it was sent; `None` where the queue's clock is so far ahead of ours that the time would not be
    /// over however often the message came. Where the queue does not say, a message that comes again has waited.
    pub(crate) fn age(&self, now: Timestamp) -> Option<Duration> {
        match self.sent {
            Some(sent) if sent > clock::later(now, CLOCK_LEAD_MAX) => None,
            Some(sent) => Some(Duration::try_from(now - sent).unwrap_or_default()),
            None if self.redelivered() => Some(Duration::MAX),
            None => Some(Duration::ZERO),
        }
    }

    /// Returns how long a failed message shall wait for its next delivery, given how long it
    /// should have waited after its first: a while between half of that and all.
    pub(crate) fn patience(&self, first: Duration) -> Duration {
        self.patience_up_to(first, DELAY_MAX)
    }

    /// The same, with another limit.
    pub(crate) fn patience_up_to(&self, first: Duration, most: Duration) -> Duration {
        spread(doubled(first, self.receive_count).min(most), fastrand::f64())
    }
}

/// What failed together shall not come back together; a jitter from nothing would bring some of it
/// back at once, at the cost of a receipt.
fn spread(delay: Duration, jitter: f64) -> Duration {
    delay.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

/// Each delivery counts against the queue's maxReceiveCount, so each doubles the delay.
fn doubled(first: Duration, receive_count: u32) -> Duration {
    let doublings = receive_count.saturating_sub(1);
    first.saturating_mul(2_u32.saturating_pow(doublings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_delivery_doubles_the_delay_up_to_a_quarter_of_an_hour() {
        let delays =
            [1, 2, 3, 4, 5, 6, u32::MAX].map(|count| doubled(Duration::from_secs(60), count).min(DELAY_MAX).as_secs());
        assert_eq!(delays, [60, 120, 240, 480, 900, 900, 900]);
    }

    #[test]
    fn a_delay_is_spread_between_half_of_it_and_all() {
        let spread = [0.0, 0.5, 1.0].map(|jitter| spread(DELAY_MAX, jitter).as_secs());
        assert_eq!(spread, [450, 675, 900]);
    }

    #[test]
    fn a_message_that_nobody_counts_waits_as_after_its_first_delivery() {
        assert_eq!(doubled(Duration::from_secs(3), 0), Duration::from_secs(3));
    }
}
