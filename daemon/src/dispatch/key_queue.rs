//! The events of one key: at most one task works on them, and what arrives meanwhile waits for the
//! next.

use replicator_core::event::EventKind;

use crate::task::{PendingEvent, Task};

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

/// One event of one message; it has none where a parked task is tried again, or tags are written
/// once more.
#[derive(Debug, Clone)]
pub(super) struct QueuedEvent {
    pub(super) message: Option<u64>,
    /// The task it came with, without its events.
    pub(super) task: Task,
    pub(super) pending: PendingEvent,
}

impl KeyQueue {
    /// Adds every event of a task to those that wait.
    pub(super) fn add(&mut self, message: Option<u64>, mut task: Task) {
        for pending in std::mem::take(&mut task.events) {
            self.waiting.push(QueuedEvent {
                message,
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

    /// Says whether no message is behind any of its events.
    pub(super) fn is_background(&self) -> bool {
        self.events().all(|event| event.message.is_none())
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
                message: None,
                ..event.clone()
            });
        }
    }
    let is_kept = |event: &QueuedEvent| match event.message {
        Some(number) => is_held(number),
        None => event.pending.action != EventKind::Tags,
    };
    kept.extend(events.into_iter().filter(is_kept));
    kept
}

#[cfg(test)]
mod tests {
    use replicator_core::event::Event;
    use replicator_core::object::{Bucket, Key, VersionId};

    use super::*;
    use crate::task::Ruleset;
    use crate::task::tests::rules;

    fn queued(message: Option<u64>, action: EventKind, version: &str) -> QueuedEvent {
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
            queued(Some(1), EventKind::Tags, "a"),
            queued(Some(2), EventKind::Tags, "a"),
            queued(Some(2), EventKind::Tags, "b"),
            queued(Some(1), EventKind::Put, "a"),
            queued(None, EventKind::Put, "c"),
        ];
        let kept = kept_of(cut_off, |number| number == 2);
        let seen = |kept: &[QueuedEvent]| -> Vec<_> {
            let seen = |event: &QueuedEvent| {
                let version = event.pending.version.as_ref().unwrap();
                (event.message, event.pending.action, version.to_string())
            };
            kept.iter().map(seen).collect()
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
        assert_eq!(seen(&kept), wanted);
        assert_eq!(
            seen(&kept_of(kept, |_| false)),
            [
                tags(None, "a"),
                tags(None, "b"),
                (None, EventKind::Put, version("c"))
            ]
        );
    }
}
