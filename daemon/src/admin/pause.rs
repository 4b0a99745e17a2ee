//! `s3-replicator pause` and `resume`: the commands, and how the daemon answers them. Any client
//! that reaches `listen` may give them: nothing is lost by a pause that ends before the queue's
//! retention period.

use anyhow::Context;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use percent_encoding::utf8_percent_encode;
use replicator_config::suggest_nearest;
use replicator_core::failure::error_chain;
use serde::{Deserialize, Serialize};
use tracing::info;

use crate::admin::api::query_pairs;
use crate::admin::failures::QUOTED;
use crate::admin::status::{DaemonClient, TIMEOUT, send_request};
use crate::admin::{Admin, Refusal, json_response};
use crate::process::run_blocking;

/// The answer to either command.
#[derive(Debug, Serialize, Deserialize)]
struct Changed {
    /// Whether the rule was in the other state before.
    changed: bool,
}

/// Pauses a rule of a running daemon, or resumes it, and says what that means.
pub async fn change(daemon: &DaemonClient, verb: &str, rule: &str) -> anyhow::Result<String> {
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
        let text = format!("rule {rule:?} is disabled in the configuration; enable it there");
        return Err((StatusCode::BAD_REQUEST, text));
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
    let mut pairs = query_pairs(uri.query().unwrap_or_default())?.into_iter();
    let named = pairs.find_map(|(name, rule)| (name == "rule").then_some(rule));
    named.ok_or_else(|| {
        (
            StatusCode::BAD_REQUEST,
            "say which rule: ?rule=ID".to_owned(),
        )
    })
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
