//! `s3-replicator verify`: compares both sides of a rule, version by version. Two lists, sorted by
//! key, are merged; only replicas that the lists do not prove equal are read, by HEAD. It writes
//! nothing, and runs beside the daemon.

mod keys;
mod report;

use std::collections::HashMap;

use anyhow::{Context, bail};
use futures::{StreamExt as _, stream};
use replicator_config::{Settings, suggest_nearest};
use replicator_core::compare::{
    Difference, HistoryDifference, KeyHistories, ShownEntry, VersionScope, proves_equal,
};
use replicator_core::failure::{Failure, FailureKind};
use replicator_core::object::{Key, Timestamp, VersionId};
use replicator_core::plan::{SourceVersion, VersionKind, VersionRef};
use replicator_core::rule::{History, Replicas, Rule, Takers, match_rules};
use replicator_core::stamp::{NAME, names_version};

use crate::admin::failures::parked_versions;
use crate::clock;
use crate::ledger::mend;
use crate::metrics::Metrics;
use crate::reconcile::{has_own_key, read_claim, read_tags};
use crate::s3::accounts::error::Side;
use crate::s3::accounts::{AccountClients, Accounts};
use crate::s3::client::{ResponseHead, S3Request};
use crate::task::Original;
use keys::{KeyPairs, ListedPair, list_key};
pub use report::{Line, VerifyReport};

/// What is compared.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// The rule.
    pub rule: String,
    /// Only keys of the source that begin with this.
    pub prefix: Option<String>,
    /// Only versions created since then; the rule's own start when absent.
    pub since: Option<Timestamp>,
    /// Only versions created until then; 15 minutes ago when absent.
    pub as_of: Option<Timestamp>,
}

// What native replication promises 99.9 % of its objects within: younger versions may be on their
// way. https://aws.amazon.com/s3/sla-rtc/
const PENDING_FOR: time::Duration = time::Duration::minutes(15);

// HEADs of different keys at a time.
const KEYS_MAX: usize = 32;

/// Compares both sides, and passes each difference on as it is found.
pub async fn verify(
    settings: &Settings,
    options: &VerifyOptions,
    tell: impl FnMut(&Line),
) -> anyhow::Result<VerifyReport> {
    let metrics = Metrics::new().context("cannot register metrics")?;
    let accounts = Accounts::connect(&settings.accounts, &metrics, None).await;
    let accounts = accounts.context("cannot set up TLS")?;
    let rule = find_rule(settings, &options.rule)?;
    let mut starts = HashMap::new();
    let is_beside = |other: &&Rule| {
        other.source.bucket == rule.source.bucket && other.destination == rule.destination
    };
    for other in settings.rules.iter().filter(is_beside) {
        if let Some(start) = start_of(settings, options, other)? {
            starts.insert(other.id.clone(), start);
        }
    }
    let since = *starts.get(&rule.id).with_context(|| {
        format!(
            "rule {:?} has no since, and no ledger here says when it was first loaded; give --since",
            rule.id
        )
    })?;
    let access = |name: &str| {
        let access = accounts.get(name);
        access.with_context(|| format!("account {name:?} is not defined"))
    };
    let mut rules = settings.rules.clone();
    // What a disabled rule would take is compared as if it were enabled.
    { rules.iter_mut().filter(|other| other.id == rule.id) }.for_each(|rule| rule.enabled = true);
    let verifier = Verifier {
        rules,
        rule,
        source: access(&rule.source.account)?,
        destination: access(&rule.destination.account)?,
        since,
        starts,
        as_of: options.as_of.unwrap_or_else(|| clock::now() - PENDING_FOR),
        parked: parked_versions(settings, &rule.id).await,
    };
    verifier.run(options.prefix.as_deref(), tell).await
}

/// Returns since when versions are in scope of a rule, to the second as lists state times.
fn start_of(
    settings: &Settings,
    options: &VerifyOptions,
    rule: &Rule,
) -> anyhow::Result<Option<Timestamp>> {
    let start = match options.since.or(rule.since) {
        Some(since) => Some(since),
        None => mend::rule_start(settings, &rule.id)?,
    };
    Ok(start.map(Timestamp::truncate_to_second))
}

fn find_rule<'s>(settings: &'s Settings, id: &str) -> anyhow::Result<&'s Rule> {
    if let Some(rule) = settings.rules.iter().find(|rule| rule.id == id) {
        return Ok(rule);
    }
    let known = settings.rules.iter().map(|rule| rule.id.as_str());
    bail!("no rule is called {id:?}; {}", suggest_nearest(id, known))
}

struct Verifier<'a> {
    rules: Vec<Rule>,
    rule: &'a Rule,
    source: &'a AccountClients,
    destination: &'a AccountClients,
    since: Timestamp,
    /// When the other rules of the same buckets begin.
    starts: HashMap<String, Timestamp>,
    as_of: Timestamp,
    /// Why versions are parked, by source key and version; none where no daemon answers.
    parked: Option<HashMap<(String, Option<String>), String>>,
}

/// One key as both sides list it, oldest first.
struct Pair {
    key: Key,
    target: Key,
    source: Vec<(SourceVersion, VersionScope)>,
    shown: Vec<SourceVersion>,
}

/// What was found of one key.
struct Compared {
    pair: Pair,
    findings: Vec<(HistoryDifference, Option<Explanation>)>,
}

/// Why a version has no replica.
enum Explanation {
    /// The daemon could not write it yet.
    Parked(String),
    /// The rule does not take it.
    Skipped(&'static str),
}

impl<'a> Verifier<'a> {
    async fn run(
        &self,
        prefix: Option<&str>,
        mut tell: impl FnMut(&Line),
    ) -> anyhow::Result<VerifyReport> {
        let mut report = VerifyReport::new(self.as_of, self.parked.is_some());
        let ends = (self.source, self.destination);
        let both = KeyPairs::new(self.rule, ends, prefix)?;
        let pairs = stream::unfold(Some(both), |both| async move {
            let mut both = both?;
            match both.next_pair().await {
                Ok(Some(pair)) => Some((Ok(pair), Some(both))),
                Ok(None) => None,
                Err(failure) => Some((Err(failure), None)),
            }
        });
        let compared = pairs.map(|pair| async { self.compare(self.pair(pair?)).await });
        let mut compared = std::pin::pin!(compared.buffered(KEYS_MAX));
        while let Some(compared) = compared.next().await {
            let compared = compared.context("broken off, so this proves nothing")?;
            report.count(&compared.pair.source);
            for (finding, reason) in &compared.findings {
                let line = Line::new(self.rule, &compared.pair, finding, reason.as_ref());
                report.add(&line);
                tell(&line);
            }
        }
        Ok(report)
    }

    async fn compare(&self, mut pair: Pair) -> Result<Compared, Failure> {
        let mut findings = self.differences(&mut pair).await?;
        if !findings.is_empty() {
            // The two lists are of different moments. The destination's comes first now: a replica
            // is there later than its original.
            let (from, to) = (&self.rule.source.bucket, &self.rule.destination.bucket);
            let shown = list_key(self.destination, (Side::Destination, to), &pair.target).await?;
            let source = list_key(self.source, (Side::Source, from), &pair.key).await?;
            pair = self.pair(ListedPair {
                key: pair.key,
                target: pair.target,
                source,
                shown,
            });
            findings = self.differences(&mut pair).await?;
        }
        let mut explained = Vec::new();
        for finding in findings {
            let reason = self.explain(&pair, &finding).await?;
            explained.push((finding, reason));
        }
        let findings = explained;
        Ok(Compared { pair, findings })
    }

    async fn differences(&self, pair: &mut Pair) -> Result<Vec<HistoryDifference>, Failure> {
        if self.lists_prove(pair) {
            return Ok(Vec::new());
        }
        let shown = self.read_shown(pair).await?;
        let histories = KeyHistories {
            source: &pair.source,
            shown: &shown,
        };
        Ok(histories.compare(self.rule.history))
    }

    /// Says of each entry whether it has to have a replica.
    fn pair(&self, listed: ListedPair) -> Pair {
        let ListedPair {
            key,
            target,
            source,
            shown,
        } = listed;
        let candidates = self.candidates(&key);
        let scope_of = |entry: SourceVersion| {
            let scope = self.scope_of(&entry, &candidates);
            (entry, scope)
        };
        Pair {
            source: source.into_iter().map(scope_of).collect(),
            key,
            target,
            shown,
        }
    }

    fn lists_prove(&self, pair: &Pair) -> bool {
        if pair
            .source
            .iter()
            .any(|(_, scope)| *scope == VersionScope::Pending)
        {
            return false;
        }
        let of_scope = pair
            .source
            .iter()
            .filter(|(_, scope)| *scope == VersionScope::Wanted);
        let mut wanted: Vec<&SourceVersion> = of_scope.map(|(entry, _)| entry).collect();
        let mut shown: Vec<&SourceVersion> = pair.shown.iter().collect();
        if self.rule.history == History::Latest {
            wanted.drain(..wanted.len().saturating_sub(1));
            shown.drain(..shown.len().saturating_sub(1));
        }
        proves_equal(&wanted, &shown)
    }

    /// Reads the stamps of the objects that the destination has.
    async fn read_shown(&self, pair: &mut Pair) -> Result<Vec<ShownEntry>, Failure> {
        let (mut shown, last) = (Vec::new(), pair.shown.len().saturating_sub(1));
        for (at, entry) in pair.shown.iter().enumerate() {
            let is_judged = self.rule.history == History::Exact || at == last;
            if entry.kind == VersionKind::Marker || !is_judged {
                let entry = entry.clone();
                shown.push(ShownEntry { entry, claim: None });
                continue;
            }
            let bucket = &self.rule.destination.bucket;
            let head = S3Request::head_object(Side::Destination, bucket, &pair.target);
            let id = entry.version.id.as_str();
            // Removed since it was listed.
            let Some(head) = read_head(self.destination, head.version(id)).await? else {
                continue;
            };
            let mut claim = read_claim(&head, self.original(&pair.key));
            if let Some(claim) = &mut claim {
                claim.has_digest =
                    claim.has_digest && self.has_digest(pair, &claim.version).await?;
            }
            let entry = entry.clone();
            shown.push(ShownEntry { entry, claim });
        }
        pair.shown = shown.iter().map(|shown| shown.entry.clone()).collect();
        Ok(shown)
    }

    /// Says whether the ETag of a version of the source is a digest of its content, as far as it
    /// reads like one.
    async fn has_digest(&self, pair: &Pair, version: &VersionRef) -> Result<bool, Failure> {
        let mut entries = pair.source.iter().map(|(entry, _)| entry);
        let Some(entry) = entries.find(|entry| names_version(version, &entry.version)) else {
            return Ok(true);
        };
        let is_equal = |shown: &SourceVersion| shown.etag == entry.etag;
        let reads_so = entry.etag.as_ref().is_some_and(|etag| etag.is_digest());
        if !reads_so || pair.shown.iter().any(is_equal) {
            return Ok(reads_so);
        }
        let head = self.read_source(&pair.key, &version.id).await?;
        Ok(head.is_some_and(|head| !has_own_key(&head)))
    }

    fn original<'k>(&'k self, key: &'k Key) -> Original<'k> {
        Original {
            bucket: &self.rule.source.bucket,
            key,
            wraps_keys: !self.rule.client_side_keys.is_empty(),
        }
    }

    async fn read_source(
        &self,
        key: &Key,
        id: &VersionId,
    ) -> Result<Option<ResponseHead>, Failure> {
        let head = S3Request::head_object(Side::Source, &self.rule.source.bucket, key);
        read_head(self.source, head.version(id.as_str())).await
    }

    /// Says why a version is missing, where that is known.
    async fn explain(
        &self,
        pair: &Pair,
        finding: &HistoryDifference,
    ) -> Result<Option<Explanation>, Failure> {
        let Some(version) = finding.source.as_ref() else {
            return Ok(None);
        };
        if finding.difference != Difference::Missing {
            return Ok(None);
        }
        let mut entries = pair.source.iter().map(|(entry, _)| entry);
        let is_object = |entry: &SourceVersion| entry.kind == VersionKind::Object;
        let entry = entries.find(|entry| entry.version == *version);
        if entry.is_some_and(is_object)
            && let Some(entry) = entry
            && let Some(reason) = self.why_not_eligible(&pair.key, entry).await?
        {
            return Ok(Some(Explanation::Skipped(reason)));
        }
        let parked = self.parked.as_ref().and_then(|parked| {
            let key = pair.key.as_str().to_owned();
            parked.get(&(key, Some(version.id.as_str().to_owned())))
        });
        Ok(parked.cloned().map(Explanation::Parked))
    }

    async fn why_not_eligible(
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
        let (rule, class) = (self.rule, head.header("x-amz-storage-class"));
        let is_restored = head
            .header("x-amz-restore")
            .is_some_and(|restore| restore.contains("ongoing-request=\"false\""));
        let is_archived = matches!(class, Some("GLACIER" | "DEEP_ARCHIVE")) && !is_restored;
        let is_kms = has_own_key(&head);
        let is_replica = head.user(NAME).is_some() && rule.replicas == Replicas::Skip;
        let (mut tags_differ, mut is_others) = (false, false);
        let find = |tags| Takers::find(self.candidates(key), size_bytes, tags);
        if find(None).need_tags {
            let call = S3Request::tags(Side::Source, &rule.source.bucket, key);
            let tags = read_tags(self.source, call.version(id.as_str())).await?;
            let takers = find(Some(&tags));
            tags_differ = takers.refusals.iter().any(|(one, _)| one.id == rule.id);
            is_others = !tags_differ && takers.rules.iter().all(|one| one.id != rule.id);
        }
        let reasons = [
            (is_archived, "SrcObjectNotEligible"),
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

    /// Lists the rules that compete for a key, the first one first.
    fn candidates(&self, key: &Key) -> Vec<&Rule> {
        let (source, destination) = (&self.rule.source.bucket, &self.rule.destination);
        let contests = match_rules(&self.rules, source, key);
        let mut ours = contests.into_iter();
        ours.find(|contest| contest.destination == destination)
            .map_or(Vec::new(), |contest| contest.candidates)
    }

    /// Says whether an entry has to have a replica by this rule. The first rule of a key decides on
    /// its markers and its start. What a preferred rule takes by tags is not known from the list.
    fn scope_of(&self, entry: &SourceVersion, candidates: &[&Rule]) -> VersionScope {
        let is_this = |rule: &&Rule| rule.id == self.rule.id;
        let lead = candidates.first().copied().unwrap_or(self.rule);
        let is_taken = match entry.kind {
            VersionKind::Marker => is_this(&lead) && lead.admits_marker(),
            VersionKind::Object => {
                let candidates = candidates.iter().copied();
                let takers = Takers::find(candidates, entry.size_bytes, None);
                takers.rules.iter().any(is_this)
            }
        };
        let made = entry.version.last_modified;
        let since = self.starts.get(&lead.id).unwrap_or(&self.since);
        match () {
            () if made < *since || !is_taken => VersionScope::Outside,
            () if made > self.as_of => VersionScope::Pending,
            () => VersionScope::Wanted,
        }
    }
}

/// Reads the headers of a version; none if the service says that it is not there.
async fn read_head(
    access: &AccountClients,
    call: S3Request<'_>,
) -> Result<Option<ResponseHead>, Failure> {
    match access.wire.send(call).await {
        Ok(answer) => Ok(Some(answer.into_head())),
        Err(refusal) if refusal.is_absent() => Ok(None),
        Err(refusal) => Err(refusal.into()),
    }
}
