//! `check --probe`: what it writes is written as replicas are, and none of it stays.

use crate::check::{Checked, check, read, right};
use crate::world::config::Config;
use crate::world::daemon::{interrupt, run};
use crate::world::faults::{Fault, Faults};
use crate::world::localstack::ARCHIVE;
use crate::world::request::Seen;
use crate::world::{Feed, World, eventually};

async fn probe(config: &Config) -> Checked {
    let output = run(&["check", "--probe", "--json"], config.write()).await;
    read(&output)
}

/// Counts what the destination holds, versions and delete markers.
async fn held(world: &World) -> usize {
    let s3 = ARCHIVE.s3();
    let listed = s3
        .list_object_versions()
        .bucket(&world.archive)
        .send()
        .await
        .unwrap();
    listed.versions().len() + listed.delete_markers().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_object_is_written_as_replicas_are_and_removed() {
    let world = right(Feed::Direct).await;
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    let checked = probe(&config).await;
    assert_eq!((checked.code, checked.names()), (0, vec![]), "{checked:#?}");
    let journal = faults.journal();
    let written = journal
        .iter()
        .find(|seen| seen.is(&world.archive, "PutObject"));
    let written = written.expect("a probe object was written");
    assert!(
        written.key.starts_with(".s3-replicator-probe-"),
        "{written:?}"
    );
    let headers = [
        "x-amz-server-side-encryption-aws-kms-key-id",
        "x-amz-tagging",
        "if-none-match",
        "x-amz-checksum-crc64nvme",
    ];
    for header in headers {
        assert!(!written.header(header).is_empty(), "{header}: {written:?}");
    }
    assert_eq!(held(&world).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_probe_is_refused_is_named() {
    let world = right(Feed::Direct).await;
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    let cases = [
        ("PutObject", "destination-write", "s3:PutObject"),
        (
            "PutObjectTagging",
            "destination-tags",
            "s3:PutObjectVersionTagging",
        ),
        (
            "CreateMultipartUpload",
            "destination-multipart",
            "s3:PutObject",
        ),
        (
            "AbortMultipartUpload",
            "destination-multipart",
            "s3:AbortMultipartUpload",
        ),
    ];
    for (operation, name, action) in cases {
        let on = world.archive.clone();
        faults.script(Fault::AccessDenied, usize::MAX, move |seen| {
            seen.is(&on, operation)
        });
        assert_eq!(
            check(&config).await.code,
            0,
            "{operation} shows only with --probe"
        );
        let checked = probe(&config).await;
        assert_eq!(checked.code, 1, "{operation}: {checked:#?}");
        let found = checked.one("problem", name);
        assert_eq!(found["fix"][0]["statement"]["Action"], action, "{found:#}");
        faults.clear();
    }
    let key = "arn:aws:kms:us-east-1:222222222222:key/00000000-0000-0000-0000-000000000000";
    config.rules[0].encryption = format!("mode = \"kms\", key = \"{key}\"");
    let checked = probe(&config).await;
    let found = checked.one("problem", "destination-write");
    assert!(found["what"].as_str().unwrap().contains(key), "{found:#}");
    assert_eq!(held(&world).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_probe_leaves_nothing() {
    let world = right(Feed::Direct).await;
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    let archive = world.archive.clone();
    let reads =
        move |seen: &Seen| seen.is(&archive, "GetObject") && seen.query.contains_key("versionId");
    faults.script(Fault::Hang, 1, reads.clone());
    let arguments = ["check", "--probe", "--json"];
    let output = interrupt(&arguments, config.write(), async || {
        faults.journal().iter().any(&reads)
    })
    .await;
    assert_eq!(held(&world).await, 0);
    let checked = read(&output);
    assert_eq!(checked.code, 2, "{checked:#?}");
    checked.one("unasked", "destination-write");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_object_that_appears_after_its_writer_gave_up_is_removed() {
    let world = right(Feed::Direct).await;
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    let archive = world.archive.clone();
    let writes = move |seen: &Seen| seen.is(&archive, "PutObject");
    faults.script(Fault::LandLate, 1, writes.clone());
    let checked = probe(&config).await;
    checked.one("unasked", "destination-write");
    eventually("the write has taken effect", async || {
        let journal = faults.journal();
        let mut late = journal.iter().filter(|seen| seen.fault.is_some());
        late.any(|seen| writes(seen) && seen.status.is_some_and(|status| status.is_success()))
    })
    .await;
    assert_eq!(held(&world).await, 0);
}
