//! Alignment against histories of which the truth is known.

use proptest::prelude::*;
use proptest::sample::subsequence;

use super::*;
use crate::object::VersionId;

fn version(number: usize) -> VersionRef {
    let time = Timestamp::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
    VersionRef::new(VersionId::try_from(format!("v{number}")).unwrap(), time, None)
}

/// A history with these contents; a space is a delete marker.
fn originals(contents: &str) -> Vec<Original<char>> {
    let print = |content| (content != ' ').then_some(content);
    contents.chars().enumerate().map(|(n, content)| Original { version: version(n), print: print(content) }).collect()
}

fn unknown(contents: &str) -> Vec<Found<char>> {
    contents.chars().map(Found::Unknown).collect()
}

/// Writes where each object stands as a digit, a dash where nowhere.
fn places(source: &[Original<char>], destination: &[Found<char>]) -> String {
    let digit = |place: Option<usize>| place.map_or("-".to_owned(), |place| place.to_string());
    align(source, destination).into_iter().map(digit).collect()
}

#[test]
fn a_lone_replica_of_recurring_content_is_the_oldest_original() {
    assert_eq!(places(&originals("aa"), &unknown("a")), "0");
    assert_eq!(places(&originals("aba"), &unknown("aba")), "012");
    assert_eq!(places(&originals("a a"), &unknown("a")), "0");
}

#[test]
fn strangers_in_between_are_passed_over() {
    assert_eq!(places(&originals("abc"), &unknown("xaybz")), "-0-1-");
    assert_eq!(places(&originals("abc"), &unknown("")), "");
    assert_eq!(places(&originals(""), &unknown("a")), "-");
}

#[test]
fn known_replicas_say_on_which_side_of_them_the_others_are() {
    let between = |version| vec![Found::Unknown('a'), Found::Replica(version), Found::Unknown('a')];
    assert_eq!(places(&originals("aabaa"), &between(version(2))), "023");
    assert_eq!(places(&originals("baa"), &between(version(1))), "-12");
}

#[test]
fn a_known_replica_whose_original_is_gone_still_stands_between_the_others() {
    let mut source = originals("abaa");
    source.remove(1);
    let destination = [Found::Unknown('a'), Found::Replica(version(1)), Found::Unknown('a')];
    assert_eq!(places(&source, &destination), "0-1");
    // Nothing of the source is that old any more: the first is the replica of what was lost too.
    assert_eq!(places(&source[1..], &destination), "--0");
    // What stands above it and is as old as what was below it was written again: the newest run counts.
    assert_eq!(places(&source[..1], &destination), "--0");
}

#[test]
fn what_stands_above_a_known_replica_is_newer_than_its_original_though_that_is_gone() {
    let mut source = originals("aba");
    source.remove(1);
    assert_eq!(places(&source, &[Found::Replica(version(1)), Found::Unknown('a')]), "-1");
}

#[test]
fn of_versions_in_one_second_either_may_be_the_older_one() {
    let gone = VersionRef { id: VersionId::try_from("gone").unwrap(), ..version(0) };
    let source = originals("a");
    assert_eq!(places(&source, &[Found::Unknown('a'), Found::Replica(gone.clone())]), "0-");
    assert_eq!(places(&source, &[Found::Replica(gone), Found::Unknown('a')]), "-0");
}

#[test]
fn of_replicas_whose_originals_are_gone_none_is_taken_for_a_later_one() {
    // The first two were expired at the source; the destination still has them.
    assert_eq!(places(&originals("ba"), &unknown("baba")), "--01");
}

#[test]
fn a_second_replica_of_what_was_reached_is_recognised_as_the_newer_one() {
    let twice = [Found::Replica(version(0)), Found::Unknown('a')];
    assert_eq!(places(&originals("ab"), &twice), "-0");
    assert_eq!(places(&originals("aa"), &twice), "01");
}

/// A source whose contents recur, and of it which entries have a replica and which of those are known.
fn replicated(contents: &'static str) -> impl Strategy<Value = (Vec<Original<char>>, Vec<usize>, Vec<bool>)> {
    proptest::collection::vec(proptest::sample::select(contents.chars().collect::<Vec<_>>()), 0..12).prop_flat_map(
        |contents| {
            let source = originals(&contents.into_iter().collect::<String>());
            let objects: Vec<usize> = (0..source.len()).filter(|at| source[*at].print.is_some()).collect();
            let count = objects.len();
            (Just(source), subsequence(objects, 0..=count), proptest::collection::vec(any::<bool>(), count))
        },
    )
}

fn found(source: &[Original<char>], written: &[usize], known: &[bool]) -> Vec<Found<char>> {
    let look = |(at, known): (&usize, &bool)| match known {
        true => Found::Replica(source[*at].version.clone()),
        false => Found::Unknown(source[*at].print.unwrap()),
    };
    written.iter().zip(known).map(look).collect()
}

proptest! {
    /// The daemon writes oldest first and leaves nothing out, so what is there is a beginning.
    #[test]
    fn a_beginning_of_the_history_is_recognised_whole((source, _, known) in replicated("aab "), cut in 0usize..12) {
        let objects = (0..source.len()).filter(|at| source[*at].print.is_some());
        let written: Vec<usize> = objects.take(cut).collect();
        let aligned = align(&source, &found(&source, &written, &known));
        prop_assert_eq!(aligned, written.into_iter().map(Some).collect::<Vec<_>>());
    }

    #[test]
    fn where_nothing_recurs_whatever_was_left_out_the_truth_is_found((_, written, known) in replicated("a"), lost in 0usize..12) {
        let source = originals("abcdefghijkl");
        let destination = found(&source, &written, &known);
        // The oldest originals are gone meanwhile.
        let left = &source[lost..];
        let truth = |at: usize| at.checked_sub(lost);
        prop_assert_eq!(align(left, &destination), written.into_iter().map(truth).collect::<Vec<_>>());
    }

    /// Whatever stands at the destination, equal or not, in order or not.
    #[test]
    fn only_equals_are_paired_each_once_and_in_order((source, written, known) in replicated("aab "), strangers in "[abx]{0,6}", at in 0usize..12) {
        let mut destination = found(&source, &written, &known);
        let at = at.min(destination.len());
        destination.splice(at..at, unknown(&strangers));
        let aligned = align(&source, &destination);
        prop_assert_eq!(aligned.len(), destination.len());
        let placed: Vec<usize> = aligned.iter().copied().flatten().collect();
        prop_assert!(placed.is_sorted_by(|one, next| one < next), "{:?}", aligned);
        for (found, place) in destination.iter().zip(aligned) {
            let Some(original) = place.map(|place| &source[place]) else { continue };
            match found {
                Found::Replica(version) => prop_assert_eq!(version, &original.version),
                Found::Unknown(print) => prop_assert_eq!(Some(print), original.print.as_ref()),
            }
        }
    }
}
