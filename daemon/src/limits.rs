//! What each rule, and each destination, may use of the network: bytes and requests per second.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, RwLock};
use std::time::Duration;

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
}

/// Whoever is limited.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Limited {
    Rule(String),
    Destination(Place),
}

/// Who has let a request pass already. What was granted is not asked for again.
#[derive(Debug, Default)]
pub(crate) struct Granted {
    rule: bool,
    destination: bool,
}

#[derive(Debug)]
struct Limiters {
    of: replicator_core::rule::Limits,
    bandwidth: Option<Bandwidth>,
    requests: Option<Limiter>,
}

#[derive(Debug)]
struct Bandwidth {
    kibibytes: Limiter,
    /// What passes at once, a second's worth.
    burst: NonZeroU32,
    lines: Turns,
    counter: Mutex<()>,
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
    /// Takes over the limits of a new set of rules. A limit that did not change keeps its state.
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

    /// Waits until a request may be sent.
    pub(crate) async fn request(&self, rule: &Rule) {
        let mut granted = Granted::default();
        while let Some(wait) = self.try_request(rule, &mut granted) {
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes a request if one may be sent now; else returns how long to wait before asking again.
    pub(crate) fn try_request(&self, rule: &Rule, granted: &mut Granted) -> Option<Duration> {
        let asked = [&mut granted.rule, &mut granted.destination];
        for (limited, is_granted) in Limited::by(rule).iter().zip(asked).filter(|(_, is_granted)| !**is_granted) {
            let limiters = self.get(limited);
            let requests = limiters.as_ref().and_then(|limiters| limiters.requests.as_ref());
            if let Some(wait) = requests.and_then(|requests| refusal(requests, NonZeroU32::MIN)) {
                return Some(wait);
            }
            *is_granted = true;
        }
        None
    }

    async fn bytes_of(&self, limited: &Limited, payer: Payer<'_>, bytes: u64) {
        let mut left = bytes.div_ceil(UNIT_BYTES);
        // Looked up again when the limit changes while one waits.
        while let Some(limiters) = self.get(limited)
            && let Some(bandwidth) = &limiters.bandwidth
            && left > 0
        {
            let _mine = bandwidth.lines.take(payer).await;
            while left > 0 && self.is_current(limited, &limiters) {
                left -= bandwidth.take(left).await;
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
        let limiter = |limit: NonZeroU32| RateLimiter::direct_with_clock(Quota::per_second(limit), RuntimeClock);
        let bandwidth = bandwidth.map(|burst| {
            let (lines, counter) = (Turns::default(), Mutex::default());
            Bandwidth { kibibytes: limiter(burst), burst, lines, counter }
        });
        Self { of, bandwidth, requests: of.requests_per_second.map(limiter) }
    }
}

impl Bandwidth {
    /// Takes up to so many in one turn, which lasts a second at most.
    async fn take(&self, wanted: u64) -> u64 {
        let _turn = self.counter.lock().await;
        let wanted = wanted.min(TURN_UNITS).min(u64::from(self.burst.get()));
        let Some(some) = u32::try_from(wanted).ok().and_then(NonZeroU32::new) else { return 0 };
        while let Some(wait) = refusal(&self.kibibytes, some) {
            tokio::time::sleep(wait).await;
        }
        wanted
    }
}

/// Lets so many pass, or says how long to wait. Nobody asks for more than a second's worth at once.
fn refusal(limiter: &Limiter, wanted: NonZeroU32) -> Option<Duration> {
    let early = limiter.check_n(wanted).ok()?.err()?;
    Some(early.wait_time_from(RuntimeClock.now()))
}
