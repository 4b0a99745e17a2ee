//! Replicas without a stamp, because the user's metadata left it no room. When the ledger does not
//! know one either, after a lost answer or a lost disk, its content tells, and its place in the history.

use http::HeaderMap;
use replicator_core::alignment::{self, Original};
use replicator_core::failure::{Failure, Kind, Reason};
use replicator_core::plan::{self, SourceVersion};
use replicator_core::stamp::USER_METADATA_BYTES_MAX;

use super::attributes::{Attributes, STAMP};
use super::destination::Shown;
use super::lookup::{Found, Origin};
use super::pinned::Pinned;
use crate::checksum::{CRC64_NVME, crc64_stated};
use crate::engine::Engine;
use crate::task::Task;
use crate::wire::Head;

/// What a full object carries beside its bytes. Two with the same bytes and looks are equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Looks {
    headers: HeaderMap,
    size_bytes: u64,
}

/// What tells one content of a key from another: its looks and the checksum of its bytes.
type Print = (Looks, u64);

impl Looks {
    /// Returns the looks of an object whose metadata has no room for a stamp; the others have one,
    /// or are not ours. A stamp on a source object is never copied, so it does not count.
    pub(super) fn of_full(head: &Head) -> Option<Self> {
        let mut attributes = Attributes::from(head);
        attributes.told.remove(STAMP);
        (attributes.user_bytes() + STAMP_BYTES_MAX > USER_METADATA_BYTES_MAX)
            .then(|| Self { headers: attributes.told, size_bytes: head.content_length().unwrap_or_default() })
    }
}

// More than a stamp ever takes: the longest names of bucket and version, a time, a sequencer, a digest.
const STAMP_BYTES_MAX: usize = 256;

/// Finds out which of the destination's objects without a stamp are replicas, and of what.
pub(super) async fn recognise(
    engine: &Engine,
    task: &Task,
    shown: &mut Shown,
    history: &[SourceVersion],
) -> Result<(), Failure> {
    if !shown.history.iter().any(|found| matches!(found.origin, Origin::Unstamped(_))) {
        return Ok(());
    }
    let search = Search { engine, task };
    let originals = search.originals(shown, history).await?;
    let (at, found): (Vec<usize>, Vec<_>) = search.found(shown, &originals).await?.into_iter().unzip();
    for (at, place) in at.into_iter().zip(alignment::align(&originals, &found)) {
        if let Some(original) = place.and_then(|place| history.get(place)) {
            shown.recognised(engine, task, at, &original.version)?;
        }
    }
    Ok(())
}

struct Search<'a> {
    engine: &'a Engine,
    task: &'a Task,
}

impl Search<'_> {
    /// Returns the source's history, with the content of those versions that an unknown object of the
    /// destination looks like.
    async fn originals(&self, shown: &Shown, history: &[SourceVersion]) -> Result<Vec<Original<Print>>, Failure> {
        let access = self.engine.access(&self.task.source)?;
        let unknown: Vec<&Looks> = shown.history.iter().filter_map(Found::looks).collect();
        let mut originals = Vec::with_capacity(history.len());
        for entry in history {
            let has_the_size = unknown.iter().any(|looks| looks.size_bytes == entry.size_bytes);
            let print = match entry.kind == plan::Kind::Object && has_the_size && shown.may_be_unknown(&entry.version) {
                true => unless_lost(self.print(&Pinned::original(access, self.task, entry), &unknown).await)?,
                false => None,
            };
            originals.push(Original { version: entry.version.clone(), print });
        }
        Ok(originals)
    }

    /// Returns the destination's objects, oldest first, without those that look like no original, and
    /// where each stands in what was read.
    async fn found(
        &self,
        shown: &Shown,
        originals: &[Original<Print>],
    ) -> Result<Vec<(usize, alignment::Found<Print>)>, Failure> {
        let access = self.engine.access(&self.task.lane.destination)?;
        let wanted: Vec<&Looks> = originals.iter().filter_map(|original| Some(&original.print.as_ref()?.0)).collect();
        let mut all = Vec::with_capacity(shown.history.len());
        for (at, found) in shown.history.iter().enumerate().rev() {
            let found = match &found.origin {
                Origin::Replica(version) => Some(alignment::Found::Replica(version.clone())),
                Origin::Unstamped(looks) if !wanted.contains(&looks) => None,
                Origin::Unstamped(_) => {
                    let replica = Pinned::replica(access, self.task, &found.entry);
                    self.print(&replica, &wanted).await?.map(alignment::Found::Unknown)
                }
            };
            all.extend(found.map(|found| (at, found)));
        }
        Ok(all)
    }

    /// Reads what a version is like; `None` when it is like none of the wanted.
    async fn print(&self, version: &Pinned<'_>, wanted: &[&Looks]) -> Result<Option<Print>, Failure> {
        let head = match version.head().await {
            Ok(head) => head,
            // Removed since it was listed, or another one took its place.
            Err(refusal) if refusal.is_absent() || refusal.failure.kind == Kind::Conflict => return Ok(None),
            Err(refusal) => return Err(refusal.into()),
        };
        let Some(looks) = Looks::of_full(&head).filter(|looks| wanted.contains(&looks)) else { return Ok(None) };
        let crc64 = match head.header(CRC64_NVME).and_then(crc64_stated) {
            Some(crc64) => crc64,
            None => version.crc64(self.engine, &self.task.rules.lead, &self.task.lane).await?,
        };
        Ok(Some((looks, crc64)))
    }
}

/// A version that is gone, or of which nobody may know anything (a HEAD under a customer's key is
/// answered 400), is no one's original; whoever copies it finds out why.
fn unless_lost(print: Result<Option<Print>, Failure>) -> Result<Option<Print>, Failure> {
    match print {
        Err(Failure { kind: Kind::Gone | Kind::Unsupported(_) | Kind::Refused(Reason::RequestRefused), .. }) => {
            Ok(None)
        }
        print => print,
    }
}
