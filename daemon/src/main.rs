//! The command line.

use std::error::Error;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::{fs, io};

use anyhow::{Context, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand};
use replicator_config::policies::{self, PolicyFormat, PolicyLayout, PolicyOptions};
use replicator_config::{ImportOptions, Invalid, Settings};
use replicator_core::object::without_commands;
use s3_replicator::admin::api;
use s3_replicator::admin::failures::{FAILURES_EXAMPLES, FailuresCommand};
use s3_replicator::admin::status::{self, DaemonAddress};
use s3_replicator::backfill::BackfillArguments;
use s3_replicator::ledger::directory;
use s3_replicator::pipeline::Role;
use s3_replicator::process::{InvalidCommand, LogFormat, build_runtime};
use s3_replicator::verify::{VerifyOptions, records};
use s3_replicator::{backfill, check, pipeline, process, verify};
use strum::VariantNames;
use tikv_jemallocator::Jemalloc;

/// A request is many small allocations, and the C library's allocator was a fifth of all that an
/// object cost (docs/performance.md).
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Replicates S3 object versions, metadata and delete markers from event notifications in SQS.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Command {
    /// The configuration file, or env:NAME for a text in an environment variable
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        default_value = "/etc/s3-replicator/config.toml"
    )]
    config: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs the daemon until SIGTERM; SIGHUP reloads the rules
    #[command(after_help = "Example:\n  s3-replicator run --config /etc/s3-replicator/config.toml")]
    Run {
        /// How log lines look
        #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "S3_REPLICATOR_LOG_FORMAT")]
        log_format: LogFormat,
        /// Which log lines to write, as a tracing filter such as `warn,s3_replicator=debug`
        #[arg(long, default_value = LOG_DEFAULT, env = "S3_REPLICATOR_LOG")]
        log: String,
        /// Only sends events to the work queues, or only does what is in them
        #[arg(long, value_enum)]
        role: Option<Role>,
        /// Asks no service whether the set-up can work, at start and on reload
        #[arg(long, env = "S3_REPLICATOR_NO_CHECK")]
        no_check: bool,
    },
    /// Asks the services whether the set-up can work, and says what puts it right
    #[command(after_help = CHECK_EXAMPLES)]
    Check {
        /// Look at the file alone, and send no request
        #[arg(long)]
        offline: bool,
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
        /// Write an object at each destination too, read it, and remove it
        #[arg(long, conflicts_with = "offline")]
        probe: bool,
    },
    /// Translates a replication configuration of S3 into a configuration file
    #[command(after_help = IMPORT_EXAMPLE)]
    Import(Import),
    /// Prints the least-privilege documents that the rules need: for roles, buckets, queues and keys
    #[command(after_help = POLICIES_EXAMPLES)]
    Policies(Policies),
    /// Compares both sides of a rule and prints each difference; exit 2 on any
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(VerifyOptions),
    /// Finds keys that miss something at the destination, and has the daemons look at them
    #[command(after_help = BACKFILL_EXAMPLES)]
    Backfill(BackfillArguments),
    #[command(flatten)]
    Daemon(DaemonCommand),
    /// The records in `state_dir`: whether they are whole, and what they lack
    #[command(subcommand, after_help = LEDGER_EXAMPLES)]
    Ledger(LedgerCommand),
}

/// What a running daemon is asked.
#[derive(Debug, Subcommand)]
enum DaemonCommand {
    /// Shows what the running daemon has in flight and what is parked, or what became of an object
    #[command(after_help = STATUS_EXAMPLES)]
    Status {
        #[command(flatten)]
        daemon: DaemonAddress,
        /// An object, by its key at either side: what became of each of its versions, or of one. The
        /// last `?versionId=` counts; one without an id, for all versions, ends a key that has it too
        #[arg(value_name = "s3://BUCKET/KEY[?versionId=ID]")]
        object: Option<String>,
        /// Print JSON instead of tables
        #[arg(long)]
        json: bool,
    },
    /// Asks the running daemon whether it makes progress; exit 1 if not, and says why
    #[command(
        after_help = "Example:\n  s3-replicator health --config /etc/s3-replicator/config.toml"
    )]
    Health {
        #[command(flatten)]
        daemon: DaemonAddress,
    },
    /// Lets a rule of the running daemon write nothing more; its events wait in SQS
    #[command(after_help = "Example:\n  s3-replicator pause --rule orders")]
    Pause {
        /// The rule
        #[arg(long, value_name = "RULE")]
        rule: String,
        #[command(flatten)]
        daemon: DaemonAddress,
    },
    /// Lets a rule that was paused go on
    #[command(after_help = "Example:\n  s3-replicator resume --rule orders")]
    Resume {
        /// The rule
        #[arg(long, value_name = "RULE")]
        rule: String,
        #[command(flatten)]
        daemon: DaemonAddress,
    },
    /// What is parked and why, and the command to try it again
    #[command(subcommand, after_help = FAILURES_EXAMPLES)]
    Failures(FailuresCommand),
}

impl DaemonCommand {
    async fn ask(self, settings: impl Fn() -> Result<Settings, Invalid>) -> anyhow::Result<String> {
        match self {
            Self::Status {
                daemon,
                object: Some(object),
                json,
            } => api::ask_object(daemon, &object, json, settings).await,
            Self::Status { daemon, json, .. } => {
                status::ask(&daemon.resolve(settings)?, json).await
            }
            Self::Health { daemon } => status::ask_health(&daemon.resolve(settings)?).await,
            Self::Pause { rule, daemon } => {
                api::change_pause(&daemon.resolve(settings)?, "pause", &rule).await
            }
            Self::Resume { rule, daemon } => {
                api::change_pause(&daemon.resolve(settings)?, "resume", &rule).await
            }
            Self::Failures(failures) => failures.ask(settings).await,
        }
    }
}

const IMPORT_EXAMPLE: &str = "Example:
  aws s3api get-bucket-replication --bucket orders |
    s3-replicator import - --bucket orders --region eu-west-1 --destination-region us-east-1 > config.toml";

/// Reads no configuration file: it makes one. What is left out has to be filled in there.
#[derive(Debug, clap::Args)]
struct Import {
    /// What `aws s3api get-bucket-replication` printed; `-` is standard input
    file: PathBuf,
    /// The source bucket, which the configuration does not name
    #[arg(long)]
    bucket: String,
    /// The Region of the source bucket and its queues
    #[arg(long)]
    region: Option<String>,
    /// The Region of the destination buckets, where no KMS key tells it
    #[arg(long, value_name = "REGION")]
    destination_region: Option<String>,
    /// The queue that gets the bucket's events
    #[arg(long, value_name = "URL")]
    queue_url: Option<String>,
    /// The queue for what cannot be done
    #[arg(long, value_name = "URL")]
    dead_letter_url: Option<String>,
    /// When the replication by S3 was disabled
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
}

impl Import {
    fn translate(self) -> anyhow::Result<String> {
        let Self { file, .. } = &self;
        let text = match file.as_os_str() == "-" {
            true => io::read_to_string(io::stdin()),
            false => fs::read_to_string(file),
        };
        let text = text.map_err(InvalidCommand::new);
        let text = text.with_context(|| format!("cannot read {}", file.display()))?;
        let options = ImportOptions {
            bucket: self.bucket,
            region: self.region,
            destination_region: self.destination_region,
            queue_url: self.queue_url,
            dead_letter_url: self.dead_letter_url,
            since: self.since,
        };
        Ok(replicator_config::import(&text, &options)?)
    }
}

const POLICIES_EXAMPLES: &str = "Examples:
  s3-replicator policies
  s3-replicator policies --layout bucket-policy --format cloudformation > permissions.json";

#[derive(Debug, clap::Args)]
struct Policies {
    /// How the documents are printed
    #[arg(long, value_parser = one_of::<PolicyFormat>(), default_value = "json")]
    format: PolicyFormat,
    /// How buckets of other accounts are reached: by the roles of the file, or by the daemon's own
    /// alone, which the policies of the buckets let in
    #[arg(long, value_parser = one_of::<PolicyLayout>(), default_value = "roles")]
    layout: PolicyLayout,
    /// The daemon's own role; s3-replicator in the account of the first queue when left out. With
    /// NAME=, the role or user that an account's profile signs as
    #[arg(long = "principal", value_name = "[NAME=]ARN")]
    principals: Vec<String>,
    /// A key that source objects are encrypted under; any of the account when left out
    #[arg(long = "source-key", value_name = "ARN")]
    source_keys: Vec<String>,
    /// A key that a destination bucket encrypts under by default
    #[arg(long = "destination-key", value_name = "ARN")]
    destination_keys: Vec<String>,
    /// Source buckets send their events to EventBridge, whose rules `check` reads
    #[arg(long)]
    event_bridge: bool,
}

impl Policies {
    fn print(self, settings: &Settings) -> anyhow::Result<String> {
        let options = PolicyOptions {
            layout: self.layout,
            event_bridge: self.event_bridge,
            ..PolicyOptions::default()
        };
        let mut options = options.with_keys(&self.source_keys, &self.destination_keys)?;
        let mut named = self.principals.iter();
        named.try_for_each(|one| options.add_principal(one, settings))?;
        let documents = policies::policies(settings, &options)?;
        Ok(policies::render(&documents, self.format))
    }
}

/// Parses one of the words that name the variants of an enum, which `--help` lists.
fn one_of<T>() -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: Error + Send + Sync> + VariantNames + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(T::VARIANTS).try_map(|word| T::from_str(&word))
}

const CHECK_EXAMPLES: &str =
    "Exit status: 0 fine, 1 problems, 2 a service could not be asked, 78 a command line or file that is
not valid.

Examples:
  s3-replicator check
  s3-replicator check --offline --config config/example.toml
  s3-replicator check --probe
  s3-replicator check --json | jq '.sections[].findings[]'";

const VERIFY_EXAMPLES: &str =
    "Exit status: 0 equal, 1 nothing was compared or a service could not be asked, 2 any difference,
78 a command line or file that is not valid.

Examples:
  s3-replicator verify --rule orders
  s3-replicator verify --rule orders --prefix invoices/ --as-of 2026-11-30T12:00:00Z
  s3-replicator verify --rule orders --deep --sample 1% --seed 7
  s3-replicator verify --rule orders --json | jq 'select(.difference == \"missing\")'";

const BACKFILL_EXAMPLES: &str = "Exit status: 0 all sent, 1 broken off, 78 an invalid call or file.

Examples:
  s3-replicator backfill --rule orders --dry-run
  s3-replicator backfill --rule orders --prefix invoices/ --report report.csv
  s3-replicator backfill --rule orders --from s3://orders-inventory/orders/daily/2026-11-29T01-00Z/manifest.json
  s3-replicator backfill --rule orders --prefix invoices/ --rewrite-history";

const STATUS_EXAMPLES: &str = "Examples:
  s3-replicator status
  s3-replicator status 's3://orders/invoices/1.pdf?versionId=3HL4kqtJlcpXroDTDmJ'
  s3-replicator status --address 10.0.0.7:9478 --json | jq .parked";

const LEDGER_EXAMPLES: &str = "Examples:
  s3-replicator ledger check
  s3-replicator ledger rebuild --rule orders
  sudo -u s3-replicator s3-replicator ledger repair    # docs/operations.md has it for the systemd unit";

#[derive(Debug, Subcommand)]
enum LedgerCommand {
    /// Reads every record, beside a running daemon too; exit 65 when one is damaged
    #[command(
        after_help = "Example:\n  s3-replicator ledger check --config /etc/s3-replicator/config.toml"
    )]
    Check,
    /// Puts a damaged ledger aside, and in its place one of all that can be read; the daemon has to
    /// be stopped
    #[command(
        after_help = "Example:\n  s3-replicator ledger repair --config /etc/s3-replicator/config.toml"
    )]
    Repair,
    /// Reads back what the ledger lacks of a rule's replicas, by their stamps; the daemon has to be
    /// stopped
    #[command(after_help = "Example:\n  s3-replicator ledger rebuild --rule orders")]
    Rebuild {
        /// The rule
        #[arg(long, value_name = "RULE")]
        rule: String,
    },
    /// Gives back the room of what was overwritten and removed; the daemon has to be stopped
    #[command(
        after_help = "Example:\n  s3-replicator ledger compact --config /etc/s3-replicator/config.toml"
    )]
    Compact,
}

impl LedgerCommand {
    fn execute(self, settings: &Settings) -> anyhow::Result<String> {
        match self {
            Self::Check => directory::check(settings),
            Self::Repair => directory::repair(settings),
            Self::Compact => directory::compact(settings),
            Self::Rebuild { rule } => {
                build_runtime()?.block_on(Box::pin(records::rebuild(settings, &rule, None)))
            }
        }
    }
}

// Warnings of `aws_config` end in dumps of the SDK's structures; the daemon logs a line of its own
// for each.
const LOG_DEFAULT: &str = "warn,aws_config=error,s3_replicator=info";

fn main() -> ExitCode {
    process::abort_unless_contained();
    process::restrict_files();
    let command = match Command::try_parse() {
        Ok(command) => command,
        Err(other) => return answer_usage(&other),
    };
    match execute(command) {
        Ok(code) => code,
        Err(error) => {
            print_error(&error);
            ExitCode::from(match process::is_invalid(&error) {
                true => NOT_CONFIGURED,
                false => directory::exit_code(&error),
            })
        }
    }
}

// `EX_CONFIG` of sysexits.h: no restart mends a file or a command line, and systemd can be told so.
const NOT_CONFIGURED: u8 = 78;

/// Prints the help that was asked for, or what is wrong with the command line.
fn answer_usage(other: &clap::Error) -> ExitCode {
    let _unread = other.print();
    match other.use_stderr() {
        true => ExitCode::from(NOT_CONFIGURED),
        false => ExitCode::SUCCESS,
    }
}

fn execute(Command { config, verb }: Command) -> anyhow::Result<ExitCode> {
    if let Verb::Run {
        log_format, log, ..
    } = &verb
    {
        process::start_log(*log_format, log)?;
    }
    let settings = || replicator_config::load(&config);
    let text = match verb {
        Verb::Run { role, no_check, .. } => {
            process::raise_descriptors()?;
            process::forbid_core_dumps().context("cannot forbid core dumps")?;
            let role = role.unwrap_or_default();
            build_runtime()?.block_on(pipeline::run(settings()?, config, role, !no_check))?;
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Check {
            offline,
            json,
            probe,
        } => {
            let settings = settings()?;
            let report = match offline {
                true => check::check_file(&settings, &config),
                false => {
                    let runtime = build_runtime()?;
                    let _entered = runtime.enter();
                    let stopped = process::stop_requested();
                    let asking = check::check_services(&settings, &config, probe, None, stopped);
                    runtime.block_on(asking)?
                }
            };
            let text = if json { report.json()? } else { report.text() };
            print_text(text.trim_end());
            return Ok(ExitCode::from(report.exit_code()));
        }
        Verb::Import(import) => import.translate()?,
        Verb::Policies(policies) => policies.print(&settings()?)?,
        Verb::Verify(options) => {
            let settings = settings()?;
            let verifying = verify::verify(&settings, &options, None, print_text);
            return Ok(ExitCode::from(build_runtime()?.block_on(verifying)?));
        }
        Verb::Backfill(arguments) => find_and_hint(&settings()?, &arguments)?,
        Verb::Daemon(command) => build_runtime()?.block_on(command.ask(settings))?,
        Verb::Ledger(command) => command.execute(&settings()?)?,
    };
    print_text(text.trim_end());
    Ok(ExitCode::SUCCESS)
}

const UNASKED: &str = "--rewrite-history asks before it begins, and there is no terminal: --dry-run says what would be \
     written, and with --yes it is";

const READ_ONCE: &str = "--rewrite-history counts first and asks then, and what comes through a pipe comes once: write it to \
     a file, or say --yes";

const REWRITTEN: &str = "until the newest of a key is written again, its readers see older versions, or nothing where \
     a delete marker is among them: a moment for small objects, longer for large ones and while writes fail";

/// Runs a backfill, after a question where histories are to be rewritten, and returns its summary.
fn find_and_hint(settings: &Settings, arguments: &BackfillArguments) -> anyhow::Result<String> {
    let tell = |line: &str| {
        let _infallible = writeln!(process::Log, "{line}");
    };
    let runtime = build_runtime()?;
    let _entered = runtime.enter();
    let run = |arguments: &BackfillArguments| {
        let stopped = process::stop_requested();
        runtime.block_on(backfill::backfill(settings, arguments, None, stopped, tell))
    };
    if arguments.rewrite_history && !arguments.yes && !arguments.dry_run {
        if !process::has_terminal() {
            bail!(InvalidCommand::new(UNASKED));
        }
        let from = arguments.from.as_ref();
        if from.is_some_and(|from| !from.is_lasting()) {
            bail!(InvalidCommand::new(READ_ONCE));
        }
        let counted = run(&BackfillArguments {
            dry_run: true,
            report: None,
            ..arguments.clone()
        })?;
        let question = format!("{}\n{REWRITTEN}", counted.text());
        if !runtime.block_on(process::is_confirmed(&question)) {
            bail!("not confirmed, so nothing was sent");
        }
    }
    let summary = run(arguments)?;
    Ok(match arguments.json {
        true => summary.json()?,
        false => summary.text(),
    })
}

#[allow(
    clippy::print_stdout,
    reason = "the answer of a command goes to standard output"
)]
fn print_text(text: &str) {
    println!("{}", without_commands(text));
}

#[allow(
    clippy::print_stderr,
    reason = "a command that fails says why on standard error"
)]
fn print_error(error: &anyhow::Error) {
    eprintln!("{}", without_commands(&format!("s3-replicator: {error:#}")));
}
