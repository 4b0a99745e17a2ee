//! Replicas that come back to where they started.

use std::collections::{BTreeSet, VecDeque};

use super::{BucketId, Edge};
use crate::aws_names::join_quoted;
use crate::diagnostics::Problems;

/// Reports each enabled rule that closes a cycle over the rules before it, and each rule that
/// is a cycle of its own.
pub(super) fn refuse(hops: &[Edge<'_>], problems: &mut Problems<'_>) {
    let mut open: Vec<&Edge<'_>> = Vec::new();
    for hop in hops {
        if hop.source == hop.destination {
            let message = "the same bucket as the source; replicas need a bucket of their own";
            problems.add_problem(&hop.draft.written.destination.spot, message);
        } else if !hop.rule().enabled {
            continue;
        } else if let Some(way_back) = trail(&open, &hop.destination, &hop.source) {
            let cycle: Vec<_> = [hop].into_iter().chain(way_back).collect();
            problems.add_problem(&hop.draft.written.destination.spot, cycle_message(&cycle));
        } else {
            open.push(hop);
        }
    }
}

/// Finds the shortest way from one bucket to another.
fn trail<'h, 'a>(
    hops: &[&'h Edge<'a>],
    from: &'h BucketId<'a>,
    to: &BucketId<'a>,
) -> Option<Vec<&'h Edge<'a>>> {
    let mut reached = BTreeSet::from([from]);
    let mut waiting = VecDeque::from([(from, Vec::new())]);
    while let Some((site, trail)) = waiting.pop_front() {
        if site == to {
            return Some(trail);
        }
        for hop in hops.iter().copied().filter(|hop| hop.source == *site) {
            if reached.insert(&hop.destination) {
                waiting.push_back((&hop.destination, [trail.as_slice(), &[hop]].concat()));
            }
        }
    }
    None
}

fn cycle_message(cycle: &[&Edge<'_>]) -> String {
    let start = cycle.first().map(|hop| hop.source.bucket);
    let buckets: Vec<_> = start
        .into_iter()
        .chain(cycle.iter().map(|hop| hop.destination.bucket))
        .collect();
    let rules = join_quoted(cycle.iter().map(|hop| hop.rule().id.as_str()));
    format!(
        "closes the cycle {} (rules {rules}); disable or remove one of them",
        buckets.join(" -> ")
    )
}
