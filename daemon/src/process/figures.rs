//! What Prometheus' client libraries say of every process, under the names that they use:
//! <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>.

use std::fmt::Write;
use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// A name, what it is, its type, and its value where the system tells it.
type Figure = (&'static str, &'static str, &'static str, Option<f64>);

/// Writes the figures in Prometheus' text format; what cannot be read is left out.
pub(crate) fn render() -> String {
    let mut text = String::new();
    for (name, help, kind, value) in figures() {
        if let Some(value) = value {
            // Writing to a string cannot fail.
            let _infallible = write!(
                text,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
            );
        }
    }
    text
}

fn figures() -> [Figure; 5] {
    [
        (
            "process_cpu_seconds_total",
            "Processor time used, in seconds.",
            "counter",
            Some(cpu_seconds()),
        ),
        (
            "process_open_fds",
            "Open file descriptors.",
            "gauge",
            open_descriptors(),
        ),
        (
            "process_max_fds",
            "File descriptors that may be open.",
            "gauge",
            getrlimit(Resource::Nofile).current.map(as_value),
        ),
        (
            "process_resident_memory_bytes",
            "Memory in use, in bytes.",
            "gauge",
            resident_bytes(),
        ),
        (
            "process_start_time_seconds",
            "When the process was started, in Unix time.",
            "gauge",
            started_at(),
        ),
    ]
}

#[allow(
    clippy::cast_precision_loss,
    reason = "Prometheus has no other numbers"
)]
fn as_value(number: u64) -> f64 {
    number as f64
}

#[allow(
    clippy::cast_precision_loss,
    reason = "Prometheus has no other numbers"
)]
fn cpu_seconds() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

fn open_descriptors() -> Option<f64> {
    // One is the directory's own.
    let open = fs::read_dir("/proc/self/fd").ok()?.count().checked_sub(1)?;
    Some(as_value(open as u64))
}

fn resident_bytes() -> Option<f64> {
    let sizes = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = sizes.split(' ').nth(1)?.parse().ok()?;
    Some(as_value(pages * page_size() as u64))
}

/// Reads when the machine was started, and how long after that the process was:
/// <https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html>.
fn started_at() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the name, in parentheses; it may have any characters.
    let (_, rest) = status.rsplit_once(") ")?;
    let ticks: u64 = rest.split(' ').nth(22 - 3)?.parse().ok()?;
    let system = fs::read_to_string("/proc/stat").ok()?;
    let booted = system
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?;
    let booted: u64 = booted.trim().parse().ok()?;
    Some(as_value(booted) + as_value(ticks) / as_value(clock_ticks_per_second()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn this_process_has_plausible_figures() {
        let figures: Vec<f64> = figures()
            .into_iter()
            .map(|figure| figure.3.unwrap())
            .collect();
        let [cpu, open, most, bytes, started] = figures[..] else {
            panic!("{figures:?}")
        };
        assert!(
            (0.0..1e6).contains(&cpu) && open >= 3.0 && most >= open,
            "{figures:?}"
        );
        assert!((1e6..1e11).contains(&bytes), "{figures:?}");
        let age = clock::now().unix_timestamp() as f64 - started;
        assert!((-2.0..3600.0).contains(&age), "{figures:?}");
        assert!(render().contains("# TYPE process_open_fds gauge\nprocess_open_fds "));
    }
}
