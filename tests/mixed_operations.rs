//! The main job: whatever is done to the source bucket while the daemon runs, and whatever way its
//! events come, the destination ends with the same history. LocalStack's events all carry one
//! sequencer, so the order can only come from the source's own list.

use crate::world::{Feed, World};

#[tokio::test(flavor = "multi_thread")]
async fn mixed_operations_replicate_exactly() {
    replicate(Feed::Direct, 1, 500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_in_sns_envelopes_replicate_exactly() {
    replicate(Feed::Sns, 5, 250).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_in_raw_sns_messages_replicate_exactly() {
    replicate(Feed::SnsRaw, 6, 250).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_in_event_bridge_envelopes_replicate_exactly() {
    replicate(Feed::EventBridge, 7, 250).await;
}

async fn replicate(feed: Feed, seed: u32, operations: u32) {
    let world = World::fed_by(feed).await;
    let daemon = world.start().await;
    // At twenty a second the daemon is in the middle of things nearly all the time.
    world
        .workload(operations, 150, seed)
        .option("seconds", operations / 20)
        .summary()
        .await;
    world.drained(&daemon).await;
    let compared = world.assert_equal().await;
    let count = |name: &str| compared[name].as_u64().unwrap();
    // Two empty buckets would be equal too.
    let operations = u64::from(operations);
    assert!(
        count("versions") > operations / 2 && count("markers") > operations / 15,
        "{compared}"
    );
    // Where the source's metadata leave little room, by a digest.
    assert_eq!(count("stamped"), count("replicas"), "{compared}");
    assert_eq!(compared["open_uploads"], 0, "{compared}");
    assert_eq!(world.parked.depth().await, 0, "nothing was parked");
}
