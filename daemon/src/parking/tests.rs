//! When parked tasks come back, and which of them a filter means.

use replicator_core::event::EventKind;
use replicator_core::object::{Bucket, Key};

use super::*;
use crate::ledger::records::TargetKey;
use crate::task::tests::rules;

fn parked(rule: &str, name: &str, reason: Reason) -> ParkedTask {
    let place = |bucket: &str| BucketRef {
        account: "main".to_owned(),
        bucket: Bucket::try_from(bucket).unwrap(),
    };
    let key = |text: String| Key::try_from(text).unwrap();
    ParkedTask {
        target: TargetKey {
            destination: place("replicas"),
            key: key(format!("copies/{name}")),
        },
        rule: rule.to_owned(),
        source: place("orders"),
        source_key: key(name.to_owned()),
        action: EventKind::Put,
        version: None,
        reason,
        detail: String::new(),
        since: moment(0),
        tries: 0,
        due: None,
    }
}

fn moment(seconds: i64) -> Timestamp {
    Timestamp::from_unix_timestamp(seconds).unwrap()
}

#[test]
fn each_try_doubles_the_time_to_the_next_up_to_an_hour() {
    let minutes = |jitter| {
        [0, 1, 2, 3, 4, 40]
            .map(|tries| (next_try(moment(0), tries, jitter) - moment(0)).whole_minutes())
    };
    assert_eq!(minutes(1.0), [5, 10, 20, 40, 60, 60]);
    assert_eq!(minutes(0.0), [2, 5, 10, 20, 30, 30]);
}

#[test]
fn a_task_waits_for_its_turn_and_one_from_an_older_ledger_has_it_now() {
    let task = parked("orders", "report", Reason::DstBucketNotFound);
    assert!(is_due(&task, moment(0)));
    let tried = tried(task, moment(0));
    assert_eq!((tried.tries, tried.since), (1, moment(0)));
    assert!(!is_due(&tried, moment(299)) && is_due(&tried, moment(600)));
}

#[test]
fn a_filter_means_what_matches_all_of_it() {
    let task = parked("orders", "report", Reason::DstBucketNotFound);
    let none = ParkedFilter::default();
    assert!(none.matches_task(&task));
    let rule = |rule: &str| ParkedFilter {
        rule: Some(rule.to_owned()),
        ..none.clone()
    };
    assert!(rule("orders").matches_task(&task) && !rule("invoices").matches_task(&task));
    let both = |reason| ParkedFilter {
        reason: Some(reason),
        ..rule("orders")
    };
    assert!(
        both(Reason::DstBucketNotFound).matches_task(&task)
            && !both(Reason::SrcBucketNotFound).matches_task(&task)
    );
    let object = |url| ParkedFilter {
        object: Object::parse_url(url),
        ..none.clone()
    };
    assert!(object("s3://orders/report").matches_task(&task));
    assert!(object("s3://replicas/copies/report").matches_task(&task));
    assert!(!object("s3://orders/copies/report").matches_task(&task));
}

#[test]
fn an_object_is_named_by_bucket_and_key() {
    let parsed = Object::parse_url("s3://orders/a//b").unwrap();
    assert_eq!(
        (parsed.bucket.as_str(), parsed.key.as_str()),
        ("orders", "a//b")
    );
    for wrong in [
        "orders/report",
        "s3://orders",
        "s3://orders/",
        "s3:///report",
        "https://orders/report",
    ] {
        assert_eq!(Object::parse_url(wrong), None, "{wrong}");
    }
}

#[test]
fn what_no_rule_wants_any_more_is_counted_apart() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(directory.path()).unwrap();
    ledger
        .put_parked(&parked("orders", "report", Reason::DstBucketNotFound))
        .unwrap();
    let ruleset = Ruleset::new(&rules(&[("orders", "orders", "elsewhere")]));
    let retried = count(&ledger, &ruleset, &ParkedFilter::default()).unwrap();
    assert_eq!(
        retried,
        RetrySummary {
            tasks: 1,
            unwanted: 1
        }
    );
}
