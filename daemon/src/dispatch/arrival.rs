//! A message arrives: what it asks for is taken in hand, or it goes back at once.

use std::sync::Arc;
use std::time::Duration;

use replicator_core::deadline::LANDING;
use replicator_core::event::Action;
use replicator_core::failure::{Failure, Kind, Reason};
use tracing::debug;

use super::Dispatch;
use crate::clock;
use crate::lane::{self, Ended};
use crate::message::{Again, Delivery, Disposal, Message, Settlement};
use crate::metrics::MessageOutcome;
use crate::task::Task;
use crate::work_queues::{WorkItem, digest, group_of};

/// Returns how old a task's message has to be: any writer of the queue can tell of a version that is gone.
fn delay_of(task: &Task) -> Duration {
    let lead = &task.rules.lead;
    let removes = lead.version_deletes && task.wishes.iter().any(|wish| wish.action == Action::VersionDelete);
    if removes { lead.version_delete_delay } else { Duration::ZERO }
}

/// Returns the message that a work queue is to get for a task of another group.
fn elsewhere(message: &Message, group: &str, task: &Task) -> Option<WorkItem> {
    let other = group_of(&task.lane);
    let url = task.rules.lead.work_queue.clone().filter(|_| other != group)?;
    let deduplication = digest([message.id.as_str(), &other]);
    Some(WorkItem { url, group: other, deduplication, body: message.body.clone(), again: message.again })
}

impl Dispatch {
    pub(super) async fn delivered(&mut self, delivery: Delivery) {
        let Delivery { message, notification } = delivery;
        if message.group.is_some() && message.lease.over().is_cancelled() {
            // Another one of its group went back, and may be another worker's by now.
            return self.settle(Settlement { message, disposal: Disposal::Release(LANDING) }).await;
        }
        let notification = match notification {
            Ok(notification) => notification,
            Err(undecodable) => {
                let (metrics, detail) = (&self.engine.metrics, undecodable.to_string());
                let disposal = message.refused(metrics, Reason::MessageUndecodable, &detail);
                return self.settle(Settlement { message, disposal }).await;
            }
        };
        let rules = Arc::clone(&self.rules.borrow());
        let disposal = match notification.hints.iter().find_map(|hint| rules.refusal(hint)) {
            Some((reason, detail)) => message.refused(&self.engine.metrics, reason, &detail),
            None => Disposal::Delete,
        };
        // What is possible is done; the message is kept for the rest.
        let mut tasks: Vec<Task> = notification.hints.iter().flat_map(|hint| rules.tasks(hint)).collect();
        if tasks.is_empty() && disposal == Disposal::Delete {
            self.engine.metrics.message(message.queue.queue.name(), MessageOutcome::Ignored);
        }
        if let Some(group) = &message.group {
            let others: Vec<WorkItem> = tasks.iter().filter_map(|task| elsewhere(&message, group, task)).collect();
            tasks.retain(|task| group_of(&task.lane) == *group);
            if tasks.is_empty() && !others.is_empty() {
                // The rules have changed since it was routed: its work is at another key now.
                return self.settle(Settlement { message, disposal: Disposal::Forward(others) }).await;
            }
        }
        tasks.retain(|task| !self.settled.has(&message.id, task));
        if tasks.is_empty() {
            debug!(message_id = message.id, ignored = ?notification.ignored, "nothing to do");
            self.engine.pulse.beat();
            return self.settle(Settlement { message, disposal }).await;
        }
        self.take(message, disposal, tasks).await;
    }

    async fn take(&mut self, message: Message, disposal: Disposal, tasks: Vec<Task>) {
        let (number, redelivered, age) = (message.number, message.redelivered(), message.age(clock::now()));
        let parked = message.again.and_then(Again::parked);
        let (is_work, is_repeated) = (message.group.is_some(), message.is_repeated());
        let takes_over = redelivered.then_some(message.received);
        self.hand.take(message, disposal, tasks.len());
        for mut task in tasks {
            if is_work {
                task.wishes.iter_mut().for_each(|wish| wish.parked = parked);
                self.enqueue(Some(number), Task { redelivered: is_repeated, takes_over, ..task });
                continue;
            }
            match delay_of(&task).saturating_sub(age.unwrap_or_default()) {
                Duration::ZERO => self.take_or_send_back(number, Task { redelivered, ..task }).await,
                left => self.put_off(number, &task, left, age.is_some()).await,
            }
        }
    }

    /// Lets a version delete wait in the queue; in the ledger, as one of too many, once so much is away that the queue may
    /// soon give out nothing, and where the queue's clock does not tell when the wait is over.
    async fn put_off(&mut self, number: u64, task: &Task, left: Duration, is_dated: bool) {
        let disposal = if is_dated && self.crowd.has_room_away() {
            Disposal::Release(left)
        } else {
            let kind = Kind::Refused(Reason::VersionDeletesPerHour);
            let words = match is_dated {
                true => "too many of them wait for their delay",
                false => "the queue's clock is ahead of this host's, so its delay is counted here",
            };
            let failure = Failure::caused(kind, "version delete", words);
            match lane::park(&self.engine, task, Reason::VersionDeletesPerHour, &failure, Some(clock::now() + left)) {
                Ended::Parked(reason) => Disposal::Park(reason),
                Ended::Settled(_) | Ended::HandedBack(_) | Ended::TurnedAway(_) | Ended::Stopped => {
                    Disposal::Release(left)
                }
            }
        };
        if let Some(settlement) = self.hand.close(number, |_| disposal) {
            self.settle(settlement).await;
        }
    }
}
