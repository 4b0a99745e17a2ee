//! What is read of two buckets: their keys in order, each with its histories, so that buckets of any
//! size are compared in constant memory; and what objects say that they are replicas of, where lists
//! do not tell.

use anyhow::bail;
use replicator_core::compare::ShownEntry;
use replicator_core::failure::{Failure, Reason};
use replicator_core::object::{Bucket, Key};
use replicator_core::plan::{SourceVersion, VersionKind, VersionRef};
use replicator_core::rule::{History, Rule, RuleScope, VersionScope};
use replicator_core::stamp::{OriginClaim, names_version};
use tokio::time::Instant;

use super::{Pair, Verifier};
use crate::objects::read_head;
use crate::process::InvalidCommand;
use crate::reconcile::listing::{
    KeyHistory, KeyRange, KeyStream, KeyVersions, VERSIONS_MAX, VersionLister,
};
use crate::reconcile::{UnstampedObject, has_own_key, read_claim};
use crate::s3::accounts::AccountClients;
use crate::s3::accounts::error::{Side, object_refusal};
use crate::s3::client::ResponseHead;
use crate::task::Original;

/// What the lists say of a key.
#[derive(Debug)]
pub(crate) enum ListedKey {
    Pair(ListedPair),
    Refused(RefusedKey),
}

/// A key that the lists do not compare: S3 cannot hold that of its replica, or it has too many
/// versions.
#[derive(Debug)]
pub(crate) struct RefusedKey {
    pub(crate) key: Key,
    /// What the rule makes of it at the destination.
    pub(crate) target: String,
    /// Its versions, or as far as is known the newest of too many.
    source: Vec<SourceVersion>,
    /// Whether there are too many of these.
    is_cut: bool,
    pub(crate) reason: Reason,
    /// The reason, and at which side there is one.
    pub(crate) detail: String,
}

/// A key as both sides list it, oldest first.
#[derive(Debug)]
pub(crate) struct ListedPair {
    pub(crate) key: Key,
    /// What the key is at the destination.
    pub(crate) target: Key,
    pub(crate) source: Vec<SourceVersion>,
    pub(crate) shown: Vec<SourceVersion>,
}

/// The keys of a rule that either side has, by two sorted lists.
pub(crate) struct KeyPairs<'a> {
    rule: &'a Rule,
    source: KeyStream<'a>,
    destination: KeyStream<'a>,
    /// What was read of each side and not yet returned.
    waiting: (Option<KeyHistory>, Option<KeyHistory>),
    /// The last key that it came to, be it one that is left out.
    passed: Option<Key>,
    /// When it stops, before the end, if it came to a key.
    deadline: Option<Instant>,
    is_stopped: bool,
}

impl<'a> KeyPairs<'a> {
    pub(crate) fn new(
        rule: &'a Rule,
        (source, destination): (&'a AccountClients, &'a AccountClients),
        prefix: Option<&str>,
    ) -> anyhow::Result<Self> {
        let whole = rule.filter.prefix.as_str();
        let prefix = prefix.unwrap_or(whole);
        check_prefix(rule, prefix)?;
        let target = rule.rewrite_start(prefix);
        let (from, to) = (&rule.source.bucket, &rule.destination.bucket);
        Ok(Self {
            rule,
            source: KeyStream::new(source, Side::Source, from, prefix.to_owned()),
            destination: KeyStream::new(destination, Side::Destination, to, target),
            waiting: (None, None),
            passed: None,
            deadline: None,
            is_stopped: false,
        })
    }

    /// Leaves only the keys of a range.
    pub(crate) fn within(mut self, range: &KeyRange) -> Self {
        let target = |key: &String| self.rule.rewrite_start(key);
        self.source.limit(range.clone());
        self.destination.limit(KeyRange {
            after: range.after.as_ref().map(target),
            until: range.until.as_ref().map(target),
        });
        self
    }

    /// Lets it stop before its end, at the first key after a moment.
    pub(crate) fn stopping_at(self, deadline: Instant) -> Self {
        let deadline = Some(deadline);
        Self { deadline, ..self }
    }

    /// Returns where it goes on, if it stopped before its end.
    pub(crate) fn stopped_after(&self) -> Option<&Key> {
        self.passed.as_ref().filter(|_| self.is_stopped)
    }

    /// Counts the pages that were read of both sides.
    pub(crate) fn pages_read(&self) -> u64 {
        self.source.pages_read + self.destination.pages_read
    }

    /// Returns the next key, unless it stops there.
    pub(crate) async fn next_pair(&mut self) -> Result<Option<ListedKey>, Failure> {
        loop {
            let is_late = |deadline: Instant| Instant::now() >= deadline;
            self.is_stopped = self.passed.is_some() && self.deadline.is_some_and(is_late);
            if self.is_stopped {
                return Ok(None);
            }
            let (source, destination) = &mut self.waiting;
            if source.is_none() {
                *source = self.source.next_key().await?;
            }
            if destination.is_none() {
                *destination = self.destination.next_key().await?;
            }
            let original = destination
                .as_ref()
                .map(|shown| self.rule.original_key(&shown.key));
            let key = match (source.as_ref().map(|source| &source.key), original.as_ref()) {
                (None, None) => return Ok(None),
                (Some(key), None) => key.clone(),
                (Some(key), Some(Some(original))) if key <= original => key.clone(),
                (_, Some(Some(original))) => original.clone(),
                // A key that no key of the source could have been rewritten to.
                (_, Some(None)) => {
                    *destination = None;
                    continue;
                }
            };
            self.passed = Some(key.clone());
            let history = source.take_if(|source| source.key == key);
            let shown = destination.take_if(|_| original.flatten().as_ref() == Some(&key));
            if self.rule.filter.admits_key(&key).is_err() {
                continue;
            }
            let versions = |history: Option<KeyHistory>| history.map(|history| history.versions);
            let sides = [history, shown].map(|side| versions(side).unwrap_or_default());
            return Ok(Some(ListedKey::new(self.rule, key, sides)));
        }
    }
}

/// Refuses a prefix that no key of a rule begins with.
pub(crate) fn check_prefix(rule: &Rule, prefix: &str) -> anyhow::Result<()> {
    let whole = rule.filter.prefix.as_str();
    if !prefix.starts_with(whole) {
        bail!(InvalidCommand::new(format!(
            "no key of rule {:?} begins with {prefix:?}; its prefix is {whole:?}",
            rule.id
        )));
    }
    Ok(())
}

/// Lists one key at both sides. The destination comes first: a replica is there later than its
/// original.
pub(crate) async fn list_pair(
    rule: &Rule,
    (source, destination): (&AccountClients, &AccountClients),
    key: Key,
) -> Result<ListedKey, Failure> {
    let (from, to) = (&rule.source.bucket, &rule.destination.bucket);
    let shown = match rule.destination_key(&key) {
        Ok(target) => list_versions(destination, (Side::Destination, to), &target).await?,
        Err(_) => KeyVersions::default(),
    };
    let source = list_versions(source, (Side::Source, from), &key).await?;
    Ok(ListedKey::new(rule, key, [source, shown]))
}

async fn list_versions(
    access: &AccountClients,
    at: (Side, &Bucket),
    key: &Key,
) -> Result<KeyVersions, Failure> {
    let lister = VersionLister::of_key(access, at, key);
    lister.versions(key).await
}

impl ListedKey {
    fn new(rule: &Rule, key: Key, [source, shown]: [KeyVersions; 2]) -> Self {
        let cut = [(source.is_cut, "source"), (shown.is_cut, "destination")];
        let cut = cut.iter().find(|(is_cut, _)| *is_cut);
        let (reason, detail) = match (rule.destination_key(&key), cut) {
            (Ok(target), None) => {
                return Self::Pair(ListedPair {
                    key,
                    target,
                    source: source.entries,
                    shown: shown.entries,
                });
            }
            (Err(_), _) => (Reason::DstKeyTooLong, String::new()),
            (Ok(_), Some((_, side))) => (
                Reason::KeyVersionsTooMany,
                format!(": more than {VERSIONS_MAX} at the {side}"),
            ),
        };
        Self::Refused(RefusedKey {
            target: rule.rewrite_start(key.as_str()),
            key,
            source: source.entries,
            is_cut: source.is_cut,
            reason,
            detail: format!("{reason}{detail}"),
        })
    }

    pub(crate) fn key(&self) -> &Key {
        match self {
            Self::Pair(pair) => &pair.key,
            Self::Refused(refused) => &refused.key,
        }
    }

    /// Says whether the source has nothing of it.
    pub(crate) fn is_absent(&self) -> bool {
        match self {
            Self::Pair(pair) => pair.source.is_empty(),
            Self::Refused(refused) => !refused.is_cut && refused.source.is_empty(),
        }
    }
}

impl RefusedKey {
    /// Says whether it has too many versions.
    pub(crate) fn is_crowded(&self) -> bool {
        self.reason == Reason::KeyVersionsTooMany
    }

    /// Says whether a task can bring it up to date all the same: in latest mode it reads the newest
    /// version alone.
    pub(crate) fn is_mendable(&self, rule: &Rule) -> bool {
        self.is_crowded() && rule.history == History::Latest
    }

    /// Returns the newest version at the source, as far as that is known.
    pub(crate) fn newest(&self) -> Option<&SourceVersion> {
        self.source.last()
    }

    /// Says whether a version of it is in scope, or may be: of too many only those from before the
    /// start are known not to be.
    pub(crate) fn is_in_scope(&self, scope: &RuleScope) -> bool {
        let candidates = scope.candidates(&self.key);
        if !self.is_cut {
            let scopes = { self.source.iter() }.map(|entry| scope.of_entry(entry, &candidates));
            return { scopes }.any(|scope| scope == VersionScope::Wanted);
        }
        let made = self.newest().map(|newest| newest.version.last_modified);
        let times = made.zip(scope.start_of(&candidates));
        let is_candidate = candidates.iter().any(|rule| rule.id == scope.rule);
        is_candidate && times.is_none_or(|(made, start)| made >= start)
    }
}

impl Verifier<'_> {
    /// Reads the stamps of the objects that the destination has.
    pub(super) async fn read_shown(&self, pair: &mut Pair) -> Result<Vec<ShownEntry>, Failure> {
        let (mut shown, last) = (Vec::new(), pair.shown.len().saturating_sub(1));
        // From the newest on, by which objects without a stamp are told.
        let mut newer = Vec::new();
        for (at, entry) in pair.shown.iter().enumerate().rev() {
            let is_judged = self.rule.history == History::Exact || at == last;
            if entry.kind == VersionKind::Marker || !is_judged {
                let entry = entry.clone();
                shown.push(ShownEntry { entry, claim: None });
                continue;
            }
            let head = self.head_of(Side::Destination, &pair.target);
            let id = entry.version.id.as_str();
            let head = match read_head(self.destination, head.version(id)).await {
                Ok(Some(head)) => head,
                // Removed since it was listed.
                Ok(None) => continue,
                // Under a customer's key, as no replica is.
                Err(failure) if object_refusal(&failure).is_some() => {
                    let entry = entry.clone();
                    shown.push(ShownEntry { entry, claim: None });
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            let mut claim = read_claim(&head, self.original(&pair.key));
            match &mut claim {
                Some(claim) => {
                    claim.has_digest =
                        claim.has_digest && self.has_digest(pair, &claim.version).await?;
                }
                None => claim = self.claim_unstamped(pair, entry, (&head, &newer)).await?,
            }
            newer.extend(claim.as_ref().map(|claim| claim.version.clone()));
            let entry = entry.clone();
            shown.push(ShownEntry { entry, claim });
        }
        shown.reverse();
        pair.shown = shown.iter().map(|shown| shown.entry.clone()).collect();
        Ok(shown)
    }

    /// Claims what an object without a stamp is the replica of, as the daemon does.
    async fn claim_unstamped(
        &self,
        pair: &Pair,
        entry: &SourceVersion,
        (head, newer): (&ResponseHead, &[VersionRef]),
    ) -> Result<Option<OriginClaim>, Failure> {
        let (from, to) = (self.at(Side::Source), self.at(Side::Destination));
        let object = UnstampedObject {
            entry,
            shown: (to.0, to.1, &pair.target),
            source: (from.0, from.1, &pair.key),
        };
        let listed = pair.source.iter().map(|(entry, _)| entry);
        object.claim(self.rule, head, listed, newer).await
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
        match self.read_source(&pair.key, &version.id).await {
            Ok(head) => Ok(head.is_some_and(|head| !has_own_key(&head))),
            // Under a customer's key no ETag is one.
            Err(failure) if object_refusal(&failure).is_some() => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    fn original<'k>(&'k self, key: &'k Key) -> Original<'k> {
        Original {
            bucket: &self.rule.source.bucket,
            key,
            wraps_keys: !self.rule.client_side_keys.is_empty(),
        }
    }
}
