//! What is parked, over HTTP: the list, and the command to try again. Any client that reaches
//! `listen` may give it: it starts nothing but work that is owed anyway.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;
use replicator_config::suggest_nearest;
use replicator_core::failure::{Failure, Reason, error_chain};
use replicator_core::object::without_commands;
use serde::Serialize;
use tokio::sync::oneshot;

use super::{Admin, SILENT};
use crate::dispatch::Command;
use crate::failures::{FailureList, FailureRow};
use crate::ledger::Ledger;
use crate::parking::{Object, ParkedFilter};
use crate::process::run_blocking;

/// Entries of one answer: some MiB, and more than a person reads.
const LISTED_MAX: usize = 10_000;

// The ledger is read once through before the answer: a minute is enough for some millions.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) async fn list(State(admin): State<Admin>, uri: Uri) -> Response {
    let filter = match parse_filter(&admin, uri.query().unwrap_or_default()).await {
        Ok((filter, _)) => filter,
        Err(refusal) => return refusal.into_response(),
    };
    match run_blocking(|| listing(&admin.engine.ledger, &filter)) {
        Ok(listing) => json_response(&listing),
        Err(failure) => (StatusCode::INTERNAL_SERVER_ERROR, error_chain(&failure)).into_response(),
    }
}

pub(super) async fn retry(State(admin): State<Admin>, uri: Uri) -> Response {
    let filter = match parse_filter(&admin, uri.query().unwrap_or_default()).await {
        Ok((filter, all)) if all || filter != ParkedFilter::default() => filter,
        Ok(_) => {
            return bad_request("say what to retry: all, or a rule, a reason or a key")
                .into_response();
        }
        Err(refusal) => return refusal.into_response(),
    };
    let (asker, answer) = oneshot::channel();
    let asked = async {
        admin
            .questions
            .send(Command::Retry(filter, asker))
            .await
            .ok()?;
        answer.await.ok()
    };
    match tokio::time::timeout(RETRY_TIMEOUT, asked)
        .await
        .ok()
        .flatten()
    {
        Some(Ok(retried)) => json_response(&retried),
        Some(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, error).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, SILENT).into_response(),
    }
}

type Refusal = (StatusCode, String);

fn bad_request(why: impl Into<String>) -> Refusal {
    (StatusCode::BAD_REQUEST, why.into())
}

/// Reads a query such as `rule=orders&reason=DstBucketNotFound`; returns also whether it says
/// `all`.
async fn parse_filter(admin: &Admin, query: &str) -> Result<(ParkedFilter, bool), Refusal> {
    let (mut filter, mut all) = (ParkedFilter::default(), false);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode_str(value)
            .decode_utf8()
            .map_err(|_| bad_request(format!("{name} is not UTF-8")))?;
        match name {
            "all" => all = true,
            "rule" => filter.rule = Some(known_rule(admin, &value).await?),
            "reason" => filter.reason = Some(known_reason(&value)?),
            "key" => {
                let object = Object::parse_url(&value);
                filter.object = Some(
                    object
                        .ok_or_else(|| bad_request(format!("{value:?} is not s3://bucket/key")))?,
                );
            }
            _ => {
                return Err(bad_request(format!(
                    "{name:?} is not known here; all, rule, reason and key are"
                )));
            }
        }
    }
    Ok((filter, all))
}

/// A rule is known if it is in force, or something is parked under its name.
async fn known_rule(admin: &Admin, name: &str) -> Result<String, Refusal> {
    let silent = || (StatusCode::SERVICE_UNAVAILABLE, SILENT.to_owned());
    let mut known: BTreeSet<String> = admin
        .ask_board()
        .await
        .ok_or_else(silent)?
        .rules
        .into_keys()
        .collect();
    let counts = run_blocking(|| admin.engine.ledger.parked_counts());
    let counts =
        counts.map_err(|failure| (StatusCode::INTERNAL_SERVER_ERROR, error_chain(&failure)))?;
    known.extend(counts.into_keys().map(|(rule, _)| rule));
    if known.contains(name) {
        return Ok(name.to_owned());
    }
    let hint = suggest_nearest(name, known.iter().map(String::as_str));
    Err(bad_request(format!("no rule is called {name:?}; {hint}")))
}

fn known_reason(code: &str) -> Result<Reason, Refusal> {
    code.parse().map_err(|_| {
        let hint = suggest_nearest(code, Reason::ALL.iter().map(|reason| reason.as_str()));
        bad_request(format!("no reason is called {code:?}; {hint}"))
    })
}

fn listing(ledger: &Ledger, filter: &ParkedFilter) -> Result<FailureList, Failure> {
    let mut listing = FailureList::default();
    ledger.visit_parked(None, |task| {
        if filter.matches_task(&task) {
            listing.total += 1;
            if listing.failures.len() < LISTED_MAX {
                listing.failures.push(FailureRow::of(&task));
            }
        }
        ControlFlow::Continue(())
    })?;
    Ok(listing)
}

pub(super) fn json_response(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(json) => {
            let json = without_commands(&json).into_owned();
            ([(header::CONTENT_TYPE, "application/json")], json).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_that_does_not_exist_is_answered_with_the_nearest() {
        assert_eq!(
            known_reason("DstBucketNotFound").unwrap(),
            Reason::DstBucketNotFound
        );
        let (status, text) = known_reason("dstbucketnotfond").unwrap_err();
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(
            text.contains("did you mean \"DstBucketNotFound\"?"),
            "{text}"
        );
    }
}
