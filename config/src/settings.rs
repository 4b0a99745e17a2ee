//! The file as used: every default filled in, every value parsed, every problem reported at once.
//! Its own keys are read here, with the token of the HTTP API, and the filters of rules: which keys,
//! sizes and tags a rule is about.

pub(crate) mod accounts;
pub(crate) mod queues;
mod rules;
mod topology;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fmt;
use std::fs::{File as DiskFile, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use replicator_core::rule::{Filter, Rule};
use rustix::fs::OFlags;
use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use crate::diagnostics::{Invalid, Location, Problems, line_and_column};
use crate::schema::{self, File};
use crate::schema::{Field, FromToml, Scalar};
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
    /// The file of the token that lets clients of the HTTP API change anything; without one it
    /// reads alone.
    pub api_token_file: Option<PathBuf>,
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
    /// The queues in which hints wait until a work queue is empty, each with that.
    pub backfill_queues: Vec<Queue>,
    /// What goes where, in the order of the file; at least one.
    pub rules: Vec<Rule>,
}

impl Settings {
    /// Reads the token that requests have to bear, where a file is named for it.
    pub fn read_api_token(&self) -> Result<Option<ApiToken>, Invalid> {
        let token = self.api_token_file.as_deref().map(ApiToken::read_file);
        token
            .transpose()
            .map_err(|message| Invalid::of_key("api_token_file", message))
    }
}

/// The secret that requests which change anything have to bear.
#[derive(Clone)]
pub struct ApiToken(Zeroizing<String>);

impl fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiToken(…)")
    }
}

// 128 bits in hexadecimal are 32.
const TOKEN_BYTES_MIN: usize = 32;

// As much of a request's head as a client may well send.
const TOKEN_BYTES_MAX: usize = 4 << 10;

const MAKE_TOKEN: &str = "make one: (umask 027; openssl rand -hex 32 > FILE)";

impl ApiToken {
    /// Reads the token from its file, which may be read by its owner and its group alone.
    pub fn read_file(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let unreadable = |error: io::Error| format!("cannot read the token {shown}: {error}");
        let file = open_file(path).map_err(unreadable)?;
        let mode = file.metadata().map_err(unreadable)?.permissions().mode();
        if mode & 0o027 != 0 {
            return Err(format!(
                "the token {shown} has mode {:03o}, so other users may read or change it; chmod 640 {shown}",
                mode & 0o777
            ));
        }
        let mut text = Zeroizing::new(String::new());
        file.take(TOKEN_BYTES_MAX as u64 + 1)
            .read_to_string(&mut text)
            .map_err(unreadable)?;
        let token = text.trim();
        let is_token = (TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len())
            && token.bytes().all(|byte| byte.is_ascii_graphic());
        match is_token {
            true => Ok(Self(Zeroizing::new(token.to_owned()))),
            false => Err(format!(
                "the token {shown} is not {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} letters, digits and signs; {MAKE_TOKEN}"
            )),
        }
    }

    /// Returns the token.
    pub fn as_str(&self) -> &str {
        &self.0
    }
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
    let read = || io::read_to_string(open_file(path)?);
    read().map_err(|error| {
        if error.kind() == ErrorKind::InvalidData {
            "is not UTF-8, as TOML has to be; save it as UTF-8".to_owned()
        } else {
            format!("can't be read: {error}; name another with --config FILE")
        }
    })
}

/// Opens a file that is named to be read. A pipe that has no writer would be waited for without end,
/// and none can be read twice, as a reload does.
pub fn open_file(path: &Path) -> io::Result<DiskFile> {
    let waits_not = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(waits_not)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no regular file")),
    }
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
    let api_token_file = file.api_token_file.parse_with(problems, token_file);
    let listen = file.listen.parse_with(problems, listen);
    let memory_bytes = file.memory.parse_with(problems, memory);
    let drain_timeout = file
        .drain_timeout
        .parse_with(problems, values::parse_time_span);
    Settings {
        state_dir: state_dir.unwrap_or_else(|| STATE_DIR.into()),
        listen: listen.unwrap_or(LISTEN),
        listen_hosts: file.listen_hosts.parse_each(problems, values::host_name),
        api_token_file,
        memory_bytes: memory_bytes.unwrap_or(MEMORY_BYTES),
        drain_timeout: drain_timeout.unwrap_or(DRAIN_TIMEOUT),
        work_queues: queues::work_queues(&queues, &rules),
        backfill_queues: queues::backfill_queues(&queues, &rules),
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

fn token_file(text: &str) -> Result<PathBuf, String> {
    match Path::new(text).is_absolute() {
        true => Ok(text.into()),
        false => Err(format!(
            "{text:?} is not an absolute path, like \"/etc/s3-replicator/token\""
        )),
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

/// Checks the filter of a rule; without one, it is about every object.
fn resolve_filter(written: &Field<schema::Filter>, problems: &mut Problems<'_>) -> Filter {
    let Some(written) = written.present_value() else {
        return Filter::default();
    };
    let mut size = |field: &Field<Scalar>| field.parse_with(problems, values::parse_size);
    let (size_min, size_max) = (size(&written.size_min), size(&written.size_max));
    if let (Some(min), Some(max)) = (size_min, size_max)
        && min > max
    {
        let message = "is more than size_max, so no object matches; swap or widen them";
        problems.add_problem(&written.size_min.spot, message);
    }
    let mut key_part = |field: &Field<String>| field.parse_with(problems, key_part);
    let (prefix, suffix) = (key_part(&written.prefix), key_part(&written.suffix));
    let prefix = prefix.unwrap_or_default();
    let tags = wanted_tags(&written.tags, problems);
    Filter {
        suffix: suffix.unwrap_or_default(),
        exclude: written.exclude.parse_each(problems, excluded_pattern),
        exclude_prefixes: written
            .exclude_prefixes
            .parse_each(problems, |text| excluded_prefix(text, &prefix)),
        exclude_tags: excluded_tags(&written.exclude_tags, &tags, problems),
        prefix,
        tags,
        size_min,
        size_max,
    }
}

/// Checks the start or the end of a key.
fn key_part(text: &str) -> Result<String, String> {
    if text.starts_with("s3://") {
        return Err(format!(
            "{text:?} is a URL; write the part of the keys alone, like \"invoices/\""
        ));
    }
    if text.len() > KEY_BYTES_MAX {
        return Err(format!(
            "is {} bytes long, and no key is longer than {KEY_BYTES_MAX}; shorten it",
            text.len()
        ));
    }
    Ok(text.to_owned())
}

// https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
const KEY_BYTES_MAX: usize = 1024;

// https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html
const TAGS_MAX: usize = 10;
const TAG_KEY_CHARS_MAX: usize = 128;
const TAG_VALUE_CHARS_MAX: usize = 256;

const EXCLUDES_ALL: &str = "excludes every key; disable the rule with enabled = false";

fn excluded_pattern(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("empty, so it excludes nothing; remove it".to_owned());
    }
    if text.chars().all(|c| c == '*') {
        return Err(format!("{text:?} {EXCLUDES_ALL}"));
    }
    Ok(text.to_owned())
}

/// Checks an excluded prefix against the prefix that the rule is about.
fn excluded_prefix(text: &str, prefix: &str) -> Result<String, String> {
    if prefix.starts_with(text) {
        return Err(format!("{text:?} {EXCLUDES_ALL}"));
    }
    key_part(text)
}

fn wanted_tags(
    written: &Field<BTreeMap<String, Field<String>>>,
    problems: &mut Problems<'_>,
) -> BTreeMap<String, String> {
    let Some(tags) = written.present_value() else {
        return BTreeMap::new();
    };
    if tags.len() > TAGS_MAX {
        let count = tags.len();
        let message = format!("has {count} tags, and an object has {TAGS_MAX} at most; drop some");
        problems.add_problem(&written.spot, message);
    }
    tags.iter()
        .filter_map(|(key, value)| {
            refuse_tag_key(key, value, problems);
            Some((key.clone(), value.parse_with(problems, tag_value)?))
        })
        .collect()
}

/// Checks the tags that keep an object out, against those that it has to have.
fn excluded_tags(
    written: &Field<BTreeMap<String, Field<Vec<Field<String>>>>>,
    wanted: &BTreeMap<String, String>,
    problems: &mut Problems<'_>,
) -> BTreeMap<String, BTreeSet<String>> {
    let mut excluded = BTreeMap::new();
    for (key, values) in written.present_value().into_iter().flatten() {
        refuse_tag_key(key, values, problems);
        if values.present_value().is_some_and(Vec::is_empty) {
            let message = "empty, so it excludes nothing; remove it";
            problems.add_problem(&values.spot, message);
        }
        let values = values.parse_each(problems, |text| {
            let value = tag_value(text)?;
            match wanted.get(key) {
                Some(wanted) if *wanted == value => Err(format!(
                    "{value:?} is what filter.tags asks for, so no object matches; remove one of them"
                )),
                _ => Ok(value),
            }
        });
        excluded.insert(key.clone(), values.into_iter().collect());
    }
    excluded
}

fn refuse_tag_key<T>(key: &str, value: &Field<T>, problems: &mut Problems<'_>) {
    if !(1..=TAG_KEY_CHARS_MAX).contains(&key.chars().count()) {
        let message = format!("the key of a tag has 1 to {TAG_KEY_CHARS_MAX} characters");
        problems.add_problem(&value.spot, message);
    }
}

fn tag_value(text: &str) -> Result<String, String> {
    match text.chars().count() {
        ..=TAG_VALUE_CHARS_MAX => Ok(text.to_owned()),
        _ => Err(format!(
            "the value of a tag has {TAG_VALUE_CHARS_MAX} characters at most"
        )),
    }
}
