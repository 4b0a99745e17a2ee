//! Keys and objects that `verify` and `backfill` cannot compare, or that can have no replica, are named
//! and counted, and what comes after them is compared.

use aws_sdk_s3::types::ServerSideEncryption;
use replicator_config::Settings;
use replicator_core::object::parse_rfc3339;
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::s3::entry::Encryption;
use s3_replicator::backfill::{BackfillArguments, backfill};
use s3_replicator::verify::{VerifyOptions, verify};
use serde_json::Value;

use crate::fleet::{self, settings};
use crate::sim::{ARCHIVE, AWS, SOURCE, Sim, simulate};

/// Runs the command; returns its exit code, what it found with the reasons, and the sum.
async fn lines(sim: &Sim, settings: &Settings, options: VerifyOptions) -> (u8, Vec<String>, Value) {
    let options = VerifyOptions {
        rule: "orders".to_owned(),
        as_of: parse_rfc3339("2999-01-01T00:00:00Z"),
        json: true,
        ..options
    };
    let (mut lines, given) = (Vec::new(), sim.given("verify"));
    let print = |line: &str| lines.push(serde_json::from_str::<Value>(line).unwrap());
    let code = Box::pin(verify(settings, &options, Some(&given), print))
        .await
        .unwrap();
    let sum = lines.pop().unwrap();
    let text = |line: &Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
    let words = |line: &Value| {
        let key = text(line, "source")
            .rsplit_once("orders/")
            .unwrap()
            .1
            .to_owned();
        format!(
            "{key} {} {}",
            text(line, "difference"),
            text(line, "reason")
        )
    };
    let mut lines: Vec<String> = lines.iter().map(words).collect();
    lines.sort();
    (code, lines, sum)
}

#[test]
fn a_key_whose_replica_s3_could_not_hold_is_missing_by_its_reason() {
    simulate(1, async |mut sim| {
        let long = format!("in/{}", "k".repeat(1_020));
        for key in ["in/", "in/some", long.as_str()] {
            sim.put(key, b"one").await;
        }
        let mut settings = settings(&mut sim, "", AWS);
        settings.rules[0].filter.prefix = "in/".to_owned();
        let longer = "longer/".to_owned();
        for (rewrite, impossible) in [(String::new(), "in/"), (longer, &long)] {
            settings.rules[0].rewrite = Some(rewrite);
            let (code, found, sum) = lines(&sim, &settings, VerifyOptions::default()).await;
            assert_eq!((code, &sum["differences"]["missing"]), (2, &3.into()));
            assert!(
                found.contains(&format!("{impossible} missing DstKeyTooLong")),
                "{found:?}"
            );
            assert!(found.contains(&"in/some missing ".to_owned()), "{found:?}");
        }
        // What is older than the rule is none of its, and of nothing nothing is proved.
        let options = VerifyOptions {
            since: parse_rfc3339("2998-01-01T00:00:00Z"),
            ..VerifyOptions::default()
        };
        let (code, found, _) = lines(&sim, &settings, options).await;
        assert_eq!((code, found), (1, Vec::<String>::new()));
    });
}

// As the daemon reads of a key at the most.
const VERSIONS_MAX: usize = 100_000;

#[test]
fn a_key_with_too_many_versions_is_named_and_the_keys_after_it_are_compared() {
    simulate(1, async |mut sim| {
        sim.share();
        for key in ["crowded", "next"] {
            sim.put(key, b"one").await;
        }
        let again = std::iter::repeat_n("crowded".to_owned(), VERSIONS_MAX);
        sim.s3.repeat(SOURCE, "crowded", again);
        let settings = settings(&mut sim, "", AWS);
        let before = sim.net.journal().len();
        let (code, found, _) = lines(&sim, &settings, VerifyOptions::default()).await;
        let crowded = "crowded uncompared KeyVersionsTooMany: more than 100000 at the source";
        assert_eq!(
            (code, found),
            (2, vec![crowded.to_owned(), "next missing ".to_owned()])
        );
        let calls = sim.net.journal().len() - before;
        // The rest of the key is left out.
        assert!(calls < 110, "{calls}");
        let arguments = BackfillArguments {
            rule: "orders".to_owned(),
            ..BackfillArguments::default()
        };
        let (given, never) = (sim.given("backfill"), std::future::pending());
        let run = backfill(&settings, &arguments, Some(&given), never, |_| {});
        let counts = Box::pin(run).await.unwrap().counts;
        assert_eq!((counts.keys, counts.crowded, counts.sent), (2, 1, 1));
    });
}

#[test]
fn an_object_that_cannot_be_read_is_named_and_the_others_are_compared() {
    simulate(1, async |mut sim| {
        sim.post_everything();
        let rule = "sse_kms_objects = true";
        const KEYS: [&str; 4] = ["customer", "plain", "raced", "tiered"];
        for key in KEYS {
            let put = sim.user().put_object().bucket(SOURCE).key(key);
            let put = put.server_side_encryption(ServerSideEncryption::AwsKms);
            put.body(key.as_bytes().to_vec().into())
                .send()
                .await
                .unwrap();
        }
        let daemon = fleet::lone(&mut sim, rule, AWS).await;
        sim.drained().await;
        daemon.stop().await;
        let settings = settings(&mut sim, rule, AWS);
        let place = |operation: &str, key: &str| Place::s3(operation).key(key).client("verify");
        let refused = || Effect::refuse(403, "InvalidObjectState");
        let tier = Effect::Answer("x-amz-archive-status", Some("DEEP_ARCHIVE_ACCESS"));
        for (name, place, effect) in [
            ("tiered", place("HeadObject", "tiered"), tier),
            ("unread", place("GetObject", "tiered"), refused()),
            // Its headers do not tell yet.
            ("raced", place("GetObject", "raced"), refused()),
        ] {
            sim.net.faults().add(Fault::new(name, place, effect));
        }
        let replica = sim.s3.history(ARCHIVE, "customer")[0].version_id.clone();
        sim.s3.spoil(ARCHIVE, "customer", &replica, |object| {
            object.encryption = Encryption::Customer {
                key_md5: "of its own".to_owned(),
            };
        });
        let options = VerifyOptions {
            deep: true,
            ..VerifyOptions::default()
        };
        let (code, found, sum) = lines(&sim, &settings, options).await;
        assert_eq!(
            (code, found),
            (
                2,
                vec![
                    "customer foreign ".to_owned(),
                    "customer missing ".to_owned()
                ]
            )
        );
        let unread = serde_json::json!({"it is archived": 2});
        assert_eq!(
            (&sum["bytes_not_compared"], &sum["deep"]),
            (&unread, &3.into())
        );
    });
}
