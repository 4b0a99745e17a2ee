//! One bucket that is reached through two accounts: ledger, limits and pace identify a bucket by
//! the account's name, too, and would take it for two.

use replicator_core::rule::BucketRef;

use super::{BucketId, Edge};
use crate::diagnostics::{Location, Problems};

/// Reports each bucket of a rule that an earlier rule reaches through another account.
pub(super) fn refuse(hop: &Edge<'_>, earlier: &[&Edge<'_>], problems: &mut Problems<'_>) {
    for (site, place, spot) in both_ends(hop) {
        let other = |other: &&Edge<'_>| {
            both_ends(other)
                .into_iter()
                .any(|(own, at, _)| own == site && at.account != place.account)
        };
        let Some(other) = earlier.iter().find(|hop| other(hop)) else {
            continue;
        };
        let message = format!(
            "rule {:?} reaches the same bucket through another account; use one of them in both",
            other.rule().id
        );
        problems.add_problem(spot, message);
    }
}

fn both_ends<'h>(hop: &'h Edge<'_>) -> [(&'h BucketId<'h>, &'h BucketRef, &'h Location); 2] {
    let (rule, written) = (hop.rule(), hop.draft.written);
    [
        (&hop.source, &rule.source, &written.source.spot),
        (
            &hop.destination,
            &rule.destination,
            &written.destination.spot,
        ),
    ]
}
