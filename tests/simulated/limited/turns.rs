//! A task that waits for a limit, or for memory beside one that does, gets a turn, and no more.

use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::Entry;

use super::{TEN_SECONDS, in_ten_seconds, sharing};
use crate::fleet;
use crate::sim::{ARCHIVE, AWS, MIRROR, SOURCE, Sim, simulate};

#[test]
fn a_rule_with_large_objects_shares_a_destinations_bandwidth_with_one_that_has_small_ones() {
    simulate(9, async |mut sim| {
        sim.post_everything();
        sim.fill("large/", 40, 4 << 20).await;
        let daemon = fleet::lone(&mut sim, &sharing("bandwidth = \"1MiB/s\""), AWS).await;
        sim.pass(TEN_SECONDS).await;
        sim.fill("small/", 60, 16 << 10).await;
        sim.pass(TEN_SECONDS).await;
        // Those are as much as goes through in a second.
        let small = sim
            .s3
            .keys_ever(ARCHIVE)
            .iter()
            .filter(|key| key.starts_with("small/"))
            .count();
        assert_eq!(small, 60);
        sim.drained().await;
        daemon.stop().await;
        let bytes: usize = in_ten_seconds(&sim, 100)
            .iter()
            .map(|write| write.call.bytes)
            .sum();
        assert!(
            bytes.abs_diff(10 << 20) <= 5 << 20,
            "{bytes} bytes in ten seconds"
        );
    });
}

#[test]
fn a_rule_that_waits_for_its_requests_holds_no_memory_that_another_needs() {
    // Together many times what memory holds.
    simulate(4, async |mut sim| {
        sim.post_everything();
        sim.fill("", 60, 4 << 20).await;
        let daemon = fleet::lone(
            &mut sim,
            &fleet::mirrored("limits = { requests_per_second = 1 }"),
            AWS,
        )
        .await;
        sim.pass(TEN_SECONDS).await;
        assert_eq!(sim.net.journal().writes(MIRROR).len(), 60);
        assert!(sim.net.journal().writes(ARCHIVE).len() < 20);
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.net.journal().writes(ARCHIVE).len(), 60);
    });
}

#[test]
fn a_large_body_gets_its_turn_among_small_ones_of_the_same_rule() {
    simulate(5, async |mut sim| {
        sim.post_everything();
        for number in 0..120 {
            let bytes = if number == 10 { 4 << 20 } else { 256 << 10 };
            let put = sim
                .user()
                .put_object()
                .bucket(SOURCE)
                .key(format!("{number}"));
            put.body(vec![1; bytes].into()).send().await.unwrap();
        }
        let daemon = fleet::lone(&mut sim, "limits = { bandwidth = \"1MiB/s\" }", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        let writes = sim.net.journal().writes(ARCHIVE);
        let large = writes
            .iter()
            .position(|write| write.call.key.as_deref() == Some("10"))
            .unwrap();
        assert!(
            large < 60,
            "{large} of {} others went first",
            writes.len() - 1
        );
    });
}

#[test]
fn large_objects_do_not_hold_up_the_small_ones_of_any_rule() {
    simulate(7, async |mut sim| {
        // Memory has room for eight parts, and a round of them takes twenty seconds.
        let slow = Place::s3("UploadPart").client("daemon-0");
        sim.net.faults().add(Fault::new(
            "slow",
            slow,
            Effect::Delay(Duration::from_secs(20)),
        ));
        sim.post_everything();
        sim.fill("large/", 24, 9 << 20).await;
        let rule = format!(
            "{}filter = {{ prefix = \"small/\" }}",
            fleet::rule_text("mirror", MIRROR, "")
        );
        let daemon = fleet::lone(&mut sim, &rule, AWS).await;
        sim.pass(Duration::from_secs(10)).await;
        sim.put("small/1", b"small").await;
        sim.pass(Duration::from_secs(30)).await;
        for bucket in [ARCHIVE, MIRROR] {
            assert!(sim.shown(bucket, "small/1").is_some(), "not in {bucket}");
        }
        assert!(
            sim.s3.keys_ever(ARCHIVE).len() < 20,
            "the large ones take their time"
        );
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.s3.keys_ever(ARCHIVE).len(), 25);
    });
}

#[test]
fn the_parts_of_a_large_object_get_their_turn_among_the_requests_of_small_ones() {
    simulate(10, async |mut sim| {
        sim.post_everything();
        // Five requests among two hundred.
        sim.fill("", 1, 20 << 20).await;
        sim.fill("small-", 200, 10).await;
        let daemon = fleet::lone(&mut sim, "limits = { requests_per_second = 5 }", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        let writes = sim.net.journal().writes(ARCHIVE);
        let large = writes
            .iter()
            .position(|write| write.call.key.as_deref() == Some("0"))
            .unwrap();
        assert!(
            large < 100,
            "{large} of {} others went first",
            writes.len() - 1
        );
    });
}

#[test]
fn deletes_take_turns_with_copies() {
    simulate(12, async |mut sim| {
        sim.post_everything();
        sim.fill("old-", 100, 7).await;
        let limited = |limit: u32| format!("limits = {{ requests_per_second = {limit} }}");
        let daemon = fleet::lone(&mut sim, &limited(1000), AWS).await;
        sim.drained().await;
        sim.pass(Duration::from_secs(600)).await;
        daemon.reload_rules(&fleet::settings(&mut sim, &limited(2), AWS));
        for number in 0..100 {
            sim.delete(&format!("old-{number}")).await;
        }
        sim.pass(Duration::from_secs(2)).await;
        sim.fill("new-", 10, 7).await;
        sim.drained().await;
        daemon.stop().await;
        let writes = sim.net.journal().writes(ARCHIVE);
        let is_put = |write: &Entry| write.call.operation == "PutObject";
        assert_eq!(writes.iter().filter(|write| is_put(write)).count(), 110);
        let last = writes.iter().rposition(is_put).unwrap();
        let after = writes.len() - 1 - last;
        assert!(
            (51..100).contains(&after),
            "{after} of 100 deletes were left"
        );
    });
}

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
        // A second's worth may go at once, another in the second after, and a few that were
        // admitted before and whose reads took longer.
        let most = most_in_a_second(&sim);
        assert!(most <= 12, "{most} writes in one second");
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
