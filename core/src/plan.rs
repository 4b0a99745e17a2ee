//! The planner: from what the source holds and what the destination shows, the next thing to
//! append there. The destination is append-only per key, because S3 makes the version written
//! last current; so older goes before newer, and what comes too late is recorded instead, unless a
//! task is to rewrite the history.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::object::{ETag, Timestamp, VersionId};
use crate::rule::History;

/// What identifies a version of a key. The time belongs to it because a `null` version is
/// overwritten in place, and because a version that is gone from the source still has a place.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VersionRef {
    /// The version id the source gave.
    pub id: VersionId,
    /// When the source says it was made.
    #[serde(with = "time::serde::timestamp::milliseconds")]
    pub last_modified: Timestamp,
    /// The content of a `null` version: two of them can share a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<ETag>,
}

impl VersionRef {
    /// Identifies a version; the ETag counts only where the id is none.
    pub fn new(id: VersionId, last_modified: Timestamp, etag: Option<&ETag>) -> Self {
        let generation = if id.is_null() { etag.cloned() } else { None };
        // Headers state times by the second, and so do the lists of AWS. A list that is finer
        // speaks of the same version.
        let last_modified = last_modified.truncate_to_second();
        Self {
            id,
            last_modified,
            generation,
        }
    }
}

/// Whether an entry of a key's history holds an object or hides one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VersionKind {
    /// An object version.
    Object,
    /// A delete marker.
    Marker,
}

/// One entry of a key's history as the source lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceVersion {
    /// Which version it is.
    pub version: VersionRef,
    /// Object or marker.
    pub kind: VersionKind,
    /// The entity tag of an object.
    pub etag: Option<ETag>,
    /// The size of an object.
    pub size_bytes: u64,
}

/// What a reader of the destination sees at the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Current {
    /// Neither object nor marker, ever.
    Nothing,
    /// A delete marker.
    Marker,
    /// An object.
    Object {
        /// Its entity tag, for conditions.
        etag: ETag,
        /// The source version it is a replica of; `None` when the replicator did not write it.
        replica_of: Option<VersionRef>,
    },
}

/// What is known of one key at one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationState {
    /// What is current there.
    pub current: Current,
    /// The newest source version that the destination's history holds.
    pub reached: Option<VersionRef>,
    /// Source versions that have a replica.
    pub replicated: HashSet<VersionRef>,
    /// Source markers that are one with the marker, or the nothing, that was current in their turn.
    pub collapsed: HashSet<VersionRef>,
    /// Source versions on record as not to be replicated.
    pub skipped: HashSet<VersionRef>,
}

/// What a write demands of the destination, checked there when it lands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Precondition {
    /// No object is current: `If-None-Match: *`.
    Absent,
    /// This very object is current: `If-Match`.
    Over(ETag),
}

/// What becomes of versions that are older than what the destination shows, and missing there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LateVersions {
    /// They are recorded and never written: the destination does not go back.
    Skip,
    /// They are appended, and then what is newest once more (protocol rule 8).
    Append,
}

/// The next thing to do for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<'a> {
    /// Append a replica of this version.
    Put {
        /// The version to copy.
        source: &'a SourceVersion,
        /// What the write demands.
        condition: Precondition,
    },
    /// Append a replica of a version that is older than what is current. All later plans have the
    /// newest on top of it again, so that one has to be fit to be written.
    PutLate {
        /// The version to copy.
        source: &'a SourceVersion,
        /// What the write demands.
        condition: Precondition,
        /// What is current, and will be again.
        newest: &'a SourceVersion,
    },
    /// Append a delete marker over this object.
    PutDeleteMarker {
        /// The source's marker.
        source: &'a SourceVersion,
        /// The object it hides.
        over: ETag,
    },
    /// Record this marker as one with what is current already (protocol rule 6).
    CoalesceMarker(&'a SourceVersion),
    /// Record this version as arrived after a newer one was written.
    SkipSuperseded(&'a SourceVersion),
}

impl Step<'_> {
    /// Returns the version that it is about.
    pub fn version(&self) -> &VersionRef {
        match self {
            Self::Put { source, .. }
            | Self::PutLate { source, .. }
            | Self::PutDeleteMarker { source, .. }
            | Self::CoalesceMarker(source)
            | Self::SkipSuperseded(source) => &source.version,
        }
    }
}

/// Decides the next step; `None` when the destination is up to date.
/// `source` is the key's history in scope, oldest first.
pub fn next<'a>(
    source: &'a [SourceVersion],
    known: &DestinationState,
    (history, late): (History, LateVersions),
) -> Option<Step<'a>> {
    let split = first_to_write(source, known);
    let (before, after) = source.split_at_checked(split).unwrap_or((source, &[]));
    let live = |entry: &&SourceVersion| !known.skipped.contains(&entry.version);
    let missing = |entry: &&SourceVersion| live(entry) && !is_done(entry, known);
    let newest = after.iter().rfind(live);
    let mut below = before.iter().filter(live);
    let late_one = below.find(|entry| history == History::Exact && is_late(entry, known));
    if let (Some(entry), LateVersions::Skip) = (late_one, late) {
        return Some(Step::SkipSuperseded(entry));
    }
    let wanted = match history {
        History::Exact => after.iter().find(missing),
        History::Latest => newest.filter(missing),
    };
    // What is on record and yet not below what is current was removed at the destination, or
    // reordered there: only the newest state is written again. A skipped version is the newest
    // state all the same, and nothing older is shown again: it may be the replica of what is
    // current.
    let hidden = match after.last() {
        Some(newest) => {
            Some(newest).filter(|newest| live(newest) && !is_shown(&known.current, newest))
        }
        None => restore(before, known),
    };
    match wanted.or(hidden) {
        Some(entry) => Some(append(entry, known)),
        None => late_one.map(|entry| append_late(entry, source.last(), known)),
    }
}

/// Counts the oldest entries that no later step of this plan depends on, so that a plan over
/// thousands of pending versions need not scan the written ones at each step. A plan for the rest
/// of `source` is the same.
pub fn settled(source: &[SourceVersion], known: &DestinationState) -> usize {
    let is_reached = |entry: &SourceVersion| known.reached.as_ref() == Some(&entry.version);
    let Some(at) = source.iter().position(is_reached) else {
        return 0;
    };
    let Some(below) = source.get(..at) else {
        return 0;
    };
    if below
        .iter()
        .any(|entry| is_late(entry, known) && !known.skipped.contains(&entry.version))
    {
        return 0;
    }
    at
}

/// Finds the source's marker that a marker of the destination stands for, when only its time is
/// known: the first above what was reached that was there by then. Markers carry no stamp.
pub fn marker_shown<'a>(
    source: &'a [SourceVersion],
    known: &DestinationState,
    marked: Timestamp,
) -> Option<&'a VersionRef> {
    // No replica is below, and the daemon never writes a marker over nothing: another client wrote
    // it.
    known.reached.as_ref()?;
    let (_, after) = source.split_at_checked(first_after(source, known))?;
    // Servers state times by the second, or finer.
    let is_there = |entry: &SourceVersion| {
        entry.version.last_modified.unix_timestamp() <= marked.unix_timestamp()
    };
    let may_be = |entry: &&SourceVersion| entry.kind == VersionKind::Marker && is_there(entry);
    after.iter().find(may_be).map(|entry| &entry.version)
}

impl DestinationState {
    /// Records that a step for `version` was done and that `top` is what the destination shows now.
    pub fn advance(&mut self, version: &VersionRef, top: Current) {
        self.current = top;
        self.reached = Some(version.clone());
        self.replicated.insert(version.clone());
    }

    /// Records that a marker is one with what is current.
    pub fn record_coalesced(&mut self, version: &VersionRef) {
        self.reached = Some(version.clone());
        self.collapsed.insert(version.clone());
    }

    /// Records that a version is not to be replicated.
    pub fn record_skipped(&mut self, version: &VersionRef) {
        self.skipped.insert(version.clone());
    }
}

/// Says whether an entry above what was reached needs nothing. A marker was collapsed into nothing,
/// or into a marker, but an upload that was begun before it may have appeared below it since: over
/// an object it is as missing as any.
fn is_done(entry: &SourceVersion, known: &DestinationState) -> bool {
    let is_covered = matches!(known.current, Current::Nothing | Current::Marker);
    known.replicated.contains(&entry.version)
        || (is_covered && known.collapsed.contains(&entry.version))
}

/// Finds where the history that the destination lacks begins.
fn first_after(source: &[SourceVersion], known: &DestinationState) -> usize {
    let Some(reached) = &known.reached else {
        return 0;
    };
    if let Some(at) = source.iter().position(|entry| entry.version == *reached) {
        return at + 1;
    }
    // The version that was reached is gone from the source, so its time stands in for it. S3 lists
    // times by the second: of versions in that second, those on record are before it.
    let is_before = |entry: &SourceVersion| {
        let time = entry.version.last_modified;
        let on_record =
            known.replicated.contains(&entry.version) || known.collapsed.contains(&entry.version);
        time < reached.last_modified || (time == reached.last_modified && on_record)
    };
    source.iter().rposition(is_before).map_or(0, |at| at + 1)
}

/// The same, without markers of the same second as the reached version where that is gone: they may
/// be older or newer. Below an object that goes on top they hide nothing, so they are taken for
/// older.
fn first_to_write(source: &[SourceVersion], known: &DestinationState) -> usize {
    let after = first_after(source, known);
    let Some(reached) = known
        .reached
        .as_ref()
        .filter(|reached| !source.iter().any(|entry| entry.version == **reached))
    else {
        return after;
    };
    let rest = source.get(after..).unwrap_or_default();
    let may_be_older = |entry: &&SourceVersion| {
        entry.kind == VersionKind::Marker && entry.version.last_modified == reached.last_modified
    };
    let ambiguous = rest.iter().take_while(may_be_older).count();
    let is_written = |entry: &SourceVersion| {
        entry.kind == VersionKind::Object && !known.skipped.contains(&entry.version)
    };
    if rest.iter().skip(ambiguous).any(is_written) {
        after + ambiguous
    } else {
        after
    }
}

/// A marker below what was reached cannot be late: S3 creates it as the newest entry, so it was
/// appended or collapsed in its turn. And what was reached is there, whichever client wrote it.
fn is_late(entry: &SourceVersion, known: &DestinationState) -> bool {
    entry.kind == VersionKind::Object
        && !known.replicated.contains(&entry.version)
        && known.reached.as_ref() != Some(&entry.version)
}

/// Finds the version that should be current but is hidden: by a stray marker, by an object that the
/// replicator did not write, or because its replica was removed.
fn restore<'a>(before: &'a [SourceVersion], known: &DestinationState) -> Option<&'a SourceVersion> {
    let newest = before
        .iter()
        .rfind(|entry| !known.skipped.contains(&entry.version))?;
    if known.reached.as_ref() != Some(&newest.version) {
        return None;
    }
    (!is_shown(&known.current, newest)).then_some(newest)
}

/// Says whether a reader of the destination sees this entry.
fn is_shown(top: &Current, entry: &SourceVersion) -> bool {
    match (top, entry.kind) {
        (Current::Object { replica_of, .. }, VersionKind::Object) => {
            replica_of.as_ref() == Some(&entry.version)
        }
        (Current::Object { .. }, VersionKind::Marker)
        | (Current::Nothing | Current::Marker, VersionKind::Object) => false,
        (Current::Nothing | Current::Marker, VersionKind::Marker) => true,
    }
}

fn append<'a>(entry: &'a SourceVersion, known: &DestinationState) -> Step<'a> {
    match (entry.kind, &known.current) {
        (VersionKind::Marker, Current::Object { etag, .. }) => Step::PutDeleteMarker {
            source: entry,
            over: etag.clone(),
        },
        (VersionKind::Marker, Current::Nothing | Current::Marker) => Step::CoalesceMarker(entry),
        (VersionKind::Object, current) => Step::Put {
            source: entry,
            condition: precondition(current),
        },
    }
}

/// Goes back to a late version where the newest is current: every later plan finds that one hidden,
/// or what is between the two missing, whatever becomes of this one. Anything else that is current
/// would not come back.
fn append_late<'a>(
    entry: &'a SourceVersion,
    newest: Option<&'a SourceVersion>,
    known: &DestinationState,
) -> Step<'a> {
    let is_current = |newest: &&SourceVersion| {
        !known.skipped.contains(&newest.version) && is_shown(&known.current, newest)
    };
    match newest.filter(is_current) {
        Some(newest) => Step::PutLate {
            source: entry,
            condition: precondition(&known.current),
            newest,
        },
        None => Step::SkipSuperseded(entry),
    }
}

fn precondition(current: &Current) -> Precondition {
    match current {
        Current::Object { etag, .. } => Precondition::Over(etag.clone()),
        Current::Nothing | Current::Marker => Precondition::Absent,
    }
}

#[cfg(test)]
mod tests;
