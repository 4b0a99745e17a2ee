//! An upload whose completion got no answer. S3 may take minutes to put it together, and until then it may appear at its
//! key whatever was written there meanwhile (protocol rule 7). The ledger knows until when, so a restart forgets nothing.

use std::time::Duration;

use replicator_core::failure::{Failure, Kind};
use replicator_core::fence::{LANDING, complete_timeout};
use replicator_core::plan::VersionRef;

use super::basis::{Basis, Entry};
use super::copy::Copy;
use super::fence;
use crate::accounts::Access;
use crate::accounts::capabilities::Ability;
use crate::clock;
use crate::engine::Engine;
use crate::ledger::records::Upload;
use crate::task::Task;

/// An upload that may appear yet.
#[derive(Debug)]
pub(super) struct Pending {
    version: VersionRef,
    left: Duration,
}

impl Pending {
    /// Finds the one of a key.
    pub(super) fn at(engine: &Engine, task: &Task, basis: &Basis) -> Result<Option<Self>, Failure> {
        let Some((upload, _)) = engine.ledger.upload(&task.lane)? else { return Ok(None) };
        Ok(Self::of(&upload, engine.access(&task.lane.destination)?, basis))
    }

    /// Tells by what is current: over another object its condition does not hold, where it has one.
    pub(super) fn of(upload: &Upload, access: &Access, basis: &Basis) -> Option<Self> {
        let until = upload.appears_until?;
        let may_land = !access.capabilities.has(Ability::ConditionalComplete)
            || !matches!(basis.entry, Entry::Object { .. })
            || basis.entry.to_string() == upload.entry;
        let left = Duration::try_from(until - basis.now_or_before().unwrap_or_else(clock::now)).unwrap_or_default();
        (may_land && !left.is_zero()).then(|| Self { version: upload.source.clone(), left })
    }

    /// Lets nothing be done but complete it again, which makes it appear once however often that is done.
    pub(super) fn allows(&self, version: Option<&VersionRef>) -> Result<(), Failure> {
        match version == Some(&self.version) {
            true => Ok(()),
            false => Err(Failure::new(Kind::TooYoung(self.left.min(fence::LOOK_EVERY)), "CompleteMultipartUpload")),
        }
    }
}

/// Writes down until when an upload may appear that is about to be completed.
pub(super) fn expect(copy: &Copy<'_>, upload: &Upload) -> Result<(), Failure> {
    let life = complete_timeout(copy.version.size_bytes) + LANDING;
    let until = copy.basis.now_or_after().unwrap_or_else(clock::now) + life;
    copy.engine.ledger.put_upload(&copy.task.lane, &Upload { appears_until: Some(until), ..upload.clone() })
}
