//! A message stays hidden while its work goes on, though SQS cannot always do what it is asked.

use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::sqs::Quirks;

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{AWS, QUEUE, Sim, simulate};

#[test]
fn a_lease_that_sqs_fails_to_extend_once_is_extended_with_the_next_try() {
    simulate(0, async |mut sim| {
        sim.post_everything();
        // Both take longer than the message has left when its lease is to be extended first.
        for operation in ["GetObject", "PutObject"] {
            let place = Place::s3(operation).client("daemon-0");
            sim.net
                .faults()
                .add(Fault::new("slow", place, Effect::Delay(Duration::from_secs(25))).times(1));
        }
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.put("a", b"one").await;
        let mut seconds = 0;
        while sim.waiting() > 0 {
            let batch_failures = if (20..41).contains(&seconds) {
                1.0
            } else {
                0.0
            };
            sim.sqs.quirks(
                QUEUE,
                Quirks {
                    batch_failures,
                    ..Quirks::default()
                },
            );
            let receives = sim
                .sqs
                .messages(QUEUE)
                .iter()
                .map(|message| message.receives)
                .max();
            assert!(receives <= Some(1), "delivered again after {seconds} s");
            sim.pass(Duration::from_secs(1)).await;
            seconds += 1;
        }
        assert!(seconds > 41, "nothing had to be extended");
        daemon.stop().await;
    });
}

/// Waits until the queue is empty; says how long that took.
async fn settled(sim: &Sim, most: Duration) -> Duration {
    let began = tokio::time::Instant::now();
    while sim.waiting() > 0 && began.elapsed() < most {
        sim.pass(Duration::from_secs(5)).await;
    }
    began.elapsed()
}

#[test]
fn work_that_takes_longer_than_sqs_hides_a_message_goes_on_when_it_comes_again() {
    const HOUR: Duration = Duration::from_secs(3600);
    // Twelve hours are known; that it is less is learnt from the refusal.
    for (hidden_max, rate, is_told) in [(None, "1KiB/s", false), (Some(3 * HOUR), "4KiB/s", true)] {
        simulate(5, async |mut sim| {
            sim.post_everything();
            sim.sqs.quirks(
                QUEUE,
                Quirks {
                    hidden_max,
                    ..Quirks::default()
                },
            );
            let daemon = fleet::lone(
                &mut sim,
                &format!("limits = {{ bandwidth = \"{rate}\" }}"),
                AWS,
            )
            .await;
            sim.fill("large-", 1, 50 << 20).await;
            let took = settled(&sim, 24 * HOUR).await;
            assert!(
                took > hidden_max.unwrap_or(12 * HOUR) && took < 24 * HOUR,
                "{rate}: it took {took:?}"
            );
            let lost =
                fleet::figure(&daemon, "queue_messages_total", &["outcome=\"lease_lost\""]).await;
            let said = sim.sqs.refused(QUEUE);
            assert_eq!(
                (
                    lost,
                    said.iter().any(|said| said.contains("beyond the limit"))
                ),
                (1.0, is_told),
                "{said:?}"
            );
            daemon.stop().await;
            assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
        });
    }
}
