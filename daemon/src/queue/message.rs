//! The states of a message: received, in flight while its tasks work, acknowledged.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use replicator_core::event::{self, DecodeError, DecodeProblem, Event, EventKind, Notification};
use replicator_core::failure::Reason;
use replicator_core::object::Timestamp;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::warn;

use crate::clock::{self, BootInstant};
use crate::metrics::{MessageOutcome, Metrics};
use crate::process;
use crate::sqs::lease::Lease;
use crate::sqs::work_queues::{Again, QueueAccess, ROUND_GROUP, WorkItem, digest_words, group_of};
use crate::task::{Ruleset, Task};

// Hosts that keep their time are closer than this.
const CLOCK_LEAD_MAX: Duration = Duration::from_secs(60);

/// A message as it was received, hidden from other workers while it lives.
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
    /// When it was sent, as the queue states it: the body states what its sender likes.
    pub(crate) sent: Option<Timestamp>,
    pub(crate) lease: Lease,
    /// When it was received: since then at the latest this daemon holds it.
    pub(crate) received: BootInstant,
    /// Its message group, if it came from a work queue.
    pub(crate) group: Option<String>,
    /// Why a worker sent it, if one did.
    pub(crate) again: Option<Again>,
    /// Its part of what may be in flight of its queue; given back on drop.
    #[expect(dead_code, reason = "held, not read")]
    pub(crate) place: Option<OwnedSemaphorePermit>,
}

/// A message and what it says, if that can be read.
#[derive(Debug)]
pub(crate) struct ReceivedMessage {
    pub(crate) message: Message,
    pub(crate) notification: Result<Notification, DecodeError>,
}

impl ReceivedMessage {
    /// Returns its events, and what becomes of it once their work is done: one that cannot be acted
    /// on, as a whole or in part, is parked.
    pub(crate) fn read(
        self,
        rules: &Ruleset,
        metrics: &Metrics,
    ) -> (Message, Vec<Event>, AckAction) {
        let (events, refusal) = match self.notification {
            Ok(Notification { mut events, .. }) => {
                for event in &mut events {
                    self.message.withhold_rewrite(rules, event);
                }
                let refusal = events.iter().find_map(|event| rules.refusal(event));
                (events, refusal)
            }
            Err(undecodable) => {
                let refusal = (Reason::MessageUndecodable, undecodable.to_string());
                (Vec::new(), Some(refusal))
            }
        };
        let action = match refusal {
            Some((reason, detail)) => self.message.refuse_and_park(metrics, reason, &detail),
            None => AckAction::Delete,
        };
        (self.message, events, action)
    }
}

/// A message whose work has ended, and what the queue shall do with it.
#[derive(Debug)]
pub(crate) struct AckRequest {
    pub(crate) message: Message,
    pub(crate) action: AckAction,
}

/// What the queue shall do with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AckAction {
    /// Delete it: each of its tasks is done, or needs no message any more.
    Delete,
    /// Send it to the dead-letter queue, then delete it: it cannot be acted on, or its tasks are
    /// parked in the ledger.
    DeadLetter(Reason),
    /// Deliver it again after this time.
    ReturnAfter(Duration),
    /// Send these to their work queues, then delete it.
    Forward(Vec<WorkItem>),
}

// What failed many times is tried four times an hour: soon enough after a repair, and a queue's
// maxReceiveCount of 1,000 lasts for ten days.
const DELAY_MAX: Duration = Duration::from_secs(15 * 60);

// A pause may be a short one, or end soon after it began.
const PAUSE_FIRST: Duration = Duration::from_secs(60);

// Within the two weeks for which SQS keeps a message at the longest, this makes 450 deliveries on
// average, half of the maxReceiveCount that docs/setup-aws.md gives to queues.
const PAUSE_MAX: Duration = Duration::from_secs(60 * 60);

/// Reads what a message says. One that meets a bug is kept like any that cannot be read.
pub(crate) fn parse_body(body: &str, metrics: &Metrics) -> Result<Notification, DecodeError> {
    process::contain(metrics, || event::parse_notification(body))
        .unwrap_or_else(|_| Err(DecodeError::new("message", DecodeProblem::Bug)))
}

impl Message {
    /// Says whether it was delivered before: then something may have begun that is not in the
    /// ledger. A server that does not count may have delivered it any number of times.
    pub(crate) fn is_redelivered(&self) -> bool {
        self.receive_count != 1
    }

    /// Says whether it is about all keys of a rule.
    pub(crate) fn is_round(&self) -> bool {
        let group = self.group.as_ref();
        group.is_some_and(|group| group.starts_with(ROUND_GROUP))
    }

    /// Makes a request to rewrite a history a mere reason to look, where it does not say of which
    /// destination: it is for that of its message group, or for the only one.
    fn withhold_rewrite(&self, rules: &Ruleset, event: &mut Event) {
        if event.action != EventKind::RewriteHistory {
            return;
        }
        let tasks = rules.tasks_for(event);
        let is_certain = match &self.group {
            Some(group) => tasks.iter().any(|task| group_of(&task.target) == *group),
            None => tasks.len() == 1,
        };
        if !is_certain {
            event.action = EventKind::Put;
        }
    }

    /// Says whether the ledger alone may not answer it: this message was delivered before, or one
    /// that it stands for.
    pub(crate) fn is_repeated(&self) -> bool {
        self.is_redelivered() || self.again.is_some()
    }

    /// Returns how long a version delete has to wait in the events queue, where it blocks nothing:
    /// any writer of the queue can tell of a version that is gone, and there is to be time to
    /// notice.
    pub(crate) fn delay_left(&self, task: &Task) -> Duration {
        let lead = &task.rules.primary;
        let removes = lead.version_deletes
            && task
                .events
                .iter()
                .any(|pending| pending.action == EventKind::VersionDelete);
        let delay = if removes {
            lead.version_delete_delay
        } else {
            Duration::ZERO
        };
        // Where the queue's clock does not tell the age, the second delivery tells that the delay
        // is over.
        match self.age(clock::now()) {
            Some(age) => delay.saturating_sub(age),
            None if self.is_redelivered() => Duration::ZERO,
            None => delay,
        }
    }

    /// Returns how long ago it was sent; `None` where the queue's clock is so far ahead of ours
    /// that the time would not be over however often the message came. Where the queue does not
    /// say, a message that comes again has waited.
    fn age(&self, now: Timestamp) -> Option<Duration> {
        match self.sent {
            Some(sent) if sent > clock::saturating_later(now, CLOCK_LEAD_MAX) => None,
            Some(sent) => Some(Duration::try_from(now - sent).unwrap_or_default()),
            None if self.is_redelivered() => Some(Duration::MAX),
            None => Some(Duration::ZERO),
        }
    }

    /// Returns the same message anew, for its own queue: no worker holds it when it is given out
    /// again. None where it came from a queue without message groups.
    fn afresh(&self) -> Option<WorkItem> {
        Some(WorkItem {
            url: self.queue.queue.url.clone(),
            group: self.group.clone()?,
            // A receipt is never given twice.
            deduplication: digest_words([self.receipt.as_str(), &self.id]),
            body: self.body.clone(),
            again: Some(self.again.unwrap_or(Again::Released)),
        })
    }

    /// Says what becomes of it when its work was not begun, or ended without a write: a work queue
    /// gets it anew, because a redelivery would be taken for a crash; others show it
    /// again after a while. One that was delivered before may follow a crash, and says so to the
    /// next worker too.
    pub(crate) fn given_back(&self, after: Duration) -> AckAction {
        let may_follow_write = self.is_redelivered() || self.lease.may_have_written();
        let anew = self.afresh().filter(|_| !may_follow_write);
        anew.map_or(AckAction::ReturnAfter(after), |item| {
            AckAction::Forward(vec![item])
        })
    }

    /// Tells that it cannot be acted on, and says what becomes of it.
    pub(crate) fn refuse_and_park(
        &self,
        metrics: &Metrics,
        reason: Reason,
        detail: &str,
    ) -> AckAction {
        let queue = self.queue.queue.name();
        let reason_code = reason.as_str();
        warn!(
            queue,
            message_id = self.id,
            reason = reason_code,
            detail,
            "message cannot be acted on, parking it"
        );
        metrics.count_failed("", reason_code);
        if reason == Reason::MessageUndecodable {
            metrics.count_message(queue, MessageOutcome::Undecodable);
        } else if reason == Reason::BucketUnknown {
            metrics.count_message(queue, MessageOutcome::UnknownBucket);
        }
        AckAction::DeadLetter(reason)
    }

    /// Says what becomes of it when its work is parked. The dead-letter queue has a retry already.
    pub(crate) fn parked(&self, reason: Reason) -> AckAction {
        match self.again.and_then(Again::parked) {
            Some(_) => AckAction::Delete,
            None => AckAction::DeadLetter(reason),
        }
    }

    /// Returns how long a failed message shall wait for its next delivery, given how long it
    /// should have waited after its first: a while between half of that and all.
    pub(crate) fn redelivery_delay(&self, first: Duration) -> Duration {
        equal_jitter(
            doubled_delay(first, self.receive_count).min(DELAY_MAX),
            fastrand::f64(),
        )
    }

    /// Returns how long a message of a paused rule shall wait for its next delivery.
    pub(crate) fn pause_delay(&self) -> Duration {
        let delay = doubled_delay(PAUSE_FIRST, self.receive_count);
        equal_jitter(delay.min(PAUSE_MAX), fastrand::f64())
    }
}

/// When the events of version deletes that wait for their delay come back: a bounded number
/// waits, because a queue that has 120,000 messages in flight gives out no more.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html>
#[derive(Debug, Default)]
pub(crate) struct DelayedEvents(BinaryHeap<Reverse<Instant>>);

// Several daemons receive from one queue, and each counts its own.
const DELAYED_MAX: usize = 10_000;

impl DelayedEvents {
    /// Says what becomes of an event that has to wait for so long.
    pub(crate) fn disposal(
        &mut self,
        message: &Message,
        wait: Duration,
        metrics: &Metrics,
    ) -> AckAction {
        match self.admit(wait) {
            true => AckAction::ReturnAfter(wait),
            false => message.refuse_and_park(
                metrics,
                Reason::VersionDeletesPerHour,
                "too many of them wait for their delay",
            ),
        }
    }

    /// Records that one more waits for so long; returns false if there are too many.
    fn admit(&mut self, wait: Duration) -> bool {
        let now = Instant::now();
        while self.0.peek().is_some_and(|Reverse(back)| *back <= now) {
            self.0.pop();
        }
        let has_room = self.0.len() < DELAYED_MAX;
        if has_room {
            self.0.push(Reverse(now + wait));
        }
        has_room
    }
}

/// What failed together shall not come back together; a jitter from nothing would bring some of it
/// back at once, at the cost of a receipt.
fn equal_jitter(delay: Duration, jitter: f64) -> Duration {
    delay.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

/// Each delivery counts against the queue's maxReceiveCount, so each doubles the delay.
fn doubled_delay(first: Duration, receive_count: u32) -> Duration {
    let doublings = receive_count.saturating_sub(1);
    first.saturating_mul(2_u32.saturating_pow(doublings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_delivery_doubles_the_delay_up_to_a_quarter_of_an_hour() {
        let delays = [1, 2, 3, 4, 5, 6, u32::MAX].map(|count| {
            doubled_delay(Duration::from_secs(60), count)
                .min(DELAY_MAX)
                .as_secs()
        });
        assert_eq!(delays, [60, 120, 240, 480, 900, 900, 900]);
    }

    #[test]
    fn a_delay_is_spread_between_half_of_it_and_all() {
        let spread = [0.0, 0.5, 1.0].map(|jitter| equal_jitter(DELAY_MAX, jitter).as_secs());
        assert_eq!(spread, [450, 675, 900]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_wait_for_a_delay_at_once() {
        let (mut delayed, delay) = (DelayedEvents::default(), Duration::from_secs(900));
        assert!((0..DELAYED_MAX).all(|_| delayed.admit(delay)));
        assert!(!delayed.admit(delay));
        tokio::time::advance(delay).await;
        assert!(delayed.admit(delay), "they are back");
    }

    #[test]
    fn a_message_without_a_receive_count_waits_as_after_its_first_delivery() {
        assert_eq!(
            doubled_delay(Duration::from_secs(3), 0),
            Duration::from_secs(3)
        );
    }
}
