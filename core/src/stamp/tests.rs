//! Stamps are read as they are written, and believed as far as the two servers bear them out.

use proptest::prelude::*;
use time::macros::datetime;

use super::*;

mod header {
    use super::*;

    fn stamp(version: &str, milliseconds: i64, etag: &str) -> Stamp {
        let last_modified =
            Timestamp::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000).unwrap();
        let (id, etag) = (
            VersionId::try_from(version).unwrap(),
            ETag::try_from(etag).ok(),
        );
        Stamp {
            place: OriginKey::of_key(&bucket("orders"), &key("a")),
            version: VersionRef::new(id, last_modified, etag.as_ref()),
            sequencer: "0A".parse().ok(),
        }
    }

    fn bucket(name: &str) -> Bucket {
        Bucket::try_from(name).unwrap()
    }

    fn key(name: &str) -> Key {
        Key::try_from(name).unwrap()
    }

    proptest! {
        #[test]
        fn a_stamp_reads_back_as_written(version in "[ -~]{1,60}|null", milliseconds in 0i64..4_000_000_000_000) {
            let stamp = stamp(&version, milliseconds, "a;b%");
            prop_assert_eq!(Stamp::from_header(&stamp.to_header()), Ok(stamp.clone()));
            let compact = stamp.to_compact();
            prop_assert_eq!(Stamp::from_header(&compact.to_header()), Ok(compact.clone()));
            prop_assert!(names_version(&compact.version, &stamp.version));
        }

        #[test]
        fn any_other_text_is_refused_without_panic(text in ".{0,100}|2;.{0,9};~.{0,17};.{0,15}") {
            if let Ok(stamp) = Stamp::from_header(&text) {
                prop_assert_eq!(Stamp::from_header(&stamp.to_header()), Ok(stamp));
            }
        }
    }

    #[test]
    fn a_compact_stamp_names_one_version_of_one_key() {
        let one = stamp("v1", 1_000, "x");
        let compact = one.to_compact();
        assert!(compact.to_header().len() <= 41, "{}", compact.to_header());
        for other in [
            stamp("v2", 1_000, "x"),
            stamp("v1", 2_000, "x"),
            stamp("null", 1_000, "x"),
        ] {
            assert!(
                !names_version(&compact.version, &other.version),
                "{other:?}"
            );
        }
        let (null, overwritten) = (stamp("null", 1_000, "x"), stamp("null", 1_000, "y"));
        assert!(
            names_version(&null.to_compact().version, &null.version)
                && !names_version(&null.to_compact().version, &overwritten.version)
        );
        for stamp in [&one, &compact] {
            assert!(stamp.place.is_key(&bucket("orders"), &key("a")));
            assert!(
                !stamp.place.is_key(&bucket("orders"), &key("b"))
                    && !stamp.place.is_key(&bucket("others"), &key("a"))
            );
        }
    }
}

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
    // The list does not state how the original is encrypted.
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
