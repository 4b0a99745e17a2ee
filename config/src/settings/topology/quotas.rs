//! Limits of one destination, which several rules may state.

use replicator_core::rule::RateLimits;

use super::Edge;
use crate::diagnostics::{Location, Problems};

/// Reports a rule that states other limits of its destination than the first that states any.
pub(super) fn refuse(hop: &Edge<'_>, earlier: &[&Edge<'_>], problems: &mut Problems<'_>) {
    let stated = |hop: &Edge<'_>| {
        Some(hop.rule().destination_limits).filter(|limits| *limits != RateLimits::default())
    };
    let Some(limits) = stated(hop) else { return };
    let states =
        |other: &&&Edge<'_>| other.destination == hop.destination && stated(other).is_some();
    let Some(other) = earlier
        .iter()
        .find(states)
        .filter(|other| stated(other) != Some(limits))
    else {
        return;
    };
    let message = format!(
        "rule {:?} states other limits of the same bucket, and they hold for all rules together; say the same in both, or say it once",
        other.rule().id
    );
    problems.add_problem(destination_limits(hop), message);
}

fn destination_limits<'a>(hop: &Edge<'a>) -> &'a Location {
    let destination = &hop.draft.written.destination;
    destination
        .present_value()
        .map_or(&destination.spot, |at| &at.limits.spot)
}
