//! M: no state that the destination ever showed was older than one before it.

use replicator_fakes::s3::entry::{Entry, Shown};

use super::Case;

pub(super) fn judge(case: &Case<'_>, states: &[Shown], wrong: &mut Vec<String>) {
    // The oldest place at the source that explains what is shown; markers cannot be told apart, so
    // each is taken for the earliest that it can be.
    let mut reached: Option<usize> = None;
    let mut seen = Vec::new();
    for state in states {
        let Some(current) = &state.current else { continue };
        let is_back = seen.contains(&current.id) && seen.last() != Some(&current.id);
        seen.push(current.id);
        if is_back && case.expect.version_deletes {
            // What stood above was removed by request: the history begins again from here.
            reached = case.origin(current).or(reached);
            continue;
        }
        let from = reached.unwrap_or(0);
        let place = match current.is_marker() {
            true => (from..case.source.len()).find(|at| case.source[*at].is_marker()),
            false => case.origin(current).filter(|place| Some(*place) >= reached),
        };
        // What was reached is gone from the source, which then shows what is below: absence is the truth.
        let is_gone = |place: usize| !case.source_now.contains(&case.source[place].version_id);
        match place {
            None if current.is_marker() && reached.is_some_and(is_gone) => {}
            None if went_back(case, reached, current, state) => reached = case.origin(current),
            Some(place) => reached = Some(place),
            None => wrong.push(format!("M: {} shows {} after {reached:?}", state.caller, name(case, current))),
        }
    }
}

/// Says whether the source had gone back to what is shown: what was reached had been deleted there for good.
fn went_back(case: &Case<'_>, reached: Option<usize>, current: &Entry, state: &Shown) -> bool {
    let (Some(reached), Some(place)) = (reached, case.origin(current)) else { return false };
    case.went_back(reached, place, Some(state.at))
}

fn name(case: &Case<'_>, entry: &Entry) -> String {
    match case.origin(entry) {
        Some(place) => format!("v{place}"),
        None if entry.is_marker() => "a marker".to_owned(),
        None => "an unknown object".to_owned(),
    }
}
