//! Parked tasks are tried again on a slow schedule, without anyone asking.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use replicator_core::object::Timestamp;

use crate::ledger::records::{Lane, ParkedTask};
use crate::ruleset::Ruleset;
use crate::task::Task;

/// The time between two rounds.
pub(super) const EVERY: Duration = Duration::from_secs(300);

// Lanes a round: more than can work at once, few beside the messages that come in. What was
// parked by the thousand takes its turn, because what it waits for is seldom repaired yet.
const LANES_MAX: usize = 100;

/// A lane's place in the order: since when it is parked.
pub(super) type Place = (Timestamp, Lane);

/// The tasks to try in one round.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) tasks: Vec<Task>,
    /// Where the next round goes on; tasks that fail without being parked anew must not keep the
    /// others from their turn.
    pub(super) last: Option<Place>,
}

impl Round {
    /// Picks the lanes whose turn it is: idle ones that a rule still wants, longest parked first.
    pub(super) fn pick(parked: Vec<ParkedTask>, busy: &HashSet<Lane>, after: Option<&Place>, rules: &Ruleset) -> Self {
        let lanes = in_turn(parked, busy, after).into_iter();
        let revived = lanes.filter_map(|(place, parked)| Some((place, revive(rules, &parked)?)));
        let (places, tasks): (Vec<Place>, Vec<Task>) = revived.take(LANES_MAX).unzip();
        Self { tasks, last: places.into_iter().last() }
    }
}

/// Makes one task of all that is parked at a lane.
fn revive(rules: &Ruleset, parked: &[ParkedTask]) -> Option<Task> {
    parked.iter().filter_map(|parked| rules.revive(parked)).reduce(|mut all, task| {
        all.wishes.extend(task.wishes);
        all
    })
}

/// Orders lanes by the time they have been parked, beginning after the place that was tried last.
fn in_turn(parked: Vec<ParkedTask>, busy: &HashSet<Lane>, after: Option<&Place>) -> Vec<(Place, Vec<ParkedTask>)> {
    let mut lanes: BTreeMap<Lane, Vec<ParkedTask>> = BTreeMap::new();
    for task in parked.into_iter().filter(|task| !busy.contains(&task.lane)) {
        lanes.entry(task.lane.clone()).or_default().push(task);
    }
    let since = |tasks: &[ParkedTask]| tasks.iter().map(|task| task.since).min();
    let mut turns: Vec<_> =
        lanes.into_iter().filter_map(|(lane, tasks)| Some(((since(&tasks)?, lane), tasks))).collect();
    turns.sort_by(|(one, _), (other, _)| one.cmp(other));
    let tried = turns.partition_point(|(place, _)| Some(place) <= after);
    turns.rotate_left(tried);
    turns
}

#[cfg(test)]
mod tests {
    use replicator_core::event::Action;
    use replicator_core::failure::Reason;
    use replicator_core::object::{Bucket, Key};
    use replicator_core::rule;

    use super::*;

    fn parked(key: &str, action: Action, since_seconds: i64) -> ParkedTask {
        let place = rule::Place { account: "archive".to_owned(), bucket: Bucket::try_from("replicas").unwrap() };
        ParkedTask {
            lane: Lane { destination: place.clone(), key: Key::try_from(key).unwrap() },
            rule: "orders".to_owned(),
            source: place,
            source_key: Key::try_from(key).unwrap(),
            action,
            version: None,
            reason: Reason::DstBucketNotFound,
            detail: String::new(),
            since: Timestamp::from_unix_timestamp(since_seconds).unwrap(),
        }
    }

    fn keys(turns: &[(Place, Vec<ParkedTask>)]) -> Vec<(&str, usize)> {
        turns.iter().map(|((_, lane), tasks)| (lane.key.as_str(), tasks.len())).collect()
    }

    fn three() -> Vec<ParkedTask> {
        vec![
            parked("new", Action::Put, 30),
            parked("old", Action::Put, 10),
            parked("old", Action::Tags, 40),
            parked("middle", Action::Put, 20),
        ]
    }

    #[test]
    fn what_is_parked_longest_comes_first_and_a_lane_comes_once() {
        let turns = in_turn(three(), &HashSet::new(), None);
        assert_eq!(keys(&turns), [("old", 2), ("middle", 1), ("new", 1)]);
    }

    #[test]
    fn a_round_goes_on_where_the_last_one_ended() {
        let turns = in_turn(three(), &HashSet::new(), None);
        let after = |at: usize| in_turn(three(), &HashSet::new(), Some(&turns[at].0));
        assert_eq!(keys(&after(0)), [("middle", 1), ("new", 1), ("old", 2)]);
        assert_eq!(keys(&after(2)), [("old", 2), ("middle", 1), ("new", 1)]);
    }

    #[test]
    fn a_lane_at_work_is_left_alone() {
        let busy = HashSet::from([parked("old", Action::Put, 0).lane]);
        assert_eq!(keys(&in_turn(three(), &busy, None)), [("middle", 1), ("new", 1)]);
    }
}
