//! How the ledger is: whether its disk fails at present, whether records are damaged, and how often
//! either was seen.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{error, info};

/// What went wrong with the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LedgerTrouble {
    /// A record could not be written, or not be made durable.
    Write,
    /// A record could not be read.
    Read,
    /// What was read is not what was written.
    Damage,
}

/// The condition of a ledger that is open.
#[derive(Debug, Default)]
pub(crate) struct LedgerHealth {
    state: Mutex<HealthState>,
    counts: [AtomicU64; LedgerTrouble::ALL.len()],
    changed: Notify,
}

#[derive(Debug, Default)]
struct HealthState {
    /// Since when nothing can be written, and why.
    failing: Option<(Instant, String)>,
    /// What is damaged; only a restart, after a repair, takes that back.
    damage: Option<String>,
}

/// What to do about damage; the command is in the README.
pub(super) const REMEDY: &str = "stop the daemon, then `s3-replicator ledger repair` keeps what can be read and the rest is read back";

impl LedgerTrouble {
    pub(crate) const ALL: [Self; 3] = [Self::Write, Self::Read, Self::Damage];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::Damage => "damage",
        }
    }
}

impl LedgerHealth {
    /// Says what keeps the ledger from being relied on, if anything does.
    pub(crate) fn ailment(&self) -> Option<String> {
        let state = self.lock_state();
        let failing = state
            .failing
            .as_ref()
            .map(|(_, error)| format!("the ledger cannot be written: {error}"));
        failing.or_else(|| {
            state
                .damage
                .as_ref()
                .map(|error| format!("the ledger is damaged: {error}; {REMEDY}"))
        })
    }

    /// Says for how long nothing could be written.
    pub(crate) fn failing_for(&self) -> Option<Duration> {
        self.lock_state()
            .failing
            .as_ref()
            .map(|(since, _)| since.elapsed())
    }

    /// Returns how often each trouble was seen.
    pub(crate) fn trouble_counts(&self) -> impl Iterator<Item = (LedgerTrouble, u64)> {
        LedgerTrouble::ALL
            .into_iter()
            .zip(&self.counts)
            .map(|(trouble, count)| (trouble, count.load(Ordering::Relaxed)))
    }

    /// Records a failed read.
    pub(super) fn record_unread(&self) {
        self.count(LedgerTrouble::Read);
    }

    /// Records that nothing can be written. Of a hundred writes that fail for one cause the log has
    /// one line.
    pub(super) fn record_unwritten(&self, why: &dyn std::fmt::Display) {
        self.count(LedgerTrouble::Write);
        let mut state = self.lock_state();
        if state.failing.is_none() {
            error!(error = %why, "the ledger cannot be written, it is opened again until it can be");
            state.failing = Some((Instant::now(), why.to_string()));
            self.changed.notify_waiters();
        }
    }

    /// Records damage.
    pub(super) fn record_damage(&self, why: &dyn std::fmt::Display) {
        self.count(LedgerTrouble::Damage);
        let mut state = self.lock_state();
        if state.damage.is_none() {
            error!(error = %why, "the ledger is damaged; {REMEDY}");
            state.damage = Some(why.to_string());
        }
    }

    /// Records that the ledger can be written again.
    pub(super) fn recovered(&self) {
        if let Some((since, _)) = self.lock_state().failing.take() {
            info!(
                seconds = since.elapsed().as_secs(),
                "the ledger can be written again"
            );
            self.changed.notify_waiters();
        }
    }

    /// Waits until nothing can be written.
    pub(super) async fn failing(&self) {
        self.until(|state| state.failing.is_some()).await;
    }

    /// Waits until records can be written.
    pub(super) async fn wait_for_recovery(&self) {
        self.until(|state| state.failing.is_none()).await;
    }

    async fn until(&self, holds: impl Fn(&HealthState) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // What changes between the look and the wait is noticed too.
            changed.as_mut().enable();
            if holds(&self.lock_state()) {
                return;
            }
            changed.await;
        }
    }

    fn count(&self, trouble: LedgerTrouble) {
        let counts = LedgerTrouble::ALL.into_iter().zip(&self.counts);
        for (_, count) in counts.filter(|(counted, _)| *counted == trouble) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn lock_state(&self) -> MutexGuard<'_, HealthState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
