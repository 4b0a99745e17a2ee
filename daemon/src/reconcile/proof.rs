//! Whether what was read is what the source states that it holds, by the best proof that it states:
//! a checksum of the whole, one of its parts' checksums where their boundaries are known, or the
//! MD5 that an ETag is.
//!
//! `verify = "auto"` leaves out what costs a second read of the body, and the MD5 of what is copied
//! in parts: at 600 MB/s a core it would be the largest part of such a copy's processor time. Over
//! plain HTTP, where only this tells of a bit that changed, and with `verify = "always"` nothing is
//! left out. A plain `http://` on this machine is no exception: what listens there may be a tunnel
//! or a proxy.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use replicator_core::failure::{Failure, FailureKind, Reason};
use replicator_core::operation::Operation;
use replicator_core::parts::PARTS_MAX;
use replicator_core::rule::Verify;

use super::copy::CopyJob;
use super::version_reader::VersionReader;
use crate::checksum::{self, Algorithm, Measure, Sum};
use crate::metrics::Unproved;
use crate::s3_http::{Filled, ResponseHead};

/// A checksum that is stated of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stated {
    algorithm: Algorithm,
    value: Vec<u8>,
    /// How many parts' checksums it is the checksum of, if it is not of the bytes themselves.
    parts: Option<u32>,
    /// The header that states it.
    header: &'static str,
}

/// What a copy is to be proved by, or why by nothing.
pub(super) type Choice = Result<Proof, Unproved>;

/// What a copy is to be proved by.
#[derive(Debug)]
pub(super) struct Proof {
    stated: Stated,
    measure: Measure,
    size_bytes: u64,
    /// Whether what is computed of the pieces in which the object is copied is enough.
    passes: bool,
}

/// How an object is copied.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub(super) piece_bytes: u64,
    /// Whether nothing that proves it costs too much.
    pub(super) is_demanded: bool,
}

/// Lists what an answer states of the whole object, the best first: what needs no boundaries before
/// what does, and the ETag last.
pub(super) fn stated_checksums(head: &ResponseHead) -> Vec<Stated> {
    let of_header = |algorithm: Algorithm| {
        let (value, parts) = split(head.header(algorithm.checksum_header())?)?;
        let value = STANDARD
            .decode(value)
            .ok()
            .filter(|value| value.len() == algorithm.value_len())?;
        Some(Stated {
            algorithm,
            value,
            parts,
            header: algorithm.checksum_header(),
        })
    };
    // Of a type that is stated and a text that says otherwise, neither is believed.
    let is_composite = head.header("x-amz-checksum-type") == Some("COMPOSITE");
    let all = || Algorithm::ALL.into_iter().filter_map(of_header);
    let wholes = all().filter(|stated| stated.parts.is_none() && !is_composite);
    let composites = all().filter(|stated| stated.parts.is_some());
    wholes.chain(composites).chain(of_etag(head)).collect()
}

/// Reads an ETag that is an MD5, as it is not under a key of KMS or of a customer.
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html>
fn of_etag(head: &ResponseHead) -> Option<Stated> {
    let is_kept_apart = head
        .header("x-amz-server-side-encryption")
        .is_some_and(|mode| mode != "AES256")
        || head
            .header("x-amz-server-side-encryption-customer-algorithm")
            .is_some();
    let etag = head.etag().filter(|_| !is_kept_apart)?;
    let (value, parts) = split(etag.as_str())?;
    let value = checksum::md5_digits(value)?.to_vec();
    Some(Stated {
        algorithm: Algorithm::Md5,
        value,
        parts,
        header: ETAG,
    })
}

/// Parts a value from the number of parts behind a dash.
fn split(text: &str) -> Option<(&str, Option<u32>)> {
    match text.split_once('-') {
        None => Some((text, None)),
        Some((value, parts)) => {
            let parts = parts
                .parse()
                .ok()
                .filter(|parts| (1..=PARTS_MAX).contains(parts))?;
            Some((value, Some(parts)))
        }
    }
}

impl Stated {
    /// Returns the CRC-64/NVME of the whole, if that is what is stated.
    pub(super) fn crc64(&self) -> Option<u64> {
        let is_crc64 = self.algorithm == Algorithm::Crc64Nvme && self.parts.is_none();
        Some(u64::from_be_bytes(
            self.value.as_slice().try_into().ok().filter(|_| is_crc64)?,
        ))
    }

    /// Says whether these bytes have this checksum of the whole; none if that cannot be told from
    /// them.
    pub(super) fn is_of(&self, body: &Filled) -> Option<bool> {
        let sum = body.sum(self.algorithm).filter(|_| self.parts.is_none())?;
        Some(sum.value == self.value)
    }

    /// Says whether it takes much processor time to compute.
    pub(super) fn is_dear(&self) -> bool {
        self.algorithm == Algorithm::Md5
    }

    /// Says whether an ETag states it, which may be no checksum at all.
    pub(super) fn is_etag(&self) -> bool {
        self.header == ETAG
    }

    /// Writes a value of this checksum as it is stated.
    fn text(&self, value: &[u8]) -> String {
        let text = if self.is_etag() {
            checksum::md5_text(value)
        } else {
            STANDARD.encode(value)
        };
        self.parts
            .map_or(text.clone(), |parts| format!("{text}-{parts}"))
    }
}

impl fmt::Display for Stated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.header, self.text(&self.value))
    }
}

const ETAG: &str = "etag";

/// Says whether a copy is proved whatever that costs.
pub(super) fn is_demanded(copy: &CopyJob<'_>) -> bool {
    copy.rule.verify == Verify::Always || !copy.source.is_tls
}

impl Proof {
    /// Chooses among what is stated the best that can be had.
    pub(super) async fn choose(
        original: &VersionReader<'_>,
        all: &[Stated],
        way: Way,
    ) -> Result<Choice, Failure> {
        let (size_bytes, mut left) = (original.size_bytes(), None);
        let is_whole = size_bytes <= way.piece_bytes;
        for stated in all {
            if stated.is_dear() && !is_whole && !way.is_demanded {
                left = left.or(Some(Unproved::CostsTooMuch));
                continue;
            }
            let part_bytes = match stated.parts {
                None | Some(1) => Some(u64::MAX),
                Some(count) => original.uploaded_part_bytes(count).await?,
            };
            let Some(part_bytes) = part_bytes else {
                left = left.or(Some(Unproved::PartsUnknown));
                continue;
            };
            let measure = Measure {
                algorithm: stated.algorithm,
                part_bytes,
            };
            let passes = measure.fits_pieces(way.piece_bytes, size_bytes);
            if passes || way.is_demanded {
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
    pub(super) fn measure(&self) -> Measure {
        self.measure
    }

    /// Returns what to compute of the bytes as they pass.
    pub(super) fn passing(&self) -> Option<Measure> {
        self.passes.then_some(self.measure)
    }

    /// Holds a body that was read in one piece against what is stated.
    pub(super) async fn check(
        &self,
        original: &VersionReader<'_>,
        body: &Filled,
    ) -> Result<Option<Unproved>, Failure> {
        let computed = self.computed_value(&body.part_sums(self.measure, 0));
        self.compare(original, computed).await
    }

    /// Holds a body that was read in pieces, whose CRC-64/NVME is this, against what is stated;
    /// reads it once more where the pieces' checksums do not make what is stated of the whole.
    pub(super) async fn conclude(
        &self,
        copy: &CopyJob<'_>,
        (pieces, crc64): (&[Sum], u64),
    ) -> Result<Option<Unproved>, Failure> {
        let original = copy.original();
        if let Some(computed) = self.computed_value(pieces) {
            return self.compare(&original, Some(computed)).await;
        }
        if !is_demanded(copy) {
            return Ok(Some(Unproved::CostsTooMuch));
        }
        let again = original
            .read_through(
                (copy.engine, &copy.rule, &copy.task.target),
                Some(self.measure),
            )
            .await?;
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::s3_http::BodyChunks;

    const CRC32: &str = "x-amz-checksum-crc32";

    fn of(all: &[(&str, &str)]) -> Vec<(Algorithm, Option<u32>)> {
        stated_checksums(&ResponseHead::for_tests(all))
            .iter()
            .map(|stated| (stated.algorithm, stated.parts))
            .collect()
    }

    #[test]
    fn the_best_of_what_is_stated_comes_first_and_what_cannot_be_one_does_not_count() {
        let md5 = ("etag", "\"900150983cd24fb0d6963f7d28e17f72\"");
        let (crc32, crc64) = (
            (CRC32, "y/Q5Jg=="),
            ("x-amz-checksum-crc64nvme", "rosUhgp5mIg="),
        );
        assert_eq!(
            of(&[md5, crc32, crc64]),
            [
                (Algorithm::Crc64Nvme, None),
                (Algorithm::Crc32, None),
                (Algorithm::Md5, None)
            ]
        );
        assert_eq!(
            of(&[(CRC32, "y/Q5Jg==-3"), crc64]),
            [(Algorithm::Crc64Nvme, None), (Algorithm::Crc32, Some(3))]
        );
        assert_eq!(
            of(&[("etag", "\"900150983cd24fb0d6963f7d28e17f72-2\"")]),
            [(Algorithm::Md5, Some(2))]
        );
        for none in ["y/Q5", "y/Q5Jg==-0", "y/Q5Jg==-10001", "y/Q5Jg==-", "?", ""] {
            assert!(of(&[(CRC32, none)]).is_empty(), "{none:?}");
        }
        assert!(of(&[crc32, ("x-amz-checksum-type", "COMPOSITE")]).is_empty());
        for none in [
            "\"opaque\"",
            "\"+00150983cd24fb0d6963f7d28e17f72\"",
            "\"900150983cd24fb0d6963f7d28e17f7\"",
        ] {
            assert!(of(&[("etag", none)]).is_empty(), "{none}");
        }
        for mode in ["aws:kms", "aws:kms:dsse", "aws:fsx"] {
            assert!(
                of(&[md5, ("x-amz-server-side-encryption", mode)]).is_empty(),
                "{mode}"
            );
        }
        assert!(
            of(&[
                md5,
                ("x-amz-server-side-encryption-customer-algorithm", "AES256")
            ])
            .is_empty()
        );
        assert_eq!(
            of(&[md5, ("x-amz-server-side-encryption", "AES256")]),
            [(Algorithm::Md5, None)]
        );
    }

    #[test]
    fn other_bytes_than_are_stated_are_told_for_each_algorithm() {
        let (right, wrong) = (b"123456789".as_slice(), b"123456780".as_slice());
        for algorithm in Algorithm::ALL {
            let text = STANDARD.encode(algorithm.sum_of([right]).value);
            let all = stated_checksums(&ResponseHead::for_tests(&[(
                algorithm.checksum_header(),
                &text,
            )]));
            let [stated] = all.as_slice() else {
                panic!("{algorithm:?}: {all:?}")
            };
            for (bytes, is_right) in [(right, true), (wrong, false)] {
                let body = Filled::for_tests(BodyChunks::from(Bytes::from_static(bytes)));
                assert_eq!(stated.is_of(&body), Some(is_right), "{algorithm:?}");
            }
        }
    }

    #[test]
    fn a_composite_is_of_its_parts_checksums() {
        // What S3 states of an upload in two parts, "123456789" twice.
        let part = Algorithm::Crc32.sum_of([b"123456789".as_slice()]);
        let value = checksum::composite_value(Algorithm::Crc32, &[part.clone(), part.clone()]);
        let stated = Stated {
            algorithm: Algorithm::Crc32,
            value,
            parts: Some(2),
            header: CRC32,
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
}
