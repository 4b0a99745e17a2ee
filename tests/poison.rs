//! Poison: hundreds of real messages, each broken somewhere, and messages of buckets that no rule
//! has. Nothing is written, nothing is kept in the queue, everything is accounted for, and the
//! daemon goes on.

mod messages;

use crate::bad_input::created;
use crate::world::daemon::Daemon;
use crate::world::localstack::{ARCHIVE, SOURCE};
use crate::world::metrics::Metrics;
use crate::world::{World, eventually};
use messages::{KEYS, poison};

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
