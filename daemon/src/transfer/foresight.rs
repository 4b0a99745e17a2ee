//! What ETag a replica will get, where the source's own says nothing of the content: it was uploaded in
//! parts, or is encrypted. Without that the fence could not know that content recurs.

use std::sync::OnceLock;

use md5::{Digest, Md5};
use replicator_core::failure::{Failure, Kind};
use replicator_core::object::ETag;
use replicator_core::plan::SourceVersion;

use super::attributes::Attributes;
use crate::wire::Chunks;

/// The ETags that stand at a key, and what was found out of one content.
#[derive(Debug, Default)]
pub(crate) struct Foresight {
    /// Nothing to be found out: it is known, or every write gets an ETag of its own.
    idle: bool,
    stood: Vec<ETag>,
    found: OnceLock<ETag>,
}

impl Foresight {
    /// Looks for content that has one of these ETags.
    pub(super) fn of(stood: Vec<ETag>) -> Self {
        Self { stood, ..Self::default() }
    }

    /// Looks for nothing.
    pub(super) fn idle() -> Self {
        Self { idle: true, ..Self::default() }
    }

    /// Refuses a write whose replica would get an ETag that stands at the key, unless that was known
    /// when it was planned.
    pub(super) fn check(&self, version: &SourceVersion, attributes: &Attributes, body: &Chunks) -> Result<(), Failure> {
        let tells = version.etag.as_ref().is_some_and(|etag| !etag.has_parts()) && !attributes.is_kms();
        if self.idle || tells {
            return Ok(());
        }
        let Ok(etag) = ETag::try_from(md5(body)) else { return Ok(()) };
        if !self.stood.contains(&etag) {
            return Ok(());
        }
        // Only ever set once: a copy is made for each write.
        let _first = self.found.set(etag);
        Err(Failure::new(Kind::Conflict, "look at the content"))
    }

    /// Returns the ETag that was found to recur.
    pub(super) fn found(self) -> Option<ETag> {
        self.found.into_inner()
    }
}

/// Returns the ETag of content that is neither in parts nor encrypted.
fn md5(body: &Chunks) -> String {
    let mut digest = Md5::new();
    body.pieces().for_each(|piece| digest.update(piece));
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
