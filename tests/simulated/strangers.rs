//! What others wrote, whatever it says of itself.

use std::time::Duration;

use aws_sdk_s3::types::ChecksumAlgorithm;
use replicator_fakes::s3::entry::Entry;

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, QUEUE, SOURCE, simulate};

#[test]
fn a_replica_that_was_copied_to_another_key_is_no_replica_there() {
    for (foreign, shown) in [("supersede", &b"of b"[..]), ("keep", b"of a")] {
        simulate(1, async |mut sim| {
            let (rule, first) = (format!("foreign = \"{foreign}\""), "filter = { prefix = \"a\" }");
            sim.post_everything();
            sim.put("b", b"of b").await;
            let event = sim.sqs.messages(QUEUE).last().unwrap().body.clone();
            sim.pass(Duration::from_secs(600)).await;
            sim.put("a", b"of a").await;
            let daemon = fleet::lone(&mut sim, first, AWS).await;
            sim.drained().await;
            daemon.stop().await;
            let copy = sim.user().copy_object().bucket(ARCHIVE).key("b").copy_source(format!("{ARCHIVE}/a"));
            copy.send().await.unwrap();
            let daemon = fleet::lone(&mut sim, &rule, AWS).await;
            sim.sqs.send(QUEUE, event, Duration::ZERO);
            sim.drained().await;
            daemon.stop().await;
            assert_eq!(sim.shown(ARCHIVE, "b").as_deref(), Some(shown), "{foreign}");
        });
    }
}

#[test]
fn a_replica_does_not_go_back_to_where_it_came_from_whatever_checksum_its_original_has() {
    for bytes in [3, 20 << 20] {
        simulate(2, async |mut sim| {
            sim.post_everything();
            let put = sim.user().put_object().bucket(SOURCE).key("a").checksum_algorithm(ChecksumAlgorithm::Crc32);
            put.body(vec![1; bytes].into()).send().await.unwrap();
            let event = sim.sqs.messages(QUEUE).last().unwrap().body.clone();
            let forth = fleet::lone(&mut sim, "", AWS).await;
            sim.drained().await;
            forth.stop().await;
            sim.put("a", b"newer").await;
            // Its event is lost; the one that comes is that of the replica.
            let original = sim.s3.history(SOURCE, "a")[0].clone();
            let replica = sim.s3.history(ARCHIVE, "a")[0].clone();
            let checksum = |entry: &Entry| entry.object.as_ref().unwrap().checksum.as_ref().unwrap().algorithm;
            assert_ne!(checksum(&original), checksum(&replica));
            let told = event.replace(&original.version_id, &replica.version_id).replace(SOURCE, ARCHIVE);
            let back = format!(
                "enabled = false\n[[rules]]\nid = \"back\"\nsource = {{ account = \"archive\", bucket = \"{ARCHIVE}\" }}\n\
                destination = {{ account = \"source\", bucket = \"{SOURCE}\" }}\nsince = \"2020-01-01T00:00:00Z\""
            );
            let back = fleet::nth(&mut sim, &back, AWS, 1).await;
            sim.sqs.send(QUEUE, told, Duration::ZERO);
            sim.drained().await;
            back.stop().await;
            assert_eq!(sim.s3.ever(SOURCE, "a").len(), 2, "{bytes} bytes went back");
        });
    }
}
