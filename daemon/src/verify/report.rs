//! What a comparison came to: in what a key differs, why versions are missing as far as that is known,
//! and whether a hint mends it; line by line and in sum, as text and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use replicator_core::compare::{Difference, HistoryDifference};
use replicator_core::failure::{Failure, FailureKind};
use replicator_core::object::{Key, Timestamp, escape_controls};
use replicator_core::plan::{SourceVersion, VersionKind};
use replicator_core::rule::{Replicas, Rule, RuleScope, Takers, VersionScope};
use replicator_core::stamp;
use serde::Serialize;
use time::format_description::well_known::Rfc3339;

use super::keys::RefusedKey;
use super::{Pair, Verifier};
use crate::reconcile::{has_own_key, read_tags};
use crate::s3::accounts::error::Side;
use crate::s3::client::{ResponseHead, S3Request};
use crate::sqs::hints::Hint;

/// What came of a key.
pub(super) enum KeyOutcome {
    Compared(Compared),
    Refused(RefusedKey),
}

impl KeyOutcome {
    pub(super) fn differs(&self) -> bool {
        match self {
            Self::Compared(compared) => compared.differs(),
            Self::Refused(_) => true,
        }
    }

    /// Returns the hint that has the daemons mend it, as far as they can.
    pub(super) fn hint(&self, rule: &Rule) -> Option<Hint> {
        let (key, size_bytes) = match self {
            Self::Compared(compared) if compared.needs_hint() => {
                let sizes = compared.pair.wanted().map(|entry| entry.size_bytes);
                (&compared.pair.key, sizes.max())
            }
            Self::Refused(refused) if refused.is_mendable(rule) => {
                (&refused.key, refused.newest().map(|entry| entry.size_bytes))
            }
            Self::Compared(_) | Self::Refused(_) => return None,
        };
        Some(Hint {
            key: key.clone(),
            size_bytes: size_bytes.unwrap_or_default(),
        })
    }

    pub(super) fn lines(&self, rule: &Rule) -> Vec<Line> {
        match self {
            Self::Compared(compared) => { compared.findings.iter() }
                .map(|(finding, reason)| Line::new(rule, &compared.pair, finding, reason.as_ref()))
                .collect(),
            Self::Refused(refused) => vec![Line::of_refused(rule, refused)],
        }
    }
}

/// What was found of one key.
pub(super) struct Compared {
    pub(super) pair: Pair,
    pub(super) findings: Vec<(HistoryDifference, Option<Explanation>)>,
    /// How many of its versions were compared in all that lists do not tell.
    pub(super) deep: u64,
    /// Why bytes of some were not.
    pub(super) uncompared: Vec<&'static str>,
}

impl Compared {
    fn differs(&self) -> bool {
        let is_skipped = |reason: &Option<_>| matches!(reason, Some(Explanation::Skipped(_)));
        !{ self.findings.iter() }.all(|(_, reason)| is_skipped(reason))
    }

    /// Says whether a hint brings what is missing: all that is newer than what the destination shows,
    /// and its newest state where that is hidden. Nothing is written below what it shows.
    fn needs_hint(&self) -> bool {
        let last = self.pair.shown.last();
        let is_hidden = |(finding, _): &(HistoryDifference, _)| {
            matches!(finding.difference, Difference::Extra | Difference::Foreign)
                && finding.replica.as_ref() == last.map(|entry| &entry.version.id)
        };
        let is_missing = |entry: &SourceVersion| {
            self.findings.iter().any(|(finding, reason)| {
                finding.difference == Difference::Missing
                    && !matches!(reason, Some(Explanation::Skipped(_)))
                    && finding.source.as_ref() == Some(&entry.version)
            })
        };
        let shows_marker = last.is_some_and(|last| last.kind == VersionKind::Marker);
        let mut newest_first = self.pair.wanted().rev();
        // A marker over what was never written is none of its own.
        let top = newest_first
            .find(|entry| is_missing(entry) || entry.kind == VersionKind::Object || shows_marker);
        top.is_some_and(|top| is_missing(top) || self.findings.iter().any(is_hidden))
    }
}

/// What more is to be said of a difference.
pub(super) enum Explanation {
    /// In what they differ.
    Detail(String),
    /// The daemon could not write it yet.
    Parked(String),
    /// The rule does not take it.
    Skipped(&'static str),
}

const PARKED: &str = "parked";
const SKIPPED: &str = "skipped";

const EQUAL: u8 = 0;
const NOTHING_PROVED: u8 = 1;
const DIFFERENT: u8 = 2;

/// Writes a moment as options take it.
pub(super) fn to_rfc3339(moment: Timestamp) -> String {
    moment.format(&Rfc3339).unwrap_or_default()
}

/// One difference.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    /// What differs; `parked` or `skipped` where that explains what is missing.
    difference: String,
    rule: String,
    /// The key at the source, and which version.
    source: String,
    source_version: Option<String>,
    /// The key at the destination, and which version.
    destination: String,
    destination_version: Option<String>,
    /// Why it is parked or skipped, or in what they differ.
    reason: Option<String>,
}

/// What both sides came to.
#[derive(Debug, Default, Serialize)]
pub(super) struct VerifyReport {
    /// Until when versions count.
    as_of: String,
    /// Since when they do.
    since: Option<String>,
    /// How the keys of the source begin.
    pub(super) prefix: String,
    keys: u64,
    versions: u64,
    markers: u64,
    /// Entries that are younger.
    pending: u64,
    differences: BTreeMap<String, u64>,
    /// What is parked, by its reasons.
    parked: BTreeMap<String, u64>,
    skipped: BTreeMap<String, u64>,
    /// Versions that were compared in all that lists do not tell.
    deep: u64,
    /// Of how many of them the bytes were not, by the reasons.
    bytes_not_compared: BTreeMap<String, u64>,
    /// Keys that were given a hint, and keys that differ and that no hint mends, where that was to be
    /// mended.
    repair: Option<(u64, u64)>,
    /// Whether the daemon said of all that is parked.
    knows_parked: bool,
    /// How many parked tasks of the rule the daemon left out of its list.
    parked_unlisted: u64,
}

impl Line {
    pub(super) fn new(
        rule: &Rule,
        pair: &Pair,
        finding: &HistoryDifference,
        explanation: Option<&Explanation>,
    ) -> Self {
        let (difference, reason) = match explanation {
            Some(Explanation::Parked(reason)) => (PARKED, Some(reason.clone())),
            Some(Explanation::Skipped(reason)) => (SKIPPED, Some((*reason).to_owned())),
            Some(Explanation::Detail(how)) => (finding.difference.into(), Some(how.clone())),
            None => (finding.difference.into(), None),
        };
        let source_version = finding
            .source
            .as_ref()
            .map(|version| version.id.to_string());
        Self {
            difference: difference.to_owned(),
            rule: rule.id.clone(),
            source: format!("s3://{}/{}", rule.source.bucket, pair.key),
            source_version,
            destination: format!("s3://{}/{}", rule.destination.bucket, pair.target),
            destination_version: finding.replica.as_ref().map(ToString::to_string),
            reason,
        }
    }

    /// Makes the one line of a key that is not compared. Without a key at the destination all of it
    /// is missing.
    fn of_refused(rule: &Rule, refused: &RefusedKey) -> Self {
        let difference = match refused.is_crowded() {
            true => Difference::Uncompared,
            false => Difference::Missing,
        };
        Self {
            difference: <&str>::from(difference).to_owned(),
            rule: rule.id.clone(),
            source: format!("s3://{}/{}", rule.source.bucket, refused.key),
            source_version: None,
            destination: format!("s3://{}/{}", rule.destination.bucket, refused.target),
            destination_version: None,
            reason: Some(refused.detail.clone()),
        }
    }

    /// Says whether it is no difference: what the rule does not take.
    fn is_skipped(&self) -> bool {
        self.difference == SKIPPED
    }

    /// Writes the difference for a terminal; none where the rule does not take the version.
    pub(super) fn text(&self) -> Option<String> {
        if self.is_skipped() {
            return None;
        }
        let mut text = format!("{:<10} ", self.difference);
        let sides = [
            (&self.source, &self.source_version),
            (&self.destination, &self.destination_version),
        ];
        for (at, (url, version)) in sides.into_iter().enumerate() {
            let separator = if at == 0 { "" } else { " -> " };
            // Writing to a string cannot fail.
            let _infallible = write!(text, "{separator}{}", escape_controls(url));
            if let Some(version) = version {
                let _infallible = write!(text, "?versionId={version}");
            }
        }
        if let Some(reason) = &self.reason {
            let _infallible = write!(text, " ({reason})");
        }
        Some(text)
    }

    /// Writes it as a line of JSON.
    pub(super) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }
}

impl VerifyReport {
    pub(super) fn new(scope: &RuleScope, parked_unlisted: Option<u64>) -> Self {
        Self {
            as_of: to_rfc3339(scope.as_of),
            since: scope.starts.get(&scope.rule).copied().map(to_rfc3339),
            knows_parked: parked_unlisted == Some(0),
            parked_unlisted: parked_unlisted.unwrap_or_default(),
            ..Self::default()
        }
    }

    pub(super) fn count(&mut self, outcome: &KeyOutcome) {
        let KeyOutcome::Compared(compared) = outcome else {
            return;
        };
        let source = &compared.pair.source;
        let wanted = source
            .iter()
            .filter(|(_, scope)| *scope == VersionScope::Wanted);
        let before = self.versions + self.markers;
        for (entry, _) in wanted {
            match entry.kind {
                VersionKind::Object => self.versions += 1,
                VersionKind::Marker => self.markers += 1,
            }
        }
        self.keys += u64::from(self.versions + self.markers > before);
        let pending = source
            .iter()
            .filter(|(_, scope)| *scope == VersionScope::Pending);
        self.pending += pending.count() as u64;
        self.deep += compared.deep;
        for why in &compared.uncompared {
            *self
                .bytes_not_compared
                .entry((*why).to_owned())
                .or_default() += 1;
        }
    }

    pub(super) fn add(&mut self, line: &Line) {
        let (counts, name) = match line.is_skipped() {
            true => {
                self.versions = self.versions.saturating_sub(1);
                (&mut self.skipped, line.reason.clone().unwrap_or_default())
            }
            false => (&mut self.differences, line.difference.clone()),
        };
        *counts.entry(name).or_default() += 1;
        if let Some(reason) = line.reason.as_ref().filter(|_| line.difference == PARKED) {
            *self.parked.entry(reason.clone()).or_default() += 1;
        }
    }

    /// Counts a key that was to be mended, and whether it got a hint, if it differs.
    pub(super) fn count_repair(&mut self, hinted: Option<bool>) {
        let (hints, left) = self.repair.get_or_insert_default();
        match hinted {
            Some(true) => *hints += 1,
            Some(false) => *left += 1,
            None => {}
        }
    }

    /// Returns what the command exits with.
    pub(super) fn exit_code(&self) -> u8 {
        match self.is_equal() {
            true if self.is_empty() => NOTHING_PROVED,
            true => EQUAL,
            false => DIFFERENT,
        }
    }

    fn is_equal(&self) -> bool {
        self.differences.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.versions + self.markers == 0
    }

    /// Says why nothing was compared.
    fn emptiness(&self) -> String {
        let since = self.since.iter().map(|since| format!(" since {since}"));
        let prefix = Some(&self.prefix).filter(|prefix| !prefix.is_empty());
        let prefix = prefix.map(|prefix| format!(" at keys that begin with {prefix:?}"));
        let scope: String = since.chain(prefix).collect();
        format!(
            "as of {}, nothing was compared, which proves nothing: the source shows no version{scope} that the rule takes",
            self.as_of
        )
    }

    /// Writes the sum for a terminal.
    pub(super) fn text(&self) -> String {
        let counts = |counts: &BTreeMap<String, u64>| {
            let each = counts.iter().map(|(name, count)| format!("{count} {name}"));
            each.collect::<Vec<String>>().join(", ")
        };
        let (versions, markers, keys) = (self.versions, self.markers, self.keys);
        let scope = format!("{versions} versions and {markers} delete markers of {keys} keys");
        let mut text = match self.is_equal() {
            true if self.is_empty() => self.emptiness(),
            true => format!("as of {}, all {scope} are present and equal", self.as_of),
            false => format!(
                "as of {}, {scope} were compared, and this differs: {}",
                self.as_of,
                counts(&self.differences)
            ),
        };
        let mut add = |line: String| text.push_str(&format!("\n{line}"));
        if self.pending > 0 {
            add(format!("{} pending: younger, and not judged", self.pending));
        }
        for (reason, count) in &self.parked {
            add(format!("{count} parked because of {reason}"));
        }
        if self.deep > 0 {
            add(format!(
                "{} versions were compared with metadata, tags, lock, encryption and checksums",
                self.deep
            ));
        }
        for (why, count) in &self.bytes_not_compared {
            add(format!("of {count} the bytes were not compared: {why}"));
        }
        if let Some((hints, left)) = self.repair {
            add(format!(
                "{hints} keys are looked at by the daemons now; compare again after that"
            ));
            if left > 0 {
                add(format!(
                    "{left} keys differ in what that does not mend: docs/verify.md says what does"
                ));
            }
        }
        if !self.skipped.is_empty() {
            add(format!(
                "not replicated by the rule: {}",
                counts(&self.skipped)
            ));
        }
        match self.parked_unlisted {
            _ if self.is_equal() || self.knows_parked => {}
            0 => add("no daemon answers here, so what is parked counts as missing".to_owned()),
            unlisted => add(format!(
                "the daemon lists all but {unlisted} of the parked tasks; what is parked of these counts as missing"
            )),
        }
        text
    }

    /// Writes the sum as a line of JSON.
    pub(super) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }
}

impl Verifier<'_> {
    /// Says why the rule does not take an object, if it does not.
    pub(super) async fn why_not_eligible(
        &self,
        key: &Key,
        entry: &SourceVersion,
    ) -> Result<Option<&'static str>, Failure> {
        let (id, size_bytes) = (&entry.version.id, entry.size_bytes);
        let head = match self.read_source(key, id).await {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(Some("the source has lost it since it was listed")),
            Err(failure) if matches!(failure.kind, FailureKind::Ineligible(_)) => {
                return Ok(Some("SrcObjectNotEligible"));
            }
            Err(failure) => return Err(failure),
        };
        let rule = self.rule;
        let is_kms = has_own_key(&head);
        let is_replica = head.user(stamp::NAME).is_some() && rule.replicas == Replicas::Skip;
        let (mut tags_differ, mut is_others) = (false, false);
        let find = |tags| Takers::find(self.scope.candidates(key), size_bytes, tags);
        if find(None).need_tags {
            let call = S3Request::tags(Side::Source, &rule.source.bucket, key);
            let tags = read_tags(self.source, call.version(id.as_str())).await?;
            let takers = find(Some(&tags));
            tags_differ = takers.refusals.iter().any(|(one, _)| one.id == rule.id);
            is_others = !tags_differ && takers.rules.iter().all(|one| one.id != rule.id);
        }
        let reasons = [
            (is_archived(&head), "SrcObjectNotEligible"),
            (
                is_kms && !rule.sse_kms_objects,
                "sse_kms_objects is not set",
            ),
            (is_replica, "it is a replica itself"),
            (is_others, "another rule takes it"),
            (tags_differ, "its tags do not match"),
        ];
        Ok(reasons
            .iter()
            .find(|(holds, _)| *holds)
            .map(|(_, why)| *why))
    }
}

/// Says whether an object cannot be read before it is restored.
pub(super) fn is_archived(head: &ResponseHead) -> bool {
    let class = head.header("x-amz-storage-class");
    let is_restored = head
        .header("x-amz-restore")
        .is_some_and(|restore| restore.contains("ongoing-request=\"false\""));
    let is_archived = matches!(class, Some("GLACIER" | "DEEP_ARCHIVE"));
    // https://docs.aws.amazon.com/AmazonS3/latest/userguide/intelligent-tiering-overview.html
    let is_tiered = head.header("x-amz-archive-status").is_some();
    (is_archived || is_tiered) && !is_restored
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_daemon_does_not_list_is_not_known_to_be_parked() {
        let scope = RuleScope {
            rule: "orders".to_owned(),
            rules: Vec::new(),
            starts: BTreeMap::new(),
            as_of: Timestamp::UNIX_EPOCH,
        };
        let said = |unlisted: Option<u64>| {
            let mut report = VerifyReport::new(&scope, unlisted);
            report.differences.insert("missing".to_owned(), 1);
            let text = report.text();
            (report.knows_parked, text.lines().nth(1).map(str::to_owned))
        };
        assert_eq!(said(Some(0)), (true, None));
        let (knows, words) = said(Some(7));
        assert!(!knows && words.unwrap().contains("all but 7 of the parked tasks"));
        let (knows, words) = said(None);
        assert!(!knows && words.unwrap().starts_with("no daemon answers here"));
    }

    #[test]
    fn what_lies_in_an_archive_tier_is_archived_until_it_is_restored() {
        let is = |headers: &[(&str, &str)]| is_archived(&ResponseHead::for_tests(headers));
        let (class, status) = ("x-amz-storage-class", "x-amz-archive-status");
        assert!(is(&[(class, "DEEP_ARCHIVE")]));
        assert!(is(&[
            (class, "INTELLIGENT_TIERING"),
            (status, "ARCHIVE_ACCESS")
        ]));
        assert!(!is(&[(class, "INTELLIGENT_TIERING")]) && !is(&[]));
        let restore = |ongoing: &str| format!("ongoing-request=\"{ongoing}\"");
        assert!(is(&[
            (class, "GLACIER"),
            ("x-amz-restore", &restore("true"))
        ]));
        assert!(!is(&[
            (class, "GLACIER"),
            ("x-amz-restore", &restore("false"))
        ]));
    }
}
