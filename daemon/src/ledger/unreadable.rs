//! Uploads whose records are damaged: each may appear until its time is over, and the record no
//! longer says when that began. So it begins when the damage is seen.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use replicator_core::deadline::{COMPLETE_TIMEOUT_MAX, LANDING};
use replicator_core::failure::{Failure, FailureKind};
use replicator_core::operation::Operation;
use tokio::time::Instant;

use super::records::TargetKey;

/// When each was seen first.
#[derive(Debug, Default)]
pub(super) struct DamagedUploads(Mutex<HashMap<TargetKey, Instant>>);

/// The longest that an upload may appear after its completion was sent.
pub(super) const APPEARS_WITHIN: Duration = COMPLETE_TIMEOUT_MAX.saturating_add(LANDING);

// A damaged block holds fewer records; the keys beyond begin to wait when there is room.
const LANES_MAX: usize = 1000;

impl DamagedUploads {
    /// Lets a key wait until nothing can appear there of which a damaged record told.
    pub(super) fn wait(&self, target: &TargetKey) -> Result<(), Failure> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let too_young = |left| Failure::new(FailureKind::MustWait(left), Operation::AccessLedger);
        if seen.len() >= LANES_MAX && !seen.contains_key(target) {
            return Err(too_young(APPEARS_WITHIN));
        }
        let since = *seen.entry(target.clone()).or_insert_with(Instant::now);
        let left = APPEARS_WITHIN.saturating_sub(since.elapsed());
        if left.is_zero() {
            Ok(())
        } else {
            Err(too_young(left))
        }
    }

    pub(super) fn forget_lane(&self, target: &TargetKey) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(target);
    }
}
