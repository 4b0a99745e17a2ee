//! What rules take and what they leave: prefixes, tags, delete markers, permanent deletes.

use aws_sdk_s3::primitives::ByteStream;

use crate::world::World;
use crate::world::config::Config;
use crate::world::daemon::Daemon;
use crate::world::localstack::{ARCHIVE, SOURCE};

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_with_a_prefix_rewrites_it_and_leaves_other_keys_alone() {
    let world = World::new().await;
    let mut config = world.config();
    config.rules[0] = world.rule("orders", "invoices/");
    config.rules[0].rewrite = Some("copies/of ");
    let daemon = Daemon::spawn(&config).ready().await;
    for key in [
        "invoices/",
        "invoices/2026/a b",
        "invoices",
        "other/invoices/x",
    ] {
        world.put(key, key).await;
    }
    delete(&world, "invoices/2026/a b", None).await;
    world.put("invoices/2026/a b", "again").await;
    world.drained(&daemon).await;
    world
        .comparison()
        .option("source-prefix", "invoices/")
        .option("destination-prefix", "copies/of ")
        .summary()
        .await;
    assert_eq!(world.replicas().await, ["copies/of ", "copies/of 2026/a b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_with_tags_takes_only_objects_that_carry_them() {
    takes_only(
        "tags = { tier = \"gold\", team = \"a b\" }",
        &[
            ("both", "tier=gold&team=a%20b&more=1", true),
            ("one", "tier=gold", false),
            ("other", "tier=silver", false),
            ("none", "", false),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_leaves_out_what_it_excludes_by_prefix_and_by_tag() {
    takes_only(
        "exclude_prefixes = [\"tmp*/\"], exclude_tags = { tier = [\"scratch\", \"test\"] }",
        &[
            ("gold", "tier=gold", true),
            ("none", "", true),
            ("scratch", "tier=scratch", false),
            ("test", "tier=test&team=ops", false),
            ("tmp*/1", "tier=gold", false),
            ("tmp1/1", "tier=gold", true),
        ],
    )
    .await;
}

/// Writes objects with tags, and asserts which of them a filter lets through.
async fn takes_only(filter: &str, objects: &[(&str, &str, bool)]) {
    let world = World::new().await;
    let mut config = world.config();
    config.rules[0].filter = filter.to_owned();
    config.rules[0].delete_markers = false;
    let daemon = Daemon::spawn(&config).ready().await;
    for (key, tags, _) in objects {
        let request = SOURCE
            .s3()
            .put_object()
            .bucket(&world.source)
            .key(*key)
            .body(ByteStream::from_static(b"tagged"));
        request.tagging(*tags).send().await.unwrap();
    }
    world.drained(&daemon).await;
    let taken = objects.iter().filter(|(_, _, is_taken)| *is_taken);
    let taken: Vec<&str> = taken.map(|(key, _, _)| *key).collect();
    assert_eq!(world.replicas().await, taken);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_delete_markers_a_deleted_object_stays_at_the_destination() {
    let world = World::new().await;
    let mut config = world.config();
    config.rules[0].delete_markers = false;
    let daemon = replicate_two_versions(&world, &config).await;
    delete(&world, "report", None).await;
    world.drained(&daemon).await;
    assert_eq!(world.replicas().await, ["report"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_deleted_for_good_stays_at_the_destination() {
    let world = World::new().await;
    let daemon = replicate_two_versions(&world, &world.config()).await;
    let versions = SOURCE
        .s3()
        .list_object_versions()
        .bucket(&world.source)
        .send()
        .await
        .unwrap();
    for version in versions.versions.unwrap_or_default() {
        delete(&world, "report", version.version_id.as_deref()).await;
    }
    world.drained(&daemon).await;
    let output = world.comparison().run().await;
    let text = String::from_utf8_lossy(&output.stdout);
    // The source is empty now, and the destination has both versions still.
    assert_eq!(
        text.matches("at the destination is extra").count(),
        2,
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn with_version_deletes_a_replica_goes_with_its_version_and_no_other_does() {
    let world = World::new().await;
    let mut config = world.config();
    config.rules[0].version_deletes = true;
    let daemon = replicate_two_versions(&world, &config).await;
    let versions = SOURCE
        .s3()
        .list_object_versions()
        .bucket(&world.source)
        .send()
        .await
        .unwrap();
    let older = versions
        .versions
        .unwrap_or_default()
        .into_iter()
        .find(|version| version.is_latest != Some(true));
    delete(&world, "report", older.unwrap().version_id.as_deref()).await;
    world.drained(&daemon).await;
    assert_eq!(world.assert_equal().await["replicas"], 1);
    // Removing a delete marker brings the object back, at the destination too.
    delete(&world, "report", None).await;
    world.drained(&daemon).await;
    assert_eq!(world.replicas().await, [""; 0]);
    let marked = SOURCE
        .s3()
        .list_object_versions()
        .bucket(&world.source)
        .send()
        .await
        .unwrap();
    let marker = marked.delete_markers.unwrap_or_default().remove(0);
    delete(&world, "report", marker.version_id.as_deref()).await;
    world.drained(&daemon).await;
    world.assert_equal().await;
    assert_eq!(world.replicas().await, ["report"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn latest_history_ends_with_the_newest_state_of_every_key() {
    let world = World::new().await;
    let mut config = world.config();
    config.rules[0].history = "latest";
    let daemon = Daemon::spawn(&config).ready().await;
    for round in 0..4 {
        for key in ["kept", "deleted", "restored"] {
            world.put(key, format!("{key} {round}")).await;
        }
    }
    delete(&world, "deleted", None).await;
    delete(&world, "restored", None).await;
    world.put("restored", "once more").await;
    world.drained(&daemon).await;
    assert_eq!(world.replicas().await, ["kept", "restored"]);
    for (key, wanted) in [("kept", "kept 3"), ("restored", "once more")] {
        let object = ARCHIVE
            .s3()
            .get_object()
            .bucket(&world.archive)
            .key(key)
            .send()
            .await
            .unwrap();
        assert_eq!(
            object.body.collect().await.unwrap().into_bytes(),
            wanted.as_bytes()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_content_in_a_row_keeps_its_versions_apart() {
    let world = World::new().await;
    let mut config = world.config();
    config.rules[0].encryption = "mode = \"s3\"".to_owned();
    let daemon = Daemon::spawn(&config).ready().await;
    for (key, body) in [("same", "again and again"), ("empty", "")].repeat(4) {
        world.put(key, body).await;
    }
    world.workload(120, 20, 1).summary().await;
    world.drained(&daemon).await;
    world.comparison_under_any_key().summary().await;
    let listed = ARCHIVE
        .s3()
        .list_object_versions()
        .bucket(&world.archive)
        .prefix("same")
        .send()
        .await
        .unwrap();
    assert_eq!(listed.versions.unwrap_or_default().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_source_never_had_gets_no_delete_marker() {
    let world = World::new().await;
    let daemon = world.start().await;
    delete(&world, "never written", None).await;
    delete(&world, "never written", None).await;
    world.drained(&daemon).await;
    let output = world.comparison().run().await;
    assert!(output.status.success());
    let listed = ARCHIVE
        .s3()
        .list_object_versions()
        .bucket(&world.archive)
        .send()
        .await
        .unwrap();
    assert_eq!(listed.delete_markers, None);
}

async fn replicate_two_versions(world: &World, config: &Config) -> Daemon {
    let daemon = Daemon::spawn(config).ready().await;
    world.put("report", "first").await;
    world.put("report", "second").await;
    world.drained(&daemon).await;
    world.assert_equal().await;
    daemon
}

async fn delete(world: &World, key: &str, version: Option<&str>) {
    let request = SOURCE.s3().delete_object().bucket(&world.source).key(key);
    request
        .set_version_id(version.map(str::to_owned))
        .send()
        .await
        .unwrap();
}
