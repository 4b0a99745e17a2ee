//! What is in flight: the messages, each until the last of its tasks is closed; what is done already
//! of those that had to go back; and the events of each key: at most one task works on them, and
//! what arrives meanwhile waits for the next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use replicator_core::event::EventKind;
use replicator_core::object::{Timestamp, VersionId};
use replicator_core::rule::Rule;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ledger::records::TargetKey;
use crate::queue::message::{AckAction, AckRequest, Message};
use crate::sqs::lease::Hold;
use crate::task::{PendingEvent, Task};

/// The messages whose tasks are not all closed, by their numbers.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    messages: BTreeMap<u64, InFlightMessage>,
    /// Tasks of theirs that are not closed.
    open: usize,
    /// What their bodies have.
    bytes: usize,
}

#[derive(Debug)]
struct InFlightMessage {
    message: Message,
    tasks: usize,
    open: usize,
    action: AckAction,
}

impl InFlight {
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Returns how many tasks are open.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    pub(super) fn body_bytes(&self) -> usize {
        self.bytes
    }

    /// Takes a message in flight until so many tasks are closed.
    pub(super) fn take(&mut self, message: Message, action: AckAction, open: usize) {
        self.open += open;
        self.bytes += message.body.len();
        let number = message.number;
        let in_flight = InFlightMessage {
            message,
            tasks: open,
            open,
            action,
        };
        self.messages.insert(number, in_flight);
    }

    fn message(&self, number: u64) -> Option<&Message> {
        self.messages
            .get(&number)
            .map(|in_flight| &in_flight.message)
    }

    /// Returns the id of a message that has more than one task.
    pub(super) fn id_if_shared(&self, number: u64) -> Option<&str> {
        self.messages
            .get(&number)
            .filter(|in_flight| in_flight.tasks > 1)
            .map(|in_flight| in_flight.message.id.as_str())
    }

    /// Says whether a message is in flight and its lease surely held.
    pub(super) fn holds_lease(&self, number: u64) -> bool {
        self.message(number)
            .is_some_and(|message| !message.lease.lost_token().is_cancelled())
    }

    /// Returns the hold on a message of a work queue.
    pub(super) fn to_hold(&self, number: u64) -> Option<Hold> {
        let message = self.message(number)?;
        message.group.as_ref().map(|_| message.lease.to_hold())
    }

    /// Returns what fires when work for a message has to end.
    pub(super) fn stop_token(&self, number: u64) -> Option<CancellationToken> {
        Some(self.message(number)?.lease.stop_token().clone())
    }

    /// Closes one task of a message; the last one decides what becomes of it. Of several actions
    /// the most careful wins.
    pub(super) fn close(
        &mut self,
        number: u64,
        action: impl FnOnce(&Message) -> AckAction,
    ) -> Option<AckRequest> {
        let in_flight = self.messages.get_mut(&number)?;
        let action = action(&in_flight.message);
        let closed = in_flight.open.min(1);
        (in_flight.open, self.open) = (in_flight.open - closed, self.open - closed);
        if care(&action) > care(&in_flight.action) {
            in_flight.action = action;
        }
        if in_flight.open > 0 {
            return None;
        }
        let InFlightMessage {
            message, action, ..
        } = self.remove_message(number)?;
        Some(AckRequest { message, action })
    }

    /// Removes those that may have gone to another worker, whose work decides what becomes of them.
    pub(super) fn forget_lost(&mut self, numbers: impl Iterator<Item = u64>) {
        for number in numbers {
            if !self.holds_lease(number)
                && let Some(lost) = self.remove_message(number)
            {
                self.open -= lost.open;
            }
        }
    }

    fn remove_message(&mut self, number: u64) -> Option<InFlightMessage> {
        let removed = self.messages.remove(&number)?;
        self.bytes -= removed.message.body.len();
        Some(removed)
    }

    /// Gives away every message.
    pub(super) fn empty(&mut self) -> Vec<Message> {
        std::mem::take(self)
            .messages
            .into_values()
            .map(|in_flight| in_flight.message)
            .collect()
    }
}

/// To deliver again is more careful than to keep, later more than sooner.
fn care(action: &AckAction) -> (u8, Option<Duration>) {
    match action {
        AckAction::Delete => (0, None),
        AckAction::DeadLetter(_) => (1, None),
        AckAction::Forward(_) => (2, None),
        AckAction::ReturnAfter(delay) => (3, Some(*delay)),
    }
}

/// What was done of messages that have more tasks, by the messages' ids. One event may go to
/// several destinations: while one of them is in trouble, its message comes again and again, and
/// what the other destinations have done already costs them nothing more.
///
/// This is kept in memory only, and is certain: what is recorded here ended well in this process,
/// so no write of it can be on its way any more (protocol rule 5). A daemon without the record
/// sends requests to find out.
#[derive(Debug, Default)]
pub(super) struct CompletedTasks(BTreeMap<String, BTreeSet<Done>>);

type Done = (TargetKey, EventKind, Option<VersionId>);

/// Some MiB. A forgotten message costs a look at the destination.
const COMPLETED_MAX: usize = 20_000;

impl CompletedTasks {
    /// Records an event whose task is done. Rather than more than so many messages it begins anew.
    pub(super) fn record(&mut self, message: &str, task: &Task, pending: &PendingEvent) {
        if self.0.len() >= COMPLETED_MAX && !self.0.contains_key(message) {
            self.0.clear();
        }
        self.0
            .entry(message.to_owned())
            .or_default()
            .insert(done_key(task, pending));
    }

    /// Says whether all of a task was done when its message came before.
    pub(super) fn has_done(&self, message: &str, task: &Task) -> bool {
        self.0.get(message).is_some_and(|done| {
            task.events
                .iter()
                .all(|pending| done.contains(&done_key(task, pending)))
        })
    }

    /// Forgets a message that does not come again.
    pub(super) fn forget_message(&mut self, message: &str) {
        self.0.remove(message);
    }
}

/// The events that went back to their queue and did not come again yet, by their messages' ids.
#[derive(Debug, Default)]
pub(super) struct HandedBack {
    events: BTreeMap<String, Vec<ReturnedEvent>>,
    /// When the ones that are not awaited any more were last taken out.
    swept: Option<Instant>,
}

#[derive(Debug)]
struct ReturnedEvent {
    rule: Arc<Rule>,
    time: Timestamp,
    /// When it is no longer awaited here.
    until: Instant,
}

/// Some MiB. Beyond that the youngest are left out, because the oldest is what counts.
const HANDED_BACK_MAX: usize = 20_000;

// To look at all of them takes a part of a millisecond, and dispatch waits for it.
const SWEPT_EVERY: Duration = Duration::from_secs(60);

/// SQS keeps no message for longer:
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html>
const RETENTION_MAX: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// A message of a work queue that has not come again so long after it showed is another daemon's.
const AWAITED: Duration = Duration::from_secs(15 * 60);

impl HandedBack {
    /// Records an event whose message goes back to its queue.
    pub(super) fn record(
        &mut self,
        message: &Message,
        action: &AckAction,
        (task, pending): (&Task, &PendingEvent),
    ) {
        let (AckAction::ReturnAfter(delay), Some(time)) = (action, pending.time) else {
            return;
        };
        let now = Instant::now();
        let is_due = self.swept.is_none_or(|swept| now - swept >= SWEPT_EVERY);
        if self.events.len() >= HANDED_BACK_MAX && is_due {
            self.swept = Some(now);
            self.events
                .retain(|_, events| events.iter().any(|event| event.until > now));
        }
        if self.events.len() >= HANDED_BACK_MAX {
            return;
        }
        let until = match message.group {
            Some(_) => now + *delay + AWAITED,
            None => now + RETENTION_MAX,
        };
        let rule = Arc::clone(&task.rules.primary);
        let events = self.events.entry(message.id.clone()).or_default();
        events.push(ReturnedEvent { rule, time, until });
    }

    /// Forgets a message that is in flight again, or settled.
    pub(super) fn forget(&mut self, message: &str) {
        self.events.remove(message);
    }

    /// Lists the events that are still awaited.
    pub(super) fn events(&self) -> impl Iterator<Item = (&Rule, Timestamp)> {
        let now = Instant::now();
        let awaited = self.events.values().flatten();
        awaited
            .filter(move |event| event.until > now)
            .map(|event| (event.rule.as_ref(), event.time))
    }
}

fn done_key(task: &Task, pending: &PendingEvent) -> Done {
    (task.target.clone(), pending.action, pending.version.clone())
}

/// A key that has work.
///
/// ```text
/// free ──begin──▶ working ──end──▶ free
///                    ├────drain──▶ draining ──resume──▶ free
///                    └────pause──▶ paused ────resume──▶ free
/// ```
#[derive(Debug, Default)]
pub(super) struct KeyQueue {
    state: KeyState,
    /// They all go into the next task.
    waiting: Vec<QueuedEvent>,
}

#[derive(Debug, Default)]
enum KeyState {
    /// Nothing is under way, which lasts only until the next task begins.
    #[default]
    Free,
    /// A task works on these.
    Working(Vec<QueuedEvent>),
    /// A task was cut off, and what it last wrote may yet land (protocol rule 5).
    Draining,
    /// The circuit of the destination is open, and nothing is under way.
    Paused,
}

/// What brings an event again that did not end well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behind {
    /// Its message.
    Message(u64),
    /// The record of a parked task.
    Record,
    /// Nothing does: tags are written once more, or a key is looked at. It is kept here.
    Nothing,
}

/// One event of one message, or of none.
#[derive(Debug, Clone)]
pub(super) struct QueuedEvent {
    pub(super) behind: Behind,
    /// The task it came with, without its events.
    pub(super) task: Task,
    pub(super) pending: PendingEvent,
}

impl QueuedEvent {
    pub(super) fn message(&self) -> Option<u64> {
        match self.behind {
            Behind::Message(number) => Some(number),
            Behind::Record | Behind::Nothing => None,
        }
    }
}

impl KeyQueue {
    /// Adds every event of a task to those that wait.
    pub(super) fn add(&mut self, behind: Behind, mut task: Task) {
        for pending in std::mem::take(&mut task.events) {
            self.waiting.push(QueuedEvent {
                behind,
                task: task.clone(),
                pending,
            });
        }
    }

    /// Begins a task for every waiting event that is still needed, if the key is free; it goes by
    /// the newest rules that came with them.
    pub(super) fn begin(&mut self, is_needed: impl Fn(&QueuedEvent) -> bool) -> Option<Task> {
        if !self.is_free() {
            return None;
        }
        let mut events = std::mem::take(&mut self.waiting);
        events.retain(is_needed);
        let newest = events.last()?;
        let task = Task {
            events: events.iter().map(|event| event.pending.clone()).collect(),
            redelivered: events.iter().any(|event| event.task.redelivered),
            receive_count: events
                .iter()
                .map(|event| event.task.receive_count)
                .max()
                .unwrap_or_default(),
            takes_over: events
                .iter()
                .filter_map(|event| event.task.takes_over)
                .max(),
            ..newest.task.clone()
        };
        self.state = KeyState::Working(events);
        Some(task)
    }

    /// Ends the task and returns what it was about.
    pub(super) fn end(&mut self) -> Vec<QueuedEvent> {
        match std::mem::take(&mut self.state) {
            KeyState::Working(events) => events,
            KeyState::Free | KeyState::Draining | KeyState::Paused => Vec::new(),
        }
    }

    /// Lets nothing begin after the task was cut off; the events that are kept of it go first then.
    pub(super) fn drain(&mut self, kept: Vec<QueuedEvent>) {
        self.state = KeyState::Draining;
        // A write may have been on its way: the ledger alone may not answer these any more.
        let begun = kept.into_iter().map(|mut event| {
            event.task.redelivered = true;
            event
        });
        self.waiting.splice(0..0, begun);
    }

    /// Lets a task begin again later for the same events, and what comes meanwhile.
    pub(super) fn pause(&mut self, events: Vec<QueuedEvent>) {
        self.state = KeyState::Paused;
        self.waiting.splice(0..0, events);
    }

    pub(super) fn is_paused(&self) -> bool {
        matches!(self.state, KeyState::Paused)
    }

    /// Frees the key: what was written has landed, or never will, or the pause is over.
    pub(super) fn resume(&mut self) {
        if matches!(self.state, KeyState::Draining | KeyState::Paused) {
            self.state = KeyState::Free;
        }
    }

    /// Says whether only parked tasks are tried again.
    pub(super) fn is_background(&self) -> bool {
        self.events().all(|event| event.behind == Behind::Record)
    }

    /// Takes out all that waits.
    pub(super) fn take_waiting(&mut self) -> Vec<QueuedEvent> {
        std::mem::take(&mut self.waiting)
    }

    pub(super) fn waiting(&self) -> &[QueuedEvent] {
        &self.waiting
    }

    pub(super) fn is_free(&self) -> bool {
        matches!(self.state, KeyState::Free)
    }

    pub(super) fn events(&self) -> impl Iterator<Item = &QueuedEvent> {
        self.working().iter().chain(&self.waiting)
    }

    /// Lists the events of the task at work.
    pub(super) fn working(&self) -> &[QueuedEvent] {
        match &self.state {
            KeyState::Working(events) => events,
            KeyState::Free | KeyState::Draining | KeyState::Paused => &[],
        }
    }

    /// Lists the events that may have a write on its way.
    pub(super) fn with_writes(&self) -> &[QueuedEvent] {
        match self.state {
            KeyState::Draining => &self.waiting,
            KeyState::Free | KeyState::Working(_) | KeyState::Paused => self.working(),
        }
    }
}

/// Of a task that was cut off, keeps the events whose message is still held, and adds the tags of
/// each version once more, whichever worker has its message by then: PutObjectTagging has no
/// precondition, so a request on its way may land over newer tags, and the task that wrote those
/// may have ended.
pub(super) fn kept_of(events: Vec<QueuedEvent>, is_held: impl Fn(u64) -> bool) -> Vec<QueuedEvent> {
    let mut kept: Vec<QueuedEvent> = Vec::with_capacity(events.len());
    for event in &events {
        let is_same = |other: &QueuedEvent| other.pending.version == event.pending.version;
        if event.pending.action == EventKind::Tags && !kept.iter().any(is_same) {
            kept.push(QueuedEvent {
                behind: Behind::Nothing,
                ..event.clone()
            });
        }
    }
    let is_kept = |event: &QueuedEvent| match event.message() {
        Some(number) => is_held(number),
        None => event.pending.action != EventKind::Tags,
    };
    kept.extend(events.into_iter().filter(is_kept));
    kept
}

#[cfg(test)]
mod tests {
    use replicator_core::event::Event;
    use replicator_core::failure::Reason;
    use replicator_core::object::{Bucket, Key};

    use super::*;
    use crate::task::Ruleset;
    use crate::task::tests::rules;

    #[test]
    fn the_most_careful_of_several_actions_is_to_return_a_message_the_latest() {
        let back = |seconds| AckAction::ReturnAfter(Duration::from_secs(seconds));
        let park = AckAction::DeadLetter(Reason::DstBucketNotFound);
        let all = [
            AckAction::Delete,
            park,
            AckAction::Forward(Vec::new()),
            back(0),
            back(60),
        ];
        assert!(all.is_sorted_by(|one, other| care(one) < care(other)));
    }

    fn event() -> Event {
        let (bucket, key) = (Bucket::try_from("orders"), Key::try_from("report"));
        Event::of_key(&bucket.unwrap(), &key.unwrap())
    }

    fn task(bucket: &str, action: EventKind) -> Task {
        let event = Event { action, ..event() };
        Ruleset::new(&rules(&[("orders", "orders", bucket)]))
            .tasks_for(&event)
            .remove(0)
    }

    fn record(completed: &mut CompletedTasks, message: &str, task: &Task) {
        completed.record(message, task, &task.events[0]);
    }

    #[test]
    fn what_one_destination_did_is_not_repeated_and_what_the_other_owes_is() {
        let mut completed = CompletedTasks::default();
        record(&mut completed, "m1", &task("healthy", EventKind::Put));
        assert!(completed.has_done("m1", &task("healthy", EventKind::Put)));
        assert!(!completed.has_done("m1", &task("sick", EventKind::Put)));
        assert!(!completed.has_done("m1", &task("healthy", EventKind::Tags)));
        assert!(!completed.has_done("m2", &task("healthy", EventKind::Put)));
        completed.forget_message("m1");
        assert!(!completed.has_done("m1", &task("healthy", EventKind::Put)));
    }

    #[test]
    fn a_bounded_number_of_messages_is_kept() {
        let mut completed = CompletedTasks::default();
        let task = task("healthy", EventKind::Put);
        (0..=COMPLETED_MAX).for_each(|n| record(&mut completed, &format!("m{n}"), &task));
        assert!(completed.has_done(&format!("m{COMPLETED_MAX}"), &task));
        assert!(completed.0.len() <= COMPLETED_MAX);
    }

    fn queued(behind: Behind, action: EventKind, version: &str) -> QueuedEvent {
        let event = Event {
            version: Some(VersionId::try_from(version).unwrap()),
            action,
            ..event()
        };
        let mut task = Ruleset::new(&rules(&[("orders", "orders", "replicas")]))
            .tasks_for(&event)
            .remove(0);
        let pending = task.events.remove(0);
        QueuedEvent {
            behind,
            task,
            pending,
        }
    }

    #[test]
    fn tags_outlive_their_messages_once_for_each_version_however_often_they_are_cut_off() {
        let cut_off = vec![
            queued(Behind::Message(1), EventKind::Tags, "a"),
            queued(Behind::Message(2), EventKind::Tags, "a"),
            queued(Behind::Message(2), EventKind::Tags, "b"),
            queued(Behind::Message(1), EventKind::Put, "a"),
            queued(Behind::Record, EventKind::Put, "c"),
        ];
        let kept = kept_of(cut_off, |number| number == 2);
        let seen = |kept: &[QueuedEvent]| -> Vec<_> {
            let seen = |event: &QueuedEvent| {
                let version = event.pending.version.as_ref().unwrap();
                (event.behind, event.pending.action, version.to_string())
            };
            kept.iter().map(seen).collect()
        };
        let version = |text: &str| text.to_owned();
        let tags = |behind, text| (behind, EventKind::Tags, version(text));
        let wanted = [
            tags(Behind::Nothing, "a"),
            tags(Behind::Nothing, "b"),
            tags(Behind::Message(2), "a"),
            tags(Behind::Message(2), "b"),
            (Behind::Record, EventKind::Put, version("c")),
        ];
        assert_eq!(seen(&kept), wanted);
        assert_eq!(
            seen(&kept_of(kept, |_| false)),
            [
                tags(Behind::Nothing, "a"),
                tags(Behind::Nothing, "b"),
                (Behind::Record, EventKind::Put, version("c"))
            ]
        );
    }
}
