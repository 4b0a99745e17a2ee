//! `s3-replicator verify`: a history that was replicated is equal, and whatever is broken at the
//! destination afterwards is found and named, nothing else.

use std::collections::BTreeMap;

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Tag, Tagging};
use serde_json::Value;

use crate::adopted::rclone;
use crate::world::World;
use crate::world::config::{Config, Rule};
use crate::world::daemon::{Daemon, printed, run};
use crate::world::localstack::{ARCHIVE, SOURCE};

/// Later than everything: no version is too young to be judged.
const EVER: &str = "2999-01-01T00:00:00Z";

#[tokio::test(flavor = "multi_thread")]
async fn what_was_replicated_is_equal_and_each_break_is_named() {
    let world = World::new().await;
    let config = world.config();
    let daemon = Daemon::spawn(&config).ready().await;
    world.workload(200, 30, 7).summary().await;
    for (key, body) in BREAKS.map(|(key, _)| (key, "first")) {
        world.put(key, body).await;
    }
    world.put("order", "newer").await;
    world.drained(&daemon).await;
    world.assert_equal().await;
    let (code, differences, sum) = verify(&config, "orders", &["--as-of", EVER]).await;
    assert_eq!((code, differences), (0, BTreeMap::new()), "{sum}");
    assert!(sum["versions"].as_u64().unwrap() > 100, "{sum}");

    for (key, _) in BREAKS {
        break_replica(&world, key).await;
    }
    let (code, differences, sum) = verify(&config, "orders", &["--as-of", EVER]).await;
    let expected = BREAKS.map(|(key, difference)| (key.to_owned(), vec![difference.to_owned()]));
    assert_eq!((code, differences), (2, expected.into()), "{sum}");

    // Without the daemon nothing is replicated, and what is young is not judged.
    daemon.kill().await;
    world.put("late/one", "first").await;
    let (code, differences, sum) = verify(&config, "orders", &["--prefix", "late/"]).await;
    assert_eq!((code, differences), (1, BTreeMap::new()), "{sum}");
    assert_eq!(sum["pending"], 1, "{sum}");
    let (code, differences, _) =
        verify(&config, "orders", &["--prefix", "late/", "--as-of", EVER]).await;
    assert_eq!(code, 2);
    assert_eq!(differences["late/one"], ["missing"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lists_do_not_tell_is_found_deep_and_a_hint_mends_what_it_can() {
    let world = World::shared().await;
    let mut config = world.config();
    config.rules[0].encryption = "mode = \"s3\"".to_owned();
    let daemon = Daemon::spawn(&config).ready().await;
    for key in ["content", "equal", "metadata", "tags"] {
        let put = SOURCE.s3().put_object().bucket(&world.source).key(key);
        let put = put.content_type("text/plain").metadata("team", "a");
        let put = put
            .tagging("tier=gold")
            .body(ByteStream::from_static(b"body"));
        put.send().await.unwrap();
    }
    for key in ["lost/1", "lost/2", "lost/2"] {
        world.put(key, "body").await;
    }
    let drained = async || world.all_drained(std::slice::from_ref(&daemon)).await;
    drained().await;
    let ever = ["--as-of", EVER];
    let deep = [&ever[..], &["--deep"]].concat();
    let (code, differences, sum) = verify(&config, "orders", &deep).await;
    assert_eq!((code, differences), (0, BTreeMap::new()), "{sum}");

    for key in ["content", "metadata", "tags"] {
        change_replica(&world, key).await;
    }
    let (code, differences, sum) = verify(&config, "orders", &ever).await;
    assert_eq!((code, differences), (0, BTreeMap::new()), "{sum}");
    let expected = ["content", "metadata", "tags"].map(|key| {
        let name = if key == "tags" { "tags" } else { "metadata" };
        (key.to_owned(), vec![name.to_owned()])
    });
    let (code, differences, sum) = verify(&config, "orders", &deep).await;
    assert_eq!((code, differences), (2, expected.clone().into()), "{sum}");

    for key in ["lost/1", "lost/2"] {
        let newest = replica(&world, key).await.0;
        let lose = ARCHIVE.s3().delete_object().bucket(&world.archive);
        lose.key(key).version_id(newest).send().await.unwrap();
    }
    let repair = [&deep[..], &["--repair"]].concat();
    let (code, differences, sum) = verify(&config, "orders", &repair).await;
    let missing = ["lost/1", "lost/2"].map(|key| (key.to_owned(), vec!["missing".to_owned()]));
    let all = expected.iter().cloned().chain(missing);
    assert_eq!((code, differences), (2, all.collect()), "{sum}");
    assert_eq!(sum["repair"], serde_json::json!([2, 3]), "{sum}");
    drained().await;
    let (code, differences, sum) = verify(&config, "orders", &ever).await;
    assert_eq!((code, differences), (0, BTreeMap::new()), "{sum}");
    // What a hint cannot mend is there still, and is said.
    let output = run(
        &[&["verify", "--rule", "orders"], &repair[..]].concat(),
        &config.path,
    )
    .await;
    let text = printed(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("0 keys are looked at"), "{text}");
    assert!(
        text.contains("3 keys differ in what that does not mend"),
        "{text}"
    );
}

/// Returns the id and the headers of what a key shows at the destination.
async fn replica(world: &World, key: &str) -> (String, HeadObjectOutput) {
    let head = ARCHIVE.s3().head_object().bucket(&world.archive).key(key);
    let head = head.send().await.unwrap();
    (head.version_id().unwrap().to_owned(), head)
}

/// Changes what the key's name says of its replica: its tags, or else by another object of the same
/// bytes and stamp in its place.
async fn change_replica(world: &World, key: &str) {
    let (s3, bucket) = (ARCHIVE.s3(), &world.archive);
    let (version, head) = replica(world, key).await;
    if key == "tags" {
        let tag = Tag::builder().key("tier").value("silver").build().unwrap();
        let tags = Tagging::builder().tag_set(tag).build().unwrap();
        let put = s3.put_object_tagging().bucket(bucket).key(key);
        put.tagging(tags).send().await.unwrap();
        return;
    }
    let put = s3.put_object().bucket(bucket).key(key).tagging("tier=gold");
    let put = put
        .set_metadata(head.metadata)
        .body(ByteStream::from_static(b"body"));
    let put = put.content_type("text/plain");
    let put = match key {
        "content" => put.content_type("text/html"),
        "metadata" => put.metadata("team", "b"),
        other => panic!("{other}"),
    };
    put.send().await.unwrap();
    let delete = s3.delete_object().bucket(bucket).key(key);
    delete.version_id(version).send().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_preferred_rule_leaves_out_by_tags_is_missed_by_the_other_rule() {
    let world = World::new().await;
    let mut config = world.config();
    let gold = Rule {
        filter: "tags = { tier = \"gold\" }".to_owned(),
        more: "priority = 2".to_owned(),
        ..world.rule("gold", "")
    };
    config.rules.push(gold);
    let daemon = Daemon::spawn(&config).ready().await;
    world.put("missing", "untagged").await;
    world.drained(&daemon).await;
    break_replica(&world, "missing").await;
    let (code, differences, _) = verify(&config, "orders", &["--as-of", EVER]).await;
    assert_eq!(
        (code, differences["missing"].as_slice()),
        (2, ["missing".to_owned()].as_slice())
    );
    let (code, differences, sum) = verify(&config, "gold", &["--as-of", EVER]).await;
    assert_eq!(code, 1, "nothing is left: {differences:?} {sum}");
    assert_eq!(sum["skipped"]["its tags do not match"], 1, "{sum}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_what_rclone_says_that_differs() {
    let world = World::new().await;
    let config = world.config();
    let daemon = Daemon::spawn(&config).ready().await;
    for number in 0..60 {
        let body = format!("object {number}");
        world.put(&format!("dir/{number}"), body).await;
    }
    world.drained(&daemon).await;
    daemon.kill().await;
    let (s3, bucket, mut rng) = (ARCHIVE.s3(), &world.archive, fastrand::Rng::with_seed(11));
    for number in 0..60 {
        let key = format!("dir/{number}");
        let listed = s3.list_object_versions().bucket(bucket).prefix(&key).send();
        let listed = listed.await.unwrap();
        let is_key = |key: &str, other: Option<&str>| other == Some(key);
        let replica = { listed.versions().iter() }.find(|one| is_key(&key, one.key()));
        let replica = replica.unwrap().version_id().unwrap();
        let head = s3.head_object().bucket(bucket).key(&key).send();
        let stamp = head.await.unwrap().metadata.unwrap();
        let kind = rng.u8(..8);
        if kind < 3 {
            let lose = s3.delete_object().bucket(bucket).key(&key);
            lose.version_id(replica).send().await.unwrap();
        }
        let put = s3.put_object().bucket(bucket).set_metadata(Some(stamp));
        let (key, body) = match kind {
            1 => (key, format!("OBJECT {number}")),
            2 => (key, format!("object {number} and more")),
            3 => (format!("other/{number}"), "of another tool".to_owned()),
            _ => continue,
        };
        put.key(key)
            .body(body.into_bytes().into())
            .send()
            .await
            .unwrap();
    }
    let compared = rclone(&world, &["check", "--combined", "-", "--checkers", "8"]).await;
    let text = String::from_utf8_lossy(&compared.stdout).into_owned();
    let mut theirs = BTreeMap::<String, Vec<String>>::new();
    for (sign, key) in text.lines().filter_map(|line| line.split_once(' ')) {
        let name = match sign {
            "=" => continue,
            "+" => "missing",
            "-" => "foreign",
            "*" => "differs",
            other => panic!("{other} {key}"),
        };
        theirs.insert(key.to_owned(), vec![name.to_owned()]);
    }
    let (code, mut ours, sum) = verify(&config, "orders", &["--as-of", EVER]).await;
    for kind in ours.values_mut().flatten() {
        if matches!(kind.as_str(), "size" | "bytes") {
            "differs".clone_into(kind);
        }
    }
    assert_eq!((code, ours), (2, theirs), "{sum} {}", printed(&compared));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_cannot_be_read_is_an_error_and_not_a_difference() {
    let world = World::new().await;
    let mut config = world.config();
    config.rules[0].destination = "no-such-bucket".to_owned();
    let output = run(&["verify", "--rule", "orders"], config.write()).await;
    let text = printed(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("this proves nothing") && text.contains("NoSuchBucket"),
        "{text}"
    );
    let output = run(&["verify", "--rule", "order"], &config.path).await;
    assert!(printed(&output).contains("did you mean \"orders\"?"));
}

/// What is done to the replica of a key, which is its name, and how that is called.
const BREAKS: [(&str, &str); 6] = [
    ("bytes", "bytes"),
    ("extra", "extra"),
    ("foreign", "foreign"),
    ("missing", "missing"),
    ("order", "order"),
    ("size", "size"),
];

async fn break_replica(world: &World, key: &str) {
    let (s3, bucket) = (ARCHIVE.s3(), &world.archive);
    let listed = s3.list_object_versions().bucket(bucket).prefix(key).send();
    let listed = listed.await.unwrap();
    let oldest = listed.versions().last().unwrap().version_id().unwrap();
    let head = s3.head_object().bucket(bucket).key(key).version_id(oldest);
    let metadata = head.send().await.unwrap().metadata.unwrap();
    if !matches!(key, "extra" | "foreign") {
        let delete = s3.delete_object().bucket(bucket).key(key);
        delete.version_id(oldest).send().await.unwrap();
    }
    let put = |body: &'static str| {
        let put = s3.put_object().bucket(bucket).key(key);
        put.body(ByteStream::from_static(body.as_bytes()))
    };
    match key {
        "missing" => {}
        "extra" => {
            let delete = s3.delete_object().bucket(bucket).key(key);
            delete.send().await.unwrap();
        }
        "foreign" => {
            put("of another tool").send().await.unwrap();
        }
        _ => {
            let body = match key {
                "bytes" => "FIRST",
                "size" => "first and more",
                _ => "first",
            };
            let put = put(body).set_metadata(Some(metadata));
            put.send().await.unwrap();
        }
    }
}

/// Runs the command, and returns its exit code, the differences by key, and the sum.
async fn verify(
    config: &Config,
    rule: &str,
    more: &[&str],
) -> (i32, BTreeMap<String, Vec<String>>, Value) {
    let arguments = [&["verify", "--rule", rule, "--json"], more].concat();
    let output = run(&arguments, &config.path).await;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let sum = lines
        .pop()
        .unwrap_or_else(|| panic!("{}", printed(&output)));
    let mut differences = BTreeMap::<String, Vec<String>>::new();
    for line in lines {
        let key = line["source"]
            .as_str()
            .unwrap()
            .splitn(4, '/')
            .last()
            .unwrap();
        let difference = line["difference"].as_str().unwrap().to_owned();
        if difference == "skipped" {
            continue;
        }
        differences
            .entry(key.to_owned())
            .or_default()
            .push(difference);
    }
    (output.status.code().unwrap(), differences, sum)
}
