//! SIGTERM drains and exits 0, SIGHUP brings new rules; neither drops work.

use std::fs;

use crate::world::daemon::Daemon;
use crate::world::faults::{Fault, Faults};
use crate::world::{World, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_finishes_what_is_at_work_and_exits_0() {
    let world = World::new().await;
    let mut daemon = world.start().await;
    for number in 0..40 {
        world
            .put(&format!("report {number}"), vec![b'x'; 200_000])
            .await;
    }
    eventually("the daemon is at work", async || {
        daemon.metrics().await.sum("operations_total", &[]) > 2.0
    })
    .await;
    daemon.signal("TERM").await;
    let status = daemon.exit().await;
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(
        !daemon.log().contains("drain timeout is over"),
        "what was at work was not finished"
    );
    let daemon = world.start().await;
    world.drained(&daemon).await;
    world.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_releases_what_it_cannot_finish() {
    let world = World::new().await;
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    config.drain_timeout = "1s";
    // If the message were not released it would stay hidden for longer than the test waits.
    config.visibility_timeout = "30m";
    let archive = world.archive.clone();
    faults.script(Fault::Hang, usize::MAX, move |seen| {
        seen.is(&archive, "PutObject")
    });
    let mut daemon = Daemon::spawn(&config).ready().await;
    world.put("report", "first").await;
    eventually("the copy has begun", async || faults.hits(Fault::Hang) > 0).await;
    daemon.signal("TERM").await;
    let status = daemon.exit().await;
    assert_eq!(status.code(), Some(0), "{status}");
    faults.clear();
    let daemon = Daemon::spawn(&config).ready().await;
    world.drained(&daemon).await;
    world.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_brings_new_rules_and_a_bad_file_keeps_the_old_ones() {
    let world = World::new().await;
    let mut config = world.config();
    config.rules = vec![world.rule("reports", "reports/")];
    let daemon = Daemon::spawn(&config).ready().await;

    config.rules.push(world.rule("images", "images/"));
    config.write();
    daemon.signal("HUP").await;
    arrives_sooner_or_later(&world, "images").await;

    let lines = daemon.log().lines().count();
    fs::write(&config.path, "rules = \"none\"\nsurprise = 1\n").unwrap();
    daemon.signal("HUP").await;
    let new_lines = || daemon.log().lines().skip(lines).collect::<String>();
    eventually("the log says what is wrong", async || {
        new_lines().contains("surprise")
    })
    .await;
    arrives_sooner_or_later(&world, "reports").await;
    arrives_sooner_or_later(&world, "images").await;

    world.drained(&daemon).await;
    assert_eq!(daemon.page("readyz").await, Some(200));
}

/// Writes new objects until one of them is replicated: when exactly new rules begin is not
/// promised.
async fn arrives_sooner_or_later(world: &World, prefix: &str) {
    let mut number = 0;
    eventually("an object of the prefix arrives", async || {
        number += 1;
        world
            .put(&format!("{prefix}/{}-{number}", world.archive), "new")
            .await;
        for written in 1..=number {
            if world
                .replica_exists(&format!("{prefix}/{}-{written}", world.archive))
                .await
            {
                return true;
            }
        }
        false
    })
    .await;
}
