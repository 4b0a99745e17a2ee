//! What a check finds: what is wrong, where, why it matters and what puts it right; and how that is
//! printed.

use std::fmt::{self, Write};

use replicator_config::policies::DocumentKind;
use replicator_config::{Account, Service};
use replicator_core::rule::Rule;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use strum::{Display, IntoStaticStr};
use tracing::warn;
use utoipa::ToSchema;

use crate::s3::accounts::error::Refusal;

/// One thing that is wrong with a set-up, or may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at; the name is stable.
    pub check: CheckName,
    /// The rule that it is about, if it is about one.
    pub rule: Option<String>,
    /// The bucket, queue, role, key or line of the file.
    #[serde(rename = "where")]
    pub place: String,
    /// What is wrong.
    pub what: String,
    /// Why that matters.
    pub why: String,
    /// What puts it right: all of it together.
    pub fix: Vec<Fix>,
}

/// How bad a finding is.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    Display,
    IntoStaticStr,
    ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Severity {
    /// Events are lost, or objects are not replicated, until it is put right.
    Problem,
    /// A service could not be asked, so it is not known.
    Unasked,
    /// It works, and is perhaps not what was meant.
    Warning,
}

/// What is looked at, in the order data flows.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    Display,
    IntoStaticStr,
    ToSchema,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum CheckName {
    /// The Region of an account is one that a partition of AWS has.
    RegionKnown,
    /// The token of the HTTP API can be read, and is one.
    ApiToken,
    /// A rule is enabled.
    RuleEnabled,
    /// A prefix begins as keys do.
    PrefixSlash,
    /// A prefix has no wildcard, which it would be taken for itself.
    PrefixWildcard,
    /// A rule's versions have begun to count.
    SinceFuture,
    /// A KMS key is in the Region of its bucket.
    KeyRegion,
    /// There are credentials, and their service accepts them.
    Credentials,
    /// The role can be assumed.
    AssumeRole,
    /// The clocks of the endpoint and of this host agree.
    ClockSkew,
    /// A queue is there.
    QueueExists,
    /// A queue's attributes can be read.
    QueueAttributes,
    /// A queue is of the type that its purpose needs.
    QueueType,
    /// The daemon may receive, delete and return messages.
    QueueReceive,
    /// The daemon may send messages.
    QueueSend,
    /// What sends the events may send them to the queue.
    QueuePolicy,
    /// What sends the events may use the key that the queue is encrypted under.
    QueueKey,
    /// A queue keeps messages as long as it can.
    QueueRetention,
    /// SQS moves no message away too early.
    QueueRedrive,
    /// A work queue has high throughput.
    QueueThroughput,
    /// Some rule's bucket sends its events to the queue.
    QueueUsed,
    /// A bucket is there.
    BucketExists,
    /// A bucket can be asked about itself.
    BucketAttributes,
    /// A bucket is in the Region of its account.
    BucketRegion,
    /// The bucket's notifications can be read.
    NotificationAttributes,
    /// The bucket sends its events to a queue of the file.
    NotificationTarget,
    /// The bucket sends every type of event that the rule needs.
    NotificationEvents,
    /// The bucket sends the events of every key that the rule is about.
    NotificationFilter,
    /// The topic between bucket and queue passes events on.
    NotificationTopic,
    /// EventBridge passes events on.
    NotificationEventBridge,
    /// The source bucket keeps versions.
    SourceVersioning,
    /// The source's versions can be listed.
    SourceList,
    /// There is an object that the rule is about.
    SourceObjects,
    /// The source's objects can be read by version.
    SourceRead,
    /// The source's tags can be read.
    SourceTags,
    /// The source's retention and legal hold can be read.
    SourceLock,
    /// The source's KMS keys can be used.
    SourceKey,
    /// The destination bucket keeps versions.
    DestinationVersioning,
    /// The destination's KMS keys can be used.
    DestinationKey,
    /// The destination can hold the source's Object Lock.
    ObjectLock,
    /// The destination's versions can be listed, and absent keys told from denied ones.
    DestinationList,
    /// The destination's replicas can be read.
    DestinationRead,
    /// The destination's uploads can be listed.
    DestinationUploads,
    /// The destination can be written.
    DestinationWrite,
    /// The destination honours conditions on writes.
    ConditionalWrites,
    /// Delete markers can be written.
    DestinationDelete,
    /// Versions can be removed.
    DestinationDeleteVersion,
    /// Tags can be written after the object.
    DestinationTags,
    /// Uploads in parts can be begun and ended.
    DestinationMultipart,
}

/// What puts a finding right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Fix {
    /// A statement to add to a policy.
    Statement {
        /// The policy.
        document: PolicyDocument,
        /// The statement.
        statement: Value,
    },
    /// A command to run with the credentials of an administrator.
    Command {
        /// Of the AWS CLI.
        command: String,
    },
    /// A change of the configuration file.
    Config {
        /// The line that has the key, or the table that lacks it.
        line: Option<usize>,
        /// The path of the key.
        key: String,
        /// What it is to be, as TOML.
        value: String,
    },
    /// What no text can be pasted for.
    Advice {
        /// What to do.
        text: String,
    },
}

/// A policy document, as `s3-replicator policies` names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyDocument {
    /// Its kind.
    #[schema(value_type = String)]
    pub kind: DocumentKind,
    /// The ARN of the role, user, bucket, access point, queue or key.
    pub attached_to: String,
}

impl fmt::Display for PolicyDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.kind, self.attached_to)
    }
}

impl Fix {
    /// Names what is to be done, as text does that is all words.
    pub(crate) fn advice(text: impl Into<String>) -> Self {
        Self::Advice { text: text.into() }
    }

    pub(crate) fn command(command: impl Into<String>) -> Self {
        let command = command.into();
        Self::Command { command }
    }

    pub(crate) fn statement(
        kind: DocumentKind,
        attached_to: impl Into<String>,
        statement: Value,
    ) -> Self {
        let attached_to = attached_to.into();
        Self::Statement {
            document: PolicyDocument { kind, attached_to },
            statement,
        }
    }
}

impl Fix {
    /// Returns the statement, if it is one.
    pub(crate) fn into_statement(self) -> Option<Value> {
        match self {
            Self::Statement { statement, .. } => Some(statement),
            Self::Command { .. } | Self::Config { .. } | Self::Advice { .. } => None,
        }
    }
}

impl Finding {
    pub(crate) fn problem(
        check: CheckName,
        place: impl Into<String>,
        what: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Problem,
            check,
            rule: None,
            place: place.into(),
            what: what.into(),
            why: why.into(),
            fix: Vec::new(),
        }
    }

    pub(crate) fn into_warning(self) -> Self {
        let severity = Severity::Warning;
        Self { severity, ..self }
    }

    pub(crate) fn into_unasked(self) -> Self {
        let severity = Severity::Unasked;
        Self { severity, ..self }
    }

    /// Reports a question without an answer.
    pub(crate) fn unknown(
        check: CheckName,
        place: impl Into<String>,
        what: impl Into<String>,
    ) -> Self {
        let why = "whether it is as it has to be is not known";
        let fix = "ask again; if it stays so, look at the endpoint, and at proxies before it";
        let found = Self::problem(check, place, what, why).into_unasked();
        found.fixed_by([Fix::advice(fix)])
    }

    /// Weighs it by the refusal that it was made of: one that is no definite answer leaves open
    /// whether anything is wrong.
    pub(crate) fn weighed_by(self, refusal: &Refusal) -> Self {
        match refusal.leaves_open() {
            true => Self::unknown(self.check, self.place, self.what),
            false => self,
        }
    }

    pub(crate) fn of_rule(self, rule: &Rule) -> Self {
        let rule = Some(rule.id.clone());
        Self { rule, ..self }
    }

    pub(crate) fn fixed_by(mut self, fix: impl IntoIterator<Item = Fix>) -> Self {
        self.fix.extend(fix);
        self
    }

    /// Returns the rule, check and severity, as metrics have them.
    pub(crate) fn labels(&self) -> [&str; 3] {
        let rule = self.rule.as_deref().unwrap_or_default();
        [rule, self.check.into(), self.severity.into()]
    }

    /// Logs it, for a daemon that goes on.
    pub(crate) fn log(&self) {
        let rule = self.rule.as_deref().unwrap_or_default();
        let (check, severity): (&str, &str) = (self.check.into(), self.severity.into());
        let (place, detail) = (&self.place, &self.what);
        warn!(
            rule,
            check, severity, place, detail, "the set-up may not work, see `s3-replicator check`"
        );
    }

    /// Says in one line what is wrong, for tables.
    pub(crate) fn headline(&self) -> String {
        format!("{}: {}: {}", self.check, self.place, self.what)
    }
}

/// Adds a field to a JSON object.
pub(super) fn with_field(mut object: Value, name: &str, value: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(name.to_owned(), value);
    }
    object
}

/// What was looked at together: one account, queue or rule.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Section {
    /// What it is about.
    pub title: String,
    /// What was asked and is as it should be, a line each.
    pub fine: Vec<String>,
    /// What was not asked, and why.
    pub skipped: Vec<String>,
    /// What is not as it should be.
    pub findings: Vec<Finding>,
}

impl Section {
    pub(crate) fn new(title: impl Into<String>) -> Self {
        let title = title.into();
        Self {
            title,
            ..Self::default()
        }
    }

    pub(crate) fn fine(&mut self, line: impl Into<String>) {
        self.fine.push(line.into());
    }

    pub(crate) fn skip(&mut self, why: impl Into<String>) {
        self.skipped.push(why.into());
    }

    /// Says that all of it is about one rule.
    pub(crate) fn of_rule(mut self, rule: &Rule) -> Self {
        let findings = self.findings.into_iter();
        self.findings = findings.map(|finding| finding.of_rule(rule)).collect();
        self
    }

    pub(crate) fn add(&mut self, findings: impl IntoIterator<Item = Finding>) {
        self.findings.extend(findings);
    }
}

/// What a check found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CheckReport {
    pub(super) sections: Vec<Section>,
}

impl CheckReport {
    /// Lists what is not as it should be.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.sections.iter().flat_map(|section| &section.findings)
    }

    /// Returns what the command exits with: 1 where there is a problem, 2 where there is none that
    /// is known and a service could not be asked.
    pub fn exit_code(&self) -> u8 {
        let has = |severity| self.findings().any(|finding| finding.severity == severity);
        if has(Severity::Problem) {
            1
        } else if has(Severity::Unasked) {
            2
        } else {
            0
        }
    }

    /// Writes it for a terminal.
    pub fn text(&self) -> String {
        let count = |severity| {
            let of = |finding: &&Finding| finding.severity == severity;
            self.findings().filter(of).count()
        };
        format!(
            "{}{} problems, {} warnings, {} questions without an answer\n",
            text(&self.sections),
            count(Severity::Problem),
            count(Severity::Warning),
            count(Severity::Unasked),
        )
    }

    /// Writes it as JSON.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }
}

/// The columns of a terminal that is not wide.
const COLUMNS: usize = 100;

fn text(sections: &[Section]) -> String {
    let mut text = String::new();
    for section in sections {
        // Writing to a string cannot fail.
        let _infallible = write_section(&mut text, section);
    }
    text
}

fn write_section(text: &mut String, section: &Section) -> fmt::Result {
    writeln!(text, "{}", section.title)?;
    for line in &section.fine {
        write_wrapped(text, "  ok       ", line)?;
    }
    for why in &section.skipped {
        write_wrapped(text, "  -        not asked: ", why)?;
    }
    let mut findings: Vec<_> = section.findings.iter().collect();
    findings.sort_by_key(|finding| finding.severity);
    for finding in findings {
        let head = format!("{}: {}", finding.check, finding.what);
        write_wrapped(text, &format!("  {:<9}", finding.severity), &head)?;
        write_wrapped(text, "           where  ", &finding.place)?;
        write_wrapped(text, "           why    ", &finding.why)?;
        for fix in &finding.fix {
            write_fix(text, fix)?;
        }
    }
    writeln!(text)
}

/// What is to be pasted stands alone in its lines, and none of it is wrapped.
fn write_fix(text: &mut String, fix: &Fix) -> fmt::Result {
    let lead = "           fix    ";
    match fix {
        Fix::Advice { text: advice } => write_wrapped(text, lead, advice),
        Fix::Config { line, key, value } => {
            let place = line.map_or_else(String::new, |line| format!("line {line}: "));
            writeln!(text, "{lead}{place}set {key} to\n{value}")
        }
        Fix::Command { command } => writeln!(text, "{lead}run\n{command}"),
        Fix::Statement {
            document,
            statement,
        } => {
            write_wrapped(text, lead, &format!("add to the {document}"))?;
            writeln!(text, "{statement:#}")
        }
    }
}

/// Breaks a text between words, with each line but the first indented as the lead is long.
fn write_wrapped(text: &mut String, lead: &str, words: &str) -> fmt::Result {
    let indent = lead.chars().count();
    let mut line = lead.to_owned();
    let mut is_empty = true;
    for word in words.split_whitespace() {
        let width = line.chars().count() + word.chars().count() + usize::from(!is_empty);
        if width > COLUMNS && !is_empty {
            writeln!(text, "{}", line.trim_end())?;
            line = " ".repeat(indent);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    writeln!(text, "{}", line.trim_end())
}

/// Writes the options of the AWS CLI that reach an account's service as the daemon does.
pub(super) fn cli_options(account: &Account, service: Service) -> String {
    let mut options = format!(" --region {}", account.region);
    if let Some(endpoint) = account.endpoint_of(service) {
        options.push_str(" --endpoint-url ");
        options.push_str(endpoint);
    }
    options
}

/// Quotes a word for a shell.
pub(super) fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_wrapped_and_what_is_to_be_pasted_is_not() {
        let mut section = Section::new("queue orders-events");
        section.fine("exists");
        let command = "aws ".repeat(60);
        section.add([Finding::problem(
            CheckName::QueuePolicy,
            "arn:aws:sqs:eu-west-1:111111111111:orders-events",
            "word ".repeat(40),
            "why",
        )
        .fixed_by([Fix::command(command.clone())])]);
        let text = text(&[section]);
        assert!(text.contains("  ok       exists\n"), "{text}");
        assert!(text.contains("  problem  queue-policy: word"), "{text}");
        assert!(text.contains(&format!("\n{command}\n")), "{text}");
        let long = |line: &&str| line.chars().count() > COLUMNS && !line.starts_with("aws ");
        assert_eq!(text.lines().find(long), None);
    }

    #[test]
    fn a_finding_is_the_same_after_a_way_through_json() {
        let statement = serde_json::json!({"Effect": "Allow"});
        let finding = Finding::problem(CheckName::QueuePolicy, "orders", "no", "why").fixed_by([
            Fix::statement(DocumentKind::QueuePolicy, "orders", statement),
            Fix::Config {
                line: Some(3),
                key: "rules[0].since".to_owned(),
                value: "\"x\"".to_owned(),
            },
        ]);
        let json = serde_json::to_value(&finding).unwrap();
        assert_eq!(json["check"], "queue-policy");
        assert_eq!(json["severity"], "problem");
        assert_eq!(json["where"], "orders");
        assert_eq!(json["fix"][0]["document"]["kind"], "queue-policy");
        assert_eq!(serde_json::from_value::<Finding>(json).unwrap(), finding);
    }

    #[test]
    fn what_is_pasted_into_a_shell_stays_one_word() {
        assert_eq!(shell_quoted("it's"), r"'it'\''s'");
    }
}
