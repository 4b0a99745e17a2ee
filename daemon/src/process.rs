//! The process: what it sets up before it begins (files for its user alone, enough descriptors, no
//! core dumps), how it writes its log, asks and shows how far it is, its signals, blocking work, what
//! a panic ends, and what it uses of the machine.

use std::any::Any;
use std::cell::Cell;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, IsTerminal as _, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use replicator_config::policies::PolicyError;
use replicator_config::{ImportError, Invalid};
use replicator_core::object::without_commands;
use rustix::fs::Mode;
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit, umask,
};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{FilterExt, FilterFn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::metrics::Metrics;

// Two connections for each of 256 tasks at work, those of the status server, and the ledger's
// files, with as many again for uploads that have several parts on their way.
const DESCRIPTORS_MIN: u64 = 1024;

/// Lets what this process creates be read by its own user alone: the ledger names keys.
pub fn restrict_files() {
    umask(Mode::RWXG | Mode::RWXO);
}

/// A command line that is wrong as it stands, or a file that it names: no service is asked.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct InvalidCommand(String);

impl InvalidCommand {
    /// Says what is wrong.
    pub fn new(text: impl ToString) -> Self {
        Self(text.to_string())
    }
}

/// Says whether an error is about a command line or a file, which no service was asked about.
pub fn is_invalid(error: &anyhow::Error) -> bool {
    let is_of_config = error.is::<Invalid>() || error.is::<PolicyError>();
    is_of_config || error.is::<ImportError>() || error.is::<InvalidCommand>()
}

/// Takes as many descriptors as the process may have; an error says that those do not suffice.
pub fn raise_descriptors() -> anyhow::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // What fails here leaves the limit as it was, which is read next.
    let _left = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    );
    let limit = getrlimit(Resource::Nofile)
        .current
        .or(current)
        .unwrap_or(u64::MAX);
    if limit < DESCRIPTORS_MIN {
        bail!(
            "at most {limit} files and connections may be open, and {DESCRIPTORS_MIN} are needed; raise the hard limit: \
             LimitNOFILE= of the unit, `ulimits` of the container, or `ulimit -Hn`"
        );
    }
    Ok(())
}

/// Lets no memory be written to a core file: credentials are in it. The kernel dumps no process
/// that is not dumpable, to a pipe neither; the limit says so where it is looked at.
pub fn forbid_core_dumps() -> io::Result<()> {
    setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Starts the runtime of a daemon or a command.
pub fn build_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// How log lines look.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum LogFormat {
    /// A line of text.
    Text,
    /// A line of JSON.
    Json,
}

/// Logs go to standard error; the SDK's own stay out unless enabled, because they name access keys
/// and, at the lower levels, hold headers.
pub fn start_log(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let wanted = EnvFilter::try_new(filter)
        .with_context(|| format!("log filter {filter:?} is not valid"))?;
    // A directive more would not only forbid these lines but also ask for those of a higher level.
    let allowed = FilterFn::new(|line| !may_hold_requests(line));
    let filter = wanted.and(allowed.with_max_level_hint(LevelFilter::TRACE));
    let log = tracing_subscriber::fmt::layer()
        .with_writer(|| Log)
        .with_target(false);
    let registry = tracing_subscriber::registry();
    match format {
        LogFormat::Text => registry
            .with(log.with_ansi(false).with_filter(filter))
            .init(),
        LogFormat::Json => registry
            .with(log.json().flatten_event(true).with_filter(filter))
            .init(),
    }
    Ok(())
}

/// At this level the SDK writes whole requests, those of KMS with the data key.
fn may_hold_requests(line: &Metadata<'_>) -> bool {
    *line.level() == Level::TRACE
        && line
            .target()
            .starts_with("aws_smithy_runtime::client::orchestrator")
}

/// Standard error, as the log is written to it. Keys and messages of services are in there, and are
/// no commands to the terminal that shows them. A log that takes nothing, as on a full disk, is no
/// reason to end.
#[derive(Debug, Clone, Copy)]
pub struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let _lost = io::stderr().write_all(without_commands(&text).as_bytes());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a signal requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    Stop,
    Reload,
}

/// The signals that the daemon listens to.
#[derive(Debug)]
pub(crate) struct Signals {
    term: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    pub(crate) async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.term.recv() => Request::Stop,
            _ = self.interrupt.recv() => Request::Stop,
            _ = self.hangup.recv() => Request::Reload,
        }
    }
}

/// Does a part of the work, unless it is stopped before that is done.
pub(crate) async fn unless_stopped<T>(
    stopped: impl Future<Output = ()>,
    part: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::select! {
        biased;
        () = stopped => bail!("stopped"),
        result = part => result,
    }
}

/// Waits until SIGINT or SIGTERM requests that a command ends; for ever where no signal can be
/// listened for, which then ends the process at once. Requests count from this call on.
pub fn stop_requested() -> impl Future<Output = ()> {
    let signals = Signals::new();
    async {
        let Ok(mut signals) = signals else {
            return std::future::pending().await;
        };
        while signals.next().await != Request::Stop {}
    }
}

/// Says whether a question can be asked, and answered, on a terminal.
pub fn has_terminal() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks for a `yes` on the terminal. Any other answer, the end of the input, or a request to stop is
/// none.
pub async fn is_confirmed(question: &str) -> bool {
    let _infallible = write!(Log, "{question}\ntype yes to go on: ");
    let answer = run_apart(|| {
        let mut line = String::new();
        let is_read = io::stdin().read_line(&mut line).is_ok();
        is_read && line.trim() == "yes"
    });
    tokio::select! {
        () = stop_requested() => false,
        is_given = answer => is_given.unwrap_or(false),
    }
}

/// Does work that may wait for ever, as for input, on a thread of its own: nothing ends that but an
/// answer, or the end of the process. An error says that the work panicked.
pub(crate) async fn run_apart<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    let (send, answer) = oneshot::channel();
    drop(thread::spawn(move || send.send(work())));
    answer.await.context("a thread ended without an answer")
}

/// Does work that blocks, such as a sync of the disk, without holding up the tasks that wait for
/// this thread. A runtime of one thread has no other to move them to; there everything happens in
/// order, which a simulation relies on.
pub(crate) fn run_blocking<T>(work: impl FnOnce() -> T) -> T {
    if Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread {
        tokio::task::block_in_place(work)
    } else {
        work()
    }
}

/// A piece of work ended by a panic, and the panic's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a bug in s3-replicator: {0}")]
pub(crate) struct Panicked(String);

thread_local! {
    static IS_CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Lets a panic abort the process, unless it happens in a piece of work that is contained. A panic
/// is a bug, and leaves half done what it happened in: where that is a piece of work that can be
/// dropped by itself, as by a cancellation, the rest of the daemon goes on. Elsewhere the process
/// ends as under kill -9, which it is made to survive, and the service manager starts it anew.
///
/// The ledger takes no harm: each write to it is one call to RocksDB, of a batch that is whole.
pub fn abort_unless_contained() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if !IS_CONTAINED.get() {
            std::process::abort();
        }
    }));
}

/// Runs a piece of work, and counts it if it panics.
pub(crate) fn contain<T>(metrics: &Metrics, work: impl FnOnce() -> T) -> Result<T, Panicked> {
    let was_contained = IS_CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    IS_CONTAINED.set(was_contained);
    result.map_err(|panic| {
        metrics.task_panicked();
        Panicked(panic_text(&*panic))
    })
}

/// Runs a task until it is done or panics, and counts that. What it held is dropped.
pub(crate) async fn contain_task<T>(
    metrics: &Metrics,
    work: impl Future<Output = T>,
) -> Result<T, Panicked> {
    let mut work = pin!(work);
    std::future::poll_fn(
        |context| match contain(metrics, || work.as_mut().poll(context)) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
            Err(panicked) => Poll::Ready(Err(panicked)),
        },
    )
    .await
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

/// A name, what it is, its type, and its value where the system tells it.
type Figure = (&'static str, &'static str, &'static str, Option<f64>);

/// Writes what Prometheus' client libraries say of every process, under the names that they use:
/// <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>. What cannot be
/// read is left out.
pub(crate) fn render_figures() -> String {
    let mut text = String::new();
    for (name, help, kind, value) in process_figures() {
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

fn process_figures() -> [Figure; 5] {
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

/// Shows how far a command is: a bar on a terminal, else lines of JSON.
pub(crate) struct ProgressDisplay<'a> {
    bar: Option<ProgressBar>,
    /// Where lines go.
    tell: Box<dyn FnMut(&str) + 'a>,
    began: Instant,
    /// When a line was written last.
    told: Instant,
    /// How much was counted before it began.
    count_before: u64,
}

const TOLD_EVERY: Duration = Duration::from_secs(5);

impl<'a> ProgressDisplay<'a> {
    /// Begins to show something of so many parts, by which so much was counted already.
    pub(crate) fn begin(parts: usize, count_before: u64, tell: impl FnMut(&str) + 'a) -> Self {
        let style = ProgressStyle::with_template(
            "{bar:30} {pos}/{len} ranges, {msg}, {elapsed} so far, {eta} left",
        );
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = io::stderr()
            .is_terminal()
            .then(|| ProgressBar::new(parts as u64).with_style(style));
        let now = Instant::now();
        Self {
            bar,
            tell: Box::new(tell),
            began: now,
            told: now,
            count_before,
        }
    }

    /// Returns how many were counted in a second, now that there are so many.
    pub(crate) fn rate(&self, count: u64) -> f64 {
        let seconds = self.began.elapsed().as_secs_f64().max(0.001);
        (count - self.count_before) as f64 / seconds
    }

    /// Shows how many parts are done, with a text on a bar, or a line if it is time for one.
    pub(crate) fn show(&mut self, done: usize, text: String, line: impl FnOnce() -> Value) {
        if let Some(bar) = &self.bar {
            bar.set_message(text);
            bar.set_position(done as u64);
        } else if self.told.elapsed() >= TOLD_EVERY {
            self.told = Instant::now();
            (self.tell)(&line().to_string());
        }
    }

    /// Tells of something beside that.
    pub(crate) fn note(&mut self, words: &str) {
        match &self.bar {
            Some(bar) => bar.println(words),
            None => (self.tell)(&json!({ "note": words }).to_string()),
        }
    }

    /// Removes the bar: what comes next is the summary.
    pub(crate) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::clock;

    async fn stumble(held: Rc<()>) {
        tokio::task::yield_now().await;
        assert_eq!(Rc::strong_count(&held), 3, "seven");
    }

    #[tokio::test]
    async fn a_panic_ends_what_it_happens_in_and_nothing_else() {
        let metrics = Metrics::new().unwrap();
        assert_eq!(
            contain_task(&metrics, async { IS_CONTAINED.get() }).await,
            Ok(true)
        );
        let held = Rc::new(());
        let panicked = contain_task(&metrics, stumble(Rc::clone(&held)))
            .await
            .unwrap_err();
        assert!(panicked.to_string().contains("seven"), "{panicked}");
        assert_eq!(Rc::strong_count(&held), 1);
        assert!(!IS_CONTAINED.get(), "what comes after it is not");
        assert!(
            metrics
                .render()
                .unwrap()
                .contains("s3_replicator_task_panics_total 1\n")
        );
    }

    #[test]
    fn this_process_has_plausible_figures() {
        let figures: Vec<f64> = process_figures()
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
        assert!(render_figures().contains("# TYPE process_open_fds gauge\nprocess_open_fds "));
    }
}
