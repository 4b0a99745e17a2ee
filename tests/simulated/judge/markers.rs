//! Delete markers, which nothing tells apart: each stands between the objects that the source
//! has it between, a run of them counts as one, and none stands over nothing.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use replicator_fakes::s3::entry::Entry;

use super::Case;

/// Longer than any plan lives.
pub(super) const PLAN_AGE_MAX: Duration = Duration::from_secs(66);

pub(super) fn judge(case: &Case<'_>, kept: &[(&Entry, Option<usize>)], wrong: &mut Vec<String>) {
    let mut below: Option<usize> = None;
    let mut run: Vec<&Entry> = Vec::new();
    for (at, (entry, place)) in kept.iter().enumerate() {
        if !entry.is_marker() {
            (below, run) = (*place, Vec::new());
            continue;
        }
        let above = kept[at..]
            .iter()
            .find_map(|(_, place)| *place)
            .unwrap_or(case.source.len());
        let from = below.map_or(0, |below| below + 1);
        // A purge brings the markers above and below together, and what it leaves below nothing.
        let is_bared = is_over_purged(case, run.last().copied(), entry);
        if !run.is_empty() && !is_bared {
            wrong.push(format!(
                "whole history: two markers in a row above {below:?}"
            ));
        }
        if below.is_none() && run.is_empty() && !is_bared {
            wrong.push("whole history: a marker over nothing".to_owned());
        }
        run.push(entry);
        let is_taken_back = below == Some(above) && case.is_undeleted(above);
        let is_ambiguous = below.is_some_and(|below| may_hide(case, below, entry));
        let explaining = (from..above)
            .filter(|at| case.source[*at].is_marker())
            .count();
        let is_explained = is_taken_back || is_ambiguous || is_of_hidden_upload(case, above, entry);
        if run.len() > explaining && !is_explained {
            wrong.push(format!(
                "whole history: a marker above {below:?} the source never had"
            ));
        }
    }
    if !case.expect.latest {
        missing(case, kept, wrong);
    }
}

/// Says whether between this marker and the one below, or nothing, there was an object that was
/// removed.
fn is_over_purged(case: &Case<'_>, below: Option<&Entry>, marker: &Entry) -> bool {
    let at = |entry: &Entry| {
        case.replicas
            .iter()
            .position(|other| other.id == entry.id)
            .unwrap_or_default()
    };
    let between = &case.replicas[below.map_or(0, |below| at(below) + 1)..at(marker)];
    between
        .iter()
        .any(|entry| !entry.is_marker() && !case.is_kept(entry))
}

/// Says whether a marker is of one that stood where the object above it is now, which appeared
/// later: an upload in parts that was begun before the marker, and completed before that was taken
/// back.
fn is_of_hidden_upload(case: &Case<'_>, above: usize, marker: &Entry) -> bool {
    let Some(upload) = case.source.get(above) else {
        return false;
    };
    let is_original = |at: usize| {
        let original = &case.source[at];
        let came_first = original.landed <= marker.landed && original.landed < upload.landed;
        original.is_marker() && !case.has(at) && came_first
    };
    (above..case.source.len()).any(is_original)
}

/// Says whether no daemon could tell that the marker does not belong above this version: that is
/// gone, lists state times by the second, and the source showed a marker of its second when the
/// plan was made.
fn may_hide(case: &Case<'_>, place: usize, marker: &Entry) -> bool {
    let is_same = |entry: &Entry| entry.is_marker() && second(entry) == second(&case.source[place]);
    // In force is each state until the next one.
    let states = case.source_shown.iter().zip(
        case.source_shown
            .iter()
            .skip(1)
            .map(|next| Some(next.at))
            .chain([None]),
    );
    let could_be_read =
        |until: Option<SystemTime>| until.is_none_or(|until| until + PLAN_AGE_MAX >= marker.landed);
    let mut shown =
        states.filter(|(state, until)| state.at <= marker.landed && could_be_read(*until));
    !case.has(place)
        && shown.any(|(state, _)| {
            state
                .current
                .as_ref()
                .is_some_and(|current| is_same(current))
        })
}

/// Lists state times by the second.
fn second(entry: &Entry) -> Option<u64> {
    entry
        .last_modified
        .duration_since(SystemTime::UNIX_EPOCH)
        .map(|time| time.as_secs())
        .ok()
}

/// Between two objects that follow each other at the destination there is a marker if the source
/// has one.
fn missing(case: &Case<'_>, kept: &[(&Entry, Option<usize>)], wrong: &mut Vec<String>) {
    let objects: Vec<usize> = (0..kept.len())
        .filter(|at| !kept[*at].0.is_marker() && kept[*at].1.is_some())
        .collect();
    for (nth, at) in objects.iter().enumerate() {
        let from = kept[*at].1.unwrap() + 1;
        let next = objects.get(nth + 1);
        let to = next.map_or(case.source.len(), |next| kept[*next].1.unwrap());
        let has_marker = next.map_or(kept.len(), |next| *next) > at + 1;
        // No daemon can tell that the marker is the newer of two of one second, one of which is
        // gone. Below an object it hides nothing.
        let of = &case.source[from - 1];
        let may_be_older = |place: usize| {
            next.is_some() && !case.has(from - 1) && second(&case.source[place]) == second(of)
        };
        let is_due = |place: usize| {
            case.source[place].is_marker() && case.has(place) && !may_be_older(place)
        };
        if !has_marker && (from..to).any(is_due) {
            wrong.push(format!(
                "whole history: the marker above v{} is missing",
                from - 1
            ));
        }
    }
}

/// Lists the places of the source that a marker of the destination can stand for: above the object
/// below it, and below the one above.
pub(super) fn span(case: &Case<'_>, at: usize) -> Range<usize> {
    let below = case.origins[..at].iter().rev().find_map(|origin| *origin);
    let above = case.origins[at..].iter().find_map(|origin| *origin);
    let from = below.map_or(0, |below| below + 1);
    // An object that was written once more stands on both sides.
    from..above
        .filter(|above| *above > from)
        .unwrap_or(case.source.len())
}
