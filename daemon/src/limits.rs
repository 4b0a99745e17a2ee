//! What each rule, and each destination, may use of the network: bytes and requests per second.

mod bandwidth;
mod counter;
mod requests;

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use replicator_core::rule::{self, BucketRef, Rule};
use tokio::time::Instant;

use crate::fair_queue::{Flow, Turns};
use crate::health::ProgressWatchdog;
use bandwidth::Bandwidth;
use counter::Counter;
use requests::Requests;

/// The limiters of every rule and destination that has limits.
#[derive(Debug)]
pub(crate) struct Limits {
    limiters: RwLock<HashMap<Limited, Limiters>>,
    lines: Lines,
    /// That a body needs long to pass is no standstill.
    watchdog: Arc<ProgressWatchdog>,
}

// Bodies that pass in less are settled often enough.
const LONG: Duration = Duration::from_secs(60);

/// What can have a limit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Limited {
    Rule(String),
    Destination(BucketRef),
}

#[derive(Debug, Clone, Default)]
struct Limiters {
    bandwidth: Option<Arc<Bandwidth>>,
    requests: Option<Arc<Requests>>,
}

/// The lines of requests before the counters.
#[derive(Debug, Default)]
struct Lines {
    /// Copies to be let in, and to get a share of the memory then.
    copies: Turns,
    /// Bodies to be read that are only compared.
    comparing: Turns,
    /// Requests without a body to be let in.
    others: Turns,
    /// All of them to be sent.
    sending: Turns,
}

impl Limits {
    pub(crate) fn new(watchdog: Arc<ProgressWatchdog>) -> Self {
        Self {
            limiters: RwLock::default(),
            lines: Lines::default(),
            watchdog,
        }
    }

    /// Takes over the limits of a new set of rules. A limit that did not change keeps its state.
    pub(crate) fn replace<'a>(&self, rules: impl Iterator<Item = &'a Rule>) {
        let Ok(mut limiters) = self.limiters.write() else {
            return;
        };
        let mut next = HashMap::new();
        for rule in rules {
            let both = Limited::scopes_of(rule)
                .into_iter()
                .zip([rule.limits, rule.destination_limits]);
            // What another rule says of the same destination holds for all.
            for (limited, limits) in
                both.filter(|(_, limits)| *limits != rule::RateLimits::default())
            {
                let known = limiters.remove(&limited).unwrap_or_default();
                next.entry(limited)
                    .or_insert_with(|| known.renew_for(limits));
            }
        }
        *limiters = next;
    }

    /// Waits until this many bytes may be read that no copy is made of. The caller may hold memory,
    /// and so waits for no task that waits for some.
    pub(crate) async fn acquire_bytes(&self, payer: Flow<'_>, bytes: u64) {
        let _turn = self.lines.comparing.take(payer).await;
        self.pass_bytes(payer.rule, bytes).await;
    }

    /// Returns how many bytes a rule may move in a second, if that is limited.
    pub(crate) fn bandwidth(&self, rule: &Rule) -> Option<u64> {
        if self.are_none() {
            return None;
        }
        self.bandwidths_of(rule)
            .iter()
            .map(|(_, bandwidth)| bandwidth.bytes_per_second())
            .min()
    }

    /// Waits until this many bytes may move. The first in a line goes first: among small bodies
    /// that take what there is, a large one would wait for ever. Both limits are passed turn by
    /// turn: one after the other they would add up. They are looked up anew for each turn, because
    /// they may change while it waits.
    async fn pass_bytes(&self, rule: &Rule, bytes: u64) {
        if self.are_none() {
            return;
        }
        let (mut left, begun) = (bytes, Instant::now());
        while left > 0 {
            let bandwidths = self.bandwidths_of(rule);
            let turn = bandwidths
                .iter()
                .map(|(_, bandwidth)| bandwidth.turn_bytes())
                .fold(left, u64::min);
            for (limited, bandwidth) in &bandwidths {
                let is_current = || {
                    self.limiters_of(limited)
                        .bandwidth
                        .is_some_and(|now| Arc::ptr_eq(&now, bandwidth))
                };
                bandwidth.acquire_turn(turn, is_current).await;
            }
            left = if bandwidths.is_empty() {
                0
            } else {
                left - turn
            };
            if begun.elapsed() > LONG {
                self.watchdog.passes();
            }
        }
    }

    fn bandwidths_of(&self, rule: &Rule) -> Vec<(Limited, Arc<Bandwidth>)> {
        let both = Limited::scopes_of(rule).into_iter();
        both.filter_map(|limited| {
            self.limiters_of(&limited)
                .bandwidth
                .map(|bandwidth| (limited, bandwidth))
        })
        .collect()
    }

    /// Waits until a copy of so many bytes is let in, and until it has a share of the memory then:
    /// one at a time of each line, or many would be let in while memory is short, and move at once
    /// when it no longer is.
    pub(crate) async fn let_in<T>(
        &self,
        payer: Flow<'_>,
        bytes: u64,
        share: impl Future<Output = T>,
    ) -> T {
        let _turn = self.lines.copies.take(payer).await;
        self.pass_bytes(payer.rule, bytes).await;
        self.acquire_admission(payer.rule).await;
        share.await
    }

    /// Waits until a copy that was let in may send its request. A copy that waits for its
    /// destination has passed the limit of its rule already, so each line lets one at a time wait.
    pub(crate) async fn may_send(&self, payer: Flow<'_>) {
        if self.are_none() {
            return;
        }
        let limited = Limited::scopes_of(payer.rule);
        let requests: Vec<Arc<Requests>> = limited
            .iter()
            .filter_map(|limited| self.limiters_of(limited).requests)
            .collect();
        if requests.is_empty() {
            return;
        }
        let _waiting: Vec<_> = requests
            .iter()
            .map(|requests| requests.wait(payer.rule))
            .collect();
        let _turn = self.lines.sending.take(payer).await;
        self.take(payer.rule, |requests| &requests.sent).await;
    }

    /// Waits until a request may be sent that needs no memory.
    pub(crate) async fn request(&self, payer: Flow<'_>) {
        {
            let _turn = self.lines.others.take(payer).await;
            self.acquire_admission(payer.rule).await;
        }
        self.may_send(payer).await;
    }

    /// Waits until one more may be let in.
    async fn acquire_admission(&self, rule: &Rule) {
        if self.are_none() {
            return;
        }
        for requests in Limited::scopes_of(rule)
            .iter()
            .filter_map(|limited| self.limiters_of(limited).requests)
        {
            requests.caught_up(rule).await;
        }
        self.take(rule, |requests| &requests.let_in).await;
    }

    /// Takes a request from a counter of the rule and of the destination; again when a limit
    /// changes meanwhile.
    async fn take(&self, rule: &Rule, counter: impl Fn(&Requests) -> &Counter) {
        for limited in Limited::scopes_of(rule) {
            let is_current = |taken: &Arc<Requests>| {
                self.limiters_of(&limited)
                    .requests
                    .is_some_and(|now| Arc::ptr_eq(&now, taken))
            };
            while let Some(requests) = self.limiters_of(&limited).requests
                && !counter(&requests)
                    .take(requests::ONE, || is_current(&requests))
                    .await
            {}
        }
    }

    /// Says whether no limit is set, as in most configurations: then nothing is looked up for each
    /// copy.
    fn are_none(&self) -> bool {
        self.limiters
            .read()
            .is_ok_and(|limiters| limiters.is_empty())
    }

    fn limiters_of(&self, limited: &Limited) -> Limiters {
        self.limiters
            .read()
            .ok()
            .and_then(|limiters| limiters.get(limited).cloned())
            .unwrap_or_default()
    }
}

impl Limited {
    /// Names the two whose limits hold for a rule's copies.
    fn scopes_of(rule: &Rule) -> [Self; 2] {
        [
            Self::Rule(rule.id.clone()),
            Self::Destination(rule.destination.clone()),
        ]
    }
}

impl Limiters {
    /// Returns the limiters for other limits.
    fn renew_for(self, to: rule::RateLimits) -> Self {
        let bandwidth = to.bandwidth_bytes_per_second.map(|limit| {
            let known = self.bandwidth.filter(|known| known.is_of(limit));
            known.unwrap_or_else(|| Arc::new(Bandwidth::new(limit)))
        });
        let requests = to.requests_per_second.map(|limit| {
            let known = self.requests.filter(|known| known.per_second == limit);
            known.unwrap_or_else(|| Arc::new(Requests::new(limit)))
        });
        Self {
            bandwidth,
            requests,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroU64};

    use super::*;

    #[test]
    fn a_limit_that_did_not_change_keeps_its_state_when_the_other_changes() {
        let limits = |bandwidth| rule::RateLimits {
            bandwidth_bytes_per_second: NonZeroU64::new(bandwidth),
            requests_per_second: NonZeroU32::new(4),
        };
        let before = Limiters::default().renew_for(limits(1 << 20));
        let after = before.clone().renew_for(limits(1 << 21));
        assert!(Arc::ptr_eq(
            &before.requests.unwrap(),
            &after.requests.unwrap()
        ));
        assert!(!Arc::ptr_eq(
            &before.bandwidth.unwrap(),
            &after.bandwidth.unwrap()
        ));
    }
}
