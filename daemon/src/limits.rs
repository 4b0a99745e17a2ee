//! What each rule, and each destination, may use of the network: bytes and requests per second.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, RwLock};

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use replicator_core::rule::{Place, Rule};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::turns::{Payer, Turns};

/// The limiters of every rule and destination that has limits.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits {
    limiters: Arc<RwLock<HashMap<Limited, Arc<Limiters>>>>,
    /// Copies take turns to be let in, and to wait for memory then.
    copies: Arc<Turns>,
    /// Requests without a body take turns to be let in.
    others: Arc<Turns>,
}

/// Whoever is limited.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Limited {
    Rule(String),
    Destination(Place),
}

#[derive(Debug)]
struct Limiters {
    of: replicator_core::rule::Limits,
    bandwidth: Option<Bandwidth>,
    requests: Option<Requests>,
}

#[derive(Debug)]
struct Bandwidth {
    kibibytes: Counter,
    /// What passes at once, a second's worth.
    burst: NonZeroU32,
    lines: Turns,
}

/// Requests are counted twice: who is not let in yet holds no memory; and those who were, and waited together for a
/// source or for memory, are not sent all at once.
#[derive(Debug)]
struct Requests {
    let_in: Counter,
    sent: Counter,
}

/// A limiter that serves in the order of arrival.
#[derive(Debug)]
struct Counter {
    limiter: Limiter,
    turn: Mutex<()>,
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, RuntimeClock, NoOpMiddleware<std::time::Instant>>;

/// The runtime's clock, by which everything else here waits too.
#[derive(Debug, Clone, Default)]
struct RuntimeClock;

impl Clock for RuntimeClock {
    type Instant = std::time::Instant;

    fn now(&self) -> Self::Instant {
        Instant::now().into_std()
    }
}

// The limiter counts in u32; by the KiB that reaches 4 TiB/s.
const UNIT_BYTES: u64 = 1024;

// So many units are taken in one turn: a large body lets small ones pass many times before it is through.
const TURN_UNITS: u64 = 64;

impl Limits {
    /// Takes over the limits of a new set of rules. Limits of which none changed keep their state.
    pub(crate) fn replace<'a>(&self, rules: impl Iterator<Item = &'a Rule>) {
        let Ok(mut limiters) = self.limiters.write() else { return };
        let mut next = HashMap::new();
        for rule in rules {
            let both = Limited::by(rule).into_iter().zip([rule.limits, rule.destination_limits]);
            // What another rule says of the same destination holds for all.
            for (limited, limits) in both.filter(|(_, limits)| *limits != replicator_core::rule::Limits::default()) {
                let known = limiters.remove(&limited).filter(|old| old.of == limits);
                next.entry(limited).or_insert_with(|| known.unwrap_or_else(|| Arc::new(Limiters::new(limits))));
            }
        }
        *limiters = next;
    }

    /// Waits until this many bytes may move. Whoever comes first in a line goes first: among small bodies that take
    /// what there is, a large one would wait for ever.
    pub(crate) async fn bytes(&self, payer: Payer<'_>, bytes: u64) {
        for limited in Limited::by(payer.rule) {
            self.bytes_of(&limited, payer, bytes).await;
        }
    }

    /// Waits until a copy is let in, and until it has what it waits for then: one at a time of each line.
    pub(crate) async fn let_in<T>(&self, payer: Payer<'_>, then: impl Future<Output = T>) -> T {
        let _turn = self.copies.take(payer).await;
        self.count(payer.rule, |requests| &requests.let_in).await;
        then.await
    }

    /// Waits until the request of a copy may be sent that was let in.
    pub(crate) async fn sent(&self, rule: &Rule) {
        self.count(rule, |requests| &requests.sent).await;
    }

    /// Waits until a request may be sent that needs no memory.
    pub(crate) async fn request(&self, payer: Payer<'_>) {
        {
            let _turn = self.others.take(payer).await;
            self.count(payer.rule, |requests| &requests.let_in).await;
        }
        self.sent(payer.rule).await;
    }

    async fn count(&self, rule: &Rule, counter: impl Fn(&Requests) -> &Counter) {
        for limited in Limited::by(rule) {
            while let Some(limiters) = self.get(&limited)
                && let Some(requests) = &limiters.requests
                && !counter(requests).take(NonZeroU32::MIN, || self.is_current(&limited, &limiters)).await
            {}
        }
    }

    async fn bytes_of(&self, limited: &Limited, payer: Payer<'_>, bytes: u64) {
        let mut left = bytes.div_ceil(UNIT_BYTES);
        // Looked up again when the limit changes while one waits.
        while let Some(limiters) = self.get(limited)
            && let Some(bandwidth) = &limiters.bandwidth
            && left > 0
        {
            let _mine = bandwidth.lines.take(payer).await;
            while let Some(some) = bandwidth.next(left)
                && bandwidth.kibibytes.take(some, || self.is_current(limited, &limiters)).await
            {
                left -= u64::from(some.get());
            }
        }
    }

    fn is_current(&self, limited: &Limited, limiters: &Arc<Limiters>) -> bool {
        self.get(limited).is_some_and(|now| Arc::ptr_eq(&now, limiters))
    }

    fn get(&self, limited: &Limited) -> Option<Arc<Limiters>> {
        self.limiters.read().ok()?.get(limited).cloned()
    }
}

impl Limited {
    /// Names both whose limits hold for a rule's copies.
    fn by(rule: &Rule) -> [Self; 2] {
        [Self::Rule(rule.id.clone()), Self::Destination(rule.destination.clone())]
    }
}

impl Limiters {
    fn new(of: replicator_core::rule::Limits) -> Self {
        let bandwidth = of
            .bandwidth_bytes_per_second
            .and_then(|limit| NonZeroU32::new(u32::try_from(limit.get().div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)));
        let bandwidth =
            bandwidth.map(|burst| Bandwidth { kibibytes: Counter::new(burst), burst, lines: Turns::default() });
        Self { of, bandwidth, requests: of.requests_per_second.map(Requests::new) }
    }
}

impl Bandwidth {
    /// Returns how much of it is taken in one turn, which lasts a second at most.
    fn next(&self, left: u64) -> Option<NonZeroU32> {
        u32::try_from(left.min(TURN_UNITS).min(u64::from(self.burst.get()))).ok().and_then(NonZeroU32::new)
    }
}

impl Requests {
    fn new(per_second: NonZeroU32) -> Self {
        Self { let_in: Counter::new(per_second), sent: Counter::new(per_second) }
    }
}

impl Counter {
    fn new(per_second: NonZeroU32) -> Self {
        let limiter = RateLimiter::direct_with_clock(Quota::per_second(per_second), RuntimeClock);
        Self { limiter, turn: Mutex::default() }
    }

    /// Takes so many, a second's worth at most, once they are there and it is one's turn. Returns false, and takes
    /// nothing, when this limit no longer holds.
    async fn take(&self, wanted: NonZeroU32, is_current: impl Fn() -> bool) -> bool {
        let _turn = self.turn.lock().await;
        while is_current() {
            let Ok(Err(early)) = self.limiter.check_n(wanted) else { return true };
            tokio::time::sleep(early.wait_time_from(RuntimeClock.now())).await;
        }
        false
    }
}
