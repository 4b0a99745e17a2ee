//! What was done of a message that had to go back for its other tasks. One event may go to several
//! destinations: while one of them is in trouble, its message comes again and again, and what the
//! other destinations have done already costs them nothing more.
//!
//! This is kept in memory only, and is certain: what is noted here ended well in this process, so
//! no write of it can be on its way any more (protocol rule 5). A daemon without the note sends
//! requests to find out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use replicator_core::event::EventKind;
use replicator_core::object::VersionId;

use crate::ledger::records::TargetKey;
use crate::task::{PendingEvent, Task};

/// What was done, by the messages' ids.
#[derive(Debug, Default)]
pub(super) struct CompletedTasks {
    by_message: BTreeMap<String, BTreeSet<Done>>,
    /// The ids, oldest first; some may be forgotten.
    order: VecDeque<String>,
}

type Done = (TargetKey, EventKind, Option<VersionId>);

/// Some MiB. A forgotten message costs a look at the destination.
const MESSAGES_MAX: usize = 20_000;

impl CompletedTasks {
    /// Records an event that is granted.
    pub(super) fn note(&mut self, message: &str, task: &Task, pending: &PendingEvent) {
        if !self.by_message.contains_key(message) {
            self.order.push_back(message.to_owned());
            while self.by_message.len() >= MESSAGES_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.by_message.remove(&oldest);
            }
            if self.order.len() > 2 * MESSAGES_MAX {
                self.order
                    .retain(|id| self.by_message.contains_key(id) || id == message);
            }
        }
        self.by_message
            .entry(message.to_owned())
            .or_default()
            .insert(done_key(task, pending));
    }

    /// Says whether all of a task was done when its message came before.
    pub(super) fn has_done(&self, message: &str, task: &Task) -> bool {
        let Some(known) = self.by_message.get(message) else {
            return false;
        };
        task.events
            .iter()
            .all(|pending| known.contains(&done_key(task, pending)))
    }

    /// Forgets a message that does not come again.
    pub(super) fn forget_message(&mut self, message: &str) {
        self.by_message.remove(message);
    }
}

fn done_key(task: &Task, pending: &PendingEvent) -> Done {
    (task.target.clone(), pending.action, pending.version.clone())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use replicator_core::object::Key;

    use super::*;
    use crate::task::Rules;
    use crate::task::tests::rules;

    fn task(bucket: &str, action: EventKind) -> Task {
        let rule = rules(&[("orders", "orders", bucket)]).remove(0);
        let key = Key::try_from("report").unwrap();
        let pending = PendingEvent {
            action,
            version: None,
            sequencer: None,
            time: None,
            size_bytes: 0,
            parked: None,
        };
        Task {
            target: TargetKey {
                destination: rule.destination.clone(),
                key: key.clone(),
            },
            source: rule.source.clone(),
            source_key: key,
            rules: Rules {
                primary: Arc::new(rule),
                fallbacks: Vec::new(),
            },
            events: vec![pending],
            redelivered: false,
            receive_count: 0,
            takes_over: None,
        }
    }

    fn note(settled: &mut CompletedTasks, message: &str, task: &Task) {
        settled.note(message, task, &task.events[0]);
    }

    #[test]
    fn what_one_destination_did_is_not_asked_again_and_what_the_other_owes_is() {
        let mut settled = CompletedTasks::default();
        note(&mut settled, "m1", &task("healthy", EventKind::Put));
        assert!(settled.has_done("m1", &task("healthy", EventKind::Put)));
        assert!(!settled.has_done("m1", &task("sick", EventKind::Put)));
        assert!(!settled.has_done("m1", &task("healthy", EventKind::Tags)));
        assert!(!settled.has_done("m2", &task("healthy", EventKind::Put)));
    }

    #[test]
    fn a_message_that_does_not_come_again_is_forgotten() {
        let mut settled = CompletedTasks::default();
        note(&mut settled, "m1", &task("healthy", EventKind::Put));
        settled.forget_message("m1");
        assert!(!settled.has_done("m1", &task("healthy", EventKind::Put)));
    }

    #[test]
    fn the_oldest_make_room_for_the_newest() {
        let mut settled = CompletedTasks::default();
        let task = task("healthy", EventKind::Put);
        (0..=MESSAGES_MAX).for_each(|n| note(&mut settled, &format!("m{n}"), &task));
        assert!(!settled.has_done("m0", &task) && settled.has_done("m1", &task));
        assert_eq!(settled.by_message.len(), MESSAGES_MAX);
    }
}
