//! The ledger's disk: full for a while, or damaged. Neither is passed over, and neither loses what
//! was promised.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, prlimit};

use crate::world::config::Config;
use crate::world::daemon::{Daemon, printed, run};
use crate::world::eventually;
use crate::world::hostile::{ARCHIVE, Hostile, Reply};

/// Lets the daemon's files grow no more, or again: to a process that has `SIGXFSZ` ignored that is
/// a full disk, for which no one needs to be root.
fn set_full(daemon: &Daemon, is_full: bool) {
    let limit = Rlimit {
        current: is_full.then_some(0),
        maximum: None,
    };
    prlimit(Some(daemon.process()), Resource::Fsize, limit).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_at_once_and_work_goes_on_when_there_is_room() {
    let world = Hostile::new().await;
    let config = world.config();
    let daemon = Daemon::spawn_under("trap '' XFSZ", &config).ready().await;
    world.put("before", b"one".to_vec()).await;
    world.replicated("before").await;
    world.drained().await;
    set_full(&daemon, true);
    for number in 0..40 {
        world
            .put(&format!("during/{number}"), b"two".to_vec())
            .await;
    }
    eventually("readiness is gone", async || {
        daemon.page("readyz").await == Some(503)
    })
    .await;
    let metrics = daemon.metrics().await;
    assert_eq!(metrics.sum("ledger_up", &[]), 0.0);
    assert!(metrics.sum("ledger_failures_total", &[("kind", "write")]) >= 1.0);
    assert!(
        world.waiting() > 0,
        "nothing is settled that is not on record"
    );
    let told = run(&["status"], &config.path).await;
    assert!(
        printed(&told).contains("the ledger cannot be written"),
        "{}",
        printed(&told)
    );
    set_full(&daemon, false);
    let daemon = daemon.ready().await;
    for number in 0..40 {
        world.replicated(&format!("during/{number}")).await;
    }
    world.drained().await;
    assert_eq!(daemon.metrics().await.sum("ledger_up", &[]), 1.0);
    assert!(daemon.log().contains("the ledger can be written again"));
}

/// Parks some tasks, and kills the daemon.
async fn with_parked(world: &Hostile, config: &Config) {
    world.answer(
        |seen| seen.is(ARCHIVE, "PutObject"),
        Reply::refusal("403 Forbidden", "AccessDenied", "scripted"),
    );
    let daemon = Daemon::spawn(config).ready().await;
    for number in 0..PARKED {
        world.put(&format!("{number}"), b"one".to_vec()).await;
    }
    world.drained().await;
    daemon.kill().await;
}

const PARKED: usize = 20;

/// Writes 16 other bytes into the largest of the ledger's files of a kind, a third of the way in.
fn damage(config: &Config, extension: &str) {
    let files = fs::read_dir(config.state_dir.join("ledger"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let of_kind = files.filter(|path| path.extension().is_some_and(|found| found == extension));
    let path: PathBuf = of_kind
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    let at = fs::metadata(&path).unwrap().len() / 3;
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(b"\x5a\xa5was written on!", at)
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_ledger_is_refused_by_name_and_mended_by_command() {
    let world = Hostile::new().await;
    let config = world.config();
    with_parked(&world, &config).await;
    damage(&config, "log");
    let mut daemon = Daemon::spawn(&config);
    assert_eq!(daemon.exit().await.code(), Some(65), "{}", daemon.log());
    assert!(
        daemon.log().contains("is damaged") && daemon.log().contains("s3-replicator ledger repair")
    );
    assert_eq!(ledger("check", &config.path).await, Some(65));
    assert_eq!(ledger("repair", &config.path).await, Some(0));
    assert_eq!(ledger("check", &config.path).await, Some(0));
    assert_eq!(ledger("compact", &config.path).await, Some(0));
    let daemon = Daemon::spawn(&config).ready().await;
    assert_eq!(ledger("check", &config.path).await, Some(0));
    assert_eq!(ledger("compact", &config.path).await, Some(1), "in use");
    let kept = daemon.metrics().await.sum("parked", &[]);
    assert!(kept > 0.0 && kept < PARKED as f64, "{kept} were kept");
    // What was lost is in the dead-letter queue.
    world.clear();
    assert_eq!(
        world.sqs.messages(crate::world::hostile::DEAD).len(),
        PARKED
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_records_are_read_back_from_the_destination_and_told() {
    let world = Hostile::new().await;
    let config = world.config();
    for number in 0..KEYS {
        world.put(&format!("{number:04}"), b"one".to_vec()).await;
    }
    let daemon = Daemon::spawn(&config).ready().await;
    world.drained().await;
    daemon.kill().await;
    // What the log had is in a table after the next start.
    Daemon::spawn(&config).ready().await.kill().await;
    damage(&config, "sst");
    let daemon = Daemon::spawn(&config).ready().await;
    for number in 0..KEYS {
        world.put(&format!("{number:04}"), b"two".to_vec()).await;
    }
    for number in 0..KEYS {
        world.replicated(&format!("{number:04}")).await;
    }
    world.drained().await;
    assert_eq!(daemon.page("readyz").await, Some(503));
    assert!(
        daemon
            .metrics()
            .await
            .sum("ledger_failures_total", &[("kind", "damage")])
            >= 1.0
    );
    let told = run(&["status"], &config.path).await;
    assert!(
        told.status.success() && printed(&told).contains("s3-replicator ledger repair"),
        "{}",
        printed(&told)
    );
    for number in 0..KEYS {
        let versions = world.s3.history(ARCHIVE, &format!("{number:04}")).len();
        assert_eq!(versions, 2, "{number:04} has one replica of each version");
    }
}

const KEYS: usize = 300;

async fn ledger(verb: &str, config: &Path) -> Option<i32> {
    run(&["ledger", verb], config).await.status.code()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_directory_is_for_the_daemons_user_alone() {
    let world = Hostile::new().await;
    let config = world.config();
    // As a version left it that did not care.
    fs::create_dir_all(&config.state_dir).unwrap();
    fs::set_permissions(&config.state_dir, fs::Permissions::from_mode(0o755)).unwrap();
    world.put("a", b"one".to_vec()).await;
    let _daemon = Daemon::spawn_under("umask 022", &config).ready().await;
    world.replicated("a").await;
    let mut all = vec![config.state_dir.clone()];
    while let Some(path) = all.pop() {
        let metadata = fs::metadata(&path).unwrap();
        let wanted = if metadata.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(
            metadata.permissions().mode() & 0o777,
            wanted,
            "{}",
            path.display()
        );
        if metadata.is_dir() {
            all.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
    }
}
