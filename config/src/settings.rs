//! The file as used: every default filled in, every value parsed, every problem reported at once.

pub(crate) mod accounts;
mod filter;
pub(crate) mod queues;
mod rules;
mod topology;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use replicator_core::rule::Rule;
use toml::de::{DeTable, DeValue};

use crate::diagnostics::{Invalid, Location, Problems, line_and_column};
use crate::reader::{Field, FromToml};
use crate::schema::File;
use crate::values;
use accounts::Account;
use queues::Queue;

/// A configuration that holds together.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The directory of the ledger.
    pub state_dir: PathBuf,
    /// Where metrics, health and the status page are served.
    pub listen: SocketAddr,
    /// Names under which clients may reach that, in lower case, beside addresses and localhost.
    pub listen_hosts: Vec<String>,
    /// The budget for all object bytes in flight.
    pub memory_bytes: u64,
    /// How long a shutdown waits for work in progress.
    pub drain_timeout: Duration,
    /// Credentials, by the name that queues and rules use.
    pub accounts: BTreeMap<String, Account>,
    /// Where events come from; at least one.
    pub queues: Vec<Queue>,
    /// The queues that the work of the rules goes through; none where one daemon does all
    /// of it.
    pub work_queues: Vec<Queue>,
    /// What goes where, in the order of the file; at least one.
    pub rules: Vec<Rule>,
}

/// Reads and checks a configuration file.
pub fn load(path: &Path) -> Result<Settings, Invalid> {
    read_text(path)
        .map_err(|message| Invalid::whole_file(None, message))
        .and_then(|text| parse(&text))
        .map_err(|invalid| invalid.in_file(path))
}

/// Reads the text of a configuration file; `env:NAME` is that in an environment variable, which is
/// all that some services give a container.
pub fn read_text(path: &Path) -> Result<String, String> {
    if let Some(name) = path.to_str().and_then(|path| path.strip_prefix("env:")) {
        return env::var(name).map_err(|error| format!("can't be read: {error}"));
    }
    fs::read_to_string(path).map_err(|error| {
        if error.kind() == ErrorKind::InvalidData {
            "is not UTF-8, as TOML has to be; save it as UTF-8".to_owned()
        } else {
            format!("can't be read: {error}; name another with --config FILE")
        }
    })
}

/// Reads and checks the text of a configuration file.
pub fn parse(text: &str) -> Result<Settings, Invalid> {
    let document = DeTable::parse(text).map_err(|error| {
        let position = error.span().map(|span| line_and_column(text, span.start));
        Invalid::whole_file(position, format!("not TOML: {}", error.message()))
    })?;
    let mut problems = Problems::new(text);
    let file = File::read(
        &DeValue::Table(document.into_inner()),
        &Location::default(),
        &mut problems,
    );
    let settings = file.map(|file| resolve(&file, &mut problems));
    problems.finish(settings)
}

const STATE_DIR: &str = "/var/lib/s3-replicator";
const LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9478);
const MEMORY_BYTES: u64 = 256 << 20;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

// Three parts of the smallest size S3 allows:
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
const MEMORY_BYTES_MIN: u64 = 16 << 20;

/// Fills in what the file leaves open. What could not be read is reported and stands as its
/// default, so that the checks across tables still see the rest.
fn resolve(file: &File, problems: &mut Problems<'_>) -> Settings {
    let accounts = accounts::resolve(&file.accounts, problems);
    require_element(
        &file.queues,
        "add [[queues]] with url and account",
        problems,
    );
    let remedy = "add [[rules]] with id, source and destination";
    require_element(&file.rules, remedy, problems);
    let queues = queues::resolve(&file.queues, &accounts, problems);
    let mut rules = rules::resolve(&file.rules, (&accounts, &queues), problems);
    queues::drop_idle(&mut rules);
    let state_dir = file.state_dir.parse_with(problems, state_dir);
    let listen = file.listen.parse_with(problems, listen);
    let memory_bytes = file.memory.parse_with(problems, memory);
    let drain_timeout = file
        .drain_timeout
        .parse_with(problems, values::parse_time_span);
    Settings {
        state_dir: state_dir.unwrap_or_else(|| STATE_DIR.into()),
        listen: listen.unwrap_or(LISTEN),
        listen_hosts: file.listen_hosts.parse_each(problems, values::host_name),
        memory_bytes: memory_bytes.unwrap_or(MEMORY_BYTES),
        drain_timeout: drain_timeout.unwrap_or(DRAIN_TIMEOUT),
        work_queues: queues::work_queues(&queues, &rules),
        queues,
        rules,
        accounts,
    }
}

fn require_element<T>(list: &Field<Vec<T>>, remedy: &str, problems: &mut Problems<'_>) {
    if list
        .require_present(remedy, problems)
        .is_some_and(Vec::is_empty)
    {
        problems.add_problem(&list.spot, format!("empty; {remedy}"));
    }
}

fn state_dir(text: &str) -> Result<PathBuf, String> {
    match text {
        "" => Err(format!("empty; name a directory, like {STATE_DIR:?}")),
        _ => Ok(text.into()),
    }
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    let what = "an IP address with a port";
    text.parse()
        .map_err(|_| values::mismatch(text, what, &LISTEN.to_string()))
}

fn memory(text: &str) -> Result<u64, String> {
    match values::parse_size(text)? {
        ..MEMORY_BYTES_MIN => Err(format!(
            "{text:?} is less than 16MiB, too little for the parts of one upload"
        )),
        bytes => Ok(bytes),
    }
}
