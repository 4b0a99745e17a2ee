//! `s3-replicator failures`: what is parked and why, and the command to try it again.

use std::fmt::Write;
use std::time::Duration;

use anyhow::Context;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use replicator_config::Settings;
use replicator_core::object::{Key, escape_controls};
use replicator_core::rule::BucketRef;
use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;

use crate::clock;
use crate::ledger::records::ParkedTask;
use crate::parking::RetrySummary;
use crate::status::send_request;

/// Which failures a command is about.
#[derive(Debug, Clone, Default)]
pub struct Which {
    /// Only those of this rule.
    pub rule: Option<String>,
    /// Only those with this reason.
    pub reason: Option<String>,
    /// Only those of this object, as `s3://bucket/key` of either side.
    pub key: Option<String>,
}

/// The answer to `GET /failures`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct FailureList {
    /// How many there are; the list may stop before.
    pub(crate) total: u64,
    pub(crate) failures: Vec<FailureRow>,
}

/// One parked task.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FailureRow {
    pub(crate) rule: String,
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) key: String,
    pub(crate) version: Option<String>,
    pub(crate) action: String,
    pub(crate) reason: String,
    pub(crate) detail: String,
    pub(crate) since: Option<String>,
    pub(crate) age_seconds: u64,
    pub(crate) tries: u32,
}

// The daemon may have to read through all that is parked.
const PATIENCE: Duration = Duration::from_secs(75);

/// Lists what is parked, as a table or as JSON.
pub async fn list(settings: &Settings, which: &Which, json: bool) -> anyhow::Result<String> {
    let answer = send_request(
        settings,
        &format!("GET /failures{}", which.query("")),
        PATIENCE,
    )
    .await?;
    if json {
        return Ok(answer);
    }
    let listing: FailureList =
        serde_json::from_str(&answer).context("the answer is not a list of failures")?;
    Ok(table(&listing))
}

/// Tries again what is parked, and says how much that is.
pub async fn retry(settings: &Settings, which: &Which) -> anyhow::Result<String> {
    let answer = send_request(
        settings,
        &format!("POST /failures/retry{}", which.query("all")),
        PATIENCE,
    )
    .await?;
    let retried: RetrySummary =
        serde_json::from_str(&answer).context("the answer is not that of a retry")?;
    Ok(retry_summary(&retried))
}

// What would end a value of a query, or the request line.
const QUOTED: &AsciiSet = &NON_ALPHANUMERIC
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
    pub(crate) fn of(task: &ParkedTask) -> Self {
        Self {
            rule: task.rule.clone(),
            source: s3_url(&task.source, &task.source_key),
            destination: s3_url(&task.target.destination, &task.target.key),
            key: task.source_key.as_str().to_owned(),
            version: task.version.as_ref().map(ToString::to_string),
            action: task.action.as_str().to_owned(),
            reason: task.reason.as_str().to_owned(),
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
    fn an_age_is_told_in_its_largest_unit() {
        assert_eq!(
            [0, 59, 60, 3599, 3600, 86_399, 86_400].map(age),
            ["0s", "59s", "1m", "59m", "1h", "23h", "1d"]
        );
    }
}
