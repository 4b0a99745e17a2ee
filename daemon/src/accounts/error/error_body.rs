//! What a service said when it refused: its status, and of its words and headers those that decide.

use std::fmt;

use crate::xml::{self, NotXml};

/// An answer that is not what the request was for.
#[derive(Debug, Default)]
pub(crate) struct ErrorBody {
    pub(crate) status: u16,
    /// The service's own error code. It is empty where the answer has none: that to a HEAD, and
    /// what something in between answers.
    pub(crate) code: String,
    pub(crate) message: String,
    /// The request header that it is about, in lower case.
    pub(super) header: Option<String>,
    /// Whether the headers say that a delete marker is there, as S3 alone does.
    pub(super) is_marker: bool,
    /// Where the bucket is instead, in words.
    pub(super) elsewhere: Option<String>,
    /// The type of the answer's body.
    media: Option<String>,
    /// Names of the request's headers beyond the plain ones, for a service that does not say which
    /// one it refuses.
    asked: String,
}

impl ErrorBody {
    /// Reads a refusal: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>
    pub(crate) fn parse_refusal<'h>(
        status: u16,
        header: impl Fn(&str) -> Option<&'h str>,
        text: &str,
    ) -> Self {
        let mut words = Words::default();
        let read = xml::visit_elements(text, |path, text| {
            if let [.., "Error", name] = path {
                words.set_first(name, &text);
            }
            Ok::<_, NotXml>(())
        });
        // Half a document is not what a service says.
        let words = read.map_or_else(|_| Words::default(), |()| words);
        let is_redirect = matches!(status, 301 | 307);
        let region = header("x-amz-bucket-region")
            .filter(|_| is_redirect)
            .or(words.region.as_deref());
        let elsewhere = region
            .filter(|region| is_name(region))
            .map(|region| format!("in Region {region}"));
        let endpoint = words
            .endpoint
            .as_deref()
            .filter(|endpoint| is_name(endpoint));
        Self {
            status,
            header: words
                .header
                .clone()
                .or_else(|| named_header(&words.message)),
            is_marker: header("x-amz-delete-marker") == Some("true"),
            elsewhere: elsewhere.or_else(|| endpoint.map(|endpoint| format!("at {endpoint}"))),
            media: header("content-type")
                .map(|media| media.chars().take(MEDIA_CHARS_MAX).collect()),
            code: words.code,
            message: words.message,
            asked: String::new(),
        }
    }

    /// Notes the headers of the request beyond a plain one.
    pub(crate) fn with_request(self, asked: String) -> Self {
        Self { asked, ..self }
    }

    /// Says whether the service itself said it: by a code, or by headers that S3 alone sends.
    pub(super) fn is_own(&self) -> bool {
        !self.code.is_empty() || self.is_marker || self.is_redirect()
    }

    /// Says whether a redirect names where the bucket is.
    pub(super) fn is_redirect(&self) -> bool {
        matches!(self.status, 301 | 307) && self.elsewhere.is_some()
    }

    /// Says whether the refusal is about a header, or about the feature that it needs.
    pub(super) fn minds_header(&self) -> bool {
        let message = self.message.to_ascii_lowercase();
        self.header.is_some() && UNSUPPORTED.iter().any(|words| message.contains(words))
    }
}

// "Unsupported header 'x-amz-…' received for this API call" (Backblaze B2), "Header 'x-amz-…' with
// value … not implemented" (Cloudflare R2), "The algorithm type you specified in x-amz-checksum-
// header is invalid" (S3, of an algorithm that it does not support).
const UNSUPPORTED: [&str; 4] = [
    "unsupported",
    "not supported",
    "not implemented",
    "algorithm type",
];

// A longer media type says no more about the server that answered.
const MEDIA_CHARS_MAX: usize = 64;

/// What the elements of an error document say.
#[derive(Debug, Default)]
struct Words {
    code: String,
    message: String,
    header: Option<String>,
    region: Option<String>,
    endpoint: Option<String>,
}

impl Words {
    /// Takes the first of each.
    fn set_first(&mut self, name: &str, text: &str) {
        match name {
            "Code" if self.code.is_empty() => self.code = shorten_text(text),
            "Message" if self.message.is_empty() => self.message = shorten_text(text),
            "Header" | "ArgumentName" if self.header.is_none() => self.header = header_name(text),
            "Region" if self.region.is_none() => self.region = Some(shorten_text(text)),
            "Endpoint" if self.endpoint.is_none() => self.endpoint = Some(shorten_text(text)),
            _ => {}
        }
    }
}

/// Returns as much of a text as a service has to say; it is kept, and logged, with each task that
/// it is about.
fn shorten_text(text: &str) -> String {
    text.trim().chars().take(TEXT_CHARS_MAX).collect()
}

const TEXT_CHARS_MAX: usize = 512;

/// Finds the header that a message names.
fn named_header(message: &str) -> Option<String> {
    message
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        .find_map(header_name)
}

/// Returns the name of a header that a request of ours may carry; a message may end in the middle
/// of one.
fn header_name(text: &str) -> Option<String> {
    let name = text.trim().to_ascii_lowercase();
    let is_header =
        name.starts_with("x-amz-") || matches!(name.as_str(), "if-match" | "if-none-match");
    is_header.then_some(name)
}

/// Says whether a text can be the name of a Region or a host.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-.:".contains(&b))
}

impl fmt::Display for ErrorBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "answered {}", self.status)?;
        match (self.code.as_str(), self.media.as_deref()) {
            ("", _) if self.is_own() => {}
            ("", media) => {
                let media = media.unwrap_or("unknown");
                let lack = if (200..300).contains(&self.status) {
                    "cannot be read"
                } else {
                    "has no S3 error code"
                };
                write!(f, " with a body of type {media:?} that {lack}")?;
            }
            (code, _) => write!(f, " {code}")?,
        }
        match (self.message.as_str(), self.asked.as_str()) {
            ("", "") => {}
            ("", asked) => write!(f, ", without saying what it minds; the request has {asked}")?,
            (message, _) => write!(f, ": {message}")?,
        }
        self.elsewhere.as_ref().map_or(Ok(()), |elsewhere| {
            write!(f, " (the bucket is {elsewhere})")
        })
    }
}
