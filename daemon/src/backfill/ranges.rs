//! The keys of a bucket in ranges that are read beside each other. Where to cut is found by lists of
//! one entry: what keys have in common, and which characters follow that.

use replicator_core::failure::Failure;
use replicator_core::object::Key;

use crate::reconcile::listing::{PAGE_ENTRIES_MAX, VersionLister};
use crate::verify::keys::KeyRange;

// More than are read at a time, so that one that is longer than the others has company to the end.
const RANGES_WANTED: usize = 32;

// What a bucket of any names may cost to look at: 0.15 cents at 0.005 dollars a thousand.
const PROBES_MAX: u32 = 300;

// Of the characters that may follow. What comes after the last is one range.
const CHILDREN_MAX: usize = 64;

// A marker may have as many bytes as a key, and ends with a character of four.
const MARKER_BYTES_MAX: usize = 1_024 - LAST.len_utf8();

/// Comes after every other character: <https://www.unicode.org/versions/Unicode16.0.0/core-spec/chapter-2/#G13708>
const LAST: char = '\u{10ffff}';

/// Cuts the keys that begin with the lister's prefix into ranges, in their order. A bucket of one
/// page is one range.
pub(super) async fn split_keys(lister: &VersionLister<'_>) -> Result<Vec<KeyRange>, Failure> {
    let first = lister.page(None, PAGE_ENTRIES_MAX).await?;
    if first.next.is_none() {
        return Ok(vec![KeyRange::default()]);
    }
    let mut splitter = Splitter { lister, probes: 0 };
    let mut parts = vec![lister.prefix.to_owned()];
    while parts.len() < RANGES_WANTED {
        let finer = splitter.split_each(&parts).await?;
        if finer.len() == parts.len() {
            break;
        }
        parts = finer;
    }
    Ok(ranges_between(parts.get(1..).unwrap_or_default()))
}

/// Makes ranges that end at these keys, and one after them.
fn ranges_between(cuts: &[String]) -> Vec<KeyRange> {
    let ends = cuts.iter().cloned().map(Some).chain([None]);
    let mut after = None;
    ends.map(|until| KeyRange {
        after: std::mem::replace(&mut after, until.clone()),
        until,
    })
    .collect()
}

struct Splitter<'a> {
    lister: &'a VersionLister<'a>,
    /// Lists that were requested.
    probes: u32,
}

impl Splitter<'_> {
    async fn split_each(&mut self, parts: &[String]) -> Result<Vec<String>, Failure> {
        let mut finer = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            let are_enough = finer.len() + parts.len() - at >= RANGES_WANTED;
            match self.probes < PROBES_MAX && !are_enough {
                true => finer.extend(self.split_part(part).await?),
                false => finer.push(part.clone()),
            }
        }
        Ok(finer)
    }

    /// Returns what the keys of a part begin with, one character further than what they have in
    /// common.
    async fn split_part(&mut self, part: &str) -> Result<Vec<String>, Failure> {
        let Some(mut key) = self.key_after(None, part).await? else {
            return Ok(vec![part.to_owned()]);
        };
        let common = self.common_start(part, key.as_str()).await?;
        let mut children = Vec::new();
        while self.probes < PROBES_MAX && children.len() < CHILDREN_MAX {
            let child = start_beyond(key.as_str(), &common);
            let next = if child == common {
                // The first key is all that they have in common.
                self.key_after(Some(child), part).await?
            } else {
                children.push(child);
                let child = children.last().map_or(part, String::as_str);
                self.key_beyond(child, part).await?
            };
            match next {
                Some(next) => key = next,
                None => break,
            }
        }
        if children.is_empty() {
            children.push(part.to_owned());
        }
        Ok(children)
    }

    /// Returns what all keys of a part begin with, given the first of them: the longest start of it
    /// that no key comes after.
    async fn common_start(&mut self, part: &str, first: &str) -> Result<String, Failure> {
        let starts: Vec<&str> = (part.len()..=first.len().min(MARKER_BYTES_MAX))
            .filter_map(|end| first.get(..end))
            .collect();
        // No key of the part comes after the part itself.
        let (mut common, mut differing) = (0, starts.len());
        while differing - common > 1 {
            let middle = usize::midpoint(common, differing);
            let start = starts.get(middle).copied().unwrap_or_default();
            match self.key_beyond(start, part).await? {
                Some(_) => differing = middle,
                None => common = middle,
            }
        }
        Ok(starts.get(common).copied().unwrap_or(part).to_owned())
    }

    /// Returns the first key of a part after all that begin in a way.
    async fn key_beyond(&mut self, start: &str, part: &str) -> Result<Option<Key>, Failure> {
        self.key_after(Some(format!("{start}{LAST}")), part).await
    }

    async fn key_after(
        &mut self,
        marker: Option<String>,
        part: &str,
    ) -> Result<Option<Key>, Failure> {
        self.probes += 1;
        let lister = VersionLister {
            prefix: part,
            ..*self.lister
        };
        let from = marker.map(|marker| (marker, String::new()));
        let page = lister.page(from, 1).await?;
        Ok(page.entries.into_iter().next().map(|(key, _)| key))
    }
}

/// Returns the beginning of a key, one character longer than this, if the key is longer.
fn start_beyond(key: &str, common: &str) -> String {
    let rest = key.get(common.len()..).unwrap_or_default();
    let next = rest.chars().next().map_or(0, char::len_utf8);
    key.get(..common.len() + next).unwrap_or(key).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_each_other_without_a_gap() {
        let ranges = ranges_between(&["b".to_owned(), "m".to_owned()]);
        let ends: Vec<_> = ranges
            .iter()
            .map(|range| (range.after.as_deref(), range.until.as_deref()))
            .collect();
        assert_eq!(
            ends,
            [(None, Some("b")), (Some("b"), Some("m")), (Some("m"), None)]
        );
        assert_eq!(ranges_between(&[]), [KeyRange::default()]);
    }
}
