//! The memory budget: every byte of an object body in flight is paid for before it is read.

use std::sync::Arc;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Bytes that object bodies may occupy, shared by all transfers.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    pages: Arc<Semaphore>,
    pages_max: u32,
}

/// Bytes paid for; they return to the budget on drop.
#[must_use]
#[derive(Debug)]
pub(crate) struct Paid {
    #[expect(dead_code, reason = "held for its drop")]
    pages: OwnedSemaphorePermit,
}

// The semaphore counts in u32, so bytes are bought by the page: 4 KiB reach 16 TiB.
const PAGE_BYTES: u64 = 4096;

impl Budget {
    /// Makes a budget of this many bytes.
    pub(crate) fn new(bytes: u64) -> Self {
        let pages_max = u32::try_from(bytes / PAGE_BYTES).unwrap_or(u32::MAX).max(1);
        Self { pages: Arc::new(Semaphore::new(pages_max as usize)), pages_max }
    }

    /// Waits until `bytes` are free. No caller holds a payment while it waits for one, so
    /// the budget cannot lock itself up. More than everything buys everything.
    pub(crate) async fn pay(&self, bytes: u64) -> Result<Paid, AcquireError> {
        let pages = u32::try_from(bytes.div_ceil(PAGE_BYTES)).unwrap_or(u32::MAX).min(self.pages_max);
        Ok(Paid { pages: Arc::clone(&self.pages).acquire_many_owned(pages).await? })
    }

    /// Returns the whole budget.
    pub(crate) fn total_bytes(&self) -> u64 {
        u64::from(self.pages_max) * PAGE_BYTES
    }

    /// Returns what is in use.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.total_bytes() - self.pages.available_permits() as u64 * PAGE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_larger_than_the_budget_takes_it_whole_instead_of_waiting_forever() {
        let budget = Budget::new(1 << 20);
        let all = budget.pay(1 << 30).await;
        assert!(all.is_ok());
        assert_eq!(budget.used_bytes(), 1 << 20);
        drop(all);
        assert_eq!(budget.used_bytes(), 0);
    }
}
