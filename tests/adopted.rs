//! `unmanaged_objects = "adopt"`: a destination that rclone filled is taken as it is, and what
//! follows is appended to it.

use std::process::{Output, Stdio};

use tokio::process::Command;

use crate::world::World;
use crate::world::config::Config;
use crate::world::daemon::{Daemon, printed, run};
use crate::world::faults::Faults;
use crate::world::localstack::{ARCHIVE, Account, SOURCE, endpoint};

const KEYS: usize = 40;
/// Keys that tools spell in different ways, beside plain ones.
const AWKWARD: [&str; 3] = ["a b+c%20d", "ключ", "dir/a,b\"c"];

#[tokio::test(flavor = "multi_thread")]
async fn what_rclone_synced_is_adopted_and_later_versions_are_appended() {
    let world = World::new().await;
    let keys = fill(&world).await;
    rclone_sync(&world).await;
    // Another tool's, of the same size.
    world.put("other", "of the source").await;
    let put = ARCHIVE.s3().put_object().bucket(&world.archive);
    let put = put.key("other").body(b"somebody else".to_vec().into());
    put.send().await.unwrap();

    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    config.rules[0].more = "unmanaged_objects = \"adopt\"".to_owned();
    let daemon = Daemon::spawn(&config).ready().await;
    world.drained(&daemon).await;
    assert_eq!(written(&faults, &world), ["other"], "what is equal stays");
    let metrics = daemon.metrics().await;
    assert!(metrics.sum("failures_total", &[("reason", "DstObjectForeign")]) > 0.0);
    // The other tool's object stays as an older version.
    let (code, text) = verify(&config).await;
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("foreign") && !text.contains("dir/"), "{text}");

    for key in &keys[..10] {
        world.put(key, "a second version").await;
    }
    world.drained(&daemon).await;
    let mut expected: Vec<&str> = keys[..10].iter().map(String::as_str).collect();
    expected.push("other");
    expected.sort_unstable();
    assert_eq!(written(&faults, &world), expected);
    for (at, key) in keys.iter().enumerate() {
        let versions = if at < 10 { 2 } else { 1 };
        assert_eq!(versions_of(&world, key).await.len(), versions, "{key}");
    }
    let foreign = versions_of(&world, "other").await.pop().unwrap();
    let remove = ARCHIVE.s3().delete_object().bucket(&world.archive);
    let remove = remove.key("other").version_id(foreign);
    remove.send().await.unwrap();
    let (code, text) = verify(&config).await;
    assert_eq!(code, Some(0), "{text}");
}

/// Writes objects to the source, and returns their keys.
async fn fill(world: &World) -> Vec<String> {
    let names = AWKWARD.map(str::to_owned).into_iter();
    let keys: Vec<String> = names
        .chain((0..KEYS).map(|at| format!("dir/{at}")))
        .collect();
    for (at, key) in keys.iter().enumerate() {
        world.put(key, format!("object {at}")).await;
    }
    keys
}

async fn verify(config: &Config) -> (Option<i32>, String) {
    let as_of = "2999-01-01T00:00:00Z";
    let command = ["verify", "--rule", "orders", "--as-of", as_of];
    let output = run(&command, &config.path).await;
    (output.status.code(), printed(&output))
}

/// Lists the versions of a key at the destination, the newest first.
async fn versions_of(world: &World, key: &str) -> Vec<String> {
    let list = ARCHIVE.s3().list_object_versions().bucket(&world.archive);
    let listed = list.prefix(key).send().await.unwrap();
    let of_key = listed
        .versions()
        .iter()
        .filter(|version| version.key() == Some(key));
    of_key
        .map(|version| version.version_id().unwrap().to_owned())
        .collect()
}

/// Lists the keys that were written to the destination through the proxy.
fn written(faults: &Faults, world: &World) -> Vec<String> {
    let journal = faults.journal();
    let writes = journal.iter().filter(|seen| {
        let writes = ["PUT", "POST", "DELETE"].contains(&seen.method.as_str());
        writes && seen.service == "s3" && seen.bucket == world.archive
    });
    let mut keys: Vec<String> = writes.map(|seen| seen.key.clone()).collect();
    keys.sort_unstable();
    keys
}

/// Copies the source bucket to the destination, as rclone does.
async fn rclone_sync(world: &World) {
    let output = rclone(world, &["sync"]).await;
    assert!(output.status.success(), "{}", printed(&output));
}

/// Runs a command of rclone from the source bucket to the destination.
pub(crate) async fn rclone(world: &World, command: &[&str]) -> Output {
    let rclone =
        std::env::var("REPLICATOR_RCLONE").expect("REPLICATOR_RCLONE is not set: run `make test`");
    let (from, to) = (
        format!("src:{}", world.source),
        format!("dst:{}", world.archive),
    );
    let mut run = Command::new(rclone);
    run.args(command).args([&from, &to]);
    run.args(["--config", "/dev/null", "--quiet"]);
    run.envs(remote("SRC", SOURCE)).envs(remote("DST", ARCHIVE));
    run.stdin(Stdio::null()).output().await.unwrap()
}

fn remote(name: &str, account: Account) -> Vec<(String, String)> {
    let url = endpoint();
    let options = [
        ("TYPE", "s3"),
        ("PROVIDER", "Other"),
        ("ACCESS_KEY_ID", account.id),
        ("SECRET_ACCESS_KEY", "secret"),
        ("REGION", account.region),
        ("ENDPOINT", &url),
        ("FORCE_PATH_STYLE", "true"),
        ("NO_CHECK_BUCKET", "true"),
        ("LIST_VERSION", "2"),
    ];
    let named = |(option, value): (&str, &str)| {
        (format!("RCLONE_CONFIG_{name}_{option}"), value.to_owned())
    };
    options.into_iter().map(named).collect()
}
