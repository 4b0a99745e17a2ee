//! What systemd is told through its notification socket (`Type=notify-reload`, sd_notify(3)): that
//! the daemon has started, reloads or stops, a line of status, and, for as long as `/healthz` is
//! green, that it is alive. Without `NOTIFY_SOCKET` in the environment nothing is sent.

use std::ffi::OsStr;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;
use std::{env, io};

use replicator_core::object::escape_controls;
use sd_notify::NotifyState;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::admin::Admin;
use crate::process::run_blocking;

const SOCKET: &str = "NOTIFY_SOCKET";

// systemd reads at once; a second is long for a start or stop to wait.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

// The line of status is read at `systemctl status`; nothing is decided by it.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

// WatchdogSec= has seconds; less would only make the daemon busy.
const WATCHDOG_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Says that every station is at work, or that a reload has ended. It does not wait for the queues
/// to answer, as `/readyz` does: after `TimeoutStartSec=` systemd would end a daemon that only has
/// to wait for them.
pub(super) fn notify_ready() {
    notify(&[NotifyState::Ready]);
}

/// Says that a reload begins; the time tells systemd that it is a later one than its signal.
pub(super) fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => warn!(%error, "cannot read the monotonic clock"),
    }
}

/// Says that the daemon drains.
pub(super) fn notify_stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// Keeps the line of status current and feeds the watchdog, until `stop` is cancelled.
pub(super) async fn report_health(admin: Admin, stop: CancellationToken) {
    if env::var_os(SOCKET).is_none() {
        return;
    }
    // Half of the time that there is, as sd_watchdog_enabled(3) advises.
    let half = sd_notify::watchdog_enabled().map(|time| time / 2);
    let interval = half.map_or(STATUS_INTERVAL, |half| {
        half.clamp(WATCHDOG_INTERVAL_MIN, STATUS_INTERVAL)
    });
    let report = async || {
        let (status, is_alive) = assess(&admin).await;
        notify(&[NotifyState::Status(&status)]);
        if is_alive {
            notify(&[NotifyState::Watchdog]);
        }
        sleep(interval).await;
    };
    while stop.run_until_cancelled(report()).await.is_some() {}
}

/// Says in one line how the daemon is, and whether that feeds the watchdog.
async fn assess(admin: &Admin) -> (String, bool) {
    let problem = admin.problem().await;
    let is_alive = problem.is_none();
    let status = match (problem, admin.unreadiness()) {
        (Some(problem), _) => format!("unhealthy: {problem}"),
        (None, Some(reason)) => reason,
        (None, None) => {
            let in_flight = admin.in_flight().await.unwrap_or_default();
            let (messages, keys) = (in_flight.messages, in_flight.keys);
            format!("messages in flight: {messages}, active keys: {keys}")
        }
    };
    // Each line is a variable of its own, and a problem may name a key, which may have lines.
    (escape_controls(&status).to_string(), is_alive)
}

/// Sends variables to systemd, if it started the daemon. What it does not take is lost: the next
/// report comes soon, and the daemon works without.
fn notify(variables: &[NotifyState<'_>]) {
    let Some(socket) = env::var_os(SOCKET) else {
        return;
    };
    let text: String = variables.iter().map(|one| format!("{one}\n")).collect();
    if let Err(error) = run_blocking(|| send(&socket, &text)) {
        warn!(%error, "systemd does not take a notification");
    }
}

/// Not `sd_notify::notify`, which waits for room without end: a manager that reads nothing would
/// keep the daemon from stopping.
fn send(socket: &OsStr, text: &str) -> io::Result<usize> {
    let sender = UnixDatagram::unbound()?;
    sender.set_write_timeout(Some(SEND_TIMEOUT))?;
    sender.send_to(text.as_bytes(), socket)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::admin::tests::{admin, answer};
    use crate::health::SILENT_AFTER;

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_as_long_as_the_health_is_green() {
        let directory = tempfile::tempdir().unwrap();
        let (admin, mut asked) = admin(&directory).await;
        let queue = &admin.polls[0];
        let status = |text: &str, is_alive| (text.to_owned(), is_alive);
        queue.poll_failed("no answer");
        let waits = status("not polling yet: events", true);
        assert_eq!(assess(&admin).await, waits);
        advance(SILENT_AFTER + Duration::from_secs(1)).await;
        let red = status("unhealthy: queue events cannot be polled", false);
        assert_eq!(assess(&admin).await, red);
        queue.poll_succeeded();
        let (green, ()) = tokio::join!(assess(&admin), answer(&mut asked));
        assert_eq!(green, status("messages in flight: 0, active keys: 0", true));
        admin.draining.cancel();
        assert_eq!(assess(&admin).await, status("draining", true));
    }
}
