//! Objects: whether those of a rule can be listed and read at its source, and what its destination
//! holds. Nothing is written.

use replicator_core::object::Key;
use replicator_core::rule::{History, Rule};

use super::access::{ask, grant};
use super::buckets::{Asked, BucketPlace, unread};
use super::finding::{CheckName, Finding, Fix, Section, Severity};
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
    let is_of_rule =
        |key: &str| Key::try_from(key).is_ok_and(|key| rule.filter.admits_key(&key).is_ok());
    let sample = listed.versions().iter().find_map(|version| {
        let key = version.key().filter(|key| is_of_rule(key))?;
        // An empty object has no first byte.
        let version = version.version_id().filter(|_| version.size() > Some(0))?;
        Some(Sample {
            key: key.to_owned(),
            version: version.to_owned(),
        })
    });
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
            let resource = place.objects(attributes, &rule.filter.prefix);
            let fix = grant(place.principal, &refusal, &[action], &resource);
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
    let list = grant(
        place.principal,
        refusal,
        &["s3:ListBucket"],
        &place.whole(attributes),
    );
    let get = grant(
        place.principal,
        refusal,
        &["s3:GetObject"],
        &place.objects(attributes, prefix),
    );
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
    let resource = place.objects(attributes, prefix);
    let fix = grant(
        place.principal,
        &refusal,
        &["s3:GetObjectVersion"],
        &resource,
    );
    let finding = Finding::problem(CheckName::DestinationRead, place.url(), what, why);
    Some(finding.fixed_by(fix))
}

fn unlisted_uploads((place, attributes): Asked<'_>, refusal: Option<Refusal>) -> Option<Finding> {
    let refusal = refusal.filter(|refusal| refusal.kind == RefusalKind::Denied)?;
    let what = format!("its uploads may not be listed: {}", refusal.words);
    let why = "after a worker is lost, each of its keys waits ten minutes";
    let actions = ["s3:ListBucketMultipartUploads"];
    let fix = grant(
        place.principal,
        &refusal,
        &actions,
        &place.whole(attributes),
    );
    let finding = Finding::problem(CheckName::DestinationUploads, place.url(), what, why);
    Some(finding.into_warning().fixed_by(fix))
}
