//! What the daemon asks of the servers, read from a journal of its requests: reads are pinned,
//! writes are conditional and checked, versions are never deleted, and the right account asks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::world::World;
use crate::world::config::{EXTERNAL_ID, ROLE};
use crate::world::daemon::{Daemon, SECRET};
use crate::world::faults::Faults;
use crate::world::localstack::{ARCHIVE, SOURCE};
use crate::world::request::Seen;

#[tokio::test(flavor = "multi_thread")]
async fn requests_keep_the_protocol() {
    let world = World::new().await;
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    let daemon = Daemon::spawn(&config).ready().await;
    world
        .workload(150, 40, 4)
        .option("seconds", 5)
        .summary()
        .await;
    world.drained(&daemon).await;
    world.assert_equal().await;
    let journal = faults.journal();
    let (source, archive): (Vec<&Seen>, Vec<&Seen>) =
        (on(&journal, &world.source), on(&journal, &world.archive));
    assert_all_kinds_were_seen(&source, &archive);
    reads_are_pinned_to_a_version(&source);
    nothing_is_written_to_the_source(&source);
    writes_are_conditional(&archive);
    bodies_carry_checksums(&archive);
    versions_are_never_deleted(&archive);
    the_destination_is_reached_by_the_assumed_role(&journal, &archive);
}

fn on<'a>(journal: &'a [Seen], bucket: &str) -> Vec<&'a Seen> {
    journal
        .iter()
        .filter(|seen| seen.service == "s3" && seen.bucket == bucket)
        .collect()
}

/// A rule about requests that never came would hold.
fn assert_all_kinds_were_seen(source: &[&Seen], archive: &[&Seen]) {
    for (bucket, operations) in [
        (
            source,
            ["GetObject", "ListObjectVersions", "GetObjectTagging"].as_slice(),
        ),
        (
            archive,
            [
                "PutObject",
                "UploadPart",
                "CompleteMultipartUpload",
                "DeleteObject",
            ]
            .as_slice(),
        ),
    ] {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for seen in bucket {
            *counts.entry(seen.operation()).or_default() += 1;
        }
        eprintln!("{counts:?}");
        assert!(
            operations
                .iter()
                .all(|operation| counts.contains_key(operation)),
            "{counts:?}"
        );
    }
}

fn reads_are_pinned_to_a_version(source: &[&Seen]) {
    let reads = source
        .iter()
        .filter(|seen| !seen.key.is_empty() && ["GET", "HEAD"].contains(&seen.method.as_str()));
    for read in reads {
        assert!(read.query.contains_key("versionId"), "not pinned: {read:?}");
    }
}

fn nothing_is_written_to_the_source(source: &[&Seen]) {
    for seen in source {
        assert!(
            ["GET", "HEAD"].contains(&seen.method.as_str()),
            "written to the source: {seen:?}"
        );
    }
}

fn writes_are_conditional(archive: &[&Seen]) {
    let conditional = |seen: &Seen| {
        !seen.header("if-match").is_empty() || !seen.header("if-none-match").is_empty()
    };
    for seen in archive {
        if ["PutObject", "CompleteMultipartUpload"].contains(&seen.operation()) {
            assert!(conditional(seen), "unconditional: {seen:?}");
        }
    }
    // LocalStack answers 501 to the condition of a delete. That is found out by trying.
    let first = archive
        .iter()
        .find(|seen| seen.operation() == "DeleteObject")
        .unwrap();
    assert!(conditional(first), "unconditional: {first:?}");
}

fn bodies_carry_checksums(archive: &[&Seen]) {
    for seen in archive
        .iter()
        .filter(|seen| ["PutObject", "UploadPart"].contains(&seen.operation()))
    {
        let checksum = |name: &str| {
            name.starts_with("x-amz-checksum-") || name == "content-md5" || name == "x-amz-trailer"
        };
        assert!(
            seen.headers.keys().any(|name| checksum(name.as_str())),
            "unchecked: {seen:?}"
        );
    }
}

fn versions_are_never_deleted(archive: &[&Seen]) {
    for seen in archive {
        assert!(
            seen.method != "DELETE" || !seen.query.contains_key("versionId"),
            "a version was deleted: {seen:?}"
        );
        assert!(
            !seen.query.contains_key("delete"),
            "deleted in bulk: {seen:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_account_is_signed_for_by_its_profile_whatever_the_environment_has() {
    let world = World::new().await;
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    config.assumes_role = false;
    let profiles = config.path.with_extension("profiles");
    let mut text = config.text();
    let mut file = String::new();
    for (name, account) in [("source", SOURCE), ("archive", ARCHIVE)] {
        let table = format!("[accounts.{name}]\n");
        text = text.replace(&table, &format!("{table}profile = \"{name}\"\n"));
        let id = account.id;
        file += &format!("[{name}]\naws_access_key_id = {id}\naws_secret_access_key = {SECRET}\n");
    }
    fs::write(&profiles, file).unwrap();
    let environment = [
        ("AWS_SHARED_CREDENTIALS_FILE", profiles.to_str().unwrap()),
        ("AWS_ACCESS_KEY_ID", "333333333333"),
    ];
    let daemon = Daemon::spawn_on_text(&text, &config, &environment)
        .ready()
        .await;
    world.put("report", "first").await;
    world.drained(&daemon).await;
    world.assert_equal().await;
    let signed_by = |bucket: &str| -> BTreeSet<String> {
        let journal = faults.journal();
        let seen = journal.iter().filter(|seen| seen.bucket == bucket);
        seen.map(|seen| seen.signer.clone()).collect()
    };
    assert_eq!(signed_by(&world.source), [SOURCE.id.to_owned()].into());
    assert_eq!(signed_by(&world.archive), [ARCHIVE.id.to_owned()].into());
}

fn the_destination_is_reached_by_the_assumed_role(journal: &[Seen], archive: &[&Seen]) {
    for seen in archive {
        assert_ne!(seen.signer, SOURCE.id, "not by the role: {seen:?}");
        assert!(
            !seen.header("x-amz-security-token").is_empty(),
            "not by the role: {seen:?}"
        );
    }
    let assumed: Vec<&Seen> = journal
        .iter()
        .filter(|seen| seen.service == "sts")
        .collect();
    assert!(!assumed.is_empty());
    for seen in assumed {
        assert_eq!(seen.signer, SOURCE.id);
        assert_eq!(
            (seen.form("RoleArn"), seen.form("ExternalId")),
            (ROLE.to_owned(), EXTERNAL_ID.to_owned())
        );
    }
}
