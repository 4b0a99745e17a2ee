//! What a write depends on: which entry was current at the destination when it was planned, and how
//! long ago that was read. A condition sees only an ETag; this sees whether it is the same entry.

use replicator_core::deadline::READING_AGE_MAX;
use replicator_core::failure::{Failure, FailureKind};
use replicator_core::object::Timestamp;
use replicator_core::operation::Operation;
use replicator_core::plan::SourceVersion;

use super::head::{Expected, HeadResult, read_current};
use crate::accounts::AccountClients;
use crate::clock::{self, BootInstant};
use crate::ledger::records::CurrentEntry;
use crate::task::Task;

/// An entry as it was read.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) entry: CurrentEntry,
    /// Since when it may have been another one.
    read: BootInstant,
    /// The server's clock.
    clock: Clock,
}

/// What time it was at the server, at some moment between the question and the answer.
#[derive(Debug, Clone, Copy)]
struct Clock {
    date: Option<Timestamp>,
    asked: BootInstant,
    answered: BootInstant,
}

impl Snapshot {
    /// Makes the basis of what was just read by a request that was sent at this moment.
    pub(crate) fn read(current: HeadResult, asked: BootInstant) -> Self {
        let HeadResult { entry, date, .. } = current;
        Self {
            entry,
            read: asked,
            clock: Clock {
                date,
                asked,
                answered: BootInstant::now(),
            },
        }
    }

    /// Makes the basis of what a write made current that was sent at this moment. It stands there
    /// since the answer at the latest, and may have been overwritten since it was sent.
    pub(super) fn written(&self, entry: CurrentEntry, sent: BootInstant) -> Self {
        Self {
            entry,
            read: sent,
            clock: self.clock,
        }
    }

    /// Returns what time it is by the server's clock, or less, if it said so. Ours may be wrong,
    /// and jump.
    pub(super) fn now_or_before(&self) -> Option<Timestamp> {
        Some(clock::saturating_later(
            self.clock.date?,
            self.clock.answered.elapsed(),
        ))
    }

    /// Returns what time it is by the server's clock, or more.
    pub(super) fn now_or_after(&self) -> Option<Timestamp> {
        Some(clock::saturating_later(
            self.clock.date?,
            self.clock.asked.elapsed(),
        ))
    }

    /// Makes sure that what a list names first is the entry that was read.
    pub(super) fn agree(&self, first: Option<&SourceVersion>) -> Result<(), Failure> {
        let agrees = match (&self.entry, first.map(|entry| entry.version.id.as_str())) {
            (CurrentEntry::Nothing, first) => first.is_none(),
            (CurrentEntry::Marker(id), first) => first == Some(id.as_str()),
            (
                CurrentEntry::Object {
                    version: Some(id), ..
                },
                first,
            ) => first == Some(id.as_str()),
            (CurrentEntry::Object { version: None, .. }, _) => true,
        };
        if agrees {
            Ok(())
        } else {
            Err(Failure::new(
                FailureKind::PreconditionFailed,
                Operation::ListObjectVersions,
            ))
        }
    }

    /// Reads again if the reading is too old for a write: another writer may have written since.
    /// Says when it did, so that the other side can be looked at again, too.
    pub(super) async fn renew_if_old(
        &self,
        access: &AccountClients,
        task: &Task,
    ) -> Result<Option<VerifiedAt>, Failure> {
        let is_old = self.read.elapsed() > READING_AGE_MAX;
        if is_old {
            self.verify(access, task).await.map(Some)
        } else {
            Ok(None)
        }
    }

    /// Makes sure that the entry is still current; returns when that was.
    pub(super) async fn verify(
        &self,
        access: &AccountClients,
        task: &Task,
    ) -> Result<VerifiedAt, Failure> {
        let asked = BootInstant::now();
        let now = read_current(access, task, self.entry.likely()).await?;
        if now.entry != self.entry {
            return Err(Failure::new(FailureKind::PreconditionFailed, LOOK));
        }
        let looked = VerifiedAt(asked);
        looked.is_fresh().map(|()| looked)
    }
}

/// When the basis of a write was looked at last.
#[derive(Debug, Clone, Copy)]
pub(super) struct VerifiedAt(BootInstant);

impl VerifiedAt {
    /// Makes sure that the look is fresh enough for a write, whatever requests came since.
    pub(super) fn is_fresh(self) -> Result<(), Failure> {
        if self.0.elapsed() <= READING_AGE_MAX {
            Ok(())
        } else {
            Err(Failure::new(FailureKind::PreconditionFailed, LOOK))
        }
    }
}

pub(super) const LOOK: Operation = Operation::HeadObject;

impl CurrentEntry {
    fn likely(&self) -> Expected {
        if matches!(self, Self::Object { .. }) {
            Expected::Object
        } else {
            Expected::Hidden
        }
    }
}
