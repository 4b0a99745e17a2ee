//! Messages that say far more than one thing: what is in flight keeps its bound, and each goes when
//! all of it is done.

use std::time::Duration;

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, QUEUE, simulate};

const KEYS: usize = 50;
// About as many as fit into the MiB that SQS takes; ten larger messages would be more than it ever
// answers with.
const RECORDS: usize = 1_500;
const MESSAGES: usize = 24;

// What the daemon has in flight at the most, beside one message.
const TASKS_MAX: usize = 8_000;

#[test]
fn a_message_of_thousands_of_records_is_worked_off_within_bounds() {
    simulate(1, async |mut sim| {
        sim.post_everything();
        for number in 0..KEYS {
            sim.put(&format!("key-{number}"), b"content").await;
        }
        let told = |body: &str| {
            serde_json::from_str::<serde_json::Value>(body).unwrap()["Records"][0].to_string()
        };
        let events: Vec<String> = sim
            .sqs
            .messages(QUEUE)
            .iter()
            .map(|message| told(&message.body))
            .collect();
        let records: Vec<&str> = events
            .iter()
            .cycle()
            .take(RECORDS)
            .map(String::as_str)
            .collect();
        let message = format!(r#"{{"Records":[{}]}}"#, records.join(","));
        (0..MESSAGES).for_each(|_| drop(sim.sqs.send(QUEUE, message.clone(), Duration::ZERO)));
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        let mut most = 0;
        while sim.waiting() > 0 {
            let board = daemon.status().await.unwrap().in_flight;
            let operations: i64 = board.rules.values().map(|pending| pending.operations).sum();
            most = most.max(usize::try_from(operations).unwrap());
            sim.pass(Duration::from_millis(20)).await;
        }
        assert!(most > RECORDS, "the daemon never had much in hand: {most}");
        assert!(most < TASKS_MAX + RECORDS, "{most} tasks in hand");
        daemon.stop().await;
        assert_eq!(sim.net.journal().writes(ARCHIVE).len(), KEYS);
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
    });
}
