//! What one lane has to do: at most one task works, what arrives meanwhile waits for the next.

use crate::task::{Task, Wish};

/// A lane that has work.
///
/// ```text
/// free ──begin──▶ working ──end──▶ free
///                    └─────stop──▶ landing ──landed──▶ free
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
}

/// One wish of one message; a parked task that is tried again has no message.
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

    /// Begins a task for all that waits and is wanted still, if the lane is free; it goes by the
    /// newest rules that it was given.
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
            ..newest.task.clone()
        };
        self.stage = Stage::Working(tickets);
        Some(task)
    }

    /// Ends the task and returns what it was about.
    pub(super) fn end(&mut self) -> Vec<Ticket> {
        match std::mem::take(&mut self.stage) {
            Stage::Working(tickets) => tickets,
            Stage::Free | Stage::Landing => Vec::new(),
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

    /// Says whether no message asks for any of it: it was parked.
    pub(super) fn is_unbidden(&self) -> bool {
        self.tickets().all(|ticket| ticket.message.is_none())
    }

    /// Lists what waits for its turn.
    pub(super) fn waiting(&self) -> &[Ticket] {
        &self.waiting
    }

    /// Frees the lane: what was written has landed, or never will.
    pub(super) fn landed(&mut self) {
        if matches!(self.stage, Stage::Landing) {
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
            Stage::Free | Stage::Landing => &[],
        }
    }

    /// Lists what may have a write on its way.
    pub(super) fn in_flight(&self) -> &[Ticket] {
        match &self.stage {
            Stage::Working(tickets) => tickets,
            Stage::Landing => &self.waiting,
            Stage::Free => &[],
        }
    }
}
