//! The memory budget: every byte of an object body in flight is paid for before it is read.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures::FutureExt;
use parking_lot::Mutex;
use replicator_core::rule::{BucketRef, Rule};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::unconstrained;

use crate::limit::rates::Flow;

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
mod tests {
    use super::*;
    use crate::limit::rates::tests::{rule, rules};

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
}
