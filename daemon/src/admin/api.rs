//! The HTTP API: what the commands know, for programs, under `/api/v1`. It reads alone unless a
//! token is configured, which a request that changes anything has to bear. `pause` and `resume` any
//! client that reaches `listen` may ask for, by the paths of the commands: nothing is lost by a
//! pause that ends before the queue's retention period.

use std::fmt::{self, Write};

use anyhow::{Context, bail};
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderValue, Method, StatusCode, Uri, header};
use percent_encoding::{percent_decode_str, utf8_percent_encode};
use replicator_config::{ApiToken, Invalid, Settings, suggest_nearest};
use replicator_core::failure::{FailureKind, error_chain};
use replicator_core::object::escape_controls;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use tokio::net::TcpStream;
use tracing::info;

use crate::admin::failures::{ANSWER_TIMEOUT, QUOTED, list_parked, retry_parked};
use crate::admin::status::{DaemonAddress, DaemonClient, TIMEOUT, send_request};
use crate::admin::{Admin, Refusal, bad_request, json_response, unavailable};
use crate::objects::{
    KeyReplication, LedgerReader, ObjectQuestion, ObjectReader, ObjectStatus, Unanswered,
    read_beside,
};
use crate::process::run_blocking;

/// The paths of the API.
pub(crate) fn router() -> Router<Admin> {
    let paths = Router::new()
        .route("/status", get(read_status))
        .route("/failures", get(list_parked))
        .route("/failures/retry", post(retry_parked))
        .route("/objects", get(read_object))
        .route("/rules/{id}/pause", post(pause_rule))
        .route("/rules/{id}/resume", post(resume_rule));
    Router::new().nest("/api/v1", paths)
}

/// Says whether a path is for programs, whether or not there is anything at it.
pub(super) fn is_api(uri: &Uri) -> bool {
    let below = uri.path().strip_prefix("/api");
    below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
}

/// Refuses what a browser sends for a page of another origin, which can read no answer, and could
/// make requests that cost money: <https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header>
pub(crate) async fn refuse_pages(request: Request, next: Next) -> Result<Response, Refusal> {
    let sites = request.headers().get_all("sec-fetch-site");
    let is_own = sites
        .iter()
        .all(|site| site == "same-origin" || site == "none");
    if is_own || !is_api(request.uri()) {
        return Ok(next.run(request).await);
    }
    let text = "a browser sends this for a page of another origin, which is refused";
    Err((StatusCode::FORBIDDEN, text.to_owned()))
}

/// Lets a request that changes anything through if it bears the token. Without a token the API
/// reads alone, and the commands of this host need none.
pub(crate) async fn require_token(
    State(admin): State<Admin>,
    request: Request,
    next: Next,
) -> Response {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    match &admin.token {
        _ if is_read => next.run(request).await,
        None if is_api(request.uri()) => {
            let text = "this API reads alone; `api_token_file` in the configuration names the token \
                 of those that may change anything";
            (StatusCode::FORBIDDEN, text).into_response()
        }
        None => next.run(request).await,
        Some(token) if bears(&request, token) => next.run(request).await,
        Some(_) => {
            let scheme = [(header::WWW_AUTHENTICATE, "Bearer")];
            let text = "say the token of `api_token_file`, as `Authorization: Bearer TOKEN`";
            (StatusCode::UNAUTHORIZED, scheme, text).into_response()
        }
    }
}

/// Compares in a time that says nothing of the token but its length. The name of a scheme is the
/// same in any case: <https://www.rfc-editor.org/rfc/rfc9110#section-11.1>
fn bears(request: &Request, token: &ApiToken) -> bool {
    let header = request.headers().get(header::AUTHORIZATION);
    let given = header.map_or(b"".as_slice(), |header| header.as_bytes());
    let Some((scheme, rest)) = given.split_at_checked(BEARER.len()) else {
        return false;
    };
    let given = rest.trim_ascii_start();
    scheme.eq_ignore_ascii_case(BEARER)
        && given.len() < rest.len()
        && token.as_str().as_bytes().ct_eq(given).into()
}

const BEARER: &[u8] = b"Bearer";

/// Why a request has no other answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ApiError {
    /// What is wrong, and what to do.
    pub(super) error: String,
}

// Most objects are read within a second; the dispatch and the buckets are given up after more.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("5");

/// Gives what the API refuses in words, or without any, the form that programs read.
pub(crate) async fn describe_refusals(request: Request, next: Next) -> Response {
    let is_api = is_api(request.uri());
    let answer = next.run(request).await;
    if !is_api || answer.status().is_success() {
        return answer;
    }
    let (mut head, body) = answer.into_parts();
    let body = axum::body::to_bytes(body, REFUSAL_BYTES_MAX).await;
    let text = body.map(|body| String::from_utf8_lossy(&body).trim().to_owned());
    let text = text.ok().filter(|text| !text.is_empty());
    let error = text.unwrap_or_else(|| head.status.to_string());
    for replaced in [header::CONTENT_TYPE, header::CONTENT_LENGTH] {
        head.headers.remove(replaced);
    }
    let mut described = json_response(&ApiError { error });
    *described.status_mut() = head.status;
    described.headers_mut().extend(head.headers);
    if described.status() == StatusCode::SERVICE_UNAVAILABLE {
        let headers = described.headers_mut();
        headers.insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS);
    }
    described
}

// A refusal names what it refuses, which is a part of the request's head.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

/// Reads the pairs of a query, each name once. A plus sign is a space:
/// <https://url.spec.whatwg.org/#application/x-www-form-urlencoded>
pub(super) fn query_pairs(query: &str) -> Result<Vec<(&str, String)>, Refusal> {
    let mut pairs = Vec::<(&str, String)>::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if pairs.iter().any(|(other, _)| *other == name) {
            return Err(bad_request(format!("{name} is there twice; say it once")));
        }
        let spaced = value.replace('+', " ");
        let unreadable = |_| bad_request(format!("{name} is not UTF-8"));
        let value = percent_decode_str(&spaced).decode_utf8();
        pairs.push((name, value.map_err(unreadable)?.into_owned()));
    }
    Ok(pairs)
}

/// Answers where there is nothing.
pub(super) async fn no_path(uri: Uri) -> Refusal {
    let text = match is_api(&uri) {
        true => format!("{} is no path of this API", uri.path()),
        false => format!("{} is no path here\n", uri.path()),
    };
    (StatusCode::NOT_FOUND, text)
}

async fn read_status(State(admin): State<Admin>) -> Result<Response, Refusal> {
    let status = admin.status().await.map_err(unavailable)?;
    Ok(json_response(&status))
}

async fn read_object(State(admin): State<Admin>, uri: Uri) -> Result<Response, Refusal> {
    let asked = only_value(&uri, "uri")?.unwrap_or_default();
    let status = object_status(&admin, &asked).await?;
    Ok(json_response(&status))
}

/// Tells what became of an object, of so many at a time.
pub(crate) async fn object_status(admin: &Admin, asked: &str) -> Result<ObjectStatus, Refusal> {
    let question = ObjectQuestion::parse_uri(asked).ok_or_else(|| {
        bad_request(format!(
            "{asked:?} is not s3://bucket/key; say uri=s3://bucket/key"
        ))
    })?;
    let Ok(_place) = admin.object_reads.try_acquire() else {
        let text = format!("{OBJECTS_MAX} objects are being read already; ask again");
        return Err(unavailable(text));
    };
    let rules = admin.rules.borrow().clone();
    let reader = ObjectReader {
        accounts: &admin.engine.accounts,
        rules: rules.as_slice(),
        ledger: LedgerReader::Open(&admin.engine.ledger),
    };
    let found = tokio::time::timeout(OBJECT_TIMEOUT, Box::pin(reader.read(&question))).await;
    match found.map_err(|_| unavailable("the buckets take too long to answer"))? {
        Ok(status) => Ok(status),
        Err(Unanswered::Unknown(text)) => Err((StatusCode::NOT_FOUND, text)),
        // To ask again in a moment brings nothing.
        Err(Unanswered::Failed(failure))
            if matches!(failure.kind, FailureKind::NeedsOperator(_)) =>
        {
            Err((StatusCode::BAD_GATEWAY, error_chain(&failure)))
        }
        Err(Unanswered::Failed(failure)) => Err(unavailable(error_chain(&failure))),
    }
}

/// Objects that are read at a time. Each may take 200 lists and 2,000 HEADs for each destination,
/// which cost money, and memory for two histories of 100,000 versions.
pub(crate) const OBJECTS_MAX: usize = 2;

// The command waits for somewhat longer.
const OBJECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

/// Tells what became of an object: asks the daemon, or, if none was named and none answers, the
/// services and the ledger here.
pub async fn ask_object(
    daemon: DaemonAddress,
    object: &str,
    json: bool,
    settings: impl Fn() -> Result<Settings, Invalid>,
) -> anyhow::Result<String> {
    let Some(question) = ObjectQuestion::parse_uri(object) else {
        bail!("{object:?} is not s3://bucket/key or s3://bucket/key?versionId=ID")
    };
    let is_named = daemon.is_named();
    let daemon = daemon.resolve(&settings)?;
    let reaches = TcpStream::connect(&daemon.address);
    let answers = matches!(tokio::time::timeout(TIMEOUT, reaches).await, Ok(Ok(_)));
    let status = if answers || is_named {
        let quoted = utf8_percent_encode(object, QUOTED);
        let request = format!("GET /api/v1/objects?uri={quoted}");
        let answer = send_request(&daemon, &request, ANSWER_TIMEOUT).await?;
        serde_json::from_str(&answer).context("the answer is not the status of an object")?
    } else {
        match read_beside(&settings()?, &question).await? {
            Ok(status) => status,
            Err(Unanswered::Unknown(text)) => bail!(text),
            Err(Unanswered::Failed(failure)) => bail!(failure),
        }
    };
    if json {
        return Ok(serde_json::to_string(&status)?);
    }
    let mut text = String::new();
    write_object(&status, &mut text)?;
    Ok(text)
}

fn write_object(status: &ObjectStatus, text: &mut String) -> fmt::Result {
    for refusal in &status.refusals {
        writeln!(
            text,
            "rule {} does not take it: {}",
            refusal.rule, refusal.detail
        )?;
    }
    for key in &status.keys {
        write_key(key, text)?;
    }
    Ok(())
}

fn write_key(key: &KeyReplication, text: &mut String) -> fmt::Result {
    let [source, destination] = [&key.source, &key.destination].map(|url| escape_controls(url));
    writeln!(text, "{source} -> {destination} (rule {})", key.rule)?;
    writeln!(
        text,
        "{:<10} {:<34} {:<22} REPLICA",
        "STATUS", "VERSION", "SINCE"
    )?;
    for version in &key.versions {
        version.write_lines(text)?;
    }
    for id in &key.unmanaged {
        writeln!(text, "no replica: version {id} of the destination")?;
    }
    if key.omitted > 0 {
        let omitted = key.omitted;
        writeln!(
            text,
            "and {omitted} older versions, of which nothing is told"
        )?;
    }
    if key.unread > 0 {
        let unread = key.unread;
        writeln!(
            text,
            "not looked at: {unread} older versions of the destination"
        )?;
    }
    Ok(())
}

/// The answer to either command.
#[derive(Debug, Serialize, Deserialize)]
struct Changed {
    /// Whether the rule was in the other state before.
    changed: bool,
}

/// Pauses a rule of a running daemon, or resumes it, and says what that means.
pub async fn change_pause(daemon: &DaemonClient, verb: &str, rule: &str) -> anyhow::Result<String> {
    let quoted = utf8_percent_encode(rule, QUOTED);
    let request = format!("POST /rules/{verb}?rule={quoted}");
    let answer = send_request(daemon, &request, TIMEOUT).await?;
    let Changed { changed } =
        serde_json::from_str(&answer).context("the answer is not that of a pause")?;
    Ok(match (verb, changed) {
        ("pause", true) => format!(
            "rule {rule} is paused: what is being written is finished, everything else waits in \
             SQS, for the queue's retention period at most"
        ),
        ("pause", false) => format!("rule {rule} is paused already"),
        (_, true) => format!(
            "rule {rule} is resumed; events that were handed back meanwhile come within an hour"
        ),
        (_, false) => format!("rule {rule} is not paused"),
    })
}

/// Answers `POST /rules/pause`.
pub(crate) async fn pause(State(admin): State<Admin>, uri: Uri) -> Result<Response, Refusal> {
    pause_named(&admin, &named_rule(&uri)?).map_err(as_bad_request)
}

/// Answers `POST /rules/resume`.
pub(crate) async fn resume(State(admin): State<Admin>, uri: Uri) -> Result<Response, Refusal> {
    resume_named(&admin, &named_rule(&uri)?).map_err(as_bad_request)
}

/// Pauses a rule: it writes nothing until it is resumed.
pub(super) async fn pause_rule(
    State(admin): State<Admin>,
    Path(rule): Path<String>,
) -> Result<Response, Refusal> {
    pause_named(&admin, &rule)
}

/// Lets a rule that was paused go on.
pub(super) async fn resume_rule(
    State(admin): State<Admin>,
    Path(rule): Path<String>,
) -> Result<Response, Refusal> {
    resume_named(&admin, &rule)
}

fn pause_named(admin: &Admin, rule: &str) -> Result<Response, Refusal> {
    find_rule(admin, rule)?;
    let changed = run_blocking(|| admin.engine.pauses.pause(rule)).map_err(unwritable)?;
    info!(rule, changed, "rule paused");
    Ok(json_response(&Changed { changed }))
}

fn resume_named(admin: &Admin, rule: &str) -> Result<Response, Refusal> {
    find_rule(admin, rule)?;
    let changed = run_blocking(|| admin.engine.resume_rule(rule)).map_err(unwritable)?;
    if admin.engine.pauses.by_rule().contains_key(rule) {
        return Err(bad_request(format!(
            "rule {rule:?} is disabled in the configuration; enable it there"
        )));
    }
    info!(rule, changed, "rule resumed");
    Ok(json_response(&Changed { changed }))
}

fn unwritable(failure: replicator_core::failure::Failure) -> Refusal {
    (StatusCode::INTERNAL_SERVER_ERROR, error_chain(&failure))
}

/// The path of a command is there, whatever rule its query names.
fn as_bad_request((status, text): Refusal) -> Refusal {
    match status {
        StatusCode::NOT_FOUND => (StatusCode::BAD_REQUEST, text),
        _ => (status, text),
    }
}

/// Reads a query such as `rule=orders`.
fn named_rule(uri: &Uri) -> Result<String, Refusal> {
    let named = only_value(uri, "rule")?;
    named.ok_or_else(|| bad_request("say which rule: ?rule=ID"))
}

/// Reads a query that has one name at most.
fn only_value(uri: &Uri, known: &str) -> Result<Option<String>, Refusal> {
    let mut pairs = query_pairs(uri.query().unwrap_or_default())?;
    match pairs.iter().find(|(name, _)| *name != known) {
        Some((name, _)) => Err(bad_request(format!(
            "{name:?} is not known here; {known} is"
        ))),
        None => Ok(pairs.pop().map(|(_, value)| value)),
    }
}

fn find_rule(admin: &Admin, rule: &str) -> Result<(), Refusal> {
    let known = admin.engine.activity.figures();
    if known.contains_key(rule) {
        return Ok(());
    }
    let hint = suggest_nearest(rule, known.keys().map(String::as_str));
    Err((
        StatusCode::NOT_FOUND,
        format!("no rule is called {rule:?}; {hint}"),
    ))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::admin::tests::admin;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn only_the_whole_token_is_the_token() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, SECRET).unwrap();
        let token = ApiToken::read_file(file.path()).unwrap();
        let borne = |value: &str| {
            let request = Request::post("/").header(header::AUTHORIZATION, value);
            bears(&request.body(axum::body::Body::empty()).unwrap(), &token)
        };
        for scheme in ["Bearer ", "bearer ", "BEARER  "] {
            assert!(borne(&format!("{scheme}{SECRET}")), "{scheme}");
        }
        for other in [
            "",
            "Bearer ",
            SECRET,
            &format!("Bearer{SECRET}"),
            &format!("Basic {SECRET}"),
            &format!("Bearer {SECRET}0"),
            &format!("bearer {}", &SECRET[1..]),
        ] {
            assert!(!borne(other), "{other}");
        }
        let none = Request::post("/").body(axum::body::Body::empty()).unwrap();
        assert!(!bears(&none, &token));
    }

    #[test]
    fn a_query_is_read_as_forms_are_written() {
        let pairs = query_pairs("uri=s3%3A%2F%2Fa%2Fb+c%2Bd&all").unwrap();
        assert_eq!(
            pairs,
            [("uri", "s3://a/b c+d".to_owned()), ("all", String::new())]
        );
        assert!(query_pairs("uri=%ff").is_err());
        let (_, twice) = query_pairs("rule=a&rule=a").unwrap_err();
        assert_eq!(twice, "rule is there twice; say it once");
    }

    /// Serves on a port of its own, until it is dropped.
    async fn serve(admin: Admin) -> (String, tokio_util::sync::DropGuard) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stop = CancellationToken::new();
        let mut services = tokio::task::JoinSet::new();
        services.spawn(admin.run(listener, stop.clone()));
        services.detach_all();
        (address, stop.drop_guard())
    }

    /// Sends a GET with a header line, and returns the answer in lower case.
    async fn get(address: &str, path: &str, line: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n{line}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.to_lowercase()
    }

    const OBJECT: &str = "/api/v1/objects?uri=s3://orders/a";

    #[tokio::test]
    async fn a_page_of_another_origin_gets_nothing_done() {
        let directory = tempfile::tempdir().unwrap();
        let (admin, _asked) = admin(&directory).await;
        let (address, _serving) = serve(admin).await;
        for line in [
            "",
            "Sec-Fetch-Site: none\r\n",
            "Sec-Fetch-Site: same-origin\r\n",
        ] {
            let answer = get(&address, OBJECT, line).await;
            assert!(answer.starts_with("http/1.0 404"), "{line:?} {answer}");
        }
        for line in [
            "Sec-Fetch-Site: cross-site\r\n",
            "Sec-Fetch-Site: same-site\r\n",
            "Sec-Fetch-Site: none\r\nSec-Fetch-Site: cross-site\r\n",
        ] {
            let answer = get(&address, OBJECT, line).await;
            assert!(answer.starts_with("http/1.0 403"), "{line:?} {answer}");
            assert!(answer.contains("{\"error\":\""), "{answer}");
        }
    }

    #[tokio::test]
    async fn objects_beyond_those_that_are_being_read_are_refused_for_a_moment() {
        let directory = tempfile::tempdir().unwrap();
        let (admin, _asked) = admin(&directory).await;
        let reads = std::sync::Arc::clone(&admin.object_reads);
        let (address, _serving) = serve(admin).await;
        let places = reads.acquire_many(2).await.unwrap();
        let answer = get(&address, OBJECT, "").await;
        assert!(answer.starts_with("http/1.0 503"), "{answer}");
        assert!(answer.contains("retry-after: 5\r\n"), "{answer}");
        assert!(
            answer.contains("content-type: application/json"),
            "{answer}"
        );
        assert!(
            answer.contains("{\"error\":\"2 objects are being read already"),
            "{answer}"
        );
        drop(places);
        let answer = get(&address, OBJECT, "").await;
        assert!(answer.starts_with("http/1.0 404"), "{answer}");
    }
}
