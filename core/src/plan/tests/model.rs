//! A model of an append-only destination, and of a daemon that follows the planner there.

use super::*;

/// A destination that does what S3 does: appends, and shows what came last.
#[derive(Debug, Clone, Default)]
pub(super) struct Destination {
    pub(super) entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    Object { of: Option<VersionRef>, etag: ETag },
    Marker,
}

impl Destination {
    pub(super) fn top(&self) -> Current {
        match self.entries.last() {
            None => Current::Nothing,
            Some(Entry::Marker) => Current::Marker,
            Some(Entry::Object { of, etag }) => Current::Object {
                etag: etag.clone(),
                replica_of: of.clone(),
            },
        }
    }

    /// What a daemon without a ledger can read back.
    pub(super) fn known(&self) -> DestinationState {
        let replicas = self.entries.iter().filter_map(|entry| match entry {
            Entry::Object { of, .. } => of.clone(),
            Entry::Marker => None,
        });
        DestinationState {
            current: self.top(),
            reached: replicas.clone().next_back(),
            replicated: replicas.collect(),
            collapsed: HashSet::new(),
            skipped: HashSet::new(),
        }
    }

    /// Runs the planner to its end, checking every intermediate state against promise M.
    pub(super) fn catch_up(
        &mut self,
        source: &[SourceVersion],
        known: &mut DestinationState,
        history: History,
    ) -> Vec<VersionRef> {
        let mut late = Vec::new();
        for _ in 0..=2 * source.len() + 2 {
            let rest = &source[settled(source, known)..];
            assert_eq!(
                next(rest, known, history),
                next(source, known, history),
                "{source:?} {known:?}"
            );
            let Some(step) = next(source, known, history) else {
                return late;
            };
            match step {
                Step::Put {
                    source: version,
                    condition,
                } => {
                    self.check(&condition);
                    self.put(version);
                    known.advance(&version.version, self.top());
                }
                Step::PutDeleteMarker {
                    source: version,
                    over,
                } => {
                    self.check(&Precondition::Over(over));
                    self.entries.push(Entry::Marker);
                    known.advance(&version.version, self.top());
                }
                Step::CoalesceMarker(version) => known.record_coalesced(&version.version),
                Step::SkipSuperseded(version) => {
                    late.push(version.version.clone());
                    known.record_skipped(&version.version);
                }
            }
        }
        panic!("the planner never ends: {source:?} {known:?}");
    }

    fn put(&mut self, version: &SourceVersion) {
        let etag = version.etag.clone().expect("objects have one");
        self.entries.push(Entry::Object {
            of: Some(version.version.clone()),
            etag,
        });
    }

    fn check(&self, condition: &Precondition) {
        let holds = match (condition, self.top()) {
            (Precondition::Absent, Current::Nothing | Current::Marker) => true,
            (Precondition::Over(wanted), Current::Object { etag, .. }) => *wanted == etag,
            _ => false,
        };
        assert!(holds, "{condition:?} refused at {:?}", self.top());
    }

    /// The history with runs of markers as one and none at the start, as promise H reads it.
    pub(super) fn history(&self) -> Vec<Option<VersionRef>> {
        let entries = self.entries.iter().map(|entry| match entry {
            Entry::Object { of, .. } => of.clone(),
            Entry::Marker => None,
        });
        folded(entries)
    }
}

pub(super) fn folded(entries: impl Iterator<Item = Option<VersionRef>>) -> Vec<Option<VersionRef>> {
    let mut all: Vec<Option<VersionRef>> = vec![None];
    for entry in entries {
        if entry.is_some() || all.last() != Some(&None) {
            all.push(entry);
        }
    }
    all.split_off(1)
}
