//! Whole history: metadata that leave little room for the stamp, or none, cost no version its
//! replica; and none gets two, where a compact stamp has room.

use std::fs;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::RequestChecksumCalculation;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};

use crate::world::World;
use crate::world::daemon::Daemon;
use crate::world::faults::{Fault, Faults};
use crate::world::localstack::SOURCE;

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_with_little_room_for_the_stamp_is_recognised_after_its_answer_was_lost() {
    recognised_after_a_lost_answer("PutObject", async |bucket| {
        put(&SOURCE.s3(), bucket, "body").send().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_in_parts_with_little_room_is_recognised_after_its_answer_was_lost() {
    recognised_after_a_lost_answer("CompleteMultipartUpload", async |bucket| {
        upload(bucket).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_disk_doubles_none_of_a_history() {
    let world = World::new().await;
    let daemon = world.start().await;
    // Contents recur, among each other and around what does carry a stamp.
    let bodies = ["a", "b", "a", "b", "", "a", "plain", "b", "b", ""];
    write(&world, &bodies).await;
    world.drained(&daemon).await;
    daemon.kill().await;
    fs::remove_dir_all(world.config().state_dir).unwrap();
    let daemon = world.start().await;
    write(&world, &["b", "plain"]).await;
    world.drained(&daemon).await;
    let compared = world.assert_equal().await;
    assert_eq!(
        (&compared["replicas"], &compared["stamped"]),
        (&10.into(), &10.into()),
        "{compared}"
    );
    let late = daemon
        .metrics()
        .await
        .sum("operations_total", &[("outcome", "superseded")]);
    assert_eq!(late, 0.0, "a replica that was there was not seen");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_without_room_for_any_stamp_is_told_of() {
    let world = World::new().await;
    let daemon = world.start().await;
    let put = SOURCE
        .s3()
        .put_object()
        .bucket(&world.source)
        .key("brimful")
        .metadata("all", "x".repeat(2_040));
    put.body(ByteStream::from_static(b"body"))
        .send()
        .await
        .unwrap();
    world.drained(&daemon).await;
    let compared = world.assert_equal().await;
    assert_eq!(
        (&compared["replicas"], &compared["stamped"]),
        (&1.into(), &0.into()),
        "{compared}"
    );
    assert_eq!(
        daemon
            .metrics()
            .await
            .sum("failures_total", &[("reason", "StampTooLarge")]),
        1.0
    );
    assert!(
        daemon.log().contains("no room for the stamp"),
        "{}",
        daemon.log()
    );
}

/// Has the answer to the write of one replica lost, and finds that one replica at the end.
async fn recognised_after_a_lost_answer(operation: &'static str, write: impl AsyncFnOnce(&str)) {
    let world = World::new().await;
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    let archive = world.archive.clone();
    faults.script(Fault::LoseAnswer, 1, move |seen| {
        seen.is(&archive, operation)
    });
    let daemon = Daemon::spawn(&config).ready().await;
    write(&world.source).await;
    world.drained(&daemon).await;
    let compared = world.assert_equal().await;
    assert_eq!(
        (&compared["replicas"], &compared["stamped"]),
        (&1.into(), &1.into()),
        "{compared}"
    );
    assert_eq!(faults.hits(Fault::LoseAnswer), 1);
}

/// Writes versions of one key: nothing is a delete marker, and what is plain has room for a full
/// stamp.
async fn write(world: &World, bodies: &[&str]) {
    for body in bodies {
        match *body {
            "" => drop(
                SOURCE
                    .s3()
                    .delete_object()
                    .bucket(&world.source)
                    .key("full")
                    .send()
                    .await
                    .unwrap(),
            ),
            "plain" => drop(world.put("full", "plain").await),
            body => drop(put(&SOURCE.s3(), &world.source, body).send().await.unwrap()),
        }
    }
}

/// Prepares a write whose metadata leave little of the 2 KB that S3 takes.
fn put(s3: &Client, bucket: &str, body: &str) -> PutObjectFluentBuilder {
    let body = ByteStream::from(body.as_bytes().to_vec());
    s3.put_object()
        .bucket(bucket)
        .key("full")
        .metadata("all", full())
        .body(body)
}

/// Uploads 40 MiB in parts, so that the source states a checksum of checksums.
async fn upload(bucket: &str) {
    let s3 = stating_crc32();
    let request = s3
        .create_multipart_upload()
        .bucket(bucket)
        .key("full")
        .metadata("all", full());
    let upload = request
        .checksum_algorithm(ChecksumAlgorithm::Crc32)
        .send()
        .await
        .unwrap()
        .upload_id
        .unwrap();
    let mut done = CompletedMultipartUpload::builder();
    for number in 1..=5 {
        let body = ByteStream::from(vec![u8::try_from(number).unwrap(); 8 << 20]);
        let request = s3
            .upload_part()
            .bucket(bucket)
            .key("full")
            .upload_id(&upload)
            .part_number(number);
        let answer = request.body(body).send().await.unwrap();
        let part = CompletedPart::builder()
            .part_number(number)
            .set_e_tag(answer.e_tag);
        done = done.parts(part.set_checksum_crc32(answer.checksum_crc32).build());
    }
    let request = s3
        .complete_multipart_upload()
        .bucket(bucket)
        .key("full")
        .upload_id(upload);
    request.multipart_upload(done.build()).send().await.unwrap();
}

/// Makes a client that sends a CRC32 with every body, as most do; without one S3 makes its own, a
/// CRC64NVME.
fn stating_crc32() -> Client {
    let config = SOURCE.s3().config().to_builder();
    Client::from_conf(
        config
            .request_checksum_calculation(RequestChecksumCalculation::WhenSupported)
            .build(),
    )
}

fn full() -> String {
    "x".repeat(1_980)
}
