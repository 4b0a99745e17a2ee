//! `s3-replicator status`: the figures of the running daemon, as a table.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, bail};
use replicator_config::Settings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::admin::{COMMAND, Status};

// The daemon itself gives its stations 5 seconds to say how they are.
const PATIENCE: Duration = Duration::from_secs(10);

/// Requests the status of the daemon of this configuration and returns it as text.
pub async fn ask(settings: &Settings) -> anyhow::Result<String> {
    let answer = send_request(settings, "GET /status", PATIENCE).await?;
    let status: Status = serde_json::from_str(&answer).context("the answer is not a status")?;
    Ok(table(&status))
}

/// Sends one request to the daemon of a configuration, and returns the body of the answer.
pub(crate) async fn send_request(
    settings: &Settings,
    what: &str,
    patience: Duration,
) -> anyhow::Result<String> {
    let address = settings.listen;
    let stream = TcpStream::connect(address).await.with_context(|| {
        format!("no s3-replicator answers at {address}; is it running with this configuration?")
    })?;
    let answer = tokio::time::timeout(patience, exchange(stream, what)).await;
    answer.with_context(|| format!("{address} took the request and gives no answer"))?
}

/// One small request to ourselves needs no HTTP client.
async fn exchange(mut stream: TcpStream, what: &str) -> anyhow::Result<String> {
    let host = stream.peer_addr()?;
    let head =
        format!("{what} HTTP/1.0\r\nHost: {host}\r\n{COMMAND}: 1\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("the answer is not HTTP")
    };
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        // What is wrong with the request is said in words.
        Some("400") => bail!("{}", body.trim()),
        _ => bail!(
            "answered {:?}: {}",
            head.lines().next().unwrap_or_default(),
            body.trim()
        ),
    }
}

/// Writes a status as text for a terminal.
pub(crate) fn table(status: &Status) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _infallible = write_table(status, &mut text);
    text
}

fn write_table(status: &Status, text: &mut String) -> std::fmt::Result {
    writeln!(text, "ready: {}", if status.ready { "yes" } else { "no" })?;
    for ailment in [&status.ledger, &status.second_daemon]
        .into_iter()
        .flatten()
    {
        writeln!(text, "{ailment}")?;
    }
    writeln!(text, "messages in flight: {}", status.in_flight.messages)?;
    writeln!(text, "active keys: {}", status.in_flight.keys)?;
    writeln!(
        text,
        "\n{:<24} {:>10} {:>14} {:>10} {:>8}",
        "RULE", "PENDING", "BYTES", "OLDEST", "PARKED"
    )?;
    for (rule, pending) in &status.in_flight.rules {
        let parked: i64 = status
            .parked
            .iter()
            .filter(|parked| parked.rule == *rule)
            .map(|parked| parked.tasks)
            .sum();
        let oldest = format!("{:.0}s", pending.oldest_seconds);
        writeln!(
            text,
            "{rule:<24} {:>10} {:>14} {oldest:>10} {parked:>8}",
            pending.operations, pending.bytes
        )?;
    }
    if !status.parked.is_empty() {
        writeln!(text, "\n{:<24} {:<40} {:>8}", "PARKED", "REASON", "COUNT")?;
    }
    for parked in &status.parked {
        let rule = if parked.rule.is_empty() {
            "(no rule)"
        } else {
            &parked.rule
        };
        writeln!(
            text,
            "{rule:<24} {:<40} {:>8}",
            parked.reason.as_str(),
            parked.tasks
        )?;
    }
    if !status.unproved.is_empty() {
        writeln!(
            text,
            "\n{:<24} {:<40} {:>8}",
            "WRITTEN WITHOUT PROOF", "CAUSE", "COUNT"
        )?;
    }
    for unproved in &status.unproved {
        writeln!(
            text,
            "{:<24} {:<40} {:>8}",
            unproved.rule,
            unproved.cause.as_str(),
            unproved.replicas
        )?;
    }
    for degraded in &status.degraded {
        let state = match (degraded.is_circuit_open, degraded.concurrency_limit) {
            (true, _) => format!(
                "{}: circuit open, one task at a time probes",
                degraded.error
            ),
            (false, Some(width)) => {
                format!(
                    "throttled: at most {width} tasks at a time, {} active",
                    degraded.in_flight
                )
            }
            (false, None) => degraded.error.clone(),
        };
        writeln!(text, "\n{}: {state}", degraded.name)?;
    }
    for lacking in &status.disabled_features {
        let minutes = lacking.tried_again_in_seconds.div_ceil(60);
        writeln!(
            text,
            "\naccount {}: {} disabled for {minutes} min: {}",
            lacking.account, lacking.feature, lacking.why
        )?;
    }
    for clock in &status.clock_skew {
        let (hours, way) = (
            clock.ahead_seconds.unsigned_abs() / 3600,
            if clock.ahead_seconds < 0 {
                "behind"
            } else {
                "ahead of"
            },
        );
        writeln!(
            text,
            "\naccount {}: its clock is {hours} h {way} this host's, set the one that is wrong",
            clock.account
        )?;
    }
    for queue in &status.queues {
        writeln!(
            text,
            "\nqueue {}: {}",
            queue.queue,
            if queue.answers {
                "answers"
            } else {
                "does not answer"
            }
        )?;
    }
    Ok(())
}
