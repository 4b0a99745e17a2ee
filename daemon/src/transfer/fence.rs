//! The two kinds of write that no condition protects wait until nothing that was planned before what
//! is current can land any more (protocol rule 5).

use std::time::Duration;

use replicator_core::failure::{Failure, Kind};
use replicator_core::fence;
use replicator_core::plan::{Kind as EntryKind, SourceVersion};

use super::{Memory, Run, encryption};
use crate::ledger::records::{Replica, State};

// Looked at again this often: what is waited over may have been overtaken.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Lets a write of this version pass, or says how long it has to wait.
pub(super) fn check(run: &Run<'_>, version: &SourceVersion, memory: &mut Memory) -> Result<(), Failure> {
    let lead = &run.task.rules.lead;
    if !lead.fence || lead.exclusive || !needs(run, version) {
        return Ok(());
    }
    let age = age(run, memory);
    outlive(run, age)
}

/// Passes when something is older than any write of this key can live, or says how long that takes.
fn outlive(run: &Run<'_>, age: Duration) -> Result<(), Failure> {
    let is_listed = |replica: &Replica| run.read.past.iter().any(|entry| entry.version == replica.source);
    let is_young_object = |replica: &&Replica| replica.kind == EntryKind::Object && is_young(run, replica);
    // Of what was purged since nobody can tell how large it was.
    let window = match run.read.shown.replicas.iter().filter(is_young_object).any(|replica| !is_listed(replica)) {
        true => fence::window_max(),
        false => fence::window(&run.read.past),
    };
    wait(run, window, age)
}

/// Says whether writes may be under way that were planned before this replica stood there.
fn is_young(run: &Run<'_>, replica: &Replica) -> bool {
    let since = replica.written.or(replica.found);
    let age = || Duration::try_from(run.read.shown.basis.now_or_before()? - since?).ok();
    replica.state == State::Replicated && age().is_none_or(|age| age < fence::window_max())
}

/// Says whether content may recur that neither the source's list nor the ledger has: others wrote at the key, not long ago,
/// and the source may have lost some of that.
pub(super) fn is_blind(run: &Run<'_>, memory: &mut Memory) -> bool {
    let lead = &run.task.rules.lead;
    let is_adopted = |replica: &Replica| replica.found.is_some() && is_young(run, replica);
    let others = run.read.shown.replicas.iter().any(is_adopted) && run.read.shown.stood.is_empty();
    lead.fence && !lead.exclusive && others && age(run, memory) < fence::window_max()
}

/// The same for any write of a version that the source no longer lists, whatever its size was.
pub(super) fn outlive_all(run: &Run<'_>, age: Duration) -> Result<(), Failure> {
    wait(run, fence::window_max(), age)
}

fn wait(run: &Run<'_>, window: Duration, age: Duration) -> Result<(), Failure> {
    let lead = &run.task.rules.lead;
    match window.saturating_sub(age) {
        Duration::ZERO => Ok(()),
        _ if !lead.fence || lead.exclusive => Ok(()),
        left => Err(Failure::new(Kind::TooYoung(left.min(LOOK_EVERY)), "fence")),
    }
}

/// A marker always, content that stood at the key before unless every write gets an ETag of its own.
pub(super) fn needs(run: &Run<'_>, version: &SourceVersion) -> bool {
    if version.kind == EntryKind::Marker {
        return true;
    }
    let unique = run.task.rules.iter().all(|rule| encryption::makes_unique_etags(&rule.encryption));
    let shown = &run.read.shown;
    let replicas = shown.replicas.iter().filter_map(|replica| replica.etag.as_ref()).chain(&shown.stood);
    // What is written once more, because something hides it, recurs whatever its ETag.
    let again = run.read.shown.known.replicated.contains(&version.version);
    !unique && (again || fence::recurs(version, &run.read.past, replicas))
}

/// How long what is current has surely stood there: by the server, by the ledger, or by having seen it.
fn age(run: &Run<'_>, memory: &mut Memory) -> Duration {
    let basis = &run.read.shown.basis;
    let seen = memory.seen_for(&basis.entry);
    // Where versions go, an old entry may be current only since the one above it went.
    if run.task.rules.lead.version_deletes {
        return seen;
    }
    let written = run.read.shown.current().and_then(|replica| replica.written.or(replica.found));
    let written = written.and_then(|then| Duration::try_from(basis.now_or_before()? - then).ok()).unwrap_or_default();
    seen.max(basis.age()).max(written)
}
