//! Rules: which objects go where, and how they are encrypted there.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use replicator_core::object::Bucket;
use replicator_core::rule::{BucketRef, Encryption, RateLimits, ReplicaKey, Rule};
use strum::{EnumString, VariantNames};

use super::accounts::{self, Account};
use super::queues::{self, Queue};
use super::{key_part, resolve_filter, topology};
use crate::diagnostics::Problems;
use crate::schema::Field;
use crate::values::NO_RATE;
use crate::{schema, values};

/// A rule beside the text it came from, for problems that only show between rules.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub(super) written: &'a schema::Rule,
    pub(super) rule: Rule,
}

/// Checks every rule, alone and against the others.
pub(super) fn resolve(
    written: &Field<Vec<Field<schema::Rule>>>,
    (accounts, queues): (&BTreeMap<String, Account>, &[Queue]),
    problems: &mut Problems<'_>,
) -> Vec<Rule> {
    let written = written.elements();
    refuse_shared_ids(&written, problems);
    let mut drafts = Vec::new();
    for written in written {
        let rule = rule(written, (accounts, queues), problems);
        drafts.extend(rule.map(|rule| Draft { written, rule }));
    }
    topology::check(&drafts, accounts, problems);
    drafts.into_iter().map(|draft| draft.rule).collect()
}

fn refuse_shared_ids(rules: &[&schema::Rule], problems: &mut Problems<'_>) {
    let ids: Vec<_> = rules.iter().map(|rule| rule.id.present_value()).collect();
    for (index, (rule, id)) in rules.iter().zip(&ids).enumerate() {
        if let Some(text) = id
            && ids.iter().take(index).any(|other| other == id)
        {
            let message =
                format!("another rule has the id {text:?}; the ledger tells them apart by it");
            problems.add_problem(&rule.id.spot, message);
        }
    }
}

/// Checks one rule; `None` when it lacks what the checks between rules are about.
fn rule(
    written: &schema::Rule,
    (accounts, queues): (&BTreeMap<String, Account>, &[Queue]),
    problems: &mut Problems<'_>,
) -> Option<Rule> {
    let id = written
        .id
        .require_with("give the rule a name of its own", problems, id);
    let remedy = "write source = { account = \"…\", bucket = \"…\" }";
    let source = written.source.require_present(remedy, problems);
    let source = source.and_then(|at| bucket_ref(&at.account, &at.bucket, accounts, problems));
    let remedy = "write destination = { account = \"…\", bucket = \"…\" }";
    let at = written.destination.require_present(remedy, problems);
    let destination = at.and_then(|at| bucket_ref(&at.account, &at.bucket, accounts, problems));
    refuse_acl_copies(&written.acl, problems);
    let delay = written.version_delete_delay.parse_with(problems, delay);
    let per_hour = written
        .version_deletes_per_hour
        .parse_with(problems, per_hour);
    let around = (accounts, queues);
    let work_queue = work_queue(written, around, problems);
    Some(Rule {
        enabled: written.enabled.value_or(true),
        priority: written.priority.value_or(0),
        storage_class: at
            .and_then(|at| at.storage_class.parse_with(problems, values::storage_class)),
        rewrite: at.and_then(|at| at.prefix.parse_with(problems, rewrite)),
        filter: resolve_filter(&written.filter, problems),
        history: word_or_default(&written.history, problems),
        since: written.since.parse_with(problems, values::parse_moment),
        backfill_queue: backfill_queue(written, work_queue.as_ref(), around, problems),
        work_queue,
        reconcile: written.reconcile.parse_with(problems, interval),
        unmanaged_objects: word_or_default(&written.unmanaged_objects, problems),
        delete_markers: written.delete_markers.value_or(false),
        version_deletes: written.version_deletes.value_or(false),
        version_delete_delay: delay.unwrap_or(VERSION_DELETE_DELAY_DEFAULT),
        version_deletes_per_hour: per_hour.unwrap_or(VERSION_DELETES_PER_HOUR_DEFAULT),
        replicas: word_or_default(&written.replicas, problems),
        verify: word_or_default(&written.verify, problems),
        encryption: encryption(&written.encryption, problems),
        sse_kms_objects: written.sse_kms_objects.value_or(false),
        client_side_keys: key_map(&written.client_side_keys, values::kms_key, problems),
        limits: limits(&written.limits, problems),
        destination_limits: at.map_or_else(RateLimits::default, |at| limits(&at.limits, problems)),
        // Last, so that what is missing here keeps nothing above from being checked.
        id: id?,
        source: source?,
        destination: destination?,
    })
}

/// Returns the rule's own work queue, or else the one that all queues name.
fn work_queue(
    written: &schema::Rule,
    (accounts, queues): (&BTreeMap<String, Account>, &[Queue]),
    problems: &mut Problems<'_>,
) -> Option<String> {
    let field = &written.work_queue;
    if let Some(own) = field.present_value() {
        let naming = queues::naming(queues, own);
        let account = naming.and_then(|queue| accounts.get(&queue.account));
        queues::refuse_elsewhere(field, account, problems);
        return field.parse_with(problems, values::work_queue_url);
    }
    let named = queues.iter().map(|queue| &queue.work_queue);
    let message =
        "the queues name different work queues; name the one that this rule's work goes through";
    same_of_all(named, (field, message), problems)
}

/// Returns the rule's own backfill queue, or else that of the queues, if its work queue is theirs.
fn backfill_queue(
    written: &schema::Rule,
    work_queue: Option<&String>,
    (accounts, queues): (&BTreeMap<String, Account>, &[Queue]),
    problems: &mut Problems<'_>,
) -> Option<String> {
    let field = &written.backfill_queue;
    if field.is_absent() {
        let named = queues.iter().map(|queue| &queue.backfill_queue);
        let message = "the queues name different backfill queues; name the one that this rule's hints wait in";
        return match written.work_queue.is_absent() {
            true => same_of_all(named, (field, message), problems),
            false => None,
        };
    }
    let Some(work_queue) = work_queue else {
        field.refuse_present(problems, queues::BESIDE_NONE);
        return None;
    };
    let account = queues::naming(queues, work_queue).and_then(|queue| accounts.get(&queue.account));
    queues::refuse_elsewhere(field, account, problems);
    let own = field.parse_with(problems, values::work_queue_url);
    if own.as_ref() == Some(work_queue) {
        let message = "is the work queue itself; name a queue of its own, or leave it out";
        problems.add_problem(&field.spot, message);
    }
    own
}

/// Returns what all queues name; a rule has to say it where they differ.
fn same_of_all<'q>(
    mut named: impl Iterator<Item = &'q Option<String>>,
    (field, message): (&Field<String>, &str),
    problems: &mut Problems<'_>,
) -> Option<String> {
    let first = named.next()?;
    if named.any(|other| other != first) {
        problems.add_problem(&field.spot, message);
    }
    first.clone()
}

fn bucket_ref(
    account: &Field<String>,
    bucket: &Field<String>,
    accounts: &BTreeMap<String, Account>,
    problems: &mut Problems<'_>,
) -> Option<BucketRef> {
    let account = accounts::resolve_account_name(account, accounts, problems);
    let bucket = bucket.require_with("name the bucket", problems, |text: &str| {
        Bucket::try_from(text)
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

// https://docs.aws.amazon.com/AmazonS3/latest/API/API_ReplicationRule.html
const ID_CHARS_MAX: usize = 255;

fn rewrite(text: &str) -> Result<String, String> {
    if text.chars().any(char::is_control) {
        return Err(format!(
            "{text:?} has a control character, which S3 can't list; remove it"
        ));
    }
    key_part(text)
}

fn limits(written: &Field<schema::Limits>, problems: &mut Problems<'_>) -> RateLimits {
    let Some(written) = written.present_value() else {
        return RateLimits::default();
    };
    let requests = |number: &i64| positive_u32(*number, NO_RATE);
    RateLimits {
        bandwidth_bytes_per_second: written
            .bandwidth
            .parse_with(problems, values::parse_bandwidth),
        requests_per_second: written.requests_per_second.parse_with(problems, requests),
    }
}

// Time to notice deletes that no user made, and to stop the daemon.
const VERSION_DELETE_DELAY_DEFAULT: Duration = Duration::from_secs(15 * 60);

// SQS hides a message for so long at most, and it is hidden for a while before:
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html
const VERSION_DELETE_DELAY_MAX: Duration = Duration::from_secs(11 * 60 * 60);

// What a mistake or a forged message costs in an hour stays far below what a bucket holds.
const VERSION_DELETES_PER_HOUR_DEFAULT: NonZeroU32 = NonZeroU32::MIN.saturating_add(999);

fn interval(text: &str) -> Result<Duration, String> {
    let interval = values::parse_time_span(text)?;
    if interval < RECONCILE_INTERVAL_MIN {
        return Err(format!(
            "{text:?} is less than 1h, and both buckets are listed each time; lengthen it"
        ));
    }
    Ok(interval)
}

// A round of a large bucket takes longer, and the next begins when it ends.
const RECONCILE_INTERVAL_MIN: Duration = Duration::from_secs(60 * 60);

fn delay(text: &str) -> Result<Duration, String> {
    let delay = values::parse_time_span(text)?;
    if delay > VERSION_DELETE_DELAY_MAX {
        return Err(format!(
            "{text:?} is more than 11h, and SQS hides no message for longer; shorten it"
        ));
    }
    Ok(delay)
}

fn per_hour(number: &i64) -> Result<NonZeroU32, String> {
    let zero = "zero would remove nothing; write version_deletes = false for that";
    positive_u32(*number, zero)
}

fn positive_u32(number: i64, zero: &str) -> Result<NonZeroU32, String> {
    let number =
        u32::try_from(number).map_err(|_| format!("{number} is outside 1 to {}", u32::MAX))?;
    NonZeroU32::new(number).ok_or_else(|| zero.to_owned())
}

fn word_or_default<T: FromStr + VariantNames + Default>(
    written: &Field<String>,
    problems: &mut Problems<'_>,
) -> T {
    written
        .parse_with(problems, values::word)
        .unwrap_or_default()
}

#[derive(Default, PartialEq, EnumString, VariantNames)]
#[strum(serialize_all = "kebab-case")]
enum Acl {
    #[default]
    DestinationOwner,
    Copy,
}

/// Refuses the one value that this version has no support for.
fn refuse_acl_copies(written: &Field<String>, problems: &mut Problems<'_>) {
    if word_or_default::<Acl>(written, problems) == Acl::Copy {
        let message = "\"copy\" is not available in this version; use \"destination-owner\"";
        problems.add_problem(&written.spot, message);
    }
}

/// Checks the encryption of a rule; without one, replicas are encrypted as their source is.
fn encryption(written: &Field<schema::Encryption>, problems: &mut Problems<'_>) -> Encryption {
    let as_source = Encryption::Same {
        key_map: BTreeMap::new(),
    };
    let Some(written) = written.present_value() else {
        return as_source;
    };
    let key = written.key.parse_with(problems, replica_key);
    let key_map = key_map(&written.key_map, values::kms_key_or_alias, problems);
    let mode = if written.mode.is_absent() {
        Some(EncryptionMode::Same)
    } else {
        written.mode.parse_with(problems, values::word)
    };
    let Some(mode) = mode else { return as_source };
    refuse_unused_keys(mode, written, problems);
    let bucket_key = written.bucket_key.value_or(true);
    match (mode, key) {
        (EncryptionMode::Same, _) => Encryption::Same { key_map },
        (EncryptionMode::BucketDefault, _) => Encryption::BucketDefault,
        (EncryptionMode::S3, _) => Encryption::S3,
        (EncryptionMode::Kms, Some(key)) => Encryption::Kms {
            key,
            key_map,
            bucket_key,
        },
        (EncryptionMode::Dsse, Some(ReplicaKey::Named(key))) => Encryption::Dsse { key },
        (EncryptionMode::Dsse, Some(ReplicaKey::Related)) => {
            let message = "\"related\" is for mode \"kms\"; give the ARN of the destination's key";
            problems.add_problem(&written.key.spot, message);
            as_source
        }
        (EncryptionMode::Kms | EncryptionMode::Dsse, None) => as_source,
    }
}

fn replica_key(text: &str) -> Result<ReplicaKey, String> {
    match text {
        RELATED => Ok(ReplicaKey::Related),
        _ => values::kms_key_or_alias(text).map(ReplicaKey::Named),
    }
}

/// Stands for the replica of the source's multi-Region key.
const RELATED: &str = "related";

#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "kebab-case")]
enum EncryptionMode {
    Same,
    BucketDefault,
    S3,
    Kms,
    Dsse,
}

/// Refuses what a mode has no use for, and reports what it needs.
fn refuse_unused_keys(
    mode: EncryptionMode,
    written: &schema::Encryption,
    problems: &mut Problems<'_>,
) {
    if matches!(mode, EncryptionMode::Kms | EncryptionMode::Dsse) {
        let remedy = "give the ARN of the destination's key";
        written.key.require_present(remedy, problems);
    } else {
        let message = "only modes \"kms\" and \"dsse\" take a key; change the mode or leave it out";
        written.key.refuse_present(problems, message);
    }
    if !matches!(mode, EncryptionMode::Same | EncryptionMode::Kms) {
        let message = "only modes \"same\" and \"kms\" take a key_map; leave it out";
        written.key_map.refuse_present(problems, message);
    }
    if mode != EncryptionMode::Kms {
        let message = "only mode \"kms\" takes bucket_key; leave it out";
        written.bucket_key.refuse_present(problems, message);
    }
}

/// Reads keys of the destination by those of the source, which are ARNs of keys, because that is
/// what S3 reports of an object.
fn key_map(
    written: &Field<BTreeMap<String, Field<String>>>,
    destination_key: impl Fn(&str) -> Result<String, String>,
    problems: &mut Problems<'_>,
) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    for (source, destination) in written.present_value().into_iter().flatten() {
        let source = values::kms_key(source)
            .map_err(|message| problems.add_problem(&destination.spot, message))
            .ok();
        let destination = destination.parse_with(problems, &destination_key);
        map.extend(source.zip(destination));
    }
    map
}
