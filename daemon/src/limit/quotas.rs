//! What rules and destinations may use at a time: of the network, bytes and requests per second; of
//! the memory, which every byte of an object body in flight is paid for before it is read.

use std::collections::{BTreeSet, HashMap};
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use parking_lot::{Mutex, RwLock};
use replicator_core::rule::{BucketRef, RateLimits, Rule};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::task::unconstrained;
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

/// Bytes that object bodies may occupy, shared by all transfers.
#[derive(Debug)]
pub(crate) struct Budget {
    whole: Lot,
    shares: Mutex<Shares>,
}

/// Bytes paid for; they return to where they are from on drop.
#[must_use]
#[derive(Debug)]
pub(crate) struct MemoryPermit {
    #[expect(dead_code, reason = "held for its drop")]
    pages: [Option<OwnedSemaphorePermit>; 2],
}

/// What each destination may have of it.
#[derive(Debug)]
struct Shares {
    each: u32,
    of: HashMap<BucketRef, Arc<Lot>>,
}

/// Pages, of which large objects may not have all.
#[derive(Debug)]
struct Lot {
    all: Pages,
    bulk: Pages,
}

#[derive(Debug)]
struct Pages {
    free: Arc<Semaphore>,
    max: u32,
}

// The semaphore counts in u32, so bytes are bought by the page: 4 KiB reach 16 TiB.
const PAGE_BYTES: u64 = 4096;

// An eighth is never lent to large objects, so that small ones find room beside their parts. That
// is the size of a part or more, and no small object is larger. With less than this a part is
// larger than an eighth, and three of 5 MiB, the least that S3 takes, have to fit into 16 MiB where
// there is one destination: there it is a sixteenth.
const RESERVE_DIVISOR: u32 = 8;
const RESERVE_DIVISOR_LITTLE: u32 = 16;
const LITTLE_BYTES: u64 = 40 << 20;

// Where there are several destinations, a quarter is out of reach for each: one that hangs with all
// it could get leaves that quarter to the other destinations.
const OTHERS_DIVISOR: u32 = 4;

impl Budget {
    /// Makes a budget of this many bytes.
    pub(crate) fn new(bytes: u64) -> Self {
        let max = u32::try_from(bytes / PAGE_BYTES).unwrap_or(u32::MAX).max(1);
        let reserve = max
            / if bytes < LITTLE_BYTES {
                RESERVE_DIVISOR_LITTLE
            } else {
                RESERVE_DIVISOR
            };
        let shares = Shares {
            each: max,
            of: HashMap::new(),
        };
        Self {
            whole: Lot::new(max, reserve),
            shares: Mutex::new(shares),
        }
    }

    /// Divides it among the destinations of a new set of rules. What was paid before is not counted
    /// again, and a task that waits for a share waits for one of the old division.
    pub(crate) fn divide_shares<'a>(&self, rules: impl Iterator<Item = &'a Rule>) {
        let destinations: BTreeSet<&BucketRef> = rules.map(|rule| &rule.destination).collect();
        let max = self.whole.all.max;
        let each = if destinations.len() > 1 {
            (max - max / OTHERS_DIVISOR).max(1)
        } else {
            max
        };
        let mut shares = self.shares.lock();
        if shares.each != each {
            *shares = Shares {
                each,
                of: HashMap::new(),
            };
        }
    }

    /// Waits until a payer's destination may have this much more; memory is still to be paid for. A
    /// task never waits for a share once it has paid for memory.
    pub(crate) async fn share(&self, payer: Flow<'_>, bytes: u64) -> MemoryPermit {
        let share = self.share_of(&payer.rule.destination);
        share.acquire_pages(payer, bytes).await
    }

    /// Pays if so many bytes are free and no payment waits.
    pub(crate) fn try_pay(&self, payer: Flow<'_>, bytes: u64) -> Option<MemoryPermit> {
        // Unconstrained: what else the task did since it last yielded must not count as a lack.
        unconstrained(self.acquire_memory(payer, bytes)).now_or_never()
    }

    /// Waits until `bytes` are free. A waiting task holds a share at most, and no task that has
    /// paid waits for a share: so the budget cannot deadlock. More than everything buys everything.
    pub(crate) async fn acquire_memory(&self, payer: Flow<'_>, bytes: u64) -> MemoryPermit {
        self.whole.acquire_pages(payer, bytes).await
    }

    /// Returns the size of the largest part that is paid for in full.
    pub(crate) fn part_bytes_max(&self) -> u64 {
        u64::from(self.whole.bulk.max) * PAGE_BYTES
    }

    /// Returns the whole budget.
    pub(crate) fn total_bytes(&self) -> u64 {
        u64::from(self.whole.all.max) * PAGE_BYTES
    }

    /// Returns what is in use.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.total_bytes() - self.whole.all.free.available_permits() as u64 * PAGE_BYTES
    }

    fn share_of(&self, destination: &BucketRef) -> Arc<Lot> {
        let mut shares = self.shares.lock();
        if let Some(share) = shares.of.get(destination) {
            return Arc::clone(share);
        }
        let share = Arc::new(Lot::new(
            shares.each,
            self.whole.all.max - self.whole.bulk.max,
        ));
        shares.of.insert(destination.clone(), Arc::clone(&share));
        share
    }
}

impl Lot {
    fn new(max: u32, reserve: u32) -> Self {
        Self {
            all: Pages::new(max),
            bulk: Pages::new(max - reserve),
        }
    }

    async fn acquire_pages(&self, payer: Flow<'_>, bytes: u64) -> MemoryPermit {
        let count = self.count(payer, bytes);
        let bulk = if payer.is_bulk {
            self.bulk.take(count).await
        } else {
            None
        };
        MemoryPermit {
            pages: [bulk, self.all.take(count).await],
        }
    }

    /// Counts the pages of so many bytes, or all that there are for such a payer.
    fn count(&self, payer: Flow<'_>, bytes: u64) -> u32 {
        let max = if payer.is_bulk {
            self.bulk.max
        } else {
            self.all.max
        };
        u32::try_from(bytes.div_ceil(PAGE_BYTES))
            .unwrap_or(u32::MAX)
            .min(max)
    }
}

impl Pages {
    fn new(max: u32) -> Self {
        Self {
            free: Arc::new(Semaphore::new(max as usize)),
            max,
        }
    }

    /// Waits for so many; the semaphore is never closed, so they are always given.
    async fn take(&self, count: u32) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).acquire_many_owned(count).await.ok()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const ALL: u64 = 1 << 20;

    #[tokio::test]
    async fn a_body_larger_than_the_budget_takes_it_whole_instead_of_waiting_forever() {
        let (budget, rule) = (Budget::new(ALL), rule("orders"));
        let all = budget
            .acquire_memory(
                Flow {
                    rule: &rule,
                    is_bulk: false,
                },
                1 << 30,
            )
            .await;
        assert_eq!(budget.used_bytes(), ALL);
        assert!(
            budget
                .try_pay(
                    Flow {
                        rule: &rule,
                        is_bulk: false
                    },
                    1
                )
                .is_none()
        );
        drop(all);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[tokio::test]
    async fn large_objects_leave_some_memory_to_small_ones() {
        let (budget, rule) = (Budget::new(ALL), rule("orders"));
        let bulk = Flow {
            rule: &rule,
            is_bulk: true,
        };
        let _all = budget.acquire_memory(bulk, 1 << 30).await;
        assert!(budget.try_pay(bulk, 1).is_none());
        assert!(
            budget
                .try_pay(
                    Flow {
                        rule: &rule,
                        is_bulk: false
                    },
                    ALL / 16
                )
                .is_some()
        );
    }

    #[tokio::test]
    async fn beside_large_objects_there_is_room_for_the_largest_of_the_small_ones() {
        let both = rules(&[("a", "orders", "one"), ("b", "orders", "other")]);
        // With 64 MiB a part has eight, and an object that is no larger is a small one.
        let budget = Budget::new(64 << 20);
        budget.divide_shares(both.iter());
        let of = |is_bulk| Flow {
            rule: &both[0],
            is_bulk,
        };
        let _parts = (
            budget.share(of(true), 1 << 30).await,
            budget.acquire_memory(of(true), 1 << 30).await,
        );
        let share = budget.share(of(false), 8 << 20).now_or_never();
        assert!(share.is_some() && budget.try_pay(of(false), 8 << 20).is_some());
    }

    #[tokio::test]
    async fn of_several_destinations_none_gets_everything() {
        let (budget, both) = (
            Budget::new(ALL),
            rules(&[("a", "orders", "one"), ("b", "orders", "other")]),
        );
        let [one, other] = [&both[0], &both[1]].map(|rule| Flow {
            rule,
            is_bulk: false,
        });
        assert!(
            budget.share(one, ALL).now_or_never().is_some(),
            "while it is the only one"
        );
        budget.divide_shares(both.iter());
        let most = budget.share(one, ALL / 4 * 3).now_or_never();
        assert!(most.is_some());
        assert!(
            budget.share(one, 1).now_or_never().is_none(),
            "it has its share"
        );
        assert!(budget.share(other, ALL / 4 * 3).now_or_never().is_some());
        budget.divide_shares(both.iter());
        assert!(
            budget.share(one, 1).now_or_never().is_none(),
            "the same division changes nothing"
        );
    }

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
