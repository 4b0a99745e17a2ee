//! `status` of one object: each version at each destination, asked by either side's id, of the
//! daemon or without one.

use serde_json::Value;

use crate::world::config::Config;
use crate::world::daemon::{Daemon, printed, run};
use crate::world::faults::{Fault, Faults};
use crate::world::hostile::{self, Hostile};
use crate::world::http::{self, StatusCode};
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
    for (unknown, code) in [
        ("s3://nobodys/report", 1),
        (&format!("{report}?versionId=none"), 1),
        ("report", 78),
    ] {
        let output = run(&["status", unknown], &config.path).await;
        assert_eq!(output.status.code(), Some(code), "{}", printed(&output));
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

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_neither_side_has_is_not_found() {
    let world = Hostile::new().await;
    let config = world.config();
    let foreign = world
        .user()
        .put_object()
        .bucket(hostile::ARCHIVE)
        .key("foreign");
    let foreign = foreign.body(b"one".to_vec().into()).send().await.unwrap();
    let foreign = foreign.version_id.unwrap();
    let daemon = Daemon::spawn(&config).ready().await;
    let asked = [
        ("s3://orders/absent", "s3://orders/absent"),
        ("s3://orders-replica/absent", "s3://orders-replica/absent"),
        ("s3://orders/foreign?versionId=none", "\"none\""),
        ("s3://nope/report", "no rule has the bucket nope,"),
    ];
    let assert_absent = async || {
        for (object, named) in asked {
            let output = run(&["status", object], &config.path).await;
            let text = printed(&output);
            assert_eq!(output.status.code(), Some(1), "{object}: {text}");
            assert!(text.contains(named), "{object}: {text}");
        }
    };
    assert_absent().await;
    for (object, named) in asked {
        let url = format!("http://{}/api/v1/objects?uri={object}", config.listen);
        let (status, body) = http::get(&url).await.unwrap();
        assert_eq!(status, StatusCode::NOT_FOUND, "{object}: {body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert!(body["error"].as_str().unwrap().contains(named), "{body}");
    }
    // Another writer's object is none that is absent.
    let url = format!("s3://orders-replica/foreign?versionId={foreign}");
    let answer = status(&config, &url).await;
    assert_eq!(answer["keys"][0]["unmanaged"], serde_json::json!([foreign]));
    daemon.kill().await;
    assert_absent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_has_a_version_id_in_it_can_be_asked_for() {
    let world = Hostile::new().await;
    let config = world.config();
    let _daemon = Daemon::spawn(&config).ready().await;
    let key = "report?versionId=3HL4kqt";
    let ids = [
        world.put(key, "first").await,
        world.put(key, "second").await,
    ];
    world.replicated(key).await;
    let all = versions(&config, &format!("s3://orders/{key}?versionId=")).await;
    assert_eq!(all.len(), 2, "{all:?}");
    let one = versions(&config, &format!("s3://orders/{key}?versionId={}", ids[0])).await;
    assert_eq!(one[0]["version_id"], ids[0]);
    assert_eq!(one.len(), 1, "{one:?}");
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
