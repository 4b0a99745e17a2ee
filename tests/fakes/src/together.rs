//! The fakes as one world: what S3 tells SQS, what it asks KMS, and what the journal keeps of it.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, RequestChecksumCalculation};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, ServerSideEncryption};

use crate::clock::Clock;
use crate::faults::{Effect, Fault, Place};
use crate::journal::Service;
use crate::net::Net;
use crate::s3::entry::Versioning;
use crate::{kms, s3, sqs};

struct World {
    net: Net,
    fake: s3::Fake,
    keys: kms::Keys,
    queues: sqs::Fake,
    client: aws_sdk_s3::Client,
}

fn world() -> World {
    let (net, clock) = (Net::new(1), Clock::starting_at_unix(1_800_000_000));
    let (fake, keys) = (s3::Fake::new(clock.clone(), 2), kms::Keys::default());
    let queues = sqs::Fake::new("http://sqs.sim", clock.clone(), 3);
    queues.create("events");
    fake.create_bucket("orders", Versioning::Enabled);
    fake.set_key_ring(Arc::new(keys.clone()));
    let events = queues.clone();
    fake.notify(
        "orders",
        Arc::new(move |message| drop(events.send("events", message, Duration::ZERO))),
    );
    net.route("s3.sim", Service::S3, fake.clone());
    net.route("sqs.sim", Service::Sqs, queues.clone());
    net.route("kms.sim", Service::Kms, keys.clone());
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("one", "secret", None, None, "test"))
        .force_path_style(true)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .retry_config(RetryConfig::disabled())
        .endpoint_url("http://s3.sim")
        .http_client(net.client("one"))
        .time_source(clock);
    World {
        client: aws_sdk_s3::Client::from_conf(config.build()),
        net,
        fake,
        keys,
        queues,
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_put_is_told_to_the_queue() {
    let world = world();
    let asked = world
        .client
        .put_object()
        .bucket("orders")
        .key("a b/ä+")
        .body(b"hello".to_vec().into());
    let version = asked.send().await.unwrap().version_id.unwrap();
    let messages = world.queues.messages("events");
    let event: serde_json::Value = serde_json::from_str(&messages[0].body).unwrap();
    assert_eq!(
        event["Records"][0]["s3"]["object"]["versionId"],
        version.as_str()
    );
    let put = &world.net.journal().of("PutObject")[0];
    assert_eq!(put.call.key.as_deref(), Some("a b/ä+"));
    assert_eq!(world.fake.history("orders", "a b/ä+").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_switched_off_stops_a_put_and_nothing_is_written() {
    let world = world();
    let arn = "arn:aws:kms:us-east-1:222222222222:key/one";
    let put = || {
        let asked = world
            .client
            .put_object()
            .bucket("orders")
            .key("k")
            .ssekms_key_id(arn);
        asked
            .server_side_encryption(ServerSideEncryption::AwsKms)
            .send()
    };
    world.keys.set(arn, kms::State::Disabled);
    assert_eq!(
        put().await.unwrap_err().code(),
        Some("KMS.DisabledException")
    );
    assert!(world.fake.history("orders", "k").is_empty());
    world.keys.set(arn, kms::State::Enabled);
    put().await.unwrap();
    assert_eq!(world.fake.history("orders", "k").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_upload_whose_completion_goes_unanswered_is_there_and_ended_in_the_journal() {
    let world = world();
    let begun = world
        .client
        .create_multipart_upload()
        .bucket("orders")
        .key("k")
        .send()
        .await
        .unwrap();
    let id = begun.upload_id.unwrap();
    let asked = world
        .client
        .upload_part()
        .bucket("orders")
        .key("k")
        .upload_id(&id)
        .part_number(1);
    let part = asked.body(vec![7; 100_000].into()).send().await.unwrap();
    let part = CompletedPart::builder()
        .part_number(1)
        .set_e_tag(part.e_tag)
        .build();
    let parts = CompletedMultipartUpload::builder().parts(part).build();
    world.net.faults().add(Fault::new(
        "lost",
        Place::s3("CompleteMultipartUpload"),
        Effect::LoseAnswer,
    ));
    let asked = world
        .client
        .complete_multipart_upload()
        .bucket("orders")
        .key("k")
        .upload_id(&id)
        .multipart_upload(parts);
    assert!(asked.send().await.unwrap_err().raw_response().is_none());
    let upload = &world.net.journal().uploads()[&id];
    assert_eq!(
        (upload.begun_by.as_deref(), upload.ended.len()),
        (Some("one"), 1)
    );
    let got = world
        .client
        .get_object()
        .bucket("orders")
        .key("k")
        .send()
        .await
        .unwrap();
    assert_eq!(
        got.body.collect().await.unwrap().into_bytes().len(),
        100_000
    );
}
