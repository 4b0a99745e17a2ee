//! What a panic ends. It is a bug, and leaves half done what it happened in: where that is a piece
//! of work that can be dropped by itself, as by a cut-off, the rest of the daemon goes on.
//! Elsewhere the process ends like under kill -9, which it is made to survive, and the service
//! manager starts it anew.
//!
//! The ledger takes no harm: each write to it is one call to RocksDB, of a batch that is whole.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use crate::metrics::Metrics;

/// A piece of work ended by a panic; what it said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a bug in s3-replicator: {0}")]
pub(crate) struct Panicked(String);

thread_local! {
    static IS_CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Lets a panic abort the process, unless it happens in a piece of work that is contained. The one
/// at the start of the process.
pub fn abort_unless_contained() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if !IS_CONTAINED.get() {
            std::process::abort();
        }
    }));
}

/// Calls something, and counts it if it panics.
pub(crate) fn contain<T>(metrics: &Metrics, work: impl FnOnce() -> T) -> Result<T, Panicked> {
    let was_contained = IS_CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    IS_CONTAINED.set(was_contained);
    result.map_err(|panic| {
        metrics.task_panicked();
        Panicked(said(&*panic))
    })
}

/// Works until it is done or panics, and counts that. What it held is dropped.
pub(crate) async fn contain_task<T>(
    metrics: &Metrics,
    work: impl Future<Output = T>,
) -> Result<T, Panicked> {
    let mut work = pin!(work);
    std::future::poll_fn(
        |context| match contain(metrics, || work.as_mut().poll(context)) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
            Err(panicked) => Poll::Ready(Err(panicked)),
        },
    )
    .await
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    async fn stumble(held: Rc<()>) {
        tokio::task::yield_now().await;
        assert_eq!(Rc::strong_count(&held), 3, "seven");
    }

    #[tokio::test]
    async fn a_panic_ends_what_it_happens_in_and_nothing_else() {
        let metrics = Metrics::new().unwrap();
        assert_eq!(
            contain_task(&metrics, async { IS_CONTAINED.get() }).await,
            Ok(true)
        );
        let held = Rc::new(());
        let panicked = contain_task(&metrics, stumble(Rc::clone(&held)))
            .await
            .unwrap_err();
        assert!(panicked.to_string().contains("seven"), "{panicked}");
        assert_eq!(Rc::strong_count(&held), 1);
        assert!(!IS_CONTAINED.get(), "what comes after it is not");
        assert!(
            metrics
                .render()
                .unwrap()
                .contains("s3_replicator_task_panics_total 1\n")
        );
    }
}
