//! Circuit breaker for one remote dependency: after several failures in a row no request is sent
//! but one probe at a time, at growing intervals, until an answer comes. Which failures count is
//! decided by key: a bucket in trouble fails every key, so the failure of a key that failed while
//! the bucket served other keys proves nothing about the bucket. Time and jitter come in as
//! arguments.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::retry::{doubled, equal_jitter};

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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn opened(now: Instant) -> Circuit {
        let mut circuit = Circuit::default();
        for _ in 0..FAILURES_MAX {
            circuit.on_failure(Admission::Normal, true, (now, 1.0));
        }
        circuit
    }

    #[test]
    fn failures_in_a_row_open_it_and_an_answer_between_them_does_not() {
        let (mut circuit, now) = (Circuit::default(), Instant::now());
        for _ in 0..3 * FAILURES_MAX {
            circuit.on_failure(Admission::Normal, true, (now, 1.0));
            circuit.on_failure(Admission::Normal, true, (now, 1.0));
            circuit.on_success();
        }
        assert!(!circuit.is_open());
        assert_eq!(opened(now).opens_until(), Some(now + OPEN_FIRST));
    }

    #[test]
    fn one_probes_when_the_time_is_over_and_the_others_wait_for_it() {
        let now = Instant::now();
        let mut circuit = opened(now);
        assert_eq!(circuit.try_admit(now), None);
        let then = now + OPEN_FIRST;
        assert_eq!(circuit.try_admit(then), Some(Admission::Probe(1)));
        assert_eq!(circuit.try_admit(then + OPEN_MAX), None);
        circuit.on_success();
        assert_eq!(circuit.try_admit(then), Some(Admission::Normal));
    }

    #[test]
    fn each_failed_probe_doubles_the_time_up_to_a_minute() {
        let mut now = Instant::now();
        let mut circuit = opened(now);
        let mut times = Vec::new();
        for _ in 0..6 {
            let until = circuit.opens_until().unwrap();
            times.push((until - now).as_secs());
            now = until;
            let probe = circuit.try_admit(now).unwrap();
            circuit.on_failure(probe, true, (now, 1.0));
        }
        assert_eq!(times, [5, 10, 20, 40, 60, 60]);
    }

    #[test]
    fn a_probe_that_learnt_nothing_makes_place_for_another() {
        let now = Instant::now();
        let mut circuit = opened(now);
        let then = now + OPEN_FIRST;
        assert_eq!(circuit.try_admit(then), Some(Admission::Probe(1)));
        circuit.on_abandoned(Admission::Normal);
        assert_eq!(circuit.try_admit(then), None);
        circuit.on_abandoned(Admission::Probe(1));
        assert_eq!(circuit.try_admit(then), Some(Admission::Probe(2)));
    }

    #[test]
    fn what_was_begun_before_it_opened_changes_nothing_by_failing_late() {
        let now = Instant::now();
        let mut circuit = opened(now);
        let before = circuit;
        circuit.on_failure(Admission::Normal, true, (now + OPEN_MAX, 1.0));
        assert_eq!(circuit, before);
        assert_eq!(
            circuit.try_admit(now + OPEN_FIRST),
            Some(Admission::Probe(1))
        );
        circuit.on_failure(Admission::Normal, true, (now + OPEN_MAX, 1.0));
        assert!(circuit.is_probed());
    }

    #[test]
    fn a_probe_that_an_answer_overtook_does_not_speak_for_a_later_one() {
        let now = Instant::now();
        let mut circuit = opened(now);
        let overtaken = circuit.try_admit(now + OPEN_FIRST).unwrap();
        circuit.on_success();
        (0..FAILURES_MAX).for_each(|_| circuit.on_failure(Admission::Normal, true, (now, 1.0)));
        assert_eq!(
            circuit.try_admit(now + OPEN_FIRST),
            Some(Admission::Probe(2))
        );
        circuit.on_failure(overtaken, true, (now + OPEN_FIRST, 1.0));
        circuit.on_abandoned(overtaken);
        assert!(circuit.is_probed());
    }

    #[test]
    fn failures_that_are_no_news_do_not_open_it() {
        let (mut circuit, now) = (Circuit::default(), Instant::now());
        (1..FAILURES_MAX).for_each(|_| circuit.on_failure(Admission::Normal, true, (now, 1.0)));
        (0..20).for_each(|_| circuit.on_failure(Admission::Normal, false, (now, 1.0)));
        assert!(!circuit.is_open());
        circuit.on_failure(Admission::Normal, true, (now, 1.0));
        assert!(circuit.is_open());
    }

    #[test]
    fn a_probe_that_comes_early_ends_the_waiting_or_leaves_it_as_it_was() {
        let now = Instant::now();
        for is_answered in [true, false] {
            let mut circuit = opened(now);
            let early = circuit.enter_early().unwrap();
            assert_eq!(circuit.enter_early(), None, "one at a time");
            assert_eq!(circuit.try_admit(now + OPEN_MAX), None);
            if is_answered {
                circuit.on_success();
                assert!(!circuit.is_open());
            } else {
                circuit.on_failure(early, true, (now, 1.0));
                assert_eq!(circuit.opens_until(), Some(now + OPEN_FIRST));
            }
        }
        assert_eq!(
            Circuit::default().enter_early(),
            None,
            "nothing to find out"
        );
    }

    #[test]
    fn a_key_that_fails_while_another_is_answered_fails_alone_until_it_is_answered() {
        let mut suspects = Suspects::default();
        assert_eq!(suspects.record_failure(1), Evidence::New);
        assert_eq!(suspects.record_failure(1), Evidence::Repeated);
        assert!(!suspects.is_own(1, false));
        suspects.record_success(2);
        assert_eq!(suspects.record_failure(1), Evidence::Own);
        assert!(suspects.is_own(1, false) && !suspects.is_own(2, false));
        suspects.record_success(1);
        assert_eq!(suspects.record_failure(1), Evidence::New);
    }

    #[test]
    fn an_answer_that_is_no_write_proves_nothing() {
        let mut suspects = Suspects::default();
        suspects.record_failure(1);
        suspects.record_answer();
        assert_eq!(suspects.record_failure(1), Evidence::New);
    }

    #[test]
    fn keys_that_all_fail_are_not_to_blame_though_something_was_heard() {
        let mut suspects = Suspects::default();
        for subject in 0..4 {
            suspects.record_failure(subject);
            assert!(suspects.is_own(subject, true) && !suspects.is_own(subject, false));
        }
        suspects.record_failure(4);
        assert!(!suspects.is_own(4, true));
    }

    #[test]
    fn a_key_that_is_new_may_succeed_as_long_as_few_fail() {
        let mut suspects = Suspects::default();
        suspects.record_failure(0);
        assert!(!suspects.may_succeed(0) && suspects.may_succeed(1));
        (1..16).for_each(|subject| assert_eq!(suspects.record_failure(subject), Evidence::New));
        assert!(!suspects.may_succeed(16));
        suspects.record_success(16);
        assert!(
            suspects.may_succeed(16) && !suspects.may_succeed(3),
            "it fails alone"
        );
    }

    #[test]
    fn only_so_many_are_remembered_and_the_oldest_are_forgotten_first() {
        let mut suspects = Suspects::default();
        for subject in 0..2000 {
            suspects.record_failure(subject);
            suspects.record_success(Subject::MAX);
        }
        assert_eq!(suspects.alone.len(), ALONE_MAX);
        assert!(suspects.is_own(1999, false) && !suspects.is_own(0, false));
    }

    #[derive(Debug, Clone, Copy)]
    enum Happening {
        Enter,
        EnterEarly,
        Answer,
        Fail,
        Leave,
        Wait(u64),
    }

    fn happenings() -> impl Strategy<Value = Vec<(Happening, usize, f64)>> {
        let happening = prop_oneof![
            3 => Just(Happening::Enter),
            1 => Just(Happening::EnterEarly),
            1 => Just(Happening::Answer),
            6 => Just(Happening::Fail),
            1 => Just(Happening::Leave),
            2 => (0..90_000u64).prop_map(Happening::Wait),
        ];
        proptest::collection::vec((happening, any::<usize>(), 0.0..=1.0), 1..300)
    }

    proptest! {
        #[test]
        fn whatever_happens_there_is_one_probe_at_most_and_never_a_dead_end(all in happenings()) {
            let (mut circuit, mut now) = (Circuit::default(), Instant::now());
            let mut inside: Vec<Admission> = Vec::new();
            for (happening, which, jitter) in all {
                let one = (!inside.is_empty()).then(|| which % inside.len().max(1));
                match (happening, one) {
                    (Happening::Enter, _) => inside.extend(circuit.try_admit(now)),
                    (Happening::EnterEarly, _) => inside.extend(circuit.enter_early()),
                    (Happening::Wait(milliseconds), _) => now += Duration::from_millis(milliseconds),
                    (Happening::Answer, Some(one)) => {
                        inside.remove(one);
                        circuit.on_success();
                    }
                    (Happening::Fail, Some(one)) => circuit.on_failure(inside.remove(one), which % 4 > 0, (now, jitter)),
                    (Happening::Leave, Some(one)) => circuit.on_abandoned(inside.remove(one)),
                    (Happening::Answer | Happening::Fail | Happening::Leave, None) => {}
                }
                // A probe is under way exactly when the circuit says so: no request waits for a
                // probe that is not there.
                let probes = inside.iter().filter(|entry| **entry == Admission::Probe(circuit.probe)).count();
                prop_assert!(probes <= 1);
                prop_assert!(probes == 1 || !circuit.is_probed());
                if let Some(until) = circuit.opens_until() {
                    prop_assert!(until <= now + OPEN_MAX);
                }
            }
            // All requests inside leave, and within a minute one is let in.
            inside.into_iter().for_each(|entry| circuit.on_abandoned(entry));
            prop_assert!(circuit.would_admit(now + OPEN_MAX));
        }
    }
}
