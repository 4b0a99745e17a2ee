//! KMS keys that rules use: one that KMS says cannot be used parks what needs it before that is read,
//! and what is parked comes back when the key does. Nothing but KMS's own word does either.

use std::time::Duration;

use aws_sdk_s3::types::ServerSideEncryption;
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::{Entry, Service};
use replicator_fakes::kms::State;
use replicator_fakes::s3::entry::Encryption;
use s3_replicator::admin::{KeySide, KeyState, KeyStatus};
use s3_replicator::pipeline::Daemon;

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, SOURCE, Sim, simulate};

const KEY: &str = "arn:aws:kms:eu-central-1:222222222222:key/one";
const ALIAS: &str = "arn:aws:kms:eu-central-1:222222222222:alias/gold";
const MULTI_REGION: &str = "arn:aws:kms:eu-west-1:111111111111:key/mrk-1";
const RELATED: &str = "arn:aws:kms:eu-central-1:111111111111:key/mrk-1";

/// Less than any parked task waits for its first scheduled retry.
const AT_ONCE: Duration = Duration::from_secs(60);
/// More than the time between two rounds of questions.
const A_ROUND: Duration = Duration::from_secs(200);

fn under(key: &str) -> String {
    format!("sse_kms_objects = true\nencryption = {{ mode = \"kms\", key = \"{key}\" }}")
}

/// Lists what the daemon was given of bodies, and what was taken of it.
fn bodies(sim: &Sim) -> Vec<Entry> {
    let moves = [
        "GetObject",
        "PutObject",
        "UploadPart",
        "CreateMultipartUpload",
    ];
    sim.net.journal().select(|entry| {
        let call = &entry.call;
        let is_read = call.operation != "GetObject" || call.bucket.as_deref() == Some(SOURCE);
        let is_done = entry.executed.is_some_and(|(_, status)| status < 300);
        let is_move = moves.contains(&call.operation.as_str()) && is_read && is_done;
        entry.client.starts_with("daemon-") && is_move
    })
}

fn asked_of_kms(sim: &Sim) -> Vec<Entry> {
    let of_kms = |entry: &Entry| entry.call.service == Service::Kms;
    sim.net.journal().select(of_kms)
}

async fn reasons(daemon: &Daemon) -> Vec<&'static str> {
    let parked = daemon.status().await.unwrap().parked;
    parked.iter().map(|parked| parked.reason.as_str()).collect()
}

async fn keys(daemon: &Daemon) -> Vec<KeyStatus> {
    daemon.status().await.unwrap().keys
}

/// Writes an object of so many bytes, encrypted at the source by a key of KMS if one is given.
async fn put(sim: &Sim, name: &str, bytes: usize, key: Option<&str>) {
    let put = sim.user().put_object().bucket(SOURCE).key(name);
    let put = match key {
        Some(key) => put
            .server_side_encryption(ServerSideEncryption::AwsKms)
            .ssekms_key_id(key),
        None => put,
    };
    put.body(vec![1; bytes].into()).send().await.unwrap();
}

/// Returns the key that the replica of an object is encrypted with.
fn key_of_replica(sim: &Sim, name: &str) -> Option<String> {
    let history = sim.s3.history(ARCHIVE, name);
    match history.last()?.object.as_ref()?.encryption.clone() {
        Encryption::Kms { key, .. } => Some(key),
        Encryption::Aes256 | Encryption::Customer { .. } => None,
    }
}

#[test]
fn a_bad_key_parks_before_any_body_is_read_and_a_repaired_one_empties_the_parking_lot() {
    let cases = [
        (State::Disabled, "DstKmsKeyInvalidState", KeyState::Invalid),
        (
            State::PendingDeletion,
            "DstKmsKeyInvalidState",
            KeyState::Invalid,
        ),
        (State::Unknown, "DstKmsKeyNotFound", KeyState::Missing),
    ];
    for (seed, (state, reason, shown)) in (1..).zip(cases) {
        parks_and_recovers(seed, state, (reason, shown), ("exact", 3, false));
        parks_and_recovers(seed, state, (reason, shown), ("latest", 3, true));
        parks_and_recovers(seed, state, (reason, shown), ("exact", 20 << 20, true));
    }
}

fn parks_and_recovers(
    seed: u64,
    state: State,
    (reason, shown): (&str, KeyState),
    (history, bytes, is_shared): (&str, usize, bool),
) {
    simulate(seed, async |mut sim| {
        sim.is_shared = is_shared;
        sim.keys.set(KEY, state);
        sim.post_everything();
        put(&sim, "a", bytes, None).await;
        put(&sim, "b", bytes, None).await;
        let rule = format!("history = \"{history}\"\n{}", under(KEY));
        let daemon = fleet::lone(&mut sim, &rule, AWS).await;
        sim.drained().await;
        assert_eq!(reasons(&daemon).await, [reason], "{state:?} {history}");
        assert_eq!(bodies(&sim), [], "{state:?} {history}");
        assert_eq!(keys(&daemon).await[0].state, shown);
        sim.keys.set(KEY, State::Enabled);
        sim.pass(AT_ONCE).await;
        assert_eq!(reasons(&daemon).await, Vec::<&str>::new());
        for name in ["a", "b"] {
            assert_eq!(sim.shown(ARCHIVE, name), sim.shown(SOURCE, name));
            assert_eq!(key_of_replica(&sim, name).as_deref(), Some(KEY));
        }
        assert_eq!(keys(&daemon).await[0].state, KeyState::Usable);
        daemon.stop().await;
    });
}

#[test]
fn a_key_that_goes_bad_between_two_questions_is_found_out_by_the_first_refusal() {
    simulate(4, async |mut sim| {
        sim.post_everything();
        let daemon = fleet::lone(&mut sim, &under(KEY), AWS).await;
        put(&sim, "a", 3, None).await;
        sim.drained().await;
        sim.keys.set(KEY, State::Disabled);
        put(&sim, "b", 3, None).await;
        sim.drained().await;
        sim.pass(Duration::from_secs(15)).await;
        let before = bodies(&sim).len();
        put(&sim, "c", 3, None).await;
        sim.drained().await;
        assert_eq!(bodies(&sim).len(), before, "only b was read in vain");
        let parked = fleet::figure(&daemon, "parked", &["DstKmsKeyInvalidState"]).await;
        assert_eq!(parked, 2.0);
        sim.keys.set(KEY, State::Enabled);
        sim.pass(AT_ONCE).await;
        assert!(sim.shown(ARCHIVE, "b").is_some() && sim.shown(ARCHIVE, "c").is_some());
        daemon.stop().await;
    });
}

#[test]
fn the_sources_key_parks_by_the_objects_that_name_it() {
    simulate(5, async |mut sim| {
        sim.post_everything();
        let source_key = "arn:aws:kms:eu-west-1:111111111111:key/source";
        put(&sim, "a", 3, Some(source_key)).await;
        let daemon = fleet::lone(&mut sim, &under(KEY), AWS).await;
        sim.drained().await;
        sim.keys.set(source_key, State::Disabled);
        sim.pass(A_ROUND).await;
        let before = bodies(&sim).len();
        sim.keys.set(source_key, State::Enabled);
        put(&sim, "b", 3, Some(source_key)).await;
        sim.keys.set(source_key, State::Disabled);
        sim.drained().await;
        assert_eq!(reasons(&daemon).await, ["SrcKmsKeyInvalidState"]);
        assert_eq!(bodies(&sim).len(), before);
        put(&sim, "c", 3, None).await;
        sim.drained().await;
        assert!(
            sim.shown(ARCHIVE, "c").is_some(),
            "another object needs no such key"
        );
        sim.keys.set(source_key, State::Enabled);
        sim.pass(AT_ONCE).await;
        assert_eq!(reasons(&daemon).await, Vec::<&str>::new());
        daemon.stop().await;
    });
}

#[test]
fn a_key_that_no_object_had_for_a_day_costs_no_more_heads() {
    simulate(19, async |mut sim| {
        sim.post_everything();
        put(&sim, "first", 3, Some(MULTI_REGION)).await;
        let daemon = fleet::lone(&mut sim, &under("related"), AWS).await;
        sim.drained().await;
        put(&sim, "parked", 3, Some(MULTI_REGION)).await;
        sim.keys.set(MULTI_REGION, State::Disabled);
        sim.pass(A_ROUND).await;
        assert_eq!(reasons(&daemon).await, ["SrcKmsKeyInvalidState"]);
        let day = Duration::from_secs(24 * 60 * 60);
        sim.pass(day / 2).await;
        assert_eq!(keys(&daemon).await.len(), 2);
        sim.pass(day / 2).await;
        assert_eq!(keys(&daemon).await.len(), 0);
        let heads = || sim.net.journal().of("HeadObject").len();
        let before = heads();
        put(&sim, "a", 3, None).await;
        sim.drained().await;
        assert!(sim.shown(ARCHIVE, "a").is_some());
        assert_eq!(heads(), before);
        sim.keys.set(MULTI_REGION, State::Enabled);
        sim.pass(fleet::TRIED_WITHIN).await;
        assert_eq!(reasons(&daemon).await, Vec::<&str>::new());
        daemon.stop().await;
    });
}

#[test]
fn no_answer_and_no_denial_of_kms_changes_anything() {
    let of_kms = || Place::service(Service::Kms);
    let effects = [
        Effect::refuse(400, "ThrottlingException"),
        Effect::refuse(500, "KMSInternalException"),
        Effect::refuse(400, "AccessDeniedException"),
        Effect::refuse(400, "ValidationException"),
        Effect::refuse(503, "NotFoundException"),
        Effect::Drop,
    ];
    for (seed, effect) in (6..).zip(effects) {
        simulate(seed, async |mut sim| {
            sim.post_everything();
            sim.net
                .faults()
                .add(Fault::new("kms", of_kms(), effect.clone()));
            put(&sim, "a", 3, None).await;
            let daemon = fleet::lone(&mut sim, &under(KEY), AWS).await;
            sim.drained().await;
            assert_eq!(
                key_of_replica(&sim, "a").as_deref(),
                Some(KEY),
                "{effect:?}"
            );
            assert_eq!(
                keys(&daemon).await[0].state,
                KeyState::Unknown,
                "{effect:?}"
            );
            sim.net.faults().clear_all();
            sim.keys.set(KEY, State::Disabled);
            sim.pass(A_ROUND).await;
            sim.net
                .faults()
                .add(Fault::new("kms", of_kms(), effect.clone()));
            sim.keys.set(KEY, State::Enabled);
            put(&sim, "b", 3, None).await;
            sim.pass(AT_ONCE).await;
            assert_eq!(
                reasons(&daemon).await,
                ["DstKmsKeyInvalidState"],
                "{effect:?}"
            );
            // What was said is not believed for ever.
            sim.pass(fleet::TRIED_WITHIN).await;
            assert!(sim.shown(ARCHIVE, "b").is_some(), "{effect:?}");
            daemon.stop().await;
        });
    }
}

#[test]
fn a_store_that_knows_no_dry_runs_is_taken_for_neither_a_yes_nor_a_no() {
    simulate(12, async |mut sim| {
        sim.post_everything();
        let mut uses = Place::service(Service::Kms);
        uses = uses.or("GenerateDataKey").or("Decrypt");
        let unknown = Effect::refuse(400, "ValidationException");
        sim.net.faults().add(Fault::new("unknown", uses, unknown));
        put(&sim, "a", 3, None).await;
        let daemon = fleet::lone(&mut sim, &under(KEY), AWS).await;
        sim.drained().await;
        assert_eq!(key_of_replica(&sim, "a").as_deref(), Some(KEY));
        assert_eq!(
            keys(&daemon).await[0].state,
            KeyState::Usable,
            "by its description"
        );
        daemon.stop().await;
    });
}

#[test]
fn an_alias_is_resolved_by_the_destinations_account_and_replicas_name_the_key() {
    simulate(13, async |mut sim| {
        sim.post_everything();
        sim.keys.set(KEY, State::Enabled);
        sim.keys.alias(ALIAS, KEY);
        put(&sim, "a", 3, None).await;
        let daemon = fleet::lone(&mut sim, &under(ALIAS), AWS).await;
        sim.drained().await;
        assert_eq!(key_of_replica(&sim, "a").as_deref(), Some(KEY));
        let asked = asked_of_kms(&sim);
        assert_eq!(asked[0].call.key.as_deref(), Some(ALIAS));
        let is_there = |entry: &Entry| entry.host.contains("eu-central-1");
        assert!(asked.iter().all(is_there), "{asked:?}");
        let [shown] = keys(&daemon).await.try_into().unwrap();
        assert_eq!(
            (shown.key.as_str(), shown.arn.as_deref()),
            (ALIAS, Some(KEY))
        );
        assert_eq!(
            (shown.side, shown.state),
            (KeySide::Destination, KeyState::Usable)
        );
        daemon.stop().await;
    });
}

#[test]
fn an_upload_goes_on_when_kms_does_not_say_what_its_alias_names_and_begins_anew_under_another_key()
{
    const PART: usize = 8 << 20;
    for (seed, other) in [(17, None), (18, Some(RELATED))] {
        simulate(seed, async |mut sim| {
            sim.post_everything();
            sim.keys.set(KEY, State::Enabled);
            sim.keys.alias(ALIAS, KEY);
            let parts = Place::s3("UploadPart").client("daemon-0");
            let slow = Effect::Delay(Duration::from_secs(10));
            sim.net.faults().add(Fault::new("slow", parts, slow));
            put(&sim, "a", 9 * PART, None).await;
            let daemon = fleet::lone(&mut sim, &under(ALIAS), AWS).await;
            sim.pass(Duration::from_secs(15)).await;
            drop(daemon);
            assert_eq!(sim.net.journal().of("CreateMultipartUpload").len(), 1);
            match other {
                Some(other) => {
                    sim.keys.set(other, State::Enabled);
                    sim.keys.alias(ALIAS, other);
                }
                None => {
                    let kms = Place::service(Service::Kms);
                    let silent = Fault::new("silent", kms, Effect::Unreachable);
                    sim.net.faults().add(silent);
                }
            }
            let daemon = fleet::lone(&mut sim, &under(ALIAS), AWS).await;
            sim.drained().await;
            daemon.stop().await;
            let key = key_of_replica(&sim, "a");
            assert_eq!(key.as_deref(), Some(other.unwrap_or(KEY)));
            let begun = sim.net.journal().of("CreateMultipartUpload").len();
            assert_eq!(begun, 1 + usize::from(other.is_some()));
        });
    }
}

#[test]
fn a_replica_of_the_sources_multi_region_key_encrypts_what_it_encrypts() {
    simulate(14, async |mut sim| {
        sim.post_everything();
        put(&sim, "multi", 3, Some(MULTI_REGION)).await;
        put(&sim, "none", 3, None).await;
        let daemon = fleet::lone(&mut sim, &under("related"), AWS).await;
        sim.drained().await;
        assert_eq!(key_of_replica(&sim, "multi").as_deref(), Some(RELATED));
        assert_eq!(key_of_replica(&sim, "none"), None);
        sim.pass(AT_ONCE).await;
        let shown = keys(&daemon).await;
        let named = |side, key: &str| shown.iter().any(|of| of.side == side && of.key == key);
        assert!(named(KeySide::Source, MULTI_REGION), "{shown:?}");
        assert!(named(KeySide::Destination, RELATED), "{shown:?}");
        // One without a replica there has nothing to be encrypted with.
        put(
            &sim,
            "single",
            3,
            Some("arn:aws:kms:eu-west-1:111111111111:key/2"),
        )
        .await;
        sim.drained().await;
        assert_eq!(reasons(&daemon).await, ["DstKmsKeyNotFound"]);
        daemon.stop().await;
    });
}

#[test]
fn rules_without_keys_of_their_own_ask_kms_nothing() {
    simulate(15, async |mut sim| {
        sim.post_everything();
        put(&sim, "a", 3, None).await;
        let daemon = fleet::lone(&mut sim, "encryption = { mode = \"s3\" }", AWS).await;
        sim.drained().await;
        sim.pass(2 * A_ROUND).await;
        daemon.stop().await;
        assert_eq!(asked_of_kms(&sim), []);
    });
}

#[test]
fn a_reload_asks_about_the_keys_it_brings() {
    simulate(16, async |mut sim| {
        sim.post_everything();
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.keys.set(KEY, State::Disabled);
        let settings = fleet::settings(&mut sim, &under(KEY), AWS);
        daemon.reload_rules(&settings);
        sim.pass(Duration::from_secs(15)).await;
        put(&sim, "a", 3, None).await;
        sim.drained().await;
        assert_eq!(reasons(&daemon).await, ["DstKmsKeyInvalidState"]);
        assert_eq!(bodies(&sim), []);
        daemon.stop().await;
    });
}
