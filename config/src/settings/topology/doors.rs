//! One bucket that is reached through two accounts: ledger, limits and pace identify a bucket by
//! the account's name, too, and would take it for two.

use replicator_core::rule::Place;

use super::{Hop, Site};
use crate::problem::{Problems, Spot};

/// Reports each bucket of a rule that an earlier rule reaches through another account.
pub(super) fn refuse(hop: &Hop<'_>, earlier: &[&Hop<'_>], problems: &mut Problems<'_>) {
    for (site, place, spot) in ends(hop) {
        let other =
            |other: &&Hop<'_>| ends(other).into_iter().any(|(own, at, _)| own == site && at.account != place.account);
        let Some(other) = earlier.iter().find(|hop| other(hop)) else { continue };
        let message = format!(
            "rule {:?} reaches the same bucket through another account; use one of them in both",
            other.rule().id
        );
        problems.report(spot, message);
    }
}

fn ends<'h>(hop: &'h Hop<'_>) -> [(&'h Site<'h>, &'h Place, &'h Spot); 2] {
    let (rule, written) = (hop.rule(), hop.draft.written);
    [
        (&hop.source, &rule.source, &written.source.spot),
        (&hop.destination, &rule.destination, &written.destination.spot),
    ]
}
