//! Pages of ListObjectVersions: the request, its answer in the order it was written, which the SDK
//! loses by separating versions from delete markers; and the keys of a bucket, page by page.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use replicator_core::failure::{Failure, FailureKind};
use replicator_core::object::{self, Bucket, ETag, Key, Timestamp, VersionId};
use replicator_core::plan::{SourceVersion, VersionKind, VersionRef};
use replicator_core::retry;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::reconcile::observe::listing::{DURING, KeyVersions, VERSIONS_MAX};
use crate::reconcile::transient;
use crate::s3::accounts::AccountClients;
use crate::s3::accounts::error::Side;
use crate::s3::client::{PageRequest, ResponseHead, S3Request};
use crate::s3::xml::{self, NotXml};

/// The entries of one page, each with its key.
#[derive(Debug)]
pub(crate) struct VersionPage {
    pub(crate) entries: Vec<(Key, Listed)>,
    /// Where the next page starts: a key and a version id, which may be empty.
    pub(crate) next: Option<(String, String)>,
    /// What time it was by the server's clock, if stated.
    pub(super) date: Option<Timestamp>,
}

/// An entry as the server lists it.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) entry: SourceVersion,
    pub(crate) is_latest: bool,
    /// When it was made, as finely as the server states it.
    pub(crate) time: Timestamp,
}

/// What cannot be true at once of a key's entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum ListContradiction {
    #[error("the list names no entry as the latest, or several")]
    Latest,
    #[error("the list names another entry than the first as the latest")]
    First,
    #[error("the list has an older entry above a newer one")]
    Times,
}

/// Says how all entries of a key contradict each other, if they do.
pub(crate) fn find_doubt(entries: &[Listed]) -> Option<ListContradiction> {
    let first = entries.first()?;
    let is_reversed = |(above, below): (&Listed, &Listed)| below.time - above.time > CLOCK_STEP;
    if entries.iter().filter(|listed| listed.is_latest).count() != 1 {
        return Some(ListContradiction::Latest);
    }
    if !first.is_latest {
        return Some(ListContradiction::First);
    }
    entries
        .iter()
        .zip(entries.iter().skip(1))
        .any(is_reversed)
        .then_some(ListContradiction::Times)
}

// Of two writes at one moment either may bear the later second.
pub(super) const CLOCK_STEP: Duration = Duration::from_secs(1);

/// An answer that is not a list of versions.
#[derive(Debug, Error)]
pub(super) enum NotAPage {
    #[error(transparent)]
    Xml(#[from] NotXml),
    #[error("the answer is no {ROOT}")]
    Other,
    #[error("an entry has no valid {0}")]
    Field(&'static str),
    #[error("a page has more than {PAGE_ENTRIES_MAX} entries")]
    Long,
}

// https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html
pub(crate) const PAGE_ENTRIES_MAX: u32 = 1000;

const ROOT: &str = "ListVersionsResult";

// A key has 1,024 bytes, and each may be an escape of three where keys come encoded.
const MARKER_BYTES_MAX: usize = 3 * 1024;

impl VersionPage {
    pub(super) fn parse_page(text: &str, encoded: bool) -> Result<Self, NotAPage> {
        let mut entries = Vec::new();
        let mut fields = EntryFields::default();
        let (mut is_truncated, mut next_key, mut next_version) =
            (false, String::new(), String::new());
        let mut is_page = false;
        xml::visit_elements(text, |path, text| {
            match path {
                [ROOT] => is_page = true,
                [_, "Version" | "DeleteMarker"] if entries.len() == PAGE_ENTRIES_MAX as usize => {
                    return Err(NotAPage::Long);
                }
                [_, "Version" | "DeleteMarker", name] => fields.set(name, text),
                [_, "Version"] => {
                    entries.push(std::mem::take(&mut fields).entry(VersionKind::Object, encoded)?);
                }
                [_, "DeleteMarker"] => {
                    entries.push(std::mem::take(&mut fields).entry(VersionKind::Marker, encoded)?);
                }
                [_, "IsTruncated"] => is_truncated = text == "true",
                [_, "NextKeyMarker"] => next_key = decoded(text, encoded),
                [_, "NextVersionIdMarker"] => next_version = text.into_owned(),
                _ => {}
            }
            Ok::<_, NotAPage>(())
        })?;
        if !is_page {
            return Err(NotAPage::Other);
        }
        if next_key.len().max(next_version.len()) > MARKER_BYTES_MAX {
            return Err(NotAPage::Field("marker"));
        }
        Ok(Self {
            entries,
            next: is_truncated.then_some((next_key, next_version)),
            date: None,
        })
    }

    /// Says whether the page proves that the server mixes versions and markers as the bucket has
    /// them. One that lists them apart changes from one kind to the other once at most.
    pub(crate) fn mixes_kinds(&self) -> bool {
        let kinds = self.entries.iter().map(|(_, listed)| listed.entry.kind);
        kinds
            .clone()
            .zip(kinds.skip(1))
            .filter(|(one, other)| one != other)
            .count()
            > 1
    }

    /// Says whether no later page has anything of a key.
    pub(super) fn has_all_of(&self, key: &Key) -> bool {
        self.next
            .as_ref()
            .is_none_or(|(next, _)| next.as_str() > key.as_str())
    }
}

/// Lists the entries of a bucket whose keys begin with a prefix.
pub(crate) struct VersionLister<'a> {
    pub(crate) access: &'a AccountClients,
    pub(crate) side: Side,
    pub(crate) bucket: &'a Bucket,
    pub(crate) prefix: &'a str,
}

impl<'a> VersionLister<'a> {
    /// Lists one key, and what begins with it.
    pub(crate) fn of_key(
        access: &'a AccountClients,
        (side, bucket): (Side, &'a Bucket),
        key: &'a Key,
    ) -> Self {
        Self {
            access,
            side,
            bucket,
            prefix: key.as_str(),
        }
    }

    /// Reads a page. XML cannot hold every character a key may have, so such a page is requested
    /// again with its keys encoded; not at once, because not every server pages well over those.
    pub(crate) async fn page(
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
                let broken = |error| transient(DURING, error);
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
        let page = PageRequest {
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

/// Keys of a bucket in their order; without an end to the first or the last of all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyRange {
    /// They come after this one.
    pub(crate) after: Option<String>,
    /// This is the last of them, if it is there.
    pub(crate) until: Option<String>,
}

/// A key and what one side has of it.
#[derive(Debug)]
pub(crate) struct KeyHistory {
    pub(crate) key: Key,
    pub(crate) versions: KeyVersions,
}

/// Reads the keys of a bucket that begin with a prefix.
pub(crate) struct KeyStream<'a> {
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
    pub(crate) pages_read: u64,
    /// Whether the server mixes versions and markers as the bucket has them.
    mixes_kinds: bool,
}

/// A place in a list: none is the beginning.
type Marker = Option<(String, String)>;

impl<'a> KeyStream<'a> {
    pub(crate) fn new(
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
            until: None,
            pages_read: 0,
            mixes_kinds: access.is_aws,
        }
    }

    pub(crate) fn limit(&mut self, KeyRange { after, until }: KeyRange) {
        self.next = Some(after.map(|key| (key, String::new())));
        self.until = until;
    }

    /// Returns the next key.
    pub(crate) async fn next_key(&mut self) -> Result<Option<KeyHistory>, Failure> {
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
        let versions = self.versions(&key, listed).await?;
        Ok(Some(KeyHistory { key, versions }))
    }

    async fn read_page(&mut self, from: Marker) -> Result<(), Failure> {
        let page = self.page(from.clone()).await?;
        self.pages_read += 1;
        self.mixes_kinds |= page.mixes_kinds();
        // Some servers list markers after all versions of a page.
        let mut entries = page.entries;
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        for (key, listed) in entries {
            self.take_entry(key, listed)?;
        }
        let too_many = self.listed.back().filter(|(_, entries)| is_cut(entries));
        self.next = match (page.next, too_many) {
            // The rest of the key is left out.
            (Some(_), Some((key, _))) => Some(Some((key.as_str().to_owned(), String::new()))),
            (next, _) => next.map(Some),
        };
        if self.next.as_ref() == Some(&from) {
            return Err(transient(DURING, "the server's pages go in a circle"));
        }
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
                if !is_cut(entries) {
                    entries.push(entry);
                }
            }
            Some((last, _)) if *last > key => {
                let words = format!(
                    "the list of {} is not in the order of its keys: {key} comes after {last}",
                    self.bucket
                );
                return Err(transient(DURING, words));
            }
            Some(_) | None => self.listed.push_back((key, vec![entry])),
        }
        Ok(())
    }

    /// Returns a key's versions; a list that contradicts itself, or that may have versions and
    /// markers apart, is read again for the key alone.
    async fn versions(&self, key: &Key, listed: Vec<Listed>) -> Result<KeyVersions, Failure> {
        let is_marker = |listed: &Listed| listed.entry.kind == VersionKind::Marker;
        let is_apart = !self.mixes_kinds && listed.len() > 1 && listed.iter().any(is_marker);
        let is_cut = is_cut(&listed);
        if !is_cut && (is_apart || find_doubt(&listed).is_some()) {
            return self.lister(key.as_str()).versions(key).await;
        }
        let kept = if is_cut { 1 } else { listed.len() };
        let newest_first = listed.into_iter().map(|listed| listed.entry).take(kept);
        let mut entries: Vec<SourceVersion> = newest_first.collect();
        entries.reverse();
        Ok(KeyVersions { entries, is_cut })
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

/// Says whether a key has more versions than are compared, which is as many as a task reads.
fn is_cut(listed: &[Listed]) -> bool {
    listed.len() > VERSIONS_MAX
}

// Some minutes, beside the three attempts of each request.
const PAGE_ATTEMPTS_MAX: u32 = 8;

fn passes(failure: &Failure) -> bool {
    matches!(
        failure.kind,
        FailureKind::Transient | FailureKind::Throttled | FailureKind::Unauthenticated
    )
}

/// What the elements of an entry say.
#[derive(Default)]
struct EntryFields<'t> {
    key: Option<Cow<'t, str>>,
    version_id: Option<Cow<'t, str>>,
    last_modified: Option<Cow<'t, str>>,
    etag: Option<Cow<'t, str>>,
    size: Option<Cow<'t, str>>,
    is_latest: Option<Cow<'t, str>>,
}

impl<'t> EntryFields<'t> {
    fn set(&mut self, name: &str, text: Cow<'t, str>) {
        let field = match name {
            "Key" => &mut self.key,
            "VersionId" => &mut self.version_id,
            "LastModified" => &mut self.last_modified,
            "ETag" => &mut self.etag,
            "Size" => &mut self.size,
            "IsLatest" => &mut self.is_latest,
            _ => return,
        };
        field.get_or_insert(text);
    }

    fn entry(self, kind: VersionKind, encoded: bool) -> Result<(Key, Listed), NotAPage> {
        let key = self
            .key
            .map(|key| decoded(key, encoded))
            .and_then(|key| Key::try_from(key).ok());
        let id = self
            .version_id
            .as_deref()
            .filter(|id| !id.is_empty())
            .unwrap_or("null");
        let time = self
            .last_modified
            .and_then(|time| object::parse_rfc3339(&time));
        let etag = self.etag.and_then(|etag| ETag::try_from(&*etag).ok());
        let id = VersionId::try_from(id).map_err(|_| NotAPage::Field("VersionId"))?;
        let time = time.ok_or(NotAPage::Field("LastModified"))?;
        let entry = SourceVersion {
            version: VersionRef::new(id, time, etag.as_ref()),
            kind,
            etag,
            size_bytes: self.size.and_then(|size| size.parse().ok()).unwrap_or(0),
        };
        let is_latest = self.is_latest.as_deref() == Some("true");
        Ok((
            key.ok_or(NotAPage::Field("Key"))?,
            Listed {
                entry,
                is_latest,
                time,
            },
        ))
    }
}

/// In an encoded key a space is a plus or an escape.
fn decoded(text: Cow<'_, str>, encoded: bool) -> String {
    if !encoded {
        return text.into_owned();
    }
    percent_decode_str(&text.replace('+', " "))
        .decode_utf8_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXED: &str = r#"<?xml version="1.0"?>
      <ListVersionsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
        <IsTruncated>true</IsTruncated><NextKeyMarker>red+flower%2B.jpg</NextKeyMarker>
        <NextVersionIdMarker>a</NextVersionIdMarker>
        <Version><Key>red+flower%2B.jpg</Key><VersionId>c</VersionId><IsLatest>true</IsLatest>
          <LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>&quot;e1&quot;</ETag><Size>5</Size></Version>
        <DeleteMarker><Key>red+flower%2B.jpg</Key><VersionId>b</VersionId>
          <LastModified>2026-01-02T03:04:05.000Z</LastModified></DeleteMarker>
        <Version><Key>red+flower%2B.jpg</Key><VersionId>a</VersionId>
          <LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>&quot;e0&quot;</ETag><Size>6</Size></Version>
      </ListVersionsResult>"#;

    #[test]
    fn entries_keep_the_order_of_the_answer_and_keys_are_decoded() {
        let page = VersionPage::parse_page(MIXED, true).unwrap();
        let seen: Vec<_> = page
            .entries
            .iter()
            .map(|(key, e)| (key.as_str(), e.entry.version.id.as_str(), e.entry.kind))
            .collect();
        let key = "red flower+.jpg";
        assert_eq!(
            seen,
            [
                (key, "c", VersionKind::Object),
                (key, "b", VersionKind::Marker),
                (key, "a", VersionKind::Object)
            ]
        );
        assert!(page.mixes_kinds());
        assert_eq!(page.next, Some((key.to_owned(), "a".to_owned())));
    }

    #[test]
    fn a_page_without_end_is_an_error() {
        let marker = "<DeleteMarker><Key>a</Key><LastModified>2026-01-02T03:04:05Z</LastModified></DeleteMarker>";
        let page = |count| {
            format!(
                "<ListVersionsResult>{}</ListVersionsResult>",
                marker.repeat(count)
            )
        };
        assert_eq!(
            VersionPage::parse_page(&page(1000), false)
                .unwrap()
                .entries
                .len(),
            1000
        );
        assert!(matches!(
            VersionPage::parse_page(&page(1001), false),
            Err(NotAPage::Long)
        ));
    }

    #[test]
    fn what_is_no_list_is_an_error_and_not_an_empty_list() {
        for text in [
            "<html><body/></html>",
            "<Error><Code>SlowDown</Code></Error>",
        ] {
            assert!(VersionPage::parse_page(text, false).is_err(), "{text}");
        }
        assert!(
            VersionPage::parse_page("<ListVersionsResult/>", false)
                .unwrap()
                .entries
                .is_empty()
        );
    }

    /// Reads entries, newest first, each with its flag and the second it was written in.
    fn listed(entries: &[(bool, u32)]) -> Vec<Listed> {
        let element = |(is_latest, second): &(bool, u32)| {
            format!(
                "<Version><Key>a</Key><VersionId>v</VersionId><IsLatest>{is_latest}</IsLatest>\
                 <LastModified>2026-01-02T03:04:{second:02}.000Z</LastModified></Version>"
            )
        };
        let elements: String = entries.iter().map(element).collect();
        let page = VersionPage::parse_page(&format!("<{ROOT}>{elements}</{ROOT}>"), false).unwrap();
        page.entries.into_iter().map(|(_, listed)| listed).collect()
    }

    #[test]
    fn a_list_is_believed_when_its_first_entry_alone_is_the_latest_and_the_newest() {
        let cases = [
            (vec![], None),
            (vec![(true, 9)], None),
            (vec![(true, 9), (false, 9), (false, 3)], None),
            (vec![(true, 8), (false, 9)], None),
            (vec![(false, 9)], Some(ListContradiction::Latest)),
            (vec![(true, 9), (true, 3)], Some(ListContradiction::Latest)),
            (vec![(false, 9), (true, 3)], Some(ListContradiction::First)),
            (vec![(true, 3), (false, 9)], Some(ListContradiction::Times)),
            (
                vec![(true, 9), (false, 3), (false, 5)],
                Some(ListContradiction::Times),
            ),
        ];
        for (entries, expected) in cases {
            assert_eq!(find_doubt(&listed(&entries)), expected, "{entries:?}");
        }
    }

    #[test]
    fn an_empty_version_id_is_none() {
        let page = VersionPage::parse_page(
            &MIXED.replace("<VersionId>c</VersionId>", "<VersionId/>"),
            true,
        )
        .unwrap();
        assert!(page.entries[0].1.entry.version.id.is_null());
    }

    #[test]
    fn an_entry_without_a_time_is_an_error_and_not_a_guess() {
        for time in ["yesterday", "9999-12-31T23:59:59-23:59", ""] {
            assert!(
                VersionPage::parse_page(&MIXED.replace("2026-01-02T03:04:05.000Z", time), true)
                    .is_err(),
                "{time}"
            );
        }
    }

    #[test]
    fn no_list_makes_its_parser_panic_or_keep_more_than_it_was_given() {
        let real: &[&[u8]] = &[
            MIXED.as_bytes(),
            b"<ListVersionsResult/>",
            b"<Error><Code>SlowDown</Code></Error>",
        ];
        crate::poison::feed(real, |text| {
            let text = String::from_utf8_lossy(text);
            for is_encoded in [false, true] {
                let entries = VersionPage::parse_page(&text, is_encoded)
                    .map(|page| page.entries)
                    .unwrap_or_default();
                assert!(
                    entries
                        .iter()
                        .map(|(key, _)| key.as_str().len())
                        .sum::<usize>()
                        <= text.len()
                );
            }
        });
    }
}
