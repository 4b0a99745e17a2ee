//! A message stays hidden while its work goes on, though SQS cannot always do what it is asked.

use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Tag, Tagging};
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::sqs::Quirks;

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{AWS, QUEUE, SOURCE, Sim, simulate};

#[test]
fn a_lease_that_sqs_fails_to_extend_once_is_extended_with_the_next_try() {
    simulate(0, async |mut sim| {
        sim.post_everything();
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.put("a", b"one").await;
        sim.drained().await;
        // The marker waits until the object is old enough: for longer than its message is hidden at first.
        sim.user().delete_object().bucket(SOURCE).key("a").send().await.unwrap();
        let mut seconds = 0;
        while sim.waiting() > 0 {
            let batch_failures = if (20..41).contains(&seconds) { 1.0 } else { 0.0 };
            sim.sqs.quirks(QUEUE, Quirks { batch_failures, ..Quirks::default() });
            let receives = sim.sqs.messages(QUEUE).iter().map(|message| message.receives).max();
            assert!(receives <= Some(1), "delivered again after {seconds} s");
            sim.pass(Duration::from_secs(1)).await;
            seconds += 1;
        }
        assert!(seconds > 41, "nothing had to be extended");
        daemon.stop().await;
    });
}

// Larger than what goes in one part, so that eleven minutes pass before its marker may be written.
const LARGE: usize = 6 << 20;

/// Waits until the queue is empty; says how long that took.
async fn settled(sim: &Sim, most: Duration) -> Duration {
    let began = tokio::time::Instant::now();
    while sim.waiting() > 0 && began.elapsed() < most {
        sim.pass(Duration::from_secs(5)).await;
    }
    began.elapsed()
}

#[test]
fn a_key_that_has_to_wait_long_settles_though_leases_often_cannot_be_extended() {
    for (seed, entries, requests) in [(1, 0.1, 0.0), (2, 0.3, 0.0), (3, 0.0, 0.1)] {
        simulate(seed, async |mut sim| {
            sim.post_everything();
            // How old what is current is counts by sight alone, which ends with the lease.
            let daemon = fleet::lone(&mut sim, "version_deletes = true", AWS).await;
            let large = || ByteStream::from(vec![1; LARGE]);
            let put = sim.user().put_object().bucket(SOURCE).key("a").body(large()).send().await.unwrap();
            sim.drained().await;
            let lost = Fault::new("lost", Place::sqs("ChangeMessageVisibilityBatch"), Effect::Drop);
            sim.net.faults().add(lost.chance(requests));
            sim.sqs.quirks(QUEUE, Quirks { batch_failures: entries, ..Quirks::default() });
            sim.user().delete_object().bucket(SOURCE).key("a").send().await.unwrap();
            for value in 0..10 {
                let tag = Tag::builder().key("tier").value(value.to_string()).build().unwrap();
                let tagging = Tagging::builder().tag_set(tag).build().unwrap();
                let tag = sim.user().put_object_tagging().bucket(SOURCE).key("a").tagging(tagging);
                tag.version_id(put.version_id.as_ref().unwrap()).send().await.unwrap();
            }
            let took = settled(&sim, Duration::from_secs(24 * 3600)).await;
            assert!(took < Duration::from_secs(3 * 3600), "seed {seed}: it took {took:?}");
            daemon.stop().await;
            assert_eq!(judge(&sim, Expect { version_deletes: true, ..Expect::EXACT }), Vec::<String>::new());
        });
    }
}

#[test]
fn work_that_takes_longer_than_sqs_hides_a_message_goes_on_when_it_comes_again() {
    const HOUR: Duration = Duration::from_secs(3600);
    // Twelve hours are known; that it is less is learnt from the refusal.
    for (hidden_max, rate, is_told) in [(None, "1KiB/s", false), (Some(3 * HOUR), "4KiB/s", true)] {
        simulate(5, async |mut sim| {
            sim.post_everything();
            sim.sqs.quirks(QUEUE, Quirks { hidden_max, ..Quirks::default() });
            let daemon = fleet::lone(&mut sim, &format!("limits = {{ bandwidth = \"{rate}\" }}"), AWS).await;
            sim.fill("large-", 1, 50 << 20).await;
            let took = settled(&sim, 24 * HOUR).await;
            assert!(took > hidden_max.unwrap_or(12 * HOUR) && took < 24 * HOUR, "{rate}: it took {took:?}");
            let lost = fleet::figure(&daemon, "queue_messages_total", &["outcome=\"lease_lost\""]).await;
            let said = sim.sqs.refused(QUEUE);
            assert_eq!((lost, said.iter().any(|said| said.contains("beyond the limit"))), (1.0, is_told), "{said:?}");
            daemon.stop().await;
            assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
        });
    }
}
