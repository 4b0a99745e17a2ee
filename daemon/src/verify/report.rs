//! What a comparison came to, line by line and in sum, as text and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use replicator_core::compare::HistoryDifference;
use replicator_core::object::{Timestamp, escape_controls};
use replicator_core::plan::VersionKind;
use replicator_core::rule::{Rule, VersionScope};
use serde::Serialize;
use time::format_description::well_known::Rfc3339;

use super::{Compared, Explanation, Pair};

const PARKED: &str = "parked";
const SKIPPED: &str = "skipped";

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
#[derive(Debug, Serialize)]
pub(super) struct VerifyReport {
    /// Until when versions count.
    as_of: String,
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
    /// Whether the daemon was asked what is parked.
    knows_parked: bool,
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
    pub(super) fn new(as_of: Timestamp, knows_parked: bool) -> Self {
        Self {
            as_of: as_of.format(&Rfc3339).unwrap_or_default(),
            keys: 0,
            versions: 0,
            markers: 0,
            pending: 0,
            differences: BTreeMap::new(),
            parked: BTreeMap::new(),
            skipped: BTreeMap::new(),
            deep: 0,
            bytes_not_compared: BTreeMap::new(),
            repair: None,
            knows_parked,
        }
    }

    pub(super) fn count(&mut self, compared: &Compared) {
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

    /// Says whether nothing differs.
    pub(super) fn is_equal(&self) -> bool {
        self.differences.is_empty()
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
        if !self.is_equal() && !self.knows_parked {
            add("no daemon answers here, so what is parked counts as missing".to_owned());
        }
        text
    }

    /// Writes the sum as a line of JSON.
    pub(super) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }
}
