//! Requests that wait for something else than their turn are not saved up for a burst.

use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::Entry;

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, SOURCE, Sim, simulate};

#[test]
fn requests_are_not_saved_up_while_memory_is_short() {
    simulate(6, async |mut sim| {
        // Memory has room for sixteen, and the first sixteen take long.
        let slow = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
        sim.net
            .faults()
            .add(Fault::new("slow", slow, Effect::Delay(Duration::from_secs(20))).times(16));
        sim.post_everything();
        sim.fill("", 60, 4 << 20).await;
        let daemon = fleet::lone(&mut sim, "limits = { requests_per_second = 4 }", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        // A second's worth may go at once, and another in the second after.
        let most = most_in_a_second(&sim);
        assert!(most <= 8, "{most} writes in one second");
    });
}

#[test]
fn requests_are_not_saved_up_while_the_source_is_slow() {
    simulate(11, async |mut sim| {
        // All that wait for these are let in meanwhile.
        let slow = Place::s3("GetObject").bucket(SOURCE).client("daemon-0");
        sim.net
            .faults()
            .add(Fault::new("slow", slow, Effect::Delay(Duration::from_secs(30))).times(60));
        sim.post_everything();
        sim.fill("", 60, 7).await;
        let limited = fleet::mirrored("limits = { requests_per_second = 4 }");
        let daemon = fleet::lone(&mut sim, &limited, AWS).await;
        sim.drained().await;
        daemon.stop().await;
        let most = most_in_a_second(&sim);
        assert!(most <= 8, "{most} writes in one second");
        assert_eq!(sim.s3.keys_ever(ARCHIVE).len(), 60);
    });
}

#[test]
fn a_source_that_was_slow_leaves_no_bodies_that_hold_memory_for_as_long_as_there_is_more() {
    simulate(13, async |mut sim| {
        let slow = Place::s3("GetObject").bucket(SOURCE).client("daemon-0");
        sim.net
            .faults()
            .add(Fault::new("slow", slow, Effect::Delay(Duration::from_secs(14))).times(56));
        sim.post_everything();
        sim.fill("", 400, 7).await;
        let daemon = fleet::lone(&mut sim, "limits = { requests_per_second = 4 }", AWS).await;
        sim.pass(Duration::from_secs(45)).await;
        let is_read = |entry: &Entry| {
            let is_source = entry.call.bucket.as_deref() == Some(SOURCE);
            is_source && entry.client == "daemon-0" && entry.call.operation == "GetObject"
        };
        let held =
            sim.net.journal().select(is_read).len() - sim.net.journal().writes(ARCHIVE).len();
        sim.drained().await;
        daemon.stop().await;
        assert!(held <= 8, "{held} bodies are held");
    });
}

/// Counts the writes of the second that had most.
fn most_in_a_second(sim: &Sim) -> usize {
    let sent: Vec<Duration> = sim
        .net
        .journal()
        .writes(ARCHIVE)
        .iter()
        .map(|write| write.sent)
        .collect();
    let from = |first: &Duration| {
        sent.iter()
            .filter(|sent| (*first..*first + Duration::from_secs(1)).contains(*sent))
            .count()
    };
    sent.iter().map(from).max().unwrap_or_default()
}
