//! What one lane has to do: at most one task works, what arrives meanwhile waits for the next.

use replicator_core::event::Action;

use crate::task::{Task, Wish};

/// A lane that has work.
///
/// ```text
/// free ──begin──▶ working ──end──▶ free
///                    ├─────stop──▶ landing ──landed──▶ free
///                    └─────rest──▶ resting ──landed──▶ free
/// ```
#[derive(Debug, Default)]
pub(super) struct Work {
    stage: Stage,
    /// It all goes into the next task.
    waiting: Vec<Ticket>,
}

#[derive(Debug, Default)]
enum Stage {
    /// Nothing is under way; so is a lane only in between.
    #[default]
    Free,
    /// A task works on these.
    Working(Vec<Ticket>),
    /// A task was cut off, and what it last wrote may yet land (protocol rule 7).
    Landing,
    /// The circuit of the destination is open, and nothing is under way.
    Resting,
}

/// One wish of one message; it has none where a parked task is tried again, or an upload or tags are seen to.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    pub(super) message: Option<u64>,
    /// The task it came with, without its wishes.
    pub(super) task: Task,
    pub(super) wish: Wish,
}

impl Work {
    /// Lets every wish of a task wait.
    pub(super) fn add(&mut self, message: Option<u64>, mut task: Task) {
        for wish in std::mem::take(&mut task.wishes) {
            self.waiting.push(Ticket { message, task: task.clone(), wish });
        }
    }

    /// Begins a task for every waiting ticket that is still needed, if the lane is free; it goes by
    /// the newest rules that it was given.
    pub(super) fn begin(&mut self, is_wanted: impl Fn(&Ticket) -> bool) -> Option<Task> {
        if !self.is_free() {
            return None;
        }
        let mut tickets = std::mem::take(&mut self.waiting);
        tickets.retain(is_wanted);
        let newest = tickets.last()?;
        let task = Task {
            wishes: tickets.iter().map(|ticket| ticket.wish.clone()).collect(),
            redelivered: tickets.iter().any(|ticket| ticket.task.redelivered),
            receive_count: tickets.iter().map(|ticket| ticket.task.receive_count).max().unwrap_or_default(),
            takes_over: tickets.iter().filter_map(|ticket| ticket.task.takes_over).max(),
            ..newest.task.clone()
        };
        self.stage = Stage::Working(tickets);
        Some(task)
    }

    /// Ends the task and returns what it was about.
    pub(super) fn end(&mut self) -> Vec<Ticket> {
        match std::mem::take(&mut self.stage) {
            Stage::Working(tickets) => tickets,
            Stage::Free | Stage::Landing | Stage::Resting => Vec::new(),
        }
    }

    /// Holds the lane after its task was cut off; what is kept of it is first to go on.
    pub(super) fn hold(&mut self, kept: Vec<Ticket>) {
        self.stage = Stage::Landing;
        // A write may have been on its way: the ledger alone may not answer these any more.
        let begun = kept.into_iter().map(|mut ticket| {
            ticket.task.redelivered = true;
            ticket
        });
        self.waiting.splice(0..0, begun);
    }

    /// Lets a task begin again later for the same, and what comes meanwhile.
    pub(super) fn rest(&mut self, tickets: Vec<Ticket>) {
        self.stage = Stage::Resting;
        self.waiting.splice(0..0, tickets);
    }

    pub(super) fn is_resting(&self) -> bool {
        matches!(self.stage, Stage::Resting)
    }

    /// Says whether no message is behind any of it.
    pub(super) fn is_unbidden(&self) -> bool {
        self.tickets().all(|ticket| ticket.message.is_none())
    }

    /// Takes out all that waits.
    pub(super) fn take_waiting(&mut self) -> Vec<Ticket> {
        std::mem::take(&mut self.waiting)
    }

    /// Lists what waits for its turn.
    pub(super) fn waiting(&self) -> &[Ticket] {
        &self.waiting
    }

    /// Frees the lane: what was written has landed, or never will, or it has rested.
    pub(super) fn landed(&mut self) {
        if matches!(self.stage, Stage::Landing | Stage::Resting) {
            self.stage = Stage::Free;
        }
    }

    pub(super) fn is_free(&self) -> bool {
        matches!(self.stage, Stage::Free)
    }

    pub(super) fn tickets(&self) -> impl Iterator<Item = &Ticket> {
        self.working().iter().chain(&self.waiting)
    }

    /// Lists what the task at work is about.
    pub(super) fn working(&self) -> &[Ticket] {
        match &self.stage {
            Stage::Working(tickets) => tickets,
            Stage::Free | Stage::Landing | Stage::Resting => &[],
        }
    }

    /// Lists what may have a write on its way.
    pub(super) fn in_flight(&self) -> &[Ticket] {
        match &self.stage {
            Stage::Working(tickets) => tickets,
            Stage::Landing => &self.waiting,
            Stage::Free | Stage::Resting => &[],
        }
    }
}

/// Of a task that was cut off, keeps the tickets whose message is still held, and adds the tags of
/// each version once more, whichever worker has its message by then: PutObjectTagging has no
/// precondition, so a request on its way may land over newer tags, and the task that wrote those
/// may have ended.
pub(super) fn left_of(tickets: Vec<Ticket>, is_held: impl Fn(u64) -> bool) -> Vec<Ticket> {
    let mut left: Vec<Ticket> = Vec::with_capacity(tickets.len());
    for ticket in &tickets {
        let is_same = |other: &Ticket| other.wish.version == ticket.wish.version;
        if ticket.wish.action == Action::Tags && !left.iter().any(is_same) {
            left.push(Ticket { message: None, ..ticket.clone() });
        }
    }
    let is_kept = |ticket: &Ticket| match ticket.message {
        Some(number) => is_held(number),
        None => ticket.wish.action != Action::Tags,
    };
    left.extend(tickets.into_iter().filter(is_kept));
    left
}

#[cfg(test)]
mod tests {
    use replicator_core::event::Hint;
    use replicator_core::object::{Bucket, Key, VersionId};

    use super::*;
    use crate::ruleset::Ruleset;
    use crate::ruleset::tests::rules;

    fn ticket(message: Option<u64>, action: Action, version: &str) -> Ticket {
        let hint = Hint {
            bucket: Bucket::try_from("orders").unwrap(),
            key: Key::try_from("report").unwrap(),
            version: Some(VersionId::try_from(version).unwrap()),
            action,
            sequencer: None,
            time: None,
            size_bytes: None,
        };
        let mut task = Ruleset::new(&rules(&[("orders", "orders", "replicas")])).tasks(&hint).remove(0);
        let wish = task.wishes.remove(0);
        Ticket { message, task, wish }
    }

    #[test]
    fn tags_outlive_their_messages_once_for_each_version_however_often_they_are_cut_off() {
        let cut_off = vec![
            ticket(Some(1), Action::Tags, "a"),
            ticket(Some(2), Action::Tags, "a"),
            ticket(Some(2), Action::Tags, "b"),
            ticket(Some(1), Action::Put, "a"),
            ticket(None, Action::Put, "c"),
        ];
        let left = left_of(cut_off, |number| number == 2);
        let told = |left: &[Ticket]| -> Vec<_> {
            let told = |ticket: &Ticket| (ticket.message, ticket.wish.action, ticket.wish.version.clone().unwrap());
            left.iter().map(told).map(|(message, action, version)| (message, action, version.to_string())).collect()
        };
        let version = |text: &str| text.to_owned();
        let tags = |message, text| (message, Action::Tags, version(text));
        let wanted = [
            tags(None, "a"),
            tags(None, "b"),
            tags(Some(2), "a"),
            tags(Some(2), "b"),
            (None, Action::Put, version("c")),
        ];
        assert_eq!(told(&left), wanted);
        assert_eq!(
            told(&left_of(left, |_| false)),
            [tags(None, "a"), tags(None, "b"), (None, Action::Put, version("c"))]
        );
    }
}
