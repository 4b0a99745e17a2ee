//! The daemon as a process: started, asked, signalled, killed. It dies with its test, and shows its
//! log when the test fails.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::Pid;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::config::Config;
use super::metrics::Metrics;
use super::{HANG, eventually, http, localstack, secrets};

/// The secret that the daemon signs with; nothing may ever print it.
pub(crate) const SECRET: &str = "qJ7mV2xWb9Rk4tYc8ZsN1pLd6HgF3aEu0oKi";

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    listen: String,
    log: PathBuf,
    state_dir: PathBuf,
}

/// Returns the binary under test.
pub(crate) fn binary() -> String {
    std::env::var("S3_REPLICATOR_BIN").expect("S3_REPLICATOR_BIN is not set: run `make test`")
}

/// Prepares a call of the binary with a subcommand on a configuration.
fn command(subcommand: &[&str], config: &Path) -> Command {
    prepared(Command::new(binary()), subcommand, config)
}

fn prepared(mut command: Command, subcommand: &[&str], config: &Path) -> Command {
    command
        .args(subcommand)
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    // What the developer's own shell says about AWS must not reach the daemon.
    for (name, _) in std::env::vars()
        .filter(|(name, _)| name.starts_with("AWS_") || name.starts_with("S3_REPLICATOR_"))
    {
        command.env_remove(name);
    }
    command
        .env("AWS_ACCESS_KEY_ID", localstack::SOURCE.id)
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        // Tests count and script requests; those of the look at the set-up would be among them.
        .env("S3_REPLICATOR_NO_CHECK", "true")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
    command
}

/// Runs a subcommand to its end.
pub(crate) async fn run(subcommand: &[&str], config: &Path) -> Output {
    let output = timeout(HANG, command(subcommand, config).output()).await;
    without_secrets(output.expect("the command ends").unwrap())
}

/// Runs a subcommand that is given a text through a pipe.
pub(crate) async fn run_on(input: &str, subcommand: &[&str], config: &Path) -> Output {
    let mut command = command(subcommand, config);
    command.stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(input.as_bytes()).await.unwrap();
    drop(pipe);
    let output = timeout(HANG, child.wait_with_output()).await;
    without_secrets(output.expect("the command ends").unwrap())
}

/// Runs a subcommand, interrupts it as ^C does once a condition holds, and waits for its end.
pub(crate) async fn interrupt(
    subcommand: &[&str],
    config: &Path,
    when: impl AsyncFnMut() -> bool,
) -> Output {
    let mut command = command(subcommand, config);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let id = child.id().unwrap();
    eventually("the command is at work", when).await;
    send_signal("INT", id).await;
    let output = timeout(HANG, child.wait_with_output()).await;
    without_secrets(output.expect("the command ends").unwrap())
}

fn without_secrets(output: Output) -> Output {
    secrets::assert_none_in("the output of a command", &printed(&output));
    output
}

async fn send_signal(name: &str, id: u32) {
    // The shell has `kill` built in, so nothing needs to be installed, and no unsafe code either.
    let sent = Command::new("sh")
        .arg("-c")
        .arg(format!("kill -{name} {id}"))
        .status()
        .await
        .unwrap();
    assert!(sent.success());
}

/// Returns all that a command printed.
pub(crate) fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

impl Daemon {
    /// Starts the daemon on a configuration, which it writes first.
    pub(crate) fn spawn(config: &Config) -> Self {
        Self::spawn_with(config, &[])
    }

    /// Starts the daemon with more environment.
    pub(crate) fn spawn_with(config: &Config, environment: &[(&str, &str)]) -> Self {
        let mut command = command(&["run"], config.write());
        command.envs(environment.iter().copied());
        Self::start(command, config)
    }

    /// Starts the daemon on a text instead of the configuration's file, with more environment.
    pub(crate) fn spawn_on_text(text: &str, config: &Config, environment: &[(&str, &str)]) -> Self {
        let mut command = command(&["run"], Path::new("env:S3_REPLICATOR_CONFIG"));
        command.env("S3_REPLICATOR_CONFIG", text);
        command.envs(environment.iter().copied());
        Self::start(command, config)
    }

    /// Starts the daemon from a shell that was told something before, such as a limit.
    pub(crate) fn spawn_under(before: &str, config: &Config) -> Self {
        let mut shell = Command::new("sh");
        shell
            .arg("-c")
            .arg(format!("{before} && exec \"$0\" \"$@\""))
            .arg(binary());
        Self::start(prepared(shell, &["run"], config.write()), config)
    }

    /// Starts the daemon by a command, which has it log to standard error.
    pub(crate) fn start(mut command: Command, config: &Config) -> Self {
        let log = config.path.with_extension("log");
        let file = || -> File {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(&log)
                .unwrap()
        };
        command.stdout(file()).stderr(file());
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", binary()));
        Self {
            child,
            listen: config.listen.clone(),
            log,
            state_dir: config.state_dir.clone(),
        }
    }

    /// Waits until the daemon says that it is ready.
    pub(crate) async fn ready(mut self) -> Self {
        eventually("the daemon is ready", async || {
            let exited = self.child.try_wait().unwrap();
            assert!(
                exited.is_none(),
                "the daemon ended with {exited:?}:\n{}",
                self.log()
            );
            self.page("readyz").await == Some(200)
        })
        .await;
        self
    }

    /// Requests a page and returns the status; `None` when there is no answer.
    pub(crate) async fn page(&self, path: &str) -> Option<u16> {
        let (status, _) = http::get(&format!("http://{}/{path}", self.listen)).await?;
        Some(status.as_u16())
    }

    /// Requests what the daemon says of itself, in which there may be no secret.
    pub(crate) async fn read_status(&self) {
        for path in ["status", ""] {
            self.page(path).await;
        }
    }

    /// Reads all metrics; a daemon that does not answer has none.
    pub(crate) async fn metrics(&self) -> Metrics {
        let page = http::get(&format!("http://{}/metrics", self.listen)).await;
        Metrics::of(page.map(|(_, text)| text).unwrap_or_default())
    }

    /// Kills it as a lost machine does, and waits until it is gone.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Sends it a signal, by name.
    pub(crate) async fn signal(&self, name: &str) {
        send_signal(name, self.child.id().expect("the daemon runs")).await;
    }

    /// Returns its process.
    pub(crate) fn process(&self) -> Pid {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        id.and_then(Pid::from_raw).expect("the daemon runs")
    }

    /// Waits until it ends by itself.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        timeout(HANG, self.child.wait())
            .await
            .expect("the daemon ends")
            .unwrap()
    }

    /// Returns what it wrote to its log so far, in this life and earlier ones on the same
    /// configuration.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Reads what the kernel says of it.
    pub(crate) fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!(
            "/proc/{}/{file}",
            self.child.id().expect("the daemon runs")
        ))
        .unwrap()
    }

    /// Returns the most memory that it ever had in RAM.
    pub(crate) fn peak_memory_bytes(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    /// Returns the memory that it has in RAM.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    fn status_bytes(&self, name: &str) -> u64 {
        let status = self.proc("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .expect("Linux");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            secrets::assert_none_in("the daemon's log", &self.log());
            secrets::assert_none_below(&self.state_dir);
        } else {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "--- {}, last lines\n{}",
                self.log.display(),
                lines[lines.len().saturating_sub(60)..].join("\n")
            );
        }
    }
}

/// How often a condition is looked at again.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);
