//! The tags of a version. They go with the write where a header has room for them and the store
//! keeps them, and are put on the very replica where not; a version is settled only when its
//! replica has them.

use std::collections::BTreeMap;

use aws_sdk_s3::types::{Tag, Tagging};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use replicator_core::failure::{Failure, FailureKind, Operation, Reason};
use replicator_core::object::VersionId;
use replicator_core::plan;
use replicator_core::retry::body_timeout;

use crate::failpoint::Step;
use crate::ledger::records::{Replica, ReplicaState};
use crate::reconcile::Context;
use crate::reconcile::Reconciler;
use crate::reconcile::changed;
use crate::reconcile::execute::delete;
use crate::reconcile::transient;
use crate::s3::accounts::capabilities::TagsGiven;
use crate::s3::accounts::error::{Side, from_sdk_error};
use crate::s3::accounts::{AccountClients, attempt_deadline};
use crate::s3::client::{S3Error, S3Request};
use crate::s3::xml::{self, NotXml};
use crate::sqs::lease;

/// The tags of an object version.
pub(crate) type Tags = BTreeMap<String, String>;

/// What came of putting tags on a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::reconcile) enum Followed {
    /// The replica has them.
    Done,
    /// The source lost the version before its tags were read.
    SourceGone,
    /// The replica was removed.
    ReplicaGone,
}

impl Reconciler<'_> {
    /// Makes sure that a replica that was just written has its tags.
    pub(in crate::reconcile) async fn ensure_tags(
        &self,
        source: &VersionId,
        replica: Option<&str>,
        (tags, given): (&Tags, TagsGiven),
    ) -> Result<(), Failure> {
        let Some(replica) = replica.filter(|_| !tags.is_empty()) else {
            return Ok(());
        };
        if tags_header(tags).is_some() && self.is_kept(given, replica, tags).await? {
            return Ok(());
        }
        match self.follow_tags(source, replica, Some(tags)).await? {
            Followed::Done | Followed::SourceGone => Ok(()),
            Followed::ReplicaGone => Err(changed(Operation::PutObjectTagging)),
        }
    }

    /// Gives a replica the tags that its source has now, or those it had where it is gone since.
    pub(in crate::reconcile) async fn follow_tags(
        &self,
        source: &VersionId,
        replica: &str,
        had: Option<&Tags>,
    ) -> Result<Followed, Failure> {
        let (cx, mut is_ignored) = (self.cx, false);
        // Another daemon may be writing older tags: what the source says after the write decides.
        for _ in 0..ROUNDS_MAX {
            // Before they are read: what is written is not to have waited.
            cx.engine.limits.request(cx.task.small_payer()).await;
            let Some(wanted) = self.tags_of(source).await?.or_else(|| had.cloned()) else {
                return Ok(Followed::SourceGone);
            };
            let write = Box::pin(write(cx, replica, &wanted));
            match cx.engine.failpoints.around(Step::PutTags, write).await {
                Err(failure) if failure.kind == FailureKind::NotFound => {
                    return Ok(Followed::ReplicaGone);
                }
                Err(failure) if failure.kind == FailureKind::NotImplemented => {
                    return Err(tags_unsupported(failure.source));
                }
                result => result?,
            }
            if self.tags_of(source).await?.is_some_and(|now| now != wanted) {
                is_ignored = false;
                continue;
            }
            if self.is_kept(TagsGiven::Apart, replica, &wanted).await? {
                return Ok(Followed::Done);
            }
            is_ignored = true;
        }
        match is_ignored {
            true => Err(tags_unsupported(Some(
                "it was answered 200, and the tags are not there".into(),
            ))),
            false => Err(transient(
                Operation::PutObjectTagging,
                "the source's tags keep changing",
            )),
        }
    }

    /// Checks the tags of replicas that were found rather than written. Where an attempt, or
    /// another daemon's, ended between the write and the tags, its messages come again. Another tool
    /// may have left them out.
    pub(in crate::reconcile) async fn check_tags(&mut self) -> Result<(), Failure> {
        for at in 0..self.observed.destination.replicas.len() {
            let found = self.observed.destination.replicas.get(at);
            let Some(replica) = found.filter(|found| self.may_lack_tags(found)).cloned() else {
                continue;
            };
            let tags = self.tags_of(&replica.source.id).await?;
            if let Some(tags) = tags.filter(|tags| !tags.is_empty()) {
                self.mend_tags(&replica, &tags).await?;
            }
            let replica = Replica {
                tags_seen: true,
                ..replica
            };
            self.cx.record(&replica)?;
            self.cx.engine.watchdog.record_progress();
            if let Some(found) = self.observed.destination.replicas.get_mut(at) {
                *found = replica;
            }
        }
        Ok(())
    }

    fn may_lack_tags(&self, replica: &Replica) -> bool {
        let is_found = replica.state == ReplicaState::Replicated
            && replica.kind == plan::VersionKind::Object
            && replica.written.is_none();
        // `null` is overwritten in place.
        let is_there = !replica.source.id.is_null() || self.observed.lists(&replica.source);
        let may_lack = self.is_repeated || replica.adopted;
        may_lack && is_found && is_there && !replica.tags_seen
    }

    async fn mend_tags(&self, replica: &Replica, tags: &Tags) -> Result<(), Failure> {
        let Some(version) = replica.destination_version.as_deref() else {
            return Ok(());
        };
        let are_kept = [TagsGiven::WithPut, TagsGiven::WithUpload]
            .into_iter()
            .all(|given| self.keeps_tags(given) == Some(true));
        if tags_header(tags).is_some() && are_kept && !replica.adopted {
            return Ok(());
        }
        match self.shows_tags(version, tags).await {
            Ok(Some(true)) => Ok(()),
            // One that was removed lacks nothing.
            Err(failure) if failure.kind == FailureKind::PreconditionFailed => Ok(()),
            Err(failure) => Err(failure),
            Ok(_) => self
                .follow_tags(&replica.source.id, version, Some(tags))
                .await
                .map(drop),
        }
    }

    /// Says whether the destination keeps tags that are given in this way: AWS does, another
    /// endpoint is checked once.
    fn keeps_tags(&self, given: TagsGiven) -> Option<bool> {
        let access = self.cx.destination;
        match access.is_aws {
            true => Some(true),
            false => access.capabilities.keeps_tags(given),
        }
    }

    async fn is_kept(&self, given: TagsGiven, replica: &str, tags: &Tags) -> Result<bool, Failure> {
        if let Some(keeps) = self.keeps_tags(given) {
            return Ok(keeps);
        }
        let shown = self.shows_tags(replica, tags).await?;
        // Another client, too, may have put tags since.
        if let Some(shown) = shown.filter(|shown| *shown || given != TagsGiven::Apart) {
            let access = self.cx.destination;
            access.capabilities.saw_tags(given, shown, &access.name);
        }
        // Without the permission to read tags, the answer to PutObjectTagging, which is about
        // nothing else, has to do.
        Ok(shown.unwrap_or(given == TagsGiven::Apart))
    }

    /// Says whether a replica has just these tags; none without the permission to read them.
    async fn shows_tags(&self, replica: &str, tags: &Tags) -> Result<Option<bool>, Failure> {
        let refusal = match read(self.cx, Side::Destination, replica).await {
            Ok(there) => return Ok(Some(there == *tags)),
            Err(refusal) => refusal,
        };
        match (refusal.status(), refusal.failure.kind) {
            (Some(401 | 403), FailureKind::NeedsOperator(_)) => Ok(None),
            (_, FailureKind::NotFound) => Err(changed(Operation::GetObjectTagging)),
            (_, FailureKind::NotImplemented) => Err(tags_unsupported(refusal.failure.source)),
            _ => Err(refusal.into()),
        }
    }

    /// Reads the tags that a source version has now; none if it is gone.
    async fn tags_of(&self, version: &VersionId) -> Result<Option<Tags>, Failure> {
        match read_source(self.cx, version).await {
            Ok(tags) => Ok(Some(tags)),
            Err(failure) if failure.kind == FailureKind::SourceVersionMissing => {
                delete::confirm_gone(self.cx, version, &failure).await?;
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }
}

// A client that changes tags in a loop must not hold a key forever.
const ROUNDS_MAX: u32 = 5;

/// A store without tags, where the source has some.
fn tags_unsupported(cause: Option<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    let cause = cause.unwrap_or_else(|| "the endpoint knows no tags".into());
    Failure::with_source(
        FailureKind::NeedsOperator(Reason::DstNotImplemented),
        Operation::PutObjectTagging,
        cause,
    )
}

/// Reads the tags of a source version.
pub(in crate::reconcile) async fn read_source(
    cx: Context<'_>,
    version: &VersionId,
) -> Result<Tags, Failure> {
    Ok(read(cx, Side::Source, version.as_str()).await?)
}

async fn read(cx: Context<'_>, side: Side, version: &str) -> Result<Tags, S3Error> {
    let (access, bucket, key) = cx.at(side);
    read_tags(access, S3Request::tags(side, bucket, key).version(version)).await
}

/// Sends a request for the tags of a version.
pub(crate) async fn read_tags(
    access: &AccountClients,
    call: S3Request<'_>,
) -> Result<Tags, S3Error> {
    let (_, text) = access.wire.text(call).await?;
    let no_list = || transient(Operation::GetObjectTagging, "the answer is no list of tags");
    Ok(parse_tags(&text).ok_or_else(no_list)?)
}

/// Reads the text of an answer; a tag without a value is none.
fn parse_tags(text: &str) -> Option<Tags> {
    let (mut tags, mut is_set, mut is_whole) = (Tags::new(), false, true);
    let (mut name, mut value) = (None, None);
    xml::visit_elements(text, |path, text| {
        match path {
            [_, "TagSet", "Tag", "Key"] => name = Some(text.into_owned()),
            [_, "TagSet", "Tag", "Value"] => value = Some(text.into_owned()),
            [_, "TagSet", "Tag"] => {
                let tag = name.take().zip(value.take());
                is_whole &= tag.is_some();
                tags.extend(tag);
            }
            [_, "TagSet"] => is_set = true,
            _ => {}
        }
        Ok::<_, NotXml>(())
    })
    .ok()?;
    (is_set && is_whole).then_some(tags)
}

/// Replaces the tags of a replica, named by its exact version.
async fn write(cx: Context<'_>, version: &str, tags: &Tags) -> Result<(), Failure> {
    let tag = |(name, value): (&String, &String)| Tag::builder().key(name).value(value).build();
    let set = tags.iter().map(tag).collect::<Result<Vec<_>, _>>();
    let tagging = set.and_then(|set| Tagging::builder().set_tag_set(Some(set)).build());
    let tagging = tagging.map_err(|error| transient(Operation::PutObjectTagging, error))?;
    lease::confirm_held().await?;
    // Sent once: one whose answer was lost may land on top of the tags of a later one (protocol
    // rule 5).
    let (access, bucket, key) = cx.at(Side::Write);
    access
        .s3_once
        .put_object_tagging()
        .bucket(bucket.as_str())
        .key(key.as_str())
        .version_id(version)
        .tagging(tagging)
        .customize()
        .config_override(attempt_deadline(body_timeout(0)))
        .send()
        .await
        .map_err(|error| from_sdk_error(Side::Write, Operation::PutObjectTagging, error))?;
    Ok(())
}

/// Writes tags as the `x-amz-tagging` header has them; none where there are none, or too much of
/// them for it.
pub(in crate::reconcile) fn tags_header(tags: &Tags) -> Option<String> {
    let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
    let pairs: Vec<String> = tags
        .iter()
        .map(|(name, value)| format!("{}={}", encode(name), encode(value)))
        .collect();
    Some(pairs.join("&")).filter(|text| (1..=HEADER_BYTES_MAX).contains(&text.len()))
}

// The headers of a PUT have 8 KB together, 2 KB of which may be the user's and 2 KB the system's:
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html. Ten tags of plain
// letters have less than this.
const HEADER_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_read_as_they_are_listed() {
        let text = "<Tagging xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><TagSet><Tag><Key>a &amp; b</Key>\
            <Value/></Tag><Tag><Key>z</Key><Value> é </Value></Tag></TagSet></Tagging>";
        let tags =
            [("a & b", ""), ("z", " é ")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(parse_tags(text), Some(Tags::from(tags)));
        assert_eq!(
            parse_tags("<Tagging><TagSet/></Tagging>"),
            Some(Tags::new())
        );
        assert_eq!(parse_tags("<Error/>"), None);
        assert_eq!(parse_tags(&text.replace("<Value/>", "")), None);
    }

    #[test]
    fn tags_are_written_as_the_header_wants_them_while_they_fit() {
        let tags = Tags::from([
            ("a b".to_owned(), "c&d=é".to_owned()),
            ("z".to_owned(), String::new()),
        ]);
        assert_eq!(
            tags_header(&tags).as_deref(),
            Some("a%20b=c%26d%3D%C3%A9&z=")
        );
        assert_eq!(tags_header(&Tags::new()), None);
        let ten = |letter: &str| {
            (0..10)
                .map(|n| (format!("{n}{}", letter.repeat(127)), letter.repeat(256)))
                .collect()
        };
        assert!(tags_header(&ten("a")).is_some());
        assert_eq!(tags_header(&ten("é")), None);
    }

    #[test]
    fn no_text_makes_the_parser_of_tags_panic() {
        let real = b"<Tagging><TagSet><Tag><Key>a &amp; b</Key><Value/></Tag><Tag><Key>z</Key><Value>1</Value></Tag></TagSet></Tagging>";
        crate::poison::feed(&[real, b"<Tagging><TagSet/></Tagging>"], |text| {
            let Some(tags) = parse_tags(&String::from_utf8_lossy(text)) else {
                return;
            };
            assert!(tags_header(&tags).is_none_or(|header| header.len() <= HEADER_BYTES_MAX));
        });
    }
}
