//! What is read of two buckets: their keys in order, each with its histories, page by page, so that
//! buckets of any size are compared in constant memory; and single versions, where lists do not
//! tell what is a replica, or why there is none.

use std::collections::VecDeque;

use anyhow::bail;
use replicator_core::compare::ShownEntry;
use replicator_core::failure::{Failure, FailureKind, Operation, Reason};
use replicator_core::object::{Bucket, Key, VersionId};
use replicator_core::plan::{SourceVersion, VersionKind, VersionRef};
use replicator_core::retry;
use replicator_core::rule::{History, Replicas, Rule, Takers};
use replicator_core::stamp::{NAME, names_version};
use serde::{Deserialize, Serialize};

use super::{Pair, Verifier};
use crate::objects::read_head;
use crate::reconcile::listing::{
    Listed, PAGE_ENTRIES_MAX, VERSIONS_MAX, VersionLister, VersionPage, find_doubt,
};
use crate::reconcile::{has_own_key, read_claim, read_tags};
use crate::s3::accounts::AccountClients;
use crate::s3::accounts::error::Side;
use crate::s3::client::{ResponseHead, S3Request};
use crate::task::Original;

/// A key as both sides list it, oldest first.
#[derive(Debug)]
pub(crate) struct ListedPair {
    pub(crate) key: Key,
    /// What the key is at the destination.
    pub(crate) target: Key,
    pub(crate) source: Vec<SourceVersion>,
    pub(crate) shown: Vec<SourceVersion>,
}

/// Keys of the source in their order; without an end to the first or the last of all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyRange {
    /// They come after this one.
    pub(crate) after: Option<String>,
    /// This is the last of them, if it is there.
    pub(crate) until: Option<String>,
}

/// The keys of a rule that either side has, by two sorted lists.
pub(crate) struct KeyPairs<'a> {
    rule: &'a Rule,
    source: KeyStream<'a>,
    destination: KeyStream<'a>,
    /// What was read of each side and not yet returned.
    waiting: (Option<KeyHistory>, Option<KeyHistory>),
}

impl<'a> KeyPairs<'a> {
    pub(crate) fn new(
        rule: &'a Rule,
        (source, destination): (&'a AccountClients, &'a AccountClients),
        prefix: Option<&str>,
    ) -> anyhow::Result<Self> {
        let whole = rule.filter.prefix.as_str();
        let prefix = prefix.unwrap_or(whole);
        let Some(rest) = prefix.strip_prefix(whole) else {
            bail!(
                "no key of rule {:?} begins with {prefix:?}; its prefix is {whole:?}",
                rule.id
            )
        };
        let target = format!("{}{rest}", rule.rewrite.as_deref().unwrap_or(whole));
        let (from, to) = (&rule.source.bucket, &rule.destination.bucket);
        Ok(Self {
            rule,
            source: KeyStream::new(source, Side::Source, from, prefix.to_owned()),
            destination: KeyStream::new(destination, Side::Destination, to, target),
            waiting: (None, None),
        })
    }

    /// Leaves only the keys of a range.
    pub(crate) fn within(mut self, range: &KeyRange) -> Self {
        let whole = self.rule.filter.prefix.as_str();
        let rewritten = self.rule.rewrite.as_deref().unwrap_or(whole);
        let target =
            |key: &String| format!("{rewritten}{}", key.strip_prefix(whole).unwrap_or(key));
        self.source.limit(range.clone());
        self.destination.limit(KeyRange {
            after: range.after.as_ref().map(target),
            until: range.until.as_ref().map(target),
        });
        self
    }

    /// Counts the pages that were read of both sides.
    pub(crate) fn pages_read(&self) -> u64 {
        self.source.pages_read + self.destination.pages_read
    }

    /// Returns the next key.
    pub(crate) async fn next_pair(&mut self) -> Result<Option<ListedPair>, Failure> {
        loop {
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
            let history = source.take_if(|source| source.key == key);
            let shown = destination.take_if(|_| original.flatten().as_ref() == Some(&key));
            if self.rule.filter.admits_key(&key).is_err() {
                continue;
            }
            if let Ok(target) = self.rule.destination_key(&key) {
                let entries = |history: Option<KeyHistory>| history.map(|history| history.entries);
                return Ok(Some(ListedPair {
                    source: entries(history).unwrap_or_default(),
                    shown: entries(shown).unwrap_or_default(),
                    target,
                    key,
                }));
            }
        }
    }
}

/// A key and its history, oldest first.
#[derive(Debug)]
struct KeyHistory {
    key: Key,
    entries: Vec<SourceVersion>,
}

/// Reads the keys of a bucket that begin with a prefix.
struct KeyStream<'a> {
    access: &'a AccountClients,
    side: Side,
    bucket: &'a Bucket,
    prefix: String,
    /// Keys that were listed and not yet returned; the last may go on in the next page.
    listed: VecDeque<(Key, Vec<Listed>)>,
    /// Where the next page begins; none after the last.
    next: Option<Marker>,
    /// The last key that is asked for.
    until: Option<String>,
    pages_read: u64,
    /// Whether the server mixes versions and markers as the bucket has them.
    mixes_kinds: bool,
}

/// A place in a list: none is the beginning.
type Marker = Option<(String, String)>;

impl<'a> KeyStream<'a> {
    fn new(access: &'a AccountClients, side: Side, bucket: &'a Bucket, prefix: String) -> Self {
        Self {
            access,
            side,
            bucket,
            prefix,
            listed: VecDeque::new(),
            next: Some(None),
            until: None,
            pages_read: 0,
            mixes_kinds: access.is_aws,
        }
    }

    fn limit(&mut self, KeyRange { after, until }: KeyRange) {
        self.next = Some(after.map(|key| (key, String::new())));
        self.until = until;
    }

    /// Returns the next key.
    async fn next_key(&mut self) -> Result<Option<KeyHistory>, Failure> {
        while self.listed.len() < 2
            && let Some(from) = self.next.take()
        {
            self.read_page(from).await?;
        }
        let Some((key, listed)) = self.listed.pop_front() else {
            return Ok(None);
        };
        let is_beyond = |until: &String| key.as_str() > until.as_str();
        if self.until.as_ref().is_some_and(is_beyond) {
            self.listed.clear();
            self.next = None;
            return Ok(None);
        }
        let mut entries = self.history(&key, listed).await?;
        entries.reverse();
        Ok(Some(KeyHistory { key, entries }))
    }

    async fn read_page(&mut self, from: Marker) -> Result<(), Failure> {
        let page = self.page(from.clone()).await?;
        self.pages_read += 1;
        if page.next.is_some() && page.next == from {
            return Err(contradiction("the server's pages go in a circle"));
        }
        self.mixes_kinds |= page.mixes_kinds();
        // Some servers list markers after all versions of a page.
        let mut entries = page.entries;
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        for (key, listed) in entries {
            self.take_entry(key, listed)?;
        }
        self.next = page.next.map(Some);
        Ok(())
    }

    /// Reads a page. A list of hours goes on over what passes by itself.
    async fn page(&self, from: Marker) -> Result<VersionPage, Failure> {
        let lister = self.lister(&self.prefix);
        let mut attempt = 1;
        loop {
            match lister.page(from.clone(), PAGE_ENTRIES_MAX).await {
                Err(failure) if passes(&failure) && attempt < PAGE_ATTEMPTS_MAX => {
                    tokio::time::sleep(retry::jittered_delay(attempt, fastrand::f64())).await;
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// Two lists are merged by the order of their keys, so the pages of each have to have it.
    fn take_entry(&mut self, key: Key, entry: Listed) -> Result<(), Failure> {
        match self.listed.back_mut() {
            Some((last, entries)) if *last == key => {
                if entries.len() == VERSIONS_MAX {
                    let detail = format!("{key} has more than {VERSIONS_MAX} versions");
                    let kind = FailureKind::NeedsOperator(Reason::KeyVersionsTooMany);
                    return Err(Failure::with_source(kind, DURING, detail));
                }
                entries.push(entry);
            }
            Some((last, _)) if *last > key => {
                let words = format!(
                    "the list of {} is not in the order of its keys: {key} comes after {last}",
                    self.bucket
                );
                return Err(contradiction(&words));
            }
            Some(_) | None => self.listed.push_back((key, vec![entry])),
        }
        Ok(())
    }

    /// Returns a key's history, newest first; a list that contradicts itself, or that may have
    /// versions and markers apart, is read again for the key alone.
    async fn history(&self, key: &Key, listed: Vec<Listed>) -> Result<Vec<SourceVersion>, Failure> {
        let is_marker = |listed: &Listed| listed.entry.kind == VersionKind::Marker;
        let is_apart = !self.mixes_kinds && listed.len() > 1 && listed.iter().any(is_marker);
        if is_apart || find_doubt(&listed).is_some() {
            return self.lister(key.as_str()).history(key).await;
        }
        Ok(listed.into_iter().map(|listed| listed.entry).collect())
    }

    fn lister<'l>(&'l self, prefix: &'l str) -> VersionLister<'l> {
        VersionLister {
            access: self.access,
            side: self.side,
            bucket: self.bucket,
            prefix,
        }
    }
}

const DURING: Operation = Operation::ListObjectVersions;

// Some minutes, beside the three attempts of each request.
const PAGE_ATTEMPTS_MAX: u32 = 8;

fn passes(failure: &Failure) -> bool {
    matches!(
        failure.kind,
        FailureKind::Transient | FailureKind::Throttled | FailureKind::Unauthenticated
    )
}

fn contradiction(words: &str) -> Failure {
    Failure::with_source(FailureKind::Transient, DURING, words.to_owned())
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
            // Removed since it was listed.
            let Some(head) = read_head(self.destination, head.version(id)).await? else {
                continue;
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

    pub(super) fn head_of<'c>(&'c self, side: Side, key: &'c Key) -> S3Request<'c> {
        S3Request::head_object(side, self.at(side).1, key)
    }

    pub(super) fn at(&self, side: Side) -> (&AccountClients, &Bucket) {
        match side {
            Side::Source => (self.source, &self.rule.source.bucket),
            Side::Destination | Side::Write | Side::Prepare => {
                (self.destination, &self.rule.destination.bucket)
            }
        }
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
        let head = self.head_of(Side::Source, key);
        read_head(self.source, head.version(id.as_str())).await
    }

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
        let is_replica = head.user(NAME).is_some() && rule.replicas == Replicas::Skip;
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
    matches!(class, Some("GLACIER" | "DEEP_ARCHIVE")) && !is_restored
}
