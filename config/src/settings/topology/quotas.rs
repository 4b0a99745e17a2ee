//! Limits of one destination, which several rules may state.

use replicator_core::rule::Limits;

use super::Hop;
use crate::problem::{Problems, Spot};

/// Reports a rule that states other limits of its destination than the first that states any.
pub(super) fn refuse(hop: &Hop<'_>, earlier: &[&Hop<'_>], problems: &mut Problems<'_>) {
    let stated = |hop: &Hop<'_>| Some(hop.rule().destination_limits).filter(|limits| *limits != Limits::default());
    let Some(limits) = stated(hop) else { return };
    let states = |other: &&&Hop<'_>| other.destination == hop.destination && stated(other).is_some();
    let Some(other) = earlier.iter().find(states).filter(|other| stated(other) != Some(limits)) else { return };
    let message = format!(
        "rule {:?} states other limits of the same bucket, and they hold for all rules together; say the same in both, or say it once",
        other.rule().id
    );
    problems.report(destination_limits(hop), message);
}

fn destination_limits<'a>(hop: &Hop<'a>) -> &'a Spot {
    let destination = &hop.draft.written.destination;
    destination.given().map_or(&destination.spot, |at| &at.limits.spot)
}
