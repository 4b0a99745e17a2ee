//! `s3-replicator backfill`: what was there before arrives, a rule's mistake is undone, and whoever
//! stops the command loses nothing.

use serde_json::Value;

use crate::world::config::Config;
use crate::world::daemon::{Daemon, interrupt, printed, run};
use crate::world::localstack::SOURCE;
use crate::world::{World, eventually};

/// Later than everything: no version is too young to be judged.
const EVER: &str = "2999-01-01T00:00:00Z";

#[tokio::test(flavor = "multi_thread")]
async fn what_was_there_before_is_replicated_and_what_is_equal_is_not_sent() {
    let world = World::shared().await;
    SOURCE.silence(&world.source).await;
    world.workload(150, 40, 11).summary().await;
    let config = world.config();
    let daemon = Daemon::spawn(&config).ready().await;
    let report = config.state_dir.join("../report.csv");
    let options = ["--report", report.to_str().unwrap()];

    let counted = backfill(&config, &["--dry-run"]).await;
    assert!(counted["keys"].as_u64().unwrap() > 20, "{counted}");
    assert!(
        counted["cost"]["dollars"].as_f64().unwrap() > 0.0,
        "{counted}"
    );
    assert_eq!(
        (&counted["sent"], world.replicas().await.len()),
        (&0.into(), 0)
    );

    let first = backfill(&config, &options).await;
    // A key that only ever had delete markers misses nothing.
    let sent = counted["keys"].as_u64().unwrap() - counted["equal"].as_u64().unwrap();
    assert_eq!(first["sent"], sent, "{first}");
    world.all_drained(std::slice::from_ref(&daemon)).await;
    world.assert_equal().await;
    assert_verified(&config).await;
    let rows = std::fs::read_to_string(&report).unwrap();
    let sent = rows.lines().filter(|row| row.contains(",succeeded,"));
    assert_eq!(first["sent"], sent.count());

    // Lists prove nothing of what a KMS key encrypts: a hint for it does no harm.
    world.put("late", "after all").await;
    backfill(&config, &["--prefix", "late"]).await;
    world.all_drained(std::slice::from_ref(&daemon)).await;
    assert!(world.replica_exists("late").await);
    world.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_in_a_filter_is_undone() {
    let world = World::new().await;
    let mut config = world.config();
    config.rules[0].filter = "prefix = \"invocies/\"".to_owned();
    config.rules[0].encryption = "mode = \"s3\"".to_owned();
    let daemon = Daemon::spawn(&config).ready().await;
    for (key, body) in [
        ("invoices/1", "one"),
        ("invoices/2", "two"),
        ("invoices/1", "three"),
    ] {
        world.put(key, body).await;
    }
    world.drained(&daemon).await;
    assert_eq!(world.replicas().await, Vec::<String>::new());

    config.rules[0].filter = "prefix = \"invoices/\"".to_owned();
    config.write();
    daemon.signal("HUP").await;
    eventually("the rules are reloaded", async || {
        daemon.log().contains("rules reloaded")
    })
    .await;
    let summary = backfill(&config, &[]).await;
    assert_eq!(summary["sent"], 2, "{summary}");
    world.drained(&daemon).await;
    world.comparison_under_any_key().summary().await;
    assert_verified(&config).await;
    let again = backfill(&config, &[]).await;
    assert_eq!(
        (&again["sent"], &again["equal"]),
        (&0.into(), &2.into()),
        "{again}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_interrupted_says_how_it_goes_on_and_does() {
    const KEYS: usize = 300;
    let world = World::shared().await;
    SOURCE.silence(&world.source).await;
    for key in 0..KEYS {
        world.put(&format!("k{key}"), "body").await;
    }
    // No worker makes room for more than 200 hints, so it waits.
    let config = world.config();
    let work = world.work.as_ref().unwrap();
    let output = interrupt(
        &["backfill", "--rule", "orders"],
        config.write(),
        async || work.depth().await >= 200,
    )
    .await;
    let text = printed(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("the same command goes on"), "{text}");
    let daemon = Daemon::spawn(&config).ready().await;
    let summary = backfill(&config, &[]).await;
    assert_eq!(summary["sent"], KEYS, "{summary}");
    eventually("all is there", async || {
        world.replicas().await.len() == KEYS
    })
    .await;
    world.all_drained(std::slice::from_ref(&daemon)).await;
    world.assert_equal().await;
}

async fn assert_verified(config: &Config) {
    let arguments = ["verify", "--rule", "orders", "--as-of", EVER];
    let output = run(&arguments, &config.path).await;
    let text = printed(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("are present and equal"), "{text}");
}

/// Runs the command to its end, and returns its summary.
async fn backfill(config: &Config, more: &[&str]) -> Value {
    let arguments = [&["backfill", "--rule", "orders", "--json"], more].concat();
    let output = run(&arguments, &config.path).await;
    assert!(output.status.success(), "{}", printed(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}
