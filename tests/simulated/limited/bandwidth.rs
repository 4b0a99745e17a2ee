//! Bandwidth is met whatever the bodies are like, and to wait for it is no standstill.

use std::num::NonZeroU64;
use std::ops::Range;
use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::Entry;

use super::TEN_SECONDS;
use crate::fleet;
use crate::sim::{ARCHIVE, AWS, simulate};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

#[test]
fn whatever_bodies_are_like_every_ten_seconds_have_what_the_rule_says_within_5_percent() {
    keeps_to((Some(MIB), None), (480, 64 << 10), "PutObject");
    keeps_to((Some(MIB), None), (120, 256 << 10), "PutObject");
    // A KiB and a little is not two.
    keeps_to((Some(50 * KIB), None), (1000, 1100), "PutObject");
    // In parts of 5 MiB.
    keeps_to((Some(10 * MIB), None), (12, 30 << 20), "UploadPart");
}

#[test]
fn of_the_rules_and_the_destinations_the_smaller_one_holds_and_they_do_not_add_up() {
    for (own, destinations) in [(8, 8), (8, 16), (16, 8)] {
        // Each is more than what may go at once.
        keeps_to(
            (Some(own * MIB), Some(destinations * MIB)),
            (40, 3 << 20),
            "PutObject",
        );
    }
}

/// Replicates so many objects of a size under the bandwidths of a rule and of its destination, and
/// looks at the ten seconds from each request on, as long as there are more.
fn keeps_to(limits: (Option<u64>, Option<u64>), (objects, bytes): (usize, usize), operation: &str) {
    simulate(21, async |mut sim| {
        sim.post_everything();
        sim.fill("", objects, bytes).await;
        let daemon = fleet::lone_with(&mut sim, "", |settings| {
            let rule = settings.rules.first_mut().unwrap();
            rule.limits.bandwidth_bytes_per_second = limits.0.and_then(NonZeroU64::new);
            rule.destination_limits.bandwidth_bytes_per_second = limits.1.and_then(NonZeroU64::new);
        })
        .await;
        sim.drained().await;
        daemon.stop().await;
        let is_meant =
            |entry: &Entry| entry.client == "daemon-0" && entry.call.operation == operation;
        let all = sim.net.journal().select(is_meant);
        let windows = all.iter().map(|entry| entry.sent..entry.sent + TEN_SECONDS);
        let windows = windows.take_while(|window| window.end < all.last().unwrap().sent);
        let passed = |window: Range<Duration>| -> usize {
            all.iter()
                .filter(|entry| window.contains(&entry.sent))
                .map(|entry| entry.call.bytes)
                .sum()
        };
        let passed: Vec<usize> = windows.map(passed).collect();
        let granted =
            usize::try_from(10 * limits.0.into_iter().chain(limits.1).min().unwrap()).unwrap();
        assert!(!passed.is_empty());
        let is_near = |passed: &usize| passed.abs_diff(granted) * 20 <= granted;
        assert!(
            passed.iter().all(is_near),
            "{passed:?} bytes in ten seconds instead of {granted} under {limits:?}"
        );
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
        let refused = Effect::Refuse {
            status: 500,
            code: "InternalError",
            lands: false,
        };
        sim.net.faults().add(Fault::new(
            "broken",
            Place::s3("GetObject").client("daemon-0"),
            refused,
        ));
        let daemon = fleet::lone(&mut sim, "limits = { bandwidth = \"64KiB/s\" }", AWS).await;
        let mut told = None;
        for _ in 0..40 {
            sim.pass(Duration::from_secs(30)).await;
            let status = daemon.status().await.unwrap();
            told = told
                .or(daemon.ailment().await)
                .or(status.degraded.first().map(|ailing| format!("{ailing:?}")));
            told = told.or(status
                .parked
                .first()
                .map(|parked| parked.reason.to_string()));
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
        daemon.reload_rules(&fleet::settings(&mut sim, &limited("400MiB/s"), AWS));
        let refused = Effect::Refuse {
            status: 500,
            code: "InternalError",
            lands: false,
        };
        let place = Place::s3("UploadPart").client("daemon-0");
        sim.net.faults().add(Fault::new("broken", place, refused));
        sim.pass(Duration::from_secs(30)).await;
        sim.net.faults().clear("broken");
        sim.drained().await;
        daemon.stop().await;
        let begun = |entry: &Entry| entry.call.operation == "CreateMultipartUpload";
        assert_eq!(
            sim.net.journal().select(begun).len(),
            1,
            "it was begun anew"
        );
    });
}
