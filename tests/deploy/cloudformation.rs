//! The CloudFormation templates are clean, and what they make is enough for the daemon's main job.
//! LocalStack knows all of it but ECS and its scaling, which `DeployService=false` leaves out.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::world::World;
use crate::world::daemon::{Daemon, printed, run};
use crate::world::localstack::{ARCHIVE, SOURCE, endpoint, unique};
use crate::world::oracle::{Script, root};
use crate::world::queue::Queue;
use crate::world::secrets;

#[test]
fn the_templates_are_clean() {
    let python =
        env::var("REPLICATOR_PYTHON").expect("REPLICATOR_PYTHON is not set: run `make test`");
    let lint = |folder: &Path| {
        let templates = ["s3-replicator.yaml", "destination.yaml"].map(|name| folder.join(name));
        let linter = Path::new(&python).with_file_name("cfn-lint");
        Command::new(linter).args(templates).output().unwrap()
    };
    let folder = root().join("deploy/cloudformation");
    let output = lint(&folder);
    assert!(output.status.success(), "{}", printed(&output));

    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path)
            .unwrap()
            .replace("FifoQueue: true", "FifoQueue: maybe");
        fs::write(dir.path().join(path.file_name().unwrap()), text).unwrap();
    }
    assert!(
        !lint(dir.path()).status.success(),
        "the linter finds nothing"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_templates_make_is_enough_for_the_main_job() {
    does_the_main_job_on_stacks("true").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn buckets_that_exist_are_wired_by_what_the_stack_prints() {
    does_the_main_job_on_stacks("false").await;
}

async fn does_the_main_job_on_stacks(creates_buckets: &str) {
    let name = unique("replicator");
    let buckets = [unique("orders"), unique("orders-replica")];
    let [source, destination] = &buckets;
    if creates_buckets == "false" {
        SOURCE.create_bucket(source).await;
        ARCHIVE.create_bucket(destination).await;
    }
    let keys = [SOURCE.create_key().await, ARCHIVE.create_key().await];
    let script = Script::of("tests/deploy", "stacks.py").option("endpoint", endpoint());
    let script = script
        .option("name", &name)
        .option("create", creates_buckets);
    let script = script
        .option("source", source)
        .option("source-key", &keys[0]);
    let script = script
        .option("destination", destination)
        .option("destination-key", &keys[1]);
    let outputs = Box::pin(script.summary()).await;
    secrets::assert_none_in("what the stack prints", &outputs.to_string());
    let text = outputs["ConfigurationText"].as_str().unwrap();
    let world = Box::pin(World::of(buckets.clone(), queues(text))).await;
    let config = world.config();
    fs::write(&config.path, text).unwrap();
    if creates_buckets == "false" {
        // A key that the stack creates is not known before.
        grants_what_is_needed(&outputs, &config.path, &keys).await;
    }
    let daemon = Daemon::spawn_on_text(
        &on_localstack(text, &config.listen, &config.state_dir),
        &config,
        &[],
    );
    let daemon = daemon.ready().await;
    let workload = world.workload(60, 10, 19);
    Box::pin(workload.summary()).await;
    world.drained(&daemon).await;
    world.all_drained(&[daemon]).await;
    let compared = Box::pin(world.comparison_under_any_key().summary()).await;
    assert_ne!(compared["versions"], Value::from(0), "{compared}");
}

/// Returns the queues that a configuration names.
fn queues(text: &str) -> [Queue; 3] {
    ["\nurl", "dead_letter_url", "work_queue"].map(|key| {
        let (_, rest) = text.split_once(&format!("{key} = \"")).unwrap();
        let url = rest.split_once('"').unwrap().0.to_owned();
        Queue { url }
    })
}

/// Returns the configuration of the stack with what differs here: the endpoints, and the place of
/// the state.
fn on_localstack(text: &str, listen: &str, state_dir: &Path) -> String {
    let state = format!(
        "state_dir = \"{}\"\nlisten = \"{listen}\"",
        state_dir.display()
    );
    let here = format!("endpoint = \"{}\"\nregion = ", endpoint());
    let text = text.replacen("state_dir = \"/var/lib/s3-replicator\"", &state, 1);
    assert_eq!(text.matches("\nregion = ").count(), 2);
    text.replace("\nregion = ", &format!("\n{here}"))
}

/// Compares the policies of a stack with those that `policies` prints for its configuration.
async fn grants_what_is_needed(
    outputs: &Value,
    config: &Path,
    [source, destination]: &[String; 2],
) {
    let role = outputs["RoleArn"].as_str().unwrap();
    let keys = ["--source-key", source, "--destination-key", destination];
    let arguments = [["policies", "--principal", role].as_slice(), &keys].concat();
    let output = run(&arguments, config).await;
    assert!(output.status.success(), "{}", printed(&output));
    let documents: Value = serde_json::from_slice(&output.stdout).unwrap();
    let policy = |kind: &str, account: &str| {
        let is_it = |document: &&Value| document["kind"] == kind && document["account"] == account;
        let found = documents.as_array().unwrap().iter().find(is_it);
        statements(
            &found.unwrap_or_else(|| panic!("no {kind} of {account} in {documents}"))["policy"],
        )
    };
    let [ours, theirs] = [SOURCE.id, ARCHIVE.id];
    let made = |name: &str| statements(&outputs["Policies"][name]);
    assert_eq!(made("source"), policy("permissions", ours));
    assert_eq!(made("destination"), policy("permissions", theirs));
    assert_eq!(made("trust"), policy("trust", theirs));
    assert_eq!(made("queue"), policy("queue-policy", ours));
    let to_add: Value =
        serde_json::from_str(outputs["SourceKeyStatements"].as_str().unwrap()).unwrap();
    let to_add = json!({"Statement": to_add});
    assert_eq!(statements(&to_add), policy("key-policy", ours));
}

/// Returns the statements of a policy in one of the forms that mean the same.
fn statements(policy: &Value) -> BTreeSet<String> {
    let statements = policy["Statement"].as_array().unwrap();
    statements
        .iter()
        .map(|one| normal(one).to_string())
        .collect()
}

/// Orders lists, and has one element stand alone.
fn normal(value: &Value) -> Value {
    match value {
        Value::Array(list) => {
            let mut list: Vec<Value> = list.iter().map(normal).collect();
            list.sort_by_key(Value::to_string);
            if list.len() == 1 {
                list.remove(0)
            } else {
                Value::Array(list)
            }
        }
        Value::Object(fields) => fields
            .iter()
            .map(|(name, field)| (name.clone(), normal(field)))
            .collect(),
        // AWS::URLSuffix is where LocalStack is.
        Value::String(text) => text.replace(".127.0.0.1", ".amazonaws.com").into(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}
