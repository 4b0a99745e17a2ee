//! What the destination shows of a key, and how far its history reaches. It is read before the
//! source is listed, so that "absent" is always something seen (protocol rule 3). A write depends
//! on the snapshot: which entry was current when it was planned, and how long ago that was read. A
//! condition sees only an ETag; the snapshot sees whether it is the same entry.

use std::time::Duration;

use replicator_core::failure::Failure;
use replicator_core::failure::Operation;
use replicator_core::object::{Timestamp, VersionId};
use replicator_core::plan::{
    self, Current, DestinationState, SourceVersion, VersionKind, VersionRef,
};
use replicator_core::retry::READING_AGE_MAX;
use replicator_core::stamp::OriginClaim;

use crate::clock::{self, BootInstant};
use crate::ledger::records::{CurrentEntry, Replica, ReplicaState};
use crate::reconcile::Context;
use crate::reconcile::changed;
use crate::reconcile::execute::delete::source_has;
use crate::reconcile::observe::adoption;
use crate::reconcile::observe::head::{
    Expected, HeadResult, Lookup, read_current, record_found, replica_by_version, replicated_record,
};
use crate::reconcile::observe::listing;
use crate::s3::accounts::AccountClients;
use crate::s3::accounts::capabilities::Feature;
use crate::s3::accounts::error::Side;
use crate::sqs::lease;

/// What was read of a key at the destination.
#[derive(Debug)]
pub(in crate::reconcile) struct DestinationView {
    pub(crate) known: DestinationState,
    pub(crate) replicas: Vec<Replica>,
    /// What the next write depends on.
    pub(crate) snapshot: Snapshot,
    /// Whether the nothing that is current may be a marker.
    pub(in crate::reconcile) is_guess: bool,
    /// Which version an object that is current says it is the replica of, until that is judged.
    claim: Option<OriginClaim>,
    /// How long ago an object that is current, and on no record, was written.
    pub(in crate::reconcile) unknown_age: Option<Duration>,
    /// Of the delete marker that is current, where its history had to be read.
    marker: Option<CurrentMarker>,
}

/// What the destination's history states about the delete marker that is current.
#[derive(Debug)]
struct CurrentMarker {
    /// When it was written, or the first of the markers right below it.
    since: Timestamp,
    /// The source's marker that one right below it stands for.
    repeats: Option<VersionRef>,
}

impl DestinationView {
    /// Returns what is on record of the entry that is current.
    pub(in crate::reconcile) fn current(&self) -> Option<&Replica> {
        record_of(&self.snapshot.entry, &self.replicas)
    }

    /// Says whether the replica of a version is one that another tool wrote.
    pub(in crate::reconcile) fn is_adopted(&self, version: &VersionRef) -> bool {
        let mut replicas = self.replicas.iter();
        replicas.any(|replica| replica.adopted && replica.source == *version)
    }

    /// Leaves out of what is known that versions came too late, where they are to be written now.
    pub(in crate::reconcile) fn forget_late(&mut self) {
        let replicas = self.replicas.iter();
        for late in replicas.filter(|replica| replica.state == ReplicaState::Superseded) {
            self.known.skipped.remove(&late.source);
        }
    }

    /// Says whether a delete marker is current that is on no record.
    pub(in crate::reconcile) fn is_hidden_by_unknown_marker(&self) -> bool {
        matches!(self.snapshot.entry, CurrentEntry::Marker(_)) && self.current().is_none()
    }

    /// Takes a delete marker that is on no record for the one that it repeats, or else for the one
    /// of the source that it can be at the earliest.
    pub(in crate::reconcile) fn explain_marker(
        &mut self,
        cx: Context<'_>,
        history: &[SourceVersion],
    ) -> Result<(), Failure> {
        let (CurrentEntry::Marker(id), Some(marker)) = (&self.snapshot.entry, &self.marker) else {
            return Ok(());
        };
        if !self.is_hidden_by_unknown_marker() {
            return Ok(());
        }
        let first = || plan::marker_shown(history, &self.known, marker.since);
        let Some(source) = marker.repeats.as_ref().or_else(first).cloned() else {
            return Ok(());
        };
        self.record_marker(cx, source, id.clone())
    }

    /// Takes the delete marker that is current for the one of the source that is gone.
    pub(in crate::reconcile) fn explain_marker_by_gone(
        &mut self,
        cx: Context<'_>,
        gone: VersionRef,
    ) -> Result<(), Failure> {
        match &self.snapshot.entry {
            CurrentEntry::Marker(id) => self.record_marker(cx, gone, id.clone()),
            CurrentEntry::Nothing | CurrentEntry::Object { .. } => Ok(()),
        }
    }

    fn record_marker(
        &mut self,
        cx: Context<'_>,
        source: VersionRef,
        id: String,
    ) -> Result<(), Failure> {
        self.known.advance(&source, Current::Marker);
        let marker = Replica {
            kind: VersionKind::Marker,
            ..replicated_record(source, Some(id), None)
        };
        record_found(cx, marker, &mut self.replicas)
    }
}

/// Reads what is current, and from the ledger how far it reaches. With `may_guess`, a key that was
/// never written by this daemon is read by HEAD alone, even of an endpoint whose 404 can mean a
/// marker; and not at all where a condition can be relied on, as at AWS: the write's own detects an
/// object. Some endpoints ignore it.
pub(in crate::reconcile) async fn read(
    cx: Context<'_>,
    may_guess: bool,
) -> Result<DestinationView, Failure> {
    let replicas = cx.engine.ledger.replicas_of(&cx.task.target)?;
    let asked = BootInstant::now();
    // What was never written by this daemon is mostly new.
    let mut current = match replicas.is_empty() {
        true if may_guess && may_rely_on_conditions(cx.destination) => HeadResult::guessed(),
        true if may_guess => read_current(cx, Expected::New).await?,
        true => read_current(cx, Expected::Hidden).await?,
        false => read_current(cx, Expected::Object).await?,
    };
    let (claim, is_guess) = (current.claim.take(), current.is_guess);
    let snapshot = Snapshot::read(current, asked);
    let reached = record_of(&snapshot.entry, &replicas).map(|record| record.source.clone());
    let known = known_from(
        current_state(&snapshot.entry, &replicas),
        reached,
        &replicas,
    );
    Ok(DestinationView {
        known,
        replicas,
        snapshot,
        is_guess,
        claim,
        unknown_age: None,
        marker: None,
    })
}

/// Finds out from stamps how far the destination reaches, where the ledger has no record of what is
/// current. A stamp is judged by all that the source lists, so this comes after the list.
pub(in crate::reconcile) async fn trace(
    cx: Context<'_>,
    shown: &mut DestinationView,
    listed: &[SourceVersion],
) -> Result<(), Failure> {
    if shown.snapshot.entry == CurrentEntry::Nothing || shown.known.reached.is_some() {
        return Ok(());
    }
    let now = shown.snapshot.now_or_after();
    let lookup = Lookup { cx, listed, now };
    let claim = shown.claim.take();
    let is_judged = claim.is_some();
    let written = claim.as_ref().and_then(|claim| claim.written);
    let mut reached = None;
    if let (Some(claim), CurrentEntry::Object { etag, version }) = (claim, &shown.snapshot.entry)
        && let Some(source) = lookup.confirm_claim(claim, version.as_deref()).await?
    {
        let found = lookup.found_replica(source.clone(), version.clone(), Some(etag.clone()));
        record_found(cx, found, &mut shown.replicas)?;
        reached = Some(source);
        shown.unknown_age = age(written, lookup.now);
    }
    let is_replica = reached.is_some();
    if !is_replica {
        let entries = listing::list_history(cx, Side::Destination).await?;
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
    let mut current = current_state(&shown.snapshot.entry, &shown.replicas);
    if let Current::Object { replica_of, .. } = &mut current
        && is_replica
    {
        replica_of.clone_from(&reached);
    }
    shown.known = known_from(current, reached, &shown.replicas);
    adoption::report_foreign(cx, shown);
    Ok(())
}

/// Returns how old an object is; as old as may be, where the clock is not read exactly.
fn age(written: Option<Timestamp>, now: Option<Timestamp>) -> Option<Duration> {
    Duration::try_from(now? - written?).ok()
}

/// Returns what is on record of an entry.
fn record_of<'r>(entry: &CurrentEntry, replicas: &'r [Replica]) -> Option<&'r Replica> {
    match entry {
        CurrentEntry::Nothing => None,
        CurrentEntry::Marker(id) => replica_by_version(replicas, Some(id)),
        CurrentEntry::Object { version, .. } => replica_by_version(replicas, version.as_deref()),
    }
}

/// Returns what a reader of the key sees.
fn current_state(entry: &CurrentEntry, replicas: &[Replica]) -> Current {
    match entry {
        CurrentEntry::Nothing => Current::Nothing,
        CurrentEntry::Marker(_) => Current::Marker,
        CurrentEntry::Object { etag, .. } => Current::Object {
            etag: etag.clone(),
            replica_of: record_of(entry, replicas).map(|record| record.source.clone()),
        },
    }
}

fn may_rely_on_conditions(access: &AccountClients) -> bool {
    access.keeps_conditions && access.capabilities.has_feature(Feature::ConditionalPut)
}

/// Reads back every replica that the ledger lacks, by what the source lists.
pub(in crate::reconcile) async fn rebuild_records(
    cx: Context<'_>,
    shown: &mut DestinationView,
    listed: &[SourceVersion],
) -> Result<(), Failure> {
    let now = shown.snapshot.now_or_after();
    let lookup = Lookup { cx, listed, now };
    let mut seen = Vec::new();
    let entries = listing::list_history(cx, Side::Destination).await?;
    // Listed later than what is current was read: only if both agree do they speak of one moment.
    shown.snapshot.agree(entries.first())?;
    shown.marker = read_marker(&entries, lookup.may_double_markers(), &shown.replicas);
    for entry in entries {
        seen.extend(lookup.identify(entry, &mut shown.replicas, &seen).await?);
    }
    let known = known_from(Current::Nothing, None, &shown.replicas);
    (shown.known.replicated, shown.known.collapsed) = (known.replicated, known.collapsed);
    Ok(())
}

/// What was found of the objects that the destination has of a key.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ReadBack {
    /// Replicas that were on record.
    pub(crate) known: u64,
    /// Replicas that were put on record.
    pub(crate) found: u64,
    /// Objects that nothing proves to be replicas.
    pub(crate) unproved: u64,
}

/// Puts those of a key's entries on record, newest first, that the ledger lacks and that are proved
/// to be replicas. No delete marker is.
pub(in crate::reconcile) async fn read_back(
    cx: Context<'_>,
    entries: Vec<SourceVersion>,
) -> Result<ReadBack, Failure> {
    let mut replicas = cx.engine.ledger.replicas_of(&cx.task.target)?;
    let id_of = |entry: &SourceVersion| entry.version.id.as_str().to_owned();
    let is_known =
        |entry: &SourceVersion| replica_by_version(&replicas, Some(&id_of(entry))).is_some();
    let known: Vec<bool> = entries.iter().map(is_known).collect();
    let mut sum = ReadBack::default();
    // Listed later than the destination: what is not there then is gone.
    let mut listed = Vec::new();
    if known.contains(&false) {
        listed = listing::of_source(cx).await?;
        listed.reverse();
    }
    let lookup = Lookup {
        cx,
        listed: &listed,
        now: None,
    };
    let mut seen = Vec::new();
    for (entry, is_known) in entries.into_iter().zip(known) {
        let source = lookup.identify(entry, &mut replicas, &seen).await?;
        sum.known += u64::from(is_known);
        sum.found += u64::from(!is_known && source.is_some());
        sum.unproved += u64::from(source.is_none());
        seen.extend(source);
    }
    Ok(sum)
}

/// The daemon never writes a marker over a marker (protocol rule 6): a row of them is one that was
/// written twice, where that can be.
fn read_marker(
    entries: &[SourceVersion],
    may_be_doubled: bool,
    replicas: &[Replica],
) -> Option<CurrentMarker> {
    let markers: Vec<_> = entries
        .iter()
        .take_while(|entry| entry.kind == VersionKind::Marker)
        .collect();
    let (newest, oldest) = (markers.first()?, markers.last()?);
    let since = if may_be_doubled { oldest } else { newest };
    let known = markers
        .iter()
        .find_map(|entry| replica_by_version(replicas, Some(entry.version.id.as_str())));
    Some(CurrentMarker {
        since: since.version.last_modified,
        repeats: known
            .filter(|_| may_be_doubled)
            .map(|replica| replica.source.clone()),
    })
}

fn known_from(
    current: Current,
    reached: Option<VersionRef>,
    replicas: &[Replica],
) -> DestinationState {
    let of = |wanted: fn(ReplicaState) -> bool| {
        replicas
            .iter()
            .filter(|replica| wanted(replica.state))
            .map(|replica| replica.source.clone())
            .collect()
    };
    DestinationState {
        current,
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

/// An entry as it was read.
#[derive(Debug, Clone)]
pub(in crate::reconcile) struct Snapshot {
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
    /// Takes what was just read by a request that was sent at this moment.
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

    /// Takes what a write made current that was sent at this moment. It stands there since the
    /// answer at the latest, and may have been overwritten since it was sent.
    pub(in crate::reconcile) fn written(&self, entry: CurrentEntry, sent: BootInstant) -> Self {
        Self {
            entry,
            read: sent,
            clock: self.clock,
        }
    }

    /// Returns what time it is by the server's clock, or less, if it stated one. The host's may be
    /// wrong, and jump.
    pub(in crate::reconcile) fn now_or_before(&self) -> Option<Timestamp> {
        Some(clock::saturating_later(
            self.clock.date?,
            self.clock.answered.elapsed(),
        ))
    }

    /// Returns what time it is by the server's clock, or more.
    pub(in crate::reconcile) fn now_or_after(&self) -> Option<Timestamp> {
        Some(clock::saturating_later(
            self.clock.date?,
            self.clock.asked.elapsed(),
        ))
    }

    /// Makes sure that what a list names first is the entry that was read.
    fn agree(&self, first: Option<&SourceVersion>) -> Result<(), Failure> {
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
            Err(changed(Operation::ListObjectVersions))
        }
    }

    /// Makes sure right before a write that the lease is held and that the entry is still current;
    /// also that the source still has the version, where it would have to be removed again: the
    /// task that does that expects no write from an older reading. A young reading needs no second
    /// one; what the wait for limits took counts against its age.
    pub(in crate::reconcile) async fn confirm(
        &self,
        cx: Context<'_>,
        source: &VersionId,
    ) -> Result<(), Failure> {
        lease::confirm_held().await?;
        if self.read.elapsed() <= READING_AGE_MAX {
            return Ok(());
        }
        let asked = BootInstant::now();
        let is_same = read_current(cx, self.entry.likely()).await?.entry == self.entry;
        let is_kept = !cx.rule().version_deletes;
        let is_confirmed = is_same && (is_kept || source_has(cx, source).await?);
        // These answers may have taken long, too.
        if !is_confirmed || asked.elapsed() > READING_AGE_MAX {
            return Err(changed(Operation::HeadObject));
        }
        lease::confirm_held().await
    }
}

impl CurrentEntry {
    fn likely(&self) -> Expected {
        if matches!(self, Self::Object { .. }) {
            Expected::Object
        } else {
            Expected::Hidden
        }
    }
}
