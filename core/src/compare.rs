//! Compares the histories of one key at both ends, as a proof that nothing is missing. A replica is
//! known by its stamp, or by its content where it has none; a marker by its place.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;
use strum::IntoStaticStr;

use crate::object::{ETag, VersionId};
use crate::plan::{SourceVersion, VersionKind, VersionRef};
use crate::rule::{History, VersionScope};
use crate::stamp::{Belief, CLOCKS_APART_MAX, ClaimRejection, OriginClaim, names_version};

/// How the destination differs from the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, IntoStaticStr)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Difference {
    /// A version or delete marker of the source has no replica.
    Missing,
    /// A version has a second replica, or what is current hides what the source shows.
    Extra,
    /// A replica is above one of a newer version.
    Order,
    /// A replica has another size than its original.
    Size,
    /// A replica has other content than its original.
    Bytes,
    /// A replica has other metadata than its original, or another storage class than the rule's.
    Metadata,
    /// A replica has other tags than its original.
    Tags,
    /// A replica lacks the Object Lock that its original has.
    Lock,
    /// A replica is encrypted otherwise than the rule says.
    Encryption,
    /// An object is no replica of this key.
    Foreign,
    /// The key has more versions than are compared.
    Uncompared,
}

/// A difference, and which entries it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryDifference {
    /// What differs.
    pub difference: Difference,
    /// The version of the source.
    pub source: Option<VersionRef>,
    /// The version of the destination.
    pub replica: Option<VersionId>,
}

/// An entry of the destination's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownEntry {
    /// What the destination lists.
    pub entry: SourceVersion,
    /// What its stamp says, where it has one of this key.
    pub claim: Option<OriginClaim>,
}

/// One key at both ends.
#[derive(Debug, Clone, Copy)]
pub struct KeyHistories<'a> {
    /// All that the source has of the key, oldest first.
    pub source: &'a [(SourceVersion, VersionScope)],
    /// All that the destination has of it, oldest first.
    pub shown: &'a [ShownEntry],
}

/// Says whether two lists, oldest first, prove that every version and marker has its replica: same
/// order, same sizes, and ETags that are digests and equal. Most keys need no other request.
pub fn proves_equal(wanted: &[&SourceVersion], shown: &[&SourceVersion]) -> bool {
    pair_equal(wanted, shown).is_some()
}

/// Returns each version beside its replica, where two lists prove them equal.
pub fn pair_equal<'a>(
    wanted: &[&'a SourceVersion],
    shown: &[&'a SourceVersion],
) -> Option<Vec<VersionPair<'a>>> {
    let (wanted, shown) = (coalesce(wanted), coalesce(shown));
    let is_replica = |(one, other): &VersionPair<'_>| match (one.kind, other.kind) {
        (VersionKind::Marker, VersionKind::Marker) => true,
        (VersionKind::Object, VersionKind::Object) => has_content_of(one, other),
        (VersionKind::Marker, VersionKind::Object) | (VersionKind::Object, VersionKind::Marker) => {
            false
        }
    };
    let is_paired = wanted.len() == shown.len();
    let mut pairs: Vec<VersionPair<'a>> = wanted.into_iter().zip(shown).collect();
    let is_equal = is_paired && pairs.iter().all(is_replica);
    pairs.retain(|(one, _)| one.kind == VersionKind::Object);
    is_equal.then_some(pairs)
}

/// Says whether each version and marker may have its replica, as far as lists tell without ETags:
/// of its kind and size, written no earlier, in order, and the last one last. Between them may be
/// replicas of versions that the source has lost.
pub fn may_be_equal(wanted: &[&SourceVersion], shown: &[&SourceVersion]) -> bool {
    let (wanted, shown) = (coalesce(wanted), coalesce(shown));
    let may_be = |one: &SourceVersion, other: &SourceVersion| {
        let is_later = other.version.last_modified >= one.version.last_modified;
        (one.kind, one.size_bytes) == (other.kind, other.size_bytes) && is_later
    };
    let is_shown = match (wanted.last(), shown.last()) {
        (Some(newest), Some(last)) => may_be(newest, last),
        (None, _) => true,
        (Some(_), None) => false,
    };
    let mut left = shown.iter().rev();
    let mut newest_first = wanted.iter().rev();
    is_shown && newest_first.all(|one| left.any(|other| may_be(one, other)))
}

/// A version and its replica.
pub type VersionPair<'a> = (&'a SourceVersion, &'a SourceVersion);

/// Leaves out markers over nothing and over markers.
fn coalesce<'a>(entries: &[&'a SourceVersion]) -> Vec<&'a SourceVersion> {
    let mut kept: Vec<&SourceVersion> = Vec::with_capacity(entries.len());
    for entry in entries {
        let hides = kept
            .last()
            .is_some_and(|last| last.kind == VersionKind::Object);
        if entry.kind == VersionKind::Object || hides {
            kept.push(entry);
        }
    }
    kept
}

/// Lists the versions that an object without a stamp may be the replica of, the newest first: of two
/// with one content it is taken for the newer one, because an older one below it would be written on
/// top of it, and the destination would go back. `listed` is the source's history, oldest first, and
/// `newer` what newer entries of the destination are replicas of.
pub fn possible_originals<'s>(
    object: &SourceVersion,
    listed: &'s [SourceVersion],
    newer: &[VersionRef],
) -> impl Iterator<Item = &'s SourceVersion> {
    let is_newer = |entry: &SourceVersion| newer.contains(&entry.version);
    let end = listed.iter().position(is_newer).unwrap_or(listed.len());
    // The source may have lost what a newer one is the replica of.
    let latest = newer.iter().map(|version| version.last_modified).min();
    let (written, size_bytes) = (object.version.last_modified, object.size_bytes);
    let below = listed.get(..end).unwrap_or_default().iter().rev();
    below.filter(move |entry| {
        let made = entry.version.last_modified;
        // No replica is older than its original.
        entry.kind == VersionKind::Object
            && entry.size_bytes == size_bytes
            && made - written <= CLOCKS_APART_MAX
            && latest.is_none_or(|latest| made <= latest)
    })
}

/// Counts the versions below what the destination shows that have no proved replica there, all but
/// the newest where no ETag proves what it shows. Both lists have the oldest first.
pub fn count_late(wanted: &[&SourceVersion], shown: &[&SourceVersion]) -> usize {
    let content = |entry: &&SourceVersion| {
        let digest = entry.etag.clone().filter(ETag::is_digest);
        digest.map(|digest| (digest, entry.size_bytes))
    };
    let there: HashSet<_> = shown.iter().filter_map(content).collect();
    let is_proved = |entry: &&SourceVersion| content(entry).is_some_and(|one| there.contains(&one));
    let mut objects = shown
        .iter()
        .filter(|entry| entry.kind == VersionKind::Object);
    let current = objects.next_back().and_then(content);
    let is_current = |entry: &&SourceVersion| current.is_some() && content(entry) == current;
    let below = match wanted.iter().rposition(is_current) {
        Some(newest) => newest,
        None if shown.is_empty() => 0,
        None => wanted.len().saturating_sub(1),
    };
    let is_late = |entry: &&&SourceVersion| entry.kind == VersionKind::Object && !is_proved(entry);
    wanted.iter().take(below).filter(is_late).count()
}

/// Says whether sizes and ETags prove that two objects have the same content.
pub fn has_content_of(one: &SourceVersion, other: &SourceVersion) -> bool {
    let digests = one.etag.as_ref().zip(other.etag.as_ref());
    one.size_bytes == other.size_bytes
        && digests.is_some_and(|(one, other)| one.is_digest() && one == other)
}

/// What an entry of the destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// The replica of the source's entry at this place.
    Replica(usize),
    /// A delete marker.
    Marker,
    /// The replica of a version that the source has lost.
    Lost,
    /// No replica of this key.
    Foreign,
}

impl<'a> KeyHistories<'a> {
    /// Returns each version in scope beside its replica, of several the last; in latest mode only
    /// what is current.
    pub fn pair_replicas(&self, mode: History) -> Vec<VersionPair<'a>> {
        let identities = self.identify_all(&mut Vec::new());
        let last = self.shown.len().saturating_sub(1);
        let mut replicas = BTreeMap::new();
        for (at, (identity, shown)) in identities.iter().zip(self.shown).enumerate() {
            if let Identity::Replica(place) = identity
                && (mode == History::Exact || at == last)
            {
                replicas.insert(*place, &shown.entry);
            }
        }
        let pair = |(place, replica)| {
            let (entry, scope) = self.source.get(place)?;
            (*scope == VersionScope::Wanted).then_some((entry, replica))
        };
        replicas.into_iter().filter_map(pair).collect()
    }

    /// Finds for each entry of the source the place of the one that shows it, and says what each
    /// entry of the destination is. Of several replicas of a version the newest counts, and none
    /// that differs from it.
    pub fn pair_entries(&self) -> (Vec<Option<usize>>, Vec<Identity>) {
        let mut findings = Vec::new();
        let mut identities = self.identify_all(&mut findings);
        let differing: HashSet<_> = { findings.iter() }.map(|one| &one.replica).collect();
        for (identity, shown) in identities.iter_mut().zip(self.shown) {
            if differing.contains(&Some(shown.entry.version.id.clone())) {
                *identity = Identity::Foreign;
            }
        }
        let mut object = None;
        let replica_of = |(at, (entry, _)): (usize, &(SourceVersion, VersionScope))| {
            if entry.kind == VersionKind::Marker {
                return marker_above(&identities, object?, at);
            }
            let found = { identities.iter() }.rposition(|one| *one == Identity::Replica(at));
            object = found.map(|_| at).or(object);
            found
        };
        let replicas = self.source.iter().enumerate().map(replica_of).collect();
        (replicas, identities)
    }

    /// Lists all differences.
    pub fn compare(&self, mode: History) -> Vec<HistoryDifference> {
        let mut findings = Vec::new();
        let identities = self.identify_all(&mut findings);
        match mode {
            History::Exact => {
                self.compare_replicas(&identities, &mut findings);
                self.find_missing(&identities, &mut findings);
            }
            History::Latest => {
                let last = self
                    .shown
                    .last()
                    .map(|shown| shown.entry.version.id.clone());
                findings.retain(|finding| finding.replica == last);
            }
        }
        self.compare_current(&identities, mode, &mut findings);
        findings
    }

    fn identify_all(&self, findings: &mut Vec<HistoryDifference>) -> Vec<Identity> {
        let mut identities: Vec<Identity> = Vec::with_capacity(self.shown.len());
        let listed: Vec<SourceVersion> = { self.source.iter() }.map(|one| one.0.clone()).collect();
        for shown in self.shown {
            let (identity, difference) = self.identify(shown, &listed, &identities);
            identities.push(identity);
            findings.extend(difference.map(|difference| self.finding(difference, identity, shown)));
        }
        identities
    }

    fn identify(
        &self,
        shown: &ShownEntry,
        listed: &[SourceVersion],
        before: &[Identity],
    ) -> (Identity, Option<Difference>) {
        if shown.entry.kind == VersionKind::Marker {
            return (Identity::Marker, None);
        }
        let foreign = (Identity::Foreign, Some(Difference::Foreign));
        let Some(claim) = &shown.claim else {
            let at = self.place_of_content(&shown.entry, before);
            return at.map_or(foreign, |at| (Identity::Replica(at), None));
        };
        let is_named = |entry: &SourceVersion| names_version(&claim.version, &entry.version);
        let named = listed.iter().position(is_named);
        let version = named.and_then(|at| Some(listed.get(at)?.version.clone()));
        let claim = OriginClaim {
            version: version.unwrap_or_else(|| claim.version.clone()),
            ..claim.clone()
        };
        let place = named.map_or(Identity::Lost, Identity::Replica);
        match claim.judge(listed) {
            Ok(Belief::Proved) => (place, None),
            Ok(Belief::Undigested) | Err(ClaimRejection::Content) => {
                (place, Some(Difference::Bytes))
            }
            Ok(Belief::Placed) => (Identity::Lost, None),
            Err(ClaimRejection::Size) => (place, Some(Difference::Size)),
            Err(
                ClaimRejection::Time
                | ClaimRejection::Marker
                | ClaimRejection::Younger
                | ClaimRejection::Undated,
            ) => foreign,
        }
    }

    /// Finds the version that an object without a stamp has the content of: the first that has no
    /// replica before it.
    fn place_of_content(&self, object: &SourceVersion, before: &[Identity]) -> Option<usize> {
        let mut places = self.source.iter().enumerate().filter(|(_, (entry, _))| {
            entry.kind == VersionKind::Object && has_content_of(object, entry)
        });
        let is_free = |(at, _): &(usize, _)| !before.contains(&Identity::Replica(*at));
        let first = places.clone().find(is_free);
        first.or_else(|| places.next_back()).map(|(at, _)| at)
    }

    /// Finds what is there twice or out of order. A replica may come again above a marker, or above
    /// a version that the source has lost: that is how a version is shown again that the source
    /// shows again.
    fn compare_replicas(&self, identities: &[Identity], findings: &mut Vec<HistoryDifference>) {
        let (mut highest, mut places) = (None, HashMap::new());
        for (at, (identity, shown)) in identities.iter().zip(self.shown).enumerate() {
            let Identity::Replica(place) = identity else {
                continue;
            };
            let before = identities.get(..at).unwrap_or_default();
            let again = places.insert(*place, at);
            let since = again.map_or(before, |again| before.get(again + 1..).unwrap_or_default());
            let is_newer =
                |other: &Identity| matches!(other, Identity::Replica(other) if other > place);
            let is_hidden = since
                .iter()
                .any(|other| !matches!(other, Identity::Replica(_)));
            let difference = match again {
                Some(_) if since.iter().any(is_newer) => Some(Difference::Order),
                Some(_) if !is_hidden => Some(Difference::Extra),
                Some(_) => None,
                None => (highest > Some(*place)).then_some(Difference::Order),
            };
            highest = highest.max(Some(*place));
            findings
                .extend(difference.map(|difference| self.finding(difference, *identity, shown)));
        }
    }

    fn find_missing(&self, identities: &[Identity], findings: &mut Vec<HistoryDifference>) {
        let replica = |identity: &Identity| match identity {
            Identity::Replica(at) => Some(*at),
            Identity::Marker | Identity::Lost | Identity::Foreign => None,
        };
        let replicated: HashSet<usize> = identities.iter().filter_map(replica).collect();
        let has_replica = |at: usize| replicated.contains(&at);
        let mut below: Option<(usize, VersionKind)> = None;
        for (at, (entry, _)) in self.wanted() {
            let is_there = match (entry.kind, below) {
                (VersionKind::Object, _) => has_replica(at),
                // A marker over nothing, or over a marker, is one with it.
                (VersionKind::Marker, Some((object, VersionKind::Object)))
                    if has_replica(object) =>
                {
                    is_marked(identities, object, at)
                }
                (VersionKind::Marker, _) => true,
            };
            below = Some((at, entry.kind));
            if !is_there {
                findings.push(HistoryDifference {
                    difference: Difference::Missing,
                    source: Some(entry.version.clone()),
                    replica: None,
                });
            }
        }
    }

    /// Compares what readers of the key see.
    fn compare_current(
        &self,
        identities: &[Identity],
        mode: History,
        findings: &mut Vec<HistoryDifference>,
    ) {
        let Some((at, (entry, _))) = self.wanted().next_back() else {
            return;
        };
        let mut above = self.source.iter().skip(at + 1);
        if above.any(|(_, scope)| *scope == VersionScope::Pending) {
            return;
        }
        let last = identities.last().copied().zip(self.shown.last());
        let is_missing = HistoryDifference {
            difference: Difference::Missing,
            source: Some(entry.version.clone()),
            replica: None,
        };
        match (entry.kind, last) {
            // One above it is outside of the rule, and was replicated all the same.
            (_, Some((Identity::Replica(shown), _))) if shown > at => {}
            (VersionKind::Object, Some((Identity::Replica(shown), _))) if shown == at => {}
            (VersionKind::Marker, None | Some((Identity::Marker, _))) => {}
            // In full histories this was found above.
            (VersionKind::Object, None | Some((Identity::Replica(_), _))) => {
                findings.extend((mode == History::Latest).then_some(is_missing));
            }
            (_, Some((Identity::Foreign, _))) => {}
            (_, Some((identity, shown))) => {
                let is_known = findings.contains(&is_missing);
                let extra = self.finding(Difference::Extra, identity, shown);
                findings.extend((!is_known).then_some(extra));
            }
        }
    }

    fn wanted(&self) -> impl DoubleEndedIterator<Item = (usize, &(SourceVersion, VersionScope))> {
        let entries = self.source.iter().enumerate();
        entries.filter(|(_, (_, scope))| *scope == VersionScope::Wanted)
    }

    fn finding(
        &self,
        difference: Difference,
        identity: Identity,
        shown: &ShownEntry,
    ) -> HistoryDifference {
        let source = match identity {
            Identity::Replica(at) => self.source.get(at).map(|(entry, _)| entry.version.clone()),
            Identity::Marker | Identity::Lost | Identity::Foreign => None,
        };
        HistoryDifference {
            difference,
            source,
            replica: Some(shown.entry.version.id.clone()),
        }
    }
}

/// Says whether a marker is there above the replica of an object, and below every replica of what
/// is above a place of the source.
fn is_marked(identities: &[Identity], object: usize, place: usize) -> bool {
    marker_above(identities, object, place).is_some()
}

fn marker_above(identities: &[Identity], object: usize, place: usize) -> Option<usize> {
    let is_newer = |identity: &Identity| matches!(identity, Identity::Replica(at) if *at > place);
    let is_object = |identity: &Identity| *identity == Identity::Replica(object);
    let entries = identities.iter().enumerate();
    let above = entries.skip_while(|(_, identity)| !is_object(identity));
    let mut below_newer = above.take_while(|(_, identity)| !is_newer(identity));
    let marker = below_newer.find(|(_, identity)| **identity == Identity::Marker)?;
    Some(marker.0)
}

#[cfg(test)]
mod tests;
