//! The checksums that S3 verifies, keeps and gives back.
//! <https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html>

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm;
use http::{HeaderMap, StatusCode};
use md5::{Digest, Md5};
use s3s::S3Result;
use sha1::Sha1;
use sha2::Sha256;

use super::refusal::refuse;

/// An algorithm that the SDKs know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// CRC-64/NVME, which S3 computes by itself when nothing else is asked for.
    Crc64Nvme,
    /// CRC-32.
    Crc32,
    /// CRC-32C.
    Crc32C,
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
}

/// A checksum of an object or part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    /// Its algorithm.
    pub algorithm: Algorithm,
    /// In base64; with `-N` behind it when it is of the parts' checksums.
    pub value: String,
    /// Whether it is of the whole content, and not of the parts' checksums.
    pub full: bool,
}

const ALL: [Algorithm; 5] = [
    Algorithm::Crc64Nvme,
    Algorithm::Crc32,
    Algorithm::Crc32C,
    Algorithm::Sha1,
    Algorithm::Sha256,
];

impl Algorithm {
    /// Its name in `x-amz-checksum-algorithm`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crc64Nvme => "CRC64NVME",
            Self::Crc32 => "CRC32",
            Self::Crc32C => "CRC32C",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
        }
    }

    /// The header that carries its value.
    pub fn header(self) -> String {
        format!("x-amz-checksum-{}", self.name().to_lowercase())
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        ALL.into_iter()
            .find(|algorithm| algorithm.name().eq_ignore_ascii_case(name))
    }

    /// Whether parts make a checksum of the whole unless the writer says so.
    pub(super) fn is_full_by_default(self) -> bool {
        self == Self::Crc64Nvme
    }

    /// Computes it, in base64.
    pub fn of(self, bytes: &[u8]) -> String {
        STANDARD.encode(self.digest(bytes))
    }

    fn digest(self, bytes: &[u8]) -> Vec<u8> {
        // A CRC of 32 bits is the lower half of what the function returns.
        let crc32 = |algorithm| {
            crc_fast::checksum(algorithm, bytes)
                .to_be_bytes()
                .into_iter()
                .skip(4)
                .collect()
        };
        match self {
            Self::Crc64Nvme => crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)
                .to_be_bytes()
                .to_vec(),
            Self::Crc32 => crc32(CrcAlgorithm::Crc32IsoHdlc),
            Self::Crc32C => crc32(CrcAlgorithm::Crc32Iscsi),
            Self::Sha1 => Sha1::digest(bytes).to_vec(),
            Self::Sha256 => Sha256::digest(bytes).to_vec(),
        }
    }

    /// Joins the checksums of parts to one of them all.
    pub(super) fn composite(self, parts: &[String]) -> String {
        let joined: Vec<u8> = parts
            .iter()
            .flat_map(|part| STANDARD.decode(part).unwrap_or_default())
            .collect();
        format!("{}-{}", self.of(&joined), parts.len())
    }
}

/// Returns the checksum that the headers claim, if any.
pub(super) fn claimed(headers: &HeaderMap) -> Option<(Algorithm, String)> {
    ALL.into_iter().find_map(|algorithm| {
        let value = headers.get(algorithm.header())?.to_str().ok()?;
        Some((algorithm, value.to_owned()))
    })
}

/// Verifies every claim about a body, and returns the checksum to keep.
pub(super) fn verified(headers: &HeaderMap, body: &[u8]) -> S3Result<Option<Checksum>> {
    if let Some(value) = headers.get("content-md5") {
        let sent = STANDARD
            .decode(value)
            .ok()
            .filter(|digest| digest.len() == 16);
        let sent = sent.ok_or_else(|| {
            refuse(
                StatusCode::BAD_REQUEST,
                "InvalidDigest",
                "Content-MD5 is no digest",
            )
        })?;
        if sent != Md5::digest(body).to_vec() {
            return Err(refuse(
                StatusCode::BAD_REQUEST,
                "BadDigest",
                "Content-MD5 is not that of the body",
            ));
        }
    }
    let Some((algorithm, value)) = claimed(headers) else {
        return Ok(None);
    };
    if algorithm.of(body) == value {
        return Ok(Some(Checksum {
            algorithm,
            value,
            full: true,
        }));
    }
    let message = format!("{} is not that of the body", algorithm.name());
    Err(refuse(StatusCode::BAD_REQUEST, "BadDigest", message))
}

/// Returns the MD5 in hexadecimal digits.
pub(super) fn md5_hex(bytes: &[u8]) -> String {
    hex(&Md5::digest(bytes))
}

/// Returns the SHA-256 in hexadecimal digits.
pub(super) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Returns the ETag that parts make: the MD5 of their MD5s, and how many there are.
pub(super) fn etag_of_parts<'a>(etags: impl Iterator<Item = &'a str>) -> String {
    let mut count = 0;
    let mut joined = Vec::new();
    for etag in etags {
        count += 1;
        joined.extend(etag.as_bytes().chunks(2).filter_map(|pair| {
            let pair = std::str::from_utf8(pair).ok()?;
            u8::from_str_radix(pair, 16).ok()
        }));
    }
    format!("{}-{count}", md5_hex(&joined))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Sets that field of an answer which is for the checksum's algorithm.
macro_rules! put_checksum {
    ($answer:expr, $checksum:expr) => {
        if let Some(checksum) = $checksum {
            let value = Some(checksum.value.clone());
            match checksum.algorithm {
                $crate::s3::checksums::Algorithm::Crc64Nvme => $answer.checksum_crc64nvme = value,
                $crate::s3::checksums::Algorithm::Crc32 => $answer.checksum_crc32 = value,
                $crate::s3::checksums::Algorithm::Crc32C => $answer.checksum_crc32c = value,
                $crate::s3::checksums::Algorithm::Sha1 => $answer.checksum_sha1 = value,
                $crate::s3::checksums::Algorithm::Sha256 => $answer.checksum_sha256 = value,
            }
        }
    };
}

pub(super) use put_checksum;
