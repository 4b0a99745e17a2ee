//! Bandwidth is met whatever the bodies are like, and to wait for it is no standstill.

use std::num::NonZeroU64;
use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::Entry;

use super::TEN_SECONDS;
use crate::fleet;
use crate::sim::{ARCHIVE, AWS, Sim, simulate};

/// Adds up what is sent in ten seconds of parts, or of whole objects, from each of them on as long as there are more.
fn bytes_in_ten_seconds(sim: &Sim, operation: &str) -> Vec<usize> {
    let is_meant = |entry: &Entry| entry.client == "daemon-0" && entry.call.operation == operation;
    let all = sim.net.journal().select(is_meant);
    let last = all.last().unwrap().sent;
    let windows = all.iter().map(|entry| entry.sent..entry.sent + TEN_SECONDS).take_while(|window| window.end < last);
    let bytes = windows
        .map(|window| all.iter().filter(|entry| window.contains(&entry.sent)).map(|entry| entry.call.bytes).sum());
    bytes.collect()
}

fn assert_near(bytes: &[usize], granted: usize) {
    assert!(!bytes.is_empty());
    for bytes in bytes {
        assert!(bytes.abs_diff(granted) * 20 <= granted, "{bytes} bytes written in ten seconds instead of {granted}");
    }
}

#[test]
fn large_objects_keep_to_it_within_5_percent_over_ten_seconds() {
    simulate(21, async |mut sim| {
        sim.post_everything();
        // Half a minute's worth, in parts of 5 MiB.
        sim.fill("", 12, 30 << 20).await;
        let daemon = fleet::lone(&mut sim, "limits = { bandwidth = \"10MiB/s\" }", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        assert_near(&bytes_in_ten_seconds(&sim, "UploadPart"), 100 << 20);
    });
}

#[test]
fn of_the_rules_and_the_destinations_the_smaller_one_holds_and_they_do_not_add_up() {
    [(8, 8), (8, 16), (16, 8)].into_iter().for_each(under_both);
}

/// Replicates under two limits in MiB a second, of which the smaller one is 8.
fn under_both((own, destinations): (u64, u64)) {
    simulate(22, async |mut sim| {
        sim.post_everything();
        // Each is more than what may go at once.
        sim.fill("", 40, 3 << 20).await;
        let own = format!("limits = {{ bandwidth = \"{own}MiB/s\" }}");
        let daemon = fleet::lone_with(&mut sim, &own, |settings| {
            for rule in &mut settings.rules {
                rule.destination_limits.bandwidth_bytes_per_second = NonZeroU64::new(destinations << 20);
            }
        })
        .await;
        sim.drained().await;
        daemon.stop().await;
        assert_near(&bytes_in_ten_seconds(&sim, "PutObject"), 80 << 20);
    });
}

#[test]
fn small_bodies_are_not_counted_for_more_than_they_are() {
    simulate(23, async |mut sim| {
        sim.post_everything();
        sim.fill("", 1000, 1100).await;
        let daemon = fleet::lone(&mut sim, "limits = { bandwidth = \"50KiB/s\" }", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        assert_near(&bytes_in_ten_seconds(&sim, "PutObject"), 500 << 10);
    });
}

#[test]
fn who_waits_for_hours_does_not_hang() {
    simulate(24, async |mut sim| {
        sim.post_everything();
        // Each takes more than eight minutes, and the last one waits for more than an hour.
        sim.fill("", 10, 2 << 20).await;
        let daemon = fleet::lone(&mut sim, "limits = { bandwidth = \"4KiB/s\" }", AWS).await;
        while sim.waiting() > 0 {
            sim.pass(Duration::from_secs(60)).await;
            assert_eq!(daemon.ailment().await, None);
        }
        daemon.stop().await;
        assert_eq!(sim.s3.keys_ever(ARCHIVE).len(), 10);
    });
}

#[test]
fn work_that_only_fails_is_told_though_a_limit_lets_it_pass() {
    simulate(27, async |mut sim| {
        sim.post_everything();
        sim.fill("", 20, 1 << 20).await;
        let refused = Effect::Refuse { status: 500, code: "InternalError", lands: false };
        sim.net.faults().add(Fault::new("broken", Place::s3("GetObject").client("daemon-0"), refused));
        let daemon = fleet::lone(&mut sim, "limits = { bandwidth = \"64KiB/s\" }", AWS).await;
        let mut told = None;
        for _ in 0..40 {
            sim.pass(Duration::from_secs(30)).await;
            told = told.or(daemon.ailment().await);
        }
        assert!(told.is_some(), "nothing was written for twenty minutes");
        sim.net.faults().clear("broken");
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.s3.keys_ever(ARCHIVE).len(), 20);
    });
}

#[test]
fn an_upload_goes_on_after_its_limit_changed_the_size_of_parts() {
    simulate(25, async |mut sim| {
        sim.post_everything();
        sim.fill("", 1, 120 << 20).await;
        let limited = |limit: &str| format!("limits = {{ bandwidth = \"{limit}\" }}");
        let daemon = fleet::lone(&mut sim, &limited("4MiB/s"), AWS).await;
        sim.pass(TEN_SECONDS).await;
        daemon.reload(&fleet::settings(&mut sim, &limited("400MiB/s"), AWS));
        let refused = Effect::Refuse { status: 500, code: "InternalError", lands: false };
        let place = Place::s3("UploadPart").client("daemon-0");
        sim.net.faults().add(Fault::new("broken", place, refused));
        sim.pass(Duration::from_secs(30)).await;
        sim.net.faults().clear("broken");
        sim.drained().await;
        daemon.stop().await;
        let begun = |entry: &Entry| entry.call.operation == "CreateMultipartUpload";
        assert_eq!(sim.net.journal().select(begun).len(), 1, "it was begun anew");
    });
}
