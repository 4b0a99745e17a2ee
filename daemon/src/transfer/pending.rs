//! An upload whose completion got no answer. S3 may take minutes to put it together, and until then it may appear at its
//! key whatever was written there meanwhile (protocol rule 7). The ledger knows until when, so a restart forgets nothing.

use std::time::Duration;

use aws_sdk_s3::error::ProvideErrorMetadata;
use replicator_core::failure::{Failure, Kind};
use replicator_core::fence::{LANDING, complete_timeout};
use replicator_core::plan::VersionRef;

use super::basis::{Basis, Entry};
use super::copy::Copy;
use super::destination::Shown;
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
    /// Finds the one of a key, and forgets the one that has appeared: what it was to be is there, and its id is used up.
    pub(super) async fn at(engine: &Engine, task: &Task, shown: &Shown) -> Result<Option<Self>, Failure> {
        let Some((upload, _)) = engine.ledger.upload(&task.lane)? else { return Ok(None) };
        let access = engine.access(&task.lane.destination)?;
        let is_there = upload.appears_until.is_some() && shown.known.replicated.contains(&upload.source);
        if is_there && is_used_up(access, task, &upload).await {
            engine.ledger.end_upload(&task.lane)?;
            return Ok(None);
        }
        Ok(Self::of(&upload, access, &shown.basis))
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

/// Says whether an upload can neither be completed nor aborted any more. Alone that does not tell that it has appeared, nor
/// does a replica of its version, which another daemon may have written. Who may not ask has to wait.
async fn is_used_up(access: &Access, task: &Task, upload: &Upload) -> bool {
    let request = access
        .s3
        .list_parts()
        .bucket(task.lane.destination.bucket.as_str())
        .key(task.lane.key.as_str())
        .upload_id(&upload.upload_id)
        .max_parts(1);
    request.send().await.is_err_and(|error| error.code() == Some("NoSuchUpload"))
}

/// Writes down until when an upload may appear that is about to be completed.
pub(super) fn expect(copy: &Copy<'_>, upload: &Upload) -> Result<(), Failure> {
    let life = complete_timeout(copy.version.size_bytes) + LANDING;
    let until = copy.basis.now_or_after().unwrap_or_else(clock::now) + life;
    copy.engine.ledger.put_upload(&copy.task.lane, &Upload { appears_until: Some(until), ..upload.clone() })
}
