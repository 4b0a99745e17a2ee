//! The whole history: one replica a version, in the source's order, equal in everything, none
//! removed that the source still has; what is current is what the source shows.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use replicator_fakes::s3::entry::Entry;

use super::markers::{self, PLAN_AGE_MAX};
use super::{Case, objects};

pub(super) fn judge(case: &Case<'_>, wrong: &mut Vec<String>) {
    let kept = kept(case);
    equality(case, wrong);
    order(case, &kept, wrong);
    if !case.expect.latest {
        completeness(case, &kept, wrong);
    }
    markers::judge(case, &kept, wrong);
    current(case, wrong);
    removals(case, wrong);
}

/// Lists what the destination still holds, each object with the place of its original.
fn kept<'a>(case: &'a Case<'_>) -> Vec<(&'a Entry, Option<usize>)> {
    let all = case.replicas.iter().zip(&case.origins);
    all.filter(|(entry, _)| case.is_kept(entry))
        .map(|(entry, origin)| (&**entry, *origin))
        .collect()
}

/// Judges all that ever was shown, also what was removed since.
fn equality(case: &Case<'_>, wrong: &mut Vec<String>) {
    for (entry, origin) in case.replicas.iter().zip(&case.origins) {
        if let Some(place) = *origin {
            equal(&case.source[place], entry, place, wrong);
        }
    }
}

fn order(case: &Case<'_>, kept: &[(&Entry, Option<usize>)], wrong: &mut Vec<String>) {
    let mut last = None;
    for (at, (entry, place)) in kept
        .iter()
        .enumerate()
        .filter(|(_, (entry, _))| !entry.is_marker())
    {
        match place {
            Some(place) if last == Some(*place) && is_written_again(case, kept, at, *place) => {
                same_tags(&case.source[*place], entry, *place, case, wrong);
            }
            None => wrong.push(format!(
                "whole history: {} is the replica of nothing",
                entry.version_id
            )),
            Some(place) if last == Some(*place) => {
                wrong.push(format!("whole history: v{place} has two replicas"));
            }
            Some(place)
                if last.is_some_and(|last| {
                    last > *place && is_untold(case, *place, last, entry.landed)
                }) =>
            {
                last = Some(*place);
            }
            Some(place) if last > Some(*place) => {
                wrong.push(format!("whole history: v{place} stands above {last:?}"));
            }
            Some(place) => {
                last = Some(*place);
                // Of two, the newer is what readers see, and what tags go to.
                if !kept[at + 1..]
                    .iter()
                    .any(|(_, other)| other == &Some(*place))
                {
                    same_tags(&case.source[*place], entry, *place, case, wrong);
                }
            }
        }
    }
}

/// Says whether nothing told, when a replica was written, that its version belongs below another
/// one: S3 states times by the second, the one above was gone, and it had its replica before the
/// one below appeared, so that no list that was planned by had both.
pub(super) fn is_untold(case: &Case<'_>, below: usize, above: usize, written: SystemTime) -> bool {
    let (lower, upper) = (&case.source[below], &case.source[above]);
    let second = |entry: &Entry| {
        entry
            .last_modified
            .duration_since(SystemTime::UNIX_EPOCH)
            .map(|time| time.as_secs())
            .ok()
    };
    let came_later = |at: usize| case.replicas[at].landed > lower.landed;
    let is_of_above = |at: &usize| case.origins[*at] == Some(above);
    let is_after_both = (0..case.replicas.len()).filter(is_of_above).any(came_later);
    let is_gone = case
        .removed
        .get(&upper.version_id)
        .is_some_and(|gone| *gone <= written);
    second(lower) == second(upper) && is_gone && !is_after_both
}

/// Says whether a second replica is right: a marker lies between that was taken back at the source.
fn is_written_again(
    case: &Case<'_>,
    kept: &[(&Entry, Option<usize>)],
    at: usize,
    place: usize,
) -> bool {
    let is_over_marker = at > 0 && kept[at - 1].0.is_marker();
    is_over_marker && case.is_undeleted(place)
}

fn completeness(case: &Case<'_>, kept: &[(&Entry, Option<usize>)], wrong: &mut Vec<String>) {
    for (place, entry) in case.source.iter().enumerate() {
        let is_there = case.source_now.contains(&entry.version_id);
        if is_there
            && !entry.is_marker()
            && !kept.iter().any(|(_, of)| *of == Some(place))
            && !is_late(case, place)
        {
            wrong.push(format!("whole history: v{place} has no replica"));
        }
    }
}

/// Says whether a version appeared below one that was there already, when the destination had that
/// one or was about to: an upload in parts that was begun first and completed last.
fn is_late(case: &Case<'_>, place: usize) -> bool {
    let landed = case.source[place].landed;
    let is_newer = |at: usize| at > place && case.source[at].landed < landed;
    let is_of_newer = |at: usize| match case.replicas[at].is_marker() {
        true => markers::span(case, at).any(|at| is_newer(at) && case.source[at].is_marker()),
        false => case.origins[at].is_some_and(is_newer),
    };
    let in_time = |at: usize| case.replicas[at].landed <= landed + PLAN_AGE_MAX;
    // A marker over nothing is replicated by nothing.
    let is_bare = !(0..case.replicas.len()).any(in_time);
    let is_newer_marker = |at: usize| is_newer(at) && case.source[at].is_marker();
    let is_hidden = is_bare && (place..case.source.len()).any(is_newer_marker);
    is_hidden || (0..case.replicas.len()).any(|at| in_time(at) && is_of_newer(at))
}

/// C: both sides show the same. Without `version_deletes` a purge of what the source showed is out
/// of scope: the destination may go on to show what is gone, but nothing that is older than what is
/// left.
fn current(case: &Case<'_>, wrong: &mut Vec<String>) {
    let shown = |entries: &[Arc<Entry>], now: &BTreeSet<String>| {
        entries
            .iter()
            .rposition(|entry| now.contains(&entry.version_id))
    };
    let source = shown(&case.source, &case.source_now);
    let replica = shown(&case.replicas, &case.replicas_now).map(|at| &case.replicas[at]);
    let from = source.map_or(0, |at| at + 1);
    if !case.expect.version_deletes
        && replica.is_some_and(|replica| is_of_gone(case, replica, from))
    {
        return;
    }
    let original = source.and_then(|at| case.source[at].object.as_ref());
    match (
        original,
        replica.and_then(|replica| replica.object.as_ref()),
    ) {
        (None, None) => {}
        (Some(_), None) => {
            wrong.push("converges: the source shows an object, the destination none".to_owned());
        }
        (None, Some(_)) => {
            wrong.push("converges: the destination shows an object, the source none".to_owned());
        }
        (Some(one), Some(other)) if one.bytes == other.bytes => {}
        (Some(_), Some(_)) => {
            wrong
                .push("converges: the destination shows another object than the source".to_owned());
        }
    }
}

/// Says whether a replica is of something that the source had from this place on, and has no more.
fn is_of_gone(case: &Case<'_>, replica: &Entry, from: usize) -> bool {
    let is_of = |at: usize| match replica.is_marker() {
        true => case.source[at].is_marker(),
        false => case.origin(replica) == Some(at),
    };
    (from..case.source.len()).any(|at| !case.has(at) && is_of(at))
}

fn equal(original: &Entry, replica: &Entry, place: usize, wrong: &mut Vec<String>) {
    let (Some(one), Some(other)) = (&original.object, &replica.object) else {
        return;
    };
    for what in objects::differences(one, other) {
        match what {
            "bytes" | "size" => {
                wrong.push(format!("equal: the replica of v{place} has other bytes"));
            }
            "metadata" => wrong.push(format!(
                "equal: the replica of v{place} has other metadata: {:?} {:?}",
                objects::headers(one),
                objects::headers(other)
            )),
            // Tags follow their original until that is gone, and no lock is followed after the write.
            _ => {}
        }
    }
}

/// Tags of a version that is gone are not followed any more.
fn same_tags(
    original: &Entry,
    replica: &Entry,
    place: usize,
    case: &Case<'_>,
    wrong: &mut Vec<String>,
) {
    let (Some(one), Some(other)) = (&original.object, &replica.object) else {
        return;
    };
    if case.source_now.contains(&original.version_id) && one.tags != other.tags {
        wrong.push(format!(
            "equal: the replica of v{place} has the tags {:?} and not {:?}",
            other.tags, one.tags
        ));
    }
}

/// S: nothing goes from the destination unless the rule says so and the source has lost it too.
fn removals(case: &Case<'_>, wrong: &mut Vec<String>) {
    for (at, entry) in case
        .replicas
        .iter()
        .enumerate()
        .filter(|(_, entry)| !case.is_kept(entry))
    {
        let by = case
            .removed
            .get(&entry.version_id)
            .copied()
            .unwrap_or(SystemTime::UNIX_EPOCH);
        let is_lost = match entry.is_marker() {
            true => markers::span(case, at)
                .any(|place| case.source[place].is_marker() && case.had_lost(place, by)),
            false => case.origins[at].is_some_and(|place| case.had_lost(place, by)),
        };
        if !case.expect.version_deletes {
            wrong.push(format!("safe deletes: {} was removed", case.name(entry)));
        } else if !is_lost {
            wrong.push(format!(
                "safe deletes: {} was removed, which the source had",
                case.name(entry)
            ));
        }
    }
}
