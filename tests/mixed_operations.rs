//! The main job: whatever is done to the source bucket while the daemon runs, and whatever way its
//! events come, the destination ends with the same history. LocalStack's events all carry one
//! sequencer, so the order can only come from the source's own list.

use crate::world::{Feed, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_mixed_operations_replicate_exactly() {
    replicate(Feed::Direct, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_in_sns_envelopes_replicate_exactly() {
    replicate(Feed::Sns, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_in_raw_sns_messages_replicate_exactly() {
    replicate(Feed::SnsRaw, 6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_in_event_bridge_envelopes_replicate_exactly() {
    replicate(Feed::EventBridge, 7).await;
}

async fn replicate(feed: Feed, seed: u32) {
    let world = World::fed_by(feed).await;
    let daemon = world.start().await;
    // At twenty a second the daemon is in the middle of things nearly all the time.
    world.workload(1_000, 150, seed).option("seconds", 50).summary().await;
    world.drained(&daemon).await;
    let compared = world.assert_equal().await;
    let count = |name: &str| compared[name].as_u64().unwrap();
    // Two empty buckets would be equal too.
    assert!(count("versions") > 500 && count("markers") > 80, "{compared}");
    // All replicas but the few whose source fills the 2 KB of user metadata say where they come from.
    assert!(count("stamped") > count("replicas") / 10 * 9, "{compared}");
    assert_eq!(compared["open_uploads"], 0, "{compared}");
    assert_eq!(world.parked.depth().await, 0, "nothing was parked");
}
