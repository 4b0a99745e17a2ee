//! Uploads in parts: how many parts are on their way, and which daemon ends an upload that no task
//! works on any more.

use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::Entry;

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, Sim, simulate};

const PART: usize = 8 << 20;

#[test]
fn the_next_worker_of_a_key_ends_the_upload_of_one_that_was_killed() {
    simulate(1, async |mut sim| {
        sim.share();
        slow_parts(&sim, "daemon-0", Duration::from_secs(40));
        sim.post_everything();
        sim.fill("", 1, 5 * PART).await;
        let first = fleet::lone(&mut sim, "", AWS).await;
        sim.pass(Duration::from_secs(20)).await;
        drop(first);
        let second = fleet::nth(&mut sim, "", AWS, 1).await;
        sim.drained().await;
        assert_eq!(left_open(&sim), [""; 0]);
        second.stop().await;
        assert_eq!(sim.s3.history(ARCHIVE, "0").len(), 1);
    });
}

#[test]
fn the_next_worker_of_a_key_ends_the_upload_of_one_that_lost_its_lease() {
    simulate(2, async |mut sim| {
        sim.share();
        slow_parts(&sim, "daemon-0", Duration::from_secs(100));
        let lease = Place::sqs("ChangeMessageVisibilityBatch").client("daemon-0");
        sim.net
            .faults()
            .add(Fault::new("lost lease", lease, Effect::Drop));
        sim.post_everything();
        sim.fill("", 1, 5 * PART).await;
        let first = fleet::lone(&mut sim, "", AWS).await;
        sim.pass(Duration::from_secs(20)).await;
        let second = fleet::nth(&mut sim, "", AWS, 1).await;
        sim.drained().await;
        sim.net.faults().clear_all();
        assert_eq!(left_open(&sim), [""; 0]);
        first.stop().await;
        second.stop().await;
        assert_eq!(sim.s3.history(ARCHIVE, "0").len(), 1);
    });
}

#[test]
fn a_lone_object_has_as_many_parts_on_their_way_as_memory_has_room_for() {
    simulate(3, async |mut sim| {
        slow_parts(&sim, "daemon-0", Duration::from_secs(10));
        sim.post_everything();
        sim.fill("", 1, 14 * PART).await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        // An eighth of 64 MiB is for small objects.
        assert_eq!(most_at_once(&parts(&sim, "0")), 7);
    });
}

#[test]
fn who_is_left_of_many_gets_what_the_others_had() {
    simulate(4, async |mut sim| {
        slow_parts(&sim, "daemon-0", Duration::from_secs(10));
        sim.post_everything();
        sim.fill("short-", 3, 2 * PART).await;
        sim.fill("long-", 1, 28 * PART).await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        let long = parts(&sim, "long-0");
        let others = (0..3)
            .flat_map(|number| parts(&sim, &format!("short-{number}")))
            .map(|part| part.sent)
            .max();
        let after: Vec<Entry> = long
            .into_iter()
            .filter(|part| Some(part.sent) > others)
            .collect();
        assert_eq!(most_at_once(&after), 7);
    });
}

#[test]
fn a_part_that_fails_leaves_the_others_to_finish_and_none_of_them_is_sent_again() {
    simulate(5, async |mut sim| {
        let denied = Place::s3("UploadPart").client("daemon-0");
        sim.net
            .faults()
            .add(Fault::new("denied", denied, Effect::refuse(403, "AccessDenied")).times(1));
        slow_parts(&sim, "daemon-0", Duration::from_secs(10));
        sim.post_everything();
        sim.fill("", 1, 9 * PART).await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.pass(Duration::from_secs(60)).await;
        assert_eq!(
            parts(&sim, "0").len(),
            4,
            "none begins after one has failed"
        );
        sim.pass(fleet::TRIED_WITHIN).await;
        daemon.stop().await;
        assert_eq!(sim.s3.history(ARCHIVE, "0").len(), 1);
        assert_eq!(parts(&sim, "0").len(), 9 + 1);
    });
}

fn slow_parts(sim: &Sim, client: &str, by: Duration) {
    let parts = Place::s3("UploadPart").client(client);
    sim.net
        .faults()
        .add(Fault::new("slow", parts, Effect::Delay(by)));
}

/// Names the clients that began the uploads that are open.
fn left_open(sim: &Sim) -> Vec<String> {
    sim.s3
        .open_uploads(ARCHIVE)
        .into_iter()
        .map(|upload| upload.by)
        .collect()
}

fn parts(sim: &Sim, key: &str) -> Vec<Entry> {
    let is_part = |entry: &Entry| {
        entry.call.operation == "UploadPart" && entry.call.key.as_deref() == Some(key)
    };
    sim.net.journal().select(is_part)
}

/// Counts the requests that were sent within the ten seconds that each takes.
fn most_at_once(parts: &[Entry]) -> usize {
    let from = |first: &Entry| {
        let until = first.sent + Duration::from_secs(10);
        parts
            .iter()
            .filter(|part| (first.sent..until).contains(&part.sent))
            .count()
    };
    parts.iter().map(from).max().unwrap_or_default()
}
