//! Objects that their clients encrypted: the wrapped data key opens under the destination's key, and
//! nothing else of them changes.

use std::collections::BTreeMap;
use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::{Entry, Service};
use replicator_fakes::kms::State;
use serde_json::{Value, json};

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, SOURCE, Sim, simulate};

const OTHER: &str = "arn:aws:kms:eu-west-1:111111111111:key/0-other";
const FROM: &str = "arn:aws:kms:eu-west-1:111111111111:key/client";
const TO: &str = "arn:aws:kms:eu-west-1:222222222222:key/client";
const ELSEWHERE: &str = "arn:aws:kms:eu-central-1:222222222222:key/client";
const PLAINTEXT: &str = "c2VjcmV0";

type Fields = BTreeMap<String, String>;

/// The envelopes of the client's versions, and the field that has the wrapped key.
fn envelopes(sim: &Sim) -> [(&'static str, Fields); 3] {
    let fields = |key: &str, rest: &[(&str, &str)], context: (&str, Value)| {
        let wrapped = sim.keys.wrap(FROM, &context.1, &json!(PLAINTEXT));
        let rest = rest
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let own = [
            (key.to_owned(), wrapped),
            (context.0.to_owned(), context.1.to_string()),
        ];
        own.into_iter().chain(rest).collect::<Fields>()
    };
    let (second, third) = ("x-amz-key-v2", "x-amz-3");
    [
        (
            second,
            fields(
                second,
                &[("x-amz-wrap-alg", "kms"), ("x-amz-iv", "aXY=")],
                ("x-amz-matdesc", json!({ "kms_cmk_id": FROM })),
            ),
        ),
        (
            second,
            fields(
                second,
                &[
                    ("x-amz-wrap-alg", "kms+context"),
                    ("x-amz-cek-alg", "AES/GCM/NoPadding"),
                ],
                (
                    "x-amz-matdesc",
                    json!({ "aws:x-amz-cek-alg": "AES/GCM/NoPadding", "team": "gold" }),
                ),
            ),
        ),
        (
            third,
            fields(
                third,
                &[
                    ("x-amz-w", "12"),
                    ("x-amz-c", "115"),
                    ("x-amz-d", "ZA=="),
                    ("x-amz-i", "aQ=="),
                ],
                ("x-amz-t", json!({ "aws:x-amz-cek-alg": "115" })),
            ),
        ),
    ]
}

async fn put(sim: &Sim, key: &str, fields: &Fields, body: Vec<u8>) {
    let put = sim
        .user()
        .put_object()
        .bucket(SOURCE)
        .key(key)
        .body(body.into());
    let put = fields
        .iter()
        .fold(put, |put, (name, value)| put.metadata(name, value));
    put.send().await.unwrap();
}

/// Returns the metadata of what a bucket shows, without the stamp.
fn metadata(sim: &Sim, bucket: &str, key: &str) -> Fields {
    let history = sim.s3.history(bucket, key);
    let object = history.last().unwrap().object.clone().unwrap();
    let own = object.headers.iter().filter_map(|(name, value)| {
        let name = name
            .strip_prefix("x-amz-meta-")
            .filter(|name| *name != "s3-replicator")?;
        Some((name.to_owned(), value.to_str().ok()?.to_owned()))
    });
    own.collect()
}

/// Sees that an envelope opens under a key, and differs from the source's in nothing else.
fn opens(sim: &Sim, (name, before): &(&str, Fields), after: &Fields, key: &str) {
    let context = ["x-amz-matdesc", "x-amz-t"]
        .iter()
        .find_map(|name| after.get(*name));
    let context: Value = serde_json::from_str(context.unwrap()).unwrap();
    let opened = sim.keys.unwrap(key, &context, &json!(after[*name]));
    assert_eq!(opened, Ok(json!(PLAINTEXT)), "{after:?}");
    let rest = |fields: &Fields| {
        let mut fields = fields.clone();
        fields.remove(*name);
        fields
    };
    assert_eq!(rest(before), rest(after));
}

fn rule(pairs: &[(&str, &str)]) -> String {
    let pairs = pairs
        .iter()
        .map(|(from, to)| format!("\"{from}\" = \"{to}\""));
    format!(
        "client_side_keys = {{ {} }}",
        pairs.collect::<Vec<_>>().join(", ")
    )
}

fn asked_of_kms(sim: &Sim) -> Vec<String> {
    let of_kms = |entry: &Entry| entry.call.service == Service::Kms;
    let asked = sim.net.journal().select(of_kms).into_iter();
    asked.map(|entry| entry.call.operation).collect()
}

#[test]
fn a_data_key_opens_under_the_destinations_key_and_the_body_stays_as_it_is() {
    for (seed, to, requests) in [
        (1, TO, ["ReEncrypt"].as_slice()),
        (2, ELSEWHERE, &["Decrypt", "Encrypt"]),
    ] {
        simulate(seed, async |mut sim| {
            sim.post_everything();
            let envelopes = envelopes(&sim);
            for (number, (_, fields)) in envelopes.iter().enumerate() {
                put(&sim, &number.to_string(), fields, b"ciphertext".to_vec()).await;
            }
            // The keys are tried in their order; the first is not the one.
            let rule = rule(&[(OTHER, to), (FROM, to)]);
            let daemon = fleet::lone(&mut sim, &rule, AWS).await;
            sim.drained().await;
            for (number, envelope) in envelopes.iter().enumerate() {
                let key = number.to_string();
                assert_eq!(sim.shown(ARCHIVE, &key), sim.shown(SOURCE, &key));
                opens(&sim, envelope, &metadata(&sim, ARCHIVE, &key), to);
            }
            let asked = asked_of_kms(&sim);
            assert!(
                asked.iter().all(|name| requests.contains(&name.as_str())),
                "{asked:?}"
            );
            assert!(
                requests
                    .iter()
                    .all(|name| asked.iter().any(|asked| asked == name))
            );
            daemon.stop().await;
        });
    }
}

#[test]
fn an_instruction_file_is_wrapped_anew_and_known_for_a_replica_when_the_ledger_is_lost() {
    simulate(3, async |mut sim| {
        sim.post_everything();
        let [.., envelope] = envelopes(&sim);
        let marker = Fields::from([("x-amz-crypto-instr-file".to_owned(), String::new())]);
        let body = serde_json::to_vec(&envelope.1).unwrap();
        put(&sim, "a.instruction", &marker, body).await;
        let rule = rule(&[(FROM, TO)]);
        let event = sim.sqs.messages("events")[0].body.clone();
        let daemon = fleet::lone(&mut sim, &rule, AWS).await;
        sim.drained().await;
        let written = sim.shown(ARCHIVE, "a.instruction").unwrap();
        let fields: Fields = serde_json::from_slice(&written).unwrap();
        opens(&sim, &envelope, &fields, TO);
        daemon.stop().await;
        std::fs::remove_dir_all(sim.dir.path().join("daemon-0")).unwrap();
        let daemon = fleet::lone(&mut sim, &rule, AWS).await;
        sim.sqs.send("events", event, Duration::ZERO);
        sim.drained().await;
        assert_eq!(sim.s3.ever(ARCHIVE, "a.instruction").len(), 1);
        daemon.stop().await;
    });
}

#[test]
fn an_upload_in_parts_goes_on_though_kms_wraps_differently_each_time() {
    simulate(4, async |mut sim| {
        sim.post_everything();
        let [_, envelope, _] = envelopes(&sim);
        put(&sim, "a", &envelope.1, vec![7; 40 << 20]).await;
        let completion = Place::s3("CompleteMultipartUpload").bucket(ARCHIVE);
        let later = Effect::slow_down();
        sim.net
            .faults()
            .add(Fault::new("later", completion, later).times(1));
        let daemon = fleet::lone(&mut sim, &rule(&[(FROM, TO)]), AWS).await;
        sim.drained().await;
        assert!(asked_of_kms(&sim).len() > 1, "it was not begun again");
        assert_eq!(sim.net.journal().of("CreateMultipartUpload").len(), 1);
        opens(&sim, &envelope, &metadata(&sim, ARCHIVE, "a"), TO);
        daemon.stop().await;
    });
}

#[test]
fn a_data_key_that_kms_refuses_to_wrap_parks_until_it_can_be() {
    let unmapped = rule(&[(OTHER, TO)]);
    let disabled = rule(&[(FROM, TO)]);
    for (seed, rule, may_recover) in [(5, &unmapped, false), (6, &disabled, true)] {
        simulate(seed, async |mut sim| {
            sim.post_everything();
            let [.., envelope] = envelopes(&sim);
            put(&sim, "a", &envelope.1, b"ciphertext".to_vec()).await;
            sim.keys.set(TO, State::Disabled);
            sim.keys.set(OTHER, State::Enabled);
            if !may_recover {
                sim.keys.set(TO, State::Enabled);
            }
            let daemon = fleet::lone(&mut sim, rule, AWS).await;
            sim.drained().await;
            let parked = daemon.status().await.unwrap().parked;
            assert_eq!(parked[0].reason.as_str(), "ClientSideKeyRefused");
            assert_eq!(sim.shown(ARCHIVE, "a"), None);
            sim.keys.set(TO, State::Enabled);
            sim.pass(fleet::TRIED_WITHIN).await;
            assert_eq!(sim.shown(ARCHIVE, "a").is_some(), may_recover);
            daemon.stop().await;
        });
    }
}

#[test]
fn a_pair_whose_key_is_disabled_keeps_no_other_from_being_tried() {
    simulate(8, async |mut sim| {
        sim.post_everything();
        let [.., envelope] = envelopes(&sim);
        put(&sim, "a", &envelope.1, b"ciphertext".to_vec()).await;
        sim.keys.set(OTHER, State::Disabled);
        let rule = rule(&[(OTHER, TO), (FROM, TO)]);
        let daemon = fleet::lone(&mut sim, &rule, AWS).await;
        sim.drained().await;
        opens(&sim, &envelope, &metadata(&sim, ARCHIVE, "a"), TO);
        daemon.stop().await;
    });
}

#[test]
fn without_keys_for_them_such_objects_travel_as_they_are() {
    simulate(7, async |mut sim| {
        sim.post_everything();
        let [.., envelope] = envelopes(&sim);
        put(&sim, "a", &envelope.1, b"ciphertext".to_vec()).await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        assert_eq!(metadata(&sim, ARCHIVE, "a"), envelope.1);
        assert_eq!(asked_of_kms(&sim), Vec::<String>::new());
        daemon.stop().await;
    });
}
