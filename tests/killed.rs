//! Durable: kill -9 at any instant and a lost disk lose nothing, double nothing, and turn nothing
//! around.

use std::fs;

use crate::world::config::Config;
use crate::world::daemon::Daemon;
use crate::world::faults::{Fault, Faults};
use crate::world::{World, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn ten_kills_during_the_run_leave_no_trace() {
    survive(1, |_, _| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_kills_with_lost_disks_in_between_leave_no_trace() {
    survive(2, |config, kill| {
        if kill % 2 == 1 {
            fs::remove_dir_all(&config.state_dir).unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_outlives_the_daemon_that_dies_in_the_middle_of_its_copy() {
    let world = World::new().await;
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    let archive = world.archive.clone();
    faults.script(Fault::Hang, usize::MAX, move |seen| {
        seen.is(&archive, "PutObject")
    });
    let daemon = Daemon::spawn(&config).ready().await;
    world.put("report", "first").await;
    eventually("the copy has begun", async || faults.hits(Fault::Hang) > 0).await;
    assert!(
        world.queue.depth().await > 0,
        "the message was deleted before its task was settled"
    );
    daemon.kill().await;
    faults.clear();
    let daemon = Daemon::spawn(&config).ready().await;
    world.drained(&daemon).await;
    world.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redelivered_message_is_answered_without_a_second_replica() {
    let world = World::new().await;
    let daemon = world.start().await;
    let version = world.put("report", "first").await;
    world.drained(&daemon).await;
    for _ in 0..3 {
        world
            .queue
            .send(crate::bad_input::created(&world.source, "report", &version))
            .await;
    }
    world.drained(&daemon).await;
    world.assert_equal().await;
    assert!(
        daemon
            .metrics()
            .await
            .sum("operations_total", &[("outcome", "duplicate")])
            > 0.0
    );
}

/// Runs a workload through ten daemons of which each is killed in the middle of its work, and an
/// eleventh that finishes it.
async fn survive(seed: u32, between: impl Fn(&Config, u32)) {
    let world = World::new().await;
    let config = world.config();
    let workload = world.workload(1_000, 150, seed).option("seconds", 50);
    let kills = async {
        for kill in 0..10 {
            let daemon = Daemon::spawn(&config).ready().await;
            // The count that ends each life differs, so that kills meet different moments.
            let enough = f64::from(20 + kill * 17 % 41);
            eventually("the daemon has work", async || {
                daemon.metrics().await.sum("operations_total", &[]) >= enough
            })
            .await;
            daemon.kill().await;
            between(&config, kill);
        }
    };
    tokio::join!(workload.summary(), kills);
    let daemon = Daemon::spawn(&config).ready().await;
    world.drained(&daemon).await;
    let compared = world.assert_equal().await;
    assert!(compared["versions"].as_u64().unwrap() > 500, "{compared}");
    assert_eq!(world.parked.depth().await, 0, "nothing was parked");
}
