//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use s3_replicator::{pipeline, status};
use tracing_subscriber::EnvFilter;

/// Replicates S3 object versions, metadata and delete markers from event notifications in SQS.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs the daemon until SIGTERM; SIGHUP reloads the rules
    #[command(after_help = "Example:\n  s3-replicator run --config /etc/s3-replicator/config.toml")]
    Run {
        #[command(flatten)]
        file: ConfigFile,
        /// How log lines look
        #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "S3_REPLICATOR_LOG_FORMAT")]
        log_format: LogFormat,
        /// Which log lines to write, as a tracing filter such as `warn,s3_replicator=debug`
        #[arg(long, default_value = "warn,s3_replicator=info", env = "S3_REPLICATOR_LOG")]
        log: String,
    },
    /// Validates the configuration file; exit 1 on any problem
    #[command(after_help = "Example:\n  s3-replicator check --config config/example.toml")]
    Check {
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Shows what the running daemon has in hand and what is parked
    #[command(after_help = "Example:\n  s3-replicator status --config /etc/s3-replicator/config.toml")]
    Status {
        #[command(flatten)]
        file: ConfigFile,
    },
}

#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/s3-replicator/config.toml")]
    config: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    abort_on_panic();
    match command(Command::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say_error(&error);
            ExitCode::FAILURE
        }
    }
}

fn command(command: Command) -> anyhow::Result<()> {
    match command.verb {
        Verb::Run { file, log_format, log } => {
            start_log(log_format, &log)?;
            let settings = replicator_config::load(&file.config)?;
            runtime()?.block_on(pipeline::run(settings, file.config))
        }
        Verb::Check { file } => {
            let settings = replicator_config::load(&file.config)?;
            say(&format!(
                "{} is valid: {} rules, {} queues, {} accounts",
                file.config.display(),
                settings.rules.len(),
                settings.queues.len(),
                settings.accounts.len()
            ));
            Ok(())
        }
        Verb::Status { file } => {
            let settings = replicator_config::load(&file.config)?;
            say(runtime()?.block_on(status::ask(&settings))?.trim_end());
            Ok(())
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

/// A panic is a bug that leaves who knows what half done: the process ends like under kill -9, which
/// it is made to survive, and the service manager starts it anew.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

/// Logs go to standard error; the SDK's own stay out unless asked for, because they name access
/// keys and, at the lower levels, hold headers.
fn start_log(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("log filter {filter:?} is not valid"))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}

#[allow(clippy::print_stdout, reason = "what a command was asked for goes to standard output")]
fn say(text: &str) {
    println!("{text}");
}

#[allow(clippy::print_stderr, reason = "a command that fails says why on standard error")]
fn say_error(error: &anyhow::Error) {
    eprintln!("s3-replicator: {error:#}");
}
