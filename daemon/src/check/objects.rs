//! Objects: whether those of a rule can be listed and read at its source, and what its destination
//! holds; and the KMS keys that a rule names for them: whether each is there and can be used. Nothing
//! is written, and that the principal may use a key through S3 alone no question shows.

use aws_sdk_s3::types::ObjectVersion;
use replicator_config::{Account, Service};
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
    let sample = find_sample(place, rule, listed.versions()).await;
    match sample {
        Some(sample) => {
            let reads = read_sample(asked, rule, &sample).await;
            if reads.is_empty() {
                section.fine(format!(
                    "{}/{} can be read with its tags",
                    place.url(),
                    sample.key
                ));
            }
            section.add(reads);
        }
        None => section.add([no_sample(place, rule, listed.is_truncated() == Some(true))]),
    }
}

// Each costs up to two requests; the objects of a bucket are mostly encrypted and tagged alike.
const CANDIDATES_MAX: usize = 16;

/// Finds a version that the rule takes.
async fn find_sample(
    place: BucketPlace<'_>,
    rule: &Rule,
    listed: &[ObjectVersion],
) -> Option<Sample> {
    let candidates = listed.iter().filter(|version| may_take(rule, version));
    for version in candidates.take(CANDIDATES_MAX) {
        let sample = Sample {
            key: version.key()?.to_owned(),
            version: version.version_id()?.to_owned(),
        };
        if takes(place, rule, &sample).await {
            return Some(sample);
        }
    }
    None
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

fn no_sample(place: BucketPlace<'_>, rule: &Rule, is_truncated: bool) -> Finding {
    let filter = &rule.filter;
    let among = if is_truncated {
        " among the first 1,000 versions"
    } else {
        ""
    };
    let what = format!(
        "there is no object with bytes that the rule takes{among}: prefix {:?}, suffix {:?}",
        filter.prefix, filter.suffix
    );
    let why = "whether objects can be read is not known, and the filter may be a slip";
    let text = "compare the filter with the bucket's keys; if objects are still to come, this is \
         no fault";
    Finding::problem(CheckName::SourceObjects, place.url(), what, why)
        .into_warning()
        .fixed_by([Fix::advice(text)])
}

fn unlisted((place, attributes): Asked<'_>, refusal: &Refusal, check: CheckName) -> Finding {
    let finding = unread((place, attributes), refusal, check);
    if refusal.kind != RefusalKind::Denied {
        return finding;
    }
    Finding {
        severity: Severity::Problem,
        why: "the daemon goes by the list of versions: its tasks are parked".to_owned(),
        ..finding
    }
}

/// Reads what the daemon reads of a version: its first byte, its tags, and its lock if there is one.
async fn read_sample((place, attributes): Asked<'_>, rule: &Rule, sample: &Sample) -> Vec<Finding> {
    let s3 = &place.clients.s3;
    let (bucket, key, version) = (place.bucket, &sample.key, &sample.version);
    let get = s3.get_object().bucket(bucket).key(key).range("bytes=0-0");
    let get = ask(get.version_id(version).send()).await.err();
    let tags = s3.get_object_tagging().bucket(bucket).key(key);
    let tags = ask(tags.version_id(version).send()).await.err();
    let mut asked = vec![
        (CheckName::SourceRead, "s3:GetObjectVersion", get),
        (CheckName::SourceTags, "s3:GetObjectVersionTagging", tags),
    ];
    if rule.history == History::Latest {
        let newest = s3.get_object().bucket(bucket).key(key).range("bytes=0-0");
        asked.push((
            CheckName::SourceRead,
            "s3:GetObject",
            ask(newest.send()).await.err(),
        ));
    }
    if attributes.lock.as_ref().is_ok_and(|lock| lock.is_enabled) {
        let retention = s3.get_object_retention().bucket(bucket).key(key);
        let retention = ask(retention.version_id(version).send()).await.err();
        let hold = s3.get_object_legal_hold().bucket(bucket).key(key);
        let hold = ask(hold.version_id(version).send()).await.err();
        asked.push((CheckName::SourceLock, "s3:GetObjectRetention", retention));
        asked.push((CheckName::SourceLock, "s3:GetObjectLegalHold", hold));
    }
    let denied = asked.into_iter().filter_map(|(check, action, refusal)| {
        let refusal = refusal.filter(|refusal| refusal.kind == RefusalKind::Denied)?;
        Some((check, action, refusal))
    });
    denied
        .map(|(check, action, refusal)| {
            let object = format!("s3://{bucket}/{key}?versionId={version}");
            let objects = (attributes, rule.filter.prefix.as_str());
            let fix = place.fixes_of_objects(objects, &refusal, action);
            let what = format!("{action} is denied: {}", refusal.words);
            Finding::problem(check, object, what, denied_read(check)).fixed_by(fix)
        })
        .collect()
}

fn denied_read(check: CheckName) -> &'static str {
    if check == CheckName::SourceLock {
        "S3 leaves the lock out of its answers then: replicas are written without it"
    } else if check == CheckName::SourceTags {
        "S3 leaves the number of tags out of its answers then: objects look as if they had none"
    } else {
        "no object can be copied: every task is parked"
    }
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
    let absent = s3
        .get_object()
        .bucket(place.bucket)
        .key(format!("{prefix}{RESERVED}"));
    let absent = ask(absent.send()).await.err();
    if let Some(refusal) = absent.filter(|refusal| refusal.kind == RefusalKind::Denied) {
        section.add([untold(asked, prefix, &refusal)]);
    }
    let found = listed.versions().first();
    let found = found.and_then(|one| Some((one.key()?, one.version_id()?)));
    if let Some((key, version)) = found {
        let get = s3
            .get_object()
            .bucket(place.bucket)
            .key(key)
            .version_id(version);
        let refusal = ask(get.range("bytes=0-0").send()).await.err();
        section.add(unread_replica(asked, prefix, refusal));
    }
    let uploads = s3.list_multipart_uploads().bucket(place.bucket);
    let refusal = ask(uploads.max_uploads(1).send()).await.err();
    section.add(unlisted_uploads(asked, refusal));
    if section.findings.len() == before {
        section.fine(format!("{} can be listed and read", place.url()));
    }
}

/// Judges a denied read of a key that is not there.
fn untold((place, attributes): Asked<'_>, prefix: &str, refusal: &Refusal) -> Finding {
    let what = format!(
        "a key that is not there is answered as denied: {}",
        refusal.words
    );
    let why = "S3 says that a key is absent only to those who may list the bucket; every task that \
         writes a new key is parked";
    let list = place.fixes(attributes, refusal, "s3:ListBucket");
    let get = place.fixes_of_objects((attributes, prefix), refusal, "s3:GetObject");
    let finding = Finding::problem(CheckName::DestinationList, place.url(), what, why);
    finding.fixed_by(list).fixed_by(get)
}

fn unread_replica(
    (place, attributes): Asked<'_>,
    prefix: &str,
    refusal: Option<Refusal>,
) -> Option<Finding> {
    let refusal = refusal.filter(|refusal| refusal.kind == RefusalKind::Denied)?;
    let what = format!("what is there may not be read: {}", refusal.words);
    let why = "what a key holds at the destination is read before it is written: tasks are parked";
    let fix = place.fixes_of_objects((attributes, prefix), &refusal, "s3:GetObjectVersion");
    let finding = Finding::problem(CheckName::DestinationRead, place.url(), what, why);
    Some(finding.fixed_by(fix))
}

fn unlisted_uploads((place, attributes): Asked<'_>, refusal: Option<Refusal>) -> Option<Finding> {
    let refusal = refusal.filter(|refusal| refusal.kind == RefusalKind::Denied)?;
    let what = format!("its uploads may not be listed: {}", refusal.words);
    let why = "after a worker is lost, each of its keys waits ten minutes";
    let fix = place.fixes(attributes, &refusal, "s3:ListBucketMultipartUploads");
    let finding = Finding::problem(CheckName::DestinationUploads, place.url(), what, why);
    Some(finding.into_warning().fixed_by(fix))
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
    match described.map(|described| described.key_metadata.map(KeyReport::from)) {
        Ok(Some(answer)) => match answer.state {
            Some(KeyState::Invalid | KeyState::Missing) => {
                section.add([unusable(key, account, &answer)]);
            }
            Some(KeyState::Usable) => section.fine(format!("{} key {name} is usable", key.side)),
            Some(KeyState::Unknown) | None => section.skip(unknown(key, &answer.detail)),
        },
        Err(refusal) if refusal.kind == RefusalKind::Absent => {
            section.add([missing(key, account, &refusal.words)]);
        }
        Err(refusal) if refusal.kind == RefusalKind::Denied => {
            section.add([undescribed(key, &refusal, documents)]);
        }
        Ok(None) => section.skip(unknown(key, "the answer is empty")),
        Err(refusal) => section.skip(unknown(key, &refusal.words)),
    }
}

fn unknown(key: &KeyUse, words: &str) -> String {
    let name = &key.name;
    format!("whether key {name} can be used (kms:DescribeKey): {words}")
}

fn undescribed(key: &KeyUse, refusal: &Refusal, documents: &DocumentSet<'_>) -> Finding {
    let what = format!("kms:DescribeKey is denied: {}", refusal.words);
    let why = "whether it can be used is not known before an object needs it";
    let fix = documents.fixes(refusal, Needed::of("kms:DescribeKey", &key.name));
    Finding::problem(check_of(key.side), &key.name, what, why)
        .into_unasked()
        .fixed_by(fix)
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
