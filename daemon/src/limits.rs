//! What each rule may use of the network: bytes and requests per second.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use replicator_core::rule::Rule;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// The limiters of every rule that has limits.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits {
    by_rule: Arc<RwLock<HashMap<String, Arc<Limiters>>>>,
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

impl Limits {
    /// Takes over the limits of a new set of rules. A limit that did not change keeps its state.
    pub(crate) fn replace<'a>(&self, rules: impl Iterator<Item = &'a Rule>) {
        let Ok(mut by_rule) = self.by_rule.write() else { return };
        let mut next = HashMap::new();
        for rule in rules {
            let limiters = match by_rule.remove(&rule.id) {
                Some(old) if old.of == rule.limits => old,
                Some(_) | None => Arc::new(Limiters::new(rule)),
            };
            next.insert(rule.id.clone(), limiters);
        }
        *by_rule = next;
    }

    /// Waits until the rule may move this many bytes. Whoever comes first goes first: among small bodies that take
    /// what there is, a large one would wait for ever.
    pub(crate) async fn bytes(&self, rule: &str, bytes: u64) {
        let mut left = bytes.div_ceil(UNIT_BYTES);
        // Looked up again when the limit changes while one waits.
        while let Some(limiters) = self.get(rule)
            && let Some(bandwidth) = &limiters.bandwidth
            && left > 0
        {
            let _turn = bandwidth.turn.lock().await;
            while left > 0 && self.is_current(rule, &limiters) {
                left -= bandwidth.take(left).await;
            }
        }
    }

    /// Waits until the rule may send a request.
    pub(crate) async fn request(&self, rule: &str) {
        while let Some(wait) = self.try_request(rule) {
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes a request if the rule may send one now; else returns how long to wait before asking again.
    pub(crate) fn try_request(&self, rule: &str) -> Option<Duration> {
        refusal(self.get(rule)?.requests.as_ref()?, NonZeroU32::MIN)
    }

    fn is_current(&self, rule: &str, limiters: &Arc<Limiters>) -> bool {
        self.get(rule).is_some_and(|now| Arc::ptr_eq(&now, limiters))
    }

    fn get(&self, rule: &str) -> Option<Arc<Limiters>> {
        self.by_rule.read().ok()?.get(rule).cloned()
    }
}

impl Limiters {
    fn new(rule: &Rule) -> Self {
        let bandwidth = rule
            .limits
            .bandwidth_bytes_per_second
            .and_then(|limit| NonZeroU32::new(u32::try_from(limit.get().div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)));
        let limiter = |limit: NonZeroU32| RateLimiter::direct_with_clock(Quota::per_second(limit), RuntimeClock);
        Self {
            of: rule.limits,
            bandwidth: bandwidth.map(|burst| Bandwidth { kibibytes: limiter(burst), burst, turn: Mutex::default() }),
            requests: rule.limits.requests_per_second.map(limiter),
        }
    }
}

impl Bandwidth {
    /// Takes up to so many, a second's worth at most; none when there was nothing to take but the wait.
    async fn take(&self, wanted: u64) -> u64 {
        let wanted = u32::try_from(wanted).ok().and_then(NonZeroU32::new).map_or(self.burst, |all| all.min(self.burst));
        match refusal(&self.kibibytes, wanted) {
            None => u64::from(wanted.get()),
            Some(wait) => {
                tokio::time::sleep(wait).await;
                0
            }
        }
    }
}

/// Lets so many pass, or says how long to wait. Nobody asks for more than a second's worth at once.
fn refusal(limiter: &Limiter, wanted: NonZeroU32) -> Option<Duration> {
    let early = limiter.check_n(wanted).ok()?.err()?;
    Some(early.wait_time_from(RuntimeClock.now()))
}
