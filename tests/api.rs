//! The HTTP API: it reads alone without a token, and every change has to bear it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::config::Config;
use crate::world::daemon::{Daemon, printed, run};
use crate::world::faults::{Fault, Faults};
use crate::world::hostile::Hostile;
use crate::world::oracle::Script;
use crate::world::{World, eventually, http};

const TOKEN: &str = "f0e1d2c3b4a5968778695a4b3c2d1e0f";

/// Lets the daemon of a configuration know the token.
fn with_token(config: &mut Config) {
    let file = config.path.with_file_name("token");
    fs::write(&file, TOKEN).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    config.settings = format!("api_token_file = {file:?}");
}

/// Sends a POST with some headers, and returns the status of the answer.
async fn post(config: &Config, path: &str, headers: &[(&str, &str)]) -> StatusCode {
    let mut request = Request::post(format!("http://{}{path}", config.listen));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    http::status(request.body(Full::<Bytes>::default()).unwrap()).await
}

const COMMAND: (&str, &str) = ("x-s3-replicator", "1");

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_the_api_reads_alone() {
    let world = World::new().await;
    let config = world.config();
    let _daemon = Daemon::spawn(&config).ready().await;
    let url = format!("http://{}/api/v1/status", config.listen);
    let (status, body) = http::get(&url).await.unwrap();
    assert_eq!(status, StatusCode::OK);
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["ready"], true);
    for path in [
        "/api/v1/rules/orders/pause",
        "/api/v1/failures/retry?all=true",
    ] {
        assert_eq!(
            post(&config, path, &[COMMAND]).await,
            StatusCode::FORBIDDEN,
            "{path}"
        );
    }
    let output = run(&["status", "--json"], &config.path).await;
    assert!(
        printed(&output).contains("\"paused\":{}"),
        "{}",
        printed(&output)
    );
    let output = run(&["pause", "--rule=orders"], &config.path).await;
    assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_every_change_has_to_bear_it() {
    let world = World::new().await;
    let mut config = world.config();
    with_token(&mut config);
    let _daemon = Daemon::spawn(&config).ready().await;
    let bearer = format!("Bearer {TOKEN}");
    let right = ("authorization", bearer.as_str());
    let wrong = ("authorization", "Bearer 00000000000000000000000000000000");
    for path in ["/api/v1/rules/orders/pause", "/rules/pause?rule=orders"] {
        for headers in [[COMMAND].as_slice(), &[COMMAND, wrong]] {
            assert_eq!(
                post(&config, path, headers).await,
                StatusCode::UNAUTHORIZED,
                "{path}"
            );
        }
        assert_eq!(
            post(&config, path, &[COMMAND, right]).await,
            StatusCode::OK,
            "{path}"
        );
    }
    // The local commands find it where the daemon does.
    let output = run(&["resume", "--rule=orders"], &config.path).await;
    assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
    let address = ["pause", "--rule=orders", "--address", &config.listen];
    let output = run(&address, &config.path).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        printed(&output).contains("--token-file"),
        "{}",
        printed(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_refuses_is_json_that_names_the_whole_path() {
    let world = Hostile::new().await;
    let config = world.config();
    let _daemon = Daemon::spawn(&config).ready().await;
    let refused = async |path: &str| {
        let url = format!("http://{}{path}", config.listen);
        let (status, body) = http::get(&url).await.unwrap();
        let body: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{path}: {body}"));
        (status, body["error"].as_str().unwrap().to_owned())
    };
    for path in [
        "/api",
        "/api/",
        "/api/v1",
        "/api/v1/",
        "/api/v1/nope",
        "/api/v2",
    ] {
        let (status, error) = refused(path).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(error, format!("{path} is no path of this API"));
    }
    for (query, named) in [
        ("objects?uri=s3://orders/a&uri=s3://orders/b", "uri"),
        ("failures?rule=orders&rule=orders", "rule"),
        ("objects?url=s3://orders/a", "url"),
    ] {
        let (status, error) = refused(&format!("/api/v1/{query}")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}");
        assert!(error.contains(named), "{query}: {error}");
    }
    let foreign = Request::get(format!("http://{}/api/v1/status", config.listen));
    let foreign = foreign.header("host", "evil.example");
    let foreign = foreign.body(Full::<Bytes>::default()).unwrap();
    let (status, body) = http::answer(foreign).await.unwrap();
    assert_eq!(status, StatusCode::MISDIRECTED_REQUEST);
    assert!(serde_json::from_str::<Value>(&body).is_ok(), "{body}");
    let paused = "/rules/pause?rule=orders&rule=invoices";
    let status = post(&config, paused, &[COMMAND]).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{paused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scheme_of_a_token_may_be_in_any_case_and_a_command_without_one_is_told_where_it_belongs()
 {
    let world = Hostile::new().await;
    let mut config = world.config();
    with_token(&mut config);
    let _daemon = Daemon::spawn(&config).ready().await;
    for scheme in ["bearer", "BEARER"] {
        let bearer = format!("{scheme} {TOKEN}");
        let path = "/api/v1/rules/orders/resume";
        let status = post(&config, path, &[("authorization", &bearer)]).await;
        assert_eq!(status, StatusCode::OK, "{scheme}");
    }
    let pause = ["pause", "--rule=orders", "--address", &config.listen];
    let output = run(&pause, &config.path).await;
    let text = printed(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("--token-file"), "{text}");
    let other = config.path.with_file_name("other");
    fs::write(&other, TOKEN.replace('f', "e")).unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
    let other = other.to_str().unwrap();
    let output = run(
        &[&pause, ["--token-file", other].as_slice()].concat(),
        &config.path,
    )
    .await;
    let text = printed(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(other) && !text.contains(TOKEN), "{text}");
}

/// Sends a head as it is, and returns the answer.
async fn send_head(config: &Config, lines: &[&str]) -> String {
    let mut stream = TcpStream::connect(&config.listen).await.unwrap();
    let head = format!("{}\r\n\r\n", lines.join("\r\n"));
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_http_1_1_names_its_host_once() {
    let world = Hostile::new().await;
    let config = world.config();
    let _daemon = Daemon::spawn(&config).ready().await;
    for path in ["/api/v1/status", "/status", "http://localhost/status"] {
        let line = format!("GET {path} HTTP/1.1");
        let twice = [&line, "Host: localhost", "Host: localhost"];
        for lines in [&twice[..1], &twice] {
            let answer = send_head(&config, lines).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{lines:?}: {answer}");
            let is_json = answer.contains("{\"error\":\"");
            assert_eq!(is_json, path.starts_with("/api/"), "{answer}");
        }
        let answer = send_head(&config, &twice[..2]).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    let answer = send_head(&config, &["GET /status HTTP/1.0"]).await;
    assert!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_says_nothing_to_a_path_is_refused_there() {
    let world = Hostile::new().await;
    let mut config = world.config();
    with_token(&mut config);
    let _daemon = Daemon::spawn(&config).ready().await;
    let bearer = format!("Bearer {TOKEN}");
    let send = async |method: &str, path: &str| {
        let url = format!("http://{}/api/v1/{path}", config.listen);
        let request = Request::builder().method(method).uri(url);
        let request = request.header("authorization", &bearer);
        let answer = http::answer(request.body(Full::<Bytes>::default()).unwrap()).await;
        let (status, body) = answer.unwrap();
        let body: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{path}: {body}"));
        (status, body["error"].as_str().map(str::to_owned))
    };
    for (method, path) in [
        ("POST", "rules/orders/pause"),
        ("POST", "rules/orders/resume"),
        ("GET", "status"),
    ] {
        let (status, error) = send(method, &format!("{path}?rule=invoices")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}");
        let error = error.unwrap();
        assert!(error.contains("rule"), "{path}: {error}");
        let (status, _) = send(method, path).await;
        assert_eq!(status, StatusCode::OK, "{path}");
    }
    for query in ["", "?", "?uri=", "?uri"] {
        let (status, error) = send("GET", &format!("objects{query}")).await;
        let error = error.unwrap();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}");
        assert_eq!(error, "say which object: ?uri=s3://bucket/key", "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_a_path_does_not_know_is_refused_with_those_that_it_knows() {
    let world = Hostile::new().await;
    let config = world.config();
    let _daemon = Daemon::spawn(&config).ready().await;
    for (method, path, known) in [
        ("POST", "status", "GET,HEAD"),
        ("DELETE", "objects", "GET,HEAD"),
        ("GET", "rules/orders/pause", "POST"),
        ("DELETE", "rules/orders/pause", "POST"),
    ] {
        let line = format!("{method} /api/v1/{path} HTTP/1.1");
        let answer = send_head(&config, &[&line, "Host: localhost"]).await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{line}: {answer}");
        assert!(answer.contains(&format!("allow: {known}\r\n")), "{answer}");
        assert!(answer.contains("{\"error\":\""), "{answer}");
    }
}

/// Sends a daemon of real servers what its document permits and what it does not, and compares the
/// answers with it.
async fn assert_conforms(token: Option<&str>) {
    let world = World::new().await;
    let faults = Faults::open().await;
    let archive = world.archive.clone();
    faults.script(Fault::AccessDenied, usize::MAX, move |seen| {
        seen.is(&archive, "PutObject") && seen.key.contains("refused")
    });
    let mut config = world.config();
    config.endpoint.clone_from(&faults.url);
    if token.is_some() {
        with_token(&mut config);
    }
    let daemon = Daemon::spawn(&config).ready().await;
    // Something to tell of: versions with a replica, and one that is parked.
    world.put("report", "first").await;
    world.put("report", "second").await;
    world.put("refused", "first").await;
    eventually("it is parked", async || {
        daemon.metrics().await.sum("parked", &[]) == 1.0
    })
    .await;
    let url = format!("http://{}", config.listen);
    let document = http::get(&format!("{url}/api/v1/openapi.json")).await;
    let file = config.path.with_file_name("openapi.json");
    fs::write(&file, document.unwrap().1).unwrap();
    let judge = Script::new("validate_openapi.py").option("file", file.display());
    assert_eq!(judge.summary().await["openapi"], "3.1.0");
    let mut judge = Script::of_schemathesis()
        .option("url", &url)
        .option("rule", "orders");
    for key in ["report", "refused"] {
        judge = judge.option("object", format!("s3://{}/{key}", world.source));
    }
    if let Some(token) = token {
        judge = judge.option("token", token);
    }
    let summary = judge.summary().await;
    assert!(summary["cases"].as_u64() > Some(300), "{summary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_each_answer_is_one_that_the_document_has() {
    assert_conforms(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_each_answer_is_one_that_the_document_has() {
    assert_conforms(Some(TOKEN)).await;
}
