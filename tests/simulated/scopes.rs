//! Versions that a rule does not take.

use aws_sdk_s3::types::ServerSideEncryption;

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, SOURCE, Sim, simulate};

#[test]
fn in_latest_mode_the_newest_version_in_scope_is_copied_whatever_is_above_it() {
    for more in ["", "exclusive = true\n", "fence = false\n"] {
        let rules = [
            ("delete_markers = false", "marker"),
            ("filter = { size_max = 3 }", "large"),
            ("filter = { suffix = \"a\" }", "nothing"),
        ];
        for (rule, above) in rules {
            simulate(1, async |mut sim| {
                sim.post_everything();
                sim.put("a", b"one").await;
                sim.put("a", b"two").await;
                put_above(&sim, above).await;
                let daemon = fleet::lone(&mut sim, &format!("history = \"latest\"\n{more}{rule}"), AWS).await;
                sim.drained().await;
                daemon.stop().await;
                assert_eq!(sim.shown(ARCHIVE, "a").as_deref(), Some(&b"two"[..]), "{more}{rule}");
                assert_eq!(sim.s3.ever(ARCHIVE, "a").len(), 1, "{more}{rule}");
            });
        }
    }
}

async fn put_above(sim: &Sim, what: &str) {
    if what == "marker" {
        sim.user().delete_object().bucket(SOURCE).key("a").send().await.unwrap();
    } else if what == "large" {
        sim.put("a", b"too large").await;
    }
}

#[test]
fn in_latest_mode_nothing_older_stands_in_for_what_cannot_be_replicated() {
    for more in ["", "exclusive = true\n", "fence = false\n"] {
        simulate(2, async |mut sim| {
            sim.post_everything();
            sim.put("a", b"older").await;
            let encrypted = sim.user().put_object().bucket(SOURCE).key("a").body(b"newer".to_vec().into());
            encrypted.server_side_encryption(ServerSideEncryption::AwsKms).send().await.unwrap();
            let daemon = fleet::lone(&mut sim, &format!("history = \"latest\"\n{more}"), AWS).await;
            sim.drained().await;
            daemon.stop().await;
            assert_eq!(sim.s3.ever(ARCHIVE, "a").len(), 0, "{more}: the rule takes nothing that KMS encrypts");
        });
    }
}
