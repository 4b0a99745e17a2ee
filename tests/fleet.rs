//! Several daemons share a work queue: one of them at a time works on a key, and each that is there
//! has work. What becomes of them when they are killed is for `killed.rs`.

use std::time::Duration;

use tokio::time::sleep;

use crate::world::World;
use crate::world::config::Config;
use crate::world::daemon::Daemon;

#[tokio::test(flavor = "multi_thread")]
async fn daemons_that_come_and_go_under_load_share_the_work_and_write_nothing_twice() {
    let world = World::shared().await;
    let config = |number| Config {
        visibility_timeout: "30s",
        ..world.config_of(number)
    };
    let configs = [0, 1, 2].map(config);
    let first = Daemon::spawn(&configs[0]).ready().await;
    let workload = world.workload(600, 100, 33).option("seconds", 30);
    let scaled = async {
        sleep(Duration::from_secs(8)).await;
        let others = configs[1..].iter();
        let others = others.map(|config| Daemon::spawn(config).ready());
        let others = futures::future::join_all(others).await;
        sleep(Duration::from_secs(8)).await;
        for mut other in others {
            assert_busy(&other).await;
            other.signal("TERM").await;
            assert!(other.exit().await.success(), "{}", other.log());
        }
    };
    tokio::join!(workload.summary(), scaled);
    world.all_drained(std::slice::from_ref(&first)).await;
    assert_busy(&first).await;
    let compared = world.assert_equal().await;
    assert!(compared["versions"].as_u64().unwrap() > 300, "{compared}");
    assert_eq!(compared["open_uploads"], 0, "{compared}");
    assert_eq!(world.parked.depth().await, 0, "nothing was parked");
}

async fn assert_busy(daemon: &Daemon) {
    let replicated = [("outcome", "replicated")];
    let replicated = daemon.metrics().await.sum("operations_total", &replicated);
    assert!(replicated > 0.0, "it had no work:\n{}", daemon.log());
}
