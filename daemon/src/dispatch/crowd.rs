//! Who may have no more of the hand: what a destination in trouble, a key, or a rule that gets little done would fill it
//! with goes back, so that there is room for the others'. Of whoever gets much done the queue keeps the rest, which
//! costs no receipts.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::{Dispatch, MESSAGES_MAX, Work};
use crate::message::{DELAY_MAX, Disposal, Message};
use crate::pace::Route;
use crate::task::Task;

/// What one destination in trouble may have.
const AILING_MAX: usize = MESSAGES_MAX / 4;

/// What one key may have whose task goes on for long.
const LANE_MAX: usize = MESSAGES_MAX / 20;
const LONG: Duration = Duration::from_secs(30);

/// The last quarter is for others than rules that have many, or their part of the rest where there are more than seven, and
/// would need this long for them.
const FULL: usize = MESSAGES_MAX / 4 * 3;
const MANY: usize = MESSAGES_MAX / 10;
const SLOW: Duration = Duration::from_secs(60);

/// Where less is in hand nobody crowds.
const CROWD_MIN: usize = MESSAGES_MAX / 2;

/// So often rules and lanes are looked at.
const LOOKED_AT_EVERY: Duration = Duration::from_secs(10);

// The queue gives it back when the crowd may have thinned out; doubled with each delivery.
const CROWDED_FOR: Duration = Duration::from_secs(30);

// A rule that is slow may have far more than it gets done in a quarter of an hour, and each receipt of that is in vain.
const SLOW_FOR_MAX: Duration = Duration::from_secs(4 * 60 * 60);

/// Slow rules' messages, and version deletes that wait, go back while fewer than this are away: SQS lets 120,000 be in flight on a queue, and gives out
/// none beyond that.
pub(super) const AWAY_MAX: usize = 20_000;

/// What is known of how rules get on.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    /// How much of each rule was closed since it was last looked at.
    closes: HashMap<String, usize>,
    /// Those that were found slow the last time, and those that were twice in a row.
    seemed_slow: HashSet<String>,
    slow: HashSet<String>,
    /// When what went back comes again.
    away: BinaryHeap<Reverse<Instant>>,
}

/// Returns when to look at rules and lanes.
pub(super) fn looks() -> Interval {
    let mut looks = tokio::time::interval(LOOKED_AT_EVERY);
    // Two in a row would find that nothing was done in between.
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks
}

impl Crowd {
    pub(super) fn closed(&mut self, rule: &str) {
        match self.closes.get_mut(rule) {
            Some(closes) => *closes += 1,
            None => drop(self.closes.insert(rule.to_owned(), 1)),
        }
    }

    /// Takes note that a message went back for a time.
    pub(super) fn went(&mut self, after: Duration) {
        self.away.push(Reverse(Instant::now() + after));
    }

    /// Finds out which rules are slow, given what each has in hand: twice in a row, because one that was idle has closed
    /// nothing when its first messages come.
    fn look(&mut self, in_hand: HashMap<&str, usize>) {
        let many = MANY.min(FULL / in_hand.len().max(1));
        let looks = usize::try_from(SLOW.as_secs() / LOOKED_AT_EVERY.as_secs()).unwrap_or(usize::MAX);
        let closes = std::mem::take(&mut self.closes);
        let needs_long = |rule, has| closes.get(rule).copied().unwrap_or(0).saturating_mul(looks) < has;
        let slow = in_hand.into_iter().filter(|(rule, has)| *has >= many && needs_long(*rule, *has));
        let slow: HashSet<String> = slow.map(|(rule, _)| rule.to_owned()).collect();
        self.slow = slow.intersection(&self.seemed_slow).cloned().collect();
        self.seemed_slow = slow;
    }

    /// Forgets what has come back by now.
    fn came_back(&mut self, now: Instant) {
        while self.away.peek().is_some_and(|Reverse(back)| *back <= now) {
            self.away.pop();
        }
    }

    /// Says whether what comes of slow rules goes back.
    fn makes_room(&self) -> bool {
        !self.slow.is_empty() && self.has_room_away()
    }

    /// Says whether more may wait in the queue.
    pub(super) fn has_room_away(&self) -> bool {
        self.away.len() < AWAY_MAX
    }
}

impl Dispatch {
    /// Says whether there is room for more messages.
    pub(super) fn has_room_for_some(&self) -> bool {
        self.hand.len() < if self.crowd.makes_room() { MESSAGES_MAX } else { FULL }
    }

    /// Looks at how rules get on.
    pub(super) fn look_at_rules(&mut self) {
        let mut in_hand: HashMap<&str, usize> = HashMap::new();
        for ticket in self.lanes.values().flat_map(Work::tickets).filter(|ticket| ticket.message.is_some()) {
            *in_hand.entry(&ticket.task.rules.lead.id).or_default() += 1;
        }
        // There are no others where there is one rule.
        let rules = self.rules.borrow().iter().filter(|rule| rule.enabled).count();
        self.crowd.look(if rules > 1 { in_hand } else { HashMap::new() });
        self.crowd.came_back(Instant::now());
    }

    /// Sends back what lanes have too much of whose tasks turned out to go on for long.
    pub(super) async fn thin_out_lanes(&mut self) {
        if self.hand.len() < CROWD_MIN {
            return;
        }
        let busy = self.lanes.values_mut().filter(|work| work.is_at_work_for(LONG, Instant::now()));
        let beyond: Vec<u64> = busy.flat_map(|work| work.take_beyond(LANE_MAX)).collect();
        for number in beyond {
            self.send_back(number, DELAY_MAX).await;
        }
    }

    /// Takes one task of a message in hand, or sends the message back where it would crowd others out.
    pub(super) async fn take_or_send_back(&mut self, number: u64, task: Task) {
        if self.is_of_busy_lane(&task) || self.is_for_crowded_destination(&task) {
            self.send_back(number, DELAY_MAX).await;
        } else if self.is_of_slow_rule(&task) {
            self.send_back(number, SLOW_FOR_MAX).await;
        } else {
            self.enqueue(Some(number), task);
        }
    }

    /// Closes one task of a message, which comes again for it.
    async fn send_back(&mut self, number: u64, most: Duration) {
        let back = |message: &Message| Disposal::Release(message.patience_up_to(CROWDED_FOR, most));
        if let Some(settlement) = self.hand.close(number, back) {
            self.settle(settlement).await;
        }
    }

    /// Says whether a task's rule is slow, and not because its destination is in trouble, which may be over soon.
    fn is_of_slow_rule(&self, task: &Task) -> bool {
        let lead = &task.rules.lead;
        let is_slow = self.crowd.makes_room() && self.crowd.slow.contains(&lead.id);
        is_slow && self.hand.len() >= CROWD_MIN && !self.engine.pace.is_ailing(&Route::of(lead))
    }

    fn is_of_busy_lane(&self, task: &Task) -> bool {
        let work = self.lanes.get(&task.lane).filter(|work| work.is_at_work_for(LONG, Instant::now()));
        self.hand.len() >= CROWD_MIN && work.is_some_and(|work| work.tickets().count() >= LANE_MAX)
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

    fn looked_at(has: usize, closes: usize) -> Crowd {
        let mut crowd = Crowd::default();
        for _ in 0..2 {
            (0..closes).for_each(|_| crowd.closed("rule"));
            crowd.look(HashMap::from([("rule", has), ("other", MANY - 1)]));
        }
        crowd
    }

    #[test]
    fn a_rule_is_slow_that_has_many_and_needs_more_than_a_minute_for_them() {
        assert!(looked_at(MANY + 1, MANY / 6).slow.contains("rule"));
        assert!(!looked_at(MANY, MANY / 6 + 1).slow.contains("rule"), "it is swift");
        assert!(!looked_at(MANY - 1, 0).slow.contains("rule"), "it has few");
        assert!(!looked_at(FULL, 0).slow.contains("other"));
    }

    #[test]
    fn a_rule_whose_messages_have_just_come_is_not_slow_yet() {
        let mut crowd = Crowd::default();
        crowd.look(HashMap::from([("rule", FULL)]));
        assert!(crowd.slow.is_empty());
        crowd.look(HashMap::from([("rule", FULL)]));
        assert!(crowd.slow.contains("rule"));
    }

    #[test]
    fn of_many_rules_each_is_slow_that_has_its_part_of_the_hand() {
        let names: Vec<String> = (0..30).map(|number| format!("rule-{number}")).collect();
        let mut crowd = Crowd::default();
        for _ in 0..2 {
            crowd.look(names.iter().map(|name| (name.as_str(), FULL / 30)).collect());
        }
        assert_eq!(crowd.slow.len(), 30);
    }

    #[test]
    fn a_rule_that_gets_on_again_is_slow_no_more() {
        let mut crowd = looked_at(FULL, 0);
        (0..FULL).for_each(|_| crowd.closed("rule"));
        crowd.look(HashMap::from([("rule", FULL)]));
        assert!(crowd.slow.is_empty());
    }

    #[test]
    fn only_so_many_are_away_at_once() {
        let mut crowd = looked_at(FULL, 0);
        let back = Instant::now() + CROWDED_FOR;
        crowd.away.extend((1..AWAY_MAX).map(|_| Reverse(back)));
        assert!(crowd.makes_room());
        crowd.away.push(Reverse(back));
        assert!(!crowd.makes_room());
        crowd.came_back(back);
        assert!(crowd.makes_room(), "they are back");
    }
}
