//! What comes back: an answer, or a refusal that says what to do.

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::DateTime;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::date_time::Format;
use http::{HeaderMap, HeaderName, HeaderValue};
use replicator_core::failure::{Failure, FailureKind};
use replicator_core::object::{ETag, Timestamp};

use super::signer::Error;

/// A successful answer, its body still to come.
#[derive(Debug)]
pub(crate) struct S3Response {
    head: ResponseHead,
    body: SdkBody,
}

/// An answer without its body.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    status: u16,
    headers: HeaderMap,
}

/// What the names of the user's metadata begin with.
pub(crate) const USER: &str = "x-amz-meta-";

/// A request that got no answer, or another than it was for.
#[derive(Debug)]
pub(crate) struct S3Error {
    pub(crate) failure: Failure,
    /// What did come.
    pub(super) answer: Option<Box<ResponseHead>>,
    /// It carried a body, and took all the time there is for one attempt.
    pub(crate) is_held_up: bool,
}

impl S3Response {
    pub(super) fn from_response(response: HttpResponse) -> Result<Self, Error> {
        let (parts, body) = response.try_into_http1x()?.into_parts();
        Ok(Self {
            head: ResponseHead {
                status: parts.status.as_u16(),
                headers: parts.headers,
            },
            body,
        })
    }

    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.head.status)
    }

    pub(super) fn head(&self) -> &ResponseHead {
        &self.head
    }

    /// Gives up the body, which a HEAD has none of.
    pub(crate) fn into_head(self) -> ResponseHead {
        self.head
    }

    /// Parts what is read at once from what is still to come.
    pub(crate) fn split(self) -> (ResponseHead, SdkBody) {
        (self.head, self.body)
    }

    pub(crate) fn status(&self) -> u16 {
        self.head.status
    }
}

impl ResponseHead {
    /// Makes one of these headers.
    #[cfg(test)]
    pub(crate) fn for_tests(all: &[(&str, &str)]) -> Self {
        let header = |(name, value): &(&str, &str)| {
            (
                HeaderName::try_from(*name).unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            )
        };
        // Two of a name are both there.
        Self {
            status: 200,
            headers: all.iter().map(header).collect(),
        }
    }

    /// Makes one of these headers; of two of a name the later one counts.
    #[cfg(test)]
    pub(crate) fn with_status(status: u16, all: &[(&str, &str)]) -> Self {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            headers.insert(
                HeaderName::try_from(*name).unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        Self { status, headers }
    }

    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// Returns a header by its name in lower case; none if it is no UTF-8.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.headers.get(name)?.as_bytes()).ok()
    }

    /// Returns a header as the text that it is, with `\u{fffd}` for what is no UTF-8.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        Some(String::from_utf8_lossy(self.headers.get(name)?.as_bytes()).into_owned())
    }

    /// Returns a header byte for byte; several of one name are one list (RFC 9110, section 5.3).
    pub(crate) fn value(&self, name: &HeaderName) -> Option<HeaderValue> {
        let values: Vec<&[u8]> = self
            .headers
            .get_all(name)
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        // What was a header's can be joined into one.
        if values.is_empty() {
            None
        } else {
            HeaderValue::from_bytes(&values.join(&b","[..])).ok()
        }
    }

    /// Lists the names of the user's metadata, each with its prefix.
    pub(crate) fn user_names(&self) -> impl Iterator<Item = &HeaderName> {
        self.headers
            .keys()
            .filter(|name| name.as_str().starts_with(USER))
    }

    /// Returns a value of the user's metadata.
    pub(crate) fn user(&self, name: &str) -> Option<&str> {
        self.header(&format!("{USER}{name}"))
    }

    pub(crate) fn etag(&self) -> Option<ETag> {
        ETag::try_from(self.header("etag")?).ok()
    }

    pub(crate) fn version_id(&self) -> Option<String> {
        self.header("x-amz-version-id").map(str::to_owned)
    }

    pub(crate) fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    pub(crate) fn last_modified(&self) -> Option<DateTime> {
        DateTime::from_str(self.header("last-modified")?, Format::HttpDate).ok()
    }

    /// Returns what time it is by the server's own clock, which may differ from ours.
    pub(crate) fn date(&self) -> Option<Timestamp> {
        date(self.header("date")?)
    }
}

impl S3Error {
    /// A request that was never answered.
    pub(super) fn without_answer(failure: Failure) -> Self {
        Self {
            failure,
            answer: None,
            is_held_up: false,
        }
    }

    /// Returns the status of the answer, if there was one.
    pub(crate) fn status(&self) -> Option<u16> {
        self.answer.as_ref().map(|answer| answer.status())
    }

    /// Says whether S3 itself says that there is no such key or version, or no object of it.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(
            self.failure.kind,
            FailureKind::SourceVersionMissing | FailureKind::NotFound
        )
    }

    /// Says whether S3 itself says that a delete marker is there; nothing else answers with its
    /// header.
    pub(crate) fn is_marker(&self) -> bool {
        self.header("x-amz-delete-marker") == Some("true")
    }

    /// Says whether it has the mark that S3 and its like put on every answer, also on those without
    /// a text:
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/RESTCommonResponseHeaders.html>
    pub(crate) fn is_signed(&self) -> bool {
        self.header("x-amz-request-id").is_some()
    }

    /// Returns what time it is by the server's own clock.
    pub(crate) fn date(&self) -> Option<Timestamp> {
        self.answer.as_ref()?.date()
    }

    /// Returns a header of the answer.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.answer.as_ref()?.header(name)
    }
}

/// Reads a date as headers have it.
pub(super) fn date(text: &str) -> Option<Timestamp> {
    let date = DateTime::from_str(text, Format::HttpDate).ok()?;
    Timestamp::from_unix_timestamp(date.secs()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_header_makes_its_reader_panic() {
        let real: &[&[u8]] = &[
            b"Fri, 31 Dec 9999 23:59:59 GMT",
            b"\"9a0364b9e99bb480dd25e1f0284c8555-3\"",
            b"18446744073709551615",
            b"bytes 0-4/5",
        ];
        crate::poison::feed(real, |value| {
            let Ok(value) = HeaderValue::from_bytes(value) else {
                return;
            };
            let names = [
                "date",
                "last-modified",
                "etag",
                "content-length",
                "x-amz-version-id",
                "x-amz-meta-s3-replicator",
            ];
            let head = ResponseHead {
                status: 200,
                headers: names
                    .into_iter()
                    .map(|name| (HeaderName::from_static(name), value.clone()))
                    .collect(),
            };
            drop((
                head.last_modified(),
                head.etag(),
                head.content_length(),
                head.version_id(),
                head.text("date"),
            ));
            assert_eq!(
                head.value(&HeaderName::from_static("etag")).as_ref(),
                Some(&value)
            );
        });
    }
}
