//! When a request is given up, tried again, or not sent at all. Time and jitter come in as arguments.
//!
//! How long requests may take, how long after its sender stopped one may still take effect, and how
//! long to wait before trying again: with jitter, so that failures that began together do not come
//! back together.
//! <https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/>
//!
//! The concurrency limit is how many requests may be under way at a dependency that throttles: the
//! window narrows for all requests together, and each success widens it again (additive increase,
//! multiplicative decrease).
//!
//! The circuit breaker: after several failures in a row no request is sent but one probe at a time,
//! at growing intervals, until an answer comes. Which failures count is decided by key: a bucket in
//! trouble fails every key, so the failure of a key that failed while the bucket served other keys
//! proves nothing about the bucket.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::parts::PART_BYTES_MIN;

/// What was read of the destination is trusted for this long; then it is read again before a write
/// goes out.
pub const READING_AGE_MAX: Duration = Duration::from_secs(15);

/// What is cut off at its deadline may still land for this long, because the server has read it.
pub const LANDING: Duration = Duration::from_secs(20);

/// S3 may take minutes to put a large upload together, and says so by white space:
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html>
pub const COMPLETE_TIMEOUT_MAX: Duration = Duration::from_secs(600);

// A request has this long to be answered, beside the time that its body takes.
const WRITE_TIMEOUT_MIN: Duration = Duration::from_secs(30);

// Slower than this a body is not waited for: 1 Mbit/s for each of the bodies in flight.
const BYTES_PER_SECOND_MIN: u64 = 128 << 10;

/// Returns the deadline of a request with a body of this size.
pub fn body_timeout(bytes: u64) -> Duration {
    WRITE_TIMEOUT_MIN + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN)
}

/// Returns the deadline of the request that makes a multipart upload of this size visible.
pub fn complete_timeout(bytes: u64) -> Duration {
    if bytes > PART_BYTES_MIN {
        COMPLETE_TIMEOUT_MAX
    } else {
        body_timeout(bytes)
    }
}

/// Returns the full-jitter wait before the attempt after this one: a point, chosen by a jitter from
/// 0 to 1, between a few milliseconds and the ceiling. Attempts count from 1.
pub fn jittered_delay(attempt: u32, jitter: f64) -> Duration {
    let ceiling = delay_ceiling(attempt);
    between(FLOOR, ceiling, jitter)
}

/// Returns the longest wait after an attempt; it doubles with each until the cap.
pub fn delay_ceiling(attempt: u32) -> Duration {
    doubled(FIRST, attempt.saturating_sub(1), CAP)
}

/// Returns a wait that has doubled this many times, up to a longest.
pub fn doubled(first: Duration, doublings: u32, longest: Duration) -> Duration {
    first
        .saturating_mul(2_u32.saturating_pow(doublings))
        .min(longest)
}

/// Returns the equal-jitter wait of a ceiling: a point, chosen by a jitter from 0 to 1, between
/// half of it and all. A full jitter would bring some of what failed together back at once.
pub fn equal_jitter(ceiling: Duration, jitter: f64) -> Duration {
    between(ceiling / 2, ceiling, jitter)
}

fn between(shortest: Duration, longest: Duration, jitter: f64) -> Duration {
    let jitter = if jitter.is_nan() {
        1.0
    } else {
        jitter.clamp(0.0, 1.0)
    };
    (shortest + (longest - shortest).mul_f64(jitter)).min(longest)
}

// A wait of nothing would be a busy loop for the unlucky; this is about a round trip in a Region.
const FLOOR: Duration = Duration::from_millis(10);
// S3 answers again in well under a second after most 5xx.
const FIRST: Duration = Duration::from_millis(200);
// A recovered service is found again within a minute.
const CAP: Duration = Duration::from_secs(60);

/// The concurrency limit of one dependency.
///
/// ```text
/// open ──throttled──▶ narrow ──throttled──▶ narrower ─ … ─▶ one at a time ──throttled──▶ with pauses
///   ▲                   │ ▲                                   │       ▲                    │
///   └──as wide as ever──┘ └─────────────success───────────────┘       └──────success───────┘
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConcurrencyLimit {
    /// Absent while the dependency does not throttle.
    width: Option<f64>,
    /// What it was when that was last too much.
    ceiling: f64,
    /// Counts the times it narrowed: what entered before says nothing of the width since.
    epoch: u64,
    /// How often in a row even one at a time was too much.
    pauses: u32,
    resume: Option<Instant>,
}

/// The window when a request entered: how often it had narrowed, and how many were under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch {
    number: u64,
    under_way: u32,
}

// Gentler than one half, so that the width stays near what is granted: the factor of RFC 9438 §4.6.
const DECREASE: f64 = 0.7;

// The first time the granted concurrency is unknown, and may be far less: as RFC 5681 §3.1 has it.
const DECREASE_FIRST: f64 = 0.5;

// From this share of the last ceiling to as far beyond it the window grows by small steps, because
// the limit is likely near; below and above by whole ones. The idea of RFC 9438's cubic growth,
// without its clock.
const NEAR: f64 = 0.9;
const NEAR_STEP: f64 = 0.1;

// As many as one daemon has under way with one destination: from here on the window limits nothing.
// A source or a KMS key of several destinations may have more under way; if its real limit lies
// above 128, the window opens, is throttled and narrows again and again.
const WIDTH_MAX: f64 = 128.0;

impl ConcurrencyLimit {
    /// Returns the state of the window for a request that enters beside those under way.
    pub fn current_epoch(&self, under_way: u32) -> Epoch {
        Epoch {
            number: self.epoch,
            under_way: under_way + 1,
        }
    }

    /// Says whether one more may enter beside those under way.
    pub fn has_room(&self, under_way: u32, now: Instant) -> bool {
        let is_resumed = self.resume.is_none_or(|resume| resume <= now);
        is_resumed
            && self
                .width
                .is_none_or(|width| under_way == 0 || f64::from(under_way) + 1.0 <= width)
    }

    /// Returns when the pause ends, if there is one.
    pub fn paused_until(&self) -> Option<Instant> {
        self.resume
    }

    /// Returns how many may be under way, if that is limited.
    pub fn current_limit(&self) -> Option<f64> {
        self.width
    }

    /// Says whether even one at a time was too much.
    pub fn is_shut(&self) -> bool {
        self.pauses > 0
    }

    /// Records that a request gave up because it was throttled; `under_way` includes it.
    pub fn on_throttled(&mut self, epoch: Epoch, under_way: u32, now: Instant, jitter: f64) {
        if epoch.number == self.epoch && !self.decrease_limit(epoch, under_way) {
            self.pauses = self.pauses.saturating_add(1);
            self.resume = Some(now + jittered_delay(self.pauses, jitter));
        }
    }

    /// Records that a request was throttled and is sent again a little later: at one at a time that
    /// is all the slowing down there needs to be.
    pub fn on_throttled_retrying(&mut self, epoch: Epoch, under_way: u32) {
        if epoch.number == self.epoch {
            self.decrease_limit(epoch, under_way);
        }
    }

    /// Narrows the window; says whether it was wide enough for that. Only the first of an epoch
    /// does: the other requests met the same limit.
    fn decrease_limit(&mut self, epoch: Epoch, under_way: u32) -> bool {
        self.epoch += 1;
        // A width beyond its use proves nothing. Answers come in bursts: the last request of a
        // burst may be the only one under way by the time its answer arrives.
        let concurrent = f64::from(under_way.max(epoch.under_way));
        let used = self.width.unwrap_or(WIDTH_MAX).min(concurrent);
        self.ceiling = used;
        let decrease = if self.width.is_none() {
            DECREASE_FIRST
        } else {
            DECREASE
        };
        self.width = Some((used * decrease).max(1.0));
        used > 1.0
    }

    /// Records a success: after a whole window of them there is room for one more, or a tenth where
    /// one more was too much before.
    pub fn on_success(&mut self, epoch: Epoch) {
        let Some(width) = self.width.filter(|_| epoch.number == self.epoch) else {
            return;
        };
        self.resume = None;
        if self.pauses > 0 {
            self.pauses -= 1;
            return;
        }
        let (from, to) = (self.ceiling * NEAR, self.ceiling / NEAR);
        let wider = match width {
            below if below < from => (width + 1.0 / width).min(from),
            near if near <= to => width + NEAR_STEP / width,
            _ => width + 1.0 / width,
        };
        self.width = (wider < WIDTH_MAX).then_some(wider);
    }
}

/// The circuit breaker of one dependency.
///
/// ```text
///           FAILURES_MAX in a row                its time is over, or early: one enters
/// closed ──────────────────────────▶ open ──────────────────────────────────▶ probed
///   ▲                                 │ ▲ ▲                                    │ │ │
///   ├────────── an answer ────────────┘ │ └─ no answer: longer, if in time ────┘ │ │
///   │                                   └────── inconclusive: as before ─────────┘ │
///   └────────────────────────────────── an answer ─────────────────────────────────┘
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Circuit {
    stage: CircuitState,
    /// The number of the last probe.
    probe: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CircuitState {
    /// Every request is admitted; so many failures came in a row.
    Closed { failures: u32 },
    /// No request is admitted before this moment; the circuit opened so often since the last
    /// answer.
    Open { times: u32, until: Instant },
    /// One probe is under way and the other requests wait for its result; `until` may lie ahead.
    Probed { times: u32, until: Instant },
}

/// How a request was admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The circuit was closed.
    Normal,
    /// As a probe, by its number: a probe that an answer overtook is not taken for a later one.
    Probe(u64),
}

// A hiccup hits a few requests at once; what meets nothing else for so many has lasted a while.
const FAILURES_MAX: u32 = 5;

// Soon enough that a restart at the other end costs little, and doubled each time.
const OPEN_FIRST: Duration = Duration::from_secs(5);

// One request a minute is no load, and a recovered dependency is found within that time.
const OPEN_MAX: Duration = Duration::from_secs(60);

impl Default for CircuitState {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

impl Circuit {
    /// Says whether one would be let in now.
    pub fn would_admit(&self, now: Instant) -> bool {
        match self.stage {
            CircuitState::Closed { .. } => true,
            CircuitState::Open { until, .. } => until <= now,
            CircuitState::Probed { .. } => false,
        }
    }

    /// Lets one in, if that is possible now.
    pub fn try_admit(&mut self, now: Instant) -> Option<Admission> {
        match self.stage {
            CircuitState::Closed { .. } => Some(Admission::Normal),
            CircuitState::Open { until, .. } if until <= now => self.enter_early(),
            CircuitState::Open { .. } | CircuitState::Probed { .. } => None,
        }
    }

    /// Admits a probe while none is under way, before the time is over: its key may succeed where
    /// those that failed did not.
    pub fn enter_early(&mut self) -> Option<Admission> {
        let CircuitState::Open { times, until } = self.stage else {
            return None;
        };
        *self = Self {
            stage: CircuitState::Probed { times, until },
            probe: self.probe + 1,
        };
        Some(Admission::Probe(self.probe))
    }

    /// Returns when the next probe may enter, while none may.
    pub fn opens_until(&self) -> Option<Instant> {
        match self.stage {
            CircuitState::Open { until, .. } => Some(until),
            CircuitState::Closed { .. } | CircuitState::Probed { .. } => None,
        }
    }

    /// Says whether the dependency is considered unavailable.
    pub fn is_open(&self) -> bool {
        !matches!(self.stage, CircuitState::Closed { .. })
    }

    /// Says whether a probe is under way.
    pub fn is_probed(&self) -> bool {
        matches!(self.stage, CircuitState::Probed { .. })
    }

    /// Records an answer to any request: the circuit closes.
    pub fn on_success(&mut self) {
        self.stage = CircuitState::default();
    }

    /// Records a failure; one that is no news does not open the circuit. While it is open only the
    /// probe's failure counts: requests that began before may fail long after. A probe that was
    /// admitted early leaves the time as it was.
    pub fn on_failure(&mut self, entry: Admission, is_news: bool, (now, jitter): (Instant, f64)) {
        let open = |times| CircuitState::Open {
            times,
            until: now + equal_jitter(doubled(OPEN_FIRST, times - 1, OPEN_MAX), jitter),
        };
        self.stage = match self.stage {
            CircuitState::Closed { failures } if failures + u32::from(is_news) < FAILURES_MAX => {
                CircuitState::Closed {
                    failures: failures + u32::from(is_news),
                }
            }
            CircuitState::Closed { .. } => open(1),
            CircuitState::Probed { times, until } if entry == Admission::Probe(self.probe) => {
                match until <= now {
                    true => open(times.saturating_add(1)),
                    false => CircuitState::Open { times, until },
                }
            }
            unchanged @ (CircuitState::Open { .. } | CircuitState::Probed { .. }) => unchanged,
        };
    }

    /// Records that a request ended without an answer or a failure: if it was the probe, the next
    /// may enter.
    pub fn on_abandoned(&mut self, entry: Admission) {
        if let CircuitState::Probed { times, until } = self.stage
            && entry == Admission::Probe(self.probe)
        {
            self.stage = CircuitState::Open { times, until };
        }
    }
}

/// A key by a digest: all that matters here is whether two are the same.
pub type Subject = u64;

/// The keys that fail in one bucket, and those of them that fail alone.
#[derive(Debug, Clone, Default)]
pub struct Suspects {
    /// The keys that failed since any was answered.
    failing: Vec<Subject>,
    /// The keys that failed while another succeeded, oldest first.
    alone: VecDeque<Subject>,
}

/// What a failure is evidence of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// Another key fails: the bucket may be in trouble.
    New,
    /// A key fails that has failed since the last answer.
    Repeated,
    /// A key fails that failed while other keys were served: the cause is the key.
    Own,
}

// More keys than these are beyond doubt; and they are let in before its time to a bucket that
// fails, one at a time, so they are few beside what an outage fails anyway.
const FAILING_MAX: usize = 16;

// As many keys as can fail by themselves at a time; 8 KiB for each bucket.
const ALONE_MAX: usize = 1024;

impl Suspects {
    /// Records that a key failed.
    pub fn record_failure(&mut self, subject: Subject) -> Evidence {
        if self.alone.contains(&subject) {
            return Evidence::Own;
        }
        if self.failing.contains(&subject) {
            return Evidence::Repeated;
        }
        if self.failing.len() < FAILING_MAX {
            self.failing.push(subject);
        }
        Evidence::New
    }

    /// Records that a key was written: the other keys that failed since the last answer fail alone.
    pub fn record_success(&mut self, subject: Subject) {
        self.alone.retain(|alone| *alone != subject);
        let failing = std::mem::take(&mut self.failing);
        self.alone
            .extend(failing.into_iter().filter(|failing| *failing != subject));
        let over = self.alone.len().saturating_sub(ALONE_MAX);
        self.alone.drain(..over);
    }

    /// Records that a key was answered: that the bucket can write other keys does not follow.
    pub fn record_answer(&mut self) {
        self.failing.clear();
    }

    /// Says whether a key fails by itself: other keys were served meanwhile, or few others fail of
    /// a bucket that answered something else of the same attempt.
    pub fn is_own(&self, subject: Subject, was_heard: bool) -> bool {
        self.alone.contains(&subject) || was_heard && !self.are_many()
    }

    /// Says whether so many keys fail that the bucket is the likelier cause.
    pub fn are_many(&self) -> bool {
        self.failing.len() >= FAILURES_MAX as usize
    }

    /// Says whether a key may succeed in a bucket that fails others: it did not fail itself, and
    /// few did.
    pub fn may_succeed(&self, subject: Subject) -> bool {
        self.failing.len() < FAILING_MAX
            && !self.failing.contains(&subject)
            && !self.alone.contains(&subject)
    }
}

#[cfg(test)]
mod tests;
