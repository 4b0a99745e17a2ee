//! The file as used: every default filled in, every value parsed, every problem reported at once.

pub(crate) mod accounts;
mod encryption;
mod filter;
pub(crate) mod queues;
mod rules;
mod topology;
mod unavailable;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use replicator_core::rule::Rule;
use toml::de::{DeTable, DeValue};

use crate::aws_names;
use crate::diagnostics::{Invalid, Location, Problems, line_and_column};
use crate::reader::{Field, FromToml, Scalar};
use crate::schema::File;
use crate::units;
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
    /// The queues that the work of the enabled rules goes through; none where one daemon does all
    /// of it.
    pub work_queues: Vec<Queue>,
    /// What goes where, in the order of the file; at least one.
    pub rules: Vec<Rule>,
}

/// Reads and checks a configuration file.
pub fn load(path: &Path) -> Result<Settings, Invalid> {
    fs::read_to_string(path)
        .map_err(|error| match error.kind() == ErrorKind::InvalidData {
            true => Invalid::whole_file(
                None,
                "is not UTF-8, as TOML has to be; save it as UTF-8".to_owned(),
            ),
            false => Invalid::whole_file(
                None,
                format!("can't be read: {error}; name another with --config FILE"),
            ),
        })
        .and_then(|text| parse(&text))
        .map_err(|invalid| invalid.in_file(path))
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
    let settings = file.map(|file| settle(&file, &mut problems));
    problems.settle(settings)
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
fn settle(file: &File, problems: &mut Problems<'_>) -> Settings {
    let accounts = accounts::settle(&file.accounts, problems);
    at_least_one(
        &file.queues,
        "add [[queues]] with url and account",
        problems,
    );
    at_least_one(
        &file.rules,
        "add [[rules]] with id, source and destination",
        problems,
    );
    let queues = queues::settle(&file.queues, &accounts, problems);
    let rules = rules::settle(&file.rules, (&accounts, &queues), problems);
    Settings {
        state_dir: file
            .state_dir
            .parse_with(problems, state_dir)
            .unwrap_or_else(|| STATE_DIR.into()),
        listen: file.listen.parse_with(problems, listen).unwrap_or(LISTEN),
        listen_hosts: listen_hosts(&file.listen_hosts, problems),
        memory_bytes: file
            .memory
            .parse_with(problems, memory)
            .unwrap_or(MEMORY_BYTES),
        drain_timeout: file
            .drain_timeout
            .parse_with(problems, |text| units::parse_time_span(text))
            .unwrap_or(DRAIN_TIMEOUT),
        work_queues: queues::work_queues(&queues, &rules),
        queues,
        rules,
        accounts,
    }
}

fn at_least_one<T>(list: &Field<Vec<T>>, remedy: &str, problems: &mut Problems<'_>) {
    if list
        .require_present(remedy, problems)
        .is_some_and(Vec::is_empty)
    {
        problems.add_problem(&list.spot, format!("empty; {remedy}"));
    }
}

fn state_dir(text: &String) -> Result<PathBuf, String> {
    if text.is_empty() {
        Err(format!("empty; name a directory, like {STATE_DIR:?}"))
    } else {
        Ok(text.into())
    }
}

fn listen(text: &String) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is not an IP address with a port; write it like \"{LISTEN}\"")
    })
}

fn listen_hosts(written: &Field<Vec<Field<String>>>, problems: &mut Problems<'_>) -> Vec<String> {
    let hosts = written.present_value().into_iter().flatten();
    hosts
        .filter_map(|field| field.parse_with(problems, |text| aws_names::host(text)))
        .collect()
}

fn memory(Scalar(text): &Scalar) -> Result<u64, String> {
    let bytes = units::parse_size(text)?;
    if bytes < MEMORY_BYTES_MIN {
        return Err(format!(
            "{text:?} is less than 16MiB, too little for the parts of one upload"
        ));
    }
    Ok(bytes)
}
