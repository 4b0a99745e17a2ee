//! The HTTP API: what the commands know, for programs, under `/api/v1`. It reads alone unless a
//! token is configured, which a request that changes anything has to bear. `pause` and `resume` any
//! client that reaches `listen` may ask for, by the paths of the commands: nothing is lost by a
//! pause that ends before the queue's retention period.

use anyhow::{Context, bail};
use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use http::{StatusCode, Uri};
use percent_encoding::utf8_percent_encode;
use replicator_config::{Invalid, Settings, suggest_nearest};
use replicator_core::failure::{FailureKind, Reason, error_chain};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tracing::info;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    Content, Header, Object, ObjectBuilder, Ref, RefOr, ResponseBuilder, Schema,
    SecurityRequirement, Type,
};
use utoipa::{Modify, OpenApi, PartialSchema, ToSchema};

use crate::admin::failures::{self, ANSWER_TIMEOUT, QUOTED};
use crate::admin::server::query_pairs;
use crate::admin::status::{DaemonAddress, DaemonClient, TIMEOUT, send_request};
use crate::admin::{Admin, Refusal, Status, bad_request, json_response, server, unavailable};
use crate::objects::{
    LedgerReader, ObjectQuestion, ObjectReader, ObjectStatus, Unanswered, read_beside,
};
use crate::process::{InvalidCommand, run_blocking};

/// The paths of the API.
pub(super) fn router(admin: &Admin) -> Router<Admin> {
    // Not nested: the guard of changes sees the whole path.
    Router::new()
        .route("/api/v1/openapi.json", get(read_document))
        .route("/api/v1/status", get(read_status))
        .route("/api/v1/failures", get(failures::list_parked))
        .route(
            "/api/v1/failures/retry",
            admin.change(failures::retry_parked),
        )
        .route("/api/v1/objects", get(read_object))
        .route("/api/v1/rules/{id}/pause", admin.change(pause_rule))
        .route("/api/v1/rules/{id}/resume", admin.change(resume_rule))
}

/// The document of the API, made of the types that it answers with.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "s3-replicator",
        description = "What one daemon of s3-replicator knows, and what it can be told to do. A \
            request that HTTP itself does not allow, or whose head has more than 16 KiB or 100 \
            headers, is answered by 400, 414 or 431 without a body."
    ),
    paths(
        read_document,
        read_status,
        read_object,
        failures::list_parked,
        failures::retry_parked,
        pause_rule,
        resume_rule,
        server::status,
        server::metrics,
        server::healthz,
        server::readyz
    ),
    tags(
        (name = "api", description = "For programs: refusals are JSON"),
        (name = "host", description = "For health checks, Prometheus and the commands of the host")
    ),
    components(schemas(ApiError)),
    modifiers(&SharedRules)
)]
struct ApiDocument;

/// What is true of all paths, and of all answers.
struct SharedRules;

impl Modify for SharedRules {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
        let scheme = scheme.description(Some("The token of `api_token_file`"));
        let components = document.components.get_or_insert_default();
        components.add_security_scheme(TOKEN, SecurityScheme::Http(scheme.build()));
        components.schemas.values_mut().for_each(require_all);
        for (path, item) in &mut document.paths.paths {
            let is_api = path.starts_with("/api/");
            if let Some(operation) = &mut item.get {
                add_refusals(operation, is_api, REFUSED);
            }
            if let Some(operation) = &mut item.post {
                add_refusals(operation, is_api, REFUSED);
                add_refusals(operation, is_api, CHANGE_REFUSED);
                let token = SecurityRequirement::new(TOKEN, [""; 0]);
                operation.security = Some(vec![token]);
            }
        }
    }
}

const TOKEN: &str = "token";

const REFUSED: &[(&str, &str)] = &[
    (
        "400",
        "The query cannot be read, or the request names no host",
    ),
    ("403", "A browser sends it for a page of another origin"),
    ("421", "Another host is meant"),
];

const CHANGE_REFUSED: &[(&str, &str)] = &[
    ("401", "The token is missing, or is another one"),
    (
        "403",
        "There is no token, so that nothing may be changed here, or a browser sends it for a page \
         of another origin",
    ),
];

fn add_refusals(operation: &mut Operation, is_api: bool, refusals: &[(&str, &str)]) {
    let form = if is_api {
        "application/json"
    } else {
        "text/plain; charset=utf-8"
    };
    if let Some(RefOr::T(busy)) = operation.responses.responses.get_mut("503")
        && is_api
    {
        let after = Header::new(Object::with_type(Type::Integer));
        busy.headers.insert("Retry-After".to_owned(), after.into());
    }
    for (status, why) in refusals {
        if !is_api && *status == "403" {
            continue;
        }
        let schema = is_api.then(|| Ref::from_schema_name("ApiError"));
        let answer = ResponseBuilder::new().description(*why);
        let answer = answer.content(form, Content::new(schema));
        let answers = &mut operation.responses.responses;
        answers.insert((*status).to_owned(), answer.build().into());
    }
}

/// Every field is written, those included that may be absent from what an older daemon said.
fn require_all(schema: &mut RefOr<Schema>) {
    match schema {
        RefOr::T(Schema::Object(object)) => {
            object.required = object.properties.keys().cloned().collect();
            object.properties.values_mut().for_each(require_all);
        }
        RefOr::T(Schema::OneOf(any)) => any.items.iter_mut().for_each(require_all),
        RefOr::T(Schema::AllOf(all)) => all.items.iter_mut().for_each(require_all),
        RefOr::T(_) | RefOr::Ref(_) => {}
    }
}

/// A reason code in a query.
pub(super) struct ReasonCode;

impl PartialSchema for ReasonCode {
    fn schema() -> RefOr<Schema> {
        let codes = Reason::ALL.iter().map(|reason| reason.as_str());
        let schema = ObjectBuilder::new().schema_type(Type::String);
        schema.enum_values(Some(codes)).into()
    }
}

impl ToSchema for ReasonCode {}

/// Why a request has no other answer.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct ApiError {
    /// What is wrong, and what to do.
    pub(super) error: String,
}

/// Describes this API.
#[utoipa::path(
    get,
    path = "/api/v1/openapi.json",
    tag = "api",
    responses((status = 200, description = "This document", body = Object))
)]
async fn read_document(uri: Uri) -> Result<Response, Refusal> {
    refuse_query(&uri)?;
    Ok(json_response(&ApiDocument::openapi()))
}

/// Tells how the daemon is: what it has in flight, what each rule does, what fails.
#[utoipa::path(
    get,
    path = "/api/v1/status",
    tag = "api",
    responses(
        (status = 200, description = "The figures", body = Status),
        (status = 503, description = "The dispatch does not answer", body = ApiError),
    )
)]
async fn read_status(State(admin): State<Admin>, uri: Uri) -> Result<Response, Refusal> {
    refuse_query(&uri)?;
    let status = admin.status().await.map_err(unavailable)?;
    Ok(json_response(&status))
}

/// Tells what became of each version of an object at each destination.
#[utoipa::path(
    get,
    path = "/api/v1/objects",
    tag = "api",
    params(
        ("uri" = String, Query, pattern = "^s3://[^/]+/[\\s\\S]", description = "s3://bucket/key at \
            either side; of one version with ?versionId=ID behind it")
    ),
    responses(
        (status = 200, description = "What became of it", body = ObjectStatus),
        (status = 404, description = "No rule has the bucket, or neither side has the version",
            body = ApiError),
        (status = 502, description = "A bucket refuses to answer, or the key has more than \
            100,000 versions", body = ApiError),
        (status = 503, description = "A bucket or the ledger does not answer, or two objects are \
            being read already", body = ApiError),
    )
)]
async fn read_object(State(admin): State<Admin>, uri: Uri) -> Result<Response, Refusal> {
    let asked = only_value(&uri, "uri")?.filter(|asked| !asked.is_empty());
    let asked = asked.ok_or_else(|| bad_request("say which object: ?uri=s3://bucket/key"))?;
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
        bail!(InvalidCommand::new(format!(
            "{object:?} is not s3://bucket/key or s3://bucket/key?versionId=ID"
        )))
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
    status.write_text(&mut text)?;
    Ok(text)
}

/// The answer to either command.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
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
#[utoipa::path(
    post,
    path = "/api/v1/rules/{id}/pause",
    tag = "api",
    params(("id" = String, Path, description = "The id of the rule")),
    responses(
        (status = 200, description = "Whether the rule was in the other state before",
            body = Changed),
        (status = 404, description = "There is no such rule", body = ApiError),
        (status = 500, description = "The ledger takes no record", body = ApiError),
    )
)]
async fn pause_rule(
    State(admin): State<Admin>,
    Path(rule): Path<String>,
    uri: Uri,
) -> Result<Response, Refusal> {
    refuse_query(&uri)?;
    pause_named(&admin, &rule)
}

/// Lets a rule that was paused go on.
#[utoipa::path(
    post,
    path = "/api/v1/rules/{id}/resume",
    tag = "api",
    params(("id" = String, Path, description = "The id of the rule")),
    responses(
        (status = 200, description = "Whether the rule was in the other state before",
            body = Changed),
        (status = 404, description = "There is no such rule", body = ApiError),
        (status = 500, description = "The ledger takes no record", body = ApiError),
    )
)]
async fn resume_rule(
    State(admin): State<Admin>,
    Path(rule): Path<String>,
    uri: Uri,
) -> Result<Response, Refusal> {
    refuse_query(&uri)?;
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

/// Refuses a query where none is read.
fn refuse_query(uri: &Uri) -> Result<(), Refusal> {
    match query_pairs(uri.query().unwrap_or_default())?.first() {
        Some((name, _)) => Err(bad_request(format!(
            "{name:?} is not known here; no query is"
        ))),
        None => Ok(()),
    }
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
