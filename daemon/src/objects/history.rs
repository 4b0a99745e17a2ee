//! What became of each version of one key, from what both sides list and what is on record: the
//! decisions alone, without a request; and how that is written for a terminal.

use std::collections::HashSet;
use std::fmt::{self, Write as _};

use replicator_core::compare::{Identity, KeyHistories, ShownEntry};
use replicator_core::failure::Reason;
use replicator_core::object::{Timestamp, escape_controls};
use replicator_core::plan::{SourceVersion, VersionKind, VersionRef};
use replicator_core::rule::{History, Mismatch, Rule, Takers, VersionScope};
use replicator_core::stamp::{self, CLOCKS_APART_MAX};
use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

use crate::ledger::KeyRecords;
use crate::ledger::records::{ParkedTask, Replica, ReplicaState};
use crate::objects::{KeyReplication, ObjectStatus, RuleRefusal};

/// What became of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct VersionStatus {
    /// Its id at the source; absent where the source has lost it and its replica does not say it.
    pub(crate) version_id: Option<String>,
    /// Whether it is a delete marker.
    pub(crate) is_delete_marker: bool,
    /// What became of it.
    pub(crate) status: ReplicationStatus,
    /// The id of its replica.
    pub(crate) replica_version_id: Option<String>,
    /// Since when that is so: when the replica was written, or the task was parked, or else when
    /// the version was made.
    #[schema(format = DateTime)]
    pub(crate) since: Option<String>,
    /// Why it has no replica: a reason code, or what the rule lacks.
    pub(crate) reason: Option<String>,
    /// The same in a sentence, or in the service's own words.
    pub(crate) detail: Option<String>,
    /// What puts it right.
    pub(crate) remedy: Option<String>,
}

/// The words of native replication, one for what no rule takes, and one for what was not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, strum::Display, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
#[strum(serialize_all = "UPPERCASE")]
pub(crate) enum ReplicationStatus {
    /// It has no replica yet.
    Pending,
    /// It has a replica, or needs none beside that of another one.
    Completed,
    /// It is parked.
    Failed,
    /// It gets no replica.
    Skipped,
    /// It was not looked at, or its replica may be among what was not.
    Unknown,
}

/// One key at both ends, oldest first, and what is on record of it.
pub(super) struct VersionedKey<'a> {
    pub(super) rules: &'a [&'a Rule],
    /// Since when versions are in scope, if that is known.
    pub(super) start: Option<Timestamp>,
    pub(super) source: Vec<SourceVersion>,
    /// The newest entries of the destination.
    pub(super) shown: Vec<ShownEntry>,
    /// Its older ones, of which it is not known what they replicate.
    pub(super) unread: Vec<SourceVersion>,
    pub(super) records: KeyRecords,
}

/// What is known of what lies below a version.
struct VersionsBelow<'a> {
    /// What became of those that were judged, oldest first.
    statuses: &'a [VersionStatus],
    /// Whether there are older ones.
    has_more: bool,
    /// When the newest entry of the destination was written that was not looked at.
    unread_until: Option<Timestamp>,
}

impl VersionsBelow<'_> {
    /// Says whether the replica of a version may be among what was not looked at: none is older than
    /// its original.
    fn may_hold_replica(&self, entry: &SourceVersion) -> bool {
        let made = entry.version.last_modified;
        let unread_until = self.unread_until;
        unread_until.is_some_and(|until| made - until <= CLOCKS_APART_MAX)
    }

    /// Says whether a delete marker above them hides a replica, if that is known.
    fn hides_anything(&self) -> Option<bool> {
        let mut newest_first = self.statuses.iter().rev();
        match newest_first.find(|one| one.status != ReplicationStatus::Skipped) {
            Some(one) if one.status == ReplicationStatus::Unknown => None,
            Some(one) => Some(!one.is_delete_marker || one.status != ReplicationStatus::Completed),
            None => (!self.has_more).then_some(false),
        }
    }
}

impl VersionedKey<'_> {
    /// Says what became of so many versions at most, the newest first, and which objects are no
    /// replicas.
    pub(super) fn statuses(&self, versions_max: usize) -> (Vec<VersionStatus>, Vec<String>) {
        let wanted = |entry: &SourceVersion| (entry.clone(), VersionScope::Wanted);
        let source: Vec<_> = self.source.iter().map(wanted).collect();
        let histories = KeyHistories {
            source: &source,
            shown: &self.shown,
        };
        let (replicas, identities) = histories.pair_entries();
        let mut statuses = self.gone(&identities);
        let gone = statuses.len();
        let omitted = self.source.len().saturating_sub(versions_max);
        let unread = self.unread.iter().map(|entry| entry.version.last_modified);
        let unread_until = unread.max();
        let entries = self.source.iter().zip(&replicas).enumerate();
        for (at, (entry, replica)) in entries.skip(omitted) {
            let shown = replica.and_then(|at| self.shown.get(at));
            let is_newest = at + 1 == self.source.len();
            let below = VersionsBelow {
                statuses: statuses.get(gone..).unwrap_or_default(),
                has_more: omitted > 0,
                unread_until,
            };
            let judged = self.judge((entry, is_newest), shown, &below);
            statuses.push(judged);
        }
        statuses.reverse();
        let unmanaged = self.shown_as(&identities, Identity::Foreign);
        let id = |shown: &ShownEntry| shown.entry.version.id.to_string();
        (statuses, unmanaged.map(id).collect())
    }

    /// Tells of a version, by its id at either side, that is listed and was not judged.
    pub(super) fn unjudged(&self, id: &str) -> Option<VersionStatus> {
        let has_id = |entry: &&SourceVersion| entry.version.id.as_str() == id;
        let original = self.source.iter().find(has_id);
        let is_replica = original.is_none();
        let shown = self.shown.iter().map(|shown| &shown.entry);
        let entry = original.or_else(|| self.unread.iter().chain(shown).find(has_id))?;
        let status = VersionStatus::new(&entry.version, entry.kind);
        Some(match is_replica {
            false => status.unknown("it is older than the versions that are looked at"),
            true => VersionStatus {
                version_id: None,
                replica_version_id: Some(id.to_owned()),
                ..status.unknown(
                    "nothing is told of it: it is old, or not the newest replica of its original",
                )
            },
        })
    }

    fn shown_as(
        &self,
        identities: &[Identity],
        wanted: Identity,
    ) -> impl Iterator<Item = &ShownEntry> {
        let entries = self.shown.iter().zip(identities);
        entries.filter_map(move |(shown, identity)| (*identity == wanted).then_some(shown))
    }

    /// Lists what the source has lost: its replicas, and what was lost before it was read.
    fn gone(&self, identities: &[Identity]) -> Vec<VersionStatus> {
        let listed = self.source.iter().map(|entry| &entry.version);
        let listed: HashSet<&VersionRef> = listed.collect();
        let missing = |replica: &&Replica| {
            replica.state == ReplicaState::SourceMissing && !listed.contains(&replica.source)
        };
        let missing = self.records.replicas.iter().filter(missing).map(|replica| {
            VersionStatus::new(&replica.source, replica.kind)
                .with_reason(ReplicationStatus::Skipped, Reason::SrcVersionNotFound)
        });
        let lost = self.shown_as(identities, Identity::Lost);
        let lost = lost.filter_map(|shown| {
            let version = &shown.claim.as_ref()?.version;
            let detail = "the source has no such version any more".to_owned();
            Some(VersionStatus {
                detail: Some(detail),
                ..VersionStatus::new(version, VersionKind::Object).replicated_by(shown)
            })
        });
        missing.chain(lost).collect()
    }

    /// Says what became of a version, by what became of those below it.
    fn judge(
        &self,
        (entry, is_newest): (&SourceVersion, bool),
        shown: Option<&ShownEntry>,
        below: &VersionsBelow<'_>,
    ) -> VersionStatus {
        let status = VersionStatus::new(&entry.version, entry.kind);
        if let Some(shown) = shown {
            return status.replicated_by(shown);
        }
        let may_be_unread = below.may_hold_replica(entry);
        let id = &entry.version.id;
        let is_about = |task: &&ParkedTask| match &task.version {
            Some(of) => of == id,
            None => !may_be_unread && self.refusal(entry).is_none(),
        };
        if let Some(task) = self.records.parked.iter().find(is_about) {
            return VersionStatus {
                since: task.since.format(&Rfc3339).ok(),
                detail: Some(task.detail.clone()),
                ..status.with_reason(ReplicationStatus::Failed, task.reason)
            };
        }
        if may_be_unread {
            return status.unknown("its replica may be among what was not looked at");
        }
        if let Some(cause) = self.refusal(entry) {
            return status.refused(cause);
        }
        let is_of = |replica: &&Replica| replica.source == entry.version;
        if let Some(record) = self.records.replicas.iter().find(is_of) {
            return status.recorded(record);
        }
        match below.hides_anything() {
            _ if entry.kind == VersionKind::Object => {}
            Some(true) => {}
            Some(false) => {
                return VersionStatus {
                    status: ReplicationStatus::Completed,
                    ..status
                };
            }
            None => return status.unknown("what it hides was not looked at"),
        }
        let is_latest_only = self
            .rules
            .iter()
            .any(|rule| rule.history == History::Latest);
        if is_latest_only && !is_newest {
            let detail = "the rule replicates the newest version alone".to_owned();
            return VersionStatus {
                status: ReplicationStatus::Skipped,
                detail: Some(detail),
                ..status
            };
        }
        let mut older = below.statuses.iter();
        let held_back = older.find(|one| one.status == ReplicationStatus::Failed);
        let held_back = held_back.filter(|_| !is_latest_only);
        let detail = held_back.and_then(|older| {
            let id = older.version_id.as_deref()?;
            Some(format!("waits for the older version {id}, which is parked"))
        });
        VersionStatus { detail, ..status }
    }

    /// Says why no rule takes a version, as far as a list tells.
    fn refusal(&self, entry: &SourceVersion) -> Option<Mismatch> {
        let is_older = |start: Timestamp| entry.version.last_modified < start.truncate_to_second();
        if self.start.is_some_and(is_older) {
            return Some(Mismatch::Since);
        }
        let mut rules = self.rules.iter().copied();
        match entry.kind {
            VersionKind::Marker => {
                let admits = rules.next().is_some_and(Rule::admits_marker);
                (!admits).then_some(Mismatch::DeleteMarker)
            }
            VersionKind::Object => {
                let takers = Takers::find(rules, entry.size_bytes, None);
                let (_, cause) = takers.refusals.first()?;
                takers.rules.is_empty().then_some(*cause)
            }
        }
    }
}

impl ObjectStatus {
    /// Writes it for a terminal.
    pub(crate) fn write_text(&self, text: &mut String) -> fmt::Result {
        for RuleRefusal { rule, detail, .. } in &self.refusals {
            writeln!(text, "rule {rule} does not take it: {detail}")?;
        }
        for key in &self.keys {
            key.write_lines(text)?;
        }
        Ok(())
    }
}

impl KeyReplication {
    fn write_lines(&self, text: &mut String) -> fmt::Result {
        let [source, destination] =
            [&self.source, &self.destination].map(|url| escape_controls(url));
        writeln!(text, "{source} -> {destination} (rule {})", self.rule)?;
        writeln!(
            text,
            "{:<10} {:<34} {:<22} REPLICA",
            "STATUS", "VERSION", "SINCE"
        )?;
        for version in &self.versions {
            version.write_lines(text)?;
        }
        for id in &self.unmanaged {
            writeln!(text, "no replica: version {id} of the destination")?;
        }
        if self.omitted > 0 {
            let omitted = self.omitted;
            writeln!(
                text,
                "and {omitted} older versions, of which nothing is told"
            )?;
        }
        if self.unread > 0 {
            let unread = self.unread;
            writeln!(
                text,
                "not looked at: {unread} older versions of the destination"
            )?;
        }
        Ok(())
    }
}

impl VersionStatus {
    /// Returns that of a version of which nothing more is known.
    fn new(version: &VersionRef, kind: VersionKind) -> Self {
        // A compact stamp has a digest in place of the id.
        let id = version.id.as_str();
        Self {
            version_id: (!stamp::is_digest_id(id)).then(|| id.to_owned()),
            is_delete_marker: kind == VersionKind::Marker,
            status: ReplicationStatus::Pending,
            replica_version_id: None,
            since: version.last_modified.format(&Rfc3339).ok(),
            reason: None,
            detail: None,
            remedy: None,
        }
    }

    /// Writes it for a terminal.
    fn write_lines(&self, text: &mut String) -> fmt::Result {
        let id = self.version_id.as_deref().unwrap_or("unknown");
        let since = self.since.as_deref().unwrap_or_default();
        let is_unknown = self.status == ReplicationStatus::Unknown;
        let no_replica = if is_unknown { "unknown" } else { "none" };
        let replica = self.replica_version_id.as_deref().unwrap_or(no_replica);
        let status = self.status.to_string();
        write!(text, "{status:<10} {id:<34} {since:<22} {replica}")?;
        writeln!(
            text,
            "{}",
            if self.is_delete_marker {
                " (delete marker)"
            } else {
                ""
            }
        )?;
        match (&self.reason, &self.detail) {
            (Some(reason), Some(detail)) => {
                writeln!(text, "           {reason}: {}", escape_controls(detail))?;
            }
            (None, Some(detail)) => writeln!(text, "           {}", escape_controls(detail))?,
            (_, None) => {}
        }
        match &self.remedy {
            Some(remedy) => writeln!(text, "           fix: {remedy}"),
            None => Ok(()),
        }
    }

    fn replicated_by(self, shown: &ShownEntry) -> Self {
        let version = &shown.entry.version;
        Self {
            status: ReplicationStatus::Completed,
            replica_version_id: Some(version.id.to_string()),
            since: version.last_modified.format(&Rfc3339).ok(),
            ..self
        }
    }

    fn unknown(self, detail: &str) -> Self {
        Self {
            status: ReplicationStatus::Unknown,
            detail: Some(detail.to_owned()),
            ..self
        }
    }

    fn with_reason(self, status: ReplicationStatus, reason: Reason) -> Self {
        Self {
            status,
            reason: Some(reason.to_string()),
            detail: Some(reason.sentence().to_owned()),
            remedy: Some(reason.remedy().to_owned()),
            ..self
        }
    }

    fn refused(self, cause: Mismatch) -> Self {
        Self {
            status: ReplicationStatus::Skipped,
            reason: Some(cause.as_str().to_owned()),
            detail: Some(cause.sentence().to_owned()),
            ..self
        }
    }

    /// Says what the ledger has of a version that has no replica at the destination.
    fn recorded(self, record: &Replica) -> Self {
        let skipped = ReplicationStatus::Skipped;
        match (record.state, record.reason) {
            (ReplicaState::Coalesced, _) => Self {
                status: ReplicationStatus::Completed,
                ..self
            },
            (ReplicaState::Replicated | ReplicaState::Deleted, _) => {
                self.with_reason(skipped, Reason::DstVersionNotFound)
            }
            (ReplicaState::Superseded, None) => self.with_reason(skipped, Reason::ArrivedLate),
            (ReplicaState::SourceMissing, None) => {
                self.with_reason(skipped, Reason::SrcVersionNotFound)
            }
            (_, Some(reason)) => self.with_reason(skipped, reason),
            (ReplicaState::Skipped, None) => Self {
                status: skipped,
                reason: Some("NoRuleTakesIt".to_owned()),
                detail: Some("no rule takes a version of its size, tags and encryption".to_owned()),
                ..self
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use replicator_core::event::EventKind;
    use replicator_core::object::{Key, VersionId};
    use replicator_core::stamp::OriginClaim;
    use time::Duration;

    use super::*;
    use crate::ledger::records::TargetKey;

    /// Returns a rule that takes everything.
    fn rule() -> Rule {
        let url = "https://sqs.eu-west-1.amazonaws.com/111111111111";
        let text = format!(
            "[accounts.a]\nregion = \"eu-west-1\"\n\
             [[queues]]\nurl = \"{url}/events\"\naccount = \"a\"\n\
             dead_letter_url = \"{url}/parked\"\n\
             [[rules]]\nid = \"orders\"\nsource = {{ account = \"a\", bucket = \"orders\" }}\n\
             destination = {{ account = \"a\", bucket = \"replicas\" }}\n\
             delete_markers = true\n"
        );
        let settings = replicator_config::parse(&text).unwrap_or_else(|error| panic!("{error}"));
        settings.rules.into_iter().next().unwrap()
    }

    /// Returns an entry that was made in this minute.
    fn entry(id: &str, minute: i64, kind: VersionKind) -> SourceVersion {
        SourceVersion {
            version: VersionRef {
                id: VersionId::try_from(id.to_owned()).unwrap(),
                last_modified: Timestamp::UNIX_EPOCH + Duration::minutes(minute),
                generation: None,
            },
            kind,
            etag: None,
            size_bytes: 1,
        }
    }

    fn object(id: &str, minute: i64) -> SourceVersion {
        entry(id, minute, VersionKind::Object)
    }

    /// Returns the replica of a version, written at once.
    fn replica(of: &SourceVersion) -> ShownEntry {
        let mut shown = of.clone();
        shown.version.id = VersionId::try_from(format!("r-{}", of.version.id)).unwrap();
        let claim = (of.kind == VersionKind::Object).then(|| OriginClaim {
            version: of.version.clone(),
            etag: None,
            has_digest: false,
            size_bytes: None,
            written: Some(of.version.last_modified),
            now: None,
        });
        ShownEntry {
            entry: shown,
            claim,
        }
    }

    #[test]
    fn what_was_parked_for_all_versions_is_no_reason_for_one_that_no_rule_takes() {
        let (old, new) = (object("old", 0), object("new", 10));
        let rule = rule();
        let mut history = VersionedKey {
            rules: &[&rule],
            start: Some(Timestamp::UNIX_EPOCH + Duration::minutes(5)),
            source: vec![old, new],
            shown: Vec::new(),
            unread: Vec::new(),
            records: KeyRecords::default(),
        };
        let (source, target) = (rule.source.clone(), rule.destination.clone());
        history.records.parked = vec![ParkedTask {
            target: TargetKey {
                destination: target,
                key: Key::try_from("a").unwrap(),
            },
            rule: "orders".to_owned(),
            source,
            source_key: Key::try_from("a").unwrap(),
            action: EventKind::Put,
            version: None,
            reason: Reason::DstPutObjectNotPermitted,
            detail: String::new(),
            since: Timestamp::UNIX_EPOCH,
            tries: 0,
            due: None,
        }];
        let statuses = history.statuses(10).0.into_iter().map(|one| one.status);
        let statuses: Vec<ReplicationStatus> = statuses.collect();
        assert_eq!(
            statuses,
            [ReplicationStatus::Failed, ReplicationStatus::Skipped]
        );
    }

    /// Tells of so many versions, oldest first, of which the destination's first so many were not
    /// looked at.
    fn told(
        source: &[SourceVersion],
        shown: Vec<ShownEntry>,
        (versions_max, unread): (usize, usize),
    ) -> Vec<String> {
        let mut shown = shown;
        let rest = shown.split_off(unread);
        let rule = rule();
        let history = VersionedKey {
            rules: &[&rule],
            start: None,
            source: source.to_vec(),
            shown: rest,
            unread: shown.into_iter().map(|shown| shown.entry).collect(),
            records: KeyRecords::default(),
        };
        let (statuses, _) = history.statuses(versions_max);
        let oldest_first = statuses.iter().rev();
        let word = |one: &VersionStatus| {
            let id = one.version_id.as_deref().unwrap_or_default();
            format!("{id} {}", one.status)
        };
        oldest_first.map(word).collect()
    }

    #[test]
    fn a_replica_is_lost_only_if_the_source_lists_its_version_nowhere() {
        let source = [("a", 0), ("b", 1), ("c", 2), ("d", 3)].map(|(id, at)| object(id, at));
        let shown: Vec<_> = source.iter().map(replica).collect();
        let all = ["a COMPLETED", "b COMPLETED", "c COMPLETED", "d COMPLETED"];
        assert_eq!(told(&source, shown.clone(), (4, 0)), all);
        assert_eq!(told(&source, shown.clone(), (2, 0)), all[2..]);
        // The source has lost the oldest.
        assert_eq!(told(&source[1..], shown, (2, 0)), [all[0], all[2], all[3]]);
    }

    #[test]
    fn a_replica_that_may_not_have_been_looked_at_is_neither_there_nor_missing() {
        let marker = |id, at| entry(id, at, VersionKind::Marker);
        let source = [
            object("a", 0),
            marker("b", 1),
            object("c", 5),
            marker("d", 9),
        ];
        let shown: Vec<_> = source.iter().take(3).map(replica).collect();
        let unread = |unread| told(&source, shown.clone(), (4, unread));
        let all = ["a COMPLETED", "b COMPLETED", "c COMPLETED", "d PENDING"];
        assert_eq!(unread(0), all);
        // The marker's replica is known by what it hides.
        assert_eq!(
            unread(1),
            ["a UNKNOWN", "b UNKNOWN", "c COMPLETED", "d PENDING"]
        );
        // What hides what is unknown is unknown, however late it was made.
        assert_eq!(
            unread(3),
            ["a UNKNOWN", "b UNKNOWN", "c UNKNOWN", "d UNKNOWN"]
        );
        // What a marker hides that nothing is told of is not known either.
        let lone = [object("a", 0), marker("b", 1)];
        assert_eq!(told(&lone, Vec::new(), (2, 0)), ["a PENDING", "b PENDING"]);
        assert_eq!(told(&lone, Vec::new(), (1, 0)), ["b UNKNOWN"]);
    }
}
