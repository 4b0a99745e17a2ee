//! Endpoints whose conditions are missing or wrong, each in its way: no livelock, no lie. One daemon alone
//! needs none of them, so with one daemon every promise holds all the same.

use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::Entry;
use replicator_fakes::s3::traits::{Conditions, Order, Traits};

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, NOT_AWS, Sim, simulate};
use crate::workload::{self, Shape, User};

/// Every way in which conditions can be wrong, by name.
fn ways() -> Vec<(&'static str, Traits)> {
    use Conditions::{Ignored, NotImplemented, RefusedOverMarker};
    let aws = Traits::aws;
    vec![
        ("puts ignore conditions", Traits { put_conditions: Ignored, ..aws() }),
        ("puts know no conditions", Traits { put_conditions: NotImplemented, ..aws() }),
        ("puts are refused over markers", Traits { put_conditions: RefusedOverMarker, ..aws() }),
        ("completes ignore conditions", Traits { complete_conditions: Ignored, ..aws() }),
        ("completes know no conditions", Traits { complete_conditions: NotImplemented, ..aws() }),
        ("completes are refused over markers", Traits { complete_conditions: RefusedOverMarker, ..aws() }),
        ("deletes ignore conditions", Traits { delete_conditions: Ignored, ..aws() }),
        ("deletes know no conditions", Traits { delete_conditions: NotImplemented, ..aws() }),
        ("what is completed last is current", Traits { order: Order::LastCompleted, ..aws() }),
        ("markers have no name", Traits { names_markers: false, marker_version: 404, ..aws() }),
        ("lists are apart", Traits { lists_apart: true, ..aws() }),
        // It lists uploads by their beginning and shows what was completed last: which is the order, who knows?
        ("like LocalStack", Traits { order: Order::LastCompleted, ..Traits::localstack() }),
        ("like SeaweedFS", Traits::seaweedfs()),
    ]
}

#[test]
fn endpoints_that_contradict_themselves_neither_stop_nor_fool_the_daemon() {
    let mut wrong = Vec::new();
    for (name, traits) in ways() {
        for seed in 0..6 {
            let said = simulate(seed, async |sim| play(sim, seed, &traits).await);
            wrong.extend(said.into_iter().map(|what| format!("{name}, seed {seed}: {what}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

async fn play(mut sim: Sim, seed: u64, traits: &Traits) -> Vec<String> {
    sim.s3.set_traits(traits.clone());
    sim.post_everything();
    let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut user = User::new(sim.user());
    let shape = Shape { keys: 2, ops: 14, purges: false, tags: true, large: true, full: false };
    for (pause, op) in workload::draw(&mut rng, shape) {
        sim.pass(pause.min(Duration::from_secs(60))).await;
        user.act(&op).await;
    }
    user.finish().await;
    sim.drained().await;
    let parked = daemon.status().await.unwrap().parked;
    daemon.stop().await;
    let mut wrong = judge(&sim, Expect::EXACT);
    // Where conditions are gone, so are they from the requests.
    wrong.retain(|what| !what.starts_with("a write without") && !what.starts_with("a delete without"));
    wrong.extend(parked.iter().map(|parked| format!("parked: {}", parked.reason)));
    wrong
}

/// Waits until so many of the daemon's writes were sent, or were executed.
async fn writes(sim: &Sim, count: usize, is_executed: bool) {
    let holds = |entry: &Entry| {
        let is_write = entry.client == "daemon-0" && entry.call.operation == "PutObject";
        is_write && (entry.executed.is_some() || !is_executed)
    };
    for _ in 0..10_000 {
        if sim.net.journal().select(holds).len() >= count {
            return;
        }
        sim.pass(Duration::from_millis(10)).await;
    }
    panic!("{count} writes never came, executed: {is_executed}");
}

#[test]
fn who_is_overtaken_by_the_same_content_again_and_again_does_not_blame_the_endpoint() {
    simulate(1, async |mut sim| {
        let put = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
        sim.net.faults().add(Fault::new("slow", put, Effect::Delay(Duration::from_secs(2))));
        sim.post_everything();
        let stranger = sim.user();
        let write = async |body: &'static str| {
            let put = stranger.put_object().bucket(ARCHIVE).key("a").body(ByteStream::from_static(body.as_bytes()));
            put.send().await.unwrap();
        };
        write("same").await;
        sim.put("a", b"ours").await;
        let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
        for round in 1..=4 {
            // What the write goes over is covered, and once it is refused there is another with the same ETag.
            writes(&sim, round, false).await;
            write("other").await;
            writes(&sim, round, true).await;
            write("same").await;
        }
        sim.drained().await;
        daemon.stop().await;
        let all = sim.net.journal().writes(ARCHIVE).into_iter().filter(|write| write.client == "daemon-0");
        let (kept, given_up): (Vec<_>, Vec<_>) = all.partition(|write| write.call.conditions.contains_key("if-match"));
        let refused = kept.iter().filter(|write| write.executed.is_some_and(|(_, status)| status == 412)).count();
        assert!(refused >= 3, "{refused} were overtaken");
        assert!(given_up.is_empty(), "{given_up:?}");
    });
}
