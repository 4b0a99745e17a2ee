//! A missing permission parks the task under native replication's own reason code, keeps it, and
//! once the permission is there everything arrives in order.

use crate::world::daemon::Daemon;
use crate::world::faults::{Fault, Faults};
use crate::world::{World, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_may_not_be_read_is_parked_as_src_get_object_not_permitted() {
    parks_and_recovers("GetObject", true, "SrcGetObjectNotPermitted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_that_may_not_be_read_are_parked_as_src_get_tagging_not_permitted() {
    parks_and_recovers("GetObjectTagging", true, "SrcGetTaggingNotPermitted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_may_not_be_written_is_parked_as_dst_put_object_not_permitted() {
    parks_and_recovers("PutObject", false, "DstPutObjectNotPermitted").await;
}

async fn parks_and_recovers(operation: &'static str, at_source: bool, reason: &str) {
    let world = World::new().await;
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    let bucket = if at_source {
        world.source.clone()
    } else {
        world.archive.clone()
    };
    faults.script(Fault::AccessDenied, usize::MAX, move |seen| {
        seen.is(&bucket, operation)
    });
    let daemon = Daemon::spawn(&config).ready().await;
    put_tagged(&world, "first").await;
    eventually("the task is parked", async || {
        daemon
            .metrics()
            .await
            .sum("operations_total", &[("outcome", "parked")])
            > 0.0
    })
    .await;
    world.drained(&daemon).await;
    let metrics = daemon.metrics().await;
    assert!(
        metrics.sum("failures_total", &[("reason", reason)]) > 0.0,
        "{metrics:?}"
    );
    assert_eq!(
        metrics.sum("parked", &[("reason", reason)]),
        1.0,
        "{metrics:?}"
    );
    assert_eq!(world.parked.depth().await, 1);
    assert!(
        !world.replica_exists("report").await,
        "a refusal was read as something else"
    );
    faults.clear();
    stop(daemon).await;
    let daemon = Daemon::spawn(&config).ready().await;
    // What the ledger keeps is tried again at every start, without any event.
    eventually("the parked task is done", async || {
        world.replica_exists("report").await
    })
    .await;
    arrives_with_the_next_event(&world, &daemon).await;
}

/// Stops a daemon as its next start likes it best: that waits for no request of this one.
async fn stop(mut daemon: Daemon) {
    daemon.signal("TERM").await;
    assert!(daemon.exit().await.success(), "{}", daemon.log());
}

/// Writes once more: it arrives above what was parked.
async fn arrives_with_the_next_event(world: &World, daemon: &Daemon) {
    put_tagged(world, "second").await;
    world.drained(daemon).await;
    let compared = world.assert_equal().await;
    assert_eq!(compared["replicas"], 2);
}

async fn put_tagged(world: &World, body: &'static str) {
    let body = aws_sdk_s3::primitives::ByteStream::from_static(body.as_bytes());
    let request = crate::world::localstack::SOURCE
        .s3()
        .put_object()
        .bucket(&world.source)
        .key("report");
    request
        .body(body)
        .tagging("tier=gold")
        .send()
        .await
        .unwrap();
}
