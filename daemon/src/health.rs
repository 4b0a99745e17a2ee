//! Whether the daemon gets anywhere: the clocks behind `/healthz` and `/readyz`.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// Work in hand and nothing settled for this long is not progress.
pub(crate) const STALLED_AFTER: Duration = Duration::from_secs(300);

/// A queue that could not be polled for this long is dead.
pub(crate) const SILENT_AFTER: Duration = Duration::from_secs(120);

/// When something last moved.
#[derive(Debug)]
pub(crate) struct Pulse(Mutex<Instant>);

impl Pulse {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    pub(crate) fn beat(&self) {
        if let Ok(mut last) = self.0.lock() {
            *last = Instant::now();
        }
    }

    pub(crate) fn since(&self) -> Duration {
        self.0.lock().map_or(Duration::MAX, |last| last.elapsed())
    }
}

/// How polling one queue goes.
#[derive(Debug)]
pub(crate) struct Poll {
    pub(crate) queue: String,
    last_success: Mutex<Option<Instant>>,
    failing_since: Mutex<Option<Instant>>,
}

impl Poll {
    pub(crate) fn new(queue: &str) -> Self {
        Self { queue: queue.to_owned(), last_success: Mutex::default(), failing_since: Mutex::default() }
    }

    pub(crate) fn succeeded(&self) {
        if let (Ok(mut last), Ok(mut failing)) = (self.last_success.lock(), self.failing_since.lock()) {
            *last = Some(Instant::now());
            *failing = None;
        }
    }

    pub(crate) fn failed(&self) {
        if let Ok(mut failing) = self.failing_since.lock() {
            failing.get_or_insert_with(Instant::now);
        }
    }

    /// Says whether the queue answered, and answers still.
    pub(crate) fn is_ready(&self) -> bool {
        self.last_success.lock().is_ok_and(|last| last.is_some()) && self.failing_for().is_none()
    }

    /// Returns for how long every poll has failed.
    pub(crate) fn failing_for(&self) -> Option<Duration> {
        self.failing_since.lock().ok()?.map(|since| since.elapsed())
    }
}
