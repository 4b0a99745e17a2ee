//! Durable: kill -9 at any instant and a lost disk lose nothing, double nothing, and turn nothing
//! around.

use std::collections::BTreeSet;
use std::fs;

use crate::world::config::Config;
use crate::world::daemon::Daemon;
use crate::world::faults::{Fault, Faults};
use crate::world::oracle::Script;
use crate::world::request::Seen;
use crate::world::{World, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn kills_and_lost_disks_of_one_daemon_leave_no_trace() {
    let world = World::new().await;
    let configs = [world.config()];
    // Each start waits 20 s, so work piles up for it.
    let workload = world.workload(500, 100, 2).option("seconds", 25);
    survive(&world, &configs, 5, workload).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_and_lost_disks_among_three_daemons_leave_no_trace() {
    let world = World::shared().await;
    let config = |number| Config {
        visibility_timeout: "30s",
        ..world.config_of(number)
    };
    let configs = [0, 1, 2].map(config);
    let workload = world.workload(1_000, 150, 32).option("seconds", 50);
    survive(&world, &configs, 9, workload).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_after_a_kill_and_repeats_no_part() {
    let world = World::new().await;
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    // An eighth of the memory is a part, and seven have room.
    config.memory = "40MiB";
    let archive = world.archive.clone();
    let is_of_the_rest = move |seen: &Seen| {
        seen.is(&archive, "UploadPart") && part(seen).is_some_and(|number| number > 4)
    };
    faults.script(Fault::Hang, usize::MAX, is_of_the_rest);
    let daemon = Daemon::spawn(&config).ready().await;
    world
        .put(
            "large",
            (0..55u32 << 17)
                .flat_map(|word| u64::from(word).to_le_bytes())
                .collect::<Vec<u8>>(),
        )
        .await;
    // Seven are on their way, so four have been written down.
    eventually("the first parts are there", async || {
        faults.hits(Fault::Hang) == 7
    })
    .await;
    daemon.kill().await;
    faults.clear();
    let daemon = Daemon::spawn(&config).ready().await;
    world.drained(&daemon).await;
    assert_eq!(world.assert_equal().await["open_uploads"], 0);
    let journal = faults.journal();
    let archive = &world.archive;
    let asked = |operation| {
        journal
            .iter()
            .filter(move |seen| seen.is(archive, operation))
    };
    assert_eq!(asked("CreateMultipartUpload").count(), 1);
    let mut parts: Vec<u32> = asked("UploadPart")
        .filter(|seen| seen.fault.is_none())
        .filter_map(part)
        .collect();
    parts.sort_unstable();
    assert_eq!(parts, (1..=11).collect::<Vec<u32>>());
    let uploads: BTreeSet<&String> = ["UploadPart", "CompleteMultipartUpload"]
        .into_iter()
        .flat_map(asked)
        .filter_map(|seen| seen.query.get("uploadId"))
        .collect();
    assert_eq!(uploads.len(), 1, "{uploads:?}");
}

/// Kills daemons in the middle of their work while a workload runs, one after the other, and lets
/// each go on; some lose their disk. What each place in the code leaves behind is for
/// `tests/simulated/deaths.rs`.
async fn survive(world: &World, configs: &[Config], kills: usize, workload: Script) {
    let mut daemons = Vec::new();
    for config in configs {
        daemons.push(Daemon::spawn(config).ready().await);
    }
    let kill_some = async {
        for kill in 0..kills {
            let at = kill % configs.len();
            // The count that ends each life differs, so that kills meet different moments.
            let enough = f64::from(u32::try_from(10 + kill * 17 % 41).unwrap());
            eventually("the daemon has work", async || {
                daemons[at].metrics().await.sum("operations_total", &[]) >= enough
            })
            .await;
            daemons.remove(at).kill().await;
            // Of three daemons another one each time, which then dies again with its new disk.
            if kill % 2 == 1 {
                fs::remove_dir_all(&configs[at].state_dir).unwrap();
            }
            daemons.insert(at, Daemon::spawn(&configs[at]).ready().await);
        }
    };
    tokio::join!(workload.summary(), kill_some);
    world.all_drained(&daemons).await;
    let compared = world.assert_equal().await;
    assert!(compared["versions"].as_u64().unwrap() > 250, "{compared}");
    assert_eq!(compared["open_uploads"], 0, "{compared}");
    assert_eq!(world.parked.depth().await, 0, "nothing was parked");
}

fn part(seen: &Seen) -> Option<u32> {
    seen.query.get("partNumber")?.parse().ok()
}
