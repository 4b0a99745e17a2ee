//! Whether what was read is what the source states that it holds, by the best proof that it states:
//! a checksum of the whole, one of its parts' checksums where their boundaries are known, or the
//! MD5 that an ETag is.
//!
//! `verify = "auto"` leaves out what costs a second read of the body, and the MD5 of what is copied
//! in parts: at 600 MB/s a core it would be the largest part of such a copy's processor time. Over
//! plain HTTP, where only this detects a bit that changed, and with `verify = "always"` nothing is
//! left out. A plain `http://` on this machine is no exception: what listens there may be a tunnel
//! or a proxy.
//!
//! What the destination answers to a write is held against what was sent. A checksum that it states
//! is believed. An ETag that looks like an MD5 is one at AWS, as documented; another store may make
//! its ETags otherwise, so there a difference parks nothing: the replica is counted as unproved, or
//! read back where `verify` demands it. Read back as well is what contradicts a checksum, or an
//! ETag of AWS; other bytes than were sent are a refusal that names the version.

use std::time::Duration;

use aws_sdk_s3::operation::complete_multipart_upload::CompleteMultipartUploadOutput;
use replicator_core::failure::{Failure, FailureKind, Operation, Reason, error_chain};
use replicator_core::object::{ETag, VersionId};
use replicator_core::plan::{SourceVersion, VersionKind, VersionRef};
use replicator_core::retry;
use replicator_core::rule::Verify;
use tokio::time::Instant;
use tracing::warn;

use crate::clock;
use crate::ledger::Parts;
use crate::metrics::Unproved;
use crate::reconcile::execute::copy::{CopyJob, Written};
use crate::reconcile::object::attributes::{Stated, stated_checksums};
use crate::reconcile::object::version_reader::VersionReader;
use crate::s3::accounts::error::Side;
use crate::s3::checksum::{
    self, Algorithm, Measure, Sum, composite_value, crc64_header, hex, md5_digits,
};
use crate::s3::client::{Filled, ResponseHead};

/// What a copy is to be proved by, or why by nothing.
pub(in crate::reconcile) type Choice = Result<Proof, Unproved>;

/// What a copy is to be proved by.
#[derive(Debug)]
pub(in crate::reconcile) struct Proof {
    stated: Stated,
    measure: Measure,
    size_bytes: u64,
    /// Whether what is computed of the pieces in which the object is copied is enough.
    passes: bool,
}

/// Says whether what is read is proved whatever that costs.
fn proves_reads(copy: &CopyJob<'_>) -> bool {
    copy.rule.verify == Verify::Always || !copy.cx.source.is_tls
}

impl Proof {
    /// Chooses among what is stated the best that can be had of an object that is copied in pieces
    /// of this size.
    pub(in crate::reconcile) async fn choose(
        copy: &CopyJob<'_>,
        all: &[Stated],
        piece_bytes: u64,
    ) -> Result<Choice, Failure> {
        let (size_bytes, mut left) = (copy.version.size_bytes, None);
        let (is_whole, is_demanded) = (size_bytes <= piece_bytes, proves_reads(copy));
        for stated in all {
            if stated.is_costly() && !is_whole && !is_demanded {
                left = left.or(Some(Unproved::CostsTooMuch));
                continue;
            }
            let part_bytes = match stated.parts {
                None | Some(1) => Some(u64::MAX),
                Some(count) => copy.original().uploaded_part_bytes(count).await?,
            };
            let Some(part_bytes) = part_bytes else {
                left = left.or(Some(Unproved::PartsUnknown));
                continue;
            };
            let measure = Measure {
                algorithm: stated.algorithm,
                part_bytes,
            };
            let passes = measure.fits_pieces(piece_bytes, size_bytes);
            if passes || is_demanded {
                return Ok(Ok(Self {
                    stated: stated.clone(),
                    measure,
                    size_bytes,
                    passes,
                }));
            }
            left = left.or(Some(Unproved::CostsTooMuch));
        }
        Ok(Err(left.unwrap_or(Unproved::NothingStated)))
    }

    /// Returns what is computed of all bytes.
    pub(in crate::reconcile) fn measure(&self) -> Measure {
        self.measure
    }

    /// Returns what to compute of the bytes as they pass.
    pub(in crate::reconcile) fn passing(&self) -> Option<Measure> {
        self.passes.then_some(self.measure)
    }

    /// Holds a body that was read in one piece against what is stated.
    pub(in crate::reconcile) async fn check(
        &self,
        original: &VersionReader<'_>,
        body: &Filled,
    ) -> Result<Option<Unproved>, Failure> {
        let computed = self.computed_value(&body.part_sums(self.measure, 0));
        self.compare(original, computed).await
    }

    /// Compares a body that was read in pieces, by their sums and its CRC-64/NVME, with what is
    /// stated; reads it once more where the pieces' checksums do not make what is stated of the
    /// whole.
    pub(in crate::reconcile) async fn conclude(
        &self,
        copy: &CopyJob<'_>,
        (pieces, crc64): (&[Sum], u64),
    ) -> Result<Option<Unproved>, Failure> {
        let original = copy.original();
        if let Some(computed) = self.computed_value(pieces) {
            return self.compare(&original, Some(computed)).await;
        }
        if !proves_reads(copy) {
            return Ok(Some(Unproved::CostsTooMuch));
        }
        let again = original.read_through(copy.rule, Some(self.measure)).await?;
        if again.crc64 != crc64 {
            return Err(mismatch(
                "two reads of the version gave different bytes".to_owned(),
            ));
        }
        self.compare(
            &original,
            self.computed_value(&again.part_sums(self.measure, 0)),
        )
        .await
    }

    fn computed_value(&self, pieces: &[Sum]) -> Option<Vec<u8>> {
        // What was uploaded by an older version, or is read once more, has no checksums yet.
        let measured: u64 = pieces.iter().map(|piece| piece.len).sum();
        let parts =
            checksum::of_parts(pieces, self.measure).filter(|_| measured == self.size_bytes)?;
        match (self.stated.parts, parts.as_slice()) {
            (None, [whole]) => Some(whole.value.clone()),
            (Some(count), parts) if u32::try_from(parts.len()) == Ok(count) => {
                Some(checksum::composite_value(self.stated.algorithm, parts))
            }
            _ => None,
        }
    }

    async fn compare(
        &self,
        original: &VersionReader<'_>,
        computed: Option<Vec<u8>>,
    ) -> Result<Option<Unproved>, Failure> {
        let Some(computed) = computed else {
            return Ok(Some(Unproved::PartsUnknown));
        };
        let (access, is_etag_of_parts) = (
            original.access,
            self.stated.is_etag() && self.stated.parts.is_some(),
        );
        if computed == self.stated.value {
            if is_etag_of_parts {
                access.capabilities.hashed_parts();
            }
            return Ok(None);
        }
        // No standard says what such an ETag is: a store that was not seen to make it of MD5s may
        // make it of something else.
        if is_etag_of_parts && !access.is_aws && !access.capabilities.hashes_parts() {
            return Ok(Some(Unproved::NothingStated));
        }
        // That all parts but the last are as large as the first was assumed: a difference may come
        // of that.
        let count = self.stated.parts.filter(|count| *count > 1);
        if let Some(count) = count
            && !original
                .has_equal_parts(self.measure.part_bytes, count)
                .await?
        {
            return Ok(Some(Unproved::PartsUnknown));
        }
        let found = self.stated.text(&computed);
        Err(mismatch(format!(
            "the source states {}, and the bytes that came have {found}",
            self.stated
        )))
    }
}

fn mismatch(words: String) -> Failure {
    Failure::with_source(
        FailureKind::NeedsOperator(Reason::ChecksumMismatch),
        Operation::GetObject,
        words,
    )
}

/// What a write's answer says of the bytes.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::reconcile) enum Answered {
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
pub(in crate::reconcile) enum By {
    Checksum,
    ETag,
}

/// Acts on what the answer to a write states about its bytes, given their CRC-64/NVME and their
/// number. `before` is why the source could not prove them.
pub(in crate::reconcile) async fn check_written(
    copy: &CopyJob<'_>,
    written: Written,
    answered: Answered,
    (crc64, size_bytes, before): (u64, u64, Option<Unproved>),
) -> Result<Written, Failure> {
    let doubt = match answered {
        Answered::Equal => None,
        Answered::Silent => Some(Unproved::AnswerSilent),
        Answered::LeftOut => Some(Unproved::CostsTooMuch),
        Answered::Differs { words, by } => {
            let (key, operation) = (&copy.cx.task.target.key, written.operation);
            let version = written.destination_version.as_deref();
            warn!(%key, version, %operation, words, "the answer contradicts the write");
            let is_read_back =
                by == By::Checksum || copy.cx.destination.is_aws || proves_answers(copy);
            match version.filter(|_| is_read_back) {
                Some(version) => {
                    let bytes = (crc64, size_bytes);
                    read_back(copy, (operation, by), version, bytes).await?
                }
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
pub(in crate::reconcile) fn compare_answer(
    answer: &ResponseHead,
    body: &Filled,
    may_hash: bool,
) -> Answered {
    for stated in stated_checksums(answer) {
        if stated.is_costly() && !may_hash {
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
pub(in crate::reconcile) fn compare_complete(
    answer: &CompleteMultipartUploadOutput,
    crc64: u64,
    done: &Parts,
) -> Answered {
    let differs = |by, words| Answered::Differs { words, by };
    let sent = crc64_header(crc64);
    let stated = answer.checksum_crc64_nvme();
    if let Some(stated) = stated.filter(|stated| !stated.is_empty()) {
        return match stated == sent {
            true => Answered::Equal,
            false => differs(By::Checksum, format!("sent {sent}, and it has {stated}")),
        };
    }
    let is_plain = answer
        .server_side_encryption()
        .is_none_or(|mode| mode.as_str() == "AES256");
    let etag = answer.e_tag().filter(|_| is_plain);
    let etag = etag.and_then(|etag| ETag::try_from(etag).ok());
    let expected = etag_of_parts(done.values().map(|part| &part.etag));
    let Some((etag, expected)) = etag.zip(expected) else {
        return Answered::Silent;
    };
    if etag != expected {
        let words = format!("its parts make the ETag {expected}, and it has {etag}");
        return differs(By::ETag, words);
    }
    match done.values().find_map(|part| part.doubt) {
        None => Answered::Equal,
        Some(Unproved::AnswerDiffers) => {
            let words = "a part got an ETag that is not its MD5".to_owned();
            differs(By::ETag, words)
        }
        Some(Unproved::CostsTooMuch) => Answered::LeftOut,
        Some(_) => Answered::Silent,
    }
}

/// Says whether what the destination answers is compared whatever that costs.
pub(in crate::reconcile) fn proves_answers(copy: &CopyJob<'_>) -> bool {
    copy.rule.verify == Verify::Always || !copy.cx.destination.is_tls
}

// Within this a hiccup passes; a read that takes longer is not repeated.
const READ_BACK_ATTEMPTS_MAX: u32 = 7;
const READ_BACK_WITHIN: Duration = Duration::from_secs(30);

/// Reads a replica for its checksum. That it was written is known: where it may not be read it only
/// stays unproved. Where that fails for now, and a checksum contradicts it, it counts as refuted.
async fn read_back(
    copy: &CopyJob<'_>,
    (operation, by): (Operation, By),
    version: &str,
    (crc64, size_bytes): (u64, u64),
) -> Result<Option<Unproved>, Failure> {
    let Ok(id) = VersionId::try_from(version) else {
        return Ok(Some(Unproved::AnswerDiffers));
    };
    let replica = SourceVersion {
        version: VersionRef::new(id, copy.version.version.last_modified, None),
        kind: VersionKind::Object,
        etag: None,
        size_bytes,
    };
    let replica = VersionReader::new(copy.cx, Side::Destination, &replica);
    let (ledger, target) = (&copy.cx.engine.ledger, &copy.cx.task.target);
    match read_patiently(copy, &replica).await {
        Ok(read) if read == crc64 => Ok(None),
        Ok(read) => {
            let algorithm = Algorithm::Crc64Nvme.checksum_header();
            let (sent, read) = (crc64_header(crc64), crc64_header(read));
            let words = format!(
                "version {version} holds other bytes than were sent: {algorithm} {read}, not {sent}"
            );
            ledger.record_refuted(target, version, clock::now())?;
            let kind = FailureKind::NeedsOperator(Reason::ChecksumMismatch);
            Err(Failure::with_source(kind, operation, words))
        }
        Err(failure) => {
            let (key, error) = (&target.key, error_chain(&failure));
            warn!(%key, version, error, "cannot read the replica back");
            if by == By::ETag || is_not_permitted(&failure) {
                return Ok(Some(Unproved::AnswerDiffers));
            }
            ledger.record_refuted(target, version, clock::now())?;
            Err(failure)
        }
    }
}

/// Tries for some seconds, whatever the answer, unless reading is not permitted: a replica that
/// counts as refuted is written once more.
async fn read_patiently(copy: &CopyJob<'_>, replica: &VersionReader<'_>) -> Result<u64, Failure> {
    let (mut attempt, begun) = (1, Instant::now());
    let may_pass = |failure: &Failure| {
        !is_not_permitted(failure) && !matches!(failure.kind, FailureKind::Ineligible(_))
    };
    loop {
        let is_last = attempt == READ_BACK_ATTEMPTS_MAX || begun.elapsed() > READ_BACK_WITHIN;
        match replica.read_through(copy.rule, None).await {
            Err(failure) if !is_last && may_pass(&failure) => {
                tokio::time::sleep(retry::jittered_delay(attempt, fastrand::f64())).await;
                attempt += 1;
            }
            read => return Ok(read?.crc64),
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
        hex(&composite_value(Algorithm::Md5, &sums)),
        sums.len()
    ))
    .ok()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    use crate::s3::client::BodyChunks;

    #[test]
    fn a_composite_is_of_its_parts_checksums() {
        // What S3 states of an upload in two parts, "123456789" twice.
        let part = Algorithm::Crc32.sum_of([b"123456789".as_slice()]);
        let value = checksum::composite_value(Algorithm::Crc32, &[part.clone(), part.clone()]);
        let stated = Stated {
            algorithm: Algorithm::Crc32,
            value,
            parts: Some(2),
            header: Algorithm::Crc32.checksum_header(),
        };
        let measure = Measure {
            algorithm: Algorithm::Crc32,
            part_bytes: 9,
        };
        let proof = Proof {
            stated,
            measure,
            size_bytes: 18,
            passes: true,
        };
        let small = |bytes: &'static [u8]| Algorithm::Crc32.sum_of([bytes]);
        let pieces = [
            small(b"1234"),
            small(b"56789"),
            small(b"1234567"),
            small(b"89"),
        ];
        assert_eq!(
            proof.computed_value(&pieces),
            Some(proof.stated.value.clone())
        );
        assert_eq!(proof.computed_value(&[part]), None, "one part is lacking");
        assert_eq!(proof.computed_value(&[]), None, "nothing was measured");
        let whole = Stated {
            parts: None,
            ..proof.stated
        };
        let measure = Measure::whole_object(Algorithm::Md5);
        let unmeasured = Proof {
            stated: whole,
            measure,
            size_bytes: 18,
            passes: false,
        };
        assert_eq!(
            unmeasured.computed_value(&[]),
            None,
            "that is not the checksum of nothing"
        );
    }

    #[test]
    fn an_answer_is_held_against_the_bytes_that_were_sent() {
        let body = Filled::from(BodyChunks::from(Bytes::from_static(b"abc")));
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
