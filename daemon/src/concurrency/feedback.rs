//! What an attempt says about the dependencies of its requests.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use replicator_core::failure::{Dependency, Failure, FailureKind};
use replicator_core::operation::Operation;

/// What a task's requests tell of those they went to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Feedback {
    /// No request was sent, or the attempt ended before the destination could say anything.
    None,
    /// Every dependency served its requests; something was written, or not.
    Served { wrote: bool },
    /// One dependency throttles.
    Throttled(Dependency),
    /// A dependency did not answer, or had trouble of its own, as far as the one key tells.
    Failed(DependencyFailure),
    /// The destination answered, if not as wished.
    Reachable,
}

/// A failure that may be a dependency's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DependencyFailure {
    pub(crate) dependency: Dependency,
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

impl Feedback {
    /// Returns what a failure tells.
    pub(super) fn from_failure(failure: &Failure) -> Self {
        // What is current there was read.
        if let FailureKind::MustWait(_) = failure.kind {
            return Self::Reachable;
        }
        if let Some(dependency) = failure.suspected_dependency() {
            let (operation, status) = (
                failure.operation,
                failure.answer.map(|answer| answer.status),
            );
            return Self::Failed(DependencyFailure {
                dependency,
                operation,
                status,
                was_heard: false,
            });
        }
        match (failure.kind, failure.dependency) {
            (FailureKind::Throttled, Some(dependency)) => Self::Throttled(dependency),
            (_, None | Some(Dependency::Source)) => Self::None,
            // KMS speaks through the destination.
            (_, Some(Dependency::Destination | Dependency::DestinationKey)) => Self::Reachable,
        }
    }

    pub(super) fn trouble(self) -> Option<DependencyFailure> {
        match self {
            Self::Failed(trouble) => Some(trouble),
            Self::None | Self::Served { .. } | Self::Throttled(_) | Self::Reachable => None,
        }
    }

    /// Returns the answer completed by whether the failed dependency answered other requests.
    pub(super) fn given(self, heard: &Heard) -> Self {
        match self {
            Self::Failed(trouble) => Self::Failed(DependencyFailure {
                was_heard: heard.has(trouble.dependency),
                ..trouble
            }),
            unchanged @ (Self::None
            | Self::Served { .. }
            | Self::Throttled(_)
            | Self::Reachable) => unchanged,
        }
    }
}

impl Heard {
    pub(super) fn hear(&self, dependency: Dependency) {
        match dependency {
            Dependency::Source => self.source.store(true, Ordering::Relaxed),
            Dependency::Destination | Dependency::DestinationKey => {
                self.destination.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Says whether a dependency answered; for KMS only a write would show it, so it never counts.
    pub(super) fn has(&self, dependency: Dependency) -> bool {
        match dependency {
            Dependency::Source => self.source.load(Ordering::Relaxed),
            Dependency::Destination => self.destination.load(Ordering::Relaxed),
            Dependency::DestinationKey => false,
        }
    }
}

impl fmt::Display for DependencyFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "answers {status} to {}", self.operation),
            None => write!(f, "does not answer {}", self.operation),
        }
    }
}

/// Describes the trouble of a destination whose circuit is open; one that throttles has no other
/// trouble.
pub(super) fn described(trouble: Option<DependencyFailure>) -> String {
    trouble.map_or_else(
        || "throttles even one task at a time".to_owned(),
        |trouble| trouble.to_string(),
    )
}
