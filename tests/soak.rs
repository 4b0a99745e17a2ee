//! Everything at once, for a while: the daemon on LocalStack, users that write, and all that can go
//! wrong between, drawn by a seed. Once it is over all becomes quiet, both histories are equal, and
//! the daemon is no larger than it was early on.
//!
//! `S3_REPLICATOR_SOAK_SECONDS` says for how long, `S3_REPLICATOR_SEED` what is drawn.

mod troubles;
mod weather;

use std::collections::BTreeMap;
use std::env;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use crate::world::config::Config;
use crate::world::daemon::{Daemon, printed, run};
use crate::world::hostile::Front;
use crate::world::localstack::endpoint;
use crate::world::{World, eventually};
use troubles::Buckets;
use weather::Weather;

// What `make test` has time for.
const SECONDS: u64 = 20;

// What LocalStack can take beside the daemon's own requests.
const OPERATIONS_A_SECOND: u64 = 3;

// Fewer would prove little; the seed of every test run draws more.
const STRUCK_MIN: usize = 4;
const ROUNDS_MAX: u32 = 6;

// A message that failed again and again is back within a quarter of an hour.
const QUIET_WITHIN: Duration = Duration::from_secs(20 * 60);

// Bodies under way have up to 40 MiB at any time, and the ledger its buffers; what grows without an
// end has passed that within minutes.
const GROWTH_MAX: u64 = 64 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn all_becomes_quiet_and_equal_once_nothing_is_wrong_any_more() {
    let seconds = number("S3_REPLICATOR_SOAK_SECONDS").unwrap_or(SECONDS);
    let (time, seed) = (Duration::from_secs(seconds), seed());
    let series = u32::try_from(seed % 1_000_000).unwrap();
    eprintln!("S3_REPLICATOR_SEED={seed} draws the same again");
    let world = World::new().await;
    let front = Front::before(&endpoint()).await;
    let config = Config {
        endpoint: front.url.clone(),
        memory: "40MiB",
        ..world.config()
    };
    let buckets = Buckets {
        source: world.source.clone(),
        archive: world.archive.clone(),
    };
    let daemon = Daemon::spawn(&config).ready().await;
    let weather = Weather::over(&front, troubles::all(&buckets), seed);
    let operations = u32::try_from(seconds * OPERATIONS_A_SECOND).unwrap();
    let workload = world.workload(operations.max(60), 60, series);
    let workload = workload.option("seconds", seconds);
    let mut memory = Memory::default();
    tokio::select! {
        _done = async { tokio::join!(workload.summary(), weather.change(time)) } => {}
        () = memory.watch(&daemon, time / 3) => {}
    }
    // On a machine that is slow, few requests meet a kind of trouble before it passes.
    for round in 1..ROUNDS_MAX {
        if struck(&weather) >= STRUCK_MIN {
            break;
        }
        let more = world.workload(60, 60, series + round);
        let more = more.option("seconds", seconds);
        tokio::join!(more.summary(), weather.change(time));
    }
    front.clear();
    quiet(&world, &daemon).await;
    let parked = parked(&config).await;
    retry(&config, &daemon).await;
    quiet(&world, &daemon).await;
    let late = daemon.memory_bytes();
    let [early, peak, end] =
        [memory.early, memory.peak, late].map(|bytes| format!("{} MiB", bytes >> 20));
    eprintln!("struck: {:?}\nparked: {parked:?}", weather.hits());
    eprintln!("memory: {early} in the first third, {peak} at most, {end} at the end");
    let struck = struck(&weather);
    assert!(
        struck >= STRUCK_MIN,
        "only {struck} kinds of trouble struck"
    );
    world.assert_equal().await;
    assert_well(&daemon).await;
    assert!(late <= memory.early + GROWTH_MAX, "it grows");
}

/// Sees that no task panicked, and that the daemon calls itself healthy and ready.
async fn assert_well(daemon: &Daemon) {
    let panics = daemon.metrics().await.sum("task_panics_total", &[]);
    assert_eq!(panics, 0.0, "{}", daemon.log());
    assert_eq!(
        (daemon.page("healthz").await, daemon.page("readyz").await),
        (Some(200), Some(200))
    );
}

/// Counts the kinds of trouble that something met.
fn struck(weather: &Weather) -> usize {
    weather.hits().values().filter(|hits| **hits > 0).count()
}

/// How much memory the daemon had, in bytes.
#[derive(Debug, Default)]
struct Memory {
    /// At most, early on.
    early: u64,
    /// At most.
    peak: u64,
}

impl Memory {
    /// Looks at it again and again.
    async fn watch(&mut self, daemon: &Daemon, early: Duration) {
        let began = Instant::now();
        loop {
            self.note(daemon.memory_bytes(), began.elapsed() < early);
            sleep(Duration::from_millis(500)).await;
        }
    }

    fn note(&mut self, bytes: u64, is_early: bool) {
        self.peak = self.peak.max(bytes);
        if is_early {
            self.early = self.peak;
        }
    }
}

/// What is drawn is the same at every test run; at a soak it is another each time, unless it is
/// said.
fn seed() -> u64 {
    let is_soak = env::var_os("S3_REPLICATOR_SOAK_SECONDS").is_some();
    number("S3_REPLICATOR_SEED").unwrap_or_else(|| if is_soak { fastrand::u64(..) } else { 1 })
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is a number"))
    })
}

/// Waits until no message is left and nothing is at work.
async fn quiet(world: &World, daemon: &Daemon) {
    let is_quiet = async {
        let mut times = 0;
        while times < 10 {
            let pending = daemon.metrics().await.sum("operations_pending", &[]);
            let is_idle = pending == 0.0 && world.queue.depth().await == 0;
            times = if is_idle { times + 1 } else { 0 };
            sleep(Duration::from_millis(500)).await;
        }
    };
    let is_quiet = timeout(QUIET_WITHIN, is_quiet).await;
    assert!(
        is_quiet.is_ok(),
        "{} messages are left:\n{}",
        world.queue.depth().await,
        daemon.log()
    );
}

/// Counts what is parked by its reasons.
async fn parked(config: &Config) -> BTreeMap<String, usize> {
    let listed = printed(&run(&["failures", "list", "--json"], &config.path).await);
    let listed: Value = serde_json::from_str(&listed).unwrap_or_else(|_| panic!("{listed}"));
    let mut reasons = BTreeMap::new();
    for failure in listed["failures"].as_array().unwrap() {
        *reasons
            .entry(failure["reason"].as_str().unwrap().to_owned())
            .or_default() += 1;
    }
    reasons
}

/// Tries again what is parked, until nothing is.
async fn retry(config: &Config, daemon: &Daemon) {
    eventually("what was parked is done", async || {
        let output = run(&["failures", "retry", "--all"], &config.path).await;
        assert!(output.status.success(), "{}", printed(&output));
        sleep(Duration::from_secs(2)).await;
        daemon.metrics().await.sum("parked", &[]) == 0.0
    })
    .await;
}
