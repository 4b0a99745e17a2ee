//! No state that the destination ever showed was older than one before it.

use std::time::SystemTime;

use replicator_fakes::s3::entry::{Entry, Shown};

use super::Case;
use super::history::is_untold;
use super::markers::PLAN_AGE_MAX;

pub(super) fn judge(case: &Case<'_>, states: &[Shown], wrong: &mut Vec<String>) {
    // The oldest place at the source that explains what is shown; markers cannot be told apart, so
    // each is taken for the earliest that it can be.
    let mut reached: Option<usize> = None;
    let mut seen = Vec::new();
    for state in states {
        let Some(current) = &state.current else {
            continue;
        };
        if seen.last() == Some(&current.id) {
            continue;
        }
        let is_new = !seen.contains(&current.id);
        seen.push(current.id);
        let mut candidates = candidates(case, current, is_new.then_some(state.at));
        // The events of two permanent deletes may come in either order: the first removes the upper
        // replica, and the lower one shows until the second comes.
        let is_right = |place: &usize| {
            let is_untold =
                reached.is_some_and(|reached| is_untold(case, *place, reached, state.at));
            let is_exposed = !is_new && case.had_lost(*place, state.at);
            Some(*place) >= reached
                || is_untold
                || is_exposed
                || went_back(case, reached, *place, state.at)
        };
        match candidates.find(is_right) {
            Some(place) => reached = Some(place),
            None => wrong.push(format!(
                "never goes back: {} shows {} after {reached:?}",
                state.caller,
                case.name(current)
            )),
        }
    }
}

/// Lists the places of the source that an entry can be of, if it was written at this time.
fn candidates(
    case: &Case<'_>,
    entry: &Entry,
    written: Option<SystemTime>,
) -> impl Iterator<Item = usize> {
    let is_planned = move |place: usize| {
        written.is_none_or(|at| {
            case.source[place].landed <= at && !case.had_lost(place, at - PLAN_AGE_MAX)
        })
    };
    let origin = case.origin(entry);
    let is_of = move |place: usize| case.source[place].is_marker() && is_planned(place);
    let places = if entry.is_marker() {
        0..case.source.len()
    } else {
        0..0
    };
    places.filter(move |place| is_of(*place)).chain(origin)
}

/// Says whether the source had gone back to this place: what was reached had been deleted there
/// permanently.
fn went_back(case: &Case<'_>, reached: Option<usize>, place: usize, at: SystemTime) -> bool {
    reached.is_some_and(|reached| case.went_back(reached, place, Some(at)))
}
