//! What is refused until an operator acts is parked under its name, and what passes by itself is
//! not. A HEAD that is refused has no text: what it would have said decides which of the two it is.

use std::time::Duration;

use aws_sdk_s3::types::ServerSideEncryption;
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::Service;
use replicator_fakes::kms::State;
use s3_replicator::pipeline::Daemon;

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, DEAD, NOT_AWS, QUEUE, SOURCE, Sim, simulate};

const KEY: &str = "arn:aws:kms:eu-central-1:222222222222:key/one";
const OTHER_KEY: &str = "arn:aws:kms:eu-central-1:222222222222:key/other";

/// Refuses every look at the destination.
fn refuse(sim: &Sim, status: u16, code: &'static str) {
    let looks = Place::s3("HeadObject")
        .or("GetObject")
        .or("ListObjectVersions")
        .bucket(ARCHIVE)
        .client("daemon-0");
    sim.net
        .faults()
        .add(Fault::new(code, looks, Effect::refuse(status, code)));
}

#[test]
fn credentials_that_ended_park_nothing() {
    for (status, code) in [(400, "ExpiredToken"), (403, "RequestTimeTooSkewed")] {
        simulate(1, async |mut sim| {
            sim.post_everything();
            refuse(&sim, status, code);
            sim.put("a", b"one").await;
            let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
            sim.pass(Duration::from_secs(60)).await;
            assert_eq!(
                sim.sqs.depth(QUEUE).visible + sim.sqs.depth(QUEUE).hidden,
                1,
                "{code}: the message is kept"
            );
            sim.net.faults().clear_all();
            sim.drained().await;
            assert_eq!(sim.shown(ARCHIVE, "a").as_deref(), Some(&b"one"[..]));
            assert!(
                sim.sqs.messages(DEAD).is_empty(),
                "{code}: {:?}",
                sim.sqs.messages(DEAD)
            );
            daemon.stop().await;
        });
    }
}

#[test]
fn a_permission_that_is_lacking_parks_under_its_name() {
    simulate(2, async |mut sim| {
        sim.post_everything();
        refuse(&sim, 403, "AccessDenied");
        sim.put("a", b"one").await;
        let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
        sim.drained().await;
        let parked = daemon.status().await.unwrap().parked;
        assert_eq!(parked.len(), 1);
        assert_eq!(parked[0].reason.as_str(), "DstHeadObjectNotPermitted");
        daemon.stop().await;
    });
}

#[test]
fn what_is_parked_is_booked_on_the_rule_that_took_the_version() {
    simulate(3, async |mut sim| {
        sim.post_everything();
        let writes = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
        sim.net.faults().add(Fault::new(
            "refused",
            writes,
            Effect::refuse(403, "AccessDenied"),
        ));
        sim.put("a", b"has no tags").await;
        let gold = "priority = 10\nfilter = { tags = { tier = \"gold\" } }";
        let daemon = fleet::lone(&mut sim, &fleet::rule_text("gold", ARCHIVE, gold), AWS).await;
        sim.drained().await;
        let parked = daemon.status().await.unwrap().parked;
        let booked: Vec<&str> = parked.iter().map(|parked| parked.rule.as_str()).collect();
        assert_eq!(booked, ["orders"]);
        daemon.stop().await;
    });
}

#[test]
fn an_access_key_that_is_not_known_parks_and_is_tried_again_ever_more_seldom() {
    for (seed, code) in [(4, "InvalidAccessKeyId"), (5, "SignatureDoesNotMatch")] {
        simulate(seed, async |mut sim| {
            sim.post_everything();
            let all = Place::service(Service::S3)
                .bucket(ARCHIVE)
                .client("daemon-0");
            sim.net
                .faults()
                .add(Fault::new(code, all, Effect::refuse(403, code)));
            sim.put("a", b"one").await;
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.drained().await;
            assert_eq!(reasons(&daemon).await, ["DstGetVersioningNotPermitted"]);
            let alarm = fleet::figure(
                &daemon,
                "parked",
                &["reason=\"DstGetVersioningNotPermitted\""],
            )
            .await;
            assert_eq!(alarm, 1.0, "{code}");
            let before = sim.net.faults().hits(code);
            sim.pass(2 * fleet::TRIED_WITHIN).await;
            let asked = sim.net.faults().hits(code) - before;
            assert!(
                (3..=10).contains(&asked),
                "{code}: asked {asked} times in two hours"
            );
            sim.net.faults().clear(code);
            arrives(&sim, &daemon).await;
            daemon.stop().await;
        });
    }
}

#[test]
fn a_kms_key_that_cannot_be_used_parks_under_its_name_until_it_can() {
    let states = [
        (State::Disabled, "DstKmsKeyInvalidState"),
        (State::PendingDeletion, "DstKmsKeyInvalidState"),
        (State::Unknown, "DstKmsKeyNotFound"),
        (State::Denied, "DstPutObjectNotPermitted"),
    ];
    for (state, reason) in states {
        simulate(6, async |mut sim| {
            sim.keys.set(KEY, state);
            sim.post_everything();
            sim.put("a", b"one").await;
            let encrypted = format!("encryption = {{ mode = \"kms\", key = \"{KEY}\" }}");
            let daemon = fleet::lone(&mut sim, &encrypted, AWS).await;
            sim.drained().await;
            assert_eq!(reasons(&daemon).await, [reason], "{state:?}");
            assert!(sim.s3.ever(ARCHIVE, "a").is_empty());
            sim.keys.set(KEY, State::Enabled);
            arrives(&sim, &daemon).await;
            daemon.stop().await;
        });
    }
}

#[test]
fn a_kms_key_of_the_source_that_is_switched_off_parks_what_it_encrypts() {
    simulate(7, async |mut sim| {
        sim.post_everything();
        let put = sim
            .user()
            .put_object()
            .bucket(SOURCE)
            .key("a")
            .body(b"one".to_vec().into());
        let encrypted = put
            .server_side_encryption(ServerSideEncryption::AwsKms)
            .ssekms_key_id(KEY);
        encrypted.send().await.unwrap();
        sim.keys.set(KEY, State::Disabled);
        let rule = format!(
            "sse_kms_objects = true\nencryption = {{ mode = \"kms\", key = \"{OTHER_KEY}\" }}"
        );
        let daemon = fleet::lone(&mut sim, &rule, AWS).await;
        sim.drained().await;
        assert_eq!(reasons(&daemon).await, ["SrcKmsKeyInvalidState"]);
        sim.keys.set(KEY, State::Enabled);
        arrives(&sim, &daemon).await;
        daemon.stop().await;
    });
}

/// Lists why things are parked.
async fn reasons(daemon: &Daemon) -> Vec<&'static str> {
    daemon
        .status()
        .await
        .unwrap()
        .parked
        .iter()
        .map(|parked| parked.reason.as_str())
        .collect()
}

/// Sees that what was parked is done by itself.
async fn arrives(sim: &Sim, daemon: &Daemon) {
    sim.pass(fleet::TRIED_WITHIN).await;
    assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"));
    assert!(
        reasons(daemon).await.is_empty(),
        "it is done, and parked all the same"
    );
}
