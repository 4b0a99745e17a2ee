//! A HEAD that is refused has no text. What it would have said decides whether someone has to act.

use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, DEAD, QUEUE, Sim, simulate};

/// Refuses every look at the destination.
fn refuse(sim: &Sim, status: u16, code: &'static str) {
    let looks = Place::s3("HeadObject").or("GetObject").bucket(ARCHIVE).client("daemon-0");
    sim.net.faults().add(Fault::new(code, looks, Effect::refuse(status, code)));
}

#[test]
fn credentials_that_ended_park_nothing() {
    for (status, code) in [(400, "ExpiredToken"), (403, "RequestTimeTooSkewed")] {
        simulate(1, async |mut sim| {
            sim.post_everything();
            refuse(&sim, status, code);
            sim.put("a", b"one").await;
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.pass(Duration::from_secs(60)).await;
            assert_eq!(sim.sqs.depth(QUEUE).visible + sim.sqs.depth(QUEUE).hidden, 1, "{code}: the message is kept");
            sim.net.faults().clear_all();
            sim.drained().await;
            assert_eq!(sim.shown(ARCHIVE, "a").as_deref(), Some(&b"one"[..]));
            assert!(sim.sqs.messages(DEAD).is_empty(), "{code}: {:?}", sim.sqs.messages(DEAD));
            daemon.stop().await;
        });
    }
}

#[test]
fn a_permission_that_is_lacking_parks_under_its_name() {
    simulate(2, async |mut sim| {
        sim.post_everything();
        refuse(&sim, 403, "AccessDenied");
        sim.put("a", b"one").await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        let parked = daemon.status().await.unwrap().parked;
        assert_eq!(parked.len(), 1);
        assert_eq!(parked[0].reason.as_str(), "DstHeadObjectNotPermitted");
        daemon.stop().await;
    });
}

#[test]
fn what_is_parked_is_booked_on_the_rule_that_took_the_version() {
    simulate(3, async |mut sim| {
        sim.post_everything();
        let writes = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
        sim.net.faults().add(Fault::new("refused", writes, Effect::refuse(403, "AccessDenied")));
        sim.put("a", b"has no tags").await;
        let gold = "priority = 10\nfilter = { tags = { tier = \"gold\" } }";
        let daemon = fleet::lone(&mut sim, &fleet::rule_text("gold", ARCHIVE, gold), AWS).await;
        sim.drained().await;
        let parked = daemon.status().await.unwrap().parked;
        let booked: Vec<&str> = parked.iter().map(|parked| parked.rule.as_str()).collect();
        assert_eq!(booked, ["orders"]);
        daemon.stop().await;
    });
}
