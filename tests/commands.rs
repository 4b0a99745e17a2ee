//! The commands beside `run`: what they print, and what they answer to the shell.

use std::fs;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::world::World;
use crate::world::daemon::{printed, run};
use crate::world::oracle::root;

const FIVE_MISTAKES: &str = r#"
state_dir = "/tmp/unused"
listen = "127.0.0.1:9478"
memory = "lots"
surprise = 1

[accounts.source]
region = "eu-west-1"

[[queues]]
url = "https://sqs.eu-west-1.amazonaws.com/111111111111/orders-events"
account = "sauce"
dead_letter_url = "https://sqs.eu-west-1.amazonaws.com/111111111111/orders-parked"

[[rules]]
id = "orders"
source = { account = "source", bucket = "orders" }
destination = { account = "source", bucket = "orders" }

[[rules]]
id = "invoices"
source = { account = "source", bucket = "orders" }
destination = { account = "source", bucket = "orders-replica" }
limits = { bandwidth = "0B/s" }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_with_five_mistakes_gets_five_messages() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    fs::write(&file, FIVE_MISTAKES).unwrap();
    let output = run(&["check", "--offline"], &file).await;
    assert_eq!(output.status.code(), Some(78));
    let text = printed(&output);
    let mistakes = [
        "memory",
        "surprise",
        "queues[0].account",
        "rules[0].destination",
        "rules[1].limits.bandwidth",
    ];
    for mistake in mistakes {
        // Every message begins with its place and then the path of the mistake.
        let lines = text
            .lines()
            .filter(|line| line.contains(&format!(": {mistake}")))
            .count();
        assert_eq!(lines, 1, "{mistake} in\n{text}");
    }
    assert_eq!(
        text.lines().filter(|line| line.contains("line ")).count(),
        5,
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_configuration_passes_the_check() {
    let world = World::new().await;
    let output = run(&["check", "--offline"], world.config().write()).await;
    assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_the_figures_of_the_running_daemon() {
    let world = World::new().await;
    let config = world.config();
    let daemon = crate::world::daemon::Daemon::spawn(&config).ready().await;
    world.put("report", "first").await;
    world.drained(&daemon).await;
    let output = run(&["status"], &config.path).await;
    assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
    assert!(printed(&output).contains("orders"), "{}", printed(&output));
    // The commands that ask the daemon alone need no file.
    let nowhere = std::path::Path::new("/nonexistent/config.toml");
    let address = config.listen.clone();
    for command in [
        ["status", "--json"].as_slice(),
        &["health"],
        &["failures", "list"],
        &["failures", "retry", "--all"],
        &["pause", "--rule=orders"],
        &["resume", "--rule=orders"],
    ] {
        let output = run(&[command, &["--address", &address]].concat(), nowhere).await;
        assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
    }
    let output = run(&["status"], nowhere).await;
    assert_eq!(output.status.code(), Some(78), "{}", printed(&output));
    daemon.kill().await;
    let output = run(&["status"], &config.path).await;
    assert_ne!(
        output.status.code(),
        Some(0),
        "no daemon answers: {}",
        printed(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_import_prints_passes_the_check() {
    let dir = tempfile::tempdir().unwrap();
    let (file, nowhere) = (dir.path().join("config.toml"), dir.path().join("nowhere"));
    let native = root().join("config/samples/native/every_element.json");
    let queue = "https://sqs.eu-west-1.amazonaws.com/111111111111/orders";
    let (events, parked) = (format!("{queue}-events"), format!("{queue}-parked"));
    let given = ["--queue-url", &events, "--dead-letter-url", &parked];
    let known = [
        "--bucket=orders",
        "--region=eu-west-1",
        "--since=2026-11-30T12:00:00Z",
    ];
    let native = native.to_str().unwrap();
    let arguments = [["import", native].as_slice(), &known, &given].concat();
    // It needs no configuration.
    let output = run(&arguments, &nowhere).await;
    assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
    fs::write(&file, &output.stdout).unwrap();
    let output = run(&["check", "--offline"], &file).await;
    assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
    let output = run(&["import", native, "--bucket=orders"], &nowhere).await;
    fs::write(&file, &output.stdout).unwrap();
    let output = run(&["check", "--offline"], &file).await;
    assert_eq!(output.status.code(), Some(78), "{}", printed(&output));
    assert!(
        printed(&output).contains("<the events queue>"),
        "{}",
        printed(&output)
    );
    let output = run(
        &["import", file.to_str().unwrap(), "--bucket=orders"],
        &nowhere,
    )
    .await;
    assert_eq!(output.status.code(), Some(1), "{}", printed(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_by_its_exit_code_what_healthz_says() {
    let world = World::new().await;
    let config = world.config();
    let daemon = crate::world::daemon::Daemon::spawn(&config).ready().await;
    let output = run(&["health"], &config.path).await;
    assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
    assert_eq!(printed(&output), "ok\n");
    daemon.kill().await;
    let output = run(&["health"], &config.path).await;
    assert_eq!(output.status.code(), Some(1), "{}", printed(&output));
    assert!(printed(&output).contains("no s3-replicator answers"));

    let listener = TcpListener::bind(&config.listen).await.unwrap();
    let red = async {
        let (mut client, _) = listener.accept().await.unwrap();
        // A socket that is closed with unread bytes resets the connection, answer included.
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(client.read_u8().await.unwrap());
        }
        let answer = b"HTTP/1.0 503 Service Unavailable\r\n\r\nqueue events cannot be polled\n";
        client.write_all(answer).await.unwrap();
    };
    let (output, ()) = tokio::join!(run(&["health"], &config.path), red);
    assert_eq!(output.status.code(), Some(1), "{}", printed(&output));
    assert_eq!(
        printed(&output),
        "s3-replicator: queue events cannot be polled\n"
    );
}
