//! Checksums as S3 states them: computed as bytes pass, cut where the object's own parts end,
//! joined again, and written as the headers have them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crc_fast::{CrcAlgorithm, Digest as Crc};
use md5::Md5;
use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

/// An algorithm whose checksums S3 states. Of xxHash, which S3 supports too, no library is here:
/// those prove nothing.
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html>
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Algorithm {
    Crc64Nvme,
    Crc32,
    Crc32C,
    Sha1,
    Sha256,
    Sha512,
    Md5,
}

/// The checksum of so many bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sum {
    pub(crate) algorithm: Algorithm,
    #[serde(with = "base64_text")]
    pub(crate) value: Vec<u8>,
    pub(crate) len: u64,
}

/// What to compute of an object: the checksum of each of its parts, all but the last of which are
/// of this size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Measure {
    pub(crate) algorithm: Algorithm,
    pub(crate) part_bytes: u64,
}

/// Computes the checksums of some bytes of an object as they pass.
#[derive(Debug, Clone)]
pub(crate) struct Meter {
    measure: Measure,
    running: Running,
    len: u64,
    /// How many bytes are left of the object's part.
    left: u64,
    sums: Vec<Sum>,
}

#[derive(Debug, Clone)]
enum Running {
    Crc(Crc, usize),
    Sha1(Sha1),
    Sha256(Sha256),
    Sha512(Sha512),
    Md5(Md5),
}

impl Algorithm {
    /// Every algorithm; first those whose checksums of parts can be joined, then the stronger ones.
    pub(crate) const ALL: [Self; 7] = [
        Self::Crc64Nvme,
        Self::Crc32C,
        Self::Crc32,
        Self::Sha512,
        Self::Sha256,
        Self::Sha1,
        Self::Md5,
    ];

    /// Computes the checksum of these bytes.
    pub(crate) fn sum_of<'a>(self, pieces: impl IntoIterator<Item = &'a [u8]>) -> Sum {
        let mut meter = Meter::new(Measure::whole_object(self), 0);
        pieces.into_iter().for_each(|piece| meter.update(piece));
        meter.current_sum()
    }

    /// Returns the header that states such a checksum.
    pub(crate) fn checksum_header(self) -> &'static str {
        self.properties().0
    }

    /// Returns how many bytes such a checksum has.
    pub(crate) fn value_len(self) -> usize {
        self.properties().1
    }

    /// Returns the algorithm by which checksums of bytes in a row make the one of them all; only
    /// CRCs do.
    fn joining_crc(self) -> Option<CrcAlgorithm> {
        self.properties().2
    }

    fn properties(self) -> (&'static str, usize, Option<CrcAlgorithm>) {
        match self {
            Self::Crc64Nvme => (CRC64_NVME, 8, Some(CrcAlgorithm::Crc64Nvme)),
            Self::Crc32 => ("x-amz-checksum-crc32", 4, Some(CrcAlgorithm::Crc32IsoHdlc)),
            Self::Crc32C => ("x-amz-checksum-crc32c", 4, Some(CrcAlgorithm::Crc32Iscsi)),
            Self::Sha1 => ("x-amz-checksum-sha1", 20, None),
            Self::Sha256 => ("x-amz-checksum-sha256", 32, None),
            Self::Sha512 => ("x-amz-checksum-sha512", 64, None),
            Self::Md5 => ("x-amz-checksum-md5", 16, None),
        }
    }
}

impl Measure {
    /// Measures everything as one.
    pub(crate) fn whole_object(algorithm: Algorithm) -> Self {
        Self {
            algorithm,
            part_bytes: u64::MAX,
        }
    }

    /// Says whether what is computed of pieces of this size makes the checksums of the object's
    /// parts.
    pub(crate) fn fits_pieces(&self, piece_bytes: u64, size_bytes: u64) -> bool {
        let is_one_piece = size_bytes <= piece_bytes;
        is_one_piece
            || self.algorithm.joining_crc().is_some()
            || piece_bytes.is_multiple_of(self.part_bytes)
    }
}

impl Meter {
    /// Begins at an offset in the object.
    pub(crate) fn new(measure: Measure, offset: u64) -> Self {
        let measure = Measure {
            part_bytes: measure.part_bytes.max(1),
            ..measure
        };
        let left = measure.part_bytes - offset % measure.part_bytes;
        Self {
            measure,
            running: Running::new(measure.algorithm),
            len: 0,
            left,
            sums: Vec::new(),
        }
    }

    /// Takes the next bytes.
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let most = usize::try_from(self.left)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            let (now, rest) = bytes.split_at_checked(most).unwrap_or((bytes, &[]));
            self.running.update(now);
            self.len += now.len() as u64;
            self.left -= now.len() as u64;
            if self.left == 0 {
                let sum = self.current_sum();
                self.sums.push(sum);
                (self.running, self.len) = (Running::new(self.measure.algorithm), 0);
                self.left = self.measure.part_bytes;
            }
            bytes = rest;
        }
    }

    /// Returns a checksum for each part of the object, or piece of one, that passed.
    pub(crate) fn finish(mut self) -> Vec<Sum> {
        if self.len > 0 || self.sums.is_empty() {
            let last = self.current_sum();
            self.sums.push(last);
        }
        self.sums
    }

    fn current_sum(&self) -> Sum {
        let value = self.running.clone().value();
        Sum {
            algorithm: self.measure.algorithm,
            value,
            len: self.len,
        }
    }
}

impl Running {
    fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Crc64Nvme => Self::Crc(Crc::new(CrcAlgorithm::Crc64Nvme), 8),
            Algorithm::Crc32 => Self::Crc(Crc::new(CrcAlgorithm::Crc32IsoHdlc), 4),
            Algorithm::Crc32C => Self::Crc(Crc::new(CrcAlgorithm::Crc32Iscsi), 4),
            Algorithm::Sha1 => Self::Sha1(Sha1::new()),
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
            Algorithm::Md5 => Self::Md5(Md5::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Crc(digest, _) => digest.update(bytes),
            Self::Sha1(digest) => digest.update(bytes),
            Self::Sha256(digest) => digest.update(bytes),
            Self::Sha512(digest) => digest.update(bytes),
            Self::Md5(digest) => digest.update(bytes),
        }
    }

    fn value(self) -> Vec<u8> {
        match self {
            // A shorter CRC is the last bytes of the number.
            Self::Crc(digest, len) => {
                let number = digest.finalize().to_be_bytes();
                number.iter().skip(number.len() - len).copied().collect()
            }
            Self::Sha1(digest) => digest.finalize().to_vec(),
            Self::Sha256(digest) => digest.finalize().to_vec(),
            Self::Sha512(digest) => digest.finalize().to_vec(),
            Self::Md5(digest) => digest.finalize().to_vec(),
        }
    }
}

impl Sum {
    /// Takes a CRC-64/NVME of so many bytes.
    pub(crate) fn of_crc64(crc64: u64, len: u64) -> Self {
        Self {
            algorithm: Algorithm::Crc64Nvme,
            value: crc64.to_be_bytes().to_vec(),
            len,
        }
    }

    /// Joins the checksums of bytes in a row; none where the algorithm does not allow that.
    fn joined(&self, next: &Self) -> Option<Self> {
        let algorithm = self
            .algorithm
            .joining_crc()
            .filter(|_| self.algorithm == next.algorithm)?;
        let joined = crc_fast::checksum_combine(algorithm, self.number(), next.number(), next.len)
            .to_be_bytes();
        let value = joined.get(joined.len() - self.value.len()..)?.to_vec();
        Some(Self {
            algorithm: self.algorithm,
            value,
            len: self.len + next.len,
        })
    }

    fn number(&self) -> u64 {
        self.value
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

/// Joins the checksums of an object's pieces, in their order, to those of its parts. None where a
/// part's would have to be joined from pieces and cannot be, or a piece is in more than one part.
pub(crate) fn of_parts<'a>(
    pieces: impl IntoIterator<Item = &'a Sum>,
    measure: Measure,
) -> Option<Vec<Sum>> {
    let mut parts: Vec<Sum> = Vec::new();
    let mut open: Option<Sum> = None;
    for piece in pieces.into_iter().filter(|piece| piece.len > 0) {
        let sum = match open.take() {
            Some(begun) => begun.joined(piece)?,
            None => piece.clone(),
        };
        if sum.algorithm != measure.algorithm || sum.len > measure.part_bytes {
            return None;
        }
        if sum.len == measure.part_bytes {
            parts.push(sum);
        } else {
            open = Some(sum);
        }
    }
    parts.extend(open);
    if parts.is_empty() {
        parts.push(measure.algorithm.sum_of([]));
    }
    Some(parts)
}

/// Computes the checksum of the parts' checksums, as `COMPOSITE` ones and ETags of uploads have it.
pub(crate) fn composite_value(algorithm: Algorithm, parts: &[Sum]) -> Vec<u8> {
    algorithm
        .sum_of(parts.iter().map(|part| part.value.as_slice()))
        .value
}

/// Reads an MD5 as ETags write it.
pub(crate) fn md5_digits(text: &str) -> Option<[u8; 16]> {
    let is_md5 = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u128::from_str_radix(text, 16)
        .ok()
        .filter(|_| is_md5)
        .map(u128::to_be_bytes)
}

/// Writes a digest as ETags and signatures do.
pub(crate) fn hex(digest: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits
        .filter_map(|digit| DIGITS.get(usize::from(digit)))
        .map(|digit| char::from(*digit))
        .collect()
}

/// Computes the checksum that goes along with every body.
pub(crate) fn crc64_of(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

/// Computes the checksum of two bodies in a row from theirs.
pub(crate) fn crc64_joined(first: u64, second: u64, second_len: u64) -> u64 {
    crc_fast::checksum_combine(CrcAlgorithm::Crc64Nvme, first, second, second_len)
}

/// Writes a checksum as S3's headers have it.
pub(crate) fn crc64_header(crc64: u64) -> String {
    STANDARD.encode(crc64.to_be_bytes())
}

/// Reads a checksum as S3's headers have it.
pub(crate) fn crc64_stated(header: &str) -> Option<u64> {
    let bytes = STANDARD.decode(header).ok()?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// The header of a whole object's checksum.
pub(crate) const CRC64_NVME: &str = "x-amz-checksum-crc64nvme";

/// Values in records are written as the headers have them.
mod base64_text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(value))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        STANDARD
            .decode(String::deserialize(deserializer)?)
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_checksum_is_that_of_its_standard() {
        // CRCs of "123456789": https://reveng.sourceforge.io/crc-catalogue/17plus.htm
        // The others of "abc": RFC 1321 A.5, FIPS 180-4 and its examples.
        let cases: [(Algorithm, &[u8], &str); 7] = [
            (Algorithm::Crc64Nvme, b"123456789", "ae8b14860a799888"),
            (Algorithm::Crc32, b"123456789", "cbf43926"),
            (Algorithm::Crc32C, b"123456789", "e3069283"),
            (Algorithm::Md5, b"abc", "900150983cd24fb0d6963f7d28e17f72"),
            (
                Algorithm::Sha1,
                b"abc",
                "a9993e364706816aba3e25717850c26c9cd0d89d",
            ),
            (
                Algorithm::Sha256,
                b"abc",
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (
                Algorithm::Sha512,
                b"abc",
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                 2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            ),
        ];
        for (algorithm, bytes, wanted) in cases {
            let sum = algorithm.sum_of([bytes]);
            assert_eq!(hex(&sum.value), wanted, "{algorithm:?}");
            assert_eq!(sum.value.len(), algorithm.value_len());
        }
    }

    #[test]
    fn a_checksum_is_written_as_s3_writes_it() {
        assert_eq!(crc64_header(0xae8b_1486_0a79_9888), "rosUhgp5mIg=");
        assert_eq!(crc64_stated("rosUhgp5mIg="), Some(0xae8b_1486_0a79_9888));
        assert_eq!(crc64_stated("rosUhg=="), None);
        let sum = Algorithm::Crc32.sum_of([b"123456789".as_slice()]);
        let text = serde_json::to_string(&sum).unwrap();
        assert_eq!(text, r#"{"algorithm":"Crc32","value":"y/Q5Jg==","len":9}"#);
        assert_eq!(serde_json::from_str::<Sum>(&text).unwrap(), sum);
    }

    #[test]
    fn an_empty_object_has_the_checksum_of_nothing() {
        for algorithm in Algorithm::ALL {
            let measure = Measure::whole_object(algorithm);
            let pieces = Meter::new(measure, 0).finish();
            assert_eq!(of_parts(&pieces, measure), Some(vec![algorithm.sum_of([])]));
        }
    }

    /// Measures bytes that come in pieces of one size, each read by itself.
    fn measured(bytes: &[u8], piece_bytes: usize, measure: Measure) -> Vec<Sum> {
        let piece = |(number, piece): (usize, &[u8])| {
            let mut meter = Meter::new(measure, (number * piece_bytes) as u64);
            // As sockets give them: not as they were cut.
            piece.chunks(7).for_each(|some| meter.update(some));
            meter.finish()
        };
        bytes
            .chunks(piece_bytes)
            .enumerate()
            .flat_map(piece)
            .collect()
    }

    proptest! {
        #[test]
        fn what_was_measured_in_pieces_is_what_the_parts_have(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            piece_bytes in 1_usize..90,
            part_bytes in 1_usize..90,
            algorithm in proptest::sample::select(Algorithm::ALL.to_vec()),
        ) {
            let measure = Measure { algorithm, part_bytes: part_bytes as u64 };
            let parts: Vec<Sum> = bytes.chunks(part_bytes).map(|part| algorithm.sum_of([part])).collect();
            let parts = if parts.is_empty() { vec![algorithm.sum_of([])] } else { parts };
            let pieces = measured(&bytes, piece_bytes, measure);
            match of_parts(&pieces, measure) {
                Some(joined) => prop_assert_eq!(joined, parts),
                None => prop_assert!(!measure.fits_pieces(piece_bytes as u64, bytes.len() as u64)),
            }
        }

        #[test]
        fn a_crc_of_the_whole_follows_from_any_pieces(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            piece_bytes in 1_usize..90,
        ) {
            for algorithm in [Algorithm::Crc64Nvme, Algorithm::Crc32, Algorithm::Crc32C] {
                let measure = Measure::whole_object(algorithm);
                let whole = of_parts(&measured(&bytes, piece_bytes, measure), measure);
                prop_assert_eq!(whole, Some(vec![algorithm.sum_of([bytes.as_slice()])]));
            }
            let (first, second) = bytes.split_at(bytes.len() / 3);
            prop_assert_eq!(crc64_joined(crc64_of(first), crc64_of(second), second.len() as u64), crc64_of(&bytes));
        }

        #[test]
        fn records_of_pieces_that_are_none_of_these_parts_are_not_joined(
            lens in proptest::collection::vec(1_u64..9, 1..5), part_bytes in 1_u64..9,
        ) {
            let piece = |len: &u64| Sum { len: *len, ..Algorithm::Sha256.sum_of([b"x".as_slice()]) };
            let pieces: Vec<Sum> = lens.iter().map(piece).collect();
            let measure = Measure { algorithm: Algorithm::Sha256, part_bytes };
            let (last, before) = lens.split_last().unwrap();
            let are_parts = before.iter().all(|len| *len == part_bytes) && *last <= part_bytes;
            prop_assert_eq!(of_parts(&pieces, measure).is_some(), are_parts);
            let other = Measure { algorithm: Algorithm::Sha1, ..measure };
            prop_assert_eq!(of_parts(&pieces, other), None);
        }
    }
}
