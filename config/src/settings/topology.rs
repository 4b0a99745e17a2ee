//! What only shows between rules: replicas that come back to where they started, rules that compete
//! for the same keys without agreeing on them, sources whose replicas meet under one key, and
//! buckets with two names.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use replicator_core::rule::{BucketRef, RateLimits, Rule};

use super::accounts::{Account, Service};
use super::rules::Draft;
use crate::diagnostics::{Location, Problems};
use crate::schema;
use crate::values::{self, join_quoted};

/// Checks rules against each other.
pub(super) fn check(
    drafts: &[Draft<'_>],
    accounts: &BTreeMap<String, Account>,
    problems: &mut Problems<'_>,
) {
    let edges: Vec<_> = drafts
        .iter()
        .map(|draft| Edge::new(draft, accounts))
        .collect();
    refuse_cycles(&edges, problems);
    let enabled: Vec<_> = edges.iter().filter(|edge| edge.rule().enabled).collect();
    for (index, edge) in enabled.iter().enumerate() {
        let mut refuse_first = |conflict: &dyn Fn(&Edge<'_>) -> Option<String>, spot: &Location| {
            let earlier = enabled.iter().take(index);
            if let Some(message) = earlier.copied().find_map(conflict) {
                problems.add_problem(spot, message);
            }
        };
        for (conflict, spot) in CONFLICTS {
            refuse_first(&|other| conflict(edge, other), spot(edge.draft.written));
        }
        for (differs, spot) in SETTINGS_OF_KEYS {
            refuse_first(
                &|other| disagreement(edge, other, differs),
                spot(edge.draft.written),
            );
        }
    }
}

/// A rule as a step from bucket to bucket.
#[derive(Debug)]
struct Edge<'a> {
    draft: &'a Draft<'a>,
    source: BucketId<'a>,
    destination: BucketId<'a>,
}

/// A bucket, whichever account reaches it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct BucketId<'a> {
    namespace: String,
    bucket: &'a str,
}

impl<'a> Edge<'a> {
    fn new(draft: &'a Draft<'a>, accounts: &BTreeMap<String, Account>) -> Self {
        let bucket_id = |place: &'a BucketRef| BucketId {
            namespace: namespace(place, accounts),
            bucket: place.bucket.as_str(),
        };
        Self {
            draft,
            source: bucket_id(&draft.rule.source),
            destination: bucket_id(&draft.rule.destination),
        }
    }

    fn rule(&self) -> &'a Rule {
        &self.draft.rule
    }

    fn ends(&self) -> [(&BucketId<'a>, &'a BucketRef); 2] {
        let rule = self.rule();
        [
            (&self.source, &rule.source),
            (&self.destination, &rule.destination),
        ]
    }
}

/// Names the space in which a bucket's name is unique: an endpoint, or a partition of AWS.
/// https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
fn namespace(place: &BucketRef, accounts: &BTreeMap<String, Account>) -> String {
    let Some(account) = accounts.get(&place.account) else {
        return place.account.clone();
    };
    if let Some(endpoint) = account.endpoint_of(Service::S3) {
        return endpoint.to_lowercase();
    }
    values::likely_partition(&account.region).name.to_owned()
}

/// Reports each enabled rule that closes a cycle over the rules before it, and each rule that
/// is a cycle of its own.
fn refuse_cycles(edges: &[Edge<'_>], problems: &mut Problems<'_>) {
    let mut open: Vec<&Edge<'_>> = Vec::new();
    for edge in edges {
        let spot = &edge.draft.written.destination.spot;
        if edge.source == edge.destination {
            let message = "the same bucket as the source; replicas need a bucket of their own";
            problems.add_problem(spot, message);
        } else if !edge.rule().enabled {
            continue;
        } else if let Some(way_back) = shortest_path(&open, &edge.destination, &edge.source) {
            problems.add_problem(spot, cycle_message(edge, &way_back));
        } else {
            open.push(edge);
        }
    }
}

fn shortest_path<'e, 'a>(
    edges: &[&'e Edge<'a>],
    from: &'e BucketId<'a>,
    to: &BucketId<'a>,
) -> Option<Vec<&'e Edge<'a>>> {
    let mut reached = BTreeSet::from([from]);
    let mut waiting = VecDeque::from([(from, Vec::new())]);
    while let Some((bucket, path)) = waiting.pop_front() {
        if bucket == to {
            return Some(path);
        }
        for edge in edges.iter().copied().filter(|edge| edge.source == *bucket) {
            if reached.insert(&edge.destination) {
                waiting.push_back((&edge.destination, [path.as_slice(), &[edge]].concat()));
            }
        }
    }
    None
}

fn cycle_message(first: &Edge<'_>, way_back: &[&Edge<'_>]) -> String {
    let cycle = || [first].into_iter().chain(way_back.iter().copied());
    let destinations = cycle().map(|edge| edge.destination.bucket);
    let buckets: Vec<_> = [first.source.bucket]
        .into_iter()
        .chain(destinations)
        .collect();
    let rules = join_quoted(cycle().map(|edge| edge.rule().id.as_str()));
    let buckets = buckets.join(" -> ");
    format!("closes the cycle {buckets} (rules {rules}); disable or remove one of them")
}

/// Says why a rule cannot stand beside an earlier one.
type Conflict = fn(&Edge<'_>, &Edge<'_>) -> Option<String>;
type SpotOf = fn(&schema::Rule) -> &Location;

/// Each is reported against the first earlier rule that it holds for.
const CONFLICTS: [(Conflict, SpotOf); 8] = [
    (other_account_of_source, |rule| &rule.source.spot),
    (other_account_of_destination, |rule| &rule.destination.spot),
    (ambiguous_source, |rule| &rule.source.spot),
    (meeting_replicas, |rule| &rule.destination.spot),
    (tie, |rule| &rule.priority.spot),
    (other_limits, |rule| {
        let destination = &rule.destination;
        destination
            .present_value()
            .map_or(&destination.spot, |at| &at.limits.spot)
    }),
    (other_work_queue, |rule| match rule.work_queue.is_absent() {
        true => &rule.id.spot,
        false => &rule.work_queue.spot,
    }),
    (mixed_queues, |rule| match rule.backfill_queue.is_absent() {
        true => &rule.id.spot,
        false => &rule.backfill_queue.spot,
    }),
];

/// Ledger, limits and concurrency identify a bucket by the account's name, too: one that is reached
/// through two accounts would be two.
fn other_account_of_source(edge: &Edge<'_>, other: &Edge<'_>) -> Option<String> {
    other_account((&edge.source, &edge.rule().source), other)
}

fn other_account_of_destination(edge: &Edge<'_>, other: &Edge<'_>) -> Option<String> {
    other_account((&edge.destination, &edge.rule().destination), other)
}

fn other_account((id, place): (&BucketId<'_>, &BucketRef), other: &Edge<'_>) -> Option<String> {
    let mut ends = other.ends().into_iter();
    ends.any(|(other, at)| other == id && at.account != place.account).then(|| {
        let rule = &other.rule().id;
        format!("rule {rule:?} reaches the same bucket through another account; use one of them in both")
    })
}

/// Events name only the bucket, so those of two buckets of one name look alike.
fn ambiguous_source(edge: &Edge<'_>, other: &Edge<'_>) -> Option<String> {
    let is_ambiguous = other.source.bucket == edge.source.bucket && other.source != edge.source;
    is_ambiguous.then(|| {
        format!(
            "rule {:?} has a source bucket of this name at another endpoint or partition, and events name only the bucket; give each a daemon and a queue of its own",
            other.rule().id
        )
    })
}

/// Replicas of different sources that can get the same key.
fn meeting_replicas(edge: &Edge<'_>, other: &Edge<'_>) -> Option<String> {
    if !may_share_destination_key(edge, other) {
        return None;
    }
    let why = if edge.source != other.source {
        "which come from another bucket"
    } else if Mapping::from_rule(edge.rule()) != Mapping::from_rule(other.rule()) {
        "which come from other keys of the bucket"
    } else {
        return None;
    };
    Some(format!(
        "replicas can get the same keys as those of rule {:?}, {why}; two histories under one key can't both be kept in order, so give one of the rules a destination prefix of its own",
        other.rule().id
    ))
}

fn may_share_destination_key(edge: &Edge<'_>, other: &Edge<'_>) -> bool {
    edge.destination == other.destination
        && Keys::at_destination(edge.rule()).may_overlap(&Keys::at_destination(other.rule()))
}

/// Says whether two rules may need the same key of one bucket for another.
fn compete(edge: &Edge<'_>, other: &Edge<'_>) -> bool {
    edge.source == other.source
        && edge.destination == other.destination
        && Keys::at_source(edge.rule()).may_overlap(&Keys::at_source(other.rule()))
        && !excludes_keys(edge.rule(), other.rule())
        && !excludes_keys(other.rule(), edge.rule())
}

/// Says whether a rule leaves out whatever another one is about.
fn excludes_keys(rule: &Rule, other: &Rule) -> bool {
    let mut excluded = rule.filter.exclude_prefixes.iter();
    excluded.any(|prefix| other.filter.prefix.starts_with(prefix))
}

fn tie(edge: &Edge<'_>, other: &Edge<'_>) -> Option<String> {
    let (rule, other_rule) = (edge.rule(), other.rule());
    (compete(edge, other) && rule.priority == other_rule.priority).then(|| {
        format!(
            "the same as in rule {:?}, which sends overlapping keys to the same bucket; give them different ones, the higher wins",
            other_rule.id
        )
    })
}

fn other_limits(edge: &Edge<'_>, other: &Edge<'_>) -> Option<String> {
    let (limits, others) = (
        edge.rule().destination_limits,
        other.rule().destination_limits,
    );
    let are_stated = ![limits, others].contains(&RateLimits::default());
    (edge.destination == other.destination && are_stated && limits != others).then(|| {
        format!(
            "rule {:?} states other limits of the same bucket, and they hold for all rules together; say the same in both, or say it once",
            other.rule().id
        )
    })
}

/// One daemon at a time works on a key only if all that is to be done there goes through one queue.
fn other_work_queue(edge: &Edge<'_>, other: &Edge<'_>) -> Option<String> {
    let (own, others) = (&edge.rule().work_queue, &other.rule().work_queue);
    let is_same_bucket = edge.destination == other.destination;
    let why = if own.is_some() != others.is_some() {
        "differs in having one; give all rules a work queue, or none"
    } else if own.is_some() && own == others && !is_same_bucket {
        "sends another bucket's work there; name a queue for each destination bucket"
    } else if own != others && may_share_destination_key(edge, other) {
        "can write to the same keys by another; name the same queue in both"
    } else {
        return None;
    };
    let (own, id) = (own.as_deref().unwrap_or("none"), &other.rule().id);
    Some(format!("its work queue is {own:?}, and rule {id:?} {why}"))
}

/// A backfill queue is received from while one work queue is empty, and its messages go there.
fn mixed_queues(edge: &Edge<'_>, other: &Edge<'_>) -> Option<String> {
    let (rule, others) = (edge.rule(), other.rule());
    let is_same = |one: &Option<String>, other: &Option<String>| one.is_some() && one == other;
    let why = if is_same(&rule.backfill_queue, &others.work_queue)
        || is_same(&rule.work_queue, &others.backfill_queue)
    {
        "names the same queue for other messages; name one queue for work and another for hints"
    } else if is_same(&rule.backfill_queue, &others.backfill_queue)
        && rule.work_queue != others.work_queue
    {
        "has it for another work queue; name a backfill queue for each work queue"
    } else {
        return None;
    };
    let own = rule.backfill_queue.as_deref().unwrap_or("none");
    Some(format!(
        "its backfill queue is {own:?}, and rule {:?} {why}",
        others.id
    ))
}

type Differs = fn(&Rule, &Rule) -> bool;

macro_rules! setting {
    ($field:ident) => {
        (
            |one, other| one.$field != other.$field,
            |rule| &rule.$field.spot,
        )
    };
}

/// What belongs to the key and not to the version: rules that compete for a key must agree on it.
const SETTINGS_OF_KEYS: [(Differs, SpotOf); 7] = [
    setting!(history),
    setting!(since),
    setting!(unmanaged_objects),
    setting!(delete_markers),
    setting!(version_deletes),
    setting!(version_delete_delay),
    setting!(version_deletes_per_hour),
];

fn disagreement(edge: &Edge<'_>, other: &Edge<'_>, differs: Differs) -> Option<String> {
    (compete(edge, other) && differs(edge.rule(), other.rule())).then(|| {
        format!(
            "not the same as in rule {:?}, which competes for the same keys; it belongs to the key, whichever rule takes a version, so say the same in both",
            other.rule().id
        )
    })
}

/// What a rule does to the start of a key. Two rules send a key they share to the same place
/// exactly when these are equal.
#[derive(Debug, PartialEq, Eq)]
struct Mapping<'a> {
    from: &'a str,
    to: &'a str,
}

impl<'a> Mapping<'a> {
    /// Leaves out what stays, so that `a/` to `x/a/` equals `a/b/` to `x/a/b/`.
    fn from_rule(rule: &'a Rule) -> Self {
        let (from, to) = (rule.filter.prefix.as_str(), destination_prefix(rule));
        let pairs = from.chars().rev().zip(to.chars().rev());
        let stays: usize = pairs
            .take_while(|(from, to)| from == to)
            .map(|(c, _)| c.len_utf8())
            .sum();
        Self {
            from: without_end(from, stays),
            to: without_end(to, stays),
        }
    }
}

/// A set of keys: all that start and end in a certain way. Patterns, tags and sizes do not count:
/// they prove nothing here.
#[derive(Debug)]
struct Keys<'a> {
    prefix: &'a str,
    suffix: &'a str,
}

impl<'a> Keys<'a> {
    /// Returns the keys that a rule takes.
    fn at_source(rule: &'a Rule) -> Self {
        Self {
            prefix: &rule.filter.prefix,
            suffix: &rule.filter.suffix,
        }
    }

    /// Returns the keys that a rule's replicas have.
    fn at_destination(rule: &'a Rule) -> Self {
        Self {
            prefix: destination_prefix(rule),
            suffix: kept_suffix(rule),
        }
    }

    /// Says whether some key is in both.
    fn may_overlap(&self, other: &Self) -> bool {
        let starts = self.prefix.starts_with(other.prefix) || other.prefix.starts_with(self.prefix);
        let ends = self.suffix.ends_with(other.suffix) || other.suffix.ends_with(self.suffix);
        starts && ends
    }
}

fn destination_prefix(rule: &Rule) -> &str {
    rule.rewrite.as_deref().unwrap_or(&rule.filter.prefix)
}

/// Returns what every replica's key ends with: nothing, when the suffix may reach into the part
/// that is replaced.
fn kept_suffix(rule: &Rule) -> &str {
    let (suffix, replaced) = (rule.filter.suffix.as_str(), Mapping::from_rule(rule).from);
    let mut heads = suffix
        .char_indices()
        .filter_map(|(at, c)| suffix.get(..at + c.len_utf8()));
    if heads.any(|head| replaced.ends_with(head)) {
        ""
    } else {
        suffix
    }
}

fn without_end(text: &str, bytes: usize) -> &str {
    text.get(..text.len() - bytes).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use replicator_core::object::Key;

    use super::*;

    const PARTS: [&str; 7] = ["", "a", "b", "aa", "ab", "ba", "bb"];

    #[test]
    fn a_suffix_that_reaches_into_the_replaced_part_is_not_counted_on() {
        let swallowed = rule("ab", "ab", Some("b"));
        assert_eq!(kept_suffix(&swallowed), "");
        assert_eq!(kept_suffix(&rule("b", "ab", Some("a"))), "ab");
        assert_eq!(kept_suffix(&rule("ab", "ab", None)), "ab");
    }

    #[test]
    fn rules_that_are_kept_apart_never_meet() {
        let rules: Vec<_> = every_rule().map(|rule| (replicas(&rule), rule)).collect();
        for (index, one) in rules.iter().enumerate() {
            rules[index..].iter().for_each(|other| check(one, other));
        }
    }

    fn check((replicas, rule): &(Replicas, Rule), (others, other): &(Replicas, Rule)) {
        if !Keys::at_destination(rule).may_overlap(&Keys::at_destination(other)) {
            let met = replicas
                .values()
                .any(|key| others.values().any(|theirs| theirs == key));
            assert!(!met, "{rule:?} {other:?}");
        }
        for (source, key) in replicas {
            let Some(theirs) = others.get(source) else {
                continue;
            };
            assert!(
                Keys::at_source(rule).may_overlap(&Keys::at_source(other)),
                "{rule:?} {other:?}"
            );
            assert_eq!(
                key == theirs,
                Mapping::from_rule(rule) == Mapping::from_rule(other),
                "{source} {rule:?} {other:?}"
            );
        }
    }

    /// Source key to destination key.
    type Replicas = BTreeMap<Key, String>;

    /// The destination key of every short key that a rule takes.
    fn replicas(rule: &Rule) -> Replicas {
        let short = PARTS
            .iter()
            .flat_map(|start| PARTS.map(|end| format!("{start}{end}")));
        let taken = short
            .filter_map(|key| Key::try_from(key).ok())
            .filter(|key| rule.filter.admits_key(key).is_ok());
        taken
            .map(|key| {
                (
                    key.clone(),
                    rule.destination_key(&key)
                        .map(|to| to.to_string())
                        .unwrap_or_default(),
                )
            })
            .collect()
    }

    fn every_rule() -> impl Iterator<Item = Rule> {
        let prefixes = PARTS
            .iter()
            .flat_map(|prefix| PARTS.map(|suffix| (prefix, suffix)));
        let rewrites = || PARTS.iter().copied().map(Some).chain([None]);
        prefixes
            .flat_map(move |(prefix, suffix)| rewrites().map(move |to| rule(prefix, suffix, to)))
    }

    fn rule(prefix: &str, suffix: &str, rewrite: Option<&str>) -> Rule {
        let settings = crate::parse(include_str!("../../samples/valid/minimal.toml")).unwrap();
        let mut rule = settings.rules.into_iter().next().unwrap();
        (rule.filter.prefix, rule.filter.suffix) = (prefix.to_owned(), suffix.to_owned());
        Rule {
            rewrite: rewrite.map(str::to_owned),
            ..rule
        }
    }
}
