//! A start that cannot succeed says why, by name, and ends; one that can succeed later keeps
//! trying.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use tokio::time::sleep;

use crate::world::config::{Config, free_address};
use crate::world::daemon::Daemon;
use crate::world::faults::Faults;
use crate::world::localstack::{SOURCE, unique};
use crate::world::{World, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_appears_later_is_waited_for() {
    let world = World::new().await;
    let mut config = world.config();
    let address = free_address();
    config.endpoint = format!("http://{address}");
    world.put("report", "early").await;
    let daemon = Daemon::spawn(&config);
    eventually("the daemon answers", async || {
        daemon.page("readyz").await.is_some()
    })
    .await;
    assert_eq!(
        daemon.page("readyz").await,
        Some(503),
        "ready without its queue"
    );
    // Any number of failed attempts may pass; a second of them is more than one.
    sleep(Duration::from_secs(1)).await;
    assert_eq!(
        daemon.page("readyz").await,
        Some(503),
        "ready without its queue"
    );
    let _endpoint = Faults::open_at(&address).await;
    let daemon = daemon.ready().await;
    world.drained(&daemon).await;
    world.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_queue_is_named_and_waited_for() {
    let world = World::new().await;
    let mut config = world.config();
    let name = unique("not-yet");
    config.queue_url = config
        .queue_url
        .replace(config.queue_url.rsplit('/').next().unwrap(), &name);
    let daemon = Daemon::spawn(&config);
    eventually("the log names the queue", async || {
        daemon.log().contains(&name)
    })
    .await;
    eventually("the daemon answers", async || {
        daemon.page("readyz").await.is_some()
    })
    .await;
    assert_eq!(
        daemon.page("readyz").await,
        Some(503),
        "ready without its queue"
    );
    assert_eq!(SOURCE.create_queue(&name).await, config.queue_url);
    daemon.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_that_cannot_be_written_is_named() {
    let world = World::new().await;
    let mut config = world.config();
    // Below a file no user can make a directory, not even root.
    let file = config.path.with_extension("file");
    fs::write(&file, "").unwrap();
    config.state_dir = file.join("state");
    let named = config.state_dir.display().to_string();
    ends_and_names(&config, &[&named]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_in_use_by_another_daemon_is_named() {
    let world = World::new().await;
    let first = world.config();
    let _running = Daemon::spawn(&first).ready().await;
    let mut second = world.config();
    second.path = first.path.with_file_name("second.toml");
    let named = second.state_dir.display().to_string();
    ends_and_names(&second, &[&named, "another"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() {
    let world = World::new().await;
    let mut config = world.config();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    config.listen = taken.local_addr().unwrap().to_string();
    let named = config.listen.clone();
    ends_and_names(&config, &[&named]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_queue_shares_the_work() {
    let world = World::new().await;
    let first = world.start().await;
    let second = Daemon::spawn(&world.config_of(1)).ready().await;
    for number in 0..40 {
        world
            .put(&format!("report {number}"), format!("body {number}"))
            .await;
    }
    world.drained(&first).await;
    world.drained(&second).await;
    world.assert_equal().await;
}

async fn ends_and_names(config: &Config, texts: &[&str]) {
    let mut daemon = Daemon::spawn(config);
    let status = daemon.exit().await;
    assert_eq!(status.code(), Some(1), "{status}");
    let log = daemon.log();
    for text in texts {
        assert!(log.contains(text), "{text:?} is not in the log");
    }
}
