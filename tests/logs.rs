//! What the daemon says: one line a settled task, text or JSON, never a body or a credential.

use serde_json::Value;

use crate::world::World;
use crate::world::daemon::{Daemon, SECRET};
use crate::world::faults::Faults;

const BODY: &str = "the-body-of-a-confidential-report";

#[tokio::test(flavor = "multi_thread")]
async fn logs_name_each_settled_task_and_no_secret() {
    let world = World::new().await;
    let faults = Faults::open().await;
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    let daemon = Daemon::spawn(&config).ready().await;
    world.put("report", BODY).await;
    world.queue.send(format!("not json, but {BODY}")).await;
    world.drained(&daemon).await;
    let log = daemon.log();
    assert!(
        log.lines()
            .any(|line| line.contains("report") && line.contains("replicated")),
        "no line for the task"
    );
    assert!(!log.contains(BODY), "a body is in the log");
    assert!(!log.contains(SECRET), "the secret key is in the log");
    let of_the_sdk = |line: &&str| line.contains(" DEBUG ") || line.contains(" TRACE ");
    assert_eq!(log.lines().find(of_the_sdk), None);
    let tokens: Vec<String> = faults
        .journal()
        .iter()
        .map(|seen| seen.header("x-amz-security-token").to_owned())
        .collect();
    assert!(
        tokens.iter().any(|token| !token.is_empty()),
        "the role was never used"
    );
    for token in tokens.iter().filter(|token| !token.is_empty()) {
        assert!(!log.contains(token), "a session token is in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_lowest_level_the_sdk_writes_no_whole_request() {
    let world = World::new().await;
    let daemon = Daemon::spawn_with(&world.config(), &[("S3_REPLICATOR_LOG", "trace")])
        .ready()
        .await;
    world.put("report", BODY).await;
    world.drained(&daemon).await;
    let log = daemon.log();
    assert!(log.contains(" TRACE ") && log.contains("retry settings for this operation"));
    // What the same place says of each attempt at that level.
    assert!(!log.contains("checking if context can be rewound"));
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_as_json_are_json_on_every_line() {
    let world = World::new().await;
    let daemon = Daemon::spawn_with(&world.config(), &[("S3_REPLICATOR_LOG_FORMAT", "json")])
        .ready()
        .await;
    world.put("report", BODY).await;
    world.queue.send("not json").await;
    world.drained(&daemon).await;
    let log = daemon.log();
    let mut messages = Vec::new();
    for line in log.lines() {
        let parsed: serde_json::Map<String, Value> =
            serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        // Of a name that is there twice, readers see one.
        let names = parsed
            .keys()
            .filter(|name| line.matches(&format!("\"{name}\":")).count() != 1);
        assert_eq!(names.count(), 0, "{line}");
        messages.extend(
            parsed
                .get("message")
                .and_then(Value::as_str)
                .map(str::to_owned),
        );
    }
    for wanted in ["settled", "message cannot be acted on, parking it"] {
        assert!(
            messages.iter().any(|message| message == wanted),
            "{wanted} is not among {messages:?}"
        );
    }
    assert!(!log.contains(BODY), "a body is in the log");
}
