//! Whether the daemon gets anywhere: the clocks behind `/healthz` and `/readyz`.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// Work in hand and nothing settled for this long is not progress.
pub(crate) const STALLED_AFTER: Duration = Duration::from_secs(300);

/// A queue that could not be polled for this long is dead.
pub(crate) const SILENT_AFTER: Duration = Duration::from_secs(120);

// What was handed back returns within a quarter of an hour, or whenever its queue gets to it; what
// comes later than this is another story.
const SAME_TROUBLE: Duration = Duration::from_secs(30 * 60);

/// When something last moved.
#[derive(Debug)]
pub(crate) struct Pulse(Mutex<Beats>);

#[derive(Debug)]
struct Beats {
    last: Instant,
    /// When work was handed back last, if nothing has moved since.
    gave_up: Option<Instant>,
}

impl Pulse {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Beats { last: Instant::now(), gave_up: None }))
    }

    /// Something moved.
    pub(crate) fn beat(&self) {
        if let Ok(mut beats) = self.0.lock() {
            *beats = Beats { last: Instant::now(), gave_up: None };
        }
    }

    /// Work was handed back: to have nothing in hand is no rest now.
    pub(crate) fn give_up(&self) {
        if let Ok(mut beats) = self.0.lock() {
            beats.gave_up = Some(Instant::now());
        }
    }

    /// Work came in where there was none: until now nothing could move.
    pub(crate) fn wake(&self) {
        if let Ok(mut beats) = self.0.lock() {
            beats.wake(Instant::now());
        }
    }

    pub(crate) fn since(&self) -> Duration {
        self.0.lock().map_or(Duration::MAX, |beats| beats.last.elapsed())
    }
}

impl Beats {
    fn wake(&mut self, now: Instant) {
        let is_return = self.gave_up.is_some_and(|at| now.saturating_duration_since(at) < SAME_TROUBLE);
        if !is_return {
            *self = Self { last: now, gave_up: None };
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_after_a_rest_is_given_its_time() {
        let began = Instant::now();
        let mut beats = Beats { last: began, gave_up: None };
        beats.wake(began + STALLED_AFTER * 2);
        assert_eq!(beats.last, began + STALLED_AFTER * 2);
    }

    #[test]
    fn work_that_comes_back_is_no_news() {
        let began = Instant::now();
        let mut beats = Beats { last: began, gave_up: Some(began + STALLED_AFTER) };
        beats.wake(began + STALLED_AFTER * 2);
        assert_eq!(beats.last, began);
        beats.wake(began + STALLED_AFTER + SAME_TROUBLE);
        assert_eq!(beats.last, began + STALLED_AFTER + SAME_TROUBLE);
    }
}
