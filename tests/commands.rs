//! The commands beside `run`: what they print, and what they answer to the shell.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::world::World;
use crate::world::daemon::{printed, run};
use crate::world::hostile::Hostile;
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
    assert_eq!(output.status.code(), Some(78), "{}", printed(&output));
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

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_cannot_be_used_is_found_before_the_start_and_keeps_the_daemon_from_it() {
    let world = Hostile::new().await;
    let mut config = world.config();
    let token = config.path.with_file_name("token");
    config.settings = format!("api_token_file = {token:?}");
    config.write();
    let secret = "f0e1d2c3b4a5968778695a4b3c2d1e0f";
    let cases: [(&str, &dyn Fn()); 5] = [
        ("cannot read the token", &|| {}),
        ("no regular file", &|| make_pipe(&token)),
        ("openssl rand", &|| write_private(&token, "")),
        ("openssl rand", &|| {
            write_private(&token, &secret.repeat(200));
        }),
        ("chmod 640", &|| {
            fs::write(&token, secret).unwrap();
            fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
        }),
    ];
    for (named, make) in cases {
        if token.exists() {
            fs::remove_file(&token).unwrap();
        }
        make();
        for (command, code) in [(["check", "--offline"].as_slice(), 1), (&["run"], 78)] {
            let output = run(command, &config.path).await;
            // What is found is broken into lines.
            let text = printed(&output)
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ");
            assert_eq!(
                output.status.code(),
                Some(code),
                "{command:?} {named}: {text}"
            );
            let is_named = text.contains(named) && text.contains("api_token_file");
            assert!(is_named, "{command:?} {named}: {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_in_place_of_a_file_is_refused_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    make_pipe(&pipe);
    let output = run(&["check", "--offline"], &pipe).await;
    assert_eq!(output.status.code(), Some(78), "{}", printed(&output));
    let world = Hostile::new().await;
    let config = world.config();
    config.write();
    let (named, listen) = (pipe.to_str().unwrap(), config.listen.as_str());
    let pause = [
        "pause",
        "--rule=orders",
        "--address",
        listen,
        "--token-file",
        named,
    ];
    let output = run(&pause, &config.path).await;
    let text = printed(&output);
    assert_eq!(output.status.code(), Some(78), "{text}");
    assert!(text.contains("no regular file"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_line_that_is_not_valid_is_told_from_a_difference() {
    let nowhere = Path::new("/nonexistent/config.toml");
    for wrong in [
        ["verify"].as_slice(),
        &["verify", "--rule=orders", "--as-of=noon"],
        &["check", "--surprise"],
        &["surprise"],
        &[],
    ] {
        let output = run(wrong, nowhere).await;
        assert_eq!(
            output.status.code(),
            Some(78),
            "{wrong:?} {}",
            printed(&output)
        );
    }
    for asked in ["--help", "--version"] {
        let output = run(&[asked], nowhere).await;
        assert_eq!(output.status.code(), Some(0), "{asked}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_help_of_a_command_has_its_exit_statuses_and_examples() {
    let nowhere = Path::new("/nonexistent/config.toml");
    for (command, examples) in [
        ("check", ["check --offline", "check --probe"]),
        ("verify", ["--as-of", "--deep --sample"]),
        ("backfill", ["--dry-run", "--rewrite-history"]),
    ] {
        let output = run(&[command, "--help"], nowhere).await;
        let text = printed(&output);
        let (_, end) = text.split_once("Exit status: 0").expect(&text);
        let (_, shown) = end.split_once("Examples:").expect(end);
        for example in examples {
            assert!(shown.contains(example), "{command} {example}: {shown}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_of_nothing_proves_nothing() {
    let world = Hostile::new().await;
    let config = world.config();
    config.write();
    let verify = ["verify", "--rule=orders", "--as-of=2999-01-01T00:00:00Z"];
    let compared = async |more: &[&str]| {
        let output = run(&[&verify, more].concat(), &config.path).await;
        (output.status.code(), printed(&output))
    };
    world.put("invoices/1", "one").await;
    let (code, text) = compared(&["--prefix=invoice/"]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("nothing was compared"), "{text}");
    for scope in ["\"invoice/\"", "since 2020-01-01T00:00:00Z"] {
        assert!(text.contains(scope), "{scope}: {text}");
    }
    let (code, text) = compared(&["--prefix=invoices/"]).await;
    assert_eq!(code, Some(2), "{text}");
    for since in ["2999-01-01T00:00:00Z", "2999-02-01T00:00:00Z"] {
        let (code, text) = compared(&["--since", since]).await;
        assert_eq!(code, Some(78), "{text}");
        assert!(text.contains("--as-of") && text.contains(since), "{text}");
    }
}

fn write_private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Makes a pipe that nothing is ever written to.
fn make_pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_is_not_rewritten_unasked_where_there_is_no_terminal() {
    let file = root().join("config/example.toml");
    let output = run(
        &["backfill", "--rule", "orders", "--rewrite-history"],
        &file,
    )
    .await;
    assert_eq!(output.status.code(), Some(78));
    let text = printed(&output);
    assert!(text.contains("with --yes it is"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_before_anything_is_asked_is_told_from_what_a_service_says() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let from = ["manifest.json", "absent.csv"].map(|name| format!("--from={}", at(name)));
    fs::write(at("manifest.json"), "{}").unwrap();
    let file = dir.path().join("config.toml");
    let example = fs::read_to_string(root().join("config/example.toml")).unwrap();
    let state = format!("state_dir = \"{}\"", at("state"));
    let lines = example
        .lines()
        .map(|line| match line.starts_with("state_dir") {
            true => state.as_str(),
            false => line,
        });
    fs::write(&file, lines.collect::<Vec<_>>().join("\n")).unwrap();
    for (command, words) in wrong_commands(&from) {
        let output = run(&command, &file).await;
        let text = printed(&output);
        assert_eq!(output.status.code(), Some(78), "{command:?} {text}");
        assert!(text.contains(words), "{command:?} {text}");
    }
}

/// Lists command lines that are wrong as they stand, each with what is said of it.
fn wrong_commands([inventory, absent]: &[String; 2]) -> Vec<(Vec<&str>, &str)> {
    let since = "--since=2026-11-30T00:00:00Z";
    let orders = ["backfill", "--rule=orders", "--dry-run"];
    vec![
        (vec!["verify", "--rule=nope"], "no rule is called \"nope\""),
        (
            vec!["backfill", "--rule=nope"],
            "no rule is called \"nope\"",
        ),
        (
            vec!["ledger", "rebuild", "--rule=nope"],
            "no rule is called \"nope\"",
        ),
        (
            vec![
                "verify",
                "--rule=orders",
                since,
                "--as-of=2026-11-30T00:00:00Z",
            ],
            "no version is created both since",
        ),
        (
            vec!["verify", "--rule=orders", since, "--prefix=/"],
            "no key of rule \"orders\" begins with",
        ),
        (
            [orders.as_slice(), &[inventory, "--format=keys"]].concat(),
            "leave out --format",
        ),
        ([orders.as_slice(), &[absent]].concat(), "absent.csv"),
        (vec!["status", "orders"], "is not s3://bucket/key"),
        (
            vec!["import", "/nonexistent", "--bucket=orders"],
            "cannot read",
        ),
        (
            vec![
                "policies",
                "--principal=nope=arn:aws:iam::111111111111:role/r",
            ],
            "nope",
        ),
        (vec!["policies", "--source-key=nope"], "nope"),
    ]
}
