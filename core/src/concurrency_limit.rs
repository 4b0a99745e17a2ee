//! How many requests may be under way at a dependency that throttles. The window narrows for all
//! requests together, and each success widens it again: additive increase, multiplicative decrease.
//! Time and jitter come in as arguments.

use std::time::Instant;

use crate::retry;

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
            self.resume = Some(now + retry::jittered_delay(self.pauses, jitter));
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// Clients without end press through a window at a server that serves so many at once and
    /// throttles all beyond; answers take one to three ticks each.
    struct World {
        window: ConcurrencyLimit,
        now: Instant,
        limit: u32,
        under_way: VecDeque<Request>,
        durations: Vec<u32>,
        serving: u32,
        served: u32,
        throttled: u32,
    }

    struct Request {
        ticks_left: u32,
        epoch: Epoch,
        granted: bool,
    }

    impl World {
        fn new(limit: u32, durations: Vec<u32>) -> Self {
            let (window, now) = (ConcurrencyLimit::default(), Instant::now());
            Self {
                window,
                now,
                limit,
                under_way: VecDeque::new(),
                durations,
                serving: 0,
                served: 0,
                throttled: 0,
            }
        }

        fn tick(&mut self) {
            self.now += Duration::from_millis(50);
            for _ in 0..self.under_way.len() {
                self.advance();
            }
            while self.count() < 100 && self.window.has_room(self.count(), self.now) {
                let granted = self.serving < self.limit;
                self.serving += u32::from(granted);
                self.durations.rotate_left(1);
                self.under_way.push_back(Request {
                    ticks_left: self.durations[0],
                    epoch: self.window.current_epoch(self.count()),
                    granted,
                });
            }
        }

        /// Lets the request that is first in line get on by a tick.
        fn advance(&mut self) {
            let Some(mut request) = self.under_way.pop_front() else {
                return;
            };
            request.ticks_left -= 1;
            if request.ticks_left > 0 {
                self.under_way.push_back(request);
            } else if request.granted {
                (self.serving, self.served) = (self.serving - 1, self.served + 1);
                self.window.on_success(request.epoch);
            } else {
                self.throttled += 1;
                self.window
                    .on_throttled(request.epoch, self.count() + 1, self.now, 0.5);
            }
        }

        fn ticks(&mut self, ticks: u32) {
            (self.served, self.throttled) = (0, 0);
            (0..ticks).for_each(|_| self.tick());
        }

        fn count(&self) -> u32 {
            u32::try_from(self.under_way.len()).unwrap()
        }
    }

    fn durations() -> impl Strategy<Value = Vec<u32>> {
        proptest::collection::vec(1..=3u32, 1..50)
    }

    proptest! {
        // Each case is a long simulation.
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn under_pressure_the_width_settles_at_what_the_server_grants(limit in 1..60u32, durations in durations()) {
            let mut world = World::new(limit, durations);
            world.ticks(2_000);
            (world.served, world.throttled) = (0, 0);
            for _ in 0..2_000 {
                world.tick();
                let width = world.window.current_limit().expect("a window under pressure is limited");
                prop_assert!(width >= (f64::from(limit) * DECREASE).floor().max(1.0), "{width} of {limit}");
                prop_assert!(world.count() <= limit + 2, "{} of {limit}", world.count());
            }
            // Where one too many is as much again as is granted, each try is the worst.
            let tolerable = if limit < 3 { world.served / 5 } else { world.served / 10 };
            prop_assert!(world.throttled <= tolerable, "{} beside {}", world.throttled, world.served);
        }

        #[test]
        fn what_is_well_again_is_not_limited(limit in 0..60u32, durations in durations()) {
            let mut world = World::new(limit, durations);
            world.ticks(500);
            prop_assert!(world.window.current_limit().is_some());
            world.limit = u32::MAX;
            // 64 widths of three ticks each, after a pause of a minute at the most.
            world.ticks(200 + 1200);
            prop_assert_eq!(world.window.current_limit(), None);
        }

        #[test]
        fn a_server_that_grants_nothing_is_asked_ever_less(durations in durations()) {
            let mut world = World::new(0, durations);
            world.ticks(2_000);
            world.ticks(2_000);
            prop_assert!(world.throttled <= 5, "asked {} times in 100 s", world.throttled);
        }
    }

    #[test]
    fn requests_that_are_throttled_together_narrows_the_window_once() {
        let mut window = ConcurrencyLimit::default();
        let (epoch, now) = (window.current_epoch(39), Instant::now());
        for _ in 0..40 {
            window.on_throttled(epoch, 40, now, 0.5);
        }
        assert_eq!(window.current_limit(), Some(20.0));
    }

    #[test]
    fn a_request_that_is_throttled_alone_goes_on_without_a_pause() {
        let (mut window, now) = (ConcurrencyLimit::default(), Instant::now());
        for _ in 0..5 {
            window.on_throttled_retrying(window.current_epoch(1), 2);
        }
        assert_eq!(window.current_limit(), Some(1.0));
        assert!(window.has_room(0, now) && !window.is_shut());
    }

    #[test]
    fn a_success_from_before_tells_nothing_of_the_width_since() {
        let mut window = ConcurrencyLimit::default();
        let (epoch, now) = (window.current_epoch(9), Instant::now());
        window.on_throttled(epoch, 10, now, 0.5);
        window.on_success(epoch);
        assert_eq!(window.current_limit(), Some(5.0));
        window.on_success(window.current_epoch(0));
        assert!(window.current_limit() > Some(5.0));
    }

    #[test]
    fn where_one_at_a_time_is_too_much_there_are_pauses_that_grow_and_end() {
        let (mut window, mut now) = (ConcurrencyLimit::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..5 {
            window.on_throttled(window.current_epoch(0), 1, now, 1.0);
            assert!(!window.has_room(0, now));
            let resumes = window.paused_until().unwrap();
            pauses.push((resumes - now).as_millis());
            now = resumes;
            assert!(window.has_room(0, now) && !window.has_room(1, now));
        }
        assert_eq!(pauses, [200, 400, 800, 1600, 3200]);
        // One each for the pauses, the rest for the room.
        for _ in 0..9 {
            window.on_success(window.current_epoch(0));
        }
        assert!(!window.is_shut() && window.has_room(1, now));
    }
}
