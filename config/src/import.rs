//! Translates a replication configuration of S3 into ours, as text, with what differs beside each
//! rule. What S3's does not say, such as Regions and queues, are options, or are left as texts that
//! the file's own checks refuse.

mod native;

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;

use native::{EncryptionConfiguration, NativeDocument, NativeRule, Switch, Untranslatable};
use replicator_core::object::{escape_controls, without_commands};
use replicator_core::rule::Filter;

use crate::diagnostics::Problem;
use crate::settings::parse;
use crate::values;

/// What a replication configuration does not say.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// The bucket that the configuration is of.
    pub bucket: String,
    /// The Region of that bucket and of the queues.
    pub region: Option<String>,
    /// The Region of the destination buckets whose key does not tell it.
    pub destination_region: Option<String>,
    /// The URL of the queue that gets the bucket's events.
    pub queue_url: Option<String>,
    /// The URL of the queue for what can't be done.
    pub dead_letter_url: Option<String>,
    /// When native replication was stopped.
    pub since: Option<String>,
}

/// A replication configuration that can't be translated: which element, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportError(String);

impl Error for ImportError {}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Translates the JSON of `get-bucket-replication` into the text of a configuration file.
pub fn import(json: &str, options: &ImportOptions) -> Result<String, ImportError> {
    let (role, rules) = read_document(json)?;
    let mut translated = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        let at = format!("Rules[{index}]");
        translated.push(
            Translation::of(rule, index)
                .map_err(|(element, why)| ImportError(format!("{at}{element}: {why}")))?,
        );
    }
    let body = render_body(&translated, options);
    Ok(format!("{}\n\n{body}\n", render_head(&role, &body)))
}

fn read_document(json: &str) -> Result<(String, Vec<NativeRule>), ImportError> {
    let reader = &mut serde_json::Deserializer::from_str(json);
    let document: NativeDocument = serde_path_to_error::deserialize(reader).map_err(|error| {
        let (path, error) = (error.path().to_string(), error.into_inner());
        ImportError(format!(
            "{path}: {error}; nothing of a rule is left out without a word, so remove the element or set it to what S3 knows"
        ))
    })?;
    match (document.replication_configuration, document.role, document.rules) {
        (Some(whole), None, None) => Ok((whole.role, whole.rules)),
        (None, Some(role), Some(rules)) => Ok((role, rules)),
        _ => Err(ImportError(
            "neither ReplicationConfiguration nor Role and Rules; give what `aws s3api get-bucket-replication` prints".to_owned(),
        )),
    }
}

/// A rule in our words.
#[derive(Debug)]
struct Translation<'a> {
    rule: &'a NativeRule,
    id: String,
    bucket: &'a str,
    filter: Filter,
    /// What this does otherwise than S3 did.
    differences: Vec<String>,
}

impl<'a> Translation<'a> {
    fn of(rule: &'a NativeRule, index: usize) -> Result<Self, Untranslatable> {
        let filter = match (&rule.filter, &rule.prefix) {
            (Some(filter), None) => filter.selection()?,
            (None, Some(prefix)) => Filter {
                prefix: prefix.clone(),
                ..Filter::default()
            },
            (Some(_), Some(_)) => {
                return Err((
                    ".Prefix",
                    "stands beside a Filter, and S3 takes one of them".to_owned(),
                ));
            }
            (None, None) => {
                return Err((
                    "",
                    "has neither Filter nor Prefix, and S3 takes no such rule".to_owned(),
                ));
            }
        };
        if rule.filter.is_none() && rule.delete_marker_replication.is_some() {
            return Err((
                ".DeleteMarkerReplication",
                "stands beside a Prefix without Filter, and S3 takes it with a Filter alone"
                    .to_owned(),
            ));
        }
        let arn = rule.destination.bucket.as_str();
        let bucket = arn
            .strip_prefix("arn:")
            .and_then(|rest| rest.split_once(":s3:::"));
        let (_, bucket) = bucket.ok_or_else(|| {
            (
                ".Destination.Bucket",
                values::mismatch(arn, "the ARN of a bucket", "arn:aws:s3:::orders-replica"),
            )
        })?;
        let mut translation = Self {
            rule,
            id: rule
                .id
                .clone()
                .unwrap_or_else(|| format!("rule-{}", index + 1)),
            bucket,
            filter,
            differences: Vec::new(),
        };
        translation.differences = translation.list_differences();
        Ok(translation)
    }

    fn replicates_markers(&self) -> bool {
        // The first version of the schema has no element for it:
        // https://docs.aws.amazon.com/AmazonS3/latest/userguide/replication-add-config.html#replication-backward-compat-considerations
        let rule = self.rule;
        rule.filter.is_none() || Switch::is_on(rule.delete_marker_replication.as_ref())
    }

    fn encryption(&self) -> Option<&'a EncryptionConfiguration> {
        self.rule.destination.encryption_configuration.as_ref()
    }

    fn uses_related_key(&self) -> bool {
        let switch = |encryption: &'a EncryptionConfiguration| {
            encryption.use_source_multi_region_key.as_ref()
        };
        Switch::is_on(self.encryption().and_then(switch))
    }

    fn key(&self) -> Option<&'a str> {
        match self.uses_related_key() {
            true => Some("related"),
            false => self.encryption()?.replica_kms_key_id.as_deref(),
        }
    }

    fn list_differences(&self) -> Vec<String> {
        let (rule, destination) = (self.rule, &self.rule.destination);
        let criteria = rule.source_selection_criteria.as_ref();
        let modifications = criteria.and_then(|criteria| criteria.replica_modifications.as_ref());
        let mut differences = Vec::new();
        let mut tell = |holds: bool, what: &str| {
            if holds {
                differences.push(what.to_owned());
            }
        };
        tell(
            rule.filter.is_none(),
            "delete_markers is set: a rule with a Prefix and no Filter replicates the delete markers that users make",
        );
        tell(
            self.replicates_markers(),
            "delete markers of lifecycle rules are replicated too, if the bucket notifies of LifecycleExpiration",
        );
        tell(
            self.filter.needs_tags(),
            "tags are matched whenever they change; S3 matches those that an object has when it is written",
        );
        tell(
            destination.access_control_translation.is_none(),
            "no ACL is copied; S3 copies it where both buckets have ACLs enabled",
        );
        tell(
            self.key().is_some() && !self.uses_related_key(),
            "every replica is encrypted under the key; S3 leaves objects that no KMS key encrypts as they are",
        );
        tell(
            Switch::is_on(modifications),
            "ReplicaModifications has no counterpart: changes of tags, ACLs and locks of the replica do not flow back",
        );
        tell(
            Switch::is_on(rule.existing_object_replication.as_ref()),
            "ExistingObjectReplication has no counterpart: versions from before `since` are not replicated",
        );
        if let Some(minutes) = destination.minutes() {
            differences.push(format!(
                "ReplicationTime and Metrics of {minutes} minutes are an alert on s3_replicator_oldest_pending_seconds > {}",
                minutes.saturating_mul(60)
            ));
        }
        differences
    }

    /// Writes the table of the rule.
    fn render(&self, account: &str, options: &ImportOptions) -> Vec<String> {
        let (rule, destination) = (self.rule, &self.rule.destination);
        let differences = self.differences.iter();
        let mut lines = vec![String::new(), "[[rules]]".to_owned()];
        lines.extend(differences.map(|difference| format!("# differs: {difference}")));
        lines.push(format!("id = {}", quote(&self.id)));
        if !rule.status.is_enabled() {
            lines.push("enabled = false".to_owned());
        }
        if let Some(priority) = rule.priority {
            lines.push(format!("priority = {priority}"));
        }
        let bucket = quote(&options.bucket);
        lines.push(format!(
            "source = {{ account = \"source\", bucket = {bucket} }}"
        ));
        let class = destination.storage_class.as_deref().map(quote);
        let class = class.map_or(String::new(), |class| format!(", storage_class = {class}"));
        let (account, bucket) = (quote(account), quote(self.bucket));
        lines.push(format!(
            "destination = {{ account = {account}, bucket = {bucket}{class} }}"
        ));
        let filter = render_filter(&self.filter);
        if !filter.is_empty() {
            lines.push(format!("filter = {{ {filter} }}"));
        }
        let since = or_placeholder(options.since.as_ref(), "the moment of the switch");
        lines.push(format!("since = {since}"));
        if self.replicates_markers() {
            lines.push("delete_markers = true".to_owned());
        }
        if destination.access_control_translation.is_some() {
            lines.push("acl = \"destination-owner\"".to_owned());
        }
        let criteria = rule.source_selection_criteria.as_ref();
        let kms = criteria.and_then(|criteria| criteria.sse_kms_encrypted_objects.as_ref());
        if Switch::is_on(kms) {
            lines.push("sse_kms_objects = true".to_owned());
        }
        if let Some(key) = self.key().map(quote) {
            lines.push(format!("encryption = {{ mode = \"kms\", key = {key} }}"));
        }
        lines
    }
}

/// Writes the inside of the table.
fn render_filter(filter: &Filter) -> String {
    let mut parts = Vec::new();
    if !filter.prefix.is_empty() {
        parts.push(format!("prefix = {}", quote(&filter.prefix)));
    }
    if !filter.exclude_prefixes.is_empty() {
        parts.push(format!(
            "exclude_prefixes = [{}]",
            quote_all(&filter.exclude_prefixes)
        ));
    }
    if !filter.tags.is_empty() {
        let tags = filter.tags.iter();
        let tags = tags.map(|(key, value)| format!("{} = {}", table_key(key), quote(value)));
        parts.push(format!("tags = {{ {} }}", join(tags)));
    }
    if !filter.exclude_tags.is_empty() {
        let tags = filter.exclude_tags.iter();
        let tags =
            tags.map(|(key, values)| format!("{} = [{}]", table_key(key), quote_all(values)));
        parts.push(format!("exclude_tags = {{ {} }}", join(tags)));
    }
    join(parts.into_iter())
}

fn quote_all<'a>(texts: impl IntoIterator<Item = &'a String>) -> String {
    join(texts.into_iter().map(|text| quote(text)))
}

fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

/// Writes accounts, queue and rules.
fn render_body(rules: &[Translation<'_>], options: &ImportOptions) -> String {
    let buckets: BTreeSet<&str> = rules.iter().map(|rule| rule.bucket).collect();
    let account = |bucket: &str| match buckets.len() {
        1 => "destination".to_owned(),
        _ => format!("destination-{bucket}"),
    };
    let region_of = |region: Option<&String>, bucket| {
        let region = or_placeholder(region, &format!("the Region of {bucket}"));
        format!("region = {region}")
    };
    let source_region = region_of(options.region.as_ref(), options.bucket.as_str());
    let mut lines = vec!["[accounts.source]".to_owned(), source_region];
    for bucket in &buckets {
        let of_bucket = || rules.iter().filter(|rule| rule.bucket == *bucket);
        let region = of_bucket().find_map(|rule| key_region(rule.key()?));
        let region = region.or(options.destination_region.clone());
        lines.push(format!("\n[accounts.{}]", table_key(&account(bucket))));
        lines.push(region_of(region.as_ref(), bucket));
        let owner = of_bucket().find_map(|rule| rule.rule.destination.account.as_ref());
        lines.extend(owner.map(|owner| format!("owner = {}", quote(owner))));
    }
    let queue = or_placeholder(options.queue_url.as_ref(), "the events queue");
    let parked = or_placeholder(options.dead_letter_url.as_ref(), "the dead-letter queue");
    lines.push(format!("\n[[queues]]\nurl = {queue}\naccount = \"source\""));
    lines.push(format!("dead_letter_url = {parked}"));
    for rule in rules {
        lines.extend(rule.render(&account(rule.bucket), options));
    }
    lines.join("\n")
}

/// Writes what comes before, and above all what keeps the rest from being loaded.
fn render_head(role: &str, body: &str) -> String {
    let mut lines =
        vec!["# From a replication configuration of S3, by `s3-replicator import`.".to_owned()];
    if let Err(invalid) = parse(body) {
        lines.push("#\n# To put right before `s3-replicator check` takes this file:".to_owned());
        for problem in invalid.problems() {
            let position = None;
            let problem = Problem {
                position,
                ..problem.clone()
            };
            lines.push(format!("# - {}", escape_controls(&problem.to_string())));
        }
    }
    lines.push(DIFFERENCES.to_owned());
    lines.push(format!(
        "# - the role {} trusts S3 alone: `s3-replicator policies` prints what the daemon's needs",
        quote(role)
    ));
    lines.join("\n")
}

const DIFFERENCES: &str = "#
# What differs for every rule:
# - replicas have version ids and dates of their own; the source's are in their metadata
# - versions from before `since` are not replicated: write the time at which S3's rules were disabled or, if a version
#   was PENDING then, the time at which the oldest of these was created. What S3 replicated after it is written again
# - replicas that other rules of S3 write into the source bucket are replicated on, which S3 does not do
# - objects under customer-provided keys (SSE-C), and changes of ACLs and locks after the write, are not replicated";

/// Returns the Region of a key, which is that of the bucket it encrypts.
fn key_region(arn: &str) -> Option<String> {
    let mut parts = arn.strip_prefix("arn:")?.split(':');
    parts.nth(2).map(str::to_owned)
}

fn or_placeholder(value: Option<&String>, what: &str) -> String {
    value.map_or_else(|| quote(&format!("<{what}>")), |value| quote(value))
}

/// Writes a key, in quotes where it needs them.
fn table_key(text: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    match text.chars().all(is_bare) {
        true => text.to_owned(),
        false => quote(text),
    }
}

/// Writes a text in quotes. What JSON escapes TOML does too, and more has to be.
fn quote(text: &str) -> String {
    without_commands(&serde_json::Value::from(text).to_string()).into_owned()
}
