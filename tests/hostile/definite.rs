//! What something in between says, and what the service itself says: only the latter settles, parks
//! or gives up anything.

use std::time::Duration;

use aws_sdk_s3::types::{Tag, Tagging};

use crate::world::daemon::Daemon;
use crate::world::eventually;
use crate::world::hostile::{ARCHIVE, Hostile, QUEUE, Reply, SOURCE};

/// Waits until a script has answered so often that what takes its word would have done so.
async fn was_tried(world: &Hostile) {
    eventually("it was tried several times", async || world.hits() >= 4).await;
    assert_eq!(world.waiting(), 1, "the message is settled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_says_404_or_405_does_not_make_a_listed_version_gone() {
    for status in ["404 Not Found", "405 Method Not Allowed"] {
        let world = Hostile::new().await;
        world.answer(|seen| seen.is(SOURCE, "GetObject"), Reply::page(status));
        world.put("a", b"one".to_vec()).await;
        let daemon = Daemon::spawn(&world.config()).ready().await;
        was_tried(&world).await;
        assert_eq!(
            daemon
                .metrics()
                .await
                .sum("operations_total", &[("outcome", "gone")]),
            0.0,
            "{status}"
        );
        world.clear();
        world.replicated("a").await;
        world.drained().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_says_404_does_not_settle_a_change_of_tags() {
    let world = Hostile::new().await;
    world.put("a", b"one".to_vec()).await;
    let _daemon = Daemon::spawn(&world.config()).ready().await;
    world.replicated("a").await;
    world.drained().await;
    world.answer(
        |seen| seen.is(SOURCE, "GetObjectTagging"),
        Reply::page("404 Not Found"),
    );
    let tag = Tag::builder().key("tier").value("gold").build().unwrap();
    let tagging = Tagging::builder().tag_set(tag).build().unwrap();
    world
        .user()
        .put_object_tagging()
        .bucket(SOURCE)
        .key("a")
        .tagging(tagging)
        .send()
        .await
        .unwrap();
    was_tried(&world).await;
    world.clear();
    let tags = |bucket| {
        world.s3.history(bucket, "a")[0]
            .object
            .as_ref()
            .unwrap()
            .tags
            .clone()
    };
    eventually("the replica has the tags", async || {
        tags(ARCHIVE) == tags(SOURCE)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_says_404_does_not_make_a_replica_absent() {
    let world = Hostile::new().await;
    let mut config = world.config();
    config.rules[0].history = "latest";
    let delete = async |key: &str| {
        drop(
            world
                .user()
                .delete_object()
                .bucket(SOURCE)
                .key(key)
                .send()
                .await
                .unwrap(),
        );
    };
    for key in ["a", "b"] {
        world.put(key, b"one".to_vec()).await;
    }
    let _daemon = Daemon::spawn(&config).ready().await;
    for key in ["a", "b"] {
        world.replicated(key).await;
    }
    // The look after this marker tells that the endpoint's 404 names markers, so that one without
    // means nothing at all.
    delete("b").await;
    world.replicated("b").await;
    world.drained().await;
    world.answer(
        |seen| seen.is(ARCHIVE, "HeadObject") && seen.key == "a",
        Reply::page("404 Not Found"),
    );
    delete("a").await;
    was_tried(&world).await;
    world.clear();
    world.replicated("a").await;
    assert!(world.shown(ARCHIVE, "a").is_none(), "the source deleted it");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_page_that_says_501_gives_no_condition_up() {
    let world = Hostile::new().await;
    world.answer_times(
        1,
        |seen| seen.is(ARCHIVE, "PutObject"),
        Reply::page("501 Not Implemented"),
    );
    world.put("a", b"one".to_vec()).await;
    let daemon = Daemon::spawn(&world.config()).ready().await;
    world.replicated("a").await;
    world.put("b", b"two".to_vec()).await;
    world.replicated("b").await;
    assert_eq!(world.hits(), 1);
    let writes = world
        .journal()
        .into_iter()
        .filter(|seen| seen.is(ARCHIVE, "PutObject"));
    let bare: Vec<_> = writes
        .filter(|seen| seen.header("if-none-match").is_empty())
        .collect();
    assert!(bare.is_empty(), "{bare:?}");
    assert!(
        !daemon.log().contains("lacks an ability"),
        "{}",
        daemon.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_parked_with_the_region_that_it_names() {
    for (bucket, reason) in [
        (SOURCE, "SrcBucketInvalidRegion"),
        (ARCHIVE, "DstBucketInvalidRegion"),
    ] {
        let world = Hostile::new().await;
        let headers = "content-type: application/xml\r\nx-amz-bucket-region: eu-central-1\r\n";
        let refusal = "<Error><Code>PermanentRedirect</Code><Message>Use the other endpoint.</Message></Error>";
        let redirect = Reply::whole("301 Moved Permanently", headers, refusal);
        world.answer(
            move |seen| seen.service == "s3" && seen.bucket == bucket,
            redirect,
        );
        world.put("two words", b"one".to_vec()).await;
        let daemon = Daemon::spawn(&world.config()).ready().await;
        world.drained().await;
        assert_eq!(
            daemon.metrics().await.sum("parked", &[("reason", reason)]),
            1.0,
            "{reason}"
        );
        let log = daemon.log();
        let parked = log
            .lines()
            .find(|line| line.contains("parked"))
            .unwrap_or_else(|| panic!("{log}"));
        for said in [
            "301 PermanentRedirect",
            "the bucket is in Region eu-central-1",
            "key=\"two words\"",
        ] {
            assert!(parked.contains(said), "{parked}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_waits_for_its_confirmation_is_told_of() {
    let world = Hostile::new().await;
    let daemon = Daemon::spawn(&world.config()).ready().await;
    let url = "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&TopicArn=arn:aws:sns:eu-west-1:1:orders&Token=t";
    let message = serde_json::json!({
        "Type": "SubscriptionConfirmation", "MessageId": "165545c9-2a5c-472c-8df2-7ff2be2b3b1b", "Token": "t",
        "TopicArn": "arn:aws:sns:eu-west-1:111111111111:orders", "Message": "You have chosen to subscribe",
        "SubscribeURL": url, "Timestamp": "2026-11-23T10:00:00.000Z", "SignatureVersion": "1"
    });
    world.sqs.send(QUEUE, message.to_string(), Duration::ZERO);
    world.drained().await;
    let log = daemon.log();
    let told = log
        .lines()
        .find(|line| line.contains("SNS"))
        .unwrap_or_else(|| panic!("{log}"));
    for said in [
        "WARN",
        "SubscriptionConfirmation",
        "arn:aws:sns:eu-west-1:111111111111:orders",
        url,
        "confirm-subscription",
    ] {
        assert!(told.contains(said), "{told}");
    }
}
