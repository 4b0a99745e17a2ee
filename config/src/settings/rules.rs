//! Rules: what goes where, and how.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use replicator_core::object::Bucket;
use replicator_core::rule::{
    Acl, BucketRef, History, RateLimits, Replicas, Rule, UnmanagedObjects, Verify,
};

use super::accounts::{self, Account};
use super::queues::{self, Queue};
use super::{encryption, filter, topology, unavailable};
use crate::aws_names::{self, one_of};
use crate::diagnostics::Problems;
use crate::reader::{Field, Scalar};
use crate::{schema, units};

/// A rule beside the text it came from, for problems that only show between rules.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub(super) written: &'a schema::Rule,
    pub(super) rule: Rule,
}

/// Checks every rule, alone and against the others.
pub(super) fn settle(
    written: &Field<Vec<Field<schema::Rule>>>,
    (accounts, queues): (&BTreeMap<String, Account>, &[Queue]),
    problems: &mut Problems<'_>,
) -> Vec<Rule> {
    let written: Vec<_> = written
        .present_value()
        .into_iter()
        .flatten()
        .filter_map(Field::present_value)
        .collect();
    refuse_shared_ids(&written, problems);
    let drafts: Vec<_> = written
        .into_iter()
        .filter_map(|written| {
            Some(Draft {
                written,
                rule: rule(written, (accounts, queues), problems)?,
            })
        })
        .collect();
    topology::check(&drafts, accounts, problems);
    drafts.into_iter().map(|draft| draft.rule).collect()
}

// https://docs.aws.amazon.com/AmazonS3/latest/API/API_ReplicationRule.html
const ID_CHARS_MAX: usize = 255;

fn refuse_shared_ids(rules: &[&schema::Rule], problems: &mut Problems<'_>) {
    for (index, rule) in rules.iter().enumerate() {
        let Some(id) = rule.id.present_value() else {
            continue;
        };
        if rules
            .iter()
            .take(index)
            .any(|other| other.id.present_value() == Some(id))
        {
            problems.add_problem(
                &rule.id.spot,
                format!("another rule has the id {id:?}; the ledger tells them apart by it"),
            );
        }
    }
}

/// Checks one rule; `None` when it lacks what the checks between rules are about.
fn rule(
    written: &schema::Rule,
    (accounts, queues): (&BTreeMap<String, Account>, &[Queue]),
    problems: &mut Problems<'_>,
) -> Option<Rule> {
    unavailable::refuse(written, problems);
    written
        .id
        .require_present("give the rule a name of its own", problems);
    let source = written.source.require_present(
        "write source = { account = \"…\", bucket = \"…\" }",
        problems,
    );
    let destination = written.destination.require_present(
        "write destination = { account = \"…\", bucket = \"…\" }",
        problems,
    );
    let source_place =
        source.and_then(|at| resolve_bucket(&at.account, &at.bucket, accounts, problems));
    let destination_place =
        destination.and_then(|at| resolve_bucket(&at.account, &at.bucket, accounts, problems));
    let work_queue = work_queue(written, (accounts, queues), problems);
    Some(Rule {
        enabled: flag(&written.enabled, true),
        priority: written.priority.present_value().copied().unwrap_or(0),
        storage_class: destination.and_then(|at| {
            at.storage_class
                .parse_with(problems, |text| aws_names::storage_class(text))
        }),
        rewrite: destination.and_then(|at| at.prefix.parse_with(problems, |text| rewrite(text))),
        filter: filter::settle(&written.filter, problems),
        history: word_or_default(
            &written.history,
            &[("exact", History::Exact), ("latest", History::Latest)],
            problems,
        ),
        since: written
            .since
            .parse_with(problems, |Scalar(text)| units::parse_moment(text)),
        work_queue,
        unmanaged_objects: word_or_default(
            &written.unmanaged_objects,
            &[
                ("overwrite", UnmanagedObjects::Overwrite),
                ("keep", UnmanagedObjects::Keep),
            ],
            problems,
        ),
        delete_markers: flag(&written.delete_markers, false),
        version_deletes: flag(&written.version_deletes, false),
        version_delete_delay: written
            .version_delete_delay
            .parse_with(problems, |text| delay(text))
            .unwrap_or(VERSION_DELETE_DELAY_DEFAULT),
        version_deletes_per_hour: written
            .version_deletes_per_hour
            .parse_with(problems, |number| per_hour(*number))
            .unwrap_or(VERSION_DELETES_PER_HOUR_DEFAULT),
        acl: word_or_default(
            &written.acl,
            &[
                ("destination-owner", Acl::DestinationOwner),
                ("copy", Acl::Copy),
            ],
            problems,
        ),
        replicas: word_or_default(
            &written.replicas,
            &[("skip", Replicas::Skip), ("replicate", Replicas::Replicate)],
            problems,
        ),
        verify: word_or_default(
            &written.verify,
            &[("auto", Verify::Auto), ("always", Verify::Always)],
            problems,
        ),
        encryption: encryption::settle(&written.encryption, problems),
        sse_kms_objects: flag(&written.sse_kms_objects, false),
        limits: resolve_limits(&written.limits, problems),
        destination_limits: destination.map_or_else(RateLimits::default, |at| {
            resolve_limits(&at.limits, problems)
        }),
        // Last, so that what is missing here keeps nothing above from being checked.
        id: written.id.parse_with(problems, |text| id(text))?,
        source: source_place?,
        destination: destination_place?,
    })
}

/// Returns the rule's own work queue, or else the one that all queues name. One of its own is
/// reached as the queue that names it too, or else as the first.
fn work_queue(
    written: &schema::Rule,
    (accounts, queues): (&BTreeMap<String, Account>, &[Queue]),
    problems: &mut Problems<'_>,
) -> Option<String> {
    if let Some(own) = written.work_queue.present_value() {
        let naming = queues
            .iter()
            .find(|queue| queue.work_queue.as_ref() == Some(own))
            .or(queues.first());
        let account = naming.and_then(|queue| accounts.get(&queue.account));
        queues::refuse_elsewhere(&written.work_queue, account, problems);
        return written
            .work_queue
            .parse_with(problems, |text| aws_names::work_queue_url(text));
    }
    let (first, others) = queues.split_first()?;
    if others
        .iter()
        .any(|queue| queue.work_queue != first.work_queue)
    {
        let message = "the queues name different work queues; name the one that this rule's work goes through";
        problems.add_problem(&written.work_queue.spot, message);
    }
    first.work_queue.clone()
}

fn resolve_bucket(
    account: &Field<String>,
    bucket: &Field<String>,
    accounts: &BTreeMap<String, Account>,
    problems: &mut Problems<'_>,
) -> Option<BucketRef> {
    let account = accounts::resolve_account_name(account, accounts, problems);
    bucket.require_present("name the bucket", problems);
    let bucket = bucket.parse_with(problems, |text| {
        Bucket::try_from(text.as_str())
            .map_err(|error| format!("{error}; write the bare name, without s3:// or arn:"))
    });
    Some(BucketRef {
        account: account?,
        bucket: bucket?,
    })
}

fn id(text: &str) -> Result<String, String> {
    match text.chars().count() {
        0 => Err("empty; give the rule a name of its own".to_owned()),
        1..=ID_CHARS_MAX => Ok(text.to_owned()),
        long => Err(format!(
            "has {long} characters, and {ID_CHARS_MAX} is the most; shorten it"
        )),
    }
}

fn rewrite(text: &str) -> Result<String, String> {
    if text.chars().any(char::is_control) {
        return Err(format!(
            "{text:?} has a control character, which S3 can't list; remove it"
        ));
    }
    filter::key_part(text)
}

fn resolve_limits(written: &Field<schema::Limits>, problems: &mut Problems<'_>) -> RateLimits {
    let Some(written) = written.present_value() else {
        return RateLimits::default();
    };
    RateLimits {
        bandwidth_bytes_per_second: written
            .bandwidth
            .parse_with(problems, |text| units::parse_bandwidth(text)),
        requests_per_second: written
            .requests_per_second
            .parse_with(problems, |number| requests(*number)),
    }
}

// Time to notice deletes that no user made, and to stop the daemon.
const VERSION_DELETE_DELAY_DEFAULT: Duration = Duration::from_secs(15 * 60);

// SQS hides a message for so long at most, and it is hidden for a while before:
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html
const VERSION_DELETE_DELAY_MAX: Duration = Duration::from_secs(11 * 60 * 60);

// What a mistake or a forged message costs in an hour stays far below what a bucket holds.
const VERSION_DELETES_PER_HOUR_DEFAULT: NonZeroU32 = NonZeroU32::MIN.saturating_add(999);

fn delay(text: &str) -> Result<Duration, String> {
    units::parse_time_span(text).and_then(|delay| match delay <= VERSION_DELETE_DELAY_MAX {
        true => Ok(delay),
        false => Err(format!(
            "{text:?} is more than 11h, and SQS hides no message for longer; shorten it"
        )),
    })
}

fn per_hour(number: i64) -> Result<NonZeroU32, String> {
    positive_u32(
        number,
        "zero would remove nothing; write version_deletes = false for that",
    )
}

fn requests(number: i64) -> Result<NonZeroU32, String> {
    positive_u32(number, units::NO_RATE)
}

fn positive_u32(number: i64, zero: &str) -> Result<NonZeroU32, String> {
    let number =
        u32::try_from(number).map_err(|_| format!("{number} is outside 1 to {}", u32::MAX))?;
    NonZeroU32::new(number).ok_or_else(|| zero.to_owned())
}

fn flag(written: &Field<bool>, default: bool) -> bool {
    written.present_value().copied().unwrap_or(default)
}

/// Picks what a word stands for; the first is the default.
fn word_or_default<T: Clone>(
    written: &Field<String>,
    words: &[(&str, T); 2],
    problems: &mut Problems<'_>,
) -> T {
    let [(_, default), _] = words;
    written
        .parse_with(problems, |text| one_of(text, words))
        .unwrap_or_else(|| default.clone())
}
