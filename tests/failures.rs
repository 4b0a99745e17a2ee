//! Parked work is listed with its reason and tried again by command; what is in the dead-letter
//! queue counts again once it is redriven.

use crate::bad_input::created;
use crate::world::config::Config;
use crate::world::daemon::{Daemon, printed, run};
use crate::world::faults::{Fault, Faults};
use crate::world::localstack::SOURCE;
use crate::world::{World, eventually};

/// Runs `failures` and returns what it printed, if it ended well, or else what it complained of.
async fn failures(config: &Config, arguments: &[&str]) -> Result<String, String> {
    let output = run(&[&["failures"], arguments].concat(), &config.path).await;
    if output.status.success() {
        Ok(printed(&output))
    } else {
        Err(printed(&output))
    }
}

async fn parked(daemon: &Daemon) -> f64 {
    daemon.metrics().await.sum("parked", &[])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_parked_is_listed_with_its_reason_and_arrives_when_it_is_retried() {
    let world = World::new().await;
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    let archive = world.archive.clone();
    faults.script(Fault::AccessDenied, usize::MAX, move |seen| {
        seen.is(&archive, "PutObject")
    });
    let daemon = Daemon::spawn(&config).ready().await;
    for key in ["invoices/1", "invoices/2"] {
        world.put(key, key).await;
    }
    eventually("both are parked", async || parked(&daemon).await == 2.0).await;
    world.drained(&daemon).await;

    let listed = failures(&config, &["list"]).await.unwrap();
    let source = format!("s3://{}/invoices/1", world.source);
    assert!(
        listed.contains(&source) && listed.contains("DstPutObjectNotPermitted"),
        "{listed}"
    );
    let json = failures(&config, &["list", "--key", &source, "--json"])
        .await
        .unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["total"], &json["failures"][0]["key"]),
        (&1.into(), &"invoices/1".into()),
        "{json}"
    );

    faults.clear();
    let retried = failures(&config, &["retry", "--key", &source])
        .await
        .unwrap();
    assert!(retried.contains("trying 1 parked tasks again"), "{retried}");
    eventually("one of them is done", async || parked(&daemon).await == 1.0).await;
    assert!(
        !world.replica_exists("invoices/2").await,
        "nobody asked for it"
    );
    let reason = [
        "retry",
        "--rule",
        "orders",
        "--reason",
        "DstPutObjectNotPermitted",
    ];
    assert!(
        failures(&config, &reason)
            .await
            .unwrap()
            .contains("trying 1 parked tasks again")
    );
    eventually("nothing is parked", async || parked(&daemon).await == 0.0).await;
    assert_eq!(world.assert_equal().await["replicas"], 2);
    assert!(
        failures(&config, &["retry", "--all"])
            .await
            .unwrap()
            .contains("nothing is parked that matches")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_redriven_from_the_dead_letter_queue_settles_what_was_parked() {
    let world = World::new().await;
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    let archive = world.archive.clone();
    faults.script(Fault::AccessDenied, usize::MAX, move |seen| {
        seen.is(&archive, "PutObject")
    });
    let daemon = Daemon::spawn(&config).ready().await;
    world.put("report", "first").await;
    eventually("it is parked", async || parked(&daemon).await == 1.0).await;
    world.drained(&daemon).await;
    faults.clear();
    for body in world.parked.take().await {
        world.queue.send(body).await;
    }
    eventually("nothing is parked", async || parked(&daemon).await == 0.0).await;
    world.drained(&daemon).await;
    assert_eq!(world.assert_equal().await["replicas"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_an_unknown_bucket_arrives_when_it_is_redriven_after_a_rule_has_it() {
    let world = World::new().await;
    SOURCE.silence(&world.source).await;
    let mut config = world.config();
    config.rules[0].source = "someone-elses-bucket".to_owned();
    let daemon = Daemon::spawn(&config).ready().await;
    let version = world.put("report", "early").await;
    world
        .queue
        .send(created(&world.source, "report", &version))
        .await;
    eventually("it is parked", async || world.parked.depth().await == 1).await;
    world.drained(&daemon).await;
    let unfit = [("rule", ""), ("reason", "BucketUnknown")];
    assert_eq!(daemon.metrics().await.sum("failures_total", &unfit), 1.0);
    assert_eq!(
        parked(&daemon).await,
        0.0,
        "the dead-letter queue alone has it"
    );

    config.rules[0].source.clone_from(&world.source);
    config.write();
    daemon.signal("HUP").await;
    eventually("it arrives", async || {
        // Before the rules are reloaded it is parked anew.
        for body in world.parked.take().await {
            world.queue.send(body).await;
        }
        world.replica_exists("report").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_in_the_command_is_answered_with_what_would_be_right() {
    let world = World::new().await;
    let config = world.config();
    let daemon = Daemon::spawn(&config).ready().await;
    let complaint = async |arguments: &[&str]| failures(&config, arguments).await.unwrap_err();
    let rule = complaint(&["list", "--rule", "order"]).await;
    assert!(rule.contains("did you mean \"orders\"?"), "{rule}");
    let reason = complaint(&["retry", "--reason", "DstBucketNotfound"]).await;
    assert!(
        reason.contains("did you mean \"DstBucketNotFound\"?"),
        "{reason}"
    );
    let key = complaint(&["retry", "--key", "orders/report"]).await;
    assert!(key.contains("s3://bucket/key"), "{key}");
    let nothing = complaint(&["retry"]).await;
    assert!(nothing.contains("--all"), "{nothing}");
    daemon.kill().await;
    let nobody = complaint(&["list"]).await;
    assert!(
        nobody.contains("is it running, and does it listen there?"),
        "{nobody}"
    );
}
