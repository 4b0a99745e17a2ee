//! The router: events leave their queue as one message for each destination key, sent to the work queue of their rule.
//! An event is deleted once all of that is in the work queues. It keeps no state: what it did not finish comes again, and
//! what was sent before is told by its deduplication id, or is a hint too many.

use std::sync::Arc;
use std::time::Duration;

use replicator_core::event::{self, Action, Hint};
use replicator_core::failure::Reason;
use replicator_core::retry;
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use crate::clock;
use crate::engine::Engine;
use crate::failpoint::Step;
use crate::message::{Delivery, Disposal, Message, Settlement};
use crate::metrics::MessageOutcome;
use crate::ruleset::Ruleset;
use crate::task::Task;
use crate::work_queues::{WorkItem, digest, group_of};

/// Takes events and sends the work that they ask for.
#[derive(Debug)]
pub(crate) struct Router {
    pub(crate) engine: Arc<Engine>,
    pub(crate) rules: watch::Receiver<Arc<Ruleset>>,
    pub(crate) deliveries: mpsc::Receiver<Delivery>,
    pub(crate) settlements: mpsc::Sender<Settlement>,
}

/// Events that are routed at once: ten batches, which are sent beside each other.
const ROUND_MAX: usize = 100;

/// An event on its way.
struct Routed {
    message: Message,
    /// What becomes of it once its work is in the work queues.
    disposal: Disposal,
    /// Its work, as a range of all that the round sends.
    work: std::ops::Range<usize>,
}

impl Router {
    /// Routes until the intakes have ended and all that they received is on its way.
    pub(crate) async fn run(mut self) {
        let mut round = Vec::with_capacity(ROUND_MAX);
        while self.deliveries.recv_many(&mut round, ROUND_MAX).await > 0 {
            self.route(std::mem::take(&mut round)).await;
        }
    }

    async fn route(&self, deliveries: Vec<Delivery>) {
        let rules = Arc::clone(&self.rules.borrow());
        let (mut routed, mut work) = (Vec::new(), Vec::new());
        for delivery in deliveries {
            let begin = work.len();
            let disposal = self.read(&rules, &delivery, &mut work);
            routed.push(Routed { message: delivery.message, disposal, work: begin..work.len() });
        }
        let send = Box::pin(self.engine.work_queues.send(&work));
        let sent = self.engine.failpoints.around(Step::Route, send).await;
        for Routed { message, disposal, work } in routed {
            let is_sent = sent.get(work).is_some_and(|sent| sent.iter().all(|sent| *sent));
            let disposal = if is_sent { disposal } else { Disposal::Release(message.patience(retry::ceiling(1))) };
            if disposal == Disposal::Delete {
                self.engine.pulse.beat();
            }
            // The ack station outlives the router, which holds one of its senders.
            let _sent = self.settlements.send(Settlement { message, disposal }).await;
        }
    }

    /// Lists the work that an event asks for, and says what is to become of the event then.
    fn read(&self, rules: &Ruleset, delivery: &Delivery, work: &mut Vec<WorkItem>) -> Disposal {
        let message = &delivery.message;
        let hints = match &delivery.notification {
            Ok(notification) => &notification.hints,
            Err(undecodable) => return Disposal::Park(Reason::MessageUndecodable, undecodable.to_string()),
        };
        let mut disposal = match hints.iter().find_map(|hint| rules.refusal(hint)) {
            Some((reason, detail)) => self.refused(message, reason, detail),
            None => Disposal::Delete,
        };
        let begin = work.len();
        let mut wait = Duration::ZERO;
        for (record, hint) in hints.iter().enumerate() {
            for task in rules.tasks(hint) {
                match delay_left(message, &task) {
                    Duration::ZERO => work.extend(item(&message.id, record, hint, &task)),
                    left => wait = wait.max(left),
                }
            }
        }
        if !wait.is_zero() {
            // The rest of it is sent again then, if more than one thing happened: a hint too many.
            disposal = Disposal::Release(wait);
        }
        if disposal == Disposal::Delete && work.len() == begin {
            debug!(message_id = message.id, "nothing to do");
            self.engine.metrics.message(message.queue.queue.name(), MessageOutcome::Ignored);
        }
        disposal
    }

    fn refused(&self, message: &Message, reason: Reason, detail: String) -> Disposal {
        let queue = message.queue.queue.name();
        warn!(queue, message_id = message.id, reason = reason.as_str(), detail, "message cannot be acted on");
        if reason == Reason::BucketUnknown {
            self.engine.metrics.message(queue, MessageOutcome::UnknownBucket);
        }
        Disposal::Park(reason, detail)
    }
}

/// Returns how long a version delete has to wait in the events queue, where it blocks nothing: any writer of the queue
/// can tell of a version that is gone, and there is to be time to notice.
fn delay_left(message: &Message, task: &Task) -> Duration {
    let lead = &task.rules.lead;
    let removes = lead.version_deletes && task.wishes.iter().any(|wish| wish.action == Action::VersionDelete);
    let delay = if removes { lead.version_delete_delay } else { Duration::ZERO };
    // Where the queue's clock does not tell the age, the second delivery tells that the delay is over.
    match message.age(clock::now()) {
        Some(age) => delay.saturating_sub(age),
        None if message.redelivered() => Duration::ZERO,
        None => delay,
    }
}

fn item(message_id: &str, record: usize, hint: &Hint, task: &Task) -> Option<WorkItem> {
    let group = group_of(&task.lane);
    let deduplication = digest([message_id, &record.to_string(), &group]);
    let url = task.rules.lead.work_queue.clone()?;
    Some(WorkItem { url, group, deduplication, body: event::notification_of(hint), again: None })
}
