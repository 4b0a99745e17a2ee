//! A destination that is down, a queue that is dead, a connection that hangs: the others go on, what can
//! tell says so, and everything arrives when the cause has gone.

use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, MIRROR, SOURCE, Sim, simulate};

#[test]
fn an_hour_without_one_destination_holds_up_no_other_and_loses_nothing() {
    simulate(1, async |mut sim| {
        sim.post_everything();
        let daemon = fleet::lone(&mut sim, &fleet::mirrored(""), AWS).await;
        sim.net.faults().add(Fault::new("down", Place::default().bucket(ARCHIVE), Effect::Unreachable));
        for minute in 0..60 {
            let key = format!("key-{}", minute % 7);
            sim.put(&key, if minute % 2 == 0 { b"even" } else { b"odd" }).await;
            sim.put(&format!("new-{minute}"), b"new").await;
            sim.pass(Duration::from_secs(60)).await;
            assert_eq!(sim.shown(MIRROR, &key), sim.shown(SOURCE, &key), "the healthy destination lags at {minute}");
            assert!(sim.shown(MIRROR, &format!("new-{minute}")).is_some(), "the healthy destination lags at {minute}");
            assert_eq!(sim.shown(ARCHIVE, &key), None);
        }
        let in_hand = daemon.status().await.unwrap().board.messages;
        assert!(in_hand < 20, "what cannot be done waits in the queue, not here: {in_hand}");
        sim.net.faults().clear("down");
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(judge(&sim, Expect::IN_DOUBT), Vec::<String>::new());
    });
}

#[test]
fn a_dead_queue_is_told_and_forgiven() {
    simulate(2, async |mut sim| {
        let place = Place::service(replicator_fakes::journal::Service::Sqs);
        health_follows(&mut sim, place, Effect::Unreachable).await;
    });
}

#[test]
fn a_connection_that_hangs_is_told_and_forgiven() {
    simulate(3, async |mut sim| {
        let place = Place::s3("PutObject").bucket(ARCHIVE);
        health_follows(&mut sim, place, Effect::Silence { lands: false }).await;
    });
}

/// Lets something break for a while and sees the health go and come back by itself.
async fn health_follows(sim: &mut Sim, place: Place, effect: Effect) {
    sim.post_everything();
    let daemon = fleet::lone(sim, "", AWS).await;
    sim.put("a", b"one").await;
    sim.drained().await;
    assert_eq!(daemon.ailment().await, None);
    sim.net.faults().add(Fault::new("trouble", place.client("daemon-0"), effect));
    sim.put("b", b"two").await;
    let mut told = None;
    for _ in 0..60 {
        sim.pass(Duration::from_secs(30)).await;
        told = told.or(daemon.ailment().await);
    }
    assert!(told.is_some(), "half an hour of trouble and /healthz says nothing");
    sim.net.faults().clear("trouble");
    sim.drained().await;
    sim.pass(Duration::from_secs(60)).await;
    assert_eq!(daemon.ailment().await, None, "the trouble is over");
    daemon.stop().await;
    assert_eq!(sim.shown(ARCHIVE, "b"), sim.shown(SOURCE, "b"));
}
