//! A key's history, newest first, in the order the bucket has it: from one list for all
//! neighbouring keys that wait, because their keys lie together and a page has room for a
//! thousand entries. A key that gets nothing from that list is listed alone; but not while the
//! bucket throttles.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures::FutureExt;
use replicator_core::failure::{Dependency, Failure, FailureKind, Operation, Reason};
use replicator_core::object::{Bucket, Key, Timestamp};
use replicator_core::plan::{SourceVersion, VersionKind};
use replicator_core::retry;
use replicator_core::retry::LANDING;
use replicator_core::rule::UnmanagedObjects;

use crate::engine::SharedHistory;
use crate::process::contain_task;
use crate::reconcile::Context;
use crate::reconcile::transient;
use crate::s3::accounts::AccountClients;
use crate::s3::accounts::error::Side;
use crate::s3::client::S3Request;

mod page;

use page::{CLOCK_STEP, ListContradiction, Listed, VersionPage, find_doubt};
pub(crate) use page::{KeyHistory, KeyRange, KeyStream, PAGE_ENTRIES_MAX, VersionLister};

/// Lists the source's history of a task's key, newest first: from one list for all neighbours that
/// wait, or alone.
pub(in crate::reconcile) async fn of_source(
    cx: Context<'_>,
) -> Result<Vec<SourceVersion>, Failure> {
    // Of what an event names a list that has nothing may lag.
    if let SharedHistory::Whole(history) = shared_history(cx, Side::Source).await? {
        return Ok(history);
    }
    list_history(cx, Side::Source).await
}

/// Says whether a list of the destination shows nothing of a task's key. It is read for many
/// neighbours that wait, as a list costs more than a few HEADs. Where an object that is there must
/// not be missed, and of a key that not every store lists as it is, a HEAD tells.
pub(in crate::reconcile) async fn is_unlisted(cx: Context<'_>) -> Result<bool, Failure> {
    let place = &cx.task.target.destination;
    let may_miss = cx.rule().unmanaged_objects == UnmanagedObjects::Overwrite
        && is_listed_as_it_is(&cx.task.target.key);
    if !may_miss || cx.engine.sparse.seen_recently(place) {
        return Ok(false);
    }
    let shared = shared_history(cx, Side::Destination).await?;
    if matches!(shared, SharedHistory::Sparse) {
        cx.engine.sparse.mark_seen(place);
    }
    Ok(matches!(shared, SharedHistory::Absent))
}

/// Says whether a key has nothing that XML cannot hold or a file system takes for something else.
fn is_listed_as_it_is(key: &Key) -> bool {
    let key = key.as_str();
    let is_plain = |letter: char| !letter.is_control() && letter < '\u{FFFD}';
    key.chars().all(is_plain)
        && !key
            .split('/')
            .any(|part| part.is_empty() || part.starts_with('.'))
}

/// Lists a key's versions and delete markers, newest first. A list that contradicts itself is read
/// again: a store that lists while it writes names a new entry before it names it the latest
/// (SeaweedFS: 4 % of the lists of a key that is written to). The order of the entries is the order
/// of the replicas, so nothing is put right by guessing.
pub(in crate::reconcile) async fn list_history(
    cx: Context<'_>,
    side: Side,
) -> Result<Vec<SourceVersion>, Failure> {
    let (listing, key) = lister(cx, side);
    listing.history(key).await
}

// 200, 400 and 800 ms apart: longer than a store takes between writing an entry and naming it the
// latest.
const LISTS_MAX: u32 = 4;

fn as_listed(entries: Vec<Listed>) -> Vec<SourceVersion> {
    entries.into_iter().map(|listed| listed.entry).collect()
}

/// Returns only the newest entry. A server that fills a page before it sorts it may have put
/// another key's there.
pub(in crate::reconcile) async fn newest(
    cx: Context<'_>,
    side: Side,
) -> Result<Option<SourceVersion>, Failure> {
    let (listing, key) = lister(cx, side);
    let page = listing.page(None, 1).await?;
    let is_empty = page.entries.is_empty() && page.next.is_none();
    match page.entries.into_iter().find(|(other, _)| other == key) {
        Some((_, listed)) if listed.is_latest => Ok(Some(listed.entry)),
        None if is_empty => Ok(None),
        // A server may list first what is not current, for a moment or always.
        Some(_) | None => Ok(list_history(cx, side).await?.into_iter().next()),
    }
}

/// Names a task's key on one of its sides.
fn lister(cx: Context<'_>, side: Side) -> (VersionLister<'_>, &Key) {
    let (access, bucket, key) = cx.at(side);
    (VersionLister::of_key(access, (side, bucket), key), key)
}

// Each is kept while the key is brought up to date, with some 250 bytes, and all are listed again
// for each. What is overwritten every minute has as many after two months.
pub(crate) const VERSIONS_MAX: usize = 100_000;

const TOO_MANY: FailureKind = FailureKind::NeedsOperator(Reason::KeyVersionsTooMany);

// A page that is full has a thousand, and one that is not is followed by more of the key: a list of
// so many ends nowhere.
const PAGES_MAX: u32 = 1000;

// Most keys have few versions, and a prefix brings the neighbours along.
const PAGE_ENTRIES: u32 = 100;

/// The versions of a key, oldest first.
#[derive(Debug, Default)]
pub(crate) struct KeyVersions {
    pub(crate) entries: Vec<SourceVersion>,
    /// There are too many, and none is kept but the newest.
    pub(crate) is_cut: bool,
}

impl VersionLister<'_> {
    /// Lists the versions of a key, unless there are too many.
    pub(crate) async fn versions(&self, key: &Key) -> Result<KeyVersions, Failure> {
        match self.history(key).await {
            Ok(mut entries) => {
                entries.reverse();
                Ok(KeyVersions {
                    entries,
                    is_cut: false,
                })
            }
            Err(failure) if failure.kind == TOO_MANY => Ok(KeyVersions {
                entries: Vec::new(),
                is_cut: true,
            }),
            Err(failure) => Err(failure),
        }
    }

    /// Lists the history of a key, newest first.
    pub(crate) async fn history(&self, key: &Key) -> Result<Vec<SourceVersion>, Failure> {
        let mut attempt = 1;
        loop {
            let (entries, date) = self.entries(key).await?;
            let Some(doubt) = find_doubt(&entries) else {
                return Ok(as_listed(entries));
            };
            if attempt >= LISTS_MAX {
                return self.resolve(key, entries, doubt, date).await;
            }
            tokio::time::sleep(retry::jittered_delay(attempt, 1.0)).await;
            attempt += 1;
        }
    }

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
            let is_last = page.has_all_of(key);
            entries.extend(
                page.entries
                    .into_iter()
                    .filter(|(other, _)| other == key)
                    .map(|(_, entry)| entry),
            );
            if is_last {
                let entries = match interleaved {
                    true => entries,
                    false => self.merge(key, entries).await?,
                };
                return Ok((entries, page.date));
            }
            if !seen.insert(page.next.clone()) {
                return Err(transient(DURING, "the server's pages go in a circle"));
            }
            from = page.next;
            if entries.len() > VERSIONS_MAX {
                break;
            }
        }
        let detail = format!(
            "the key has more than {VERSIONS_MAX} versions, or its list more than {PAGES_MAX} pages"
        );
        Err(Failure::with_source(TOO_MANY, DURING, detail))
    }

    /// Believes a list that goes on contradicting itself as far as the server confirms it: some
    /// stores list in another order than they show (LocalStack an upload by its beginning,
    /// SeaweedFS the version `null` last).
    async fn resolve(
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
        let is_old_enough = date
            .zip(newest)
            .is_some_and(|(date, newest)| date - newest >= LANDING);
        let shown = if is_old_enough {
            self.shown(key, &entries).await?
        } else {
            None
        };
        let Some(at) = shown else {
            return Err(transient(DURING, doubt));
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
}

/// Lists the history of a task's key together with those of its neighbours. The list begins after
/// this is called; that of the source therefore after the destination was read (protocol rule 3).
async fn shared_history(cx: Context<'_>, side: Side) -> Result<SharedHistory, Failure> {
    let (access, bucket, key) = cx.at(side);
    let (access, bucket) = (access.clone(), bucket.clone());
    let metrics = cx.engine.metrics.clone();
    let (together, throttled) = match side {
        Side::Source => (cx.engine.histories.at(&cx.task.source), Dependency::Source),
        Side::Destination | Side::Write | Side::Prepare => (
            cx.engine.absences.at(&cx.task.target.destination),
            Dependency::Destination,
        ),
    };
    let answer = together.ask_together(key.clone(), move |keys| {
        let (access, bucket, metrics) = (access.clone(), bucket.clone(), metrics.clone());
        async move {
            let place = (&access, side, &bucket);
            let listed = tokio::time::timeout(HISTORIES_TIMEOUT, histories(place, &keys));
            // A key that gets nothing from it is read alone, and only the task of the key that
            // caused a panic panics then.
            let answer = contain_task(&metrics, listed)
                .await
                .ok()
                .and_then(Result::ok);
            answer.unwrap_or_else(|| vec![SharedHistory::Sparse; keys.len()])
        }
        .boxed()
    });
    match answer.await {
        Some(SharedHistory::Throttled) => {
            Err(Failure::new(FailureKind::Throttled, DURING).of(throttled))
        }
        answer => Ok(answer.unwrap_or(SharedHistory::Unknown)),
    }
}

/// Lists what a bucket has of the keys, in a few pages at most: what lies before the first key that
/// a page does not serve is skipped. A key of which a page has not all is read alone.
async fn histories(
    (access, side, bucket): (&AccountClients, Side, &Bucket),
    keys: &[Key],
) -> Vec<SharedHistory> {
    let mut sorted: Vec<&Key> = keys.iter().collect();
    sorted.sort_unstable();
    sorted.dedup();
    let mut found: HashMap<&Key, SharedHistory> = HashMap::new();
    let (mut rest, mut otherwise) = (sorted.as_slice(), SharedHistory::Unknown);
    if side != Side::Source && sorted.len() < NEIGHBOURS_MIN {
        return vec![otherwise; keys.len()];
    }
    for nth in 1..=SHARED_PAGES_MAX {
        let page = match read_page_from((access, side, bucket), rest, nth).await {
            Ok(Some(page)) => page,
            Err(failure) if failure.kind == FailureKind::Throttled => {
                otherwise = SharedHistory::Throttled;
                break;
            }
            Ok(None) | Err(_) => {
                otherwise = SharedHistory::Sparse;
                break;
            }
        };
        let count = rest.iter().take_while(|key| page.has_all_of(key)).count();
        let served = rest.get(..count).unwrap_or_default();
        // A key that has more than a page is skipped.
        rest = rest.get(count.max(1)..).unwrap_or_default();
        let is_interleaved = access.is_aws || page.mixes_kinds();
        let mut entries: HashMap<Key, Vec<Listed>> = HashMap::new();
        for (key, listed) in page.entries {
            entries.entry(key).or_default().push(listed);
        }
        for key in served {
            let shared = match entries.remove(*key) {
                Some(listed) => history_of(listed, is_interleaved)
                    .map_or(SharedHistory::Unknown, SharedHistory::Whole),
                // A server may fill a page before it sorts it: what is missing comes later.
                None if page.next.is_some() => SharedHistory::Sparse,
                None => SharedHistory::Absent,
            };
            found.insert(*key, shared);
        }
        if rest.is_empty() {
            break;
        }
        // Far apart: each alone costs less than pages full of others. One key may be far from all
        // others, a late one.
        let served = sorted.len() - rest.len();
        let is_sparse = match side {
            Side::Source => nth > 1 && served * SPARSE < sorted.len(),
            Side::Destination | Side::Write | Side::Prepare => served * 2 < sorted.len(),
        };
        if is_sparse {
            otherwise = SharedHistory::Sparse;
            break;
        }
    }
    keys.iter()
        .map(|key| found.get(key).unwrap_or(&otherwise).clone())
        .collect()
}

// A list that hangs holds up other keys for no longer: each is listed alone then.
const HISTORIES_TIMEOUT: Duration = Duration::from_secs(20);

// Of a bucket whose keys lie so far apart that a page serves fewer than one in so many, the others
// are listed alone.
const SPARSE: usize = 8;
// Vendors charge for a list what ten HEADs cost, and a message batch has ten:
// https://www.backblaze.com/cloud-storage/transaction-pricing
const NEIGHBOURS_MIN: usize = 8;
const SHARED_PAGES_MAX: u32 = 4;
// Some servers read a file for each entry (SeaweedFS 4.48: 0.1 to 0.2 ms of CPU), so a page too
// long costs more than another page.
const PAGE_ENTRIES_MIN: u32 = 16;
// Most keys that wait are new and next to each other. Where they are not, later pages make up for
// it.
const ENTRIES_A_KEY_LATER: u32 = 2;

/// Reads the page that begins with the first of the keys; none where no list can begin there.
async fn read_page_from(
    (access, side, bucket): (&AccountClients, Side, &Bucket),
    keys: &[&Key],
    nth: u32,
) -> Result<Option<VersionPage>, Failure> {
    let (Some(first), Some(last)) = (keys.first(), keys.last()) else {
        return Ok(None);
    };
    let prefix = common_prefix(first.as_str(), last.as_str());
    let is_alone = first == last;
    let listing = VersionLister {
        access,
        side,
        bucket,
        prefix,
    };
    // What begins with the first key begins there; and some stores take no marker that lies outside
    // of the prefix.
    let starts = first.as_str() == prefix;
    let before = just_before(first.as_str())
        .filter(|_| !starts)
        .map(|before| (before, String::new()));
    if before.is_none() && !starts {
        return Ok(None);
    }
    // What else a page has is read for nothing.
    let keys_len = u32::try_from(keys.len()).unwrap_or(u32::MAX);
    let wanted = if nth == 1 {
        keys_len.saturating_add(keys_len / 4)
    } else {
        keys_len.saturating_mul(ENTRIES_A_KEY_LATER)
    };
    let entries_max = if is_alone {
        PAGE_ENTRIES
    } else {
        wanted.clamp(PAGE_ENTRIES_MIN, PAGE_ENTRIES_MAX)
    };
    listing.page(before, entries_max).await.map(Some)
}

/// Returns a key's history; none where only the server can tell the order of its versions and
/// markers, or where the page contradicts itself.
fn history_of(entries: Vec<Listed>, is_interleaved: bool) -> Option<Vec<SourceVersion>> {
    // A server that lists versions and markers apart has them in order where their times leave no
    // other.
    let is_told = |(above, below): (&Listed, &Listed)| {
        above.entry.kind == below.entry.kind || above.time - below.time > CLOCK_STEP
    };
    let is_ordered = is_interleaved || entries.iter().zip(entries.iter().skip(1)).all(is_told);
    let is_plain = is_ordered && find_doubt(&entries).is_none();
    is_plain.then(|| as_listed(entries))
}

fn common_prefix<'a>(first: &'a str, last: &str) -> &'a str {
    let common = first
        .char_indices()
        .zip(last.chars())
        .find(|((_, one), other)| one != other);
    let end = common.map_or(first.len().min(last.len()), |((at, _), _)| at);
    first.get(..end).unwrap_or_default()
}

/// Returns a text that hardly any key lies between and this one; a list begins behind it. None
/// where a key is so long that S3 would not take the text:
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html>
fn just_before(key: &str) -> Option<String> {
    let last = key.chars().next_back()?;
    let rest = key.strip_suffix(last)?;
    let lower = (0..u32::from(last)).rev().find_map(char::from_u32);
    let text = lower
        .filter(|lower| !lower.is_control())
        .map_or(rest.to_owned(), |lower| format!("{rest}{lower}{HIGHEST}"));
    (!text.is_empty() && text.len() <= KEY_BYTES_MAX).then_some(text)
}

// The last character that has a meaning at all, if a private one.
const HIGHEST: char = '\u{10FFFD}';
const KEY_BYTES_MAX: usize = 1024;

const DURING: Operation = Operation::ListObjectVersions;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_begins_right_before_the_first_key() {
        for key in ["a", "bench/0005", "bench/", "ключ", "a b", "~"] {
            let before = just_before(key).unwrap();
            assert!(before.as_str() < key, "{before:?} is not before {key:?}");
        }
        assert_eq!(just_before("a5").as_deref(), Some("a4\u{10FFFD}"));
        assert_eq!(just_before("a\u{1}").as_deref(), Some("a"));
        assert_eq!(just_before("\u{1}"), None);
        assert_eq!(just_before(&"x".repeat(1024)), None);
    }

    #[test]
    fn a_marker_is_in_its_place_where_its_time_leaves_no_other() {
        let entry = |kind: &str, id: &str, second: u32, is_latest: bool| {
            format!(
                "<{kind}><Key>a</Key><VersionId>{id}</VersionId><IsLatest>{is_latest}</IsLatest>\
                 <LastModified>2026-01-02T03:04:{second:02}Z</LastModified></{kind}>"
            )
        };
        let read = |entries: &[String], is_interleaved| {
            let text = format!(
                "<ListVersionsResult>{}</ListVersionsResult>",
                entries.concat()
            );
            let page = VersionPage::parse_page(&text, false).unwrap();
            let history = history_of(
                page.entries.into_iter().map(|(_, listed)| listed).collect(),
                is_interleaved,
            );
            history.map(|history| {
                history
                    .iter()
                    .map(|entry| entry.version.id.to_string())
                    .collect::<Vec<_>>()
            })
        };
        let below = |second| {
            [
                entry("DeleteMarker", "m", 9, true),
                entry("Version", "v", second, false),
            ]
        };
        assert_eq!(read(&below(7), false).unwrap(), ["m", "v"]);
        assert_eq!(
            read(&below(8), false),
            None,
            "which is the newer the server has to say"
        );
        assert_eq!(read(&below(8), true).unwrap(), ["m", "v"]);
        let apart = [
            entry("DeleteMarker", "m", 5, false),
            entry("Version", "v", 9, true),
        ];
        assert_eq!(read(&apart, false), None);
    }

    #[test]
    fn neighbours_share_what_their_names_begin_with() {
        assert_eq!(common_prefix("bench/1", "bench/2"), "bench/");
        assert_eq!(common_prefix("ключ", "клей"), "кл");
        assert_eq!(common_prefix("same", "same"), "same");
        assert_eq!(common_prefix("a", "b"), "");
    }
}
