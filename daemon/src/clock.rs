//! The one place that asks what time it is.

use replicator_core::object::Timestamp;

/// Returns the current time.
#[allow(clippy::disallowed_methods, reason = "every other file gets the time from here")]
pub(crate) fn now() -> Timestamp {
    Timestamp::from(std::time::SystemTime::now())
}

/// Returns the seconds from `past` until now, never negative: clocks of two hosts differ.
pub(crate) fn seconds_since(past: Timestamp) -> f64 {
    (now() - past).as_seconds_f64().max(0.0)
}
