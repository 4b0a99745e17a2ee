//! What comes back: an answer, or a refusal that says what to do.

use std::time::Duration;

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::http::Headers;
use aws_smithy_types::DateTime;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::date_time::Format;
use replicator_core::failure::Failure;
use replicator_core::object::{ETag, Timestamp};

/// A successful answer, its body still to come.
#[derive(Debug)]
pub(crate) struct Answer {
    head: Head,
    body: SdkBody,
}

/// An answer without its body.
#[derive(Debug)]
pub(crate) struct Head {
    status: u16,
    headers: Headers,
}

/// What the names of the user's metadata begin with.
pub(crate) const USER: &str = "x-amz-meta-";

/// A request that was not answered, or not with what it asked for.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) failure: Failure,
    /// What did come.
    pub(super) answer: Option<Box<Head>>,
    /// It carried a body, and took all the time there is for one attempt.
    pub(crate) is_held_up: bool,
}

impl Answer {
    pub(super) fn of(response: HttpResponse) -> Self {
        let status = response.status().as_u16();
        let (headers, body) = {
            let mut response = response;
            let body = std::mem::replace(response.body_mut(), SdkBody::taken());
            let headers = std::mem::take(response.headers_mut());
            (headers, body)
        };
        Self { head: Head { status, headers }, body }
    }

    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.head.status)
    }

    pub(super) fn head(&self) -> &Head {
        &self.head
    }

    /// Gives up the body, which a HEAD has none of.
    pub(crate) fn into_head(self) -> Head {
        self.head
    }

    /// Parts what is read at once from what is still to come.
    pub(crate) fn split(self) -> (Head, SdkBody) {
        (self.head, self.body)
    }

    pub(crate) fn status(&self) -> u16 {
        self.head.status
    }
}

impl Head {
    /// Makes one of these headers.
    #[cfg(test)]
    pub(crate) fn for_tests(all: &[(&str, &str)]) -> Self {
        Self::with_status(200, all)
    }

    /// Makes one of these headers; of two of a name the later one counts.
    #[cfg(test)]
    pub(crate) fn with_status(status: u16, all: &[(&str, &str)]) -> Self {
        let mut headers = Headers::new();
        for (name, value) in all {
            headers.insert((*name).to_owned(), (*value).to_owned());
        }
        Self { status, headers }
    }

    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// Returns a header by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    /// Returns a header as the text that it is.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.header(name).map(str::to_owned)
    }

    /// Lists the user's metadata.
    pub(crate) fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers.iter().filter_map(|(name, value)| Some((name.strip_prefix(USER)?, value)))
    }

    /// Returns a value of the user's metadata.
    pub(crate) fn user(&self, name: &str) -> Option<&str> {
        self.metadata().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    pub(crate) fn etag(&self) -> Option<ETag> {
        ETag::try_from(self.header("etag")?).ok()
    }

    pub(crate) fn version_id(&self) -> Option<String> {
        self.text("x-amz-version-id")
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

    /// Returns how old the object is by the server's own clock.
    pub(crate) fn age(&self) -> Option<Duration> {
        let age = self.date()?.unix_timestamp() - self.last_modified()?.secs();
        Some(Duration::from_secs(u64::try_from(age).unwrap_or(0)))
    }
}

impl Refusal {
    /// A request that was never answered.
    pub(super) fn of(failure: Failure) -> Self {
        Self { failure, answer: None, is_held_up: false }
    }

    /// Returns the status of the answer, if there was one.
    pub(crate) fn status(&self) -> Option<u16> {
        self.answer.as_ref().map(|answer| answer.status())
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
