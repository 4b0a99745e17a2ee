//! What one key has to do: at most one task works, what arrives meanwhile waits for the next.

use replicator_core::event::EventKind;

use crate::task::{PendingEvent, Task};

/// A key that has work.
///
/// ```text
/// free ──begin──▶ working ──end──▶ free
///                    ├─────stop──▶ landing ──landed──▶ free
///                    └─────rest──▶ resting ──landed──▶ free
/// ```
#[derive(Debug, Default)]
pub(super) struct KeyQueue {
    state: KeyState,
    /// It all goes into the next task.
    waiting: Vec<QueuedEvent>,
}

#[derive(Debug, Default)]
enum KeyState {
    /// Nothing is under way; so is a key only in between.
    #[default]
    Free,
    /// A task works on these.
    Working(Vec<QueuedEvent>),
    /// A task was cut off, and what it last wrote may yet land (protocol rule 5).
    Draining,
    /// The circuit of the destination is open, and nothing is under way.
    Paused,
}

/// One event of one message; it has none where a parked task is tried again, or an upload or tags
/// are seen to.
#[derive(Debug, Clone)]
pub(super) struct QueuedEvent {
    pub(super) message: Option<u64>,
    /// The task it came with, without its events.
    pub(super) task: Task,
    pub(super) pending: PendingEvent,
}

impl KeyQueue {
    /// Lets every event of a task wait.
    pub(super) fn add(&mut self, message: Option<u64>, mut task: Task) {
        for pending in std::mem::take(&mut task.events) {
            self.waiting.push(QueuedEvent {
                message,
                task: task.clone(),
                pending,
            });
        }
    }

    /// Begins a task for every waiting ticket that is still needed, if the key is free; it goes by
    /// the newest rules that it was given.
    pub(super) fn begin(&mut self, is_wanted: impl Fn(&QueuedEvent) -> bool) -> Option<Task> {
        if !self.is_free() {
            return None;
        }
        let mut tickets = std::mem::take(&mut self.waiting);
        tickets.retain(is_wanted);
        let newest = tickets.last()?;
        let task = Task {
            events: tickets
                .iter()
                .map(|ticket| ticket.pending.clone())
                .collect(),
            redelivered: tickets.iter().any(|ticket| ticket.task.redelivered),
            receive_count: tickets
                .iter()
                .map(|ticket| ticket.task.receive_count)
                .max()
                .unwrap_or_default(),
            takes_over: tickets
                .iter()
                .filter_map(|ticket| ticket.task.takes_over)
                .max(),
            ..newest.task.clone()
        };
        self.state = KeyState::Working(tickets);
        Some(task)
    }

    /// Ends the task and returns what it was about.
    pub(super) fn end(&mut self) -> Vec<QueuedEvent> {
        match std::mem::take(&mut self.state) {
            KeyState::Working(tickets) => tickets,
            KeyState::Free | KeyState::Draining | KeyState::Paused => Vec::new(),
        }
    }

    /// Holds the key after its task was cut off; what is kept of it is first to go on.
    pub(super) fn hold(&mut self, kept: Vec<QueuedEvent>) {
        self.state = KeyState::Draining;
        // A write may have been on its way: the ledger alone may not answer these any more.
        let begun = kept.into_iter().map(|mut ticket| {
            ticket.task.redelivered = true;
            ticket
        });
        self.waiting.splice(0..0, begun);
    }

    /// Lets a task begin again later for the same, and what comes meanwhile.
    pub(super) fn rest_with(&mut self, tickets: Vec<QueuedEvent>) {
        self.state = KeyState::Paused;
        self.waiting.splice(0..0, tickets);
    }

    pub(super) fn is_resting(&self) -> bool {
        matches!(self.state, KeyState::Paused)
    }

    /// Says whether no message is behind any of it.
    pub(super) fn is_background(&self) -> bool {
        self.tickets().all(|ticket| ticket.message.is_none())
    }

    /// Takes out all that waits.
    pub(super) fn take_waiting(&mut self) -> Vec<QueuedEvent> {
        std::mem::take(&mut self.waiting)
    }

    /// Lists what waits for its turn.
    pub(super) fn waiting_tickets(&self) -> &[QueuedEvent] {
        &self.waiting
    }

    /// Frees the key: what was written has landed, or never will, or it has rested.
    pub(super) fn landed(&mut self) {
        if matches!(self.state, KeyState::Draining | KeyState::Paused) {
            self.state = KeyState::Free;
        }
    }

    pub(super) fn is_free(&self) -> bool {
        matches!(self.state, KeyState::Free)
    }

    pub(super) fn tickets(&self) -> impl Iterator<Item = &QueuedEvent> {
        self.working_tickets().iter().chain(&self.waiting)
    }

    /// Lists what the task at work is about.
    pub(super) fn working_tickets(&self) -> &[QueuedEvent] {
        match &self.state {
            KeyState::Working(tickets) => tickets,
            KeyState::Free | KeyState::Draining | KeyState::Paused => &[],
        }
    }

    /// Lists what may have a write on its way.
    pub(super) fn in_flight(&self) -> &[QueuedEvent] {
        match &self.state {
            KeyState::Working(tickets) => tickets,
            KeyState::Draining => &self.waiting,
            KeyState::Free | KeyState::Paused => &[],
        }
    }
}

/// Of a task that was cut off, keeps the tickets whose message is still held, and adds the tags of
/// each version once more, whichever worker has its message by then: PutObjectTagging has no
/// precondition, so a request on its way may land over newer tags, and the task that wrote those
/// may have ended.
pub(super) fn left_of(
    tickets: Vec<QueuedEvent>,
    is_held: impl Fn(u64) -> bool,
) -> Vec<QueuedEvent> {
    let mut left: Vec<QueuedEvent> = Vec::with_capacity(tickets.len());
    for ticket in &tickets {
        let is_same = |other: &QueuedEvent| other.pending.version == ticket.pending.version;
        if ticket.pending.action == EventKind::Tags && !left.iter().any(is_same) {
            left.push(QueuedEvent {
                message: None,
                ..ticket.clone()
            });
        }
    }
    let is_kept = |ticket: &QueuedEvent| match ticket.message {
        Some(number) => is_held(number),
        None => ticket.pending.action != EventKind::Tags,
    };
    left.extend(tickets.into_iter().filter(is_kept));
    left
}

#[cfg(test)]
mod tests {
    use replicator_core::event::Event;
    use replicator_core::object::{Bucket, Key, VersionId};

    use super::*;
    use crate::task::Ruleset;
    use crate::task::tests::rules;

    fn ticket(message: Option<u64>, action: EventKind, version: &str) -> QueuedEvent {
        let event = Event {
            bucket: Bucket::try_from("orders").unwrap(),
            key: Key::try_from("report").unwrap(),
            version: Some(VersionId::try_from(version).unwrap()),
            action,
            sequencer: None,
            time: None,
            size_bytes: None,
        };
        let mut task = Ruleset::new(&rules(&[("orders", "orders", "replicas")]))
            .tasks_for(&event)
            .remove(0);
        let pending = task.events.remove(0);
        QueuedEvent {
            message,
            task,
            pending,
        }
    }

    #[test]
    fn tags_outlive_their_messages_once_for_each_version_however_often_they_are_cut_off() {
        let cut_off = vec![
            ticket(Some(1), EventKind::Tags, "a"),
            ticket(Some(2), EventKind::Tags, "a"),
            ticket(Some(2), EventKind::Tags, "b"),
            ticket(Some(1), EventKind::Put, "a"),
            ticket(None, EventKind::Put, "c"),
        ];
        let left = left_of(cut_off, |number| number == 2);
        let told = |left: &[QueuedEvent]| -> Vec<_> {
            let told = |ticket: &QueuedEvent| {
                (
                    ticket.message,
                    ticket.pending.action,
                    ticket.pending.version.clone().unwrap(),
                )
            };
            left.iter()
                .map(told)
                .map(|(message, action, version)| (message, action, version.to_string()))
                .collect()
        };
        let version = |text: &str| text.to_owned();
        let tags = |message, text| (message, EventKind::Tags, version(text));
        let wanted = [
            tags(None, "a"),
            tags(None, "b"),
            tags(Some(2), "a"),
            tags(Some(2), "b"),
            (None, EventKind::Put, version("c")),
        ];
        assert_eq!(told(&left), wanted);
        assert_eq!(
            told(&left_of(left, |_| false)),
            [
                tags(None, "a"),
                tags(None, "b"),
                (None, EventKind::Put, version("c"))
            ]
        );
    }
}
