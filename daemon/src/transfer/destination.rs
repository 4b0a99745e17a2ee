//! What the destination shows of a key, and how far its history reaches. It is read before the
//! source is listed, so that "absent" is always something seen (protocol rule 2).

use replicator_core::failure::Failure;
use replicator_core::object::{ETag, Timestamp};
use replicator_core::plan::{self, Kind, Known, SourceVersion, Top, VersionRef};
use replicator_core::stamp::NAME;
use tokio::time::Instant;
use tracing::info;

use super::basis::{Basis, Entry};
use super::current::{Current, Likely, current, current_of_new, origin};
use super::listing;
use super::unstamped::Looks;
use crate::accounts::Access;
use crate::accounts::capabilities::Ability;
use crate::accounts::refusal::Side;
use crate::engine::Engine;
use crate::ledger::records::{Replica, State};
use crate::task::Task;
use crate::wire::Call;

/// What was read of a key at the destination.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) known: Known,
    pub(crate) replicas: Vec<Replica>,
    /// What the next write rests on.
    pub(crate) basis: Basis,
    /// Whether the nothing that is current may be a marker.
    pub(super) is_guess: bool,
    /// Of the delete marker that is current, where its history had to be looked at.
    marker: Option<Hiding>,
    /// ETags that stand at the key, where others than this daemon wrote there.
    pub(super) stood: Vec<ETag>,
    /// What had to be looked at of its history, newest first; without what cannot be ours.
    pub(super) history: Vec<Found>,
}

/// What the destination's history tells of the delete marker that is current.
#[derive(Debug)]
struct Hiding {
    /// When it was written, or the first of the markers right below it.
    since: Timestamp,
    /// The source's marker that one right below it stands for.
    repeats: Option<VersionRef>,
}

/// An entry of the destination's history that is ours, or may be.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) entry: SourceVersion,
    pub(super) origin: Origin,
}

/// What is known of an entry's origin.
#[derive(Debug)]
pub(super) enum Origin {
    /// It is the replica of this version.
    Replica(VersionRef),
    /// It has no stamp, and no room for one.
    Unstamped(Looks),
}

impl Found {
    /// Returns the looks of an object of unknown origin.
    pub(super) fn looks(&self) -> Option<&Looks> {
        match &self.origin {
            Origin::Replica(_) => None,
            Origin::Unstamped(looks) => Some(looks),
        }
    }

    fn replica_of(&self) -> Option<&VersionRef> {
        match &self.origin {
            Origin::Replica(version) => Some(version),
            Origin::Unstamped(_) => None,
        }
    }
}

impl Shown {
    /// Returns what is on record of the entry that is current.
    pub(super) fn current(&self) -> Option<&Replica> {
        match &self.basis.entry {
            Entry::Nothing => None,
            Entry::Marker(id) => replica_by_version(&self.replicas, Some(id)),
            Entry::Object { version, .. } => replica_by_version(&self.replicas, version.as_deref()),
        }
    }

    /// Says whether a delete marker is current that is on no record.
    pub(super) fn is_hidden_by_stranger(&self) -> bool {
        matches!(self.basis.entry, Entry::Marker(_)) && self.current().is_none()
    }

    /// Takes a delete marker that is on no record for the one that it repeats, or else for the one of the source that it
    /// can be at the earliest.
    pub(super) fn explain_marker(
        &mut self,
        engine: &Engine,
        task: &Task,
        history: &[SourceVersion],
    ) -> Result<(), Failure> {
        let (Entry::Marker(id), Some(hiding)) = (&self.basis.entry, &self.marker) else { return Ok(()) };
        if !self.is_hidden_by_stranger() {
            return Ok(());
        }
        let first = || plan::marker_shown(history, &self.known, hiding.since);
        let Some(source) = hiding.repeats.as_ref().or_else(first).cloned() else { return Ok(()) };
        let marker = Replica { kind: Kind::Marker, ..replica(source, Some(id.clone()), None) };
        self.explained(engine, task, marker)
    }

    /// Takes the delete marker that is current for the one of the source that is gone.
    pub(super) fn explain_marker_by_gone(
        &mut self,
        engine: &Engine,
        task: &Task,
        gone: VersionRef,
    ) -> Result<(), Failure> {
        let Entry::Marker(id) = &self.basis.entry else { return Ok(()) };
        let marker = Replica { kind: Kind::Marker, ..replica(gone, Some(id.clone()), None) };
        self.explained(engine, task, marker)
    }

    fn explained(&mut self, engine: &Engine, task: &Task, marker: Replica) -> Result<(), Failure> {
        self.known.advance(&marker.source, Top::Marker);
        adopt(engine, task, marker, &mut self.replicas)
    }

    /// Says whether a replica of this version may be there without our knowing: it was never settled,
    /// or it was reached and perhaps written once more.
    pub(super) fn may_be_unknown(&self, version: &VersionRef) -> bool {
        let settled = self.known.replicated.contains(version) || self.known.skipped.contains(version);
        !settled || self.known.reached.as_ref() == Some(version)
    }

    /// Records what only its content told: that an entry of the history is this version's replica.
    pub(super) fn recognised(
        &mut self,
        engine: &Engine,
        task: &Task,
        at: usize,
        version: &VersionRef,
    ) -> Result<(), Failure> {
        let Some(found) = self.history.get_mut(at).filter(|found| found.looks().is_some()) else { return Ok(()) };
        found.origin = Origin::Replica(version.clone());
        let (id, etag) = (found.entry.version.id.as_str(), found.entry.etag.clone());
        info!(key = %task.lane.key, version = %version.id, replica = id, "recognised by content");
        let found = self.basis.now_or_after();
        let replica = Replica { found, ..replica(version.clone(), Some(id.to_owned()), etag) };
        adopt(engine, task, replica, &mut self.replicas)?;
        let is_current = matches!(&self.basis.entry, Entry::Object { version, .. } if version.as_deref() == Some(id));
        if let Top::Object { replica_of, .. } = &mut self.known.top
            && is_current
        {
            *replica_of = Some(version.clone());
        }
        self.known.replicated.insert(version.clone());
        self.known.reached = self.history.iter().find_map(Found::replica_of).cloned();
        Ok(())
    }
}

/// Reads what is current, and from ledger, stamp or history how far it reaches. With `may_guess`, a key that was never
/// written by this daemon is asked for by HEAD alone, or by a list that it shares with others, even of an endpoint whose
/// 404 can mean a marker; and not at all of AWS by a daemon that is alone: the condition of its write tells when there is
/// an object. Some endpoints ignore it.
pub(crate) async fn read(engine: &Engine, task: &Task, may_guess: bool) -> Result<Shown, Failure> {
    let access = engine.access(&task.lane.destination)?;
    let mut replicas = engine.ledger.replicas(&task.lane)?;
    let mut history = Vec::new();
    let asked = Instant::now();
    // What was never written by this daemon is mostly new.
    let mut current = match replicas.is_empty() {
        true if may_guess && task.rules.lead.exclusive && may_rely_on_conditions(access) => Current::guessed(),
        true if may_guess => current_of_new(engine, access, task).await?,
        true => current(access, task, Likely::Hidden).await?,
        false => current(access, task, Likely::Object).await?,
    };
    let (stamp, is_guess) = (current.stamp.take(), current.is_guess);
    let basis = Basis::read(current, asked);
    let reading = Reading { engine, task, access, now: basis.now_or_after() };
    let (top, reached) = match basis.entry.clone() {
        Entry::Nothing => (Top::Nothing, None),
        Entry::Object { etag, version } => {
            let mut replica_of =
                replica_by_version(&replicas, version.as_deref()).map(|replica| replica.source.clone());
            if let (None, Some(source)) = (&replica_of, stamp) {
                adopt(engine, task, reading.found(source.clone(), version, Some(etag.clone())), &mut replicas)?;
                replica_of = Some(source);
            }
            let reached = match &replica_of {
                Some(version) => Some(version.clone()),
                None => reading.newest_replica(&mut replicas, &mut history).await?,
            };
            (Top::Object { etag, replica_of }, reached)
        }
        Entry::Marker(id) => match replica_by_version(&replicas, Some(&id)) {
            Some(replica) => (Top::Marker, Some(replica.source.clone())),
            None => (Top::Marker, reading.newest_replica(&mut replicas, &mut history).await?),
        },
    };
    let known = known(top, reached, &replicas);
    Ok(Shown { known, replicas, basis, is_guess, marker: None, stood: Vec::new(), history })
}

fn may_rely_on_conditions(access: &Access) -> bool {
    access.is_aws && access.capabilities.has(Ability::ConditionalPut)
}

/// Looks which ETags stand at the key: what others wrote there in its turn the ledger may lack, and the source's list too.
pub(super) async fn look_below(engine: &Engine, task: &Task, shown: &mut Shown) -> Result<(), Failure> {
    let access = engine.access(&task.lane.destination)?;
    let entries = Reading { engine, task, access, now: None }.history().await?;
    shown.stood = entries.into_iter().filter_map(|entry| entry.etag).collect();
    Ok(())
}

/// Reads back every replica that the ledger lacks.
pub(crate) async fn rebuild(engine: &Engine, task: &Task, shown: &mut Shown) -> Result<(), Failure> {
    let access = engine.access(&task.lane.destination)?;
    let reading = Reading { engine, task, access, now: shown.basis.now_or_after() };
    shown.history.clear();
    let entries = reading.history().await?;
    // Listed later than what is current was read: only if both agree do they speak of one moment.
    shown.basis.agree(entries.first())?;
    shown.marker = hiding(&entries, reading.may_double_markers(), &shown.replicas);
    for entry in entries {
        let found = reading.identify(entry, &mut shown.replicas, &shown.history).await?;
        shown.history.extend(found);
    }
    let known = known(Top::Nothing, None, &shown.replicas);
    (shown.known.replicated, shown.known.collapsed) = (known.replicated, known.collapsed);
    Ok(())
}

/// Nobody writes a marker over a marker (protocol rule 6): what stands so is one that was written twice, where that can be.
fn hiding(entries: &[SourceVersion], may_be_doubled: bool, replicas: &[Replica]) -> Option<Hiding> {
    let markers: Vec<_> = entries.iter().take_while(|entry| entry.kind == Kind::Marker).collect();
    let (newest, oldest) = (markers.first()?, markers.last()?);
    if !may_be_doubled {
        return Some(Hiding { since: newest.version.last_modified, repeats: None });
    }
    let known = markers.iter().find_map(|entry| replica_by_version(replicas, Some(entry.version.id.as_str())));
    Some(Hiding { since: oldest.version.last_modified, repeats: known.map(|replica| replica.source.clone()) })
}

struct Reading<'a> {
    engine: &'a Engine,
    task: &'a Task,
    access: &'a Access,
    /// What time it is at the destination, or later.
    now: Option<Timestamp>,
}

impl Reading<'_> {
    /// Says whether two daemons may write one marker twice: where deletes know no condition. Where versions are deleted for
    /// good, what stood between two markers may have gone.
    fn may_double_markers(&self) -> bool {
        let is_guarded = self.access.capabilities.has(Ability::ConditionalDelete);
        !is_guarded && !self.task.rules.lead.version_deletes
    }

    /// Returns the record of a replica that is found there.
    fn found(&self, source: VersionRef, destination_version: Option<String>, etag: Option<ETag>) -> Replica {
        Replica { found: self.now, ..replica(source, destination_version, etag) }
    }

    /// Finds the newest of our replicas below what is current, and what may be ours above it.
    async fn newest_replica(
        &self,
        replicas: &mut Vec<Replica>,
        history: &mut Vec<Found>,
    ) -> Result<Option<VersionRef>, Failure> {
        for entry in self.history().await? {
            history.extend(self.identify(entry, replicas, history).await?);
            if let Some(version) = history.last().and_then(Found::replica_of) {
                return Ok(Some(version.clone()));
            }
        }
        Ok(None)
    }

    /// Lists the destination's versions of the key, newest first.
    async fn history(&self) -> Result<Vec<SourceVersion>, Failure> {
        let lane = &self.task.lane;
        listing::history(self.access, Side::Destination, &lane.destination.bucket, &lane.key).await
    }

    /// Says which source version an entry of the destination is the replica of, and records what
    /// only its stamp knew, unless a newer entry is a replica of the same; `None` when it cannot be one.
    async fn identify(
        &self,
        entry: SourceVersion,
        replicas: &mut Vec<Replica>,
        newer: &[Found],
    ) -> Result<Option<Found>, Failure> {
        let id = entry.version.id.as_str();
        if let Some(replica) = replica_by_version(replicas, Some(id)) {
            return Ok(Some(Found { origin: Origin::Replica(replica.source.clone()), entry }));
        }
        if entry.kind == Kind::Marker {
            return Ok(None);
        }
        let lane = &self.task.lane;
        let call = Call::head(Side::Destination, &lane.destination.bucket, &lane.key).version(id);
        let head = match self.access.wire.send(call).await {
            Ok(answer) => answer.into_head(),
            // Removed since it was listed.
            Err(refusal) if refusal.status() == Some(404) => return Ok(None),
            Err(refusal) => return Err(refusal.into()),
        };
        let Some(source) = origin(&head, self.task) else {
            let looks = Looks::of_full(&head).filter(|_| head.user(NAME).is_none());
            return Ok(looks.map(|looks| Found { entry, origin: Origin::Unstamped(looks) }));
        };
        // Of two replicas of one version the newer is what readers see, and what tags have to go to.
        if !newer.iter().any(|found| found.replica_of() == Some(&source)) {
            let found = self.found(source.clone(), Some(id.to_owned()), entry.etag.clone());
            adopt(self.engine, self.task, found, replicas)?;
        }
        Ok(Some(Found { entry, origin: Origin::Replica(source) }))
    }
}

/// Records a replica that the ledger did not know: another daemon wrote it, or the ledger was lost.
fn adopt(engine: &Engine, task: &Task, replica: Replica, replicas: &mut Vec<Replica>) -> Result<(), Failure> {
    engine.ledger.put_replica(&task.lane, &replica)?;
    replicas.retain(|other| other.source != replica.source);
    replicas.push(replica);
    Ok(())
}

fn replica(source: VersionRef, destination_version: Option<String>, etag: Option<ETag>) -> Replica {
    Replica { destination_version, etag, ..Replica::new(source, Kind::Object, State::Replicated) }
}

fn replica_by_version<'a>(replicas: &'a [Replica], version: Option<&str>) -> Option<&'a Replica> {
    let version = version?;
    replicas
        .iter()
        .find(|replica| replica.state == State::Replicated && replica.destination_version.as_deref() == Some(version))
}

fn known(top: Top, reached: Option<VersionRef>, replicas: &[Replica]) -> Known {
    let of = |wanted: fn(State) -> bool| {
        replicas.iter().filter(|replica| wanted(replica.state)).map(|replica| replica.source.clone()).collect()
    };
    Known {
        top,
        reached,
        replicated: of(|state| matches!(state, State::Replicated | State::Removed)),
        collapsed: of(|state| state == State::Collapsed),
        skipped: of(|state| matches!(state, State::Skipped | State::Late | State::Gone)),
    }
}
