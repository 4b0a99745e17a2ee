//! What the destination's answer to a write says. A request reads what it leaves out: some stores
//! name no ETag, or no version id. What it says is held against what was sent.
//!
//! A checksum that it states is believed. An ETag that looks like an MD5 is one at AWS, as
//! documented; another store may make its ETags otherwise, so there a difference parks nothing: the
//! replica is counted as unproved, or read back where `verify` demands it. Read back as well is
//! what contradicts a checksum, or an ETag of AWS; other bytes than were sent are a refusal that
//! names the version.

use aws_sdk_s3::operation::complete_multipart_upload::CompleteMultipartUploadOutput;
use replicator_core::failure::{Failure, FailureKind, Reason, error_chain};
use replicator_core::object::{ETag, VersionId};
use replicator_core::operation::Operation;
use replicator_core::plan::{SourceVersion, VersionKind, VersionRef};
use replicator_core::retry;
use replicator_core::rule::Verify;
use tracing::warn;

use super::copy::{CopyJob, Written};
use super::head::read_claim;
use super::proof;
use super::tags::Tags;
use super::version_reader::VersionReader;
use crate::accounts::error::Side;
use crate::checksum::{Algorithm, Sum, composite_value, crc64_header, md5_digits, md5_text};
use crate::clock::{self, BootInstant};
use crate::ledger::Parts;
use crate::metrics::Unproved;
use crate::s3_http::{Filled, ResponseHead, S3Request};

/// What a write's answer names.
#[derive(Debug)]
pub(super) struct Receipt {
    operation: Operation,
    etag: Option<ETag>,
    version: Option<String>,
    sent: BootInstant,
}

/// What a write's answer says of the bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// They are those that were sent.
    Equal,
    /// Nothing that can be compared.
    Silent,
    /// An MD5, which would cost too much to compute.
    LeftOut,
    /// The bytes differ.
    Differs { words: String, by: By },
}

/// By what an answer contradicts what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Checksum,
    ETag,
}

impl Receipt {
    /// Reads the answer to a PutObject.
    pub(super) fn of_put(answer: &ResponseHead, sent: BootInstant) -> Self {
        Self::new(
            Operation::PutObject,
            answer.etag(),
            answer.version_id(),
            sent,
        )
    }

    /// Reads the answer to a CompleteMultipartUpload.
    pub(super) fn of_complete(answer: &CompleteMultipartUploadOutput, sent: BootInstant) -> Self {
        let etag = answer.e_tag().and_then(|etag| ETag::try_from(etag).ok());
        Self::new(
            Operation::CompleteMultipartUpload,
            etag,
            answer.version_id().map(str::to_owned),
            sent,
        )
    }

    fn new(
        operation: Operation,
        etag: Option<ETag>,
        version: Option<String>,
        sent: BootInstant,
    ) -> Self {
        Self {
            operation,
            etag,
            version: version.filter(|version| !version.is_empty()),
            sent,
        }
    }

    /// Reads what the answer leaves out. The write is known to have landed, but where neither ETag
    /// nor version is named.
    pub(super) async fn completed(self, copy: &CopyJob<'_>) -> Result<Written, Failure> {
        let unknown =
            |cause: &str| Failure::with_source(FailureKind::OutcomeUnknown, self.operation, cause);
        let lost = |failure: Failure| {
            Failure::with_source(FailureKind::OutcomeUnknown, self.operation, failure)
        };
        let target = &copy.task.target;
        let current =
            || S3Request::head_object(Side::Destination, &target.destination.bucket, &target.key);
        let ask = async |call| {
            copy.destination
                .wire
                .send(call)
                .await
                .map_err(|refusal| lost(refusal.into()))
        };
        let (destination_version, etag) = match (self.etag, self.version) {
            (Some(etag), Some(version)) => (Some(version), etag),
            (None, None) => return Err(unknown("the answer names neither ETag nor version id")),
            (None, Some(version)) => {
                let head = ask(current().version(&version)).await?.into_head();
                let none = || unknown("neither the answer nor a HEAD of its version names an ETag");
                (Some(version), head.etag().ok_or_else(none)?)
            }
            // Another daemon may have written on top meanwhile.
            (Some(etag), None) => {
                let head = ask(current()).await?.into_head();
                let is_ours = read_claim(&head, copy.task)
                    .is_none_or(|claim| claim.version == copy.version.version);
                if head.etag().as_ref() != Some(&etag) || !is_ours {
                    return Err(unknown(
                        "the answer names no version id, and another object is current",
                    ));
                }
                (head.version_id(), etag)
            }
        };
        Ok(Written {
            operation: self.operation,
            destination_version,
            etag,
            sent: self.sent,
            tags: Tags::new(),
            unproved: None,
        })
    }
}

/// Settles what the answer to a write says of its bytes, whose CRC-64/NVME is this. `before` is why
/// the source could not prove them.
pub(super) async fn settle(
    copy: &CopyJob<'_>,
    written: Written,
    answered: Answered,
    (crc64, before): (u64, Option<Unproved>),
) -> Result<Written, Failure> {
    let doubt = match answered {
        Answered::Equal => None,
        Answered::Silent => Some(Unproved::AnswerSilent),
        Answered::LeftOut => Some(Unproved::CostsTooMuch),
        Answered::Differs { words, by } => {
            let (key, operation) = (&copy.task.target.key, written.operation);
            let version = written.destination_version.as_deref();
            warn!(%key, version, %operation, words, "the answer contradicts the write");
            let is_read_back = by == By::Checksum || copy.destination.is_aws || is_demanded(copy);
            match version.filter(|_| is_read_back) {
                Some(version) => read_back(copy, (operation, by), version, crc64).await?,
                None => Some(Unproved::AnswerDiffers),
            }
        }
    };
    Ok(Written {
        unproved: before.or(doubt),
        ..written
    })
}

/// Compares what the answer to a body says with what was sent; the MD5 only if it may be computed.
pub(super) fn compare_answer(answer: &ResponseHead, body: &Filled, may_hash: bool) -> Answered {
    for stated in proof::stated_checksums(answer) {
        if stated.is_dear() && !may_hash {
            return Answered::LeftOut;
        }
        let by = if stated.is_etag() {
            By::ETag
        } else {
            By::Checksum
        };
        match stated.is_of(body) {
            Some(true) => return Answered::Equal,
            Some(false) => {
                return Answered::Differs {
                    words: stated.to_string(),
                    by,
                };
            }
            None => {}
        }
    }
    Answered::Silent
}

/// Compares what the answer to a completed upload says with its parts.
pub(super) fn compare_complete(
    answer: &CompleteMultipartUploadOutput,
    crc64: u64,
    done: &Parts,
) -> Answered {
    let (sent, by) = (crc64_header(crc64), By::Checksum);
    match answer
        .checksum_crc64_nvme()
        .filter(|stated| !stated.is_empty())
    {
        Some(stated) if stated == sent => return Answered::Equal,
        Some(stated) => {
            return Answered::Differs {
                words: format!("sent {sent}, and it has {stated}"),
                by,
            };
        }
        None => {}
    }
    let is_plain = answer
        .server_side_encryption()
        .is_none_or(|mode| mode.as_str() == "AES256");
    let etag = answer
        .e_tag()
        .and_then(|etag| ETag::try_from(etag).ok())
        .filter(|_| is_plain);
    let (Some(etag), Some(expected)) = (etag, etag_of_parts(done.values().map(|part| &part.etag)))
    else {
        return Answered::Silent;
    };
    let doubt = done.values().find_map(|part| part.doubt);
    match doubt {
        _ if etag != expected => {
            let words = format!("its parts make the ETag {expected}, and it has {etag}");
            Answered::Differs {
                words,
                by: By::ETag,
            }
        }
        None => Answered::Equal,
        Some(Unproved::AnswerDiffers) => Answered::Differs {
            words: "a part got an ETag that is not its MD5".to_owned(),
            by: By::ETag,
        },
        Some(Unproved::CostsTooMuch) => Answered::LeftOut,
        Some(_) => Answered::Silent,
    }
}

/// Says whether what the destination answers is compared whatever that costs.
pub(super) fn is_demanded(copy: &CopyJob<'_>) -> bool {
    copy.rule.verify == Verify::Always || !copy.destination.is_tls
}

// Twelve seconds at most, in which a hiccup passes.
const READ_BACK_ATTEMPTS_MAX: u32 = 7;

/// Reads a replica for its checksum. That it was written is known: where it may not be read it only
/// stays unproved. Where that fails for now, and a checksum contradicts it, it counts as refuted.
async fn read_back(
    copy: &CopyJob<'_>,
    (operation, by): (Operation, By),
    version: &str,
    crc64: u64,
) -> Result<Option<Unproved>, Failure> {
    let Ok(id) = VersionId::try_from(version) else {
        return Ok(Some(Unproved::AnswerDiffers));
    };
    let written = VersionRef::new(id, copy.version.version.last_modified, None);
    let size_bytes = copy.version.size_bytes;
    let replica = SourceVersion {
        version: written,
        kind: VersionKind::Object,
        etag: None,
        size_bytes,
    };
    let replica = VersionReader::replica(copy.destination, copy.task, &replica);
    match read_patiently(copy, &replica).await {
        Ok(read) if read == crc64 => Ok(None),
        Ok(read) => {
            let algorithm = Algorithm::Crc64Nvme.checksum_header();
            let (sent, read) = (crc64_header(crc64), crc64_header(read));
            let words = format!(
                "version {version} holds other bytes than were sent: {algorithm} {read}, not {sent}"
            );
            copy.engine
                .ledger
                .record_refuted(&copy.task.target, version, clock::now())?;
            Err(Failure::with_source(
                FailureKind::NeedsOperator(Reason::ChecksumMismatch),
                operation,
                words,
            ))
        }
        Err(failure) => {
            warn!(key = %copy.task.target.key, version, error = error_chain(&failure), "cannot read the replica back");
            if by == By::ETag || is_not_permitted(&failure) {
                return Ok(Some(Unproved::AnswerDiffers));
            }
            copy.engine
                .ledger
                .record_refuted(&copy.task.target, version, clock::now())?;
            Err(failure)
        }
    }
}

/// Tries for some seconds: a replica that counts as refuted is written once more.
async fn read_patiently(copy: &CopyJob<'_>, replica: &VersionReader<'_>) -> Result<u64, Failure> {
    let mut attempt = 1;
    loop {
        match replica
            .crc64(copy.engine, &copy.rule, &copy.task.target)
            .await
        {
            Err(failure)
                if attempt < READ_BACK_ATTEMPTS_MAX && failure.kind == FailureKind::Transient =>
            {
                tokio::time::sleep(retry::jittered_delay(attempt, fastrand::f64())).await;
                attempt += 1;
            }
            read => return read,
        }
    }
}

fn is_not_permitted(failure: &Failure) -> bool {
    let status = failure.answer.map(|answer| answer.status);
    matches!(
        (failure.kind, status),
        (FailureKind::NeedsOperator(_), Some(401 | 403))
    )
}

/// Returns the ETag of an upload from those of its parts; none where they are no MD5 of their
/// content.
fn etag_of_parts<'a>(parts: impl Iterator<Item = &'a ETag>) -> Option<ETag> {
    let sum = |etag: &ETag| {
        Some(Sum {
            algorithm: Algorithm::Md5,
            value: md5_digits(etag.as_str())?.to_vec(),
            len: 0,
        })
    };
    let sums = parts.map(sum).collect::<Option<Vec<Sum>>>()?;
    ETag::try_from(format!(
        "{}-{}",
        md5_text(&composite_value(Algorithm::Md5, &sums)),
        sums.len()
    ))
    .ok()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::s3_http::BodyChunks;

    #[test]
    fn an_answer_is_held_against_the_bytes_that_were_sent() {
        let body = Filled::for_tests(BodyChunks::from(Bytes::from_static(b"abc")));
        let (right, wrong) = (
            "\"900150983cd24fb0d6963f7d28e17f72\"",
            "\"00000000000000000000000000000bad\"",
        );
        let crc64 = crc64_header(body.crc64);
        let compare = |headers: &[(&str, &str)], may_hash| {
            compare_answer(&ResponseHead::for_tests(headers), &body, may_hash)
        };
        let by = |answered| match answered {
            Answered::Differs { by, .. } => Some(by),
            Answered::Equal | Answered::Silent | Answered::LeftOut => None,
        };
        let checksum = ("x-amz-checksum-crc64nvme", crc64.as_str());
        assert_eq!(compare(&[("etag", right)], true), Answered::Equal);
        assert_eq!(compare(&[("etag", right)], false), Answered::LeftOut);
        assert_eq!(
            compare(&[("etag", wrong), checksum], true),
            Answered::Equal,
            "a checksum tells more"
        );
        assert_eq!(by(compare(&[("etag", wrong)], true)), Some(By::ETag));
        assert_eq!(
            by(compare(
                &[("etag", right), ("x-amz-checksum-crc32", "AAAAAA==")],
                true
            )),
            Some(By::Checksum)
        );
        for silent in ["\"opaque\"", "\"00000000000000000000000000000bad-1\""] {
            assert_eq!(
                compare(&[("etag", silent)], true),
                Answered::Silent,
                "{silent}"
            );
        }
        let kms = ("x-amz-server-side-encryption", "aws:kms");
        assert_eq!(compare(&[("etag", wrong), kms], true), Answered::Silent);
    }
}
