//! A queue that does what it is told only in part: batches of which some entries fail, a
//! dead-letter queue that takes nothing for a while. No message is lost, and none goes before what
//! it is about is safe.

use std::collections::BTreeSet;
use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::sqs::Quirks;

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, DEAD, QUEUE, Sim, simulate};

const BROKEN: usize = 30;

const ERROR: Effect = Effect::Refuse {
    status: 500,
    code: "InternalError",
    lands: false,
};

#[test]
fn what_the_dead_letter_queue_does_not_take_stays_where_it_was() {
    simulate(1, async |mut sim| {
        sim.net.faults().add(Fault::new(
            "full",
            Place::sqs("SendMessage").bucket(DEAD),
            ERROR,
        ));
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        let sent = break_messages(&sim);
        for _ in 0..30 {
            sim.pass(Duration::from_secs(30)).await;
            assert_eq!(sim.waiting(), BROKEN, "a message went before it was kept");
            assert_eq!(sim.sqs.messages(DEAD).len(), 0);
        }
        sim.net.faults().clear("full");
        sim.drained().await;
        assert_eq!(dead(&sim), sent);
        assert_eq!(sim.sqs.messages(DEAD).len(), BROKEN, "each of them once");
        daemon.stop().await;
    });
}

#[test]
fn an_answer_of_the_dead_letter_queue_that_is_lost_doubles_a_message_and_loses_none() {
    simulate(2, async |mut sim| {
        sim.net.faults().add(
            Fault::new(
                "lost",
                Place::sqs("SendMessage").bucket(DEAD),
                Effect::LoseAnswer,
            )
            .every(3),
        );
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        let sent = break_messages(&sim);
        sim.drained().await;
        assert!(sim.net.faults().hits("lost") > 0);
        // That it was taken is not known, so it is sent again: at least once.
        assert_eq!(dead(&sim), sent);
        daemon.stop().await;
    });
}

#[test]
fn what_is_parked_comes_back_from_the_dead_letter_queue_after_a_lost_disk() {
    for is_shared in [false, true] {
        simulate(4, async |mut sim| {
            if is_shared {
                sim.share();
            }
            sim.post_everything();
            let refused = Effect::refuse(403, "AccessDenied");
            sim.net.faults().add(Fault::new(
                "refused",
                Place::s3("PutObject").bucket(ARCHIVE),
                refused,
            ));
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            for key in ["a", "b"] {
                sim.put(key, b"content").await;
            }
            sim.drained().await;
            // A retry that fails again adds nothing there.
            sim.pass(fleet::TRIED_WITHIN).await;
            let parked = sim.sqs.messages(DEAD);
            let reasons: Vec<&str> = parked
                .iter()
                .map(|message| message.attributes["Reason"].as_str())
                .collect();
            assert_eq!(
                reasons, ["DstPutObjectNotPermitted"; 2],
                "shared: {is_shared}"
            );
            daemon.stop().await;
            std::fs::remove_dir_all(sim.dir.path().join("daemon-0")).unwrap();
            sim.net.faults().clear("refused");
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.pass(fleet::TRIED_WITHIN).await;
            assert!(
                sim.s3.keys(ARCHIVE).is_empty(),
                "only the dead-letter queue knows of them"
            );
            parked
                .into_iter()
                .for_each(|message| drop(sim.sqs.send(QUEUE, message.body, Duration::ZERO)));
            sim.drained().await;
            daemon.stop().await;
            assert_eq!(
                judge(&sim, Expect::EXACT),
                Vec::<String>::new(),
                "shared: {is_shared}"
            );
        });
    }
}

#[test]
fn batches_that_fail_in_part_lose_nothing_and_cost_no_second_write() {
    simulate(3, async |mut sim| {
        sim.post_everything();
        sim.sqs.quirks(
            QUEUE,
            Quirks {
                batch_failures: 0.5,
                ..Quirks::default()
            },
        );
        // Longer than half of a visibility timeout: messages have to be kept hidden meanwhile.
        let slow = Effect::Delay(Duration::from_secs(50));
        sim.net
            .faults()
            .add(Fault::new("slow", Place::s3("GetObject").client("daemon-0"), slow).every(5));
        for number in 0..60 {
            sim.put(&format!("key-{number}"), b"content").await;
        }
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(
            sim.net.journal().writes(ARCHIVE).len(),
            60,
            "one write for each"
        );
        assert_eq!(judge(&sim, Expect::IN_DOUBT), Vec::<String>::new());
    });
}

/// Sends messages that cannot be read.
fn break_messages(sim: &Sim) -> BTreeSet<String> {
    let bodies = (0..BROKEN).map(|number| format!("{{\"Records\": {number}"));
    bodies
        .inspect(|body| drop(sim.sqs.send(QUEUE, body.clone(), Duration::ZERO)))
        .collect()
}

/// Lists what is in the dead-letter queue.
fn dead(sim: &Sim) -> BTreeSet<String> {
    sim.sqs
        .messages(DEAD)
        .into_iter()
        .map(|message| message.body)
        .collect()
}
