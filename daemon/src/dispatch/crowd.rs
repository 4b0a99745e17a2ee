//! Who may have no more of the hand: what a destination in trouble, a key, or a rule that gets little done would fill it with
//! goes back, so that there is room for the others'. Whoever merely has much to do fills it, and the queue keeps the
//! rest: that costs no receipts.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::{Dispatch, MESSAGES_MAX, Work};
use crate::message::{Disposal, Message};
use crate::pace::Route;
use crate::task::Task;

/// What one destination in trouble may have.
const AILING_MAX: usize = MESSAGES_MAX / 4;

/// What one key may have whose task goes on for long: one that waits for the fence settles all of it at once.
const LANE_MAX: usize = MESSAGES_MAX / 20;
const LONG: Duration = Duration::from_secs(30);

/// From here on a rule has most of the hand.
const MOST: usize = MESSAGES_MAX / 2;

/// The last quarter is for others than a rule that has most and would need this long for it.
const FULL: usize = MESSAGES_MAX / 4 * 3;
const SLOW: Duration = Duration::from_secs(60);

/// So often rules are looked at.
pub(super) const LOOKED_AT_EVERY: Duration = Duration::from_secs(10);

// The queue gives it back when the crowd may have thinned out; doubled with each delivery, so that nothing waits for much
// longer than it has waited before. A hundred deliveries outlast the fortnight that a queue keeps a message at most.
const CROWDED_FOR: Duration = Duration::from_secs(30);
const CROWDED_FOR_MAX: Duration = Duration::from_secs(4 * 60 * 60);

/// What is known of how rules get on.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    /// How much of each rule was closed since it was last looked at.
    closed: HashMap<String, usize>,
    slow: HashSet<String>,
}

impl Crowd {
    pub(super) fn closed(&mut self, rule: &str) {
        match self.closed.get_mut(rule) {
            Some(closed) => *closed += 1,
            None => drop(self.closed.insert(rule.to_owned(), 1)),
        }
    }

    /// Finds out which rules are slow, given what each has in hand.
    fn look(&mut self, in_hand: HashMap<&str, usize>) {
        let looks = usize::try_from(SLOW.as_secs() / LOOKED_AT_EVERY.as_secs()).unwrap_or(usize::MAX);
        let closed = std::mem::take(&mut self.closed);
        let closed = |rule| closed.get(rule).copied().unwrap_or(0);
        let slow = in_hand.into_iter().filter(|(rule, has)| *has >= MOST && closed(*rule).saturating_mul(looks) < *has);
        self.slow = slow.map(|(rule, _)| rule.to_owned()).collect();
    }
}

/// Sends a message back that came where others crowd.
pub(super) fn away(message: &Message) -> Disposal {
    Disposal::Release(message.patience_up_to(CROWDED_FOR, CROWDED_FOR_MAX))
}

impl Dispatch {
    /// Says whether there is room for more messages.
    pub(super) fn has_room_for_some(&self) -> bool {
        let most = if self.crowd.slow.is_empty() { FULL } else { MESSAGES_MAX };
        self.hand.len() < most
    }

    pub(super) fn look_at_rules(&mut self) {
        let mut in_hand: HashMap<&str, usize> = HashMap::new();
        for ticket in self.lanes.values().flat_map(Work::tickets).filter(|ticket| ticket.message.is_some()) {
            *in_hand.entry(&ticket.task.rules.lead.id).or_default() += 1;
        }
        // There are no others where there is one rule.
        let rules = self.rules.borrow().iter().count();
        self.crowd.look(if rules > 1 { in_hand } else { HashMap::new() });
    }

    /// Says whether a task would crowd others out.
    pub(super) fn is_crowding(&self, task: &Task) -> bool {
        self.is_of_slow_rule(task) || self.is_of_busy_lane(task) || self.is_for_crowded_destination(task)
    }

    fn is_of_slow_rule(&self, task: &Task) -> bool {
        self.hand.len() >= MOST && self.crowd.slow.contains(&task.rules.lead.id)
    }

    fn is_of_busy_lane(&self, task: &Task) -> bool {
        let work = self.lanes.get(&task.lane).filter(|work| work.is_at_work_for(LONG, Instant::now()));
        work.is_some_and(|work| work.tickets().count() >= LANE_MAX)
    }

    fn is_for_crowded_destination(&self, task: &Task) -> bool {
        if self.hand.len() < AILING_MAX || !self.engine.pace.is_ailing(&Route::of(&task.rules.lead)) {
            return false;
        }
        let lanes = self.lanes.iter().filter(|(lane, _)| lane.destination == task.lane.destination);
        lanes.flat_map(|(_, work)| Work::tickets(work)).count() >= AILING_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_slow_that_has_most_of_the_hand_and_needs_more_than_a_minute_for_it() {
        let slow = |has: usize, closes: usize| {
            let mut crowd = Crowd::default();
            (0..closes).for_each(|_| crowd.closed("rule"));
            crowd.look(HashMap::from([("rule", has), ("other", MESSAGES_MAX - has)]));
            crowd.slow.contains("rule")
        };
        assert!(slow(MOST + 1, MOST / 6));
        assert!(!slow(MOST, MOST / 6 + 1), "it is swift");
        assert!(!slow(MOST - 1, 0), "others have as much");
    }

    #[test]
    fn a_rule_that_gets_on_again_is_slow_no_more() {
        let mut crowd = Crowd::default();
        crowd.look(HashMap::from([("rule", FULL)]));
        (0..FULL).for_each(|_| crowd.closed("rule"));
        crowd.look(HashMap::from([("rule", FULL)]));
        assert!(crowd.slow.is_empty());
    }
}
