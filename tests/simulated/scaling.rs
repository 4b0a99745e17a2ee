//! Daemons that come and go under load, one, four, one: what a daemon that stops has in flight goes
//! on elsewhere, soon, and nothing is written twice.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::Entry;

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, SOURCE, Sim, simulate};
use crate::workload::{Body, Op, User};

const DAEMONS: usize = 4;
const KEYS: usize = 40;
const OPS: usize = 800;
/// The default of `drain_timeout`.
const DRAIN: Duration = Duration::from_secs(30);
/// How long a request that was cut off may still take effect.
const LANDING: Duration = Duration::from_secs(20);
/// For what hangs from the beginning until a drain ends: the drain, until its message shows again,
/// and what its next worker waits for what was cut off.
const PATIENCE: Duration = Duration::from_secs(5 + 30 + 20 + 23 + 10);

/// Changes keys all the time, now and then in parts.
async fn load(mut user: User) {
    let mut rng = fastrand::Rng::with_seed(7);
    for number in 0..OPS {
        let key = format!("key-{}", rng.usize(..KEYS));
        match rng.u8(..8) {
            0 => user.act(&Op::Mark { key }).await,
            kind => {
                user.act(&Op::put(
                    &key,
                    Body::numbered(number),
                    kind == 1 && number % 20 == 0,
                ))
                .await;
            }
        }
        user.finish().await;
    }
}

/// Starts three more, and stops them, while there is work.
async fn scale(sim: &mut Sim, pause: Duration) {
    sim.pass(pause).await;
    let mut others = Vec::new();
    for number in 1..DAEMONS {
        others.push(fleet::nth(sim, "", AWS, number).await);
    }
    sim.pass(pause).await;
    futures::future::join_all(others.into_iter().map(|daemon| daemon.stop())).await;
}

/// Returns how long each version took to its replica, longest first.
fn latencies(sim: &Sim) -> Vec<(Duration, String)> {
    let mut all = Vec::new();
    for key in sim.s3.keys(SOURCE) {
        // A run of markers is one, so entries are not pairs; objects are.
        let objects = |bucket| {
            sim.s3
                .history(bucket, &key)
                .into_iter()
                .filter(|entry| !entry.is_marker())
        };
        let took = objects(SOURCE)
            .zip(objects(ARCHIVE))
            .map(|(one, other)| other.landed.duration_since(one.landed));
        all.extend(took.map(|took| (took.unwrap(), key.clone())));
    }
    all.sort_unstable();
    all.reverse();
    all
}

/// Counts what each daemon wrote.
fn written(sim: &Sim) -> BTreeMap<String, usize> {
    let mut written = BTreeMap::new();
    for Entry { client, .. } in sim.net.journal().writes(ARCHIVE) {
        *written.entry(client).or_default() += 1;
    }
    written
}

fn assert_exact(sim: &Sim) {
    assert_eq!(
        written(sim).len(),
        DAEMONS,
        "all of them had work: {:?}",
        written(sim)
    );
    assert_eq!(
        judge(
            sim,
            Expect {
                alone: false,
                ..Expect::EXACT
            }
        ),
        Vec::<String>::new()
    );
}

#[test]
fn daemons_that_come_and_go_hold_nothing_back_and_write_nothing_twice() {
    for seed in 0..3 {
        simulate(seed, async |mut sim| {
            sim.share();
            sim.post_everything();
            let first = fleet::nth(&mut sim, "", AWS, 0).await;
            let user = User::new(sim.user());
            tokio::join!(load(user), scale(&mut sim, Duration::from_secs(15)));
            sim.drained().await;
            first.stop().await;
            assert_exact(&sim);
            let slowest = &latencies(&sim)[0];
            assert!(slowest.0 < DRAIN, "seed {seed}: {slowest:?}");
        });
    }
}

#[test]
fn what_a_daemon_cannot_finish_while_it_drains_goes_on_elsewhere() {
    // What was sent may land yet, so the next worker waits.
    cut_off("PutObject", DRAIN + LANDING..PATIENCE);
}

#[test]
fn what_a_drain_cuts_off_before_its_first_write_goes_on_elsewhere_at_once() {
    cut_off("GetObject", Duration::ZERO..DRAIN + LANDING);
}

/// Lets an operation of the second daemon hang, so that its drain ends with work in flight.
fn cut_off(operation: &'static str, expected: Range<Duration>) {
    simulate(9, async |mut sim| {
        sim.share();
        sim.post_everything();
        let first = fleet::nth(&mut sim, "", AWS, 0).await;
        let hangs = Place::s3(operation).client("daemon-1");
        sim.net
            .faults()
            .add(Fault::new("hangs", hangs, Effect::Silence { lands: false }));
        let user = User::new(sim.user());
        let scaled = async {
            let second = fleet::nth(&mut sim, "", AWS, 1).await;
            sim.pass(Duration::from_secs(5)).await;
            second.stop().await;
        };
        tokio::join!(load(user), scaled);
        sim.drained().await;
        first.stop().await;
        assert!(sim.net.faults().hits("hangs") > 0);
        assert_eq!(judge(&sim, Expect::IN_DOUBT), Vec::<String>::new());
        let slowest = &latencies(&sim)[0];
        assert!(expected.contains(&slowest.0), "{slowest:?}");
    });
}
