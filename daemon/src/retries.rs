//! For how long each key has failed for its own sake: what never ends by itself is parked. Known in
//! memory only; after a restart the time begins anew.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::ledger::records::TargetKey;

/// The keys that have failed since they last succeeded.
#[derive(Debug, Default)]
pub(crate) struct Retries(Mutex<HashMap<TargetKey, Failing>>);

#[derive(Debug, Clone, Copy)]
struct Failing {
    first: Instant,
    last: Instant,
}

// Seven or eight deliveries of one message, which come ever more seldom: what a server stumbles
// over for so long is no hiccup, and an operator has yet to find it.
const TIME_MAX: Duration = Duration::from_secs(3600);

// As many as can fail in an hour of backing off, at some hundred bytes each. The one that failed
// longest ago is forgotten first: its hour begins anew.
const KEYS_MAX: usize = 20_000;

impl Retries {
    /// Records that a key failed for its own sake; says whether retries are exhausted.
    pub(crate) fn record_failure(&self, target: &TargetKey) -> bool {
        let (mut all, now) = (self.lock_all(), Instant::now());
        if all.len() >= KEYS_MAX && !all.contains_key(target) {
            forget_oldest(&mut all);
        }
        let failing = all.entry(target.clone()).or_insert(Failing {
            first: now,
            last: now,
        });
        // One failure now and one tomorrow are no day of failures.
        if failing.last + TIME_MAX < now {
            failing.first = now;
        }
        failing.last = now;
        failing.first + TIME_MAX <= now
    }

    /// Forgets a key that succeeded, or failed for another's sake.
    pub(crate) fn clear(&self, target: &TargetKey) {
        self.lock_all().remove(target);
    }

    fn lock_all(&self) -> MutexGuard<'_, HashMap<TargetKey, Failing>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forget_oldest(all: &mut HashMap<TargetKey, Failing>) {
    let oldest = all
        .iter()
        .min_by_key(|(_, failing)| failing.last)
        .map(|(target, _)| target.clone());
    if let Some(oldest) = oldest {
        all.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use replicator_core::object::{Bucket, Key};
    use replicator_core::rule::BucketRef;

    use super::*;

    fn target(key: &str) -> TargetKey {
        let destination = BucketRef {
            account: "main".to_owned(),
            bucket: Bucket::try_from("replicas").unwrap(),
        };
        TargetKey {
            destination,
            key: Key::try_from(key).unwrap(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_fails_for_an_hour_is_given_up() {
        let retries = Retries::default();
        assert!(!retries.record_failure(&target("a")));
        tokio::time::advance(TIME_MAX - Duration::from_secs(1)).await;
        assert!(!retries.record_failure(&target("a")));
        assert!(!retries.record_failure(&target("b")));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(retries.record_failure(&target("a")) && !retries.record_failure(&target("b")));
        assert!(
            retries.record_failure(&target("a")),
            "what comes after it, too"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn failures_that_lie_a_day_apart_are_no_day_of_failures() {
        let retries = Retries::default();
        for _ in 0..20 {
            assert!(!retries.record_failure(&target("a")));
            tokio::time::advance(24 * TIME_MAX).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_succeeded_begins_anew() {
        let retries = Retries::default();
        assert!(!retries.record_failure(&target("a")));
        tokio::time::advance(TIME_MAX).await;
        retries.clear(&target("a"));
        assert!(!retries.record_failure(&target("a")));
    }
}
