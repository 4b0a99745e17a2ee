//! What each rule, and each destination, may use of the network: bytes and requests per second.

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use parking_lot::{Mutex, RwLock};
use replicator_core::rule::{BucketRef, RateLimits, Rule};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::health::ProgressWatchdog;

/// What a copy counts for: the large objects of a rule wait in another queue than its small ones.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow<'a> {
    pub(crate) rule: &'a Rule,
    pub(crate) is_bulk: bool,
}

/// The limiters of every rule and destination that has limits, and the queues before them.
#[derive(Debug)]
pub(crate) struct Limits {
    limiters: RwLock<HashMap<Scope, Limiters>>,
    /// Copies to be admitted, and to get a share of the memory then.
    copies: FairQueue,
    /// Bodies that are only compared, which needs no memory.
    reads: FairQueue,
    /// Requests without a body.
    requests: FairQueue,
    /// A body that takes long to pass does not mean that the daemon hangs.
    watchdog: Arc<ProgressWatchdog>,
}

// A body that passes in less is done before the watchdog misses progress.
const LONG: Duration = Duration::from_secs(60);

/// What can have a limit.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Scope {
    Rule(String),
    Destination(BucketRef),
}

#[derive(Debug, Clone)]
struct Limiters {
    limits: RateLimits,
    bandwidth: Option<Arc<Bandwidth>>,
    requests: Option<Arc<OrderedLimiter>>,
}

/// One queue per flow: of each only the first competes with the others, so that no rule gets more
/// by sending many.
#[derive(Debug, Default)]
struct FairQueue(Mutex<HashMap<FlowKey, Arc<tokio::sync::Mutex<()>>>>);

/// A rule's id, and whether it is the flow of its large objects.
type FlowKey = (String, bool);

impl Limits {
    pub(crate) fn new(watchdog: Arc<ProgressWatchdog>) -> Self {
        Self {
            limiters: RwLock::default(),
            copies: FairQueue::default(),
            reads: FairQueue::default(),
            requests: FairQueue::default(),
            watchdog,
        }
    }

    /// Takes over the limits of a new set of rules; what was spent counts where they are the same.
    /// The few requests that are first in a queue still pass under the old ones.
    pub(crate) fn replace<'a>(&self, rules: impl Iterator<Item = &'a Rule>) {
        let mut next = HashMap::new();
        let mut limiters = self.limiters.write();
        for rule in rules {
            let limits = [rule.limits, rule.destination_limits];
            let both = Scope::of_rule(rule).into_iter().zip(limits);
            for (scope, limits) in both.filter(|(_, limits)| *limits != RateLimits::default()) {
                let known = limiters.get(&scope).filter(|known| known.limits == limits);
                let renewed = known.cloned().unwrap_or_else(|| Limiters::new(limits));
                // What another rule says of the same destination holds for all.
                next.entry(scope).or_insert(renewed);
            }
        }
        *limiters = next;
    }

    /// Returns how many bytes a rule may move in a second, if that is limited.
    pub(crate) fn bandwidth(&self, rule: &Rule) -> Option<u64> {
        let bandwidths = self.bandwidths_of(rule);
        bandwidths
            .iter()
            .map(|limit| limit.bytes_per_second())
            .min()
    }

    /// Waits until a copy of so many bytes is admitted, and until it has a share of the memory
    /// then: one at a time of each flow, or many would be admitted while memory is short, and move
    /// at once when it no longer is.
    pub(crate) async fn admit_copy<T>(
        &self,
        flow: Flow<'_>,
        bytes: u64,
        share: impl Future<Output = T>,
    ) -> T {
        let _turn = self.copies.turn(flow).await;
        self.pass_bytes(flow.rule, bytes).await;
        self.acquire_request(flow.rule).await;
        share.await
    }

    /// Waits until this many bytes may be read of which no copy is made. The caller may hold
    /// memory, and so waits for no task that waits for some.
    pub(crate) async fn acquire_bytes(&self, flow: Flow<'_>, bytes: u64) {
        let _turn = self.reads.turn(flow).await;
        self.pass_bytes(flow.rule, bytes).await;
    }

    /// Waits until a request may be sent that needs no memory.
    pub(crate) async fn request(&self, flow: Flow<'_>) {
        let _turn = self.requests.turn(flow).await;
        self.acquire_request(flow.rule).await;
    }

    async fn acquire_request(&self, rule: &Rule) {
        for limiters in self.limiters_of(rule) {
            if let Some(requests) = limiters.requests {
                requests.acquire(NonZeroU32::MIN).await;
            }
        }
    }

    /// Waits until this many bytes may move. A large body passes in slices, both limits slice by
    /// slice: one limit after the other they would add up. They are looked up anew for each slice,
    /// because a reload may have changed them.
    async fn pass_bytes(&self, rule: &Rule, bytes: u64) {
        let (mut left, begun) = (bytes, Instant::now());
        while left > 0 {
            let bandwidths = self.bandwidths_of(rule);
            let Some(slice) = bandwidths.iter().map(|limit| limit.slice_bytes()).min() else {
                return;
            };
            let slice = slice.min(left);
            for limit in bandwidths {
                limit.acquire(slice).await;
            }
            left -= slice;
            if begun.elapsed() > LONG {
                self.watchdog.record_limited_progress();
            }
        }
    }

    fn bandwidths_of(&self, rule: &Rule) -> Vec<Arc<Bandwidth>> {
        let limiters = self.limiters_of(rule);
        limiters
            .into_iter()
            .filter_map(|limiters| limiters.bandwidth)
            .collect()
    }

    /// Returns the limiters of a rule and of its destination.
    fn limiters_of(&self, rule: &Rule) -> Vec<Limiters> {
        let limiters = self.limiters.read();
        // Most configurations set no limit: then nothing is looked up for each copy.
        if limiters.is_empty() {
            return Vec::new();
        }
        let scopes = Scope::of_rule(rule);
        scopes
            .iter()
            .filter_map(|scope| limiters.get(scope).cloned())
            .collect()
    }
}

impl Scope {
    /// Names the two whose limits hold for a rule's copies.
    fn of_rule(rule: &Rule) -> [Self; 2] {
        [
            Self::Rule(rule.id.clone()),
            Self::Destination(rule.destination.clone()),
        ]
    }
}

impl Limiters {
    fn new(limits: RateLimits) -> Self {
        let bandwidth = limits.bandwidth_bytes_per_second.map(Bandwidth::new);
        let requests = limits
            .requests_per_second
            .map(|limit| OrderedLimiter::new(limit, limit));
        Self {
            limits,
            bandwidth: bandwidth.map(Arc::new),
            requests: requests.map(Arc::new),
        }
    }
}

impl FairQueue {
    /// Waits until those of the same flow that came before are through; the turn lasts until it is
    /// dropped.
    async fn turn(&self, flow: Flow<'_>) -> OwnedMutexGuard<()> {
        let key: FlowKey = (flow.rule.id.clone(), flow.is_bulk);
        let turn = Arc::clone(self.0.lock().entry(key).or_default());
        turn.lock_owned().await
    }
}

/// A limit of bytes per second.
#[derive(Debug)]
struct Bandwidth {
    kibibytes: OrderedLimiter,
    kibibytes_per_second: NonZeroU32,
    /// A large body lets small ones pass many times before it is through.
    slice: NonZeroU32,
    /// Bytes that have passed and make no KiB yet.
    rest: Mutex<u64>,
}

// The limiter counts in u32, and a time by the nanosecond for each: by the KiB that is exact to 0.1
// % up to 1 GiB/s.
const UNIT_BYTES: u64 = 1024;

const SLICE_UNITS: NonZeroU32 = NonZeroU32::new(64).unwrap();

// Unused bandwidth can be made up for within a quarter of a second: enough for other waits between
// two bodies, and one part in forty of what passes in ten seconds.
const BURSTS_PER_SECOND: u32 = 4;

impl Bandwidth {
    fn new(bytes_per_second: NonZeroU64) -> Self {
        let kibibytes_per_second =
            u32::try_from(bytes_per_second.get().div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        let kibibytes_per_second = NonZeroU32::new(kibibytes_per_second).unwrap_or(NonZeroU32::MIN);
        let burst = NonZeroU32::new(kibibytes_per_second.get() / BURSTS_PER_SECOND)
            .unwrap_or(NonZeroU32::MIN);
        Self {
            kibibytes: OrderedLimiter::new(kibibytes_per_second, burst),
            kibibytes_per_second,
            slice: burst.min(SLICE_UNITS),
            rest: Mutex::default(),
        }
    }

    fn slice_bytes(&self) -> u64 {
        u64::from(self.slice.get()) * UNIT_BYTES
    }

    fn bytes_per_second(&self) -> u64 {
        u64::from(self.kibibytes_per_second.get()) * UNIT_BYTES
    }

    /// Waits until so many bytes, those of a slice at most, have passed.
    async fn acquire(&self, bytes: u64) {
        if let Some(units) = self.take_units(bytes) {
            self.kibibytes.acquire(units).await;
        }
    }

    /// Returns how many units to take for so many bytes; what makes no unit is counted with the
    /// next.
    fn take_units(&self, bytes: u64) -> Option<NonZeroU32> {
        let mut rest = self.rest.lock();
        let all = *rest + bytes;
        let units = (all / UNIT_BYTES).min(u64::from(self.slice.get()));
        *rest = all - units * UNIT_BYTES;
        u32::try_from(units).ok().and_then(NonZeroU32::new)
    }
}

/// So much a second, of which a part may go at once, in the order of arrival.
#[derive(Debug)]
struct OrderedLimiter {
    limiter: RateLimiter<NotKeyed, InMemoryState, RuntimeClock, NoOpMiddleware<std::time::Instant>>,
    turn: tokio::sync::Mutex<()>,
}

/// The runtime's clock, by which everything else here waits too.
#[derive(Debug, Clone, Default)]
struct RuntimeClock;

impl Clock for RuntimeClock {
    type Instant = std::time::Instant;

    fn now(&self) -> Self::Instant {
        Instant::now().into_std()
    }
}

impl OrderedLimiter {
    fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        let quota = Quota::per_second(per_second).allow_burst(burst);
        Self {
            limiter: RateLimiter::direct_with_clock(quota, RuntimeClock),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Takes so many, a burst at most, once they are there.
    async fn acquire(&self, wanted: NonZeroU32) {
        let _turn = self.turn.lock().await;
        while let Ok(Err(early)) = self.limiter.check_n(wanted) {
            tokio::time::sleep(early.wait_time_from(RuntimeClock.now())).await;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn every_byte_is_counted_once_however_small_the_bodies() {
        let limit = Bandwidth::new(NonZeroU64::new(1 << 20).unwrap());
        for bytes in [1, 10, 1023, 1025, 1100, 64 << 10] {
            let taken: u64 = (0..10_000)
                .filter_map(|_| limit.take_units(bytes))
                .map(|units| u64::from(units.get()))
                .sum();
            let rest = *limit.rest.lock();
            assert!(
                (taken * UNIT_BYTES).abs_diff(10_000 * bytes) <= UNIT_BYTES + rest,
                "{bytes}: {taken}"
            );
            assert!(rest < UNIT_BYTES);
        }
    }

    /// Returns rules as a file would give them: by id, source bucket and destination bucket.
    pub(crate) fn rules(all: &[(&str, &str, &str)]) -> Vec<Rule> {
        let mut file = "listen = \"127.0.0.1:1\"\n[accounts.main]\nregion = \"eu-west-1\"\n[[queues]]\n\
             url = \"https://sqs.eu-west-1.amazonaws.com/111111111111/events\"\naccount = \"main\"\n\
             dead_letter_url = \"https://sqs.eu-west-1.amazonaws.com/111111111111/parked\"\n"
            .to_owned();
        for (id, source, destination) in all {
            file.push_str(&format!(
                "[[rules]]\nid = \"{id}\"\nsource = {{ account = \"main\", bucket = \"{source}\" }}\n\
                 destination = {{ account = \"main\", bucket = \"{destination}\" }}\n"
            ));
        }
        replicator_config::parse(&file).unwrap().rules
    }

    /// Returns a rule of this name.
    pub(crate) fn rule(id: &str) -> Rule {
        rules(&[(id, "orders", "orders-replica")]).remove(0)
    }
}
