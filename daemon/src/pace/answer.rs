//! What an attempt says about the dependencies of its requests.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use replicator_core::failure::{Failure, Kind, Party};
use replicator_core::operation::Operation;

/// What a task's requests tell of those they went to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// No request was sent, or the attempt ended before the destination could say anything.
    None,
    /// Every dependency served its requests; something was written, or not.
    Served { wrote: bool },
    /// One dependency throttles.
    Throttled(Party),
    /// A dependency did not answer, or had trouble of its own, as far as the one key tells.
    Failed(Trouble),
    /// The destination answered, if not as wished.
    Alive,
}

/// A failure that may be a dependency's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) party: Party,
    /// The request, by its name in the service's API.
    pub(super) operation: Operation,
    /// What the answer was, if there was one.
    pub(super) status: Option<u16>,
    /// The dependency answered something else in the same attempt.
    pub(super) was_heard: bool,
}

/// The dependencies that answered a request of one attempt.
#[derive(Debug, Default)]
pub(super) struct Heard {
    source: AtomicBool,
    destination: AtomicBool,
}

impl Answer {
    /// Returns what a failure tells.
    pub(super) fn of(failure: &Failure) -> Self {
        // What is current there was read.
        if let Kind::TooYoung(_) = failure.kind {
            return Self::Alive;
        }
        if let Some(party) = failure.suspect() {
            let (operation, status) = (failure.during, failure.answer.map(|answer| answer.status));
            return Self::Failed(Trouble { party, operation, status, was_heard: false });
        }
        match (failure.kind, failure.party) {
            (Kind::Throttled, Some(party)) => Self::Throttled(party),
            (_, None | Some(Party::Source)) => Self::None,
            // KMS speaks through the destination.
            (_, Some(Party::Destination | Party::DestinationKey)) => Self::Alive,
        }
    }

    pub(super) fn trouble(self) -> Option<Trouble> {
        match self {
            Self::Failed(trouble) => Some(trouble),
            Self::None | Self::Served { .. } | Self::Throttled(_) | Self::Alive => None,
        }
    }

    /// Returns the answer completed by whether the failed dependency answered other requests.
    pub(super) fn given(self, heard: &Heard) -> Self {
        match self {
            Self::Failed(trouble) => Self::Failed(Trouble { was_heard: heard.has(trouble.party), ..trouble }),
            unchanged @ (Self::None | Self::Served { .. } | Self::Throttled(_) | Self::Alive) => unchanged,
        }
    }
}

impl Heard {
    pub(super) fn hear(&self, party: Party) {
        match party {
            Party::Source => self.source.store(true, Ordering::Relaxed),
            Party::Destination | Party::DestinationKey => self.destination.store(true, Ordering::Relaxed),
        }
    }

    /// Says whether a dependency answered; for KMS only a write would show it, so it never counts.
    pub(super) fn has(&self, party: Party) -> bool {
        match party {
            Party::Source => self.source.load(Ordering::Relaxed),
            Party::Destination => self.destination.load(Ordering::Relaxed),
            Party::DestinationKey => false,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "answers {status} to {}", self.operation),
            None => write!(f, "does not answer {}", self.operation),
        }
    }
}

/// Describes the trouble of a destination whose circuit is open; one that throttles has no other
/// trouble.
pub(super) fn described(trouble: Option<Trouble>) -> String {
    trouble.map_or_else(|| "asks for less than one task at a time".to_owned(), |trouble| trouble.to_string())
}
