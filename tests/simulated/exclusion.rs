//! A message group is a destination key: what is in work at one holds up no other, and nothing is
//! done at a key without a message of its group.

use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::s3::entry::Versioning;

use crate::fleet::{self, rule_text};
use crate::judge::{DAEMONS_MAX, Expect, judge};
use crate::sim::{ARCHIVE, AWS, QUEUE, SOURCE, Sim, WORK, simulate};

/// Order rests on no condition.
const UNCONDITIONAL: &str = "path_style = true\nconditional_writes = false";

/// Another bucket with keys of the same names, which go to the same destination under others.
const INVOICES: &str = "invoices";

/// Makes it, with its events in the queue; returns the rest of the first rule, and its rule.
fn with_invoices(sim: &Sim) -> String {
    sim.s3.create_bucket(INVOICES, Versioning::Enabled);
    let sqs = sim.sqs.clone();
    sim.s3.notify(
        INVOICES,
        std::sync::Arc::new(move |event| drop(sqs.send(QUEUE, event, Duration::ZERO))),
    );
    let rest = format!(
        "work_queue = \"{}\"\nfilter = {{ prefix = \"same/\" }}",
        sim.sqs.url(WORK)
    );
    let rule = rule_text(INVOICES, ARCHIVE, &rest)
        .replace(&format!("\"{SOURCE}\""), &format!("\"{INVOICES}\""));
    let destination = format!("\"{ARCHIVE}\"");
    let rule = rule.replace(
        &destination,
        &format!("{destination}, prefix = \"invoices/\""),
    );
    format!("filter = {{ prefix = \"same/\" }}\n{rule}")
}

#[test]
fn a_key_that_hangs_holds_up_no_key_of_the_same_name_from_another_bucket() {
    simulate(1, async |mut sim| {
        sim.share();
        sim.post_everything();
        let rules = with_invoices(&sim);
        let daemon = fleet::lone(&mut sim, &rules, AWS).await;
        let hung = Place::s3("PutObject").bucket(ARCHIVE).key("same/a");
        sim.net
            .faults()
            .add(Fault::new("hung", hung, Effect::Silence { lands: false }));
        sim.put("same/a", b"order").await;
        sim.pass(Duration::from_secs(2)).await;
        let put = sim
            .user()
            .put_object()
            .bucket(INVOICES)
            .key("same/a")
            .body(ByteStream::from_static(b"invoice"));
        put.send().await.unwrap();
        sim.pass(Duration::from_secs(5)).await;
        assert_eq!(sim.s3.keys(ARCHIVE), ["invoices/a"]);
        sim.net.faults().clear("hung");
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.s3.keys(ARCHIVE), ["invoices/a", "same/a"]);
    });
}

#[test]
fn what_is_parked_is_tried_again_by_a_message_alone() {
    simulate(2, async |mut sim| {
        sim.share();
        sim.post_everything();
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        let denied = Place::s3("PutObject").bucket(ARCHIVE);
        sim.net.faults().add(Fault::new(
            "denied",
            denied,
            Effect::refuse(403, "AccessDenied"),
        ));
        sim.put("a", b"one").await;
        sim.drained().await;
        assert_eq!(daemon.status().await.unwrap().parked.len(), 1);
        sim.net.faults().clear("denied");
        // Another daemon could have the group in work: this one is given nothing.
        let given = Place::sqs("ReceiveMessage").bucket(WORK);
        sim.net
            .faults()
            .add(Fault::new("nothing", given, Effect::Unreachable));
        sim.pass(fleet::TRIED_WITHIN).await;
        assert!(
            sim.s3.keys(ARCHIVE).is_empty(),
            "a key was written to without its message"
        );
        assert_eq!(sim.sqs.messages(WORK).len(), 1, "a message asks for it");
        sim.net.faults().clear("nothing");
        sim.drained().await;
        assert!(daemon.status().await.unwrap().parked.is_empty());
        daemon.stop().await;
        assert_eq!(judge(&sim, Expect::IN_DOUBT), Vec::<String>::new());
    });
}

#[test]
fn an_event_stays_in_its_queue_until_its_work_is_in_the_work_queue() {
    let late = Effect::Delay(Duration::from_secs(10));
    for (seed, effect) in [(3, late), (4, Effect::Unreachable), (5, Effect::LoseAnswer)] {
        simulate(seed, async |mut sim| {
            sim.share();
            sim.post_everything();
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            let sent = Place::sqs("SendMessageBatch").bucket(WORK);
            sim.net
                .faults()
                .add(Fault::new("sent", sent, effect.clone()));
            sim.put("a", b"one").await;
            sim.pass(Duration::from_secs(5)).await;
            // The daemon is not told that it was taken, even where it was.
            assert_eq!(
                sim.sqs.messages(QUEUE).len(),
                1,
                "{effect:?}: the event is gone"
            );
            sim.net.faults().clear("sent");
            sim.drained().await;
            daemon.stop().await;
            assert_eq!(
                judge(&sim, Expect::EXACT),
                Vec::<String>::new(),
                "{effect:?}"
            );
        });
    }
}

#[test]
fn whoever_takes_a_message_over_waits_for_what_its_last_worker_sent() {
    let small = (b"one".to_vec(), "PutObject", Duration::from_secs(15));
    let large = (
        vec![1; (8 << 20) + 1],
        "CompleteMultipartUpload",
        Duration::from_secs(300),
    );
    for (seed, (body, operation, late)) in [(6, small), (7, large)] {
        simulate(seed, async |mut sim| {
            sim.share();
            sim.post_everything();
            let first = fleet::nth(&mut sim, "", UNCONDITIONAL, 0).await;
            let write = Place::s3(operation).client("daemon-0");
            sim.net
                .faults()
                .add(Fault::new("late", write, Effect::LandLate(late)));
            sim.user()
                .put_object()
                .bucket(SOURCE)
                .key("a")
                .body(body.into())
                .send()
                .await
                .unwrap();
            while sim.net.faults().hits("late") == 0 {
                sim.pass(Duration::from_millis(10)).await;
            }
            // As kill -9 does, while the write is on its way.
            drop(first);
            sim.delete("a").await;
            let second = fleet::nth(&mut sim, "", UNCONDITIONAL, 1).await;
            // The poll that the dead one left takes what shows first.
            for _ in 0..2 {
                sim.redeliver_hidden();
                sim.pass(Duration::from_millis(500)).await;
            }
            sim.drained().await;
            second.stop().await;
            sim.net.quiet().await;
            assert_eq!(sim.shown(ARCHIVE, "a"), None, "{operation}");
            let wrong = judge(
                &sim,
                Expect {
                    forgetful: [true; DAEMONS_MAX],
                    ..Expect::IN_DOUBT
                },
            )
            .into_iter();
            // As the account has it.
            let wrong = wrong.filter(|what| {
                !what.contains(" without a condition") && !what.contains(" without condition")
            });
            assert_eq!(
                wrong.collect::<Vec<_>>(),
                Vec::<String>::new(),
                "{operation}"
            );
        });
    }
}
