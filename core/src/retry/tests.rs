//! Deadlines and waits; the window of a server that throttles, and the circuit of one that does not
//! answer.

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

#[test]
fn a_large_body_has_the_time_that_a_slow_line_needs() {
    assert_eq!(body_timeout(0), Duration::from_secs(30));
    assert_eq!(body_timeout(1 << 20), Duration::from_secs(38));
    assert_eq!(
        complete_timeout(PART_BYTES_MIN),
        body_timeout(PART_BYTES_MIN)
    );
    assert_eq!(complete_timeout(PART_BYTES_MIN + 1), COMPLETE_TIMEOUT_MAX);
}

#[test]
fn the_ceiling_doubles_from_200_ms_to_a_minute() {
    let ceilings =
        [1, 2, 3, 8, 9, 10, 11, u32::MAX].map(|attempt| delay_ceiling(attempt).as_millis());
    assert_eq!(
        ceilings,
        [200, 400, 800, 25_600, 51_200, 60_000, 60_000, 60_000]
    );
    assert_eq!(delay_ceiling(0), delay_ceiling(1));
}

#[test]
fn the_ends_of_the_jitter_give_the_floor_and_the_ceiling() {
    assert_eq!(jittered_delay(4, 0.0), FLOOR);
    assert_eq!(jittered_delay(4, 1.0), delay_ceiling(4));
}

#[test]
fn a_jitter_that_is_no_fraction_does_no_harm() {
    for jitter in [f64::NAN, f64::INFINITY, 2.0, f64::MAX] {
        assert_eq!(jittered_delay(3, jitter), delay_ceiling(3));
    }
    for jitter in [f64::NEG_INFINITY, -1.0, -0.0] {
        assert_eq!(jittered_delay(3, jitter), FLOOR);
    }
}

#[test]
fn an_equal_jitter_gives_half_of_the_ceiling_or_more() {
    let ceiling = Duration::from_secs(60);
    assert_eq!(equal_jitter(ceiling, 0.0), ceiling / 2);
    assert_eq!(equal_jitter(ceiling, f64::NAN), ceiling);
}

proptest! {
    #[test]
    fn a_wait_is_never_nothing_and_never_above_the_cap(attempt in any::<u32>(), jitter in any::<f64>()) {
        let delay = jittered_delay(attempt, jitter);
        prop_assert!(delay >= FLOOR);
        prop_assert!(delay <= delay_ceiling(attempt) && delay <= CAP);
    }

    #[test]
    fn the_ceiling_never_falls(attempt in 0..u32::MAX) {
        prop_assert!(delay_ceiling(attempt) <= delay_ceiling(attempt + 1));
    }

    #[test]
    fn more_jitter_is_never_a_shorter_wait(attempt in 0..20u32, a in 0.0..=1.0_f64, b in 0.0..=1.0_f64) {
        prop_assert!(jittered_delay(attempt, a.min(b)) <= jittered_delay(attempt, a.max(b)));
    }
}
