//! One list for all neighbours that wait: their keys lie together, and a page has room for a
//! thousand entries. A key that gets nothing from it is listed alone; but not while the bucket
//! throttles.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures::FutureExt;
use replicator_core::failure::{Dependency, Failure, FailureKind};
use replicator_core::object::{Bucket, Key, Timestamp};
use replicator_core::plan::SourceVersion;

use super::page::{CLOCK_STEP, Listed, VersionPage};
use super::{DURING, PAGE_ENTRIES, PAGE_ENTRIES_MAX, VersionLister};
use crate::accounts::AccountClients;
use crate::accounts::error::Side;
use crate::engine::{Absence, Engine, SharedHistory};
use crate::panics::contain_task;
use crate::task::Task;

/// Lists the source's history of a task's key together with those of its neighbours. It begins
/// after this is called, so after the destination was read (protocol rule 3).
pub(super) async fn history(
    engine: &Engine,
    source: &AccountClients,
    task: &Task,
) -> Result<Option<Vec<SourceVersion>>, Failure> {
    let (access, bucket, metrics) = (
        source.clone(),
        task.source.bucket.clone(),
        engine.metrics.clone(),
    );
    let together = engine.histories.at(&task.source);
    let answer = together.ask_together(task.source_key.clone(), move |keys| {
        let (access, bucket, metrics) = (access.clone(), bucket.clone(), metrics.clone());
        async move {
            let listed =
                tokio::time::timeout(HISTORIES_TIMEOUT, histories(&access, &bucket, &keys));
            // A key that gets nothing from it is listed alone, and only the task whose key caused a
            // panic panics then.
            let answer = contain_task(&metrics, listed)
                .await
                .ok()
                .and_then(Result::ok);
            answer.unwrap_or_else(|| vec![SharedHistory::Nothing; keys.len()])
        }
        .boxed()
    });
    match answer.await {
        Some(SharedHistory::Whole(history)) => Ok(Some(history)),
        Some(SharedHistory::Nothing) | None => Ok(None),
        Some(SharedHistory::Throttled) => Err(throttled(Dependency::Source)),
    }
}

/// Finds out together with neighbours whether a task's key has no entry at the destination; returns
/// the server's time if so, and none where the key has to be read alone.
pub(crate) async fn absence(
    engine: &Engine,
    destination: &AccountClients,
    task: &Task,
) -> Result<Option<Option<Timestamp>>, Failure> {
    let place = &task.target.destination;
    if engine.asked_in_vain.seen_recently(place) {
        return Ok(None);
    }
    let (access, bucket, metrics) = (
        destination.clone(),
        place.bucket.clone(),
        engine.metrics.clone(),
    );
    let together = engine.absences.at(place);
    let answer = together.ask_together(task.target.key.clone(), move |keys| {
        let (access, bucket, metrics) = (access.clone(), bucket.clone(), metrics.clone());
        async move {
            let answer = contain_task(&metrics, absences(&access, &bucket, &keys)).await;
            answer.unwrap_or_else(|_| vec![Absence::Unknown; keys.len()])
        }
        .boxed()
    });
    match answer.await {
        Some(Absence::Nothing(date)) => return Ok(Some(date)),
        Some(Absence::Throttled) => return Err(throttled(Dependency::Destination)),
        Some(Absence::InVain) => engine.asked_in_vain.mark_seen(place),
        Some(Absence::Unknown) | None => {}
    }
    Ok(None)
}

fn throttled(dependency: Dependency) -> Failure {
    Failure::new(FailureKind::Throttled, DURING).of(dependency)
}

/// Lists what the source has of the keys.
async fn histories(access: &AccountClients, bucket: &Bucket, keys: &[Key]) -> Vec<SharedHistory> {
    let sorted = sorted(keys);
    let mut found: HashMap<&Key, Vec<SourceVersion>> = HashMap::new();
    let end = pages(access, (Side::Source, bucket), &sorted, |page, served| {
        let is_interleaved = access.is_aws || page.mixes_kinds();
        let mut entries = by_key(page);
        let mut whole = |key| {
            Some((
                key,
                history_of(entries.remove(key).unwrap_or_default(), is_interleaved)?,
            ))
        };
        found.extend(served.iter().filter_map(|key| whole(*key)));
    });
    let otherwise = if end.await == End::Throttled {
        SharedHistory::Throttled
    } else {
        SharedHistory::Nothing
    };
    keys.iter()
        .map(|key| {
            found
                .get(key)
                .cloned()
                .map_or_else(|| otherwise.clone(), SharedHistory::Whole)
        })
        .collect()
}

/// Lists which of the keys the destination has no entry of, if they are many.
async fn absences(access: &AccountClients, bucket: &Bucket, keys: &[Key]) -> Vec<Absence> {
    let sorted = sorted(keys);
    let together_min = if access.is_aws {
        TOGETHER_MIN_AWS
    } else {
        TOGETHER_MIN
    };
    if sorted.len() < together_min {
        return vec![Absence::Unknown; keys.len()];
    }
    let mut absent: HashMap<&Key, Option<Timestamp>> = HashMap::new();
    let end = pages(
        access,
        (Side::Destination, bucket),
        &sorted,
        |page, served| {
            let there: HashSet<&Key> = page.entries.iter().map(|(key, _)| key).collect();
            let missing = served.iter().filter(|key| !there.contains(*key));
            absent.extend(missing.map(|key| (*key, page.date)));
        },
    );
    // It is only to save requests: what hangs tells nothing.
    let end = tokio::time::timeout(ABSENCES_TIMEOUT, end)
        .await
        .unwrap_or(End::Broken);
    let is_vain = end == End::Broken || absent.len() * WORTH_IT < sorted.len();
    let otherwise = match end {
        End::Throttled => Absence::Throttled,
        End::Through | End::Broken if is_vain => Absence::InVain,
        End::Through | End::Broken => Absence::Unknown,
    };
    keys.iter()
        .map(|key| absent.get(key).copied().map_or(otherwise, Absence::Nothing))
        .collect()
}

/// How far pages went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Through,
    Broken,
    Throttled,
}

/// Lists what is between the first of the keys and the last, in a few pages at most: what lies
/// before the first key that the last page does not serve is passed over. Each page is told of with
/// the keys of which it has all that there is.
async fn pages<'k>(
    access: &AccountClients,
    (side, bucket): (Side, &Bucket),
    keys: &[&'k Key],
    mut tell: impl FnMut(VersionPage, &[&'k Key]),
) -> End {
    let mut rest = keys;
    for nth in 1..=PAGES_MAX {
        let page = match read_page_from(access, (side, bucket), rest, nth).await {
            Ok(Some(page)) => page,
            Err(failure) if failure.kind == FailureKind::Throttled => return End::Throttled,
            Ok(None) | Err(_) => return End::Broken,
        };
        let count = rest.iter().take_while(|key| page.has_all_of(key)).count();
        // A key that has more than a page is passed over.
        let (served, beyond) = (
            rest.get(..count).unwrap_or_default(),
            rest.get(count.max(1)..).unwrap_or_default(),
        );
        // Far apart: each alone costs less than pages full of others. One key may be far from all
        // others, a late one.
        let is_sparse = nth > 1 && (keys.len() - beyond.len()) * SPARSE < keys.len();
        tell(page, served);
        rest = beyond;
        if rest.is_empty() || is_sparse {
            break;
        }
    }
    End::Through
}

// For AWS a list is as dear as twelve and a half of the requests that it stands for:
// <https://aws.amazon.com/s3/pricing/>
const TOGETHER_MIN_AWS: usize = 13;
const TOGETHER_MIN: usize = 3;
// If it tells of fewer than one in so many, it is not worth a request for some time.
const WORTH_IT: usize = 4;
const ABSENCES_TIMEOUT: Duration = Duration::from_secs(5);
// A list that hangs holds up other keys for no longer: each is listed alone then.
const HISTORIES_TIMEOUT: Duration = Duration::from_secs(20);

fn sorted(keys: &[Key]) -> Vec<&Key> {
    let mut sorted: Vec<&Key> = keys.iter().collect();
    sorted.sort_unstable();
    sorted.dedup();
    sorted
}

// Of a bucket whose keys lie so far apart that a page serves fewer than one in so many, the others
// are listed alone.
const SPARSE: usize = 8;
const PAGES_MAX: u32 = 4;
// Some servers read a file for each entry (SeaweedFS 4.48: 0.1 to 0.2 ms of CPU), so a page too
// long costs more than another page.
const PAGE_ENTRIES_MIN: u32 = 16;
// Most keys that wait are new and next to each other. Where they are not, later pages make up for
// it.
const ENTRIES_A_KEY_LATER: u32 = 2;

/// Reads the page that begins with the first of the keys; none where no list can begin there.
async fn read_page_from(
    access: &AccountClients,
    (side, bucket): (Side, &Bucket),
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

fn by_key(page: VersionPage) -> HashMap<Key, Vec<Listed>> {
    let mut all: HashMap<Key, Vec<Listed>> = HashMap::new();
    for (key, listed) in page.entries {
        all.entry(key).or_default().push(listed);
    }
    all
}

/// Returns a key's history; none where only the server can tell the order of its versions and
/// markers, where the page contradicts itself, or has nothing of it.
fn history_of(entries: Vec<Listed>, is_interleaved: bool) -> Option<Vec<SourceVersion>> {
    // A server that lists versions and markers apart has them in order where their times leave no
    // other.
    let is_told = |(above, below): (&Listed, &Listed)| {
        above.entry.kind == below.entry.kind || above.time - below.time > CLOCK_STEP
    };
    let is_ordered = is_interleaved || entries.iter().zip(entries.iter().skip(1)).all(is_told);
    let is_plain = is_ordered && !entries.is_empty() && super::page::find_doubt(&entries).is_none();
    is_plain.then(|| super::as_listed(entries))
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
