//! `check --probe`: writes an object at the destination as a rule does, reads it, and removes exactly
//! its versions, also when the command is interrupted. Its name is reserved, and no other object's.

use std::sync::atomic::{AtomicBool, Ordering};

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::list_object_versions::ListObjectVersionsOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Tag, Tagging};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use parking_lot::Mutex;
use replicator_core::retry::LANDING;
use replicator_core::rule::Rule;
use tokio_util::sync::CancellationToken;

use super::access::{ASK_TIMEOUT, Asked, ask};
use super::buckets;
use super::finding::{CheckName, Finding, Fix, Section, Severity, shell_quoted};
use super::objects::RESERVED;
use crate::reconcile::{Header, headers_of_rule};
use crate::s3::accounts::error::{Refusal, RefusalKind};
use crate::s3::checksum::{CRC64_NVME, crc64_header, crc64_of};

const BODY: &[u8] = b"s3-replicator check --probe\n";
const TAGGING: &str = "x-amz-tagging";
const IF_ABSENT: &str = "if-none-match";
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
const CONDITION_FAILED: &str = "PreconditionFailed";

/// Writes and removes probe objects at a rule's destination, with each set of headers that its
/// writes have, until `stop` is cancelled.
pub(super) async fn probe(
    asked: buckets::Asked<'_>,
    rule: &Rule,
    stop: &CancellationToken,
    section: &mut Section,
) {
    // Where it is not known whether the bucket retains objects, this one might stay for years.
    let may_retain = match &asked.1.lock {
        Ok(lock) => lock.is_default,
        Err(refusal) => refusal.kind != RefusalKind::Unimplemented,
    };
    if may_retain {
        return section.add([retained(asked)]);
    }
    for headers in headers_of_rule(rule) {
        if stop.is_cancelled() {
            return section.add([interrupted(asked)]);
        }
        let probe = Probe::new(asked, rule, headers, stop);
        let before = section.findings.len();
        let found = Box::pin(probe.run()).await;
        section.add(found);
        section.add(Box::pin(probe.remove()).await);
        if stop.is_cancelled() {
            return section.add([interrupted(asked)]);
        }
        if section.findings.len() == before {
            section.fine(format!(
                "{} was written, read and removed{}",
                probe.key,
                probe.with_headers()
            ));
        }
    }
}

/// One object to be.
struct Probe<'a> {
    asked: buckets::Asked<'a>,
    rule: &'a Rule,
    key: String,
    headers: Vec<Header>,
    stop: &'a CancellationToken,
    /// The versions and markers that answers told of.
    made: Mutex<Vec<String>>,
    /// Whether a write got no answer, and may still take effect.
    is_unsure: AtomicBool,
}

impl<'a> Probe<'a> {
    fn new(
        asked: buckets::Asked<'a>,
        rule: &'a Rule,
        headers: Vec<Header>,
        stop: &'a CancellationToken,
    ) -> Self {
        let prefix = destination_prefix(rule);
        Self {
            asked,
            rule,
            key: format!("{prefix}{RESERVED}-{:016x}", fastrand::u64(..)),
            headers,
            stop,
            made: Mutex::default(),
            is_unsure: AtomicBool::default(),
        }
    }

    fn with_headers(&self) -> String {
        let named = self
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}"));
        let named: Vec<String> = named.collect();
        match named.is_empty() {
            true => String::new(),
            false => format!(" with {}", named.join(", ")),
        }
    }

    fn place(&self) -> String {
        format!("s3://{}/{}", self.asked.0.bucket, self.key)
    }

    fn fixes(&self, refusal: &Refusal, action: &str) -> Vec<Fix> {
        let (place, attributes) = self.asked;
        let prefix = destination_prefix(self.rule);
        place.fixes_of_objects((attributes, prefix), refusal, action)
    }

    /// Waits for the answer to a write, and remembers if there is none.
    async fn ask_to_write<T, E>(
        &self,
        call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Asked<T>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let answer = ask(call).await;
        let is_silent = |refusal: &Refusal| refusal.kind == RefusalKind::Silent;
        if answer.as_ref().is_err_and(is_silent) {
            self.is_unsure.store(true, Ordering::Relaxed);
        }
        answer
    }

    /// Writes, and reads what was written.
    async fn run(&self) -> Vec<Finding> {
        let (version, mut found) = self.write().await;
        if let Some(version) = version {
            found.extend(self.repeat().await);
            found.extend(self.read(&version).await);
            found.extend(self.tag(&version).await);
            if self.rule.delete_markers {
                found.extend(self.mark().await);
            }
        }
        if !self.stop.is_cancelled() {
            found.extend(self.upload().await);
        }
        found
    }

    /// Writes the object with all headers; if that is refused, without tags and without a condition,
    /// so that it is known what is refused.
    async fn write(&self) -> (Option<String>, Vec<Finding>) {
        let tags = (TAGGING, "s3-replicator=probe".to_owned());
        let condition = (IF_ABSENT, "*".to_owned());
        let refusal = match self.put(&[tags.clone(), condition.clone()]).await {
            Ok(Some(version)) => return (Some(version), Vec::new()),
            Ok(None) => {
                let (check, what) = (CheckName::DestinationWrite, "PutObject names no version");
                return (None, vec![Finding::unknown(check, self.place(), what)]);
            }
            Err(refusal) => refusal,
        };
        if refusal.kind == RefusalKind::Denied
            && let Ok(version) = self.put(&[condition]).await
        {
            let found = self.denied(CheckName::DestinationTags, &refusal, "s3:PutObjectTagging");
            return (version, vec![found]);
        }
        if refusal.kind == RefusalKind::Unimplemented
            && let Ok(version) = self.put(&[tags]).await
        {
            return (version, vec![self.unconditional(&refusal.words)]);
        }
        let mut found = self.denied(CheckName::DestinationWrite, &refusal, "s3:PutObject");
        found.what = format!("PutObject{} {}", self.with_headers(), refusal.words);
        (None, vec![found])
    }

    async fn put(&self, more: &[Header]) -> Asked<Option<String>> {
        let place = self.asked.0;
        let checksum = (CRC64_NVME, crc64_header(crc64_of(BODY)));
        let headers: Vec<Header> = self
            .headers
            .iter()
            .chain(more)
            .cloned()
            .chain([checksum])
            .collect();
        let request = place
            .clients
            .s3_once
            .put_object()
            .bucket(place.bucket)
            .key(&self.key)
            .body(ByteStream::from_static(BODY));
        let request = request.customize().mutate_request(move |request| {
            for (name, value) in &headers {
                request.headers_mut().insert(*name, value.clone());
            }
        });
        let version = self.ask_to_write(request.send()).await?.version_id;
        self.made.lock().extend(version.clone());
        Ok(version)
    }

    /// Writes it again where it is: an endpoint that honours conditions refuses that for the
    /// condition. Any other refusal says nothing of it.
    async fn repeat(&self) -> Option<Finding> {
        let Err(refusal) = self.put(&[(IF_ABSENT, "*".to_owned())]).await else {
            return Some(self.unconditional("a write with If-None-Match: * replaced an object"));
        };
        let what = refusal.describe("a write with If-None-Match: * over an object");
        let is_honoured = refusal.code == CONDITION_FAILED;
        (!is_honoured).then(|| Finding::unknown(CheckName::ConditionalWrites, self.place(), what))
    }

    fn unconditional(&self, words: &str) -> Finding {
        let keeps = self.asked.0.clients.keeps_conditions;
        let what = format!("the endpoint does not honour conditions on writes: {words}");
        let why = match keeps {
            true => "the daemon relies on them here: another writer's object may be replaced",
            false => "each new key costs one more read, and other writers are noticed later",
        };
        let fix = Fix::Config {
            line: None,
            key: format!("accounts.{}.conditional_writes", self.asked.0.account.name),
            value: "false".to_owned(),
        };
        let found = Finding::problem(CheckName::ConditionalWrites, self.place(), what, why);
        let found = found.fixed_by([fix]);
        match keeps {
            true => found,
            false => found.into_warning(),
        }
    }

    async fn read(&self, version: &str) -> Option<Finding> {
        let place = self.asked.0;
        // What is archived at once cannot be read.
        let class = self.rule.storage_class.as_deref();
        if matches!(class, Some("GLACIER" | "DEEP_ARCHIVE")) {
            return None;
        }
        let get = place.clients.s3.get_object().bucket(place.bucket);
        let answer = ask(get.key(&self.key).version_id(version).send()).await;
        let check = CheckName::DestinationRead;
        let answer = match answer {
            Ok(answer) => answer,
            Err(refusal) => return Some(self.denied(check, &refusal, "s3:GetObjectVersion")),
        };
        let body = tokio::time::timeout(ASK_TIMEOUT, answer.body.collect()).await;
        let Ok(Ok(body)) = body else {
            let what = "what was written could not be read to its end";
            return Some(Finding::unknown(check, self.place(), what));
        };
        (body.into_bytes() != BODY).then(|| {
            let what = "what is read is not what was written";
            let why = "replicas would not be equal to their sources, and are parked";
            let fix = Fix::advice("look at the store, and at proxies before it");
            Finding::problem(check, self.place(), what, why).fixed_by([fix])
        })
    }

    async fn tag(&self, version: &str) -> Option<Finding> {
        let place = self.asked.0;
        let tag = Tag::builder()
            .key("s3-replicator")
            .value("probe")
            .build()
            .ok()?;
        let tags = Tagging::builder().tag_set(tag).build().ok()?;
        let s3 = &place.clients.s3_once;
        let put = s3.put_object_tagging().bucket(place.bucket);
        let put = put.key(&self.key).version_id(version).tagging(tags);
        let refusal = ask(put.send()).await.err()?;
        let check = CheckName::DestinationTags;
        Some(self.denied(check, &refusal, "s3:PutObjectVersionTagging"))
    }

    async fn mark(&self) -> Option<Finding> {
        let place = self.asked.0;
        let delete = place.clients.s3_once.delete_object().bucket(place.bucket);
        match self.ask_to_write(delete.key(&self.key).send()).await {
            Ok(marked) => {
                self.made.lock().extend(marked.version_id);
                None
            }
            Err(refusal) => {
                let check = CheckName::DestinationDelete;
                Some(self.denied(check, &refusal, "s3:DeleteObject"))
            }
        }
    }

    /// Begins an upload in parts, and ends it.
    async fn upload(&self) -> Option<Finding> {
        let place = self.asked.0;
        let s3 = &place.clients.s3_once;
        let check = CheckName::DestinationMultipart;
        let begin = s3.create_multipart_upload().bucket(place.bucket);
        let begun = match self.ask_to_write(begin.key(&self.key).send()).await {
            Ok(begun) => begun,
            Err(refusal) => return Some(self.denied(check, &refusal, "s3:PutObject")),
        };
        self.abort(&begun.upload_id.unwrap_or_default()).await
    }

    async fn abort(&self, id: &str) -> Option<Finding> {
        let (place, check) = (self.asked.0, CheckName::DestinationMultipart);
        let abort = place.clients.s3_once.abort_multipart_upload();
        let abort = abort.bucket(place.bucket).key(&self.key).upload_id(id);
        let refusal = ask(abort.send()).await.err()?;
        let (key, id) = (shell_quoted(&self.key), shell_quoted(id));
        let rest = format!("--key {key} --upload-id {id}");
        let left = place.command("abort-multipart-upload", &rest);
        let found = self.denied(check, &refusal, "s3:AbortMultipartUpload");
        Some(found.fixed_by([left]))
    }

    /// Judges a refused request; one that got no answer is known not to have been carried out, or
    /// is removed with the rest.
    fn denied(&self, check: CheckName, refusal: &Refusal, action: &str) -> Finding {
        let why = "replicas cannot be written so: their tasks are parked";
        let fix = match refusal.kind == RefusalKind::Denied {
            true => self.fixes(refusal, action),
            false => vec![Fix::advice(
                "change what the service names: a header comes from the rule's storage class or \
                 encryption, or from the bucket's own",
            )],
        };
        let found = Finding::problem(check, self.place(), refusal.describe(action), why);
        found.fixed_by(fix).weighed_by(refusal)
    }

    /// Removes every version of the probe object, and its delete markers: those that the bucket
    /// lists, or where it does not, those that answers told of. What got no answer is given the time
    /// to take effect before.
    async fn remove(&self) -> Vec<Finding> {
        let place = self.asked.0;
        let mut left = Vec::new();
        let is_unsure = self.is_unsure.load(Ordering::Relaxed);
        if is_unsure {
            tokio::time::sleep(LANDING).await;
            left.extend(self.abort_uploads().await);
        }
        let list = place.clients.s3.list_object_versions().bucket(place.bucket);
        let own = match ask(list.prefix(&self.key).send()).await {
            Ok(listed) => self.own_of(&listed),
            Err(refusal) => {
                let what = refusal.describe("s3:ListBucketVersions, for what may be left of it,");
                let check = CheckName::DestinationDeleteVersion;
                left.extend(is_unsure.then(|| Finding::unknown(check, self.place(), what)));
                self.made.lock().clone()
            }
        };
        for version in own {
            let delete = place.clients.s3_once.delete_object().bucket(place.bucket);
            let delete = delete.key(&self.key).version_id(&version);
            if let Err(refusal) = ask(delete.send()).await {
                left.push(self.left(&refusal, &version));
            }
        }
        left
    }

    /// Ends uploads whose beginning got no answer.
    async fn abort_uploads(&self) -> Vec<Finding> {
        let place = self.asked.0;
        let list = place.clients.s3.list_multipart_uploads();
        let list = list.bucket(place.bucket).prefix(&self.key);
        let listed = match ask(list.send()).await {
            Ok(listed) => listed.uploads.unwrap_or_default(),
            Err(refusal) => {
                let what = refusal.describe("s3:ListBucketMultipartUploads, for what may be left,");
                let check = CheckName::DestinationMultipart;
                return vec![Finding::unknown(check, self.place(), what)];
            }
        };
        let mut left = Vec::new();
        for id in listed.into_iter().filter_map(|upload| upload.upload_id) {
            left.extend(self.abort(&id).await);
        }
        left
    }

    fn own_of(&self, listed: &ListObjectVersionsOutput) -> Vec<String> {
        let versions = listed
            .versions()
            .iter()
            .map(|one| (one.key(), one.version_id()));
        let markers = listed
            .delete_markers()
            .iter()
            .map(|one| (one.key(), one.version_id()));
        let own = versions
            .chain(markers)
            .filter(|(key, _)| *key == Some(&self.key));
        let own = own.filter_map(|(_, version)| version.map(str::to_owned));
        own.collect()
    }

    fn left(&self, refusal: &Refusal, version: &str) -> Finding {
        let (place, check) = (self.asked.0, CheckName::DestinationDeleteVersion);
        let what = format!("version {version} of it is left there: {}", refusal.words);
        let why = match self.rule.version_deletes {
            true => "the rule removes versions, which it may not",
            false => "the rule itself removes no versions, so nothing else is amiss",
        };
        let key = shell_quoted(&self.key);
        let rest = format!("--key {key} --version-id {version}");
        let remove = place.command("delete-object", &rest);
        let is_denied = refusal.kind == RefusalKind::Denied && self.rule.version_deletes;
        let permit = is_denied.then(|| self.fixes(refusal, "s3:DeleteObjectVersion"));
        let severity = match self.rule.version_deletes {
            _ if refusal.leaves_open() => Severity::Unasked,
            true => Severity::Problem,
            false => Severity::Warning,
        };
        let found = Finding {
            severity,
            ..Finding::problem(check, self.place(), what, why)
        };
        found
            .fixed_by(permit.into_iter().flatten())
            .fixed_by([remove])
    }
}

fn destination_prefix(rule: &Rule) -> &str {
    rule.rewrite.as_deref().unwrap_or(&rule.filter.prefix)
}

/// An object that is retained could not be removed.
fn retained((place, _): buckets::Asked<'_>) -> Finding {
    let what =
        "it was not written to: its Object Lock retains every new object, or could not be read";
    let why = "a probe object could not be removed; whether the bucket can be written is not known";
    let fix = Fix::advice("replicate one object, and look at `s3-replicator failures list`");
    Finding::problem(CheckName::DestinationWrite, place.url(), what, why)
        .into_unasked()
        .fixed_by([fix])
}

fn interrupted((place, _): buckets::Asked<'_>) -> Finding {
    let what = "the probe was interrupted; it writes nothing more";
    Finding::unknown(CheckName::DestinationWrite, place.url(), what)
}
