//! Objects: whether those of a rule can be listed and read at its source, and what its destination
//! holds; and the KMS keys that a rule names for them: whether each is there and can be used. Nothing
//! is written, and that the principal may use a key through S3 alone no question shows.

use aws_sdk_s3::operation::get_object::builders::GetObjectFluentBuilder;
use aws_sdk_s3::operation::list_object_versions::ListObjectVersionsOutput;
use aws_sdk_s3::types::ObjectVersion;
use replicator_config::{Account, Service, nearest_name};
use replicator_core::object::Key;
use replicator_core::rule::{History, Rule};

use super::access::{DocumentSet, Needed, ask};
use super::buckets::{Asked, BucketPlace, unread};
use super::finding::{CheckName, Finding, Fix, Section, Severity, cli_options};
use crate::kms::{KeyReport, KeySide, KeyState, KeyUse};
use crate::s3::accounts::AccountClients;
use crate::s3::accounts::error::{Refusal, RefusalKind};

/// A version of an object that a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sample {
    key: String,
    version: String,
}

// One page: a rule that takes none of so many is looked at no further.
const SAMPLED_MAX: i32 = 1_000;

/// Reads one object of a rule as the daemon does, by its version.
pub(super) async fn try_source(asked: Asked<'_>, rule: &Rule, section: &mut Section) {
    let place = asked.0;
    let request = place.clients.s3.list_object_versions();
    let request = request
        .bucket(place.bucket)
        .prefix(&rule.filter.prefix)
        .max_keys(SAMPLED_MAX);
    let listed = match ask(request.send()).await {
        Ok(listed) => listed,
        Err(refusal) => return section.add([unlisted(asked, &refusal, CheckName::SourceList)]),
    };
    section.fine(format!("{} can be listed", place.url()));
    let Some((sample, refusal)) = find_sample(place, rule, listed.versions()).await else {
        let near = near_prefix(place, &rule.filter.prefix).await;
        return section.add([no_sample(place, rule, &listed, near.as_deref())]);
    };
    let reads = read_sample(asked, rule, (&sample, refusal)).await;
    if reads.is_empty() {
        let url = place.url();
        section.fine(format!("{url}/{} can be read with its tags", sample.key));
    }
    section.add(reads);
}

// Each costs up to three requests; the objects of a bucket are mostly encrypted and tagged alike.
const CANDIDATES_MAX: usize = 16;

/// Finds a version that the rule takes, and reads its first byte. What no principal could read says
/// nothing: what is gone since, archived, or encrypted under its client's key.
async fn find_sample(
    place: BucketPlace<'_>,
    rule: &Rule,
    listed: &[ObjectVersion],
) -> Option<(Sample, Option<Refusal>)> {
    let candidates = listed.iter().filter(|version| may_take(rule, version));
    for version in candidates.take(CANDIDATES_MAX) {
        let Some((key, id)) = version.key().zip(version.version_id()) else {
            continue;
        };
        let sample = Sample {
            key: key.to_owned(),
            version: id.to_owned(),
        };
        if !takes(place, rule, &sample).await {
            continue;
        }
        let refusal = ask(first_byte(place, key).version_id(id).send())
            .await
            .err();
        if refusal
            .as_ref()
            .is_none_or(|refusal| !is_of_object(refusal))
        {
            return Some((sample, refusal));
        }
    }
    None
}

fn first_byte(place: BucketPlace<'_>, key: &str) -> GetObjectFluentBuilder {
    let get = place.clients.s3.get_object().bucket(place.bucket).key(key);
    get.range("bytes=0-0")
}

/// Says whether a request was refused for what the object is, as happens to one that may send it.
fn is_of_object(refusal: &Refusal) -> bool {
    refusal.kind == RefusalKind::Inapplicable
}

/// Says whether a rule takes a version, as far as a list tells.
fn may_take(rule: &Rule, version: &ObjectVersion) -> bool {
    let key = version.key().and_then(|key| Key::try_from(key).ok());
    let is_of_rule = key.is_some_and(|key| rule.admits_key(&key).is_ok());
    let size_bytes = version.size().unwrap_or_default().unsigned_abs();
    let times = rule.since.zip(version.last_modified());
    let is_earlier = times.is_some_and(|(since, at)| at.secs() < since.unix_timestamp());
    // An empty object has no first byte.
    is_of_rule && size_bytes > 0 && rule.filter.admits_size(size_bytes).is_ok() && !is_earlier
}

/// Says whether a rule takes a version with its encryption and its tags. One that does not tell
/// these counts as taken: that it does not is what is to be found.
async fn takes(place: BucketPlace<'_>, rule: &Rule, sample: &Sample) -> bool {
    let s3 = &place.clients.s3;
    if !rule.sse_kms_objects {
        let head = s3.head_object().bucket(place.bucket).key(&sample.key);
        let head = ask(head.version_id(&sample.version).send()).await;
        let encryption = head.ok().and_then(|head| head.server_side_encryption);
        if encryption.is_some_and(|encryption| encryption.as_str().starts_with("aws:kms")) {
            return false;
        }
    }
    if !rule.filter.needs_tags() {
        return true;
    }
    let tags = s3
        .get_object_tagging()
        .bucket(place.bucket)
        .key(&sample.key);
    let tags = ask(tags.version_id(&sample.version).send()).await;
    tags.map_or(true, |answer| {
        let tags = answer.tag_set.into_iter().map(|tag| (tag.key, tag.value));
        rule.filter.admits_tags(&tags.collect()).is_ok()
    })
}

// A prefix of more levels is looked at no further.
const LEVELS_MAX: usize = 8;

/// Finds a prefix under which there are objects near one under which there is none: the first of its
/// levels that is not there is compared with what is there instead.
async fn near_prefix(place: BucketPlace<'_>, prefix: &str) -> Option<String> {
    let mut start = String::new();
    for level in prefix.split_inclusive('/').take(LEVELS_MAX) {
        let there = list_prefixes(place, &start).await?;
        let next = format!("{start}{level}");
        if there.iter().any(|one| one.starts_with(&next)) {
            start = next;
            continue;
        }
        let names = there.iter().filter_map(|one| one.strip_prefix(&start));
        let near = format!("{start}{}", nearest_name(level, names)?);
        let rest = prefix.strip_prefix(&next).unwrap_or_default();
        let whole = format!("{near}{rest}");
        let is_there = list_prefixes(place, &whole)
            .await
            .is_some_and(|found| !found.is_empty());
        return Some(if is_there { whole } else { near });
    }
    None
}

/// Lists what comes next after a prefix: up to a slash, or keys that have no more.
async fn list_prefixes(place: BucketPlace<'_>, prefix: &str) -> Option<Vec<String>> {
    let request = place.clients.s3.list_objects_v2();
    let request = request
        .bucket(place.bucket)
        .prefix(prefix)
        .delimiter("/")
        .max_keys(SAMPLED_MAX);
    let listed = ask(request.send()).await.ok()?;
    let folders = listed.common_prefixes.unwrap_or_default().into_iter();
    let keys = listed.contents.unwrap_or_default().into_iter();
    let folders = folders.filter_map(|folder| folder.prefix);
    Some(
        folders
            .chain(keys.filter_map(|object| object.key))
            .collect(),
    )
}

fn no_sample(
    place: BucketPlace<'_>,
    rule: &Rule,
    listed: &ListObjectVersionsOutput,
    near: Option<&str>,
) -> Finding {
    let filter = &rule.filter;
    let mut candidates = listed.versions().iter().filter(|one| may_take(rule, one));
    let among = if candidates.nth(CANDIDATES_MAX).is_some() {
        " among the first 16 versions of such a key and size"
    } else if listed.is_truncated() == Some(true) {
        " among the first 1,000 versions"
    } else {
        ""
    };
    let what = format!(
        "there is no object with bytes that the rule takes{among}: prefix {:?}, suffix {:?}",
        filter.prefix, filter.suffix
    );
    let why = "whether objects can be read is not known, and the filter may be a slip";
    let finding = Finding::problem(CheckName::SourceObjects, place.url(), what, why).into_warning();
    let Some(near) = near else {
        let text = "compare the filter with the bucket's keys; if objects are still to come, this \
             is no fault";
        return finding.fixed_by([Fix::advice(text)]);
    };
    let text = "only a suggestion: it is the nearest prefix under which there are objects; if those \
         of this one are still to come, this is no fault";
    let near = Fix::Config {
        line: None,
        key: "filter.prefix".to_owned(),
        value: format!("{near:?}"),
    };
    finding.fixed_by([near, Fix::advice(text)])
}

fn unlisted((place, attributes): Asked<'_>, refusal: &Refusal, check: CheckName) -> Finding {
    let finding = unread((place, attributes), refusal, check);
    if refusal.leaves_open() {
        return finding;
    }
    Finding {
        severity: Severity::Problem,
        why: "the daemon goes by the list of versions: its tasks are parked".to_owned(),
        ..finding
    }
}

/// Reads what the daemon reads of a version beside its first byte: its tags, and its lock if there is
/// one.
async fn read_sample(
    asked: Asked<'_>,
    rule: &Rule,
    (sample, refusal): (&Sample, Option<Refusal>),
) -> Vec<Finding> {
    let (place, attributes) = asked;
    let s3 = &place.clients.s3;
    let (bucket, key, version) = (place.bucket, &sample.key, &sample.version);
    let tags = s3.get_object_tagging().bucket(bucket).key(key);
    let tags = ask(tags.version_id(version).send()).await.err();
    let mut reads = vec![
        (CheckName::SourceRead, "s3:GetObjectVersion", refusal),
        (CheckName::SourceTags, "s3:GetObjectVersionTagging", tags),
    ];
    if rule.history == History::Latest {
        let newest = ask(first_byte(place, key).send()).await.err();
        reads.push((CheckName::SourceRead, "s3:GetObject", newest));
    }
    if attributes.lock.as_ref().is_ok_and(|lock| lock.is_enabled) {
        let retention = s3.get_object_retention().bucket(bucket).key(key);
        let retention = ask(retention.version_id(version).send()).await.err();
        let hold = s3.get_object_legal_hold().bucket(bucket).key(key);
        let hold = ask(hold.version_id(version).send()).await.err();
        reads.push((CheckName::SourceLock, "s3:GetObjectRetention", retention));
        reads.push((CheckName::SourceLock, "s3:GetObjectLegalHold", hold));
    }
    let refused = reads.into_iter().filter_map(|(check, action, refusal)| {
        let prefix = rule.filter.prefix.as_str();
        let found = refused_read(asked, prefix, (check, action), &refusal?)?;
        Some(Finding {
            place: format!("s3://{bucket}/{key}?versionId={version}"),
            ..found
        })
    });
    refused.collect()
}

/// Judges a refused read of an object.
fn refused_read(
    (place, attributes): Asked<'_>,
    prefix: &str,
    (check, action): (CheckName, &str),
    refusal: &Refusal,
) -> Option<Finding> {
    if is_of_object(refusal) {
        return None;
    }
    let why = if check == CheckName::SourceLock {
        "S3 leaves the lock out of its answers then: replicas are written without it"
    } else if check == CheckName::SourceTags {
        "S3 leaves the number of tags out of its answers then: objects look as if they had none"
    } else if check == CheckName::DestinationRead {
        "what a key holds at the destination is read before it is written: tasks are parked"
    } else {
        "no object can be copied: every task is parked"
    };
    let fix = place.fixes_of_objects((attributes, prefix), refusal, action);
    let found = Finding::problem(check, place.url(), refusal.describe(action), why);
    let found = found.fixed_by(fix).weighed_by(refusal);
    // The daemon itself reads the lock from headers.
    let is_unknown = check == CheckName::SourceLock && refusal.kind == RefusalKind::Unimplemented;
    Some(match is_unknown {
        true => found.into_unasked(),
        false => found,
    })
}

/// A name that no object has; what S3 answers shows whether absent keys can be told from denied ones.
pub(super) const RESERVED: &str = ".s3-replicator-probe";

/// Reads at the destination as the daemon does.
pub(super) async fn try_destination(asked: Asked<'_>, rule: &Rule, section: &mut Section) {
    let place = asked.0;
    let prefix = rule.rewrite.as_deref().unwrap_or(&rule.filter.prefix);
    let s3 = &place.clients.s3;
    let request = s3
        .list_object_versions()
        .bucket(place.bucket)
        .prefix(prefix);
    let listed = match ask(request.max_keys(1).send()).await {
        Ok(listed) => listed,
        Err(refusal) => {
            return section.add([unlisted(asked, &refusal, CheckName::DestinationList)]);
        }
    };
    let before = section.findings.len();
    let absent = first_byte(place, &format!("{prefix}{RESERVED}"));
    let refusal = ask(absent.send()).await.err();
    section.add(refusal.and_then(|refusal| untold(asked, prefix, &refusal)));
    let found = listed.versions().first();
    let found = found.and_then(|one| Some((one.key()?, one.version_id()?)));
    if let Some((key, version)) = found {
        let refusal = ask(first_byte(place, key).version_id(version).send()).await;
        let read = (CheckName::DestinationRead, "s3:GetObjectVersion");
        let refusal = refusal.err();
        section.add(refusal.and_then(|refusal| refused_read(asked, prefix, read, &refusal)));
    }
    let uploads = s3.list_multipart_uploads().bucket(place.bucket);
    let refusal = ask(uploads.max_uploads(1).send()).await.err();
    section.add(refusal.map(|refusal| unlisted_uploads(asked, &refusal)));
    if section.findings.len() == before {
        section.fine(format!("{} can be listed and read", place.url()));
    }
}

/// Judges the answer to a read of a key that is not there, which has to say just that.
fn untold((place, attributes): Asked<'_>, prefix: &str, refusal: &Refusal) -> Option<Finding> {
    if is_of_object(refusal) {
        return None;
    }
    let what = match refusal.kind == RefusalKind::Denied {
        true => format!(
            "a key that is not there is answered as denied: {}",
            refusal.words
        ),
        false => refusal.describe("s3:GetObject of a key that is not there"),
    };
    let why = "S3 says that a key is absent only to those who may list the bucket; every task that \
         writes a new key is parked";
    let mut fixes = place.fixes(attributes, refusal, "s3:ListBucket");
    fixes.extend(place.fixes_of_objects((attributes, prefix), refusal, "s3:GetObject"));
    fixes.dedup();
    let finding = Finding::problem(CheckName::DestinationList, place.url(), what, why);
    Some(finding.fixed_by(fixes).weighed_by(refusal))
}

fn unlisted_uploads((place, attributes): Asked<'_>, refusal: &Refusal) -> Finding {
    let action = "s3:ListBucketMultipartUploads";
    let why = "after a worker is lost, each of its keys waits ten minutes";
    let fix = place.fixes(attributes, refusal, action);
    let (check, what) = (CheckName::DestinationUploads, refusal.describe(action));
    let finding = Finding::problem(check, place.url(), what, why).into_warning();
    finding.fixed_by(fix).weighed_by(refusal)
}

/// Asks about a key as the account that uses it.
pub(super) async fn judge_key(
    key: &KeyUse,
    (account, clients): (&Account, &AccountClients),
    documents: &DocumentSet<'_>,
    section: &mut Section,
) {
    let name = &key.name;
    let described = ask(clients.kms.describe_key().key_id(name).send()).await;
    let answer = match described {
        Ok(described) => described
            .key_metadata
            .map(KeyReport::from)
            .unwrap_or_default(),
        Err(refusal) => return section.add([undescribed(key, account, &refusal, documents)]),
    };
    match answer.state {
        Some(KeyState::Invalid | KeyState::Missing) => {
            section.add([unusable(key, account, &answer)]);
        }
        Some(KeyState::Usable) => section.fine(format!("{} key {name} is usable", key.side)),
        Some(KeyState::Unknown) | None => {
            let state = format!("KMS does not say its state: {}", answer.detail);
            let open = Refusal::silent(state);
            section.add([undescribed(key, account, &open, documents)]);
        }
    }
}

/// Judges a key that KMS did not describe. S3 does not describe it, so that this cannot be done leaves
/// open whether it can be used.
fn undescribed(
    key: &KeyUse,
    account: &Account,
    refusal: &Refusal,
    documents: &DocumentSet<'_>,
) -> Finding {
    if refusal.kind == RefusalKind::Absent {
        return missing(key, account, &refusal.words);
    }
    let action = "kms:DescribeKey";
    let (check, what) = (check_of(key.side), refusal.describe(action));
    let fix = documents.fixes(refusal, Needed::of(action, &key.name));
    if matches!(
        refusal.kind,
        RefusalKind::Denied | RefusalKind::Unimplemented
    ) {
        let why = "whether it can be used is not known before an object needs it";
        let found = Finding::problem(check, &key.name, what, why);
        return found.into_unasked().fixed_by(fix);
    }
    let found = Finding::problem(check, &key.name, what, WHY_USABLE);
    found.fixed_by(fix).weighed_by(refusal)
}

fn unusable(key: &KeyUse, account: &Account, answer: &KeyReport) -> Finding {
    let arn = answer.arn.as_ref().unwrap_or(&key.name);
    let command = |verb: &str| {
        let options = cli_options(account, Service::Kms);
        Fix::command(format!("aws kms {verb} --key-id {arn}{options}"))
    };
    let fixes = match answer.detail.as_str() {
        "Disabled" => vec![command("enable-key")],
        "PendingDeletion" => vec![command("cancel-key-deletion"), command("enable-key")],
        _ => vec![Fix::advice(format!(
            "name an enabled symmetric key of {} that encrypts and decrypts",
            account.region
        ))],
    };
    let what = format!("the key is not usable: {}", answer.detail);
    Finding::problem(check_of(key.side), &key.name, what, WHY_USABLE).fixed_by(fixes)
}

fn missing(key: &KeyUse, account: &Account, words: &str) -> Finding {
    let advice = format!(
        "name a key that account {} has in {}",
        account.name, account.region
    );
    let what = format!("there is no such key: {words}");
    Finding::problem(check_of(key.side), &key.name, what, WHY_USABLE)
        .fixed_by([Fix::advice(advice)])
}

const WHY_USABLE: &str = "what needs the key is parked until it can be used";

fn check_of(side: KeySide) -> CheckName {
    match side {
        KeySide::Source => CheckName::SourceKey,
        KeySide::Destination => CheckName::DestinationKey,
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::primitives::DateTime;

    use super::*;
    use crate::check::access::tests::plain_settings;

    #[test]
    fn a_list_tells_of_keys_sizes_and_times() {
        let mut rule = plain_settings().rules.remove(0);
        rule.filter.prefix = "in/".to_owned();
        rule.filter.size_max = Some(100);
        rule.since = replicator_core::object::parse_rfc3339("2026-01-01T00:00:00Z");
        let (earlier, later) = (1_700_000_000, 1_800_000_000);
        let cases = [
            ("in/a", 1, later, true),
            ("out/a", 1, later, false),
            ("in/a", 101, later, false),
            // It has no first byte.
            ("in/a", 0, later, false),
            ("in/a", 1, earlier, false),
        ];
        for (key, size, seconds, expected) in cases {
            let version = ObjectVersion::builder().key(key).size(size);
            let version = version.last_modified(DateTime::from_secs(seconds)).build();
            assert_eq!(may_take(&rule, &version), expected, "{version:?}");
        }
    }
}
