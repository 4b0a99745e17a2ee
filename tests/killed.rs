//! Durable: kill -9 at any instant and a lost disk lose nothing, double nothing, and turn nothing
//! around.

use std::collections::BTreeSet;
use std::fs;

use crate::world::config::Config;
use crate::world::daemon::Daemon;
use crate::world::faults::{Fault, Faults};
use crate::world::request::Seen;
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

fn part(seen: &Seen) -> Option<u32> {
    seen.query.get("partNumber")?.parse().ok()
}
