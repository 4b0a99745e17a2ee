//! Every request in the order of its arrival: which client sent it and for what, whether it was
//! executed, and what became of the answer.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

mod call;

pub use call::{Call, Service};

/// The record of all requests; a handle, cheap to clone.
#[derive(Debug, Clone)]
pub struct Journal {
    start: Instant,
    entries: Arc<Mutex<Vec<Entry>>>,
}

/// A request and its fate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the journal.
    pub number: usize,
    /// The client that sent it.
    pub client: String,
    /// Which host it was sent to.
    pub host: String,
    /// What it asks for.
    pub call: Call,
    /// When it left its client, since the start of the journal.
    pub sent: Duration,
    /// When it arrived.
    pub arrived: Duration,
    /// When a service executed it, and the status that the service gave; `None` while or if it did
    /// not.
    pub executed: Option<(Duration, u16)>,
    /// What the client got.
    pub answer: Answer,
    /// The names of the faults that it met.
    pub faults: Vec<String>,
}

/// What a client got for its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Nothing so far.
    Waiting,
    /// A status, and the body that goes with it unless a fault says otherwise.
    Given(Duration, u16),
    /// A dead connection or silence, or it no longer listened.
    Lost,
}

/// A multipart upload as the journal shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// The bucket.
    pub bucket: String,
    /// The object's key.
    pub key: String,
    /// The client that began it; `None` when that is not in the journal.
    pub begun_by: Option<String>,
    /// The clients that requested its end, and how, when that was answered with success.
    pub ended: Vec<(String, String)>,
}

impl fmt::Display for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.entries()
            .iter()
            .try_for_each(|entry| writeln!(f, "{entry}"))
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            client,
            call,
            sent,
            faults,
            ..
        } = self;
        let or_none = |text: &Option<String>| text.as_deref().unwrap_or("-").to_owned();
        write!(
            f,
            "{:9.3} {client} {} {}/{}",
            sent.as_secs_f64(),
            call.operation,
            or_none(&call.bucket),
            or_none(&call.key)
        )?;
        if let Some(version) = &call.version {
            write!(f, " version {version}")?;
        }
        for (name, value) in &call.conditions {
            write!(f, " {name}: {value}")?;
        }
        if let Some((at, status)) = self.executed {
            write!(f, " executed {:.3} {status}", at.as_secs_f64())?;
        }
        match self.answer {
            Answer::Waiting => write!(f, " no answer yet")?,
            Answer::Given(at, status) => write!(f, " answered {:.3} {status}", at.as_secs_f64())?,
            Answer::Lost => write!(f, " lost")?,
        }
        if faults.is_empty() {
            Ok(())
        } else {
            write!(f, " faults {faults:?}")
        }
    }
}

impl Journal {
    /// Starts an empty journal now.
    #[allow(
        clippy::new_without_default,
        reason = "it reads tokio's clock, so it is made at a time"
    )]
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            entries: Arc::default(),
        }
    }

    /// Returns the time since the start, as entries have it.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Returns how many requests have arrived; later ones have this number or a greater one.
    pub fn len(&self) -> usize {
        self.entries.lock().unwrap().len()
    }

    /// Says whether no request has arrived.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns every entry.
    pub fn entries(&self) -> Vec<Entry> {
        self.entries.lock().unwrap().clone()
    }

    /// Returns the entries for which something holds.
    pub fn select(&self, holds: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        self.entries
            .lock()
            .unwrap()
            .iter()
            .filter(|entry| holds(entry))
            .cloned()
            .collect()
    }

    /// Returns the requests for an operation of S3.
    pub fn of(&self, operation: &str) -> Vec<Entry> {
        self.select(|entry| entry.call.service == Service::S3 && entry.call.operation == operation)
    }

    /// Returns what changed, or could have changed, what a bucket shows.
    pub fn writes(&self, bucket: &str) -> Vec<Entry> {
        self.select(|entry| entry.call.writes() && entry.call.bucket.as_deref() == Some(bucket))
    }

    /// Returns the DELETEs of a bucket's objects that have neither a condition nor an exact
    /// version.
    pub fn blind_deletes(&self, bucket: &str) -> Vec<Entry> {
        self.select(|Entry { call, .. }| {
            call.bucket.as_deref() == Some(bucket)
                && match call.operation.as_str() {
                    "DeleteObject" => call.version.is_none() && call.conditions.is_empty(),
                    "DeleteObjects" => true,
                    _ => false,
                }
        })
    }

    /// Returns every multipart upload that was begun, added to or ended, by its id.
    pub fn uploads(&self) -> BTreeMap<String, Upload> {
        let mut all = BTreeMap::new();
        for entry in self.entries() {
            let Call {
                operation,
                bucket,
                key,
                upload,
                ..
            } = entry.call;
            let Some(id) = upload else { continue };
            let upload = all.entry(id).or_insert_with(|| Upload {
                bucket: bucket.unwrap_or_default(),
                key: key.unwrap_or_default(),
                begun_by: None,
                ended: Vec::new(),
            });
            let succeeded = entry.executed.is_some_and(|(_, status)| status < 300);
            match operation.as_str() {
                "CreateMultipartUpload" => upload.begun_by = Some(entry.client),
                "CompleteMultipartUpload" | "AbortMultipartUpload" if succeeded => {
                    upload.ended.push((entry.client, operation));
                }
                _ => {}
            }
        }
        all
    }

    /// Writes down that a request arrived; returns its number.
    pub(crate) fn arrived(&self, client: &str, host: &str, call: Call, sent: Duration) -> usize {
        let arrived = self.now();
        let mut entries = self.entries.lock().unwrap();
        let number = entries.len();
        let (client, host) = (client.to_owned(), host.to_owned());
        let (executed, answer, faults) = (None, Answer::Waiting, Vec::new());
        entries.push(Entry {
            number,
            client,
            host,
            call,
            sent,
            arrived,
            executed,
            answer,
            faults,
        });
        number
    }

    pub(crate) fn met(&self, number: usize, faults: Vec<String>) {
        self.entries.lock().unwrap()[number].faults = faults;
    }

    /// Writes down what a service answered, and the upload that it began.
    pub(crate) fn executed(&self, number: usize, status: u16, upload: Option<String>) {
        let now = self.now();
        let entry = &mut self.entries.lock().unwrap()[number];
        entry.executed = Some((now, status));
        entry.call.upload = entry.call.upload.take().or(upload);
    }

    pub(crate) fn given(&self, number: usize, status: u16) {
        let now = self.now();
        self.entries.lock().unwrap()[number].answer = Answer::Given(now, status);
    }

    pub(crate) fn lost(&self, number: usize) {
        self.entries.lock().unwrap()[number].answer = Answer::Lost;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Request;

    use super::*;

    fn write_down(journal: &Journal, method: &str, path: &str, condition: Option<&str>) -> usize {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://s3.sim{path}"));
        if let Some(etag) = condition {
            request = request.header("if-match", etag);
        }
        let call = Call::of(&request.body(Bytes::new()).unwrap());
        let number = journal.arrived("one", "s3.sim", call, journal.now());
        journal.executed(number, 200, None);
        number
    }

    #[tokio::test(start_paused = true)]
    async fn deletes_without_a_condition_are_found() {
        let journal = Journal::new();
        write_down(&journal, "HEAD", "/dst/k", None);
        write_down(&journal, "DELETE", "/dst/k?versionId=v", None);
        write_down(&journal, "DELETE", "/dst/k", Some("e"));
        let blind = write_down(&journal, "DELETE", "/dst/k", None);
        let numbers =
            |found: Vec<Entry>| found.iter().map(|entry| entry.number).collect::<Vec<_>>();
        assert_eq!(numbers(journal.blind_deletes("dst")), [blind]);
        assert_eq!(journal.writes("dst").len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_is_known_from_its_beginning_to_its_end() {
        let journal = Journal::new();
        let begun = write_down(&journal, "POST", "/dst/k?uploads", None);
        journal.executed(begun, 200, Some("u".to_owned()));
        write_down(&journal, "PUT", "/dst/k?partNumber=1&uploadId=u", None);
        let refused = write_down(&journal, "POST", "/dst/k?uploadId=u", None);
        journal.executed(refused, 412, None);
        assert!(journal.uploads()["u"].ended.is_empty());
        write_down(&journal, "DELETE", "/dst/k?uploadId=u", None);
        let upload = &journal.uploads()["u"];
        assert_eq!(
            (upload.begun_by.as_deref(), upload.key.as_str()),
            (Some("one"), "k")
        );
        assert_eq!(
            upload.ended,
            [("one".to_owned(), "AbortMultipartUpload".to_owned())]
        );
    }
}
