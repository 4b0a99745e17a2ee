//! KMS keys in two accounts: replicas are under the destination's own, whatever becomes of the
//! source's, and a key that cannot be used parks what needs it until it can. So with the data keys
//! of what clients encrypt themselves.

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::ServerSideEncryption;
use serde_json::json;

use crate::world::config::Rule;
use crate::world::daemon::{Daemon, printed, run};
use crate::world::localstack::{ARCHIVE, Account, SOURCE, endpoint, unique};
use crate::world::oracle::Script;
use crate::world::{World, eventually};

async fn parked(daemon: &Daemon, reason: &str) -> f64 {
    let metrics = daemon.metrics().await;
    metrics.sum("parked", &[("reason", reason)])
}

async fn put_under(world: &World, key: &str, kms_key: &str) {
    let put = SOURCE.s3().put_object().bucket(&world.source).key(key);
    let put = put
        .server_side_encryption(ServerSideEncryption::AwsKms)
        .ssekms_key_id(kms_key);
    put.body(b"secret".to_vec().into()).send().await.unwrap();
}

async fn replica(world: &World, key: &str) -> HeadObjectOutput {
    let head = ARCHIVE.s3().head_object().bucket(&world.archive).key(key);
    head.send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_under_the_destinations_key_and_open_without_the_sources() {
    let world = World::new().await;
    put_under(&world, "plain", &world.source_key).await;
    let mut config = world.config();
    config.rules.push(Rule {
        encryption: format!(
            "key_map = {{ \"{}\" = \"{}\" }}",
            world.source_key, world.archive_key
        ),
        more: "priority = 1".to_owned(),
        ..world.rule("mapped", "mapped/")
    });
    let daemon = Daemon::spawn(&config).ready().await;
    put_under(&world, "mapped/a", &world.source_key).await;
    world.put("large", vec![7; 40 << 20]).await;
    world.drained(&daemon).await;
    let disable = json!({ "KeyId": world.source_key });
    SOURCE.kms("DisableKey", &disable).await;
    for (key, has_bucket_key) in [("plain", true), ("mapped/a", false), ("large", true)] {
        let replica = replica(&world, key).await;
        assert_eq!(
            replica.ssekms_key_id(),
            Some(world.archive_key.as_str()),
            "{key}"
        );
        assert_eq!(
            replica.bucket_key_enabled().unwrap_or(false),
            has_bucket_key,
            "{key}"
        );
        let got = ARCHIVE.s3().get_object().bucket(&world.archive).key(key);
        got.send().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_cannot_be_used_park_as_named_and_enabling_them_empties_the_parking_lot() {
    let world = World::new().await;
    let [disabled, doomed] = [ARCHIVE.create_key().await, ARCHIVE.create_key().await];
    let unknown = format!("{}0", ARCHIVE.create_key().await);
    ARCHIVE
        .kms("DisableKey", &json!({ "KeyId": disabled }))
        .await;
    let deletion = json!({ "KeyId": doomed, "PendingWindowInDays": 7 });
    ARCHIVE.kms("ScheduleKeyDeletion", &deletion).await;
    let mut config = world.config();
    let under = |id, prefix, key: &str| Rule {
        encryption: format!("mode = \"kms\", key = \"{key}\""),
        ..world.rule(id, prefix)
    };
    config.rules = vec![
        under("disabled", "disabled/", &disabled),
        under("doomed", "doomed/", &doomed),
        under("unknown", "unknown/", &unknown),
    ];
    let daemon = Daemon::spawn(&config).ready().await;
    for key in ["disabled/a", "doomed/a", "unknown/a"] {
        world.put(key, "body").await;
    }
    eventually("all are parked", async || {
        parked(&daemon, "DstKmsKeyInvalidState").await == 2.0
            && parked(&daemon, "DstKmsKeyNotFound").await == 1.0
    })
    .await;
    let status = printed(&run(&["status"], &config.path).await);
    let line = format!("rule doomed: destination key {doomed}: invalid since");
    assert!(
        status.contains(&line) && status.contains("PendingDeletion"),
        "{status}"
    );
    let checked = printed(&run(&["check"], &config.path).await);
    for fix in [
        format!("aws kms enable-key --key-id {disabled}"),
        format!("aws kms cancel-key-deletion --key-id {doomed}"),
        "destination-key: there is no such key".to_owned(),
    ] {
        assert!(checked.contains(&fix), "{fix} is not in {checked}");
    }
    ARCHIVE
        .kms("EnableKey", &json!({ "KeyId": disabled }))
        .await;
    ARCHIVE
        .kms("CancelKeyDeletion", &json!({ "KeyId": doomed }))
        .await;
    ARCHIVE.kms("EnableKey", &json!({ "KeyId": doomed })).await;
    eventually("what can be done is done", async || {
        parked(&daemon, "DstKmsKeyInvalidState").await == 0.0
    })
    .await;
    world.drained(&daemon).await;
    for (key, kms_key) in [("disabled/a", &disabled), ("doomed/a", &doomed)] {
        assert_eq!(
            replica(&world, key).await.ssekms_key_id(),
            Some(kms_key.as_str())
        );
    }
    assert_eq!(parked(&daemon, "DstKmsKeyNotFound").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_is_the_destination_accounts_though_the_sources_has_the_same_name() {
    let world = World::new().await;
    let name = unique("alias/gold");
    let alias = |key: &str| json!({ "AliasName": name, "TargetKeyId": key });
    SOURCE.kms("CreateAlias", &alias(&world.source_key)).await;
    ARCHIVE.kms("CreateAlias", &alias(&world.archive_key)).await;
    let mut config = world.config();
    let arn = world.archive_key.split_once(":key/").unwrap().0;
    config.rules[0].encryption = format!("mode = \"kms\", key = \"{arn}:{name}\"");
    let daemon = Daemon::spawn(&config).ready().await;
    put_under(&world, "report", &world.source_key).await;
    world.drained(&daemon).await;
    let replica = replica(&world, "report").await;
    assert_eq!(replica.ssekms_key_id(), Some(world.archive_key.as_str()));
    let status = printed(&run(&["status"], &config.path).await);
    assert!(
        status.contains(&format!("it is {}", world.archive_key)),
        "{status}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_multi_region_key_encrypts_on_both_sides_by_its_own_replicas() {
    let world = World::new().await;
    let made = SOURCE
        .kms("CreateKey", &json!({ "MultiRegion": true }))
        .await;
    let primary = made["KeyMetadata"]["Arn"].as_str().unwrap();
    let replicate = json!({ "KeyId": primary, "ReplicaRegion": ARCHIVE.region });
    let made = SOURCE.kms("ReplicateKey", &replicate).await;
    let related = made["ReplicaKeyMetadata"]["Arn"].as_str().unwrap();
    let mut config = world.config();
    config.rules[0].encryption = "mode = \"kms\", key = \"related\"".to_owned();
    let daemon = Daemon::spawn(&config).ready().await;
    put_under(&world, "report", primary).await;
    world.drained(&daemon).await;
    assert_eq!(
        replica(&world, "report").await.ssekms_key_id(),
        Some(related)
    );
    eventually("its state is known", async || {
        let status = printed(&run(&["status"], &config.path).await);
        status.contains(&format!("destination key {related}: usable"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_encrypted_opens_at_the_destination_with_its_key_alone() {
    let world = World::new().await;
    // LocalStack's ReEncrypt knows the keys of one account alone.
    let (source_key, near_key) = (SOURCE.create_key().await, SOURCE.create_key().await);
    let pairs = [
        ("near", source_key.as_str(), near_key.as_str()),
        ("far", &world.source_key, &world.archive_key),
    ];
    let formats = ["v2", "v3", "instruction"];
    for (pair, key, _) in pairs {
        for format in formats {
            let name = format!("{pair}/{format}");
            let put = client_side(SOURCE, &world.source, key, &name).option("action", "put");
            let put = put.option("format", format).option("plaintext", &name);
            put.summary().await;
        }
    }
    let mut config = world.config();
    let mapped = pairs.map(|(_, from, to)| format!("\"{from}\" = \"{to}\""));
    config.rules[0].more = format!("client_side_keys = {{ {} }}", mapped.join(", "));
    let daemon = Daemon::spawn(&config).ready().await;
    world.drained(&daemon).await;
    for (_, key, _) in pairs {
        SOURCE.kms("DisableKey", &json!({ "KeyId": key })).await;
    }
    for (pair, _, key) in pairs {
        for format in formats {
            let name = format!("{pair}/{format}");
            let open = client_side(ARCHIVE, &world.archive, key, &name).option("action", "open");
            let opened = open.option("format", format).summary().await;
            assert_eq!(opened["plaintext"], name.as_str());
        }
    }
}

fn client_side(account: Account, bucket: &str, kms_key: &str, key: &str) -> Script {
    Script::of_encryption_client()
        .option("endpoint", endpoint())
        .option("account", account.id)
        .option("region", account.region)
        .option("bucket", bucket)
        .option("kms-key-arn", kms_key)
        .option("key", key)
}
