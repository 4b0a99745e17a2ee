//! What comes back: an answer, compared with what was requested, or a refusal that says what to do.

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::DateTime;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::date_time::Format;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use replicator_core::failure::{Failure, FailureKind};
use replicator_core::object::{ETag, Timestamp, escape_controls};
use replicator_core::parts::Part;

/// A successful answer, its body still to come.
#[derive(Debug)]
pub(crate) struct S3Response {
    pub(super) head: ResponseHead,
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

/// Why a request has no useful answer.
#[derive(Debug)]
pub(crate) struct S3Error {
    pub(crate) failure: Failure,
    /// The answer that came, without its body.
    pub(super) answer: Option<Box<ResponseHead>>,
    /// The request carried a body, and took all the time of one attempt.
    pub(crate) is_held_up: bool,
}

impl S3Response {
    pub(super) fn from_response(response: HttpResponse) -> Result<Self, BoxError> {
        let (parts, body) = response.try_into_http1x()?.into_parts();
        Ok(Self {
            head: ResponseHead {
                status: parts.status.as_u16(),
                headers: parts.headers,
            },
            body,
        })
    }

    /// Drops the body, which the answer to a HEAD has none of.
    pub(crate) fn into_head(self) -> ResponseHead {
        self.head
    }

    /// Splits headers from the body that is still to come.
    pub(crate) fn split(self) -> (ResponseHead, SdkBody) {
        (self.head, self.body)
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

    /// Returns the time by the server's own clock, which may differ from ours.
    pub(crate) fn date(&self) -> Option<Timestamp> {
        date(self.header("date")?)
    }
}

impl S3Error {
    /// Makes the error of a request that was not answered.
    pub(super) fn without_answer(failure: Failure) -> Self {
        Self {
            failure,
            answer: None,
            is_held_up: false,
        }
    }

    /// Makes the error of a request whose answer is of no use.
    pub(super) fn with_answer(failure: Failure, answer: ResponseHead) -> Self {
        Self {
            answer: Some(Box::new(answer)),
            ..Self::without_answer(failure)
        }
    }

    /// Returns the status of the answer, if there was one.
    pub(crate) fn status(&self) -> Option<u16> {
        self.answer.as_ref().map(|answer| answer.status())
    }

    /// Says whether S3 itself states that there is no such key or version, or no object of it.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(
            self.failure.kind,
            FailureKind::SourceVersionMissing | FailureKind::NotFound
        )
    }

    /// Says whether S3 itself states that a delete marker is there; nothing else sends its header.
    pub(crate) fn is_marker(&self) -> bool {
        self.header("x-amz-delete-marker") == Some("true")
    }

    /// Says whether the answer has the header that S3 puts on every answer, also on those without a
    /// text:
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/RESTCommonResponseHeaders.html>
    pub(crate) fn is_signed(&self) -> bool {
        self.header("x-amz-request-id").is_some()
    }

    /// Returns the time by the server's own clock.
    pub(crate) fn date(&self) -> Option<Timestamp> {
        self.answer.as_ref()?.date()
    }

    /// Returns a header of the answer.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.answer.as_ref()?.header(name)
    }
}

impl From<Failure> for S3Error {
    fn from(failure: Failure) -> Self {
        Self::without_answer(failure)
    }
}

impl From<S3Error> for Failure {
    fn from(refusal: S3Error) -> Self {
        refusal.failure
    }
}

/// Reads a date as headers have it.
pub(super) fn date(text: &str) -> Option<Timestamp> {
    let date = DateTime::from_str(text, Format::HttpDate).ok()?;
    Timestamp::from_unix_timestamp(date.secs()).ok()
}

/// What a read requested. A cache, proxy or server that answers with another version, range or
/// length has not answered, however well the answer parses.
#[derive(Debug, Clone, Default)]
pub(super) struct ExpectedObject {
    pub(super) version: Option<String>,
    pub(super) etag: Option<ETag>,
    /// The size of the whole object, where it is known.
    pub(super) size_bytes: Option<u64>,
    pub(super) span: Span,
}

/// Which bytes of an object a read is about.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum Span {
    #[default]
    Whole,
    Bytes(Part),
    /// One of the parts in which it was uploaded, whose boundaries the answer states.
    UploadedPart,
}

const OK: u16 = 200;
const PARTIAL_CONTENT: u16 = 206;

impl ExpectedObject {
    /// Says in which way an answer is not what was requested, if it is not.
    pub(super) fn mismatch(&self, head: &ResponseHead) -> Option<String> {
        self.identity_mismatch(head)
            .or_else(|| self.span_mismatch(head))
    }

    /// Compares version and ETag, as far as both sides state them. A store may leave out one of
    /// them, but not both.
    fn identity_mismatch(&self, head: &ResponseHead) -> Option<String> {
        let (version, etag) = (head.header("x-amz-version-id"), head.etag());
        if let (Some(asked), Some(given)) = (&self.version, version)
            && asked != given
        {
            return Some(format!(
                "asked for version {asked}, and the answer is version {}",
                escape_controls(given)
            ));
        }
        match (&self.etag, &etag) {
            (Some(asked), Some(given)) if asked != given => Some(format!(
                "asked for ETag {asked}, and the answer has ETag {given}"
            )),
            (Some(asked), None) if version.is_none() => Some(format!(
                "asked for ETag {asked}, and the answer names neither version nor ETag"
            )),
            _ => None,
        }
    }

    fn span_mismatch(&self, head: &ResponseHead) -> Option<String> {
        match self.span {
            Span::UploadedPart => None,
            Span::Whole if head.status() != OK => Some(format!(
                "asked for the whole, and was answered {}",
                head.status()
            )),
            Span::Whole => length_mismatch(self.size_bytes, head),
            Span::Bytes(part) => self
                .range_mismatch(part, head)
                .or_else(|| length_mismatch(Some(part.len), head)),
        }
    }

    fn range_mismatch(&self, part: Part, head: &ResponseHead) -> Option<String> {
        let last = (part.offset + part.len).saturating_sub(1);
        let asked = format!("bytes {}-{last}/", part.offset);
        let given = head.header("content-range");
        let size = self.size_bytes.map(|bytes| bytes.to_string());
        let rest = given.and_then(|given| given.strip_prefix(&asked));
        let is_same = rest.is_some_and(|rest| size.as_deref().is_none_or(|size| size == rest));
        // A range of everything may be answered like no range:
        // https://www.rfc-editor.org/rfc/rfc9110#section-14.2
        let is_all = part.offset == 0 && self.size_bytes == Some(part.len);
        match head.status() {
            PARTIAL_CONTENT if is_same => None,
            OK if is_all => None,
            status => {
                let given = given.map_or_else(
                    || "no Content-Range".to_owned(),
                    |given| escape_controls(given).to_string(),
                );
                Some(format!(
                    "asked for {asked}{}, and was answered {status} with {given}",
                    size.as_deref().unwrap_or("*")
                ))
            }
        }
    }
}

/// Compares an announced length; a body without one is counted as it comes.
fn length_mismatch(asked: Option<u64>, head: &ResponseHead) -> Option<String> {
    let (asked, given) = asked.zip(head.content_length())?;
    (asked != given).then(|| format!("asked for {asked} bytes, and the answer has {given}"))
}

/// Reads a value as text: UTF-8, or Latin-1; words that a store encoded (RFC 2047) are decoded.
pub(crate) fn plain_text(value: &HeaderValue) -> String {
    let bytes = value.as_bytes();
    let latin = || bytes.iter().copied().map(char::from).collect();
    let text = std::str::from_utf8(bytes).map_or_else(|_| latin(), str::to_owned);
    let (mut plain, mut follows_encoded) = (String::new(), true);
    for (at, word) in text.split(' ').enumerate() {
        let decoded = decode_word(word);
        // Blanks between encoded words are none of the text.
        if at > 0 && !(follows_encoded && decoded.is_some()) {
            plain.push(' ');
        }
        follows_encoded = decoded.is_some();
        plain.push_str(decoded.as_deref().unwrap_or(word));
    }
    plain
}

fn decode_word(word: &str) -> Option<String> {
    let inner = word.strip_prefix("=?")?.strip_suffix("?=")?;
    let [charset, encoding, text] = inner.splitn(3, '?').collect::<Vec<_>>().try_into().ok()?;
    if !charset.eq_ignore_ascii_case("utf-8") {
        return None;
    }
    let bytes = match encoding {
        "B" | "b" => STANDARD.decode(text).ok()?,
        "Q" | "q" => {
            let text = text.replace('_', " ").replace('%', "%25").replace('=', "%");
            percent_decode_str(&text).collect()
        }
        _ => return None,
    };
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_the_same_text_raw_in_latin_and_in_encoded_words() {
        let text = |bytes: &[u8]| plain_text(&HeaderValue::from_bytes(bytes).unwrap());
        for written in [
            "café  au lait".as_bytes(),
            b"caf\xe9  au lait",
            b"=?UTF-8?B?Y2Fmw6k=?=  au lait",
            b"=?utf-8?q?caf=C3=A9_?= au lait",
            b"=?UTF-8?B?Y2Fm?= =?UTF-8?B?w6k=?=  au lait",
        ] {
            assert_eq!(text(written), "café  au lait");
        }
        for plain in ["", " a  b ", "100%_=", "=?UTF-8?B?no base64!?=", "=?x?="] {
            assert_eq!(text(plain.as_bytes()), plain);
        }
    }

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

    const MIDDLE: Part = Part {
        number: 2,
        offset: 10,
        len: 5,
    };

    /// Makes an answer without its body; of two headers of a name the later one counts.
    fn with_status(status: u16, all: &[(&str, &str)]) -> ResponseHead {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            headers.insert(
                HeaderName::try_from(*name).unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        ResponseHead { status, headers }
    }

    fn asked(span: Span) -> ExpectedObject {
        let etag = ETag::try_from("\"e\"").ok();
        ExpectedObject {
            version: Some("v1".to_owned()),
            etag,
            size_bytes: Some(20),
            span,
        }
    }

    fn answer(status: u16, headers: &[(&str, &str)]) -> ResponseHead {
        with_status(
            status,
            &[&[("x-amz-version-id", "v1"), ("etag", "\"e\"")], headers].concat(),
        )
    }

    #[test]
    fn an_answer_that_is_what_was_asked_is_taken() {
        let range = ("content-range", "bytes 10-14/20");
        for (span, answer) in [
            (Span::Whole, answer(200, &[])),
            (Span::Whole, answer(200, &[("content-length", "20")])),
            (Span::Whole, with_status(200, &[("etag", "\"e\"")])),
            (Span::Whole, with_status(200, &[("x-amz-version-id", "v1")])),
            (Span::Bytes(MIDDLE), answer(206, &[range])),
            (
                Span::Bytes(MIDDLE),
                answer(206, &[range, ("content-length", "5")]),
            ),
            (
                Span::Bytes(Part {
                    number: 1,
                    offset: 0,
                    len: 20,
                }),
                answer(200, &[("content-length", "20")]),
            ),
            (
                Span::UploadedPart,
                answer(
                    206,
                    &[("content-range", "bytes 0-7/20"), ("content-length", "8")],
                ),
            ),
        ] {
            assert_eq!(asked(span).mismatch(&answer), None, "{answer:?}");
        }
    }

    #[test]
    fn each_way_of_being_something_else_is_named() {
        let ranged = |range| answer(206, &[("content-range", range)]);
        for (span, answer, words) in [
            (
                Span::Whole,
                answer(200, &[("x-amz-version-id", "v2")]),
                "version v2",
            ),
            (
                Span::Whole,
                answer(200, &[("etag", "\"other\"")]),
                "ETag other",
            ),
            (Span::Whole, answer(200, &[("etag", "W/\"e\"")]), "ETag W/"),
            (
                Span::Whole,
                with_status(200, &[]),
                "neither version nor ETag",
            ),
            (Span::Whole, answer(206, &[]), "206"),
            (Span::Whole, answer(203, &[]), "203"),
            (
                Span::Whole,
                answer(200, &[("content-length", "19")]),
                "has 19",
            ),
            (
                Span::Bytes(MIDDLE),
                answer(200, &[]),
                "answered 200 with no Content-Range",
            ),
            (
                Span::Bytes(MIDDLE),
                answer(206, &[]),
                "answered 206 with no Content-Range",
            ),
            (Span::Bytes(MIDDLE), ranged("bytes 0-4/20"), "bytes 0-4/20"),
            (
                Span::Bytes(MIDDLE),
                ranged("bytes 10-14/21"),
                "bytes 10-14/21",
            ),
            (
                Span::Bytes(MIDDLE),
                ranged("bytes 10-14/*"),
                "bytes 10-14/*",
            ),
            (
                Span::Bytes(MIDDLE),
                ranged("bytes 10-149/20"),
                "bytes 10-149/20",
            ),
            (
                Span::UploadedPart,
                answer(206, &[("x-amz-version-id", "v2")]),
                "version v2",
            ),
        ] {
            let mismatch = asked(span).mismatch(&answer).unwrap_or_default();
            assert!(mismatch.contains(words), "{mismatch:?} has no {words:?}");
        }
    }
}
