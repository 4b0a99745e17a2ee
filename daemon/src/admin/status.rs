//! `s3-replicator status`: the figures of the running daemon, as a table; and how commands reach
//! that daemon.

use std::fmt::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use replicator_config::{ApiToken, Invalid, Settings};
use replicator_core::failure::Reason;
use replicator_core::object::{Timestamp, escape_controls};
use replicator_core::rule::Mismatch;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use crate::admin::api::ApiError;
use crate::admin::server::COMMAND;
use crate::admin::{QueueStatus, Status};
use crate::health::LastError;
use crate::process::InvalidCommand;
use crate::rule_state::PausedRule;

// The daemon itself gives its dispatch 5 seconds to answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// Which daemon a command asks.
#[derive(Debug, clap::Args)]
pub struct DaemonAddress {
    /// Where the daemon listens; the configuration file is not read then
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// The file with that daemon's token, which commands need that change anything, if it has one
    #[arg(long, value_name = "FILE", requires = "address")]
    token_file: Option<PathBuf>,
}

/// A daemon that can be asked.
#[derive(Debug)]
pub struct DaemonClient {
    pub(super) address: String,
    token_file: Option<PathBuf>,
}

impl DaemonAddress {
    /// Says whether an address was given.
    pub(super) fn is_named(&self) -> bool {
        self.address.is_some()
    }

    /// Returns the daemon that was named, or else that of the configuration file.
    pub fn resolve(
        self,
        settings: impl FnOnce() -> Result<Settings, Invalid>,
    ) -> anyhow::Result<DaemonClient> {
        Ok(match self.address {
            Some(address) => DaemonClient {
                address,
                token_file: self.token_file,
            },
            None => DaemonClient::of_settings(&settings()?),
        })
    }
}

impl DaemonClient {
    /// Names the daemon of a configuration.
    pub(super) fn of_settings(settings: &Settings) -> Self {
        Self {
            address: settings.listen.to_string(),
            token_file: settings.api_token_file.clone(),
        }
    }

    /// Returns the header lines of a command, which may have to bear the token.
    fn command_lines(&self, request: &str) -> anyhow::Result<Zeroizing<String>> {
        let mut lines = Zeroizing::new(format!("{COMMAND}: 1\r\n"));
        if let Some(file) = self
            .token_file
            .as_ref()
            .filter(|_| request.starts_with("POST "))
        {
            let token = ApiToken::read_file(file).map_err(InvalidCommand::new)?;
            lines.push_str("Authorization: Bearer ");
            lines.push_str(token.as_str());
            lines.push_str("\r\n");
        }
        Ok(lines)
    }

    /// Returns the body of a good answer.
    fn read_answer(&self, answer: &str) -> anyhow::Result<String> {
        let Some((head, body)) = answer.split_once("\r\n\r\n") else {
            bail!("the answer is not HTTP")
        };
        match head.split(' ').nth(1) {
            Some("200") => Ok(body.to_owned()),
            Some("401") => bail!(
                "{} asks for its token; {}",
                self.address,
                self.token_remedy()
            ),
            // What is wrong, with the request or the daemon, is said in words.
            Some("400" | "403" | "404" | "503") => bail!("{}", refusal_text(body)),
            _ => bail!(
                "answered {:?}: {}",
                head.lines().next().unwrap_or_default(),
                body.trim()
            ),
        }
    }

    fn token_remedy(&self) -> String {
        match &self.token_file {
            None => {
                "name a copy of its `api_token_file` with --address and --token-file".to_owned()
            }
            Some(file) => format!(
                "the one in {} is not that; the daemon reads its own at its start alone",
                file.display()
            ),
        }
    }
}

/// Requests the status of a daemon and returns it as text, or as the JSON that it answers with.
pub async fn ask(daemon: &DaemonClient, json: bool) -> anyhow::Result<String> {
    let answer = send_request(daemon, "GET /status", TIMEOUT).await?;
    if json {
        return Ok(answer);
    }
    let status: Status = serde_json::from_str(&answer).context("the answer is not a status")?;
    Ok(table(&status))
}

/// Requests the health of a daemon: what `/healthz` says, as an error where it is red.
pub async fn ask_health(daemon: &DaemonClient) -> anyhow::Result<String> {
    send_request(daemon, "GET /healthz", TIMEOUT).await
}

/// Sends one request to a daemon, and returns the body of the answer.
pub(crate) async fn send_request(
    daemon: &DaemonClient,
    request: &str,
    timeout: Duration,
) -> anyhow::Result<String> {
    let (address, lines) = (&daemon.address, daemon.command_lines(request)?);
    let stream = TcpStream::connect(address).await.with_context(|| {
        format!("no s3-replicator answers at {address}; is it running, and does it listen there?")
    })?;
    let answer = tokio::time::timeout(timeout, exchange(stream, request, &lines)).await;
    let answer = answer.with_context(|| format!("{address} took the request and gives no answer"));
    daemon.read_answer(&answer??)
}

/// One small request to ourselves needs no HTTP client.
async fn exchange(mut stream: TcpStream, request: &str, lines: &str) -> anyhow::Result<String> {
    let host = stream.peer_addr()?;
    let head = Zeroizing::new(format!(
        "{request} HTTP/1.0\r\nHost: {host}\r\n{lines}Content-Length: 0\r\n\r\n"
    ));
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Returns the words of a refusal: the API has them in JSON.
fn refusal_text(body: &str) -> String {
    let parsed = serde_json::from_str::<ApiError>(body);
    parsed.map_or_else(|_| body.trim().to_owned(), |refusal| refusal.error)
}

/// Writes a status as text for a terminal.
pub(crate) fn table(status: &Status) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _infallible = write_table(status, &mut text);
    text
}

fn write_table(status: &Status, text: &mut String) -> fmt::Result {
    writeln!(text, "ready: {}", if status.ready { "yes" } else { "no" })?;
    for problem in [&status.ledger, &status.second_daemon]
        .into_iter()
        .flatten()
    {
        writeln!(text, "{problem}")?;
    }
    writeln!(text, "messages in flight: {}", status.in_flight.messages)?;
    writeln!(text, "active keys: {}", status.in_flight.keys)?;
    for (rule, PausedRule { since }) in &status.paused {
        match since {
            Some(_) => writeln!(text, "rule {rule}: paused since {}", to_seconds(*since))?,
            None => writeln!(text, "rule {rule}: paused, it is disabled")?,
        }
    }
    write_rules(status, text)?;
    for finding in &status.findings {
        let rule = finding.rule.as_deref().unwrap_or("set-up");
        writeln!(
            text,
            "\n{rule}: {}: {}",
            finding.severity,
            finding.headline()
        )?;
    }
    let parked = status.parked.iter().map(|parked| {
        let is_of_rule = !parked.rule.is_empty();
        let rule = if is_of_rule {
            &parked.rule
        } else {
            "(no rule)"
        };
        (rule, parked.reason.as_str(), parked.tasks.to_string())
    });
    write_counts(text, ("PARKED", "REASON"), parked)?;
    let unproved = status.unproved.iter().map(|unproved| {
        let replicas = unproved.replicas.to_string();
        (unproved.rule.as_str(), unproved.cause.as_str(), replicas)
    });
    write_counts(text, ("WRITTEN WITHOUT PROOF", "CAUSE"), unproved)?;
    write_activity(status, text)?;
    write_services(status, text)
}

fn write_rules(status: &Status, text: &mut String) -> fmt::Result {
    writeln!(
        text,
        "\n{:<24} {:>10} {:>14} {:>10} {:>8}",
        "RULE", "PENDING", "BYTES", "OLDEST", "PARKED"
    )?;
    for (rule, pending) in &status.in_flight.rules {
        let parked = status.parked.iter().filter(|parked| parked.rule == *rule);
        let parked: i64 = parked.map(|parked| parked.tasks).sum();
        let oldest = format!("{:.0}s", pending.oldest_seconds);
        writeln!(
            text,
            "{rule:<24} {:>10} {:>14} {oldest:>10} {parked:>8}",
            pending.operations, pending.bytes
        )?;
    }
    Ok(())
}

/// Writes what each rule saw and did, and what it did not take.
fn write_activity(status: &Status, text: &mut String) -> fmt::Result {
    let (last_event, last_replica) = ("LAST EVENT", "LAST REPLICA");
    writeln!(
        text,
        "\n{:<24} {:>10} {last_event:>20} {last_replica:>20}",
        "RULE", "REPLICATED"
    )?;
    for (rule, figures) in &status.rules {
        let [event, replica] = [figures.last_event, figures.last_replica].map(to_seconds);
        writeln!(
            text,
            "{rule:<24} {:>10} {event:>20} {replica:>20}",
            figures.replicated
        )?;
    }
    for (rule, figures) in &status.rules {
        if let Some(round) = &figures.last_reconcile {
            let (ended, keys, hints) = (to_seconds(Some(round.ended)), round.keys, round.hints);
            let words = format!("{keys} keys compared, {hints} missed something");
            writeln!(text, "\nrule {rule}: {words}, at {ended}")?;
        }
    }
    let skipped = status.rules.iter().flat_map(|(rule, figures)| {
        let count =
            |(reason, seen): (&Reason, &u64)| (rule.as_str(), reason.as_str(), seen.to_string());
        figures.skipped.iter().map(count)
    });
    write_counts(text, ("NOT REPLICATED", "REASON"), skipped)?;
    let unmatched = status.rules.iter().flat_map(|(rule, figures)| {
        let count =
            |(cause, seen): (&Mismatch, &u64)| (rule.as_str(), cause.as_str(), seen.to_string());
        figures.unmatched.iter().map(count)
    });
    write_counts(text, ("TAKEN BY NO RULE", "CAUSE"), unmatched)
}

/// Writes a table of counts by rule and something else; nothing if there are none.
fn write_counts<'a>(
    text: &mut String,
    (title, by): (&'a str, &'a str),
    counts: impl Iterator<Item = (&'a str, &'a str, String)>,
) -> fmt::Result {
    let mut counts = counts.peekable();
    let has_any = counts.peek().is_some();
    let title = has_any.then(|| (title, by, "COUNT".to_owned()));
    if has_any {
        writeln!(text)?;
    }
    for (rule, by, count) in title.into_iter().chain(counts) {
        writeln!(text, "{rule:<24} {by:<40} {count:>8}")?;
    }
    Ok(())
}

/// Writes what is wrong with the services that the daemon uses.
fn write_services(status: &Status, text: &mut String) -> fmt::Result {
    for degraded in &status.degraded {
        let (name, error) = (&degraded.name, &degraded.error);
        match (degraded.is_circuit_open, degraded.concurrency_limit) {
            (true, _) => writeln!(
                text,
                "\n{name}: {error}: circuit open, one task at a time probes"
            )?,
            (false, Some(limit)) => writeln!(
                text,
                "\n{name}: throttled: at most {limit} tasks at a time, {} active",
                degraded.in_flight
            )?,
            (false, None) => writeln!(text, "\n{name}: {error}")?,
        }
    }
    for key in &status.keys {
        let since = key.since.as_deref().unwrap_or("unknown");
        writeln!(
            text,
            "\nrule {}: {} key {}: {} since {since}: {}",
            key.rule,
            key.side,
            key.key,
            key.state,
            escape_controls(&key.detail)
        )?;
        if let Some(arn) = key.arn.as_ref().filter(|arn| **arn != key.key) {
            writeln!(text, "  it is {arn}")?;
        }
    }
    for disabled in &status.disabled_features {
        let minutes = disabled.tried_again_in_seconds.div_ceil(60);
        writeln!(
            text,
            "\naccount {}: {} disabled for {minutes} min: {}",
            disabled.account, disabled.feature, disabled.why
        )?;
    }
    for clock in &status.clock_skew {
        let hours = clock.ahead_seconds.unsigned_abs() / 3600;
        let is_behind = clock.ahead_seconds < 0;
        writeln!(
            text,
            "\naccount {}: its clock is {hours} h {} this host's, set the one that is wrong",
            clock.account,
            if is_behind { "behind" } else { "ahead of" }
        )?;
    }
    write_errors(status, text)
}

/// Writes which buckets fail, and how the queues are.
fn write_errors(status: &Status, text: &mut String) -> fmt::Result {
    for (bucket, last) in status.last_errors.iter().filter(|(_, last)| !last.is_over) {
        writeln!(text, "\n{bucket}: {}", failing(last))?;
    }
    for QueueStatus {
        queue,
        answers,
        is_paused,
        last_error,
        yields,
    } in &status.queues
    {
        if *is_paused {
            writeln!(text, "\nqueue {queue}: not polled, its rules are paused")?;
            continue;
        }
        if let Some(yields) = yields {
            writeln!(
                text,
                "\nqueue {queue}: not polled since {}, {} messages of {} go first",
                to_seconds(Some(yields.since)),
                yields.messages,
                yields.work_queue
            )?;
            continue;
        }
        match last_error.as_ref().filter(|_| !answers) {
            Some(last) => writeln!(text, "\nqueue {queue}: does not answer: {}", failing(last))?,
            None if *answers => writeln!(text, "\nqueue {queue}: answers")?,
            None => writeln!(text, "\nqueue {queue}: does not answer")?,
        }
    }
    Ok(())
}

/// Says what fails, since when, and when it last did.
fn failing(last: &LastError) -> String {
    let [since, at] = [last.since, last.at].map(|time| to_seconds(Some(time)));
    format!(
        "{} (since {since}, last at {at})",
        escape_controls(&last.error)
    )
}

/// Writes a time to the second.
fn to_seconds(time: Option<Timestamp>) -> String {
    let time = time.and_then(|time| time.replace_nanosecond(0).ok()?.format(&Rfc3339).ok());
    time.unwrap_or_else(|| "never".to_owned())
}
