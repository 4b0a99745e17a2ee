//! `status` of one object: each version at each destination, asked by either side's id, of the
//! daemon or without one.

use serde_json::Value;

use crate::world::config::Config;
use crate::world::daemon::{Daemon, printed, run};
use crate::world::faults::{Fault, Faults};
use crate::world::localstack::SOURCE;
use crate::world::{World, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn what_became_of_each_version_is_told_by_either_id() {
    let world = World::new().await;
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    let archive = world.archive.clone();
    faults.script(Fault::AccessDenied, usize::MAX, move |seen| {
        seen.is(&archive, "PutObject") && seen.key.contains("refused")
    });
    let daemon = Daemon::spawn(&config).ready().await;
    world.put("report", "first").await;
    world.put("report", "second").await;
    let delete = SOURCE.s3().delete_object().bucket(&world.source);
    delete.key("report").send().await.unwrap();
    world.put("refused", "first").await;
    eventually("it is parked", async || {
        daemon.metrics().await.sum("parked", &[]) == 1.0
    })
    .await;
    world.drained(&daemon).await;

    let report = format!("s3://{}/report", world.source);
    let versions = versions(&config, &report).await;
    assert_eq!(words(&versions), ["COMPLETED"; 3]);
    assert_eq!(versions[0]["is_delete_marker"], true);
    for version in &versions {
        let original = version["version_id"].as_str().unwrap();
        let replica = version["replica_version_id"].as_str().unwrap();
        for asked in [
            format!("{report}?versionId={original}"),
            format!("s3://{}/report?versionId={replica}", world.archive),
        ] {
            let found = self::versions(&config, &asked).await;
            assert_eq!(found, std::slice::from_ref(version), "{asked}");
        }
    }

    let refused = format!("s3://{}/refused", world.source);
    let parked = self::versions(&config, &refused).await;
    assert_eq!(words(&parked), ["FAILED"]);
    assert_eq!(parked[0]["reason"], "DstPutObjectNotPermitted");
    let table = run(&["status", &refused], &config.path).await;
    let table = printed(&table);
    assert!(
        table.contains("FAILED") && table.contains("fix: allow the action"),
        "{table}"
    );

    // Without a daemon the buckets and the ledger tell.
    daemon.kill().await;
    world.put("late", "first").await;
    let late = format!("s3://{}/late", world.source);
    assert_eq!(words(&self::versions(&config, &late).await), ["PENDING"]);
    assert_eq!(self::versions(&config, &report).await, versions);
    assert_eq!(self::versions(&config, &refused).await, parked);
    for unknown in [
        "s3://nobodys/report",
        &format!("{report}?versionId=none"),
        "report",
    ] {
        let output = run(&["status", unknown], &config.path).await;
        assert_eq!(output.status.code(), Some(1), "{}", printed(&output));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_rule_takes_is_skipped_and_says_why() {
    let world = World::new().await;
    let mut config = world.config();
    config.rules[0].filter = "prefix = \"kept/\", size_max = \"10B\"".to_owned();
    let daemon = Daemon::spawn(&config).ready().await;
    world.put("kept/large", "more than ten bytes").await;
    world.put("other", "small").await;
    world.drained(&daemon).await;
    let large = versions(&config, &format!("s3://{}/kept/large", world.source)).await;
    assert_eq!(
        (words(&large), &large[0]["reason"]),
        (vec!["SKIPPED"], &"size".into())
    );
    let other = format!("s3://{}/other", world.source);
    let answer = status(&config, &other).await;
    assert_eq!(answer["keys"], Value::Array(Vec::new()));
    assert_eq!(answer["refusals"][0]["cause"], "prefix", "{answer}");
}

async fn status(config: &Config, object: &str) -> Value {
    let output = run(&["status", object, "--json"], &config.path).await;
    assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Asks for an object that one rule is about, and returns its versions.
async fn versions(config: &Config, object: &str) -> Vec<Value> {
    let answer = status(config, object).await;
    let [key] = answer["keys"].as_array().unwrap().as_slice() else {
        panic!("not one key: {answer}")
    };
    key["versions"].as_array().unwrap().clone()
}

fn words(versions: &[Value]) -> Vec<&str> {
    let words = versions.iter().map(|version| version["status"].as_str());
    words.map(Option::unwrap).collect()
}
