//! Bounded: memory stays under the budget whatever the size of an object, and what arrives is
//! equal.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};

use crate::world::World;
use crate::world::daemon::Daemon;
use crate::world::localstack::SOURCE;

const MIB: usize = 1 << 20;
const PART_BYTES: usize = 64 * MIB;
const PARTS: i32 = 32;
const BUDGET: usize = 64 * MIB;
// What the process takes beside the bodies: itself, its ledger, its connections.
const BESIDE: usize = 64 * MIB;

#[tokio::test(flavor = "multi_thread")]
async fn two_gibibytes_pass_through_a_budget_of_64_mebibytes() {
    let world = World::new().await;
    let mut config = world.config();
    config.memory = "64MiB";
    // Long before the transfer ends the message must have been kept hidden by renewed leases.
    config.visibility_timeout = "10s";
    let daemon = Daemon::spawn(&config).ready().await;
    upload(&world.source).await;
    world.drained(&daemon).await;
    let peak = daemon.peak_memory_bytes();
    eprintln!("peak memory {} MiB", peak / MIB as u64);
    assert!(
        peak < (BUDGET + BESIDE) as u64,
        "peak memory is {} MiB",
        peak / MIB as u64
    );
    assert!(daemon.metrics().await.sum("bytes_total", &[]) >= (PARTS as usize * PART_BYTES) as f64);
    // The comparer reads both objects to their ends, as a stream.
    let compared = world.assert_equal().await;
    assert_eq!(
        (&compared["versions"], &compared["open_uploads"]),
        (&1.into(), &0.into())
    );
}

/// Uploads an object of which no two words are the same, so that nothing can be swapped unseen.
async fn upload(bucket: &str) {
    let s3 = SOURCE.s3();
    let upload = s3
        .create_multipart_upload()
        .bucket(bucket)
        .key("large")
        .send()
        .await
        .unwrap()
        .upload_id
        .unwrap();
    let mut done = CompletedMultipartUpload::builder();
    for number in 1..=PARTS {
        let request = s3
            .upload_part()
            .bucket(bucket)
            .key("large")
            .upload_id(&upload)
            .part_number(number);
        let answer = request
            .body(ByteStream::from(words(number)))
            .send()
            .await
            .unwrap();
        done = done.parts(
            CompletedPart::builder()
                .part_number(number)
                .set_e_tag(answer.e_tag)
                .build(),
        );
    }
    let request = s3
        .complete_multipart_upload()
        .bucket(bucket)
        .key("large")
        .upload_id(upload);
    request.multipart_upload(done.build()).send().await.unwrap();
}

fn words(part: i32) -> Vec<u8> {
    let first = u64::try_from(part).unwrap() * PART_BYTES as u64 / 8;
    (first..first + PART_BYTES as u64 / 8)
        .flat_map(u64::to_le_bytes)
        .collect()
}
