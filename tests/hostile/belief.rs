//! What a stamp or a list says that nothing else bears out.

use replicator_fakes::s3::entry::Entry;

use crate::world::daemon::Daemon;
use crate::world::hostile::{ARCHIVE, Hostile, Reply, SOURCE};

/// Returns the bodies that a bucket keeps of a key, oldest first.
fn bodies(world: &Hostile, bucket: &str) -> Vec<Vec<u8>> {
    let body = |entry: &Entry| entry.object.as_ref().unwrap().bytes.to_vec();
    world
        .s3
        .history(bucket, "a")
        .iter()
        .map(|entry| body(entry))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stamp_from_the_year_9999_makes_nothing_late() {
    let world = Hostile::new().await;
    world.put("a", b"one".to_vec()).await;
    let daemon = Daemon::spawn(&world.config()).ready().await;
    world.replicated("a").await;
    world.drained().await;
    let replica = world
        .user()
        .head_object()
        .bucket(ARCHIVE)
        .key("a")
        .send()
        .await
        .unwrap();
    let stamp = replica.metadata.unwrap()["s3-replicator"].clone();
    let mut fields: Vec<&str> = stamp.split(';').collect();
    (fields[2], fields[3]) = ("gone", "253402300799000");
    let forged = world
        .user()
        .put_object()
        .bucket(ARCHIVE)
        .key("a")
        .metadata("s3-replicator", fields.join(";"));
    forged.body(b"one".to_vec().into()).send().await.unwrap();
    for body in [b"two", b"six"] {
        world.put("a", body.to_vec()).await;
        world.replicated("a").await;
        world.drained().await;
    }
    let metrics = daemon.metrics().await;
    assert!(metrics.sum("failures_total", &[("reason", "StampNotBorneOut")]) > 0.0);
    assert_eq!(
        metrics.sum("failures_total", &[("reason", "ArrivedLate")]),
        0.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_whose_latest_entry_is_not_the_first_is_asked_for_again() {
    let world = Hostile::new().await;
    world.put("a", b"one".to_vec()).await;
    let daemon = Daemon::spawn(&world.config()).ready().await;
    world.replicated("a").await;
    world.drained().await;
    let flip = Reply::alter(|answer| {
        let text = String::from_utf8(std::mem::take(&mut answer.body)).unwrap();
        let (latest, other) = ("<IsLatest>true", "<IsLatest>false");
        answer.body = text
            .replace(latest, "<IsLatest>")
            .replace(other, latest)
            .replace("<IsLatest><", "<IsLatest>false<")
            .into();
    });
    world.answer_times(1, |seen| seen.is(SOURCE, "ListObjectVersions"), flip);
    world.put("a", b"two".to_vec()).await;
    world.replicated("a").await;
    world.drained().await;
    assert_eq!(world.hits(), 1);
    assert_eq!(
        bodies(&world, ARCHIVE),
        bodies(&world, SOURCE),
        "each version once, in order"
    );
    drop(daemon);
}
