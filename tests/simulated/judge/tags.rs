//! Tags: no replica ever had tags that its original had before those that it had already.

use std::collections::BTreeMap;

use replicator_fakes::s3::entry::{EntryId, Shown};

use super::Case;
use super::markers::PLAN_AGE_MAX;

pub(super) fn judge(
    case: &Case<'_>,
    source: &[Shown],
    replicas: &[Shown],
    wrong: &mut Vec<String>,
) {
    // By replica: which of its original's tags explain what it had. Those that come back are taken
    // for the earliest that they can be.
    let mut reached: BTreeMap<EntryId, usize> = BTreeMap::new();
    for state in replicas {
        let replica = &state.touched;
        let (Some(object), Some(place)) = (&replica.object, case.origin(replica)) else {
            continue;
        };
        let worn: Vec<&Shown> = source
            .iter()
            .filter(|shown| shown.touched.id == case.source[place].id)
            .collect();
        let since = reached.entry(replica.id).or_default();
        // Tags have no condition: a daemon that read them before they changed, and is not alone,
        // may write them for so long.
        let is_late = |nth: usize| {
            let next = worn.get(nth + 1).map(|next| next.at);
            !case.expect.alone && next.is_none_or(|next| state.at <= next + PLAN_AGE_MAX)
        };
        let is_worn = |nth: &usize| {
            let tags = worn[*nth]
                .touched
                .object
                .as_ref()
                .map(|object| &object.tags);
            worn[*nth].at <= state.at && tags == Some(&object.tags)
        };
        match (*since..worn.len()).find(is_worn) {
            Some(nth) => *since = nth,
            None if (0..*since).filter(is_worn).any(is_late) => {}
            None => wrong.push(format!(
                "never goes back: {} gives v{place} the tags {:?}, which are old",
                state.caller, object.tags
            )),
        }
    }
}
