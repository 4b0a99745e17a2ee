//! When parked tasks come back, which of them a filter means, and what becomes of parked messages.

use replicator_core::event::Action;
use replicator_core::object::{Bucket, Key};

use super::*;
use crate::ledger::records::Lane;
use crate::ruleset::tests::rules;

fn parked(rule: &str, name: &str, reason: Reason) -> ParkedTask {
    let place = |bucket: &str| Place { account: "main".to_owned(), bucket: Bucket::try_from(bucket).unwrap() };
    let key = |text: String| Key::try_from(text).unwrap();
    ParkedTask {
        lane: Lane { destination: place("replicas"), key: key(format!("copies/{name}")) },
        rule: rule.to_owned(),
        source: place("orders"),
        source_key: key(name.to_owned()),
        action: Action::Put,
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

fn take_up(ledger: &Ledger, rules: &Ruleset, filter: &Filter) -> Result<Retried, Failure> {
    super::take_up(ledger, rules, filter, &Metrics::new().unwrap())
}

#[test]
fn each_try_doubles_the_time_to_the_next_up_to_an_hour() {
    let minutes =
        |jitter| [0, 1, 2, 3, 4, 40].map(|tries| (next_try(moment(0), tries, jitter) - moment(0)).whole_minutes());
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
    let none = Filter::default();
    assert!(none.takes(&task));
    let rule = |rule: &str| Filter { rule: Some(rule.to_owned()), ..none.clone() };
    assert!(rule("orders").takes(&task) && !rule("invoices").takes(&task));
    let both = |reason| Filter { reason: Some(reason), ..rule("orders") };
    assert!(both(Reason::DstBucketNotFound).takes(&task) && !both(Reason::SrcBucketNotFound).takes(&task));
    let object = |url| Filter { object: Object::parse(url), ..none.clone() };
    assert!(object("s3://orders/report").takes(&task));
    assert!(object("s3://replicas/copies/report").takes(&task));
    assert!(!object("s3://orders/copies/report").takes(&task));
}

#[test]
fn an_object_is_named_by_bucket_and_key() {
    let parsed = Object::parse("s3://orders/a//b").unwrap();
    assert_eq!((parsed.bucket.as_str(), parsed.key.as_str()), ("orders", "a//b"));
    for wrong in ["orders/report", "s3://orders", "s3://orders/", "s3:///report", "https://orders/report"] {
        assert_eq!(Object::parse(wrong), None, "{wrong}");
    }
}

fn event(bucket: &str, key: &str) -> String {
    format!(
        r#"{{"Records":[{{"eventVersion":"2.1","eventSource":"aws:s3","eventTime":"2026-01-01T00:00:00.000Z",
        "eventName":"ObjectCreated:Put","s3":{{"bucket":{{"name":"{bucket}"}},
        "object":{{"key":"{key}","size":5,"versionId":"v1","sequencer":"0055"}}}}}}]}}"#
    )
}

fn message(id: &str, body: Option<String>) -> ParkedMessage {
    ParkedMessage {
        queue: "events".to_owned(),
        message_id: id.to_owned(),
        body,
        reason: Reason::BucketUnknown,
        detail: "no rule has the source bucket".to_owned(),
        since: Some(moment(0)),
        passed: false,
    }
}

#[test]
fn what_the_dead_letter_queue_has_is_forgotten_when_that_forgets_it() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(directory.path()).unwrap();
    ledger.park_message(&message("kept here alone", Some(event("orders", "report")))).unwrap();
    ledger.park_message(&ParkedMessage { passed: true, ..message("passed", None) }).unwrap();
    let days = |days| moment(0) + time::Duration::days(days);
    forget_passed(&ledger, days(13)).unwrap();
    assert_eq!(counts(&ledger), [(String::new(), 2)]);
    forget_passed(&ledger, days(15)).unwrap();
    assert_eq!(counts(&ledger), [(String::new(), 1)]);
}

fn counts(ledger: &Ledger) -> Vec<(String, i64)> {
    ledger.parked_counts().unwrap().into_iter().map(|((rule, _), count)| (rule, count)).collect()
}

#[test]
fn a_message_becomes_tasks_when_a_rule_can_act_on_it_and_stays_as_long_as_none_can() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(directory.path()).unwrap();
    ledger.park_message(&message("known", Some(event("orders", "report")))).unwrap();
    ledger.park_message(&message("unknown", Some(event("others", "report")))).unwrap();
    ledger.park_message(&message("garbled", Some("no json".to_owned()))).unwrap();
    ledger.park_message(&message("elsewhere", None)).unwrap();
    let none = Ruleset::new(&rules(&[("others", "third", "replicas")]));
    let retried = take_up(&ledger, &none, &Filter::default()).unwrap();
    assert_eq!(retried, Retried { messages: 4, elsewhere: 1, ..Retried::default() });
    assert_eq!(counts(&ledger), [(String::new(), 4)]);
    let ruleset = Ruleset::new(&rules(&[("orders", "orders", "replicas"), ("copies", "orders", "second")]));
    let retried = take_up(&ledger, &ruleset, &Filter::default()).unwrap();
    assert_eq!(retried, Retried { tasks: 2, unwanted: 0, messages: 4, readable: 1, elsewhere: 1 });
    assert_eq!(counts(&ledger), [(String::new(), 3), ("copies".to_owned(), 1), ("orders".to_owned(), 1)]);
}

#[test]
fn what_no_rule_wants_any_more_is_counted_apart() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(directory.path()).unwrap();
    ledger.park(&parked("orders", "report", Reason::DstBucketNotFound)).unwrap();
    let ruleset = Ruleset::new(&rules(&[("orders", "orders", "elsewhere")]));
    let retried = take_up(&ledger, &ruleset, &Filter::default()).unwrap();
    assert_eq!(retried, Retried { tasks: 1, unwanted: 1, ..Retried::default() });
}

#[test]
fn a_filter_that_means_one_rule_leaves_messages_alone() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(directory.path()).unwrap();
    ledger.park_message(&message("known", Some(event("orders", "report")))).unwrap();
    let ruleset = Ruleset::new(&rules(&[("orders", "orders", "replicas")]));
    let filter = Filter { rule: Some("orders".to_owned()), ..Filter::default() };
    assert_eq!(take_up(&ledger, &ruleset, &filter).unwrap(), Retried::default());
    let filter = Filter { reason: Some(Reason::BucketUnknown), ..Filter::default() };
    assert_eq!(take_up(&ledger, &ruleset, &filter).unwrap().tasks, 1);
}
