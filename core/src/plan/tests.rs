//! The planner against a model of an append-only destination.

use proptest::prelude::*;

use super::*;

fn wanted(source: &[SourceVersion]) -> Vec<Option<VersionRef>> {
    folded(
        source
            .iter()
            .map(|entry| (entry.kind == VersionKind::Object).then(|| entry.version.clone())),
    )
}

fn tag(text: &str) -> ETag {
    ETag::try_from(text).expect("not empty")
}

/// The `n`th entry of a history; several share a second, as S3 lists them.
fn entry(n: usize, content: Option<u8>) -> SourceVersion {
    let second = i64::try_from(n / 3).expect("small");
    SourceVersion {
        version: VersionRef::new(
            VersionId::try_from(format!("v{n}")).expect("valid"),
            Timestamp::UNIX_EPOCH + time::Duration::seconds(second),
            None,
        ),
        kind: if content.is_some() {
            VersionKind::Object
        } else {
            VersionKind::Marker
        },
        // One of the contents is uploaded in parts.
        etag: content.map(|content| {
            tag(&format!(
                "etag{content}{}",
                if content == 2 { "-2" } else { "" }
            ))
        }),
        size_bytes: 1,
    }
}

const EXACT: (History, LateVersions) = (History::Exact, LateVersions::Skip);
const REWRITING: (History, LateVersions) = (History::Exact, LateVersions::Append);

/// Objects of few contents, so that they recur, and markers.
fn contents() -> impl Strategy<Value = Vec<Option<u8>>> {
    prop::collection::vec(prop::option::weighted(0.7, 0u8..3), 0..8)
}

fn history(contents: impl IntoIterator<Item = Option<u8>>) -> Vec<SourceVersion> {
    contents
        .into_iter()
        .enumerate()
        .map(|(n, content)| entry(n, content))
        .collect()
}

/// What readers of the source see.
fn newest(source: &[SourceVersion]) -> Option<VersionRef> {
    let newest = source.last()?;
    (newest.kind == VersionKind::Object).then(|| newest.version.clone())
}

fn histories() -> impl Strategy<Value = Vec<SourceVersion>> {
    contents().prop_map(history)
}

proptest! {
    #[test]
    fn the_destination_ends_with_the_sources_history(source in histories()) {
        let mut destination = Destination::default();
        let mut known = destination.known();
        prop_assert!(destination.catch_up(&source, &mut known, History::Exact).is_empty());
        prop_assert_eq!(destination.history(), wanted(&source));
    }

    #[test]
    fn arriving_bit_by_bit_with_or_without_a_ledger_ends_the_same(
        source in histories(),
        stops in prop::collection::vec((0usize..9, any::<bool>()), 0..6),
    ) {
        let mut destination = Destination::default();
        let mut known = destination.known();
        let mut stops = stops;
        stops.sort_unstable();
        for (stop, ledger_lost) in stops {
            if ledger_lost {
                known = destination.known();
            }
            let seen = &source[..stop.min(source.len())];
            prop_assert!(destination.catch_up(seen, &mut known, History::Exact).is_empty());
        }
        destination.catch_up(&source, &mut known, History::Exact);
        prop_assert_eq!(destination.history(), wanted(&source));
    }

    #[test]
    fn reading_again_after_all_is_done_finds_nothing_to_do(source in histories(), latest in any::<bool>()) {
        let mode = if latest { History::Latest } else { History::Exact };
        let mut destination = Destination::default();
        let mut known = destination.known();
        destination.catch_up(&source, &mut known, mode);
        // The destination is read anew, the ledger has its records.
        let ledger = known;
        let mut known = destination.known();
        known.replicated.extend(ledger.replicated);
        known.collapsed.extend(ledger.collapsed);
        prop_assert_eq!(next(&source, &known, (mode, LateVersions::Skip)), None);
    }

    #[test]
    fn latest_shows_the_newest_state_and_nothing_else_is_copied(source in histories()) {
        let mut destination = Destination::default();
        let mut known = destination.known();
        destination.catch_up(&source, &mut known, History::Latest);
        prop_assert_eq!(destination.shown(), newest(&source));
        prop_assert!(destination.entries.len() <= 1);
    }

    #[test]
    fn a_version_that_slots_in_below_is_recorded_as_late_and_never_written(
        older in contents(), late in 0u8..3, newer in 0u8..3, newest in contents(),
    ) {
        let at = older.len();
        let all = older.into_iter().chain([Some(late), Some(newer)]).chain(newest);
        let source = history(all);
        let mut seen = source.clone();
        let late = seen.remove(at);
        let mut destination = Destination::default();
        let mut known = destination.known();
        destination.catch_up(&seen, &mut known, History::Exact);
        let before = destination.entries.clone();
        prop_assert_eq!(destination.catch_up(&source, &mut known, History::Exact), vec![late.version]);
        prop_assert_eq!(destination.entries, before);
    }

    #[test]
    fn a_rewritten_history_is_whole_and_shows_the_newest_in_the_end_wherever_it_was_cut_off(
        source in histories(), had in any::<u8>(), cut in 0usize..16, lost in any::<bool>(),
    ) {
        let had: Vec<_> = source.iter().enumerate().filter(|(n, _)| had & (1 << n) != 0).map(|(_, entry)| entry.clone()).collect();
        let mut destination = Destination::default();
        let mut known = destination.known();
        destination.catch_up(&had, &mut known, History::Exact);
        let late = destination.catch_up(&source, &mut known, History::Exact);
        let before = destination.entries.clone();

        known.skipped.clear();
        destination.follow(&source, &mut known, REWRITING, cut);
        prop_assert!(destination.entries.starts_with(&before));
        if lost {
            known = destination.known();
        }
        // Another message comes first, which asks for nothing.
        let is_missing = |version: &VersionRef| !known.replicated.contains(version);
        known.skipped = late.into_iter().filter(is_missing).collect();
        destination.catch_up(&source, &mut known, History::Exact);
        prop_assert_eq!(destination.shown(), newest(&source));

        known.skipped.clear();
        prop_assert!(destination.follow(&source, &mut known, REWRITING, usize::MAX).is_empty());
        prop_assert_eq!(destination.shown(), newest(&source));
        let replicas = destination.known().replicated;
        prop_assert!(source.iter().all(|entry| entry.kind == VersionKind::Marker || replicas.contains(&entry.version)));
        prop_assert_eq!(next(&source, &known, REWRITING), None);
    }

    #[test]
    fn no_history_is_rewritten_below_what_would_not_come_back(
        older in contents(), late in 0u8..3, newer in 0u8..3, is_skipped in any::<bool>(),
    ) {
        let at = older.len();
        let mut source = history(older.into_iter().chain([Some(late), Some(newer), Some(2)]));
        let mut seen = source.clone();
        let late = seen.remove(at);
        let mut destination = Destination::default();
        let mut known = destination.known();
        destination.catch_up(&seen, &mut known, History::Exact);
        if is_skipped {
            // No rule takes what is newest.
            source.push(entry(source.len(), Some(0)));
            known.record_skipped(&source[source.len() - 1].version);
        } else {
            // The source has lost it.
            source.pop();
        }
        let before = destination.entries.clone();
        prop_assert_eq!(destination.follow(&source, &mut known, REWRITING, usize::MAX), vec![late.version]);
        prop_assert_eq!(destination.entries, before);
    }

    #[test]
    fn versions_deleted_at_the_source_leave_their_replicas(source in histories(), gone in any::<u16>()) {
        let mut destination = Destination::default();
        let mut known = destination.known();
        destination.catch_up(&source, &mut known, History::Exact);
        let before = destination.entries.clone();
        let kept = |n: usize| gone & (1 << n) == 0;
        let left: Vec<_> = source.iter().enumerate().filter(|(n, _)| kept(*n)).map(|(_, e)| e.clone()).collect();
        destination.catch_up(&left, &mut known, History::Exact);
        destination.catch_up(&left, &mut known, History::Latest);
        prop_assert_eq!(&destination.entries, &before);
    }
}

#[test]
fn a_stray_marker_over_the_current_object_is_answered_by_the_object() {
    let source = [entry(0, Some(1))];
    let mut destination = Destination::default();
    let mut known = destination.known();
    destination.catch_up(&source, &mut known, History::Exact);
    destination.entries.push(Entry::Marker);
    let mut known = destination.known();
    destination.catch_up(&source, &mut known, History::Exact);
    assert!(
        matches!(destination.entries.last(), Some(Entry::Object { of: Some(of), .. }) if *of == source[0].version)
    );
}

#[test]
fn a_collapsed_marker_is_written_when_an_object_has_appeared_below_it() {
    // An upload that was begun before the marker, completed after it, and listed below it.
    let whole = history([Some(1), None, Some(2)]);
    let mut destination = Destination::default();
    let mut known = destination.known();
    destination.catch_up(&whole[1..2], &mut known, History::Exact);
    assert!(destination.entries.is_empty(), "a marker over nothing");
    let collapsed = known.collapsed;
    let mut known = DestinationState {
        collapsed,
        ..destination.known()
    };
    destination.catch_up(&whole, &mut known, History::Exact);
    assert_eq!(destination.history(), wanted(&whole));
}

#[test]
fn an_object_that_is_not_ours_is_superseded() {
    let source = [entry(0, Some(1))];
    let mut destination = Destination {
        entries: vec![Entry::Object {
            of: None,
            etag: tag("foreign"),
        }],
    };
    let mut known = destination.known();
    destination.catch_up(&source, &mut known, History::Exact);
    assert_eq!(destination.entries.len(), 2);
}

#[test]
fn what_is_current_is_never_late_even_when_only_its_stamp_knows_it() {
    let source = history([Some(0)]);
    let mut destination = Destination::default();
    let mut known = destination.known();
    destination.catch_up(&source, &mut known, History::Exact);
    let mut known = DestinationState {
        replicated: HashSet::new(),
        ..destination.known()
    };
    assert!(
        destination
            .catch_up(&source, &mut known, History::Exact)
            .is_empty()
    );
    assert_eq!(destination.entries.len(), 1);
}

#[test]
fn a_version_on_record_that_the_destination_shows_in_another_place_is_not_written_twice() {
    // A multipart upload that was begun before v1 and completed after it: the source lists it
    // first.
    let mut source = history([Some(0), Some(1)]);
    let mut destination = Destination::default();
    let mut known = destination.known();
    destination.catch_up(&source, &mut known, History::Exact);
    source.swap(0, 1);
    source.push(entry(7, Some(2)));
    destination.catch_up(&source, &mut known, History::Exact);
    assert_eq!(destination.entries.len(), 3);
}

#[test]
fn a_newer_version_that_is_left_out_does_not_bring_an_older_one_back() {
    // The source's newest is the replica of what the other side wrote over ours: nothing to do.
    let source = history([Some(0), Some(1)]);
    let mut destination = Destination::default();
    let mut known = destination.known();
    destination.catch_up(&source[..1], &mut known, History::Exact);
    destination.entries.push(Entry::Object {
        of: None,
        etag: tag("theirs"),
    });
    let mut known = destination.known();
    known.record_skipped(&source[1].version);
    destination.catch_up(&source, &mut known, History::Exact);
    assert_eq!(destination.entries.len(), 2);
}

#[test]
fn a_newer_version_that_is_left_out_does_not_bring_back_what_an_older_replica_hides() {
    // A user of the other side copied the replica of v0 over that of v1, and the source has that as
    // v2 already.
    let source = history([Some(0), Some(1), Some(0)]);
    let mut destination = Destination::default();
    let mut known = destination.known();
    destination.catch_up(&source[..2], &mut known, History::Exact);
    let copy = destination.entries[0].clone();
    destination.entries.push(copy);
    let mut known = destination.known();
    assert!(
        matches!(next(&source, &known, EXACT), Some(Step::Put { source: v2, .. }) if *v2 == source[2])
    );
    known.record_skipped(&source[2].version);
    assert_eq!(next(&source, &known, EXACT), None);
}

#[test]
fn a_marker_of_the_second_of_a_version_that_is_gone_is_not_written_above_it() {
    // v0 was a marker and v1 an object of the same second, which is replicated and gone from the
    // source.
    let source = [entry(0, None), entry(4, Some(1))];
    let gone = Entry::Object {
        of: Some(entry(1, Some(0)).version),
        etag: tag("etag0"),
    };
    let mut known = Destination {
        entries: vec![gone],
    }
    .known();
    assert!(matches!(
        next(&source, &known, EXACT),
        Some(Step::Put { .. })
    ));
    // One that stands there already can only be this one.
    assert_eq!(
        marker_shown(&source, &known, source[1].version.last_modified),
        Some(&source[0].version)
    );
    // With nothing above it, or nothing that is written, it is what the source shows.
    assert!(matches!(
        next(&source[..1], &known, EXACT),
        Some(Step::PutDeleteMarker { .. })
    ));
    known.record_skipped(&source[1].version);
    assert!(matches!(
        next(&source, &known, EXACT),
        Some(Step::PutDeleteMarker { .. })
    ));
}

/// A destination that does what S3 does: appends, and shows what came last.
#[derive(Debug, Clone, Default)]
struct Destination {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Object { of: Option<VersionRef>, etag: ETag },
    Marker,
}

impl Destination {
    fn top(&self) -> Current {
        match self.entries.last() {
            None => Current::Nothing,
            Some(Entry::Marker) => Current::Marker,
            Some(Entry::Object { of, etag }) => Current::Object {
                etag: etag.clone(),
                replica_of: of.clone(),
            },
        }
    }

    /// Of which version readers see the replica.
    fn shown(&self) -> Option<VersionRef> {
        match self.top() {
            Current::Object { replica_of, .. } => replica_of,
            Current::Nothing | Current::Marker => None,
        }
    }

    /// What a daemon without a ledger can read back.
    fn known(&self) -> DestinationState {
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

    /// Runs the planner to its end.
    fn catch_up(
        &mut self,
        source: &[SourceVersion],
        known: &mut DestinationState,
        history: History,
    ) -> Vec<VersionRef> {
        self.follow(source, known, (history, LateVersions::Skip), usize::MAX)
    }

    /// Does so many of its steps, each on the condition that it sets, and returns what was recorded
    /// as late.
    fn follow(
        &mut self,
        source: &[SourceVersion],
        known: &mut DestinationState,
        mode: (History, LateVersions),
        steps_max: usize,
    ) -> Vec<VersionRef> {
        let mut late = Vec::new();
        for step in 0..=3 * source.len() + 2 {
            let rest = &source[settled(source, known)..];
            assert_eq!(
                next(rest, known, mode),
                next(source, known, mode),
                "{source:?} {known:?}"
            );
            let planned = next(source, known, mode).filter(|_| step < steps_max);
            let Some(step) = planned else {
                return late;
            };
            match step {
                Step::Put {
                    source: version,
                    condition,
                }
                | Step::PutLate {
                    source: version,
                    condition,
                    ..
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
    fn history(&self) -> Vec<Option<VersionRef>> {
        let entries = self.entries.iter().map(|entry| match entry {
            Entry::Object { of, .. } => of.clone(),
            Entry::Marker => None,
        });
        folded(entries)
    }
}

fn folded(entries: impl Iterator<Item = Option<VersionRef>>) -> Vec<Option<VersionRef>> {
    let mut all: Vec<Option<VersionRef>> = vec![None];
    for entry in entries {
        if entry.is_some() || all.last() != Some(&None) {
            all.push(entry);
        }
    }
    all.split_off(1)
}
