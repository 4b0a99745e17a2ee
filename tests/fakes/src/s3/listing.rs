//! ListObjectVersions. AWS mixes versions and delete markers, newest first within a key; the `s3s`
//! crate would write them apart, so this one answer is written here.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use http::{Extensions, HeaderMap, HeaderValue, Method, Uri};
use percent_encoding::percent_decode_str;
use s3s::route::S3Route;
use s3s::{Body, S3Request, S3Response, S3Result};

use super::Shared;
use super::entry::Entry;
use super::events::form_encoded;
use super::refusal::{bad_request, not_implemented};
use super::state::{Bucket, History, State};
use super::times::iso;
use super::traits::{Order, Resolution, Traits};

/// Takes `GET /bucket?versions` out of the service's hands.
pub(super) struct Versions {
    pub(super) shared: Arc<Shared>,
}

#[async_trait]
impl S3Route for Versions {
    fn is_match(
        &self,
        method: &Method,
        uri: &Uri,
        _headers: &HeaderMap,
        _extensions: &mut Extensions,
    ) -> bool {
        method == Method::GET && query(uri).contains_key("versions")
    }

    async fn check_access(&self, _request: &mut S3Request<Body>) -> S3Result<()> {
        Ok(())
    }

    async fn call(&self, request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        let asked = Asked::parse(&request.uri)?;
        let text = self.shared.locked(|state| page(state, &asked))?;
        let mut headers = HeaderMap::new();
        headers.insert(
            http::header::CONTENT_TYPE,
            HeaderValue::from_static("application/xml"),
        );
        Ok(S3Response::with_headers(Body::from(text), headers))
    }
}

// https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html
const PAGE_MAX: usize = 1000;

/// A request for a page.
struct Asked {
    bucket: String,
    prefix: String,
    key_marker: Option<String>,
    version_id_marker: Option<String>,
    keys_max: usize,
    encoded: bool,
}

impl Asked {
    fn parse(uri: &Uri) -> S3Result<Self> {
        let mut asked = query(uri);
        let mut take = |name: &str| asked.remove(name).filter(|value| !value.is_empty());
        if take("delimiter").is_some() {
            return Err(not_implemented(
                "the fake lists versions without a delimiter",
            ));
        }
        let keys_max = take("max-keys").map_or(Ok(PAGE_MAX), |text| text.parse());
        let keys_max =
            keys_max.map_err(|_| bad_request("InvalidArgument", "max-keys is no number"))?;
        let (key_marker, version_id_marker) = (take("key-marker"), take("version-id-marker"));
        if version_id_marker.is_some() && key_marker.is_none() {
            let message = "A version-id marker cannot be specified without a key marker.";
            return Err(bad_request("InvalidArgument", message));
        }
        Ok(Self {
            bucket: percent_decode_str(uri.path().trim_matches('/'))
                .decode_utf8_lossy()
                .into_owned(),
            prefix: take("prefix").unwrap_or_default(),
            key_marker,
            version_id_marker,
            keys_max: keys_max.min(PAGE_MAX),
            encoded: take("encoding-type").is_some_and(|kind| kind == "url"),
        })
    }

    fn shown(&self, key: &str) -> String {
        if self.encoded {
            form_encoded(key)
        } else {
            escaped(key)
        }
    }
}

/// An entry with its key, and whether it is the newest.
struct Listed<'a> {
    key: &'a str,
    entry: &'a Entry,
    is_latest: bool,
}

fn page(state: &mut State, asked: &Asked) -> S3Result<String> {
    let bucket = state.bucket(&asked.bucket)?;
    let mut found = entries(state, bucket, asked);
    let more = found.len() > asked.keys_max && asked.keys_max > 0;
    found.truncate(asked.keys_max);
    let next = found
        .last()
        .filter(|_| more)
        .map(|last| (last.key.to_owned(), last.entry.version_id.clone()));
    if state.traits.lists_apart {
        found.sort_by_key(|listed| !listed.entry.is_marker());
    }
    let mut text = head(asked, more, next);
    found
        .iter()
        .for_each(|listed| text.push_str(&element(listed, asked, state.traits.last_modified)));
    text.push_str("</ListVersionsResult>");
    Ok(text)
}

/// All entries behind the markers, up to one more than the page may have.
fn entries<'a>(state: &'a State, bucket: &'a Bucket, asked: &Asked) -> Vec<Listed<'a>> {
    let start = asked
        .key_marker
        .clone()
        .unwrap_or_default()
        .max(asked.prefix.clone());
    let mut matching: Box<dyn Iterator<Item = _>> = Box::new(
        bucket
            .keys
            .range(start..)
            .take_while(|(key, _)| key.starts_with(&asked.prefix)),
    );
    if state.traits.lists_by_folders {
        let mut all: Vec<_> = matching.collect();
        all.sort_by_key(|(key, _)| path(key));
        matching = Box::new(all.into_iter());
    }
    let all = matching.flat_map(|(key, history)| {
        let mut of_key = newest_first(history, &state.traits);
        let newest = match state.traits.lists_lag {
            true => of_key.first().map(|entry| entry.id),
            false => history.entries.last().map(|entry| entry.id),
        };
        if asked.key_marker.as_ref() == Some(key) {
            of_key = behind(state, of_key, asked.version_id_marker.as_deref());
        }
        of_key.into_iter().map(move |entry| Listed {
            key,
            entry,
            is_latest: newest == Some(entry.id),
        })
    });
    let mut found: Vec<_> = all.take(asked.keys_max + 1).collect();
    found.sort_by_key(|listed| listed.key);
    found
}

/// Where a store that keeps each key's versions in a folder of a file system has them.
fn path(key: &str) -> Vec<String> {
    format!("{key}.versions")
        .split('/')
        .map(str::to_owned)
        .collect()
}

/// The entries of a key in the order in which the endpoint lists them.
fn newest_first<'a>(history: &'a History, traits: &Traits) -> Vec<&'a Entry> {
    let mut entries: Vec<&Entry> = history.entries.iter().rev().map(AsRef::as_ref).collect();
    if traits.order == Order::LastCompletedListedAsBegun {
        entries.sort_by_key(|entry| Reverse(entry.begun));
    }
    if traits.lists_null_last {
        entries.sort_by_key(|entry| entry.version_id == "null");
    }
    if traits.lists_lag && entries.len() > 1 {
        entries.remove(0);
    }
    entries
}

/// What of a key follows the marker's version. That may be gone by now: its place is remembered.
fn behind<'a>(state: &State, entries: Vec<&'a Entry>, version_id: Option<&str>) -> Vec<&'a Entry> {
    let Some(id) = version_id else {
        return Vec::new();
    };
    if let Some(at) = entries.iter().position(|entry| entry.version_id == id) {
        return entries.into_iter().skip(at + 1).collect();
    }
    let gone = state
        .entries
        .values()
        .rev()
        .find(|entry| entry.version_id == id)
        .map_or(0, |entry| entry.rank);
    entries
        .into_iter()
        .filter(|entry| entry.rank < gone)
        .collect()
}

fn head(asked: &Asked, more: bool, next: Option<(String, String)>) -> String {
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    text.push_str("<ListVersionsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    put(&mut text, "Name", &asked.bucket);
    put(&mut text, "Prefix", &asked.shown(&asked.prefix));
    put(
        &mut text,
        "KeyMarker",
        &asked.shown(asked.key_marker.as_deref().unwrap_or_default()),
    );
    put(
        &mut text,
        "VersionIdMarker",
        &escaped(asked.version_id_marker.as_deref().unwrap_or_default()),
    );
    if let Some((key, version_id)) = next {
        put(&mut text, "NextKeyMarker", &asked.shown(&key));
        put(&mut text, "NextVersionIdMarker", &version_id);
    }
    put(&mut text, "MaxKeys", &asked.keys_max.to_string());
    if asked.encoded {
        put(&mut text, "EncodingType", "url");
    }
    put(
        &mut text,
        "IsTruncated",
        if more { "true" } else { "false" },
    );
    text
}

fn element(listed: &Listed<'_>, asked: &Asked, resolution: Resolution) -> String {
    let mut text = String::new();
    put(&mut text, "Key", &asked.shown(listed.key));
    put(&mut text, "VersionId", &listed.entry.version_id);
    put(
        &mut text,
        "IsLatest",
        if listed.is_latest { "true" } else { "false" },
    );
    put(
        &mut text,
        "LastModified",
        &iso(listed.entry.last_modified, resolution),
    );
    if let Some(object) = &listed.entry.object {
        put(&mut text, "ETag", &format!("&quot;{}&quot;", object.etag));
        if let Some(checksum) = &object.checksum {
            put(&mut text, "ChecksumAlgorithm", checksum.algorithm.name());
            put(
                &mut text,
                "ChecksumType",
                if checksum.full {
                    "FULL_OBJECT"
                } else {
                    "COMPOSITE"
                },
            );
        }
        put(&mut text, "Size", &object.bytes.len().to_string());
        put(&mut text, "StorageClass", &object.storage_class);
    }
    put(&mut text, "Owner", "<ID>fake</ID>");
    let name = if listed.entry.is_marker() {
        "DeleteMarker"
    } else {
        "Version"
    };
    format!("<{name}>{text}</{name}>")
}

fn put(text: &mut String, name: &str, value: &str) {
    text.push_str(&format!("<{name}>{value}</{name}>"));
}

/// Escapes as S3 does: characters that XML has no place for too, by number, so that readers
/// stumble.
fn escaped(text: &str) -> String {
    text.chars()
        .map(|letter| match letter {
            '&' => "&amp;".to_owned(),
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            '"' => "&quot;".to_owned(),
            letter if letter.is_control() => format!("&#x{:x};", u32::from(letter)),
            letter => letter.to_string(),
        })
        .collect()
}

fn query(uri: &Uri) -> BTreeMap<String, String> {
    let decoded = |text: &str| {
        percent_decode_str(&text.replace('+', " "))
            .decode_utf8_lossy()
            .into_owned()
    };
    let pairs = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(value))
        })
        .collect()
}
