//! What a read requested, held against what the answer says that it is. A cache, proxy or server
//! that answers with another version, range or length has not answered, however well the answer
//! parses.

use replicator_core::object::{ETag, escape_controls};
use replicator_core::parts::Part;

use super::response::ResponseHead;

/// What a read requested.
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
    /// One of the parts in which it was uploaded, whose boundaries the answer tells.
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
        if let (Some(asked), Some(told)) = (&self.version, version)
            && asked != told
        {
            return Some(format!(
                "asked for version {asked}, and the answer is version {}",
                escape_controls(told)
            ));
        }
        match (&self.etag, &etag) {
            (Some(asked), Some(told)) if asked != told => Some(format!(
                "asked for ETag {asked}, and the answer has ETag {told}"
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
        let told = head.header("content-range");
        let size = self.size_bytes.map(|bytes| bytes.to_string());
        let rest = told.and_then(|told| told.strip_prefix(&asked));
        let is_same = rest.is_some_and(|rest| size.as_deref().is_none_or(|size| size == rest));
        // A range of everything may be answered like no range:
        // https://www.rfc-editor.org/rfc/rfc9110#section-14.2
        let is_all = part.offset == 0 && self.size_bytes == Some(part.len);
        match head.status() {
            PARTIAL_CONTENT if is_same => None,
            OK if is_all => None,
            status => {
                let told = told.map_or_else(
                    || "no Content-Range".to_owned(),
                    |told| escape_controls(told).to_string(),
                );
                Some(format!(
                    "asked for {asked}{}, and was answered {status} with {told}",
                    size.as_deref().unwrap_or("*")
                ))
            }
        }
    }
}

/// Compares an announced length; a body without one is counted as it comes.
fn length_mismatch(asked: Option<u64>, head: &ResponseHead) -> Option<String> {
    let (asked, told) = asked.zip(head.content_length())?;
    (asked != told).then(|| format!("asked for {asked} bytes, and the answer has {told}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDDLE: Part = Part {
        number: 2,
        offset: 10,
        len: 5,
    };

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
        ResponseHead::with_status(
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
            (
                Span::Whole,
                ResponseHead::with_status(200, &[("etag", "\"e\"")]),
            ),
            (
                Span::Whole,
                ResponseHead::with_status(200, &[("x-amz-version-id", "v1")]),
            ),
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
        let ranged = |told| answer(206, &[("content-range", told)]);
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
                ResponseHead::with_status(200, &[]),
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
            let told = asked(span).mismatch(&answer).unwrap_or_default();
            assert!(told.contains(words), "{told:?} has no {words:?}");
        }
    }
}
