//! What the destination shows of a key, and how far its history reaches. It is read before the
//! source is listed, so that "absent" is always something seen (protocol rule 3).

use std::time::Duration;

use replicator_core::claim::OriginClaim;
use replicator_core::failure::Failure;
use replicator_core::object::Timestamp;
use replicator_core::plan::{
    self, Current, DestinationState, SourceVersion, VersionKind, VersionRef,
};

use super::head::{Expected, HeadResult, current_of_new, read_current};
use super::lookup::{Lookup, adopt_replica, replica_by_version, replicated_record};
use super::snapshot::Snapshot;
use crate::accounts::AccountClients;
use crate::accounts::capabilities::Feature;
use crate::clock::BootInstant;
use crate::engine::Engine;
use crate::ledger::records::{CurrentEntry, Replica, ReplicaState};
use crate::task::Task;

/// What was read of a key at the destination.
#[derive(Debug)]
pub(crate) struct DestinationView {
    pub(crate) known: DestinationState,
    pub(crate) replicas: Vec<Replica>,
    /// The basis of the next write.
    pub(crate) snapshot: Snapshot,
    /// Whether the nothing that is current may be a marker.
    pub(super) is_guess: bool,
    /// Which version an object that is current says it is the replica of, until that is judged.
    claim: Option<OriginClaim>,
    /// How long ago an object that is current, and on no record, was written.
    pub(super) unknown_age: Option<Duration>,
    /// Of the delete marker that is current, where its history had to be looked at.
    marker: Option<Hiding>,
}

/// What the destination's history tells of the delete marker that is current.
#[derive(Debug)]
struct Hiding {
    /// When it was written, or the first of the markers right below it.
    since: Timestamp,
    /// The source's marker that one right below it stands for.
    repeats: Option<VersionRef>,
}

impl DestinationView {
    /// Returns what is on record of the entry that is current.
    pub(super) fn current(&self) -> Option<&Replica> {
        match &self.snapshot.entry {
            CurrentEntry::Nothing => None,
            CurrentEntry::Marker(id) => replica_by_version(&self.replicas, Some(id)),
            CurrentEntry::Object { version, .. } => {
                replica_by_version(&self.replicas, version.as_deref())
            }
        }
    }

    /// Says whether a delete marker is current that is on no record.
    pub(super) fn is_hidden_by_unknown_marker(&self) -> bool {
        matches!(self.snapshot.entry, CurrentEntry::Marker(_)) && self.current().is_none()
    }

    /// Takes a delete marker that is on no record for the one that it repeats, or else for the one
    /// of the source that it can be at the earliest.
    pub(super) fn explain_marker(
        &mut self,
        engine: &Engine,
        task: &Task,
        history: &[SourceVersion],
    ) -> Result<(), Failure> {
        let (CurrentEntry::Marker(id), Some(hiding)) = (&self.snapshot.entry, &self.marker) else {
            return Ok(());
        };
        if !self.is_hidden_by_unknown_marker() {
            return Ok(());
        }
        let first = || plan::marker_shown(history, &self.known, hiding.since);
        let Some(source) = hiding.repeats.as_ref().or_else(first).cloned() else {
            return Ok(());
        };
        let marker = Replica {
            kind: VersionKind::Marker,
            ..replicated_record(source, Some(id.clone()), None)
        };
        self.explained(engine, task, marker)
    }

    /// Takes the delete marker that is current for the one of the source that is gone.
    pub(super) fn explain_marker_by_gone(
        &mut self,
        engine: &Engine,
        task: &Task,
        gone: VersionRef,
    ) -> Result<(), Failure> {
        let CurrentEntry::Marker(id) = &self.snapshot.entry else {
            return Ok(());
        };
        let marker = Replica {
            kind: VersionKind::Marker,
            ..replicated_record(gone, Some(id.clone()), None)
        };
        self.explained(engine, task, marker)
    }

    fn explained(&mut self, engine: &Engine, task: &Task, marker: Replica) -> Result<(), Failure> {
        self.known.advance(&marker.source, Current::Marker);
        adopt_replica(engine, task, marker, &mut self.replicas)
    }
}

/// Reads what is current, and from the ledger how far it reaches. With `may_guess`, a key that was
/// never written by this daemon is read by HEAD alone, or by a list that it shares with others,
/// even of an endpoint whose 404 can mean a marker; and not at all where a condition can be relied
/// on, as at AWS: that of the write tells when there is an object. Some endpoints ignore it.
pub(crate) async fn read(
    engine: &Engine,
    task: &Task,
    may_guess: bool,
) -> Result<DestinationView, Failure> {
    let access = engine.access_to(&task.target.destination)?;
    let replicas = engine.ledger.replicas_of(&task.target)?;
    let asked = BootInstant::now();
    // What was never written by this daemon is mostly new.
    let mut current = match replicas.is_empty() {
        true if may_guess && may_rely_on_conditions(access) => HeadResult::guessed(),
        true if may_guess => current_of_new(engine, access, task).await?,
        true => read_current(access, task, Expected::Hidden).await?,
        false => read_current(access, task, Expected::Object).await?,
    };
    let (claim, is_guess) = (current.claim.take(), current.is_guess);
    let basis = Snapshot::read(current, asked);
    let top = top(&basis.entry, &replicas);
    let reached = match &basis.entry {
        CurrentEntry::Marker(id) => {
            replica_by_version(&replicas, Some(id)).map(|replica| replica.source.clone())
        }
        CurrentEntry::Nothing | CurrentEntry::Object { .. } => replica_of(&top).cloned(),
    };
    let known = known_from(top, reached, &replicas);
    Ok(DestinationView {
        known,
        replicas,
        snapshot: basis,
        is_guess,
        claim,
        unknown_age: None,
        marker: None,
    })
}

/// Finds out from stamps how far the destination reaches, where the ledger has no record of what is
/// current. A stamp is judged by all that the source lists, so this comes after the list.
pub(super) async fn trace(
    engine: &Engine,
    task: &Task,
    shown: &mut DestinationView,
    listed: &[SourceVersion],
) -> Result<(), Failure> {
    if shown.snapshot.entry == CurrentEntry::Nothing || shown.known.reached.is_some() {
        return Ok(());
    }
    let access = engine.access_to(&task.target.destination)?;
    let lookup = Lookup {
        engine,
        task,
        access,
        listed,
        now: shown.snapshot.now_or_after(),
    };
    let claim = shown.claim.take();
    let is_judged = claim.is_some();
    let written = claim.as_ref().and_then(|claim| claim.written);
    let mut reached = None;
    if let (Some(claim), CurrentEntry::Object { etag, version }) = (claim, &shown.snapshot.entry)
        && let Some(source) = lookup.believed(claim, version.as_deref()).await?
    {
        let found = lookup.found_replica(source.clone(), version.clone(), Some(etag.clone()));
        adopt_replica(engine, task, found, &mut shown.replicas)?;
        reached = Some(source);
        shown.unknown_age = age(written, lookup.now);
    }
    let is_replica = reached.is_some();
    if !is_replica {
        let entries = lookup.history().await?;
        // Listed later than what is current was read: only if both agree do they speak of one
        // moment.
        shown.snapshot.agree(entries.first())?;
        for entry in entries.into_iter().skip(usize::from(is_judged)) {
            reached = lookup.identify(entry, &mut shown.replicas, &[]).await?;
            if reached.is_some() {
                break;
            }
        }
    }
    let mut top = top(&shown.snapshot.entry, &shown.replicas);
    if let Current::Object { replica_of, .. } = &mut top
        && is_replica
    {
        replica_of.clone_from(&reached);
    }
    shown.known = known_from(top, reached, &shown.replicas);
    Ok(())
}

/// Returns how old an object is; as old as may be, where the clock is not read exactly.
fn age(written: Option<Timestamp>, now: Option<Timestamp>) -> Option<Duration> {
    Duration::try_from(now? - written?).ok()
}

/// Returns what a reader of the key sees.
fn top(entry: &CurrentEntry, replicas: &[Replica]) -> Current {
    match entry {
        CurrentEntry::Nothing => Current::Nothing,
        CurrentEntry::Marker(_) => Current::Marker,
        CurrentEntry::Object { etag, version } => {
            let replica = replica_by_version(replicas, version.as_deref());
            Current::Object {
                etag: etag.clone(),
                replica_of: replica.map(|replica| replica.source.clone()),
            }
        }
    }
}

fn replica_of(top: &Current) -> Option<&VersionRef> {
    match top {
        Current::Nothing | Current::Marker => None,
        Current::Object { replica_of, .. } => replica_of.as_ref(),
    }
}

fn may_rely_on_conditions(access: &AccountClients) -> bool {
    access.keeps_conditions && access.capabilities.has_feature(Feature::ConditionalPut)
}

/// Reads back every replica that the ledger lacks, by what the source lists.
pub(crate) async fn rebuild_records(
    engine: &Engine,
    task: &Task,
    shown: &mut DestinationView,
    listed: &[SourceVersion],
) -> Result<(), Failure> {
    let access = engine.access_to(&task.target.destination)?;
    let lookup = Lookup {
        engine,
        task,
        access,
        listed,
        now: shown.snapshot.now_or_after(),
    };
    let mut seen = Vec::new();
    let entries = lookup.history().await?;
    // Listed later than what is current was read: only if both agree do they speak of one moment.
    shown.snapshot.agree(entries.first())?;
    shown.marker = hiding(&entries, lookup.may_double_markers(), &shown.replicas);
    for entry in entries {
        seen.extend(lookup.identify(entry, &mut shown.replicas, &seen).await?);
    }
    let known = known_from(Current::Nothing, None, &shown.replicas);
    (shown.known.replicated, shown.known.collapsed) = (known.replicated, known.collapsed);
    Ok(())
}

/// The daemon never writes a marker over a marker (protocol rule 6): a row of them is one that was
/// written twice, where that can be.
fn hiding(entries: &[SourceVersion], may_be_doubled: bool, replicas: &[Replica]) -> Option<Hiding> {
    let markers: Vec<_> = entries
        .iter()
        .take_while(|entry| entry.kind == VersionKind::Marker)
        .collect();
    let (newest, oldest) = (markers.first()?, markers.last()?);
    if !may_be_doubled {
        return Some(Hiding {
            since: newest.version.last_modified,
            repeats: None,
        });
    }
    let known = markers
        .iter()
        .find_map(|entry| replica_by_version(replicas, Some(entry.version.id.as_str())));
    Some(Hiding {
        since: oldest.version.last_modified,
        repeats: known.map(|replica| replica.source.clone()),
    })
}

fn known_from(top: Current, reached: Option<VersionRef>, replicas: &[Replica]) -> DestinationState {
    let of = |wanted: fn(ReplicaState) -> bool| {
        replicas
            .iter()
            .filter(|replica| wanted(replica.state))
            .map(|replica| replica.source.clone())
            .collect()
    };
    DestinationState {
        current: top,
        reached,
        replicated: of(|state| matches!(state, ReplicaState::Replicated | ReplicaState::Deleted)),
        collapsed: of(|state| state == ReplicaState::Coalesced),
        skipped: of(|state| {
            matches!(
                state,
                ReplicaState::Skipped | ReplicaState::Superseded | ReplicaState::SourceMissing
            )
        }),
    }
}
