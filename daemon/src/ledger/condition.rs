//! How the ledger is: whether its disk fails at present, whether records are damaged, and how often either was seen.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{error, info};

/// What went wrong with the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// A record could not be written, or not be made durable.
    Write,
    /// A record could not be read.
    Read,
    /// What was read is not what was written.
    Damage,
}

/// The condition of a ledger that is open.
#[derive(Debug, Default)]
pub(crate) struct Condition {
    state: Mutex<State>,
    counts: [AtomicU64; Trouble::ALL.len()],
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Since when nothing can be written, and why.
    failing: Option<(Instant, String)>,
    /// What is damaged; only a restart, after a repair, takes that back.
    damage: Option<String>,
}

/// What to do about damage; the command is in the README.
pub(super) const REMEDY: &str =
    "stop the daemon, then `s3-replicator ledger repair` keeps what can be read and the rest is read back";

impl Trouble {
    pub(crate) const ALL: [Self; 3] = [Self::Write, Self::Read, Self::Damage];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::Damage => "damage",
        }
    }
}

impl Condition {
    /// Says what keeps the ledger from being relied on, if anything does.
    pub(crate) fn ailment(&self) -> Option<String> {
        let state = self.lock();
        let failing = state.failing.as_ref().map(|(_, error)| format!("the ledger cannot be written: {error}"));
        failing.or_else(|| state.damage.as_ref().map(|error| format!("the ledger is damaged: {error}; {REMEDY}")))
    }

    /// Says for how long nothing could be written.
    pub(crate) fn failing_for(&self) -> Option<Duration> {
        self.lock().failing.as_ref().map(|(since, _)| since.elapsed())
    }

    /// Returns how often each trouble was seen.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (Trouble, u64)> {
        Trouble::ALL.into_iter().zip(&self.counts).map(|(trouble, count)| (trouble, count.load(Ordering::Relaxed)))
    }

    /// Records a failed read.
    pub(super) fn unread(&self) {
        self.count(Trouble::Read);
    }

    /// Records that nothing can be written. Of a hundred writes that fail for one cause the log has one line.
    pub(super) fn unwritten(&self, why: &dyn std::fmt::Display) {
        self.count(Trouble::Write);
        let mut state = self.lock();
        if state.failing.is_none() {
            error!(error = %why, "the ledger cannot be written, it is opened again until it can be");
            state.failing = Some((Instant::now(), why.to_string()));
            self.changed.notify_waiters();
        }
    }

    /// Records damage.
    pub(super) fn damaged(&self, why: &dyn std::fmt::Display) {
        self.count(Trouble::Damage);
        let mut state = self.lock();
        if state.damage.is_none() {
            error!(error = %why, "the ledger is damaged; {REMEDY}");
            state.damage = Some(why.to_string());
        }
    }

    /// Records that the ledger can be written again.
    pub(super) fn recovered(&self) {
        if let Some((since, _)) = self.lock().failing.take() {
            info!(seconds = since.elapsed().as_secs(), "the ledger can be written again");
            self.changed.notify_waiters();
        }
    }

    /// Waits until nothing can be written.
    pub(super) async fn failing(&self) {
        self.until(|state| state.failing.is_some()).await;
    }

    /// Waits until records can be written.
    pub(super) async fn working(&self) {
        self.until(|state| state.failing.is_none()).await;
    }

    async fn until(&self, holds: impl Fn(&State) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // What changes between the look and the wait is noticed too.
            changed.as_mut().enable();
            if holds(&self.lock()) {
                return;
            }
            changed.await;
        }
    }

    fn count(&self, trouble: Trouble) {
        let counts = Trouble::ALL.into_iter().zip(&self.counts);
        for (_, count) in counts.filter(|(counted, _)| *counted == trouble) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
