//! H, C, S and E: one replica a version, in the source's order, equal in everything, none removed
//! that the source still has; what is current is what the source shows.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use replicator_fakes::s3::entry::{Entry, Object};

use super::{Case, STAMP};

pub(super) fn judge(case: &Case<'_>, wrong: &mut Vec<String>) {
    let kept = kept(case);
    order(case, &kept, wrong);
    if !case.expect.latest {
        completeness(case, &kept, wrong);
    }
    markers(case, &kept, wrong);
    current(case, wrong);
    removals(case, wrong);
}

/// Lists what the destination still holds, each object with the place of its original; without strangers.
fn kept<'a>(case: &'a Case<'_>) -> Vec<(&'a Entry, Option<usize>)> {
    let still = |entry: &&Arc<Entry>| case.replicas_now.contains(&entry.version_id) && !is_stranger(case, entry);
    case.replicas.iter().filter(still).map(|entry| (&**entry, case.origin(entry))).collect()
}

/// Who finds a replica without a stamp, and its original gone, takes it for a stranger's (README), and writes the newest
/// state on top.
fn is_stranger(case: &Case<'_>, entry: &Entry) -> bool {
    let is_stamped = entry.object.as_ref().is_none_or(|object| object.user(STAMP).is_some());
    !is_stamped && case.origin(entry).is_some_and(|place| !case.has(place))
}

fn order(case: &Case<'_>, kept: &[(&Entry, Option<usize>)], wrong: &mut Vec<String>) {
    let mut last = None;
    for (at, (entry, place)) in kept.iter().enumerate().filter(|(_, (entry, _))| !entry.is_marker()) {
        match place {
            Some(place) if last == Some(*place) && is_written_again(case, kept, at, *place) => {
                equal(&case.source[*place], entry, *place, wrong);
                same_tags(&case.source[*place], entry, *place, case, wrong);
            }
            None => wrong.push(format!("H: {} is the replica of nothing", entry.version_id)),
            Some(place) if last == Some(*place) => wrong.push(format!("H: v{place} has two replicas")),
            Some(place) if last > Some(*place) => wrong.push(format!("H: v{place} stands above {last:?}")),
            Some(place) => {
                last = Some(*place);
                equal(&case.source[*place], entry, *place, wrong);
                // Of two, the newer is what readers see, and what tags go to.
                if !kept[at + 1..].iter().any(|(_, other)| other == &Some(*place)) {
                    same_tags(&case.source[*place], entry, *place, case, wrong);
                }
            }
        }
    }
}

/// Says whether a second replica is right: a marker lies between that was taken back at the source, or a stranger.
fn is_written_again(case: &Case<'_>, kept: &[(&Entry, Option<usize>)], at: usize, place: usize) -> bool {
    let is_over_marker = at > 0 && kept[at - 1].0.is_marker();
    is_over_stranger(case, kept[at].0) || (is_over_marker && case.is_undeleted(place))
}

/// Says whether right below an entry there is a stranger.
fn is_over_stranger(case: &Case<'_>, entry: &Entry) -> bool {
    let here = case.replicas.iter().position(|other| other.id == entry.id).unwrap_or_default();
    let below = case.replicas[..here].iter().rfind(|other| case.replicas_now.contains(&other.version_id));
    below.is_some_and(|below| is_stranger(case, below))
}

fn completeness(case: &Case<'_>, kept: &[(&Entry, Option<usize>)], wrong: &mut Vec<String>) {
    for (place, entry) in case.source.iter().enumerate() {
        let is_there = case.source_now.contains(&entry.version_id);
        if is_there && !entry.is_marker() && !kept.iter().any(|(_, of)| *of == Some(place)) && !is_late(case, place) {
            wrong.push(format!("H: v{place} has no replica"));
        }
    }
}

/// Says whether a version appeared below one that was there already: an upload in parts that was
/// begun first and completed last.
fn is_late(case: &Case<'_>, place: usize) -> bool {
    let landed = case.source[place].landed;
    case.source[place + 1..].iter().any(|above| above.landed < landed)
}

fn markers(case: &Case<'_>, kept: &[(&Entry, Option<usize>)], wrong: &mut Vec<String>) {
    let mut below: Option<usize> = None;
    let mut run = 0;
    for (at, (entry, place)) in kept.iter().enumerate() {
        if !entry.is_marker() {
            (below, run) = (*place, 0);
            continue;
        }
        run = if is_over_stranger(case, entry) { 1 } else { run + 1 };
        let above = kept[at..].iter().find_map(|(_, place)| *place).unwrap_or(case.source.len());
        let from = below.map_or(0, |below| below + 1);
        let is_taken_back = below == Some(above) && case.is_undeleted(above);
        // A purge brings the markers above and below together, each with its own replica.
        if run == 2 && !case.expect.version_deletes {
            wrong.push(format!("H: two markers in a row above {below:?}"));
        }
        if below.is_none() && !case.expect.purges {
            wrong.push("H: a marker over nothing".to_owned());
        }
        let is_explained = from <= above && case.source[from..above].iter().any(|entry| entry.is_marker());
        let is_ambiguous = below.is_some_and(|below| may_hide(case, below, entry));
        if !is_explained && !is_taken_back && !is_ambiguous {
            wrong.push(format!("H: a marker above {below:?} that the source never had"));
        }
    }
    if !case.expect.latest && !case.expect.purges {
        missing_markers(case, kept, wrong);
    }
}

/// Says whether nobody could know that the marker does not belong above this version: that is gone, lists state times
/// by the second, and the source showed a marker of its second when the plan was made.
fn may_hide(case: &Case<'_>, place: usize, marker: &Entry) -> bool {
    let second =
        |entry: &Entry| entry.last_modified.duration_since(SystemTime::UNIX_EPOCH).map(|time| time.as_secs()).ok();
    let is_same = |entry: &Entry| entry.is_marker() && second(entry) == second(&case.source[place]);
    // In force is each state until the next one.
    let states = case.source_shown.iter().zip(case.source_shown.iter().skip(1).map(|next| Some(next.at)).chain([None]));
    let could_be_read = |until: Option<SystemTime>| until.is_none_or(|until| until + PLAN_AGE_MAX >= marker.landed);
    let mut shown = states.filter(|(state, until)| state.at <= marker.landed && could_be_read(*until));
    !case.has(place) && shown.any(|(state, _)| state.current.as_ref().is_some_and(|current| is_same(current)))
}

// Longer than any plan lives that writes a marker.
const PLAN_AGE_MAX: Duration = Duration::from_secs(66);

/// Between two objects that follow each other at the destination there is a marker if the source has one.
fn missing_markers(case: &Case<'_>, kept: &[(&Entry, Option<usize>)], wrong: &mut Vec<String>) {
    let objects: Vec<usize> = (0..kept.len()).filter(|at| !kept[*at].0.is_marker() && kept[*at].1.is_some()).collect();
    for (nth, at) in objects.iter().enumerate() {
        let from = kept[*at].1.unwrap() + 1;
        let next = objects.get(nth + 1);
        let to = next.map_or(case.source.len(), |next| kept[*next].1.unwrap());
        let has_marker = next.map_or(kept.len(), |next| *next) > at + 1;
        if from < to && case.source[from..to].iter().any(|entry| entry.is_marker()) && !has_marker {
            wrong.push(format!("H: the marker above v{} is missing", from - 1));
        }
    }
}

/// C: both sides show the same. Without `version_deletes` a purge at the source is nobody's business.
fn current(case: &Case<'_>, wrong: &mut Vec<String>) {
    if case.expect.purges && !case.expect.version_deletes {
        return;
    }
    let shown = |entries: &[Arc<Entry>], now: &std::collections::BTreeSet<String>| {
        entries.iter().rfind(|entry| now.contains(&entry.version_id)).cloned()
    };
    let source = shown(&case.source, &case.source_now);
    let replica = shown(&case.replicas, &case.replicas_now);
    let object = |entry: &Option<Arc<Entry>>| entry.as_ref().and_then(|entry| entry.object.clone());
    match (object(&source), object(&replica)) {
        (None, None) => {}
        (Some(_), None) => wrong.push("C: the source shows an object, the destination none".to_owned()),
        (None, Some(_)) => wrong.push("C: the destination shows an object, the source none".to_owned()),
        (Some(one), Some(other)) if one.bytes == other.bytes => {}
        (Some(_), Some(_)) => wrong.push("C: the destination shows another object than the source".to_owned()),
    }
}

fn equal(original: &Entry, replica: &Entry, place: usize, wrong: &mut Vec<String>) {
    let (Some(one), Some(other)) = (&original.object, &replica.object) else { return };
    if one.bytes != other.bytes {
        wrong.push(format!("E: the replica of v{place} has other bytes"));
    }
    if headers(one) != headers(other) {
        wrong.push(format!("E: the replica of v{place} has other metadata: {:?} {:?}", headers(one), headers(other)));
    }
}

/// Tags of a version that is gone are not followed any more.
fn same_tags(original: &Entry, replica: &Entry, place: usize, case: &Case<'_>, wrong: &mut Vec<String>) {
    let (Some(one), Some(other)) = (&original.object, &replica.object) else { return };
    if case.source_now.contains(&original.version_id) && one.tags != other.tags {
        wrong.push(format!("E: the replica of v{place} has the tags {:?} and not {:?}", other.tags, one.tags));
    }
}

/// Lists what an object carries, but the stamp. `binary/octet-stream` is what S3 says of an object whose
/// writer said nothing.
pub(super) fn headers(object: &Object) -> Vec<(&String, &http::HeaderValue)> {
    let stamp = format!("x-amz-meta-{STAMP}");
    let said = |(name, value): &(&String, &http::HeaderValue)| **name != stamp && *value != "binary/octet-stream";
    object.headers.iter().filter(said).collect()
}

/// S: nothing goes from the destination unless the rule says so and the source has lost it too.
fn removals(case: &Case<'_>, wrong: &mut Vec<String>) {
    for entry in case.replicas.iter().filter(|entry| !case.replicas_now.contains(&entry.version_id)) {
        if !case.expect.version_deletes {
            wrong.push(format!("S: {} was removed", entry.version_id));
        } else if let Some(place) = case.origin(entry)
            && case.source_now.contains(&case.source[place].version_id)
        {
            wrong.push(format!("S: the replica of v{place}, which the source has, was removed"));
        }
    }
}
