//! Poison: hundreds of real messages, each broken somewhere. Nothing is written, nothing is kept in
//! the queue, everything is accounted for, and the daemon goes on.

use std::fs;

use serde_json::{Value, json};

use crate::bad_input::created;
use crate::world::daemon::Daemon;
use crate::world::localstack::{ARCHIVE, SOURCE};
use crate::world::metrics::Metrics;
use crate::world::oracle::root;
use crate::world::{World, eventually};

/// The keys of the real messages; their objects are there, so that a message taken at its word
/// would do harm.
const KEYS: [&str; 3] = [
    "invoices/2026/11/report final.pdf",
    "invoices/report final 100%.pdf",
    "one",
];

#[tokio::test(flavor = "multi_thread")]
async fn broken_messages_change_nothing_and_are_accounted_for() {
    let world = World::new().await;
    let config = crate::world::config::Config {
        visibility_timeout: "60s",
        ..world.config()
    };
    let daemon = Daemon::spawn(&config).ready().await;
    for key in KEYS {
        world.put(key, key).await;
    }
    world.drained(&daemon).await;
    world.assert_equal().await;
    SOURCE.silence(&world.source).await;

    let before = (versions(&world).await, daemon.metrics().await);
    let sent = poison(&world.source);
    assert!(sent.len() > 300, "{} messages are too few", sent.len());
    for batch in sent.chunks(10) {
        world.queue.send_batch(batch).await;
    }
    world.drained(&daemon).await;
    assert_eq!(
        versions(&world).await,
        before.0,
        "a message was taken at its word"
    );
    assert_eq!(world.queue.depth().await, 0, "messages are left");
    let counted = Counted::between(&before.1, &daemon.metrics().await);
    let parked = world.parked.take().await;
    let strange: Vec<_> = parked.iter().filter(|body| !sent.contains(body)).collect();
    assert!(strange.is_empty(), "parked but never sent: {strange:?}");
    counted.add_up(sent.len(), parked.len());

    // The same keys again, which much was claimed about, and one that no message named.
    for key in KEYS.into_iter().chain(["after"]) {
        let version = world.put(key, "after the poison").await;
        world
            .queue
            .send(created(&world.source, &key.replace('%', "%25"), &version))
            .await;
    }
    eventually("the daemon goes on", async || {
        world.replica_exists("after").await
    })
    .await;
    world.drained(&daemon).await;
    world.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_too_long_for_the_dead_letter_queue_stays_in_its_own_and_is_told_of() {
    let world = World::new().await;
    world.parked.limit_message_bytes(1024).await;
    let daemon = world.start().await;
    world.queue.send("no json, and long ".repeat(100)).await;
    let refused = [("rule", ""), ("reason", "MessageUndecodable")];
    eventually("it is told of", async || {
        daemon.metrics().await.sum("failures_total", &refused) > 0.0
    })
    .await;
    world.put("report", "beside it").await;
    eventually("others arrive", async || {
        world.replica_exists("report").await
    })
    .await;
    eventually("it alone is left", async || world.queue.depth().await == 1).await;
    assert_eq!(world.parked.depth().await, 0);
    assert_eq!(
        daemon
            .metrics()
            .await
            .sum("queue_messages_total", &[("outcome", "parked")]),
        0.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_leaves_no_room_for_its_reason_is_parked_without() {
    let world = World::new().await;
    world.parked.limit_message_bytes(1024).await;
    let daemon = world.start().await;
    let long = "x".repeat(1020);
    world.queue.send(&long).await;
    world.drained(&daemon).await;
    assert_eq!(world.parked.take().await, [long]);
}

/// What the daemon counted of messages, by what became of them.
#[derive(Debug)]
struct Counted {
    received: f64,
    deleted: f64,
    parked: f64,
    undecodable: f64,
    unknown_bucket: f64,
    ignored: f64,
    operations: f64,
}

impl Counted {
    fn between(before: &Metrics, after: &Metrics) -> Self {
        let grown =
            |name, labels: &[(&str, &str)]| after.sum(name, labels) - before.sum(name, labels);
        let messages = |outcome| grown("queue_messages_total", &[("outcome", outcome)]);
        Self {
            received: messages("received"),
            deleted: messages("deleted"),
            parked: messages("parked"),
            undecodable: messages("undecodable"),
            unknown_bucket: messages("unknown_bucket"),
            ignored: messages("ignored"),
            operations: grown("operations_total", &[]),
        }
    }

    /// Every message sent was received and deleted once; every one deleted was parked with a
    /// reason, ignored, or looked into, which counts an operation at least.
    #[track_caller]
    fn add_up(&self, sent: usize, parked: usize) {
        let exact = |count: usize| f64::from(u32::try_from(count).unwrap());
        assert_eq!(
            (self.received, self.deleted),
            (exact(sent), exact(sent)),
            "{self:?}"
        );
        assert_eq!(self.parked, exact(parked), "{self:?}");
        assert_eq!(
            self.parked,
            self.undecodable + self.unknown_bucket,
            "{self:?}"
        );
        let looked_into = self.deleted - self.parked - self.ignored;
        assert!(
            looked_into > 0.0 && self.operations >= looked_into,
            "{self:?}"
        );
        assert!(
            self.undecodable > 100.0 && self.unknown_bucket > 10.0 && self.ignored > 10.0,
            "{self:?}"
        );
    }
}

/// Every version and delete marker of the destination, with what is current.
async fn versions(world: &World) -> Vec<String> {
    let listed = ARCHIVE
        .s3()
        .list_object_versions()
        .bucket(&world.archive)
        .send()
        .await
        .unwrap();
    let versions = listed.versions.unwrap_or_default().into_iter();
    let markers = listed.delete_markers.unwrap_or_default().into_iter();
    let versions = versions.map(|it| {
        format!(
            "{:?} {:?} {:?} {:?}",
            it.key, it.version_id, it.e_tag, it.is_latest
        )
    });
    versions
        .chain(markers.map(|it| format!("{:?} {:?} {:?}", it.key, it.version_id, it.is_latest)))
        .collect()
}

/// Breaks each real message in each way.
fn poison(bucket: &str) -> Vec<String> {
    let folder = root().join("tests/fuzz/corpus/event");
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "json")
    });
    paths.sort();
    let mut sent = Vec::new();
    for path in paths {
        let real = fs::read_to_string(path).unwrap();
        let real = real.replace(r#""name":"orders""#, &format!(r#""name":"{bucket}""#));
        let real = real.replace(
            r#"\"name\":\"orders\""#,
            &format!(r#"\"name\":\"{bucket}\""#),
        );
        sent.extend(BREAKS.iter().map(|(name, junk)| broken(&real, name, junk)));
        sent.extend((1..4).map(|quarter| {
            real.chars()
                .take(real.chars().count() * quarter / 4)
                .collect()
        }));
        sent.push(real.replacen(':', ";", 7));
    }
    sent
}

/// A field and the JSON text that it gets.
const BREAKS: [(&str, &str); 19] = [
    ("key", r#""%zz%""#),
    ("key", r#""%ff%fe""#),
    ("key", "null"),
    ("key", r#""""#),
    ("key", r#"["one"]"#),
    ("key", r#""one","key":"two""#),
    ("name", r#""someone-elses-bucket""#),
    ("name", r#""a b""#),
    ("eventName", r#""ObjectCreatedd:Put""#),
    ("detail-type", r#""Object Forgotten""#),
    ("eventVersion", r#""3.0""#),
    ("source", r#""aws.s4""#),
    ("size", "18446744073709551615"),
    (
        "sequencer",
        r#""FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF""#,
    ),
    ("eventTime", r#""9999-12-31T23:59:59-23:59""#),
    ("eventTime", r#""9998-01-01T00:00:00Z""#),
    ("versionId", r#""never-existed""#),
    ("version-id", r#""v\u00001""#),
    ("eventSource", r#"{"aws":"s3"}"#),
];

/// Gives every field of a name another value, within what SNS wrapped too.
fn broken(real: &str, name: &str, junk: &str) -> String {
    let mut message: Value = serde_json::from_str(real).unwrap();
    if let Some(inner) = message["Message"]
        .as_str()
        .filter(|inner| inner.starts_with('{'))
    {
        message["Message"] = json!(broken(inner, name, junk));
        return message.to_string();
    }
    put(&mut message, name);
    message.to_string().replace(r#""@@hole@@""#, junk)
}

fn put(value: &mut Value, name: &str) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if key == name {
                    *value = json!("@@hole@@");
                } else {
                    put(value, name);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| put(value, name)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
