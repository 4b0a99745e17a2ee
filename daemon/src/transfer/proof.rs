//! Whether what was read is what the source says it holds, by whichever checksum of the whole object it has.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crc_fast::{CrcAlgorithm, Digest as Crc};
use replicator_core::failure::{Failure, Kind, Reason};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::copy::CRC64_NVME;
use crate::wire::{Chunks, Head};

/// Compares a whole body with the source's checksum, where that is another than the CRC-64/NVME that every body gets.
pub(super) fn check(head: &Head, body: &Chunks) -> Result<(), Failure> {
    if head.header(CRC64_NVME).is_some() {
        return Ok(());
    }
    for (name, algorithm) in ALGORITHMS {
        // One of parts' checksums has their number behind a dash, and says nothing of the whole.
        let Some(stated) = head.header(name).filter(|stated| !stated.contains('-')) else { continue };
        if stated != STANDARD.encode(algorithm(body)) {
            return Err(Failure::new(Kind::Refused(Reason::ChecksumMismatch), "GetObject"));
        }
    }
    Ok(())
}

type Algorithm = fn(&Chunks) -> Vec<u8>;

// https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
const ALGORITHMS: [(&str, Algorithm); 4] = [
    ("x-amz-checksum-crc32", |body| crc(CrcAlgorithm::Crc32IsoHdlc, body)),
    ("x-amz-checksum-crc32c", |body| crc(CrcAlgorithm::Crc32Iscsi, body)),
    ("x-amz-checksum-sha1", digest::<Sha1>),
    ("x-amz-checksum-sha256", digest::<Sha256>),
];

/// Returns a CRC of 32 bits.
fn crc(algorithm: CrcAlgorithm, body: &Chunks) -> Vec<u8> {
    let mut crc = Crc::new(algorithm);
    body.pieces().for_each(|piece| crc.update(piece));
    let [_, _, _, _, low @ ..] = crc.finalize().to_be_bytes();
    low.to_vec()
}

fn digest<D: Digest>(body: &Chunks) -> Vec<u8> {
    let mut digest = D::new();
    body.pieces().for_each(|piece| digest.update(piece));
    digest.finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn each_checksum_is_that_of_its_standard() {
        // CRCs of "123456789": https://reveng.sourceforge.io/crc-catalogue/17plus.htm
        let nine = Chunks::from(Bytes::from_static(b"123456789"));
        assert_eq!(crc(CrcAlgorithm::Crc32IsoHdlc, &nine), 0xcbf4_3926_u32.to_be_bytes());
        assert_eq!(crc(CrcAlgorithm::Crc32Iscsi, &nine), 0xe306_9283_u32.to_be_bytes());
        // SHA of "abc": FIPS 180-4, its examples.
        let abc = Chunks::from(Bytes::from_static(b"abc"));
        assert_eq!(STANDARD.encode(digest::<Sha1>(&abc)), "qZk+NkcGgWq6PiVxeFDCbJzQ2J0=");
        assert_eq!(STANDARD.encode(digest::<Sha256>(&abc)), "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=");
    }

    #[test]
    fn other_bytes_than_the_source_states_are_refused() {
        let body = Chunks::from(Bytes::from_static(b"123456789"));
        let answer = |name: &str, value: &str| Head::for_tests(&[(name, value)]);
        assert!(check(&answer("x-amz-checksum-crc32", "y/Q5Jg=="), &body).is_ok());
        for (name, _) in ALGORITHMS {
            assert!(check(&answer(name, "AAAAAA=="), &body).is_err(), "{name}");
            assert!(check(&answer(name, "AAAAAA==-3"), &body).is_ok(), "{name} of parts");
        }
        assert!(check(&answer("etag", "\"e\""), &body).is_ok());
    }
}
