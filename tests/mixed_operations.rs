//! The main job: whatever is done to the source bucket while the daemon runs, and whatever way its
//! events come, the destination ends with the same history. LocalStack's events all carry one
//! sequencer, so the order can only come from the source's own list.

use serde_json::Value;

use crate::world::{Feed, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_mixed_operations_replicate_exactly() {
    let compared = replicate(Feed::Direct, 1_000, 150).await;
    // Two empty buckets would be equal too.
    assert!(compared["versions"].as_u64().unwrap() > 500, "{compared}");
    assert!(compared["markers"].as_u64().unwrap() > 80, "{compared}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_in_sns_envelopes_replicate_exactly() {
    replicate(Feed::Sns, 150, 60).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_in_raw_sns_messages_replicate_exactly() {
    replicate(Feed::SnsRaw, 150, 60).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_in_event_bridge_envelopes_replicate_exactly() {
    replicate(Feed::EventBridge, 150, 60).await;
}

async fn replicate(feed: Feed, operations: u32, keys: u32) -> Value {
    let world = World::fed_by(feed).await;
    let daemon = world.start().await;
    // At twenty a second the daemon is in the middle of things nearly all the time.
    world.workload(operations, keys).option("seconds", operations / 20).summary().await;
    world.drained(&daemon).await;
    let compared = world.assert_equal().await;
    assert!(compared["versions"].as_u64().unwrap() > u64::from(operations) / 2, "{compared}");
    // All replicas but the few whose source fills the 2 KB of user metadata say where they come from.
    let without_stamp = compared["replicas"].as_u64().unwrap() - compared["stamped"].as_u64().unwrap();
    assert!(without_stamp < 10, "{compared}");
    assert_eq!(compared["open_uploads"], 0, "{compared}");
    assert_eq!(world.parked.depth().await, 0, "nothing was parked");
    compared
}
