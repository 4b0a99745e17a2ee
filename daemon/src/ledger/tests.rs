//! Every record reads back as written, from the address it was written to.

mod damage;

use std::fmt::Debug;

use proptest::prelude::*;
use replicator_core::event::EventKind;
use replicator_core::object::{Bucket, ETag, Key, VersionId};
use replicator_core::plan::VersionKind;
use replicator_core::plan::VersionRef;
use replicator_core::rule::BucketRef;

use super::records::{CurrentEntry, ReplicaState};
use super::*;
use crate::metrics::Unproved;
use crate::s3::checksum::Sum;

fn targets() -> impl Strategy<Value = TargetKey> {
    ("[a-c]{1,2}", "[a-c]{3,4}", "[a-b\\x00\\x01é]{1,3}").prop_map(|(account, bucket, key)| {
        TargetKey {
            destination: BucketRef {
                account,
                bucket: Bucket::try_from(bucket).unwrap(),
            },
            key: Key::try_from(key).unwrap(),
        }
    })
}

fn versions() -> impl Strategy<Value = VersionRef> {
    ("[ -~]{1,12}|null", 0i64..4_000_000_000_000).prop_map(|(id, milliseconds)| {
        let time =
            Timestamp::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000).unwrap();
        VersionRef::new(
            VersionId::try_from(id).unwrap(),
            time,
            ETag::try_from("e").ok().as_ref(),
        )
    })
}

fn over(id: &str, number: u32) -> Option<CurrentEntry> {
    let etag = ETag::try_from(format!("e{number}")).unwrap();
    match number % 4 {
        0 => None,
        1 => Some(CurrentEntry::Nothing),
        2 => Some(CurrentEntry::Marker(id.to_owned())),
        _ => Some(CurrentEntry::Object {
            version: Some(id.to_owned()),
            etag,
        }),
    }
}

fn reads_back<R: Record + Debug + PartialEq>(record: &R) -> Result<(), TestCaseError> {
    let bytes = encode(record).map_err(|error| TestCaseError::fail(error.to_string()))?;
    let back: R = decode_record(&bytes).map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert_eq!(&back, record);
    Ok(())
}

proptest! {
    #[test]
    fn every_record_reads_back(target in targets(), source in versions(), text in ".{0,30}", number in any::<u32>(), crc64 in any::<u64>()) {
        let etag = ETag::try_from(format!("e{number}")).unwrap();
        let replica = Replica {
            source: source.clone(),
            kind: VersionKind::Object,
            state: ReplicaState::Superseded,
            destination_version: Some(text.clone()),
            etag: Some(etag.clone()),
            reason: Some(Reason::ArrivedLate),
            written: Some(source.last_modified),
            found: Some(source.last_modified),
            adopted: number.is_multiple_of(3),
            tags_seen: number.is_multiple_of(2),
        };
        reads_back(&replica)?;
        reads_back(&Upload { upload_id: text.clone(), source: source.clone(), part_bytes: crc64, headers_digest: crc64, kms_key: Some(text.clone()), begun_over: over(&text, number), may_complete_until: Some(source.last_modified), by_our_clock: number.is_multiple_of(2), size_bytes: crc64 })?;
        let sums = vec![Sum::of_crc64(crc64, u64::from(number))];
        let doubt = Some(Unproved::AnswerSilent);
        reads_back(&UploadedPart { number, etag, crc64, sums, doubt })?;
        reads_back(&ParkedTask {
            source: target.destination.clone(),
            source_key: target.key.clone(),
            target,
            rule: text.clone(),
            action: EventKind::Tags,
            version: Some(source.id),
            reason: Reason::DstKmsKeyNotFound,
            detail: text,
            since: source.last_modified,
            tries: number,
            due: Some(source.last_modified),
        })?;
        reads_back(&RuleStart { first_loaded: source.last_modified })?;
        reads_back(&Removals { since: source.last_modified, count: number })?;
        reads_back(&Refuted { since: source.last_modified })?;
    }

    #[test]
    fn the_records_of_one_key_are_never_those_of_another(one in targets(), other in targets(), version in versions()) {
        let replica = |source| Replica::new(source, VersionKind::Object, ReplicaState::Replicated);
        let address = replica(version).address(&other);
        let is_within = address.key_bytes().starts_with(Replica::key_prefix(&one).key_bytes());
        prop_assert_eq!(is_within, one == other);
        let prefix = Replica::key_prefix(&other);
        prop_assert_eq!(records::target_prefix(address.key_bytes()), prefix.key_bytes());
        let of_bucket = Replica::bucket_prefix(&one.destination);
        let is_of_bucket = address.key_bytes().starts_with(of_bucket.key_bytes());
        prop_assert_eq!(is_of_bucket, one.destination == other.destination);
        prop_assert_eq!(records::target_at(address.key_bytes()), Some(other));
    }
}

#[test]
fn what_is_on_record_is_found_wherever_it_lies() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(directory.path()).unwrap();
    let target = |number: i64| TargetKey {
        key: Key::try_from(format!("{number}")).unwrap(),
        ..target()
    };
    let replica = |number: i64, nth| replica(number * 10 + nth);
    // Some in files, of which the later one lies above the earlier, and some in memory; every
    // second key has none.
    for nth in 0..3 {
        for number in (0..200).step_by(2) {
            ledger
                .put_replica(&target(number), &replica(number, nth))
                .unwrap();
        }
        if nth < 2 {
            ledger.store.open_db().unwrap().db.flush().unwrap();
        }
    }
    for number in 0..200 {
        let wanted = if number % 2 == 0 {
            (0..3).map(|nth| replica(number, nth)).collect()
        } else {
            Vec::new()
        };
        assert_eq!(
            ledger.replicas_of(&target(number)).unwrap(),
            wanted,
            "{number}"
        );
    }
    let parked = |number: i64| ParkedTask {
        target: target(number),
        ..parked(number)
    };
    (0..20).for_each(|number| ledger.put_parked(&parked(number)).unwrap());
    let mut visited = Vec::new();
    let after = target(11);
    let visit = |task: ParkedTask| {
        visited.push(task.target);
        ControlFlow::Continue(())
    };
    ledger.visit_parked(Some(&after), visit).unwrap();
    let behind: Vec<TargetKey> = (0..20)
        .map(target)
        .filter(|target| target.key > after.key)
        .collect();
    assert_eq!(visited.len(), behind.len());
    assert!(behind.iter().all(|target| visited.contains(target)));
}

#[test]
fn a_key_is_forgotten_only_as_it_was_seen_and_without_a_trace() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(directory.path()).unwrap();
    let other = TargetKey {
        key: Key::try_from("a/".to_owned() + target().key.as_str()).unwrap(),
        ..target()
    };
    for target in [&target(), &other] {
        (1..=2).for_each(|number| ledger.put_replica(target, &replica(number)).unwrap());
        ledger
            .record_refuted(target, "r1", version(1).last_modified)
            .unwrap();
    }
    let (one, both) = ([replica(1)], [replica(1), replica(2)]);
    assert!(!ledger.forget_key(&target(), &one).unwrap(), "one came");
    ledger.put_upload(&target(), &upload()).unwrap();
    assert!(!ledger.forget_key(&target(), &both).unwrap(), "an upload");
    ledger.end_upload(&target()).unwrap();
    ledger.put_parked(&parked(1)).unwrap();
    assert!(!ledger.forget_key(&target(), &both).unwrap(), "a task");
    ledger.remove_parked(&target(), |_| true).unwrap();
    assert!(ledger.forget_key(&target(), &both).unwrap());

    assert_eq!(ledger.replicas_of(&target()).unwrap(), []);
    assert!(!ledger.is_refuted(&target(), "r1").unwrap());
    assert!(ledger.is_refuted(&other, "r1").unwrap());
    let mut visited = Vec::new();
    let place = target().destination;
    let visit = |target: TargetKey, replica: &Replica| {
        visited.push((target, replica.clone()));
        ControlFlow::Continue(())
    };
    ledger.visit_replicas((&place, None), visit).unwrap();
    assert_eq!(visited, both.map(|replica| (other.clone(), replica)));
    let visit = |target: TargetKey, _: &Replica| panic!("{target:?} is not behind itself");
    ledger
        .visit_replicas((&place, Some(&other)), visit)
        .unwrap();
}

fn parked(number: i64) -> ParkedTask {
    ParkedTask {
        target: target(),
        rule: "orders".to_owned(),
        source: target().destination,
        source_key: target().key,
        action: EventKind::Put,
        version: Some(version(number).id),
        reason: Reason::DstBucketNotFound,
        detail: String::new(),
        since: version(number).last_modified,
        tries: 0,
        due: None,
    }
}

fn version(n: i64) -> VersionRef {
    VersionRef::new(
        VersionId::try_from(format!("v{n}")).unwrap(),
        Timestamp::from_unix_timestamp(n).unwrap(),
        None,
    )
}

fn target() -> TargetKey {
    TargetKey {
        destination: BucketRef {
            account: "archive".to_owned(),
            bucket: Bucket::try_from("replica").unwrap(),
        },
        key: Key::try_from("invoices/1").unwrap(),
    }
}

fn replica(number: i64) -> Replica {
    let source = version(number);
    Replica::new(source, VersionKind::Object, ReplicaState::Replicated)
}

fn upload() -> Upload {
    Upload {
        upload_id: "u".to_owned(),
        source: version(1),
        part_bytes: 5 << 20,
        headers_digest: 9,
        kms_key: None,
        begun_over: Some(CurrentEntry::Nothing),
        may_complete_until: None,
        by_our_clock: false,
        size_bytes: 20,
    }
}

fn part(number: u32) -> UploadedPart {
    UploadedPart {
        number,
        etag: ETag::try_from("e").unwrap(),
        crc64: 7,
        sums: Vec::new(),
        doubt: None,
    }
}

#[test]
fn an_upload_survives_reopening_with_its_parts_and_is_forgotten_whole() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(directory.path()).unwrap();
    let upload = upload();
    ledger.put_upload(&target(), &upload).unwrap();
    for number in [2, 300, 1] {
        ledger.put_part(&target(), &part(number)).unwrap();
    }
    drop(ledger);
    let ledger = Ledger::open(directory.path()).unwrap();
    let (found, parts) = ledger.upload_of(&target()).unwrap().unwrap();
    assert_eq!(found, upload);
    assert_eq!(parts.keys().copied().collect::<Vec<_>>(), [1, 2, 300]);
    ledger.end_upload(&target()).unwrap();
    assert!(ledger.upload_of(&target()).unwrap().is_none());
}

#[test]
fn a_second_daemon_on_the_same_directory_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let _first = Ledger::open(directory.path()).unwrap();
    let second = Ledger::open(directory.path());
    assert!(matches!(second, Err(OpenError::Locked(_))), "{second:?}");
}

#[test]
fn a_rule_keeps_the_moment_it_was_first_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(directory.path()).unwrap();
    let (first, later) = (version(1).last_modified, version(2).last_modified);
    assert_eq!(ledger.rule_start("orders", first).unwrap(), first);
    assert_eq!(ledger.rule_start("orders", later).unwrap(), first);
}

#[test]
fn a_rule_removes_so_many_in_an_hour_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let two = NonZeroU32::new(2).unwrap();
    let begun = version(1).last_modified;
    let may_remove = |rule: &str, after: u64| {
        let ledger = Ledger::open(directory.path()).unwrap();
        ledger
            .count_removal(rule, two, begun + Duration::from_secs(after))
            .unwrap()
    };
    assert_eq!(
        [0, 1, 2, 3599].map(|after| may_remove("orders", after)),
        [true, true, false, false]
    );
    assert!(may_remove("invoices", 3), "each rule has its own");
    assert_eq!(
        [3600, 3601, 3602].map(|after| may_remove("orders", after)),
        [true, true, false]
    );
    assert!(may_remove("orders", 0), "the clock was set back by an hour");
}

#[test]
fn a_record_of_a_later_format_is_refused_and_not_misread() {
    assert!(decode_record::<RuleStart>(b"\x02{}").is_err());
    assert!(decode_record::<RuleStart>(b"").is_err());
}

#[test]
fn no_record_makes_its_reader_panic() {
    let version = r#"{"id":"v","last_modified":1700000000000}"#;
    let texts = [
        format!(
            "\u{1}{{\"source\":{version},\"kind\":\"Object\",\"state\":\"Replicated\",\"written\":1700000000000}}"
        ),
        format!(
            "\u{1}{{\"upload_id\":\"u\",\"source\":{version},\"part_bytes\":5242880,\"size_bytes\":9,\"may_complete_until\":1700000000000}}"
        ),
        "\u{1}{\"number\":1,\"etag\":\"e\",\"crc64\":18446744073709551615}".to_owned(),
        "\u{1}{\"first_loaded\":9223372036854775807}".to_owned(),
    ];
    let real: Vec<&[u8]> = texts.iter().map(String::as_bytes).collect();
    assert!(decode_record::<Replica>(real[0]).is_ok() && decode_record::<Upload>(real[1]).is_ok());
    assert!(decode_record::<UploadedPart>(real[2]).is_ok());
    crate::poison::feed(&real, |bytes| {
        drop((
            decode_record::<Replica>(bytes),
            decode_record::<Upload>(bytes),
            decode_record::<UploadedPart>(bytes),
        ));
        drop((
            decode_record::<ParkedTask>(bytes),
            decode_record::<RuleStart>(bytes),
            decode_record::<RulePause>(bytes),
        ));
    });
}
