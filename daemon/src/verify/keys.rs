//! The keys of a bucket in their order, each with its history, read page by page: so that two
//! buckets of any size are compared in constant memory.

use std::collections::VecDeque;

use replicator_core::failure::{Failure, FailureKind, Operation, Reason};
use replicator_core::object::{Bucket, Key};
use replicator_core::plan::{SourceVersion, VersionKind};
use replicator_core::retry;

use crate::reconcile::listing::{
    Listed, PAGE_ENTRIES_MAX, VERSIONS_MAX, VersionLister, VersionPage, find_doubt,
};
use crate::s3::accounts::AccountClients;
use crate::s3::accounts::error::Side;

/// A key and its history, oldest first.
#[derive(Debug)]
pub(super) struct KeyHistory {
    pub(super) key: Key,
    pub(super) entries: Vec<SourceVersion>,
}

/// Reads the keys that begin with a prefix.
pub(super) struct KeyStream<'a> {
    access: &'a AccountClients,
    side: Side,
    bucket: &'a Bucket,
    prefix: String,
    /// Keys that were listed and not yet returned; the last may go on in the next page.
    listed: VecDeque<(Key, Vec<Listed>)>,
    /// Where the next page begins; none after the last.
    next: Option<Marker>,
    /// Whether the server mixes versions and markers as the bucket has them.
    mixes_kinds: bool,
}

/// A place in a list: none is the beginning.
type Marker = Option<(String, String)>;

impl<'a> KeyStream<'a> {
    pub(super) fn new(
        access: &'a AccountClients,
        side: Side,
        bucket: &'a Bucket,
        prefix: String,
    ) -> Self {
        Self {
            access,
            side,
            bucket,
            prefix,
            listed: VecDeque::new(),
            next: Some(None),
            mixes_kinds: access.is_aws,
        }
    }

    /// Returns the next key.
    pub(super) async fn next_key(&mut self) -> Result<Option<KeyHistory>, Failure> {
        while self.listed.len() < 2
            && let Some(from) = self.next.take()
        {
            self.read_page(from).await?;
        }
        let Some((key, listed)) = self.listed.pop_front() else {
            return Ok(None);
        };
        let mut entries = self.history(&key, listed).await?;
        entries.reverse();
        Ok(Some(KeyHistory { key, entries }))
    }

    async fn read_page(&mut self, from: Marker) -> Result<(), Failure> {
        let page = self.page(from.clone()).await?;
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
