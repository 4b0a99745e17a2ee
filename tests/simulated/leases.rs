//! A message stays hidden while its work goes on, though SQS cannot always do what it is asked.

use std::time::Duration;

use replicator_fakes::sqs::Quirks;

use crate::fleet;
use crate::sim::{AWS, QUEUE, SOURCE, simulate};

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
