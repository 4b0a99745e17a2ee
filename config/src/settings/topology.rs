//! What only shows between rules: replicas that come back to where they started, and rules that
//! compete for the same keys without saying which one wins.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use replicator_core::rule::{Place, Rule};

use super::accounts::{Account, Service};
use super::rules::Draft;
use crate::names::quoted;
use crate::problem::Problems;

/// Checks rules against each other.
pub(super) fn check(drafts: &[Draft<'_>], accounts: &BTreeMap<String, Account>, problems: &mut Problems<'_>) {
    let hops: Vec<_> = drafts.iter().map(|draft| Hop::new(draft, accounts)).collect();
    refuse_cycles(&hops, problems);
    refuse_ties(&hops, problems);
}

/// A rule as a step from bucket to bucket.
#[derive(Debug)]
struct Hop<'a> {
    draft: &'a Draft<'a>,
    source: Site<'a>,
    destination: Site<'a>,
}

/// A bucket, whichever account reaches it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Site<'a> {
    namespace: String,
    bucket: &'a str,
}

impl<'a> Hop<'a> {
    fn new(draft: &'a Draft<'a>, accounts: &BTreeMap<String, Account>) -> Self {
        let site = |place: &'a Place| Site { namespace: namespace(place, accounts), bucket: place.bucket.as_str() };
        Self { draft, source: site(&draft.rule.source), destination: site(&draft.rule.destination) }
    }

    fn rule(&self) -> &'a Rule {
        &self.draft.rule
    }
}

/// Names the space in which a bucket's name is unique: an endpoint, or a partition of AWS.
/// https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
fn namespace(place: &Place, accounts: &BTreeMap<String, Account>) -> String {
    let Some(account) = accounts.get(&place.account) else { return place.account.clone() };
    if let Some(endpoint) = account.endpoint_of(Service::S3) {
        return endpoint.to_lowercase();
    }
    let partition = ["cn-", "us-gov-"].into_iter().find(|partition| account.region.starts_with(partition));
    partition.unwrap_or("aws").to_owned()
}

/// Reports each enabled rule that closes a cycle over the rules before it, and each rule that
/// is a cycle of its own.
fn refuse_cycles(hops: &[Hop<'_>], problems: &mut Problems<'_>) {
    let mut open: Vec<&Hop<'_>> = Vec::new();
    for hop in hops {
        if hop.source == hop.destination {
            let message = "the same bucket as the source; replicas need a bucket of their own";
            problems.report(&hop.draft.written.destination.spot, message);
        } else if !hop.rule().enabled {
            continue;
        } else if let Some(way_back) = trail(&open, &hop.destination, &hop.source) {
            let cycle: Vec<_> = [hop].into_iter().chain(way_back).collect();
            problems.report(&hop.draft.written.destination.spot, cycle_message(&cycle));
        } else {
            open.push(hop);
        }
    }
}

/// Finds the shortest way from one bucket to another.
fn trail<'h, 'a>(hops: &[&'h Hop<'a>], from: &'h Site<'a>, to: &Site<'a>) -> Option<Vec<&'h Hop<'a>>> {
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

fn cycle_message(cycle: &[&Hop<'_>]) -> String {
    let start = cycle.first().map(|hop| hop.source.bucket);
    let buckets: Vec<_> = start.into_iter().chain(cycle.iter().map(|hop| hop.destination.bucket)).collect();
    let rules = quoted(cycle.iter().map(|hop| hop.rule().id.as_str()));
    format!("closes the cycle {} (rules {rules}); disable or remove one of them", buckets.join(" -> "))
}

/// Reports each enabled rule that ties with an earlier one over the same keys.
fn refuse_ties(hops: &[Hop<'_>], problems: &mut Problems<'_>) {
    for (index, hop) in hops.iter().enumerate() {
        let Some(other) = hops.iter().take(index).find(|other| compete(hop, other)) else { continue };
        let id = &other.rule().id;
        let written = hop.draft.written;
        if hop.rule().destination.account != other.rule().destination.account {
            let message =
                format!("rule {id:?} reaches the same bucket through another account; use one of them in both");
            problems.report(&written.destination.spot, message);
        } else if hop.rule().priority == other.rule().priority {
            let message = format!(
                "the same as in rule {id:?}, which sends overlapping keys to the same bucket; give them different ones, the higher wins"
            );
            problems.report(&written.priority.spot, message);
        }
    }
}

/// Says whether two rules may want the same key of one bucket for another.
fn compete(one: &Hop<'_>, other: &Hop<'_>) -> bool {
    let (filter, others) = (&one.rule().filter, &other.rule().filter);
    let prefixes_overlap = filter.prefix.starts_with(&others.prefix) || others.prefix.starts_with(&filter.prefix);
    let suffixes_overlap = filter.suffix.ends_with(&others.suffix) || others.suffix.ends_with(&filter.suffix);
    let enabled = one.rule().enabled && other.rule().enabled;
    enabled
        && one.source == other.source
        && one.destination == other.destination
        && prefixes_overlap
        && suffixes_overlap
}
