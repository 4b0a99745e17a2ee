//! Random histories × random delivery × random faults × one to three daemons × crashes anywhere ×
//! lost disks: after quiescence the destination's history is the source's, and no state that it ever
//! showed was older than the one before.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::story::{Ending, Story};

// What `make test` has time for. `make soak` plays until its time is over.
const STORIES: u64 = 300;

#[test]
fn random_histories_keep_every_promise() {
    if let Ok(seed) = std::env::var("S3_REPLICATOR_SEED") {
        let story = Story::draw(seed.parse().expect("S3_REPLICATOR_SEED is a number"));
        let ending = story.tell();
        assert!(ending.wrong.is_empty(), "{}", report(&story, &ending));
        return;
    }
    let soak = std::env::var("S3_REPLICATOR_SOAK_SECONDS").ok().map(|seconds| seconds.parse().expect("seconds"));
    let until = soak.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let first = if soak.is_some() { fastrand::u64(1_000_000..u64::MAX / 2) } else { 0 };
    let next = AtomicU64::new(first);
    let clean = AtomicU64::new(0);
    let is_over = |seed: u64| match until {
        Some(until) => Instant::now() > until,
        None => seed >= first + STORIES,
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let tell = || {
            let mut failures = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if is_over(seed) || failures.len() > 3 {
                    return failures;
                }
                let story = Story::draw(seed);
                let ending = story.tell();
                if ending.wrong.is_empty() {
                    clean.fetch_add(1, Ordering::Relaxed);
                } else {
                    failures.push(report(&story, &ending));
                }
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(tell)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    eprintln!("{} histories ran clean", clean.load(Ordering::Relaxed));
    assert!(failures.is_empty(), "{} histories broke a promise:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn a_seed_plays_the_same_again() {
    for seed in 0..5 {
        let story = Story::draw(seed);
        let (one, other) = (story.tell(), story.tell());
        assert_eq!(format!("{one:?}"), format!("{other:?}"), "seed {seed}");
    }
}

fn report(story: &Story, ending: &Ending) -> String {
    format!(
        "S3_REPLICATOR_SEED={} plays it again\n{story:#?}\n  deaths {:?}, took {:?}, faults {:?}\n  {}\n",
        story.seed,
        ending.fates.iter().map(|fate| (&fate.deaths, fate.lost_disks)).collect::<Vec<_>>(),
        ending.lasted,
        ending.hits,
        ending.wrong.join("\n  ")
    )
}
