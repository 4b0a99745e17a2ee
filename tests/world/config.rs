//! The daemon's configuration file, as a test wants it.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use super::localstack::{ARCHIVE, SOURCE};

/// What the destination's account requires of a principal that assumes its role.
pub(crate) const EXTERNAL_ID: &str = "orders-archive";
/// The role that writes replicas.
pub(crate) const ROLE: &str = "arn:aws:iam::222222222222:role/replicator";

/// A configuration file; tests change fields, then write it.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) path: PathBuf,
    pub(crate) state_dir: PathBuf,
    pub(crate) listen: String,
    pub(crate) memory: &'static str,
    pub(crate) drain_timeout: &'static str,
    /// Serves every service of both accounts.
    pub(crate) endpoint: String,
    pub(crate) queue_url: String,
    pub(crate) dead_letter_url: String,
    pub(crate) work_queue: Option<String>,
    // Long enough for LocalStack under load, short enough to wait for after a kill.
    pub(crate) visibility_timeout: &'static str,
    /// Whether the archive's account is reached by its role.
    pub(crate) assumes_role: bool,
    /// More keys of the file, before its tables.
    pub(crate) settings: String,
    /// More keys of both accounts.
    pub(crate) account_keys: String,
    pub(crate) rules: Vec<Rule>,
}

/// One rule; what no test varies is the same in all of them.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) id: &'static str,
    pub(crate) source: String,
    pub(crate) destination: String,
    /// What becomes of the filter's prefix; the same when absent.
    pub(crate) rewrite: Option<&'static str>,
    /// The inside of the `filter` table.
    pub(crate) filter: String,
    pub(crate) delete_markers: bool,
    pub(crate) history: &'static str,
    pub(crate) version_deletes: bool,
    /// The inside of the `encryption` table.
    pub(crate) encryption: String,
    /// More keys of the rule.
    pub(crate) more: String,
}

impl Config {
    /// Writes the file and returns its path.
    pub(crate) fn write(&self) -> &Path {
        fs::write(&self.path, self.text()).unwrap();
        &self.path
    }

    /// Returns what is in the file.
    pub(crate) fn text(&self) -> String {
        let Self {
            listen,
            memory,
            drain_timeout,
            endpoint,
            queue_url,
            visibility_timeout,
            ..
        } = self;
        let dead_letter_url = &self.dead_letter_url;
        let (settings, account_keys) = (&self.settings, &self.account_keys);
        let role = if self.assumes_role {
            format!("role_arn = \"{ROLE}\"\nexternal_id = \"{EXTERNAL_ID}\"")
        } else {
            String::new()
        };
        let state_dir = self.state_dir.display();
        let work_queue: String = self
            .work_queue
            .iter()
            .map(|url| format!("work_queue = \"{url}\"\n"))
            .collect();
        let rules: String = self.rules.iter().map(Rule::text).collect();
        format!(
            r#"
state_dir = "{state_dir}"
listen = "{listen}"
memory = "{memory}"
drain_timeout = "{drain_timeout}"
{settings}

[accounts.source]
region = "{}"
endpoint = "{endpoint}"
path_style = true
{account_keys}

[accounts.archive]
region = "{}"
endpoint = "{endpoint}"
path_style = true
{account_keys}
{role}

[[queues]]
url = "{queue_url}"
account = "source"
visibility_timeout = "{visibility_timeout}"
dead_letter_url = "{dead_letter_url}"
{work_queue}{rules}"#,
            SOURCE.region, ARCHIVE.region
        )
    }
}

impl Rule {
    fn text(&self) -> String {
        let Self {
            id,
            source,
            destination,
            rewrite,
            filter,
            delete_markers,
            ..
        } = self;
        let Self {
            history,
            version_deletes,
            encryption,
            more,
            ..
        } = self;
        let rewrite: String = rewrite
            .iter()
            .map(|prefix| format!(", prefix = \"{prefix}\""))
            .collect();
        format!(
            r#"
[[rules]]
id = "{id}"
source = {{ account = "source", bucket = "{source}" }}
destination = {{ account = "archive", bucket = "{destination}"{rewrite} }}
filter = {{ {filter} }}
history = "{history}"
since = "2020-01-01T00:00:00Z"
delete_markers = {delete_markers}
version_deletes = {version_deletes}
version_delete_delay = "0s"
sse_kms_objects = true
encryption = {{ {encryption} }}
{more}
"#
        )
    }
}

/// Finds a port that is free now.
pub(crate) fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string()
}
