//! The HTTP API: it reads alone without a token, and every change has to bear it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::Value;

use crate::world::config::Config;
use crate::world::daemon::{Daemon, printed, run};
use crate::world::{World, http};

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
        printed(&output).contains("api_token_file"),
        "{}",
        printed(&output)
    );
}
