//! Whether the daemon makes progress: the clocks behind `/healthz` and `/readyz`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;
use replicator_core::object::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::clock;
use crate::ledger::records::TargetKey;

/// Work in flight and nothing settled for this long is not progress.
pub(crate) const STALLED_AFTER: Duration = Duration::from_secs(300);

/// A queue that could not be polled for this long counts as failed.
pub(crate) const SILENT_AFTER: Duration = Duration::from_secs(120);

// Longer than any request of ours may take: ten minutes for completing an upload, not quite three
// for a part, which is sent again only if it failed sooner. A key that wrote nothing for so long
// hangs.
const STUCK_AFTER: Duration = Duration::from_secs(900);

// Work that was returned comes back within a quarter of an hour, or whenever its queue delivers it;
// what comes later than this has another cause.
const SAME_CAUSE: Duration = Duration::from_secs(30 * 60);

/// When something last progressed, as a whole and at each key.
#[derive(Debug)]
pub(crate) struct ProgressWatchdog(Mutex<WatchdogState>);

#[derive(Debug)]
struct WatchdogState {
    progressed: Instant,
    /// When work was returned to its queue last, if nothing has progressed since.
    returned: Option<Instant>,
    /// How each key in work gets on.
    keys: BTreeMap<TargetKey, KeyProgress>,
}

#[derive(Debug)]
struct KeyProgress {
    progressed: Instant,
    /// How many of its ranges wait for a limit now.
    limit_waits: u32,
}

/// What keeps the daemon from making progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LivenessFailure {
    /// One key hangs, whatever the other keys do.
    Stuck(TargetKey, Duration),
    /// Nothing was settled for this long. Work that is returned because its destination does not
    /// answer counts as settled: nothing would be better after a restart, and the outage has its
    /// own figures.
    Stalled(Duration),
}

/// A key is in work while this lives.
#[must_use]
#[derive(Debug)]
pub(crate) struct AtWork<'a> {
    watchdog: &'a ProgressWatchdog,
    target: &'a TargetKey,
}

/// A key in work waits for a limit while this lives.
#[must_use]
#[derive(Debug)]
pub(crate) struct LimitWait<'a> {
    watchdog: &'a ProgressWatchdog,
    target: &'a TargetKey,
}

impl ProgressWatchdog {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(WatchdogState {
            progressed: Instant::now(),
            returned: None,
            keys: BTreeMap::new(),
        }))
    }

    /// Records that something was settled, or returned for a reason that counts as progress.
    pub(crate) fn record_progress(&self) {
        self.0.lock().record_progress();
    }

    /// Records that a version or a part of a key is written.
    pub(crate) fn record_key_progress(&self, target: &TargetKey) {
        let mut state = self.0.lock();
        state.record_progress();
        if let Some(key) = state.keys.get_mut(target) {
            key.progressed = Instant::now();
        }
    }

    /// Records that a limit lets one body pass for so long already that other tasks need not have
    /// been settled meanwhile. To get here again and again after work was returned is no progress.
    pub(crate) fn record_limited_progress(&self) {
        let mut state = self.0.lock();
        if state.returned.is_none() {
            state.progressed = Instant::now();
        }
    }

    /// Records that work was returned to its queue: an empty dispatch does not mean then that all
    /// work is done.
    pub(crate) fn record_return(&self) {
        self.0.lock().returned = Some(Instant::now());
    }

    /// Records that work came in where there was none: until now nothing could progress. Work that
    /// comes back soon after it was returned is no news.
    pub(crate) fn work_arrived(&self) {
        let mut state = self.0.lock();
        if !state.returned_lately() {
            state.record_progress();
        }
    }

    /// Says whether work was returned of late, and nothing has progressed since: then an empty
    /// dispatch does not mean that all work is done.
    pub(crate) fn returned_lately(&self) -> bool {
        self.0.lock().returned_lately()
    }

    /// Begins an attempt of a key.
    pub(crate) fn at_work<'a>(&'a self, target: &'a TargetKey) -> AtWork<'a> {
        let began = KeyProgress {
            progressed: Instant::now(),
            limit_waits: 0,
        };
        self.0.lock().keys.insert(target.clone(), began);
        AtWork {
            watchdog: self,
            target,
        }
    }

    /// Begins a wait of a key for a limit: however long that takes, the key does not hang.
    pub(crate) fn key_waits<'a>(&'a self, target: &'a TargetKey) -> LimitWait<'a> {
        if let Some(key) = self.0.lock().keys.get_mut(target) {
            key.limit_waits += 1;
        }
        LimitWait {
            watchdog: self,
            target,
        }
    }

    /// Says what is wrong, if anything is; whether there is work in flight, only the dispatch
    /// knows.
    pub(crate) fn liveness_failure(&self) -> Option<LivenessFailure> {
        let state = self.0.lock();
        let in_work = state.keys.iter().filter(|(_, key)| key.limit_waits == 0);
        if let Some((target, key)) = in_work.min_by_key(|(_, key)| key.progressed)
            && key.progressed.elapsed() > STUCK_AFTER
        {
            let time = key.progressed.elapsed();
            return Some(LivenessFailure::Stuck(target.clone(), time));
        }
        let time = state.progressed.elapsed();
        (time > STALLED_AFTER).then_some(LivenessFailure::Stalled(time))
    }
}

impl WatchdogState {
    fn record_progress(&mut self) {
        (self.progressed, self.returned) = (Instant::now(), None);
    }

    fn returned_lately(&self) -> bool {
        self.returned.is_some_and(|at| at.elapsed() < SAME_CAUSE)
    }
}

impl Drop for LimitWait<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.watchdog.0.lock().keys.get_mut(self.target) {
            key.progressed = Instant::now();
            key.limit_waits = key.limit_waits.saturating_sub(1);
        }
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.watchdog.0.lock().keys.remove(self.target);
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

/// The last error of a queue or a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastError {
    /// What failed and why, in the words of the service or the network.
    pub error: String,
    /// When the first of these errors came after the last success.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// When the last one came.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Whether something has succeeded since.
    pub is_over: bool,
}

// A service's message has some hundred bytes; this is for what a proxy may answer.
const ERROR_BYTES_MAX: usize = 1 << 10;

impl LastError {
    /// Returns what is known after one more error.
    fn after(before: Option<&Self>, mut error: String) -> Self {
        error.truncate(error.floor_char_boundary(ERROR_BYTES_MAX));
        let at = clock::now();
        let since = before.filter(|before| !before.is_over);
        Self {
            error,
            since: since.map_or(at, |before| before.since),
            at,
            is_over: false,
        }
    }
}

/// The last errors of the buckets that tasks work with, by their names: as many as rules name.
#[derive(Debug, Default)]
pub(crate) struct LastErrors(Mutex<BTreeMap<String, LastError>>);

impl LastErrors {
    pub(crate) fn record(&self, name: &str, error: String) {
        let mut errors = self.0.lock();
        let error = LastError::after(errors.get(name), error);
        errors.insert(name.to_owned(), error);
    }

    /// Records that requests to it succeed.
    pub(crate) fn succeeded(&self, name: &str) {
        if let Some(last) = self.0.lock().get_mut(name) {
            last.is_over = true;
        }
    }

    pub(crate) fn by_name(&self) -> BTreeMap<String, LastError> {
        self.0.lock().clone()
    }
}

/// What a backfill queue is not received from for: its work queue goes first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueYield {
    /// The work queue.
    pub work_queue: String,
    /// How many messages wait there, as SQS said last, those included that it gives out only
    /// after others.
    pub messages: u64,
    /// Since when there are any.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
}

/// How polling one queue goes.
#[derive(Debug)]
pub(crate) struct PollStatus {
    pub(crate) queue: String,
    last: Mutex<LastPoll>,
    error: Mutex<Option<LastError>>,
    yields: Mutex<Option<QueueYield>>,
}

#[derive(Debug, Clone, Copy)]
enum LastPoll {
    None,
    Succeeded,
    /// There is none while the queue's rules are paused.
    Paused,
    /// So did every poll since then.
    Failed(Instant),
}

impl PollStatus {
    pub(crate) fn new(queue: &str) -> Self {
        Self {
            queue: queue.to_owned(),
            last: Mutex::new(LastPoll::None),
            error: Mutex::default(),
            yields: Mutex::default(),
        }
    }

    pub(crate) fn poll_succeeded(&self) {
        *self.yields.lock() = None;
        self.record_answer();
    }

    /// Records that the queue is not received from, because messages wait in its work queue: that is
    /// as it should be, unless it goes on.
    pub(crate) fn poll_yields(&self, work_queue: &str, messages: u64) {
        self.record_answer();
        let mut yields = self.yields.lock();
        *yields = Some(QueueYield {
            work_queue: work_queue.to_owned(),
            messages,
            since: yields.as_ref().map_or_else(clock::now, |known| known.since),
        });
    }

    pub(crate) fn yields(&self) -> Option<QueueYield> {
        self.yields.lock().clone()
    }

    fn record_answer(&self) {
        *self.last.lock() = LastPoll::Succeeded;
        if let Some(error) = self.error.lock().as_mut() {
            error.is_over = true;
        }
    }

    pub(crate) fn poll_paused(&self) {
        *self.yields.lock() = None;
        *self.last.lock() = LastPoll::Paused;
    }

    pub(crate) fn is_paused(&self) -> bool {
        matches!(*self.last.lock(), LastPoll::Paused)
    }

    pub(crate) fn last_error(&self) -> Option<LastError> {
        self.error.lock().clone()
    }

    pub(crate) fn poll_failed(&self, error: &str) {
        let mut known = self.error.lock();
        *known = Some(LastError::after(known.as_ref(), error.to_owned()));
        let mut last = self.last.lock();
        if let LastPoll::None | LastPoll::Succeeded | LastPoll::Paused = *last {
            *last = LastPoll::Failed(Instant::now());
        }
    }

    /// Says whether the queue answered, and answers still, or is not to be polled.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(*self.last.lock(), LastPoll::Succeeded | LastPoll::Paused)
    }

    /// Returns for how long every poll has failed.
    pub(crate) fn failing_for(&self) -> Option<Duration> {
        match *self.last.lock() {
            LastPoll::Failed(since) => Some(since.elapsed()),
            LastPoll::None | LastPoll::Succeeded | LastPoll::Paused => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use replicator_core::object::{Bucket, Key};
    use replicator_core::rule::BucketRef;
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

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

    #[tokio::test(start_paused = true)]
    async fn work_after_an_idle_time_is_given_its_time() {
        let watchdog = ProgressWatchdog::new();
        advance(STALLED_AFTER * 2).await;
        watchdog.work_arrived();
        assert_eq!(watchdog.liveness_failure(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_comes_back_is_no_news() {
        let watchdog = ProgressWatchdog::new();
        advance(STALLED_AFTER).await;
        watchdog.record_return();
        advance(STALLED_AFTER).await;
        watchdog.work_arrived();
        let stalled = LivenessFailure::Stalled(STALLED_AFTER * 2);
        assert_eq!(watchdog.liveness_failure(), Some(stalled));
        advance(SAME_CAUSE).await;
        watchdog.work_arrived();
        assert_eq!(watchdog.liveness_failure(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_lets_a_body_pass_is_progress_unless_work_was_returned() {
        let watchdog = ProgressWatchdog::new();
        advance(STALLED_AFTER + SECOND).await;
        watchdog.record_limited_progress();
        assert_eq!(watchdog.liveness_failure(), None);
        watchdog.record_return();
        advance(STALLED_AFTER + SECOND).await;
        watchdog.record_limited_progress();
        assert!(watchdog.liveness_failure().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_standstill_is_seen_and_ends_with_the_first_progress() {
        let watchdog = ProgressWatchdog::new();
        advance(STALLED_AFTER).await;
        assert_eq!(watchdog.liveness_failure(), None);
        advance(SECOND).await;
        let stalled = LivenessFailure::Stalled(STALLED_AFTER + SECOND);
        assert_eq!(watchdog.liveness_failure(), Some(stalled));
        watchdog.record_progress();
        assert_eq!(watchdog.liveness_failure(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_key_that_hangs_is_seen_though_the_others_go_on() {
        let watchdog = ProgressWatchdog::new();
        let [hangs, works, waits] = ["hangs", "works", "waits"].map(target);
        let in_work = [&hangs, &works, &waits].map(|key| watchdog.at_work(key));
        let _wait = watchdog.key_waits(&waits);
        let late = STUCK_AFTER + SECOND;
        advance(late).await;
        watchdog.record_key_progress(&works);
        let stuck = LivenessFailure::Stuck(hangs.clone(), late);
        assert_eq!(watchdog.liveness_failure(), Some(stuck));
        watchdog.record_key_progress(&hangs);
        assert_eq!(watchdog.liveness_failure(), None);
        drop(in_work);
        assert!(watchdog.0.lock().keys.is_empty());
    }
}
