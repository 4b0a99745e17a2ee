//! Random histories × random delivery × random faults × one to three daemons × crashes anywhere ×
//! lost disks: after quiescence the destination's history is the source's, and no state that it
//! ever showed was older than the one before.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::story::{Ending, Story};

// What `make test` has time for. `make soak` plays until its time is over.
const STORIES: u64 = 300;

// Some troubles are rare: so many stories are played until each has struck.
const STORIES_MAX: u64 = 900;

// One that fails tells enough; more would only hide it.
const FAILURES_MAX: usize = 4;

#[test]
fn random_histories_keep_every_promise() {
    let batch = match std::env::var("S3_REPLICATOR_SEED") {
        Ok(seed) => Batch::one(seed.parse().expect("S3_REPLICATOR_SEED is a number")),
        Err(_) => Batch::of_env(),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(|| batch.play())).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    eprintln!(
        "{} histories ran clean",
        batch.clean.load(Ordering::Relaxed)
    );
    assert!(
        failures.is_empty(),
        "{} histories broke a promise:\n{}",
        failures.len(),
        failures.join("\n")
    );
    // What never struck was not tested. One story need not have everything.
    let unmet = batch.befell.into_inner().unwrap();
    let unmet: Vec<&String> = unmet
        .iter()
        .filter(|(_, times)| **times == 0)
        .map(|(what, _)| what)
        .collect();
    assert!(
        batch.end != STORIES_MAX || unmet.is_empty(),
        "never happened in any history: {unmet:?}"
    );
}

/// Seeds that several threads take one by one.
struct Batch {
    next: AtomicU64,
    end: u64,
    until: Option<Instant>,
    clean: AtomicU64,
    /// How often each trouble befell a daemon.
    befell: Mutex<BTreeMap<String, u64>>,
}

impl Batch {
    fn new(seeds: std::ops::Range<u64>, until: Option<Instant>) -> Self {
        Self {
            next: AtomicU64::new(seeds.start),
            end: seeds.end,
            until,
            clean: AtomicU64::new(0),
            befell: Mutex::default(),
        }
    }

    fn one(seed: u64) -> Self {
        Self::new(seed..seed + 1, None)
    }

    /// The same stories at every test run; at a soak others each time, for as long as it says.
    fn of_env() -> Self {
        let Ok(seconds) = std::env::var("S3_REPLICATOR_SOAK_SECONDS") else {
            return Self::new(0..STORIES_MAX, None);
        };
        let seconds = Duration::from_secs(
            seconds
                .parse()
                .expect("S3_REPLICATOR_SOAK_SECONDS is a number"),
        );
        Self::new(
            fastrand::u64(STORIES_MAX..u64::MAX / 2)..u64::MAX,
            Some(Instant::now() + seconds),
        )
    }

    fn play(&self) -> Vec<String> {
        let mut failures = Vec::new();
        while let Some(seed) = self.take().filter(|_| failures.len() < FAILURES_MAX) {
            let story = Story::draw(seed);
            let ending = story.tell();
            self.count(&ending);
            match ending.wrong.is_empty() {
                true => drop(self.clean.fetch_add(1, Ordering::Relaxed)),
                false => {
                    // A soak goes on for long after that.
                    eprintln!("S3_REPLICATOR_SEED={seed} broke a promise");
                    failures.push(report(&story, &ending));
                }
            }
        }
        failures
    }

    fn count(&self, ending: &Ending) {
        let mut befell = self.befell.lock().unwrap();
        let mut add = |what: &str, times: u64| *befell.entry(what.to_owned()).or_default() += times;
        for fate in &ending.fates {
            add("death", fate.deaths.len() as u64);
            add("lost disk", u64::from(fate.lost_disks));
        }
        ending
            .hits
            .iter()
            .for_each(|(what, times)| add(what, *times));
    }

    fn take(&self) -> Option<u64> {
        let seed = self.next.fetch_add(1, Ordering::Relaxed);
        let is_over = match self.until {
            Some(until) => Instant::now() > until,
            None => seed >= STORIES && self.end == STORIES_MAX && self.has_met_all(),
        };
        (seed < self.end && !is_over).then_some(seed)
    }

    fn has_met_all(&self) -> bool {
        self.befell.lock().unwrap().values().all(|times| *times > 0)
    }
}

/// Its last tasks are parked while the circuit is open, and nothing else probes the destination.
#[test]
fn what_is_parked_is_tried_again_though_the_circuit_is_open() {
    let ending = Story::draw(4_388_267_135_914_757_253).tell();
    assert_eq!(ending.wrong, Vec::<String>::new());
}

/// One daemon wrote a marker; the other one took it for two later ones of its run.
#[test]
fn a_marker_that_another_daemon_counts_as_a_later_one_stays() {
    let ending = Story::draw(4_388_267_135_914_754_191).tell();
    assert_eq!(ending.wrong, Vec::<String>::new());
}

#[test]
fn a_seed_plays_the_same_again() {
    for seed in 0..5 {
        let story = Story::draw(seed);
        let (one, other) = (story.tell(), story.tell());
        assert_eq!(
            one.journal.to_string(),
            other.journal.to_string(),
            "seed {seed}"
        );
        let told = |Ending {
                        fates,
                        wrong,
                        hits,
                        lasted,
                        ..
                    }: &Ending| {
            let fates: Vec<_> = fates
                .iter()
                .map(|fate| (&fate.status, &fate.deaths, fate.lost_disks))
                .collect();
            format!("{fates:?} {wrong:?} {hits:?} {lasted:?}")
        };
        assert_eq!(told(&one), told(&other), "seed {seed}");
    }
}

fn report(story: &Story, ending: &Ending) -> String {
    format!(
        "S3_REPLICATOR_SEED={} plays it again\n{story:#?}\n  deaths {:?}, took {:?}, faults {:?}\n  {}\n",
        story.seed,
        ending
            .fates
            .iter()
            .map(|fate| (&fate.deaths, fate.lost_disks))
            .collect::<Vec<_>>(),
        ending.lasted,
        ending.hits,
        ending.wrong.join("\n  ")
    )
}
