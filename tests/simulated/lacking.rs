//! Stores that lack something: what can be left out is left out, shown, and tried again; what a
//! replica needs is parked under a name that says so.

use std::time::Duration;

use replicator_fakes::journal::Entry;
use replicator_fakes::s3::minds::Minded;
use replicator_fakes::s3::traits::{Conditions, Traits};
use s3_replicator::pipeline::Daemon;

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, NOT_AWS, SOURCE, Sim, simulate};

const ENCRYPTION: &str = "x-amz-server-side-encryption";

// More than a part, which is an eighth of the daemon's memory.
const IN_PARTS: usize = 9 << 20;

fn minding(header: &'static str, (status, code): (u16, &'static str), is_named: bool) -> Traits {
    Traits {
        minds: vec![Minded {
            header,
            status,
            code,
            is_named,
        }],
        ..Traits::aws()
    }
}

async fn parked(daemon: &Daemon) -> Vec<&'static str> {
    daemon
        .status()
        .await
        .unwrap()
        .parked
        .iter()
        .map(|parked| parked.reason.as_str())
        .collect()
}

async fn lacking(daemon: &Daemon) -> Vec<String> {
    daemon
        .status()
        .await
        .unwrap()
        .disabled_features
        .into_iter()
        .map(|lacking| lacking.feature)
        .collect()
}

/// Counts the daemon's writes that went without a condition.
fn bare(sim: &Sim) -> usize {
    let is_bare = |write: &&Entry| write.client == "daemon-0" && write.call.conditions.is_empty();
    sim.net
        .journal()
        .writes(ARCHIVE)
        .iter()
        .filter(is_bare)
        .count()
}

#[test]
fn a_store_without_encryption_gets_what_s3_encrypts_by_default() {
    for said in [(501, "NotImplemented"), (500, "InternalError")] {
        simulate(1, async |mut sim| {
            sim.s3.set_traits(minding(ENCRYPTION, said, false));
            sim.post_everything();
            sim.put("a", b"one").await;
            sim.fill("large", 1, IN_PARTS).await;
            let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
            sim.drained().await;
            assert_eq!(
                (parked(&daemon).await, lacking(&daemon).await),
                (vec![], vec![]),
                "{said:?}"
            );
            daemon.stop().await;
            assert_eq!(
                (bare(&sim), judge(&sim, Expect::EXACT)),
                (0, vec![]),
                "{said:?}"
            );
        });
    }
}

#[test]
fn what_the_rule_needs_and_the_store_lacks_is_parked_under_its_name() {
    for is_named in [false, true] {
        simulate(2, async |mut sim| {
            sim.s3
                .set_traits(minding(ENCRYPTION, (501, "NotImplemented"), is_named));
            sim.post_everything();
            sim.put("a", b"one").await;
            let daemon = fleet::lone(&mut sim, "encryption = { mode = \"s3\" }", NOT_AWS).await;
            sim.drained().await;
            assert_eq!(
                (parked(&daemon).await, lacking(&daemon).await),
                (vec!["DstNotImplemented"], vec![])
            );
            sim.s3.set_traits(Traits::aws());
            sim.pass(fleet::TRIED_WITHIN).await;
            assert_eq!(
                (parked(&daemon).await, sim.shown(ARCHIVE, "a")),
                (vec![], sim.shown(SOURCE, "a"))
            );
            daemon.stop().await;
        });
    }
}

#[test]
fn an_optional_header_that_a_store_refuses_is_left_out_and_tried_again_after_an_hour() {
    let refusals = [
        ((400, "InvalidArgument"), true),
        ((501, "NotImplemented"), true),
        ((501, "NotImplemented"), false),
    ];
    for (said, is_named) in refusals {
        simulate(3, async |mut sim| {
            sim.post_everything();
            sim.put("a", b"one").await;
            sim.fill("large", 1, IN_PARTS).await;
            // The user sends checksums, too.
            sim.s3
                .set_traits(minding("x-amz-checksum-", said, is_named));
            let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
            sim.drained().await;
            assert_eq!(
                lacking(&daemon).await,
                ["CRC64NVME on PutObject", "CRC64NVME on multipart uploads"],
                "{said:?}"
            );
            assert_eq!((parked(&daemon).await, bare(&sim)), (vec![], 0), "{said:?}");
            sim.s3.set_traits(Traits {
                adds_checksums: false,
                ..Traits::aws()
            });
            sim.pass(Duration::from_secs(3600)).await;
            assert!(lacking(&daemon).await.is_empty(), "{said:?}");
            sim.put("b", b"two").await;
            sim.drained().await;
            daemon.stop().await;
            let checksum = |key: &str| {
                sim.s3.history(ARCHIVE, key)[0]
                    .object
                    .as_ref()
                    .unwrap()
                    .checksum
                    .clone()
            };
            assert!(checksum("b").is_some(), "{said:?}: it is not sent again");
            assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new(), "{said:?}");
        });
    }
}

#[test]
fn a_source_that_cannot_be_asked_for_checksums_is_read_without_them() {
    let refusals = [
        ((400, "InvalidArgument"), true),
        ((501, "NotImplemented"), true),
        ((501, "NotImplemented"), false),
    ];
    for (said, is_named) in refusals {
        simulate(6, async |mut sim| {
            sim.post_everything();
            sim.put("a", b"one").await;
            sim.fill("large", 1, IN_PARTS).await;
            sim.s3
                .set_traits(minding("x-amz-checksum-mode", said, is_named));
            let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
            sim.drained().await;
            assert_eq!(
                (parked(&daemon).await, lacking(&daemon).await),
                (vec![], vec![READ.to_owned()]),
                "{said:?}"
            );
            sim.s3.set_traits(Traits::aws());
            sim.pass(Duration::from_secs(3600)).await;
            sim.put("b", b"two").await;
            sim.drained().await;
            assert_eq!(
                (parked(&daemon).await, lacking(&daemon).await),
                (vec![], vec![]),
                "{said:?}"
            );
            daemon.stop().await;
            assert_eq!(
                (bare(&sim), judge(&sim, Expect::EXACT)),
                (0, vec![]),
                "{said:?}"
            );
        });
    }
}

const READ: &str = "checksums of what is read";

#[test]
fn conditions_that_a_store_learns_are_found_out_within_the_hour() {
    simulate(4, async |mut sim| {
        let none = Conditions::NotImplemented;
        sim.s3.set_traits(Traits {
            put_conditions: none,
            ..Traits::aws()
        });
        sim.post_everything();
        sim.put("a", b"one").await;
        let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
        sim.drained().await;
        assert_eq!(
            (lacking(&daemon).await, bare(&sim)),
            (vec!["conditions on PutObject".to_owned()], 1)
        );
        sim.s3.set_traits(Traits::aws());
        sim.pass(Duration::from_secs(3600)).await;
        sim.put("b", b"two").await;
        sim.drained().await;
        assert_eq!((lacking(&daemon).await, bare(&sim)), (vec![], 1));
        daemon.stop().await;
    });
}

#[test]
fn a_folder_that_a_store_keeps_without_versions_is_named_and_stops_nobody() {
    simulate(5, async |mut sim| {
        sim.s3.set_traits(Traits {
            folders_lack_versions: true,
            ..Traits::aws()
        });
        sim.post_everything();
        sim.put("dir/", b"").await;
        sim.put("full/", b"of itself").await;
        sim.put("dir/a", b"one").await;
        let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
        sim.drained().await;
        let status = daemon.status().await.unwrap();
        let parked: Vec<_> = status
            .parked
            .iter()
            .map(|parked| (parked.reason.as_str(), parked.tasks))
            .collect();
        assert_eq!(parked, [("DstVersionIdMissing", 2)]);
        assert_eq!(sim.shown(ARCHIVE, "dir/a"), sim.shown(SOURCE, "dir/a"));
        daemon.stop().await;
    });
}
