//! Conditions on reads and writes, as AWS documents them.
//! <https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-requests.html>

use http::{HeaderMap, StatusCode};
use s3s::S3Result;
use s3s::dto::Timestamp;
use time::OffsetDateTime;

use super::Call;
use super::entry::{Entry, Object};
use super::refusal::{no_such_key, precondition_failed, refuse, with_headers};
use super::state::{Place, State};
use super::times::whole_seconds;
use super::traits::Conditions;

/// A write that may carry conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    Put,
    Copy,
    /// Of an upload that was begun at this rank.
    Complete(u64),
    Delete,
}

/// Lets a write pass or refuses it. It asks about what is current, whatever the write is about.
pub(super) fn check(state: &State, write: Write, place: &Place, call: &Call) -> S3Result<()> {
    let if_match = text(&call.headers, "if-match");
    // DeleteObject knows only If-Match.
    let if_none_match = text(&call.headers, "if-none-match").filter(|_| write != Write::Delete);
    if if_match.is_none() && if_none_match.is_none() {
        return Ok(());
    }
    let manner = match write {
        Write::Put => state.traits.put_conditions,
        Write::Copy => state.traits.copy_conditions,
        Write::Complete(_) => state.traits.complete_conditions,
        Write::Delete => state.traits.delete_conditions,
    };
    match manner {
        Conditions::Ignored => return Ok(()),
        Conditions::NotImplemented => {
            let message = "a header you provided implies functionality that is not implemented";
            return Err(refuse(
                StatusCode::NOT_IMPLEMENTED,
                "NotImplemented",
                message,
            ));
        }
        Conditions::Honoured | Conditions::RefusedOverMarker => {}
    }
    let bucket = state.bucket(&place.bucket)?;
    let current = bucket.current(&place.key).map(AsRef::as_ref);
    if let Some(wanted) = if_match {
        let nothing = state.traits.match_over_nothing;
        matches_current(write, wanted, current, nothing)?;
    }
    if let Some(unwanted) = if_none_match {
        none_matches(unwanted, current, manner)?;
        let deleted = bucket
            .keys
            .get(&place.key)
            .map_or(0, |history| history.deleted);
        if let Write::Complete(begun) = write
            && deleted > begun
            && state.traits.conflicts_after_delete
        {
            return Err(conflict());
        }
    }
    Ok(())
}

/// `If-Match` of a write; over nothing and over a delete marker the answers differ by operation.
fn matches_current(
    write: Write,
    wanted: &str,
    current: Option<&Entry>,
    nothing: u16,
) -> S3Result<()> {
    match (current.map(|entry| &entry.object), write) {
        (Some(Some(object)), _) if is_of(wanted, object) => Ok(()),
        (Some(Some(_)), _) | (Some(None), Write::Delete) => Err(precondition_failed("If-Match")),
        (Some(None), _) | (None, _) if nothing == 412 => Err(precondition_failed("If-Match")),
        (Some(None), _) | (None, _) => Err(no_such_key()),
    }
}

fn none_matches(unwanted: &str, current: Option<&Entry>, manner: Conditions) -> S3Result<()> {
    let refused = match current.map(|entry| &entry.object) {
        Some(Some(object)) => is_of(unwanted, object),
        Some(None) => manner == Conditions::RefusedOverMarker && unwanted == "*",
        None => false,
    };
    if refused {
        Err(precondition_failed("If-None-Match"))
    } else {
        Ok(())
    }
}

fn conflict() -> s3s::S3Error {
    let message = "a conflicting operation occurred: begin anew";
    refuse(StatusCode::CONFLICT, "ConditionalRequestConflict", message)
}

/// The conditions of a read, in the order of RFC 9110, section 13.2.2.
pub(super) struct Read<'a> {
    pub(super) if_match: Option<&'a str>,
    pub(super) if_none_match: Option<&'a str>,
    pub(super) modified_since: Option<Timestamp>,
    pub(super) unmodified_since: Option<Timestamp>,
}

impl Read<'_> {
    /// Lets a GET or HEAD pass or refuses it.
    pub(super) fn check(&self, entry: &Entry, object: &Object) -> S3Result<()> {
        self.positive(entry, object)?;
        if self.is_unchanged(entry, object) {
            let error = refuse(StatusCode::NOT_MODIFIED, "NotModified", "not modified");
            return Err(with_headers(
                error,
                &[("etag", &format!("\"{}\"", object.etag))],
            ));
        }
        Ok(())
    }

    /// Lets a copy pass or refuses it: 412 is the answer to all four.
    pub(super) fn check_source(&self, entry: &Entry, object: &Object) -> S3Result<()> {
        self.positive(entry, object)?;
        if self.is_unchanged(entry, object) {
            Err(precondition_failed("x-amz-copy-source-If-None-Match"))
        } else {
            Ok(())
        }
    }

    fn positive(&self, entry: &Entry, object: &Object) -> S3Result<()> {
        match (self.if_match, &self.unmodified_since) {
            (Some(wanted), _) if !is_of(wanted, object) => Err(precondition_failed("If-Match")),
            (None, Some(since)) if modified(entry) > instant(since) => {
                Err(precondition_failed("If-Unmodified-Since"))
            }
            _ => Ok(()),
        }
    }

    fn is_unchanged(&self, entry: &Entry, object: &Object) -> bool {
        match (self.if_none_match, &self.modified_since) {
            (Some(unwanted), _) => is_of(unwanted, object),
            (None, Some(since)) => modified(entry) <= instant(since),
            (None, None) => false,
        }
    }
}

fn modified(entry: &Entry) -> OffsetDateTime {
    whole_seconds(entry.last_modified).into()
}

fn instant(timestamp: &Timestamp) -> OffsetDateTime {
    timestamp.clone().into()
}

/// Quotes do not matter, as in Amazon's own examples.
fn is_of(tag: &str, object: &Object) -> bool {
    tag == "*" || tag.trim_matches('"') == object.etag
}

/// A header's text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
