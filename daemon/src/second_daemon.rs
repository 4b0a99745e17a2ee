//! Another daemon at work on the same keys. Without a work queue one daemon alone keeps a key's
//! versions in order, so a second one is a mistake in the set-up. It shows in replicas that this
//! one neither wrote nor can have found at its start.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use replicator_core::retry::LANDING;
use tracing::error;

use crate::clock::BootInstant;
use crate::ledger::records::TargetKey;

/// What was seen of another daemon.
#[derive(Debug)]
pub(crate) struct AnotherDaemon {
    /// Since when all that is written here is known.
    sure_since: Mutex<BootInstant>,
    seen: Mutex<Option<Seen>>,
}

#[derive(Debug)]
struct Seen {
    replicas: u64,
    told: BootInstant,
    last: BootInstant,
}

// A second daemon that works is met again by then. A user may copy a replica once, its stamp
// included.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

// Each key says the same.
const TOLD_EVERY: Duration = Duration::from_secs(60);

const ADVICE: &str =
    "stop all but one, or give the rules a work_queue, which any number of daemons share";

impl AnotherDaemon {
    pub(crate) fn new() -> Self {
        Self {
            sure_since: Mutex::new(BootInstant::now()),
            seen: Mutex::default(),
        }
    }

    /// Records that a task ended without learning the outcome of its last write.
    pub(crate) fn is_unsure(&self) {
        *self
            .sure_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = BootInstant::now();
    }

    /// Says whether a replica of this age that is not in the ledger must be another daemon's: this
    /// daemon and its predecessor cannot have written it.
    pub(crate) fn may_have_written(&self, age: Duration) -> bool {
        age + LANDING
            < self
                .sure_since
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .elapsed()
    }

    /// Records a replica that another daemon wrote, and logs it, though not each.
    pub(crate) fn wrote(&self, target: &TargetKey) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = seen
            .as_ref()
            .is_none_or(|seen| seen.told.elapsed() > TOLD_EVERY);
        let replicas = seen.as_ref().map_or(0, |seen| seen.replicas) + 1;
        let told = seen
            .as_ref()
            .filter(|_| !is_due)
            .map_or_else(BootInstant::now, |seen| seen.told);
        *seen = Some(Seen {
            replicas,
            told,
            last: BootInstant::now(),
        });
        if is_due {
            let (bucket, key) = (target.destination.bucket.as_str(), target.key.as_str());
            error!(
                bucket,
                key,
                replicas,
                advice = ADVICE,
                "another daemon seems to write replicas here"
            );
        }
    }

    /// Says what is wrong, if another daemon was seen.
    pub(crate) fn ailment(&self) -> Option<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen
            .as_ref()
            .filter(|seen| seen.last.elapsed() < FORGOTTEN_AFTER)?;
        let replicas = seen.replicas;
        Some(format!(
            "another daemon seems to write replicas at the same keys ({replicas} seen): {ADVICE}"
        ))
    }
}
