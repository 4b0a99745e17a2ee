//! Whether the daemon gets anywhere: the clocks behind `/healthz` and `/readyz`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::ledger::records::TargetKey;

/// Work in flight and nothing settled for this long is not progress.
pub(crate) const STALLED_AFTER: Duration = Duration::from_secs(300);

/// A queue that could not be polled for this long counts as failed.
pub(crate) const SILENT_AFTER: Duration = Duration::from_secs(120);

// Longer than any request of ours may take: ten minutes for completing an upload, not quite three
// for a part, which is sent again only if it failed sooner. A key that wrote nothing for so long
// hangs.
const STUCK_AFTER: Duration = Duration::from_secs(900);

// Work that was given back returns within a quarter of an hour, or whenever its queue delivers it;
// what comes later than this has another cause.
const SAME_TROUBLE: Duration = Duration::from_secs(30 * 60);

/// When something last moved, as a whole and at each key.
#[derive(Debug)]
pub(crate) struct ProgressWatchdog(Mutex<Beats>);

#[derive(Debug)]
struct Beats {
    last: Instant,
    /// When work was given back last, if nothing has moved since.
    gave_up: Option<Instant>,
    /// How each key that is at work gets on.
    targets: BTreeMap<TargetKey, Steps>,
}

#[derive(Debug)]
struct Steps {
    moved: Instant,
    /// How many of its pieces wait for a limit now.
    rests: u32,
}

/// What keeps the daemon from getting anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LivenessFailure {
    /// One key hangs, whatever the other keys do.
    Stuck(TargetKey, Duration),
    /// Nothing was settled for this long. To give work back because its destination does not answer
    /// is no standstill: nothing would be better after a restart, and the outage has its own
    /// figures.
    Stalled(Duration),
}

/// A key is at work while this lives.
#[must_use]
#[derive(Debug)]
pub(crate) struct AtWork<'a> {
    watchdog: &'a ProgressWatchdog,
    target: &'a TargetKey,
}

/// A key that is at work waits for a limit while this lives.
#[must_use]
#[derive(Debug)]
pub(crate) struct Rests<'a> {
    watchdog: &'a ProgressWatchdog,
    target: &'a TargetKey,
}

impl ProgressWatchdog {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Beats::new(Instant::now())))
    }

    /// Records that something was settled, or given back for a reason that counts as progress.
    pub(crate) fn record_progress(&self) {
        self.lock_beats().progress_at(Instant::now());
    }

    /// A key got on: a version or a part is written.
    pub(crate) fn record_key_progress(&self, target: &TargetKey) {
        self.lock_beats().key_progress_at(target, Instant::now());
    }

    /// A key begins an attempt.
    pub(crate) fn at_work<'a>(&'a self, target: &'a TargetKey) -> AtWork<'a> {
        self.lock_beats().targets.insert(
            target.clone(),
            Steps {
                moved: Instant::now(),
                rests: 0,
            },
        );
        AtWork {
            watchdog: self,
            target,
        }
    }

    /// A key waits until a limit lets it go on: however long that takes, it does not hang.
    pub(crate) fn key_waits<'a>(&'a self, target: &'a TargetKey) -> Rests<'a> {
        if let Some(steps) = self.lock_beats().targets.get_mut(target) {
            steps.rests += 1;
        }
        Rests {
            watchdog: self,
            target,
        }
    }

    /// Records that a limit lets one body pass for so long already that other tasks need not have
    /// been settled meanwhile. To get here again and again after work was given back is no
    /// progress.
    pub(crate) fn passes(&self) {
        let mut beats = self.lock_beats();
        if beats.gave_up.is_none() {
            beats.last = Instant::now();
        }
    }

    /// Records that work was given back to its queue: an empty dispatch does not mean then that all
    /// work is done.
    pub(crate) fn give_up(&self) {
        self.lock_beats().gave_up = Some(Instant::now());
    }

    /// Work came in where there was none: until now nothing could move.
    pub(crate) fn work_arrived(&self) {
        self.lock_beats().work_arrived_at(Instant::now());
    }

    /// Says whether work was given back of late, and nothing has moved since: then an empty
    /// dispatch does not mean that all work is done.
    pub(crate) fn gave_up_lately(&self) -> bool {
        self.lock_beats()
            .gave_up
            .is_some_and(|at| at.elapsed() < SAME_TROUBLE)
    }

    /// Says what is wrong, if anything is; whether there is work in flight, only the dispatch can
    /// tell.
    pub(crate) fn ailment(&self) -> Option<LivenessFailure> {
        self.lock_beats().ailment(Instant::now())
    }

    fn lock_beats(&self) -> MutexGuard<'_, Beats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Rests<'_> {
    fn drop(&mut self) {
        if let Some(steps) = self.watchdog.lock_beats().targets.get_mut(self.target) {
            *steps = Steps {
                moved: Instant::now(),
                rests: steps.rests.saturating_sub(1),
            };
        }
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.watchdog.lock_beats().targets.remove(self.target);
    }
}

impl Beats {
    fn new(now: Instant) -> Self {
        Self {
            last: now,
            gave_up: None,
            targets: BTreeMap::new(),
        }
    }

    fn progress_at(&mut self, now: Instant) {
        (self.last, self.gave_up) = (now, None);
    }

    fn key_progress_at(&mut self, target: &TargetKey, now: Instant) {
        self.progress_at(now);
        if let Some(steps) = self.targets.get_mut(target) {
            steps.moved = now;
        }
    }

    fn work_arrived_at(&mut self, now: Instant) {
        let is_return = self
            .gave_up
            .is_some_and(|at| now.saturating_duration_since(at) < SAME_TROUBLE);
        if !is_return {
            self.progress_at(now);
        }
    }

    fn ailment(&self, now: Instant) -> Option<LivenessFailure> {
        let silent = |since: &Instant| now.saturating_duration_since(*since);
        let at_work = self.targets.iter().filter(|(_, steps)| steps.rests == 0);
        let (target, steps) = at_work.min_by_key(|(_, steps)| steps.moved).unzip();
        let stuck = target
            .zip(steps.map(|steps| silent(&steps.moved)))
            .filter(|(_, time)| *time > STUCK_AFTER);
        let stalled = Some(silent(&self.last))
            .filter(|time| *time > STALLED_AFTER)
            .map(LivenessFailure::Stalled);
        stuck
            .map(|(target, time)| LivenessFailure::Stuck(target.clone(), time))
            .or(stalled)
    }
}

impl fmt::Display for LivenessFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stuck(target, time) => {
                let (bucket, key) = (&target.destination.bucket, &target.key);
                write!(
                    f,
                    "s3://{bucket}/{key} is worked on and has not moved for {} s",
                    time.as_secs()
                )
            }
            Self::Stalled(time) => write!(
                f,
                "there is work and nothing was settled for {} s",
                time.as_secs()
            ),
        }
    }
}

/// How polling one queue goes.
#[derive(Debug)]
pub(crate) struct PollStatus {
    pub(crate) queue: String,
    last_success: Mutex<Option<Instant>>,
    failing_since: Mutex<Option<Instant>>,
}

impl PollStatus {
    pub(crate) fn new(queue: &str) -> Self {
        Self {
            queue: queue.to_owned(),
            last_success: Mutex::default(),
            failing_since: Mutex::default(),
        }
    }

    pub(crate) fn poll_succeeded(&self) {
        if let (Ok(mut last), Ok(mut failing)) =
            (self.last_success.lock(), self.failing_since.lock())
        {
            *last = Some(Instant::now());
            *failing = None;
        }
    }

    pub(crate) fn poll_failed(&self) {
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
    use replicator_core::object::{Bucket, Key};
    use replicator_core::rule::BucketRef;

    use super::*;

    fn target(key: &str) -> TargetKey {
        let destination = BucketRef {
            account: "archive".to_owned(),
            bucket: Bucket::try_from("replicas").unwrap(),
        };
        TargetKey {
            destination,
            key: Key::try_from(key).unwrap(),
        }
    }

    #[test]
    fn work_after_a_rest_is_given_its_time() {
        let began = Instant::now();
        let mut beats = Beats::new(began);
        beats.work_arrived_at(began + STALLED_AFTER * 2);
        assert_eq!(beats.last, began + STALLED_AFTER * 2);
    }

    #[test]
    fn work_that_comes_back_is_no_news() {
        let began = Instant::now();
        let mut beats = Beats {
            gave_up: Some(began + STALLED_AFTER),
            ..Beats::new(began)
        };
        beats.work_arrived_at(began + STALLED_AFTER * 2);
        assert_eq!(beats.last, began);
        beats.work_arrived_at(began + STALLED_AFTER + SAME_TROUBLE);
        assert_eq!(beats.last, began + STALLED_AFTER + SAME_TROUBLE);
    }

    #[test]
    fn a_standstill_is_seen_and_ends_with_the_first_thing_that_moves() {
        let began = Instant::now();
        let mut beats = Beats::new(began);
        assert_eq!(beats.ailment(began + STALLED_AFTER), None);
        let late = STALLED_AFTER + Duration::from_secs(1);
        assert_eq!(
            beats.ailment(began + late),
            Some(LivenessFailure::Stalled(late))
        );
        beats.progress_at(began + late);
        assert_eq!(beats.ailment(began + late), None);
    }

    #[test]
    fn one_lane_that_hangs_is_seen_though_the_others_go_on() {
        let began = Instant::now();
        let mut beats = Beats::new(began);
        beats
            .targets
            .extend(["hangs", "works", "rests"].map(|name| {
                (
                    target(name),
                    Steps {
                        moved: began,
                        rests: u32::from(name == "rests"),
                    },
                )
            }));
        let late = began + STUCK_AFTER + Duration::from_secs(1);
        beats.key_progress_at(&target("works"), late);
        assert_eq!(
            beats.ailment(late),
            Some(LivenessFailure::Stuck(target("hangs"), late - began))
        );
        beats.key_progress_at(&target("hangs"), late);
        assert_eq!(beats.ailment(late), None);
    }

    #[test]
    fn a_lane_that_ended_is_not_missed() {
        let watchdog = ProgressWatchdog::new();
        let target = target("ended");
        let at_work = watchdog.at_work(&target);
        assert_eq!(watchdog.lock_beats().targets.len(), 1);
        drop(at_work);
        assert!(watchdog.lock_beats().targets.is_empty());
    }
}
