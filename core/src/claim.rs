//! How far a stamp is believed. It is a text that any writer can give an object, and that a copy of
//! the object takes along; so it counts as far as the source's list, and what both servers state of
//! the two objects, bear it out.

use std::time::Duration;

use thiserror::Error;

use crate::object::{ETag, Timestamp};
use crate::plan::{SourceVersion, VersionKind, VersionRef};

/// An object of the destination whose stamp says that it is the replica of a source version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginClaim {
    /// The version that the stamp names.
    pub version: VersionRef,
    /// The object's entity tag.
    pub etag: Option<ETag>,
    /// Whether the tag can be a digest of the content: it is none under KMS and under a customer's
    /// key.
    pub has_digest: bool,
    /// The object's size.
    pub size_bytes: Option<u64>,
    /// When the object was written, by the destination's clock.
    pub written: Option<Timestamp>,
    /// What time it was by the same clock when it said so.
    pub now: Option<Timestamp>,
}

/// Why a stamp is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Belief {
    /// The source lists the version, and what it states of it is true of the object.
    Proved,
    /// The same but for the ETags: they prove other content, unless the original's is no digest.
    Undigested,
    /// The source has lost the version. The stamp still tells a place in time, and one that is
    /// possible.
    Placed,
}

/// Why a stamp is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ClaimRejection {
    /// The source lists the version with another time.
    #[error("the source made the version that it names at another time")]
    Time,
    /// The source lists a delete marker.
    #[error("the version that it names is a delete marker")]
    Marker,
    /// The sizes differ.
    #[error("the version that it names has another size")]
    Size,
    /// The contents differ.
    #[error("the version that it names has other content")]
    Content,
    /// The version would be younger than its replica.
    #[error("it names a version that would be younger than the object")]
    Younger,
    /// The destination does not say when the object was written.
    #[error("it names a version that the source does not list, on an object without a date")]
    Undated,
}

impl OriginClaim {
    /// Compares a stamp with all that the source lists of the key, in any order.
    pub fn judge(&self, listed: &[SourceVersion]) -> Result<Belief, ClaimRejection> {
        match listed.iter().find(|entry| self.names(entry)) {
            Some(original) => self.compare_with_original(original),
            None => self.place(),
        }
    }

    /// Says whether this was read of the same object, which an answer at another time says the same
    /// of.
    pub fn is_of_same(&self, other: &Self) -> bool {
        *self
            == Self {
                now: self.now,
                ..other.clone()
            }
    }

    /// A `null` version is another one once it was overwritten.
    fn names(&self, entry: &SourceVersion) -> bool {
        entry.version == self.version
            || (entry.version.id == self.version.id && !entry.version.id.is_null())
    }

    fn compare_with_original(&self, original: &SourceVersion) -> Result<Belief, ClaimRejection> {
        if original.kind == VersionKind::Marker {
            return Err(ClaimRejection::Marker);
        }
        if original.version != self.version {
            return Err(ClaimRejection::Time);
        }
        // That the answer says nothing of it contradicts nothing.
        if self
            .size_bytes
            .is_some_and(|size_bytes| size_bytes != original.size_bytes)
        {
            return Err(ClaimRejection::Size);
        }
        let digests = self.etag.as_ref().zip(original.etag.as_ref());
        let differ =
            |(one, other): (&ETag, &ETag)| one.is_digest() && other.is_digest() && one != other;
        let is_other = self.has_digest && digests.is_some_and(differ);
        Ok(if is_other {
            Belief::Undigested
        } else {
            Belief::Proved
        })
    }

    /// No replica is older than its original. Nothing else can be known of a version that the
    /// source has lost.
    fn place(&self) -> Result<Belief, ClaimRejection> {
        let written = self.written.ok_or(ClaimRejection::Undated)?;
        let latest = self.now.map_or(written, |now| written.min(now));
        if self.version.last_modified - latest > CLOCKS_APART_MAX {
            Err(ClaimRejection::Younger)
        } else {
            Ok(Belief::Placed)
        }
    }
}

// Two stores that keep their clocks by NTP are a second apart at most, and each states times by the
// second. A stamp that is refused wrongly costs one more copy; one that is accepted wrongly makes
// as much of the source's history late.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;
    use crate::object::VersionId;

    const ONE: &str = "f97c5d29941bfb1b2fdab0874906ab82";
    const TWO: &str = "b8a9f715dbb64fd5c56e7783c6820a61";

    fn version(id: &str, made: Timestamp, etag: &str) -> VersionRef {
        VersionRef::new(
            VersionId::try_from(id).unwrap(),
            made,
            ETag::try_from(etag).ok().as_ref(),
        )
    }

    fn original(id: &str, etag: &str) -> SourceVersion {
        let version = version(id, datetime!(2026-11-23 10:00 UTC), etag);
        SourceVersion {
            version,
            kind: VersionKind::Object,
            etag: ETag::try_from(etag).ok(),
            size_bytes: 3,
        }
    }

    /// What the daemon's own replica of a version says.
    fn replica(original: &SourceVersion, etag: &str) -> OriginClaim {
        OriginClaim {
            version: original.version.clone(),
            etag: ETag::try_from(etag).ok(),
            has_digest: true,
            size_bytes: Some(original.size_bytes),
            written: Some(datetime!(2026-11-23 10:01 UTC)),
            now: Some(datetime!(2026-11-24 10:00 UTC)),
        }
    }

    #[test]
    fn a_real_replica_is_proved_by_the_sources_list() {
        let cases = [
            ("v1", ONE, ONE),
            ("v1", "abc-3", "def-5"),
            ("v1", ONE, "abc-1"),
            ("null", ONE, ONE),
        ];
        for (id, etag, replicas) in cases {
            let original = original(id, etag);
            assert_eq!(
                replica(&original, replicas).judge(&[original]),
                Ok(Belief::Proved),
                "{id} {etag} {replicas}"
            );
        }
    }

    #[test]
    fn an_etag_that_is_no_digest_disproves_nothing() {
        let original = original("v1", ONE);
        let under_kms = OriginClaim {
            has_digest: false,
            ..replica(&original, TWO)
        };
        assert_eq!(
            under_kms.judge(std::slice::from_ref(&original)),
            Ok(Belief::Proved)
        );
        // The list does not tell how the original is encrypted.
        assert_eq!(
            replica(&original, TWO).judge(&[original]),
            Ok(Belief::Undigested)
        );
    }

    #[test]
    fn what_is_not_said_of_a_replica_contradicts_nothing() {
        let listed = original("v1", ONE);
        for silent in [
            OriginClaim {
                size_bytes: None,
                ..replica(&listed, ONE)
            },
            OriginClaim {
                etag: None,
                ..replica(&listed, ONE)
            },
            OriginClaim {
                written: None,
                now: None,
                ..replica(&listed, ONE)
            },
        ] {
            assert_eq!(
                silent.judge(std::slice::from_ref(&listed)),
                Ok(Belief::Proved),
                "{silent:?}"
            );
        }
    }

    #[test]
    fn what_the_list_contradicts_is_not_believed() {
        let listed = original("v1", ONE);
        let marker = SourceVersion {
            kind: VersionKind::Marker,
            ..listed.clone()
        };
        let other_time = version("v1", datetime!(9999-12-31 23:59:59 UTC), ONE);
        let real = || replica(&listed, ONE);
        let cases = [
            (
                OriginClaim {
                    size_bytes: Some(4),
                    ..real()
                },
                &listed,
                ClaimRejection::Size,
            ),
            (
                OriginClaim {
                    version: other_time,
                    ..real()
                },
                &listed,
                ClaimRejection::Time,
            ),
            (real(), &marker, ClaimRejection::Marker),
        ];
        for (claim, entry, doubt) in cases {
            assert_eq!(claim.judge(std::slice::from_ref(entry)), Err(doubt));
        }
    }

    #[test]
    fn a_version_that_is_gone_keeps_its_place_in_time_if_its_replica_is_younger() {
        let gone = original("gone", ONE);
        let at = |made| OriginClaim {
            version: version("gone", made, ONE),
            ..replica(&gone, ONE)
        };
        let future = OriginClaim {
            written: Some(datetime!(9999-12-31 23:59:59 UTC)),
            ..at(datetime!(9999-12-31 23:00 UTC))
        };
        let undated = OriginClaim {
            written: None,
            ..at(datetime!(2026-11-23 10:00 UTC))
        };
        let cases = [
            (at(datetime!(2026-11-23 10:00 UTC)), Ok(Belief::Placed)),
            (at(datetime!(2026-11-23 10:01:30 UTC)), Ok(Belief::Placed)),
            (
                at(datetime!(2026-11-23 10:02:01 UTC)),
                Err(ClaimRejection::Younger),
            ),
            (
                at(datetime!(9999-12-31 23:59:59 UTC)),
                Err(ClaimRejection::Younger),
            ),
            (future, Err(ClaimRejection::Younger)),
            (undated, Err(ClaimRejection::Undated)),
        ];
        for (claim, expected) in cases {
            assert_eq!(claim.judge(&[original("v1", TWO)]), expected, "{claim:?}");
        }
    }

    #[test]
    fn a_null_version_that_was_overwritten_is_not_the_one_that_is_listed() {
        let overwritten = original("null", ONE);
        assert_eq!(
            replica(&overwritten, ONE).judge(&[original("null", TWO)]),
            Ok(Belief::Placed)
        );
    }

    proptest! {
        #[test]
        fn no_stamp_makes_anything_late_that_the_source_wrote_after_the_object(
            made in -100_000_000_000i64..200_000_000_000, written in -100_000_000_000i64..200_000_000_000,
            now in proptest::option::of(-100_000_000_000i64..200_000_000_000), is_listed in any::<bool>(),
        ) {
            let at = |seconds| Timestamp::from_unix_timestamp(seconds).unwrap();
            let listed = original("v1", ONE);
            let id = if is_listed { "v1" } else { "gone" };
            let claim = OriginClaim {
                version: version(id, at(made), ONE), written: Some(at(written)), now: now.map(at), ..replica(&listed, ONE)
            };
            let is_believed = claim.judge(std::slice::from_ref(&listed)).is_ok();
            let is_true = claim.version == listed.version;
            prop_assert!(!is_believed || is_true || made <= written + 60);
        }
    }
}
