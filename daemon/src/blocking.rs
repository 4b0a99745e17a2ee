//! Work that blocks its thread, such as a sync of the disk.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Does work that blocks, without holding up the tasks that wait for this thread. A runtime of one
/// thread has no other to move them to; there everything happens in order, which a simulation
/// relies on.
pub(crate) fn run_blocking<T>(work: impl FnOnce() -> T) -> T {
    if Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread {
        tokio::task::block_in_place(work)
    } else {
        work()
    }
}
