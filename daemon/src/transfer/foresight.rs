//! What ETag a replica will get, where the source's own says nothing of the content: it was uploaded in
//! parts, or is encrypted. Without that the fence could not know that content recurs.

use std::sync::OnceLock;

use replicator_core::failure::{Failure, Kind};
use replicator_core::object::ETag;
use replicator_core::plan::SourceVersion;

use super::attributes::Attributes;
use crate::checksum::{Algorithm, Sum, composite, md5_digits, md5_text};
use crate::wire::Filled;

/// The ETags that a write must not get, and what was found out of one content.
#[derive(Debug, Default)]
pub(crate) struct Foresight {
    /// Nothing to be found out: it is known, or every write gets an ETag of its own.
    idle: bool,
    taken: Vec<ETag>,
    found: OnceLock<ETag>,
}

impl Foresight {
    /// Looks for content that has one of these ETags.
    pub(super) fn of(taken: Vec<ETag>) -> Self {
        Self { taken, ..Self::default() }
    }

    /// Looks for nothing.
    pub(super) fn idle() -> Self {
        Self { idle: true, ..Self::default() }
    }

    /// Refuses a write whose replica would get an ETag that stands at the key, unless that was known
    /// when it was planned.
    pub(super) fn check(&self, version: &SourceVersion, attributes: &Attributes, body: &Filled) -> Result<(), Failure> {
        let tells = version.etag.as_ref().is_some_and(|etag| !etag.has_parts()) && !attributes.is_kms();
        if self.idle || tells {
            return Ok(());
        }
        let md5 = body.sum(Algorithm::Md5);
        self.refuse(md5.and_then(|md5| ETag::try_from(md5_text(&md5.value)).ok()))
    }

    /// Refuses an upload of these parts if it would get an ETag that stands at the key: no condition could tell it from
    /// what is current (protocol rule 4), and what was planned over the same content before could land on it (rule 5).
    /// What was planned goes by the source's history alone, and the parts that others chose are in none.
    pub(super) fn check_parts<'a>(&self, parts: impl Iterator<Item = &'a ETag>) -> Result<(), Failure> {
        if self.idle { Ok(()) } else { self.refuse(etag_of_parts(parts)) }
    }

    fn refuse(&self, etag: Option<ETag>) -> Result<(), Failure> {
        match etag.filter(|etag| self.taken.contains(etag)) {
            None => Ok(()),
            Some(etag) => {
                // Only ever set once: a copy is made for each write.
                let _first = self.found.set(etag);
                Err(Failure::new(Kind::Conflict, "look at the content"))
            }
        }
    }

    /// Returns the ETag that was found to recur.
    pub(super) fn found(self) -> Option<ETag> {
        self.found.into_inner()
    }
}

/// Returns the ETag of an upload from those of its parts; none where they are no MD5 of their content.
pub(super) fn etag_of_parts<'a>(parts: impl Iterator<Item = &'a ETag>) -> Option<ETag> {
    let sum = |etag: &ETag| Some(Sum { algorithm: Algorithm::Md5, value: md5_digits(etag.as_str())?.to_vec(), len: 0 });
    let sums = parts.map(sum).collect::<Option<Vec<Sum>>>()?;
    ETag::try_from(format!("{}-{}", md5_text(&composite(Algorithm::Md5, &sums)), sums.len())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_etag_of_an_upload_follows_from_its_parts() {
        let tag = |text| ETag::try_from(text).unwrap();
        // The MD5 of "a"; that of its sixteen bytes, once and twice.
        let part = tag("0cc175b9c0f1b6a831c399e269772661");
        assert_eq!(etag_of_parts([&part].into_iter()), Some(tag("b6ff9a06b7e20bcb2858c5b8ff744aea-1")));
        assert_eq!(etag_of_parts([&part, &part].into_iter()), Some(tag("7b3c799ee8b11a11c798c8b41bed8502-2")));
        assert_eq!(etag_of_parts([&part, &tag("opaque")].into_iter()), None);
    }
}
