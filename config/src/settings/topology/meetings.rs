//! Different sources whose replicas can meet under one key.

use super::Edge;
use super::keys::{Keys, Mapping};
use crate::diagnostics::Problems;

/// Reports a rule whose replicas can land on the keys of an earlier one that takes them from
/// elsewhere.
pub(super) fn refuse(hop: &Edge<'_>, earlier: &[&Edge<'_>], problems: &mut Problems<'_>) {
    let Some((other, why)) = earlier
        .iter()
        .find_map(|other| Some((other, meeting(hop, other)?)))
    else {
        return;
    };
    let message = format!(
        "replicas can get the same keys as those of rule {:?}, {why}; two histories under one key can't both be kept in order, so give one of the rules a destination prefix of its own",
        other.rule().id
    );
    problems.add_problem(&hop.draft.written.destination.spot, message);
}

/// Says why replicas of two rules can meet that are not of the same source key; `None` when they
/// can't.
fn meeting(one: &Edge<'_>, other: &Edge<'_>) -> Option<&'static str> {
    let (rule, others) = (one.rule(), other.rule());
    let same_keys = Keys::at_destination(rule).may_overlap(&Keys::at_destination(others));
    if one.destination != other.destination || !same_keys {
        return None;
    }
    if one.source != other.source {
        return Some("which come from another bucket");
    }
    (Mapping::from_rule(rule) != Mapping::from_rule(others))
        .then_some("which come from other keys of the bucket")
}
