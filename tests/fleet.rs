//! Several daemons share a work queue: one of them at a time works on a key, whatever becomes of
//! the others.

use std::fs;
use std::time::Duration;

use tokio::time::sleep;

use crate::world::World;
use crate::world::config::Config;
use crate::world::daemon::Daemon;

const DAEMONS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn three_daemons_replicate_exactly() {
    let world = World::shared().await;
    let daemons = start(&configs(&world)).await;
    world
        .workload(1_000, 150, 31)
        .option("seconds", 50)
        .summary()
        .await;
    world.all_drained(&daemons).await;
    compare(&world).await;
    let mut busy = 0;
    for daemon in &daemons {
        let replicated = daemon
            .metrics()
            .await
            .sum("operations_total", &[("outcome", "replicated")]);
        busy += usize::from(replicated > 0.0);
    }
    assert_eq!(busy, DAEMONS, "all of them had work");
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_and_lost_disks_among_three_daemons_leave_no_trace() {
    let world = World::shared().await;
    let configs = configs(&world);
    let mut daemons = start(&configs).await;
    let workload = world.workload(1_000, 150, 32).option("seconds", 50);
    let kills = async {
        for kill in 0..12 {
            sleep(Duration::from_secs(4)).await;
            let config = &configs[kill % DAEMONS];
            daemons.remove(0).kill().await;
            lose_every_other_disk(config, kill);
            daemons.push(Daemon::spawn(config).ready().await);
        }
    };
    tokio::join!(workload.summary(), kills);
    world.all_drained(&daemons).await;
    compare(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn daemons_that_come_and_go_under_load_write_nothing_twice() {
    let world = World::shared().await;
    let configs = configs(&world);
    let first = Daemon::spawn(&configs[0]).ready().await;
    let workload = world.workload(600, 100, 33).option("seconds", 30);
    let scaled = async {
        sleep(Duration::from_secs(8)).await;
        let others = start(&configs[1..]).await;
        sleep(Duration::from_secs(8)).await;
        for mut other in others {
            other.signal("TERM").await;
            assert!(other.exit().await.success(), "{}", other.log());
        }
    };
    tokio::join!(workload.summary(), scaled);
    world.all_drained(std::slice::from_ref(&first)).await;
    compare(&world).await;
}

fn lose_every_other_disk(config: &Config, kill: usize) {
    if kill % 2 == 1 {
        fs::remove_dir_all(&config.state_dir).unwrap();
    }
}

fn configs(world: &World) -> Vec<Config> {
    let config = |number| Config {
        visibility_timeout: "30s",
        ..world.config_of(number)
    };
    (0..DAEMONS).map(config).collect()
}

async fn start(configs: &[Config]) -> Vec<Daemon> {
    futures::future::join_all(configs.iter().map(|config| Daemon::spawn(config).ready())).await
}

async fn compare(world: &World) {
    let compared = world.assert_equal().await;
    assert!(compared["versions"].as_u64().unwrap() > 300, "{compared}");
    assert_eq!(compared["open_uploads"], 0, "{compared}");
    assert_eq!(world.parked.depth().await, 0, "nothing was parked");
}
