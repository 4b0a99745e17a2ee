//! The one place that asks what time it is.

use std::cell::Cell;

use replicator_core::object::Timestamp;
use tokio::time::Instant;

thread_local! {
    static SIMULATED: Cell<Option<(Timestamp, Instant)>> = const { Cell::new(None) };
}

/// Lets the time of this thread be `beginning` now, and go with the runtime's clock from here on. For
/// simulations, whose clock stands still and jumps.
pub fn simulate(beginning: Timestamp) {
    SIMULATED.set(Some((beginning, Instant::now())));
}

/// Returns the current time.
#[allow(clippy::disallowed_methods, reason = "every other file gets the time from here")]
pub(crate) fn now() -> Timestamp {
    match SIMULATED.get() {
        Some((beginning, since)) => beginning + since.elapsed(),
        None => Timestamp::from(std::time::SystemTime::now()),
    }
}

/// Returns the seconds from `past` until now, never negative: clocks of two hosts differ.
pub(crate) fn seconds_since(past: Timestamp) -> f64 {
    (now() - past).as_seconds_f64().max(0.0)
}
