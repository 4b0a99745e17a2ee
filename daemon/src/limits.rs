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
use tokio::time::Instant;

/// The limiters of every rule that has limits.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits {
    by_rule: Arc<RwLock<HashMap<String, Arc<Limiters>>>>,
}

#[derive(Debug)]
struct Limiters {
    of: replicator_core::rule::Limits,
    /// With what passes at once, a second's worth.
    kibibytes: Option<(Limiter, NonZeroU32)>,
    requests: Option<Limiter>,
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

    /// Waits until the rule may move this many bytes.
    pub(crate) async fn bytes(&self, rule: &str, bytes: u64) {
        let mut left = bytes.div_ceil(UNIT_BYTES);
        while left > 0 {
            // Looked up each time: the limit can change while one waits.
            let Some(limiters) = self.get(rule) else { return };
            let Some((limiter, burst)) = limiters.kibibytes.as_ref() else { return };
            // A body larger than a second's worth is let through second by second.
            let now = NonZeroU32::new(u32::try_from(left).unwrap_or(u32::MAX)).map_or(*burst, |left| left.min(*burst));
            match refusal(limiter, now) {
                None => left -= u64::from(now.get()),
                Some(wait) => tokio::time::sleep(wait).await,
            }
        }
    }

    /// Waits until the rule may send a request.
    pub(crate) async fn request(&self, rule: &str) {
        while let Some(limiters) = self.get(rule)
            && let Some(limiter) = &limiters.requests
            && let Some(wait) = refusal(limiter, NonZeroU32::MIN)
        {
            tokio::time::sleep(wait).await;
        }
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
            kibibytes: bandwidth.map(|limit| (limiter(limit), limit)),
            requests: rule.limits.requests_per_second.map(limiter),
        }
    }
}

/// Lets so many pass, or says how long to wait. Nobody asks for more than a second's worth at once.
fn refusal(limiter: &Limiter, wanted: NonZeroU32) -> Option<Duration> {
    let early = limiter.check_n(wanted).ok()?.err()?;
    Some(early.wait_time_from(RuntimeClock.now()))
}
