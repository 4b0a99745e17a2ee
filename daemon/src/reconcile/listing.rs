//! A key's history, newest first, in the order the bucket has it. The SDK parts versions from
//! delete markers and so loses their order; the answer's own text still has it.

use std::collections::HashSet;

use replicator_core::deadline::LANDING;
use replicator_core::failure::{Failure, FailureKind, Reason};
use replicator_core::object::{Bucket, ETag, Key, Timestamp, VersionId};
use replicator_core::operation::Operation;
use replicator_core::plan::{SourceVersion, VersionKind, VersionRef};
use replicator_core::retry;

use crate::accounts::AccountClients;
use crate::accounts::error::Side;
use crate::engine::Engine;
use crate::s3_http::{self, ResponseHead, S3Request};
use crate::task::Task;

mod page;
mod shared;

use page::{ListContradiction, Listed, VersionPage};
pub(crate) use shared::absence;

/// Lists the source's history of a task's key, newest first: from one list for all neighbours that
/// wait, or alone.
pub(crate) async fn of_source(engine: &Engine, task: &Task) -> Result<Vec<SourceVersion>, Failure> {
    let source = engine.access_to(&task.source)?;
    match shared::history(engine, source, task).await? {
        Some(history) => Ok(history),
        None => list_history(source, Side::Source, &task.source.bucket, &task.source_key).await,
    }
}

/// Lists a key's versions and delete markers, newest first. A list that contradicts itself is read
/// again: a store that lists while it writes names a new entry before it names it the latest
/// (SeaweedFS: 4 % of the lists of a key that is written to). The order of the entries is the order
/// of the replicas, so nothing is put right by guessing.
pub(crate) async fn list_history(
    access: &AccountClients,
    side: Side,
    bucket: &Bucket,
    key: &Key,
) -> Result<Vec<SourceVersion>, Failure> {
    let listing = VersionLister {
        access,
        side,
        bucket,
        prefix: key.as_str(),
    };
    let mut attempt = 1;
    loop {
        let (entries, date) = listing.entries(key).await?;
        let Some(doubt) = page::find_doubt(&entries) else {
            return Ok(as_listed(entries));
        };
        if attempt >= LISTS_MAX {
            return listing.settle(key, entries, doubt, date).await;
        }
        tokio::time::sleep(retry::jittered_delay(attempt, 1.0)).await;
        attempt += 1;
    }
}

// 200, 400 and 800 ms apart: longer than a store takes between writing an entry and naming it the
// latest.
const LISTS_MAX: u32 = 4;

fn as_listed(entries: Vec<Listed>) -> Vec<SourceVersion> {
    entries.into_iter().map(|listed| listed.entry).collect()
}

/// Returns only the newest entry. A server that fills a page before it sorts it may have put
/// another key's there.
pub(crate) async fn newest(
    access: &AccountClients,
    side: Side,
    bucket: &Bucket,
    key: &Key,
) -> Result<Option<SourceVersion>, Failure> {
    let listing = VersionLister {
        access,
        side,
        bucket,
        prefix: key.as_str(),
    };
    let page = listing.page(None, 1).await?;
    let is_empty = page.entries.is_empty() && page.next.is_none();
    match page.entries.into_iter().find(|(other, _)| other == key) {
        Some((_, listed)) if listed.is_latest => Ok(Some(listed.entry)),
        None if is_empty => Ok(None),
        // A server may list first what is not current, for a moment or always.
        Some(_) | None => Ok(list_history(access, side, bucket, key)
            .await?
            .into_iter()
            .next()),
    }
}

// Each is kept while the key is brought up to date, with some 250 bytes, and all are listed again
// for each. What is overwritten every minute has as many after two months.
const VERSIONS_MAX: usize = 100_000;

// A page that is full has a thousand, and one that is not is followed by more of the key: a list of
// so many ends nowhere.
const PAGES_MAX: u32 = 1000;

// Most keys have few versions, and a prefix brings the neighbours along.
const PAGE_ENTRIES: u32 = 100;

// https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html
const PAGE_ENTRIES_MAX: u32 = 1000;

struct VersionLister<'a> {
    access: &'a AccountClients,
    side: Side,
    bucket: &'a Bucket,
    prefix: &'a str,
}

impl VersionLister<'_> {
    /// Reads all that the bucket has of a key, in its order, and what time it is by the server's
    /// clock.
    async fn entries(&self, key: &Key) -> Result<(Vec<Listed>, Option<Timestamp>), Failure> {
        let mut entries = Vec::new();
        let mut interleaved = false;
        let mut from: Option<(String, String)> = None;
        let mut seen = HashSet::new();
        for _page in 0..PAGES_MAX {
            // A key with many entries may have as many again, and a page brings no more of its
            // neighbours than that.
            let had = u32::try_from(entries.len()).unwrap_or(u32::MAX);
            let entries_max = had.clamp(PAGE_ENTRIES, PAGE_ENTRIES_MAX);
            let page = self.page(from.clone(), entries_max).await?;
            interleaved |= page.mixes_kinds();
            let ended = page.passed(key);
            entries.extend(
                page.entries
                    .into_iter()
                    .filter(|(other, _)| other == key)
                    .map(|(_, entry)| entry),
            );
            if ended || page.next.is_none() {
                return Ok((self.in_order(key, entries, interleaved).await?, page.date));
            }
            if !seen.insert(page.next.clone()) {
                return Err(Failure::with_source(
                    FailureKind::Transient,
                    DURING,
                    "the server's pages go in a circle",
                ));
            }
            from = page.next;
            if entries.len() > VERSIONS_MAX {
                break;
            }
        }
        let detail = format!(
            "the key has more than {VERSIONS_MAX} versions, or its list more than {PAGES_MAX} pages"
        );
        Err(Failure::with_source(
            FailureKind::NeedsOperator(Reason::KeyVersionsTooMany),
            DURING,
            detail,
        ))
    }

    async fn in_order(
        &self,
        key: &Key,
        entries: Vec<Listed>,
        interleaved: bool,
    ) -> Result<Vec<Listed>, Failure> {
        if interleaved {
            Ok(entries)
        } else {
            self.merge(key, entries).await
        }
    }

    /// Believes a list that goes on contradicting itself as far as the server bears it out: some
    /// stores list in another order than they show (LocalStack an upload by its beginning,
    /// SeaweedFS the version `null` last).
    async fn settle(
        &self,
        key: &Key,
        mut entries: Vec<Listed>,
        doubt: ListContradiction,
        date: Option<Timestamp>,
    ) -> Result<Vec<SourceVersion>, Failure> {
        // The clocks of a store's hosts may differ; what it names the latest stands first.
        if doubt == ListContradiction::Times {
            return Ok(as_listed(entries));
        }
        let newest = entries.iter().map(|listed| listed.time).max();
        // A younger entry may yet become the latest.
        let is_settled = date
            .zip(newest)
            .is_some_and(|(date, newest)| date - newest >= LANDING);
        let shown = if is_settled {
            self.shown(key, &entries).await?
        } else {
            None
        };
        let Some(at) = shown else {
            return Err(Failure::with_source(FailureKind::Transient, DURING, doubt));
        };
        let latest = entries.remove(at);
        entries.insert(0, latest);
        Ok(as_listed(entries))
    }

    /// Finds the entry that readers of the key see, unless the list names another one as the
    /// latest.
    async fn shown(&self, key: &Key, entries: &[Listed]) -> Result<Option<usize>, Failure> {
        let (id, is_marker) = match self
            .access
            .wire
            .send(S3Request::head_object(self.side, self.bucket, key))
            .await
        {
            Ok(answer) => (answer.into_head().version_id(), false),
            Err(refusal) if refusal.is_absent() => {
                (refusal.header("x-amz-version-id").map(str::to_owned), true)
            }
            Err(refusal) => return Err(refusal.into()),
        };
        let names_any = entries.iter().any(|listed| listed.is_latest);
        let is_shown = |listed: &Listed| {
            let has_id = match &id {
                Some(id) => listed.entry.version.id.as_str() == id,
                // Some servers do not say which marker it is.
                None => is_marker || listed.entry.version.id.is_null(),
            };
            has_id
                && (listed.is_latest || !names_any)
                && (listed.entry.kind == VersionKind::Marker) == is_marker
        };
        Ok(entries.iter().position(is_shown))
    }

    /// Restores the order between versions and markers where the server lists them apart. S3 states
    /// times by the second, so within one second only the server can tell: a request reads the
    /// entry that follows the marker.
    async fn merge(&self, key: &Key, entries: Vec<Listed>) -> Result<Vec<Listed>, Failure> {
        let (markers, mut merged): (Vec<_>, Vec<_>) = entries
            .into_iter()
            .partition(|listed| listed.entry.kind == VersionKind::Marker);
        for marker in markers.into_iter().rev() {
            let time = marker.time;
            let newer = merged.iter().take_while(|other| other.time > time).count();
            let tied = merged.iter().skip(newer).any(|other| other.time == time);
            let at = if tied {
                self.place_of(key, &marker, &merged).await?.unwrap_or(newer)
            } else {
                newer
            };
            merged.insert(at.min(merged.len()), marker);
        }
        Ok(merged)
    }

    /// Reads from the server where a marker stands; `None` when the answer does not tell.
    async fn place_of(
        &self,
        key: &Key,
        marker: &Listed,
        merged: &[Listed],
    ) -> Result<Option<usize>, Failure> {
        let after = (
            key.as_str().to_owned(),
            marker.entry.version.id.as_str().to_owned(),
        );
        let page = self.page(Some(after), 1).await?;
        let next = page.entries.into_iter().find(|(other, _)| other == key);
        Ok(match next {
            Some((_, next)) => merged
                .iter()
                .position(|other| other.entry.version.id == next.entry.version.id),
            None => Some(merged.len()),
        })
    }

    /// Reads a page. XML cannot hold every character a key may have, so such a page is requested
    /// again with its keys encoded; not at once, because not every server pages well over those.
    async fn page(
        &self,
        from: Option<(String, String)>,
        entries_max: u32,
    ) -> Result<VersionPage, Failure> {
        // A text that cannot be read is gone before the next one comes: each may be long.
        let (date, plain) = {
            let (head, text) = self.text(from.clone(), entries_max, false).await?;
            (head.date(), VersionPage::parse_page(&text, false))
        };
        let page = match plain {
            Ok(page) => page,
            Err(_) => {
                let (_, encoded) = self.text(from, entries_max, true).await?;
                let broken = |error| Failure::with_source(FailureKind::Transient, DURING, error);
                VersionPage::parse_page(&encoded, true).map_err(broken)?
            }
        };
        Ok(VersionPage { date, ..page })
    }

    async fn text(
        &self,
        from: Option<(String, String)>,
        entries_max: u32,
        is_encoded: bool,
    ) -> Result<(ResponseHead, String), Failure> {
        let (key_marker, version_marker) = from.unzip();
        let page = s3_http::PageRequest {
            prefix: Some(self.prefix).filter(|prefix| !prefix.is_empty()),
            key_marker: key_marker.as_deref(),
            version_marker: version_marker
                .as_deref()
                .filter(|marker| !marker.is_empty()),
            entries_max,
            is_encoded,
        };
        Ok(self
            .access
            .wire
            .text(S3Request::list(self.side, self.bucket, &page))
            .await?)
    }
}

const DURING: Operation = Operation::ListObjectVersions;
