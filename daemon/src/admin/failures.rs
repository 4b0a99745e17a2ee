//! `s3-replicator failures`: what is parked and why, and the command to try it again; how the
//! daemon answers both over HTTP. Any client that reaches `listen` may give the command: it starts
//! only work that is due anyway.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::Context;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use replicator_config::{Invalid, Settings, suggest_nearest};
use replicator_core::failure::{Failure, Reason, error_chain};
use replicator_core::object::{Key, VersionId, escape_controls};
use replicator_core::rule::BucketRef;
use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

use crate::admin::api::{ApiError, ReasonCode};
use crate::admin::server::query_pairs;
use crate::admin::status::{DaemonAddress, DaemonClient, send_request};
use crate::admin::{Admin, Refusal, SILENT, bad_request, json_response, unavailable};
use crate::clock;
use crate::dispatch::Command;
use crate::ledger::Ledger;
use crate::ledger::records::ParkedTask;
use crate::parking::{Object, ParkedFilter, RetrySummary};
use crate::process::run_blocking;

/// What `failures --help` shows.
pub const FAILURES_EXAMPLES: &str = "Examples:
  s3-replicator failures list
  s3-replicator failures retry --reason DstKmsKeyInvalidState";

/// The commands about what is parked.
#[derive(Debug, clap::Subcommand)]
pub enum FailuresCommand {
    /// Lists what is parked in the running daemon: reason, age, and what the service said
    #[command(after_help = LIST_EXAMPLES)]
    List {
        /// Which of it.
        #[command(flatten)]
        which: Which,
        /// Which daemon.
        #[command(flatten)]
        daemon: DaemonAddress,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Lets the running daemon try again at once, whatever the schedule says
    #[command(after_help = RETRY_EXAMPLES, group = clap::ArgGroup::new("which").required(true).multiple(true))]
    Retry {
        /// Try everything that is parked
        #[arg(long, group = "which", conflicts_with_all = ["rule", "reason", "key"])]
        all: bool,
        /// Which of it.
        #[command(flatten)]
        which: Which,
        /// Which daemon.
        #[command(flatten)]
        daemon: DaemonAddress,
    },
}

impl FailuresCommand {
    /// Sends the command to the daemon, and returns what it answers, as text.
    pub async fn ask(
        self,
        settings: impl FnOnce() -> Result<Settings, Invalid>,
    ) -> anyhow::Result<String> {
        match self {
            Self::List {
                which,
                daemon,
                json,
            } => list(&daemon.resolve(settings)?, &which, json).await,
            Self::Retry { which, daemon, .. } => retry(&daemon.resolve(settings)?, &which).await,
        }
    }
}

const LIST_EXAMPLES: &str = "Examples:
  s3-replicator failures list
  s3-replicator failures list --rule orders --reason DstPutObjectNotPermitted
  s3-replicator failures list --json | jq '.failures[].source'";

const RETRY_EXAMPLES: &str = "Examples:
  s3-replicator failures retry --all
  s3-replicator failures retry --rule orders --reason DstPutObjectNotPermitted
  s3-replicator failures retry --key s3://orders/invoices/1.pdf";

/// Which failures a command is about.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Which {
    /// Only what is parked under this rule
    #[arg(long, value_name = "RULE", group = "which")]
    rule: Option<String>,
    /// Only what is parked for this reason
    #[arg(long, value_name = "REASON", group = "which")]
    reason: Option<String>,
    /// Only this object, by its key at the source or at the destination
    #[arg(long, value_name = "s3://BUCKET/KEY", group = "which")]
    key: Option<String>,
}

/// The answer to `GET /failures`.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub(super) struct FailureList {
    /// How many there are; the list may stop before.
    total: u64,
    /// The parked tasks.
    failures: Vec<FailureRow>,
}

/// One parked task.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
struct FailureRow {
    /// The rule; empty for messages that fit none.
    rule: String,
    /// The object, as `s3://bucket/key`.
    source: String,
    /// Where its replica belongs, as `s3://bucket/key`.
    destination: String,
    /// The key at the source.
    key: String,
    /// The version at the source, if one is meant.
    version: Option<String>,
    /// What was to be done.
    action: String,
    /// The reason code.
    reason: String,
    /// What puts it right.
    #[serde(default)]
    remedy: String,
    /// The service's own words.
    detail: String,
    /// When it was parked.
    #[schema(format = DateTime)]
    since: Option<String>,
    /// How long ago that is.
    age_seconds: u64,
    /// How often it was tried since then.
    tries: u32,
}

// The daemon may have to read through all that is parked.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(75);

/// Lists what is parked, as a table or as JSON.
async fn list(daemon: &DaemonClient, which: &Which, json: bool) -> anyhow::Result<String> {
    let answer = send_request(
        daemon,
        &format!("GET /failures{}", which.query("")),
        ANSWER_TIMEOUT,
    )
    .await?;
    if json {
        return Ok(answer);
    }
    let listing: FailureList =
        serde_json::from_str(&answer).context("the answer is not a list of failures")?;
    Ok(table(&listing))
}

/// Why versions of a rule are parked, as far as the daemon lists that.
#[derive(Debug)]
pub(crate) struct ParkedVersions {
    /// By the key and the version at the source.
    reasons: HashMap<(String, Option<String>), String>,
    /// How many parked tasks the list leaves out.
    pub(crate) unlisted: u64,
}

/// Asks the running daemon why versions are parked; none if it does not answer.
pub(crate) async fn parked_versions(settings: &Settings, rule: &str) -> Option<ParkedVersions> {
    let which = Which {
        rule: Some(rule.to_owned()),
        ..Which::default()
    };
    let daemon = DaemonClient::of_settings(settings);
    let answer = list(&daemon, &which, true).await.ok()?;
    let listing: FailureList = serde_json::from_str(&answer).ok()?;
    Some(ParkedVersions::from(listing))
}

impl From<FailureList> for ParkedVersions {
    fn from(FailureList { total, failures }: FailureList) -> Self {
        let unlisted = total.saturating_sub(failures.len() as u64);
        let reason = |row: FailureRow| ((row.key, row.version), row.reason);
        Self {
            reasons: failures.into_iter().map(reason).collect(),
            unlisted,
        }
    }
}

impl ParkedVersions {
    /// Says why a version is parked. A hint names none: it is parked for all that its key misses.
    pub(crate) fn reason(&self, key: &Key, version: &VersionId) -> Option<&String> {
        let key = key.as_str();
        let of = |version: Option<&VersionId>| {
            let version = version.map(|version| version.as_str().to_owned());
            self.reasons.get(&(key.to_owned(), version))
        };
        of(Some(version)).or_else(|| of(None))
    }
}

/// Tries again what is parked, and says how much that is.
async fn retry(daemon: &DaemonClient, which: &Which) -> anyhow::Result<String> {
    let answer = send_request(
        daemon,
        &format!("POST /failures/retry{}", which.query("all")),
        ANSWER_TIMEOUT,
    )
    .await?;
    let retried: RetrySummary =
        serde_json::from_str(&answer).context("the answer is not that of a retry")?;
    Ok(retry_summary(&retried))
}

// What would end a value of a query, or the request line.
pub(super) const QUOTED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'/')
    .remove(b':');

impl Which {
    /// Writes a query; `nothing` stands for no restriction.
    fn query(&self, nothing: &str) -> String {
        let parts = [
            ("rule", &self.rule),
            ("reason", &self.reason),
            ("key", &self.key),
        ];
        let parts = parts
            .iter()
            .filter_map(|(name, value)| Some((name, value.as_ref()?)));
        let query =
            parts.map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, QUOTED)));
        match query.collect::<Vec<String>>().join("&") {
            query if !query.is_empty() => format!("?{query}"),
            _ if nothing.is_empty() => String::new(),
            _ => format!("?{nothing}"),
        }
    }
}

impl FailureRow {
    fn of(task: &ParkedTask) -> Self {
        Self {
            rule: task.rule.clone(),
            source: s3_url(&task.source, &task.source_key),
            destination: s3_url(&task.target.destination, &task.target.key),
            key: task.source_key.as_str().to_owned(),
            version: task.version.as_ref().map(ToString::to_string),
            action: task.action.as_str().to_owned(),
            reason: task.reason.as_str().to_owned(),
            remedy: task.reason.remedy().to_owned(),
            detail: task.detail.clone(),
            since: task.since.format(&Rfc3339).ok(),
            age_seconds: Duration::from_secs_f64(clock::seconds_since(task.since)).as_secs(),
            tries: task.tries,
        }
    }

    fn what(&self) -> String {
        let Self {
            action,
            source,
            destination,
            tries,
            ..
        } = self;
        let version = self
            .version
            .as_ref()
            .map_or_else(String::new, |version| format!("?versionId={version}"));
        format!("{action} {source}{version} to {destination}, {tries} retries")
    }
}

fn s3_url(place: &BucketRef, key: &Key) -> String {
    format!("s3://{}/{}", place.bucket, key.as_str())
}

fn table(listing: &FailureList) -> String {
    if listing.total == 0 {
        return "nothing is parked that matches".to_owned();
    }
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _infallible = write_table(listing, &mut text);
    text
}

fn write_table(listing: &FailureList, text: &mut String) -> std::fmt::Result {
    writeln!(text, "{:<6} {:<24} {:<36} WHAT", "AGE", "RULE", "REASON")?;
    for entry in &listing.failures {
        let age = age(entry.age_seconds);
        writeln!(
            text,
            "{age:<6} {:<24} {:<36} {}",
            entry.rule,
            entry.reason,
            escape_controls(&entry.what())
        )?;
        writeln!(text, "       {}", escape_controls(&entry.detail))?;
        writeln!(text, "       fix: {}", entry.remedy)?;
    }
    let left = listing.total - listing.failures.len() as u64;
    if left > 0 {
        writeln!(
            text,
            "and {left} more; narrow it down with --rule, --reason or --key"
        )?;
    }
    Ok(())
}

/// Writes an age in its largest unit.
fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn retry_summary(retried: &RetrySummary) -> String {
    if retried.tasks == 0 {
        return "nothing is parked that matches; `s3-replicator failures list` shows all"
            .to_owned();
    }
    let mut text = format!(
        "trying {} parked tasks again",
        retried.tasks - retried.unwanted
    );
    if retried.unwanted > 0 {
        text.push_str(&format!(
            "\n{} stay parked: no rule matches them any more",
            retried.unwanted
        ));
    }
    text
}

/// Entries of one answer: some MiB, and more than a person reads.
const LISTED_MAX: usize = 10_000;

// What is selected is read and written before the answer: a minute is enough for a million.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);

/// Lists parked tasks, each with its reason and what puts it right, at most 10,000.
#[utoipa::path(
    get,
    path = "/api/v1/failures",
    tag = "api",
    params(
        ("rule" = Option<String>, Query, description = "Only what is parked under this rule"),
        ("reason" = inline(Option<ReasonCode>), Query, description = "Only what is parked for this reason"),
        ("key" = Option<String>, Query, pattern = "^s3://[^/]+/[\\s\\S]",
            description = "Only s3://bucket/key, at the source or at the destination"),
    ),
    responses(
        (status = 200, description = "What is parked", body = FailureList),
        (status = 500, description = "The ledger cannot be read", body = ApiError),
        (status = 503, description = "The dispatch does not answer", body = ApiError),
    )
)]
pub(crate) async fn list_parked(State(admin): State<Admin>, uri: Uri) -> Result<Response, Refusal> {
    let (filter, _) = parse_filter(&admin, uri.query().unwrap_or_default()).await?;
    let listing = run_blocking(|| listing(&admin.engine.ledger, &filter));
    Ok(json_response(&listing.map_err(unreadable)?))
}

/// Tries parked tasks again: all of them, or those of a rule, a reason or a key.
#[utoipa::path(
    post,
    path = "/api/v1/failures/retry",
    tag = "api",
    params(
        ("all" = Option<bool>, Query, description = "Whether nothing has to restrict it"),
        ("rule" = Option<String>, Query, description = "Only what is parked under this rule"),
        ("reason" = inline(Option<ReasonCode>), Query, description = "Only what is parked for this reason"),
        ("key" = Option<String>, Query, pattern = "^s3://[^/]+/[\\s\\S]",
            description = "Only s3://bucket/key, at the source or at the destination"),
    ),
    responses(
        (status = 200, description = "How many are tried", body = RetrySummary),
        (status = 500, description = "The ledger cannot be read", body = ApiError),
        (status = 503, description = "The dispatch or the ledger does not answer", body = ApiError),
    )
)]
pub(crate) async fn retry_parked(
    State(admin): State<Admin>,
    uri: Uri,
) -> Result<Response, Refusal> {
    let (filter, all) = parse_filter(&admin, uri.query().unwrap_or_default()).await?;
    if !all && filter == ParkedFilter::default() {
        return Err(bad_request(
            "say what to retry: all, or a rule, a reason or a key",
        ));
    }
    let command = |answer| Command::Retry(filter, answer);
    let retried = admin.command(RETRY_TIMEOUT, command).await;
    let retried = retried.ok_or_else(|| unavailable(SILENT))?;
    Ok(json_response(&retried.map_err(unavailable)?))
}

fn unreadable(failure: Failure) -> Refusal {
    (StatusCode::INTERNAL_SERVER_ERROR, error_chain(&failure))
}

/// Reads a query such as `rule=orders&reason=DstBucketNotFound`; returns also whether it says
/// `all`.
async fn parse_filter(admin: &Admin, query: &str) -> Result<(ParkedFilter, bool), Refusal> {
    let (mut filter, mut all) = (ParkedFilter::default(), false);
    for (name, value) in query_pairs(query)? {
        match name {
            "all" if matches!(value.as_str(), "" | "true") => all = true,
            "all" if value == "false" => all = false,
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
    let in_flight = admin.in_flight().await;
    let in_flight = in_flight.ok_or_else(|| unavailable(SILENT))?;
    let mut known: BTreeSet<String> = in_flight.rules.into_keys().collect();
    let counts = run_blocking(|| admin.engine.ledger.parked_counts());
    let counts = counts.map_err(unreadable)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_with_everything_in_it_survives_the_query() {
        let which = Which {
            key: Some("s3://orders/a b&c=d?é%2F#\r\n".to_owned()),
            ..Which::default()
        };
        assert_eq!(
            which.query("all"),
            "?key=s3://orders/a%20b%26c%3Dd%3F%C3%A9%252F%23%0D%0A"
        );
        assert_eq!(Which::default().query("all"), "?all");
        assert_eq!(Which::default().query(""), "");
    }

    #[test]
    fn a_retry_that_matches_nothing_says_so() {
        assert!(
            retry_summary(&RetrySummary::default()).starts_with("nothing is parked that matches")
        );
        let some = RetrySummary {
            tasks: 5,
            unwanted: 2,
        };
        let lines: Vec<String> = retry_summary(&some).lines().map(str::to_owned).collect();
        assert_eq!(lines[0], "trying 3 parked tasks again");
        assert!(lines[1].starts_with("2 stay parked"));
    }

    #[test]
    fn what_a_hint_was_parked_for_counts_for_all_versions_of_its_key() {
        let row = |version: Option<&str>, reason: &str| {
            serde_json::json!({
                "rule": "orders", "source": "", "destination": "", "key": "a", "version": version,
                "action": "put", "reason": reason, "detail": "", "since": null, "age_seconds": 0, "tries": 0,
            })
        };
        let failures = [row(None, "hinted"), row(Some("v1"), "by event")];
        let listing = serde_json::json!({"total": 12, "failures": failures});
        let listing: FailureList = serde_json::from_value(listing).unwrap();
        let parked = ParkedVersions::from(listing);
        let reason = |key: &str, version: &str| {
            let (key, version) = (Key::try_from(key), VersionId::try_from(version));
            parked.reason(&key.unwrap(), &version.unwrap()).cloned()
        };
        assert_eq!(reason("a", "v1").as_deref(), Some("by event"));
        assert_eq!(reason("a", "v2").as_deref(), Some("hinted"));
        assert_eq!(reason("b", "v1"), None);
        assert_eq!(parked.unlisted, 10);
    }

    #[test]
    fn an_age_is_told_in_its_largest_unit() {
        assert_eq!(
            [0, 59, 60, 3599, 3600, 86_399, 86_400].map(age),
            ["0s", "59s", "1m", "59m", "1h", "23h", "1d"]
        );
    }

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
