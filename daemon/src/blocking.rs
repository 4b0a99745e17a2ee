//! Work that blocks a thread for a while: RocksDB's scans and syncs.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Does the work here and now. On a runtime of many threads the others take over this one's tasks
/// meanwhile; one that has a single thread is a simulation, which wants no second one.
pub(crate) fn run<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        Ok(_) | Err(_) => work(),
    }
}
