//! Buckets: whether each is there, where it was said to be, and keeps versions and locks; and the
//! events that they send to EventBridge, as S3 writes them.

use aws_sdk_s3::types::{BucketVersioningStatus, ObjectLockEnabled};
use replicator_config::policies::{bucket_arn, objects_arn};
use replicator_config::{Account, Service};
use replicator_core::rule::BucketRef;
use serde_json::{Value, json};

use super::access::{self, CallingPrincipal, DocumentSet, Needed, ask};
use super::delivery::Notifications;
use super::finding::{CheckName, Finding, Fix, Section, Severity, cli_options, with_field};
use super::notification::{EventNeed, Way, common_start, needs};
use crate::s3::accounts::error::{Refusal, RefusalKind};
use crate::s3::accounts::{AccountClients, beside_access_points};

/// A bucket, the account that reaches it, and the principal that signs.
#[derive(Debug, Clone, Copy)]
pub(super) struct BucketPlace<'a> {
    pub(super) bucket: &'a str,
    pub(super) name: &'a BucketRef,
    pub(super) account: &'a Account,
    pub(super) clients: &'a AccountClients,
    pub(super) principal: Option<&'a CallingPrincipal>,
    pub(super) documents: &'a DocumentSet<'a>,
}

/// What S3 says of a bucket.
#[derive(Debug)]
pub(super) struct BucketState {
    region: access::Asked<Option<String>>,
    versioning: access::Asked<Option<BucketVersioningStatus>>,
    pub(super) lock: access::Asked<Lock>,
    pub(super) notifications: access::Asked<Notifications>,
    /// Whether it belongs to another AWS account than the principal, where that is known.
    is_foreign: Option<bool>,
}

/// A bucket, and what it says of itself.
pub(super) type Asked<'a> = (BucketPlace<'a>, &'a BucketState);

impl BucketState {
    /// Returns the AWS account that owns the bucket, where that is known.
    pub(super) fn owner(
        &self,
        account: &Account,
        principal: Option<&CallingPrincipal>,
    ) -> Option<String> {
        let own = principal.filter(|_| self.is_foreign == Some(false));
        account
            .owner
            .clone()
            .or_else(|| own.map(|principal| principal.account.clone()))
    }
}

/// What a bucket says of Object Lock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Lock {
    pub(super) is_enabled: bool,
    /// Whether every new object is retained.
    pub(super) is_default: bool,
}

impl BucketPlace<'_> {
    pub(super) fn url(&self) -> String {
        format!("s3://{}", self.bucket)
    }

    /// Returns what permits a denied request about the bucket itself.
    pub(super) fn fixes(
        &self,
        attributes: &BucketState,
        refusal: &Refusal,
        action: &str,
    ) -> Vec<Fix> {
        let arn = bucket_arn(self.account, self.bucket);
        let needed = Needed::of(action, &arn).in_foreign(self.foreign(attributes));
        self.documents.fixes(refusal, needed)
    }

    /// Returns what permits a denied request about objects with a prefix.
    pub(super) fn fixes_of_objects(
        &self,
        (attributes, prefix): (&BucketState, &str),
        refusal: &Refusal,
        action: &str,
    ) -> Vec<Fix> {
        let arn = objects_arn(self.account, self.bucket, prefix);
        let needed = Needed::of(action, &arn).in_foreign(self.foreign(attributes));
        self.documents.fixes(refusal, needed)
    }

    /// Returns the bucket if it is in another account than the principal, or may be.
    fn foreign(&self, attributes: &BucketState) -> Option<&BucketRef> {
        let is_own = attributes.is_foreign == Some(false);
        (!is_own && self.principal.is_some()).then_some(self.name)
    }

    pub(super) fn command(&self, operation: &str, rest: &str) -> Fix {
        Fix::command(format!(
            "aws s3api {operation}{} --bucket {} {rest}",
            cli_options(self.account, Service::S3),
            self.bucket
        ))
    }
}

/// Requests what a bucket says of itself; of its notifications only where a rule reads it.
pub(super) async fn read_attributes(place: BucketPlace<'_>, is_source: bool) -> BucketState {
    let s3 = &place.clients.s3;
    let bucket = place.bucket;
    let region = ask(s3.head_bucket().bucket(bucket).send()).await;
    let region = region.map(|answer| answer.bucket_region);
    let versioning = s3.get_bucket_versioning().bucket(bucket).customize();
    let versioning = versioning.config_override(beside_access_points());
    let versioning = ask(versioning.send()).await;
    let notifications = if is_source {
        let request = s3.get_bucket_notification_configuration().bucket(bucket);
        let answer = ask(request.send()).await;
        answer.map(|answer| Notifications::from_answer(&answer))
    } else {
        Ok(Notifications::default())
    };
    BucketState {
        is_foreign: ownership(place, region.is_ok()).await,
        versioning: versioning.map(|answer| answer.status),
        lock: read_lock(place).await,
        notifications,
        region,
    }
}

/// Finds out whether the principal's own AWS account owns the bucket, which decides on whose side a
/// permission is lacking.
async fn ownership(place: BucketPlace<'_>, is_open: bool) -> Option<bool> {
    let own = &place.principal?.account;
    if let Some(owner) = &place.account.owner {
        return Some(owner != own);
    }
    let request = place.clients.s3.head_bucket().bucket(place.bucket);
    let answer = request.expected_bucket_owner(own).send();
    match ask(answer).await {
        Ok(_) => Some(false),
        Err(refusal) if is_open && refusal.words.contains("403") => Some(true),
        Err(_) => None,
    }
}

async fn read_lock(place: BucketPlace<'_>) -> access::Asked<Lock> {
    let request = place.clients.s3.get_object_lock_configuration();
    let request = request.bucket(place.bucket).customize();
    let request = request.config_override(beside_access_points());
    match ask(request.send()).await {
        Ok(answer) => {
            let found = answer.object_lock_configuration;
            let is = |status: &ObjectLockEnabled| *status == ObjectLockEnabled::Enabled;
            Ok(Lock {
                is_enabled: found
                    .as_ref()
                    .and_then(|one| one.object_lock_enabled())
                    .is_some_and(is),
                is_default: found.is_some_and(|one| one.rule().is_some()),
            })
        }
        Err(refusal) if refusal.code == NO_LOCK => Ok(Lock::default()),
        Err(refusal) => Err(refusal),
    }
}

// https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html#ObjectLockErrorCodeList
const NO_LOCK: &str = "ObjectLockConfigurationNotFoundError";

/// Which part a bucket has in a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Destination,
}

/// Judges what a bucket says of itself, and says whether it can be asked more.
pub(super) fn judge(asked: Asked<'_>, end: End, section: &mut Section) -> bool {
    let place = asked.0;
    if let Some(finding) = unusable(asked) {
        section.add([finding]);
        return false;
    }
    section.fine(format!(
        "{} is there, in {}",
        place.url(),
        place.account.region
    ));
    match versioning(asked, end) {
        Some(finding) => section.add([finding]),
        None => section.fine(format!("{} keeps versions", place.url())),
    }
    true
}

/// Finds what keeps every request from a bucket.
fn unusable((place, attributes): Asked<'_>) -> Option<Finding> {
    let why = "no request to it succeeds: nothing of the rule is replicated";
    let found = |check, what: String| Finding::problem(check, place.url(), what, why);
    let refusals = [
        attributes.region.as_ref().err(),
        attributes.versioning.as_ref().err(),
    ];
    let mut refusals = refusals.into_iter().flatten();
    let told = attributes.region.as_ref().ok().cloned().flatten();
    let of_refusal = refusals.clone().find_map(|refusal| refusal.region.clone());
    let region = told.or(of_refusal);
    let is_aws = place.account.endpoint_of(Service::S3).is_none();
    let elsewhere = region.filter(|region| *region != place.account.region);
    if let Some(region) = elsewhere {
        let what = format!(
            "it is in {region}, and account {} in {}",
            place.account.name, place.account.region
        );
        let text = format!(
            "set region = {region:?} in the account that reaches it, or in another one for it"
        );
        let finding = found(CheckName::BucketRegion, what).fixed_by([Fix::advice(text)]);
        // Only AWS refuses such requests.
        return Some(finding).filter(|_| is_aws);
    }
    if refusals
        .clone()
        .any(|refusal| refusal.kind == RefusalKind::Absent)
        && attributes.versioning.is_err()
    {
        let region = &place.account.region;
        let location = match region.as_str() {
            "us-east-1" => String::new(),
            other => format!("--create-bucket-configuration LocationConstraint={other}"),
        };
        let fix = [
            place.command("create-bucket", &location),
            place.command("put-bucket-versioning", ENABLED),
        ];
        let what = "there is no bucket of that name".to_owned();
        return Some(found(CheckName::BucketExists, what).fixed_by(fix));
    }
    let is_silent = |refusal: &&Refusal| refusal.leaves_open();
    let versioning = attributes.versioning.as_ref().err().filter(is_silent);
    let refusal = versioning.and_then(|_| refusals.find(is_silent));
    refusal.map(|refusal| {
        let what = format!("it cannot be asked: {}", refusal.words);
        let text = "look at the account's endpoint, credentials and this host's network";
        found(CheckName::BucketAttributes, what)
            .into_unasked()
            .fixed_by([Fix::advice(text)])
    })
}

const ENABLED: &str = "--versioning-configuration Status=Enabled";

fn versioning((place, attributes): Asked<'_>, end: End) -> Option<Finding> {
    let (check, why) = match end {
        End::Source => (
            CheckName::SourceVersioning,
            "without versions an object that is overwritten or deleted before it is read is lost, \
             and a delete cannot be told from any other",
        ),
        End::Destination => (
            CheckName::DestinationVersioning,
            "every task is parked as DstBucketUnversioned: a write would destroy what is there",
        ),
    };
    match &attributes.versioning {
        Ok(Some(BucketVersioningStatus::Enabled)) => None,
        Ok(status) => {
            let status = status.as_ref().map_or("never enabled", |_| "suspended");
            let what = format!("versioning is {status}");
            let fix = place.command("put-bucket-versioning", ENABLED);
            Some(Finding::problem(check, place.url(), what, why).fixed_by([fix]))
        }
        Err(refusal) => {
            let finding = unread((place, attributes), refusal, check);
            // The daemon itself asks this of each destination, before it writes there.
            let is_needed = end == End::Destination && !refusal.leaves_open();
            Some(match is_needed {
                true => Finding {
                    severity: Severity::Problem,
                    why: "every task is parked: the daemon writes only where it can see that \
                          versions are kept"
                        .to_owned(),
                    ..finding
                },
                false => finding,
            })
        }
    }
}

/// The permissions of the questions, but for that of versioning.
const ACTIONS: [(CheckName, &str); 4] = [
    (
        CheckName::NotificationAttributes,
        "s3:GetBucketNotification",
    ),
    (CheckName::ObjectLock, "s3:GetBucketObjectLockConfiguration"),
    (CheckName::SourceList, "s3:ListBucketVersions"),
    (CheckName::DestinationList, "s3:ListBucketVersions"),
];

/// Reports a question about a bucket that was not answered.
pub(super) fn unread(
    (place, attributes): Asked<'_>,
    refusal: &Refusal,
    check: CheckName,
) -> Finding {
    let named = ACTIONS.into_iter().find(|(of, _)| *of == check);
    let action = named.map_or("s3:GetBucketVersioning", |(_, action)| action);
    let operation = action.trim_start_matches("s3:");
    let what = format!("{operation} got no answer: {}", refusal.words);
    let fix = match refusal.kind == RefusalKind::Denied {
        true => place.fixes(attributes, refusal, action),
        false => vec![Fix::advice(
            "look it up by other means: the endpoint may not know this request",
        )],
    };
    let why = "whether it is as it has to be is not known";
    Finding::problem(check, place.url(), what, why)
        .into_unasked()
        .fixed_by(fix)
}

/// Compares the Object Lock of both buckets.
pub(super) fn compare_locks(
    (source, of_source): Asked<'_>,
    (destination, of_destination): Asked<'_>,
) -> Option<Finding> {
    let check = CheckName::ObjectLock;
    let lock = match &of_source.lock {
        Ok(lock) if !lock.is_enabled => return None,
        Ok(lock) => lock,
        // A store that has no such thing locks nothing.
        Err(refusal) if refusal.kind == RefusalKind::Unimplemented => return None,
        Err(refusal) => return Some(unread((source, of_source), refusal, check)),
    };
    let unlocked = Lock::default();
    let replicas = match &of_destination.lock {
        Err(refusal) if refusal.kind == RefusalKind::Unimplemented => Ok(&unlocked),
        lock => lock.as_ref(),
    };
    match replicas {
        Ok(replicas) if replicas.is_enabled => None,
        Ok(_) => {
            let what = format!("it has no Object Lock, and {} has", source.url());
            let why = match lock.is_default {
                true => {
                    "every new version of the source is retained, and is parked as DstBucketObjectLockConfigMissing"
                }
                false => {
                    "a version with a retention or legal hold is parked as DstBucketObjectLockConfigMissing"
                }
            };
            let rest = "--object-lock-configuration ObjectLockEnabled=Enabled";
            let fix = destination.command("put-object-lock-configuration", rest);
            let finding = Finding::problem(check, destination.url(), what, why);
            Some(finding.fixed_by([fix]))
        }
        Err(refusal) => Some(unread((destination, of_destination), refusal, check)),
    }
}

/// Returns the pattern that matches what all rules of the bucket need, and little else.
pub(super) fn pattern(way: &Way<'_>) -> Value {
    let mut kinds: Vec<&str> = Vec::new();
    for need in way.rules.iter().flat_map(|rule| needs(rule)) {
        let (kind, _, _) = named(need.event);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let mut detail = json!({"bucket": {"name": [way.rule.source.bucket.as_str()]}});
    let prefixes = way.rules.iter().map(|rule| rule.filter.prefix.as_str());
    let prefix = common_start(prefixes);
    if !prefix.is_empty() {
        detail = with_field(detail, "object", json!({"key": [{"prefix": prefix}]}));
    }
    json!({"source": ["aws.s3"], "detail-type": kinds, "detail": detail})
}

/// Returns events as S3 would send them, for keys that the rule is about: one does not stand for
/// all that a pattern may tell apart.
pub(super) fn samples(way: &Way<'_>, need: EventNeed) -> [Value; 2] {
    ["0", "zz/s3-replicator-check"].map(|middle| {
        let filter = &way.rule.filter;
        let key = format!("{}{middle}{}", filter.prefix, filter.suffix);
        sample(way, need, &key)
    })
}

/// Returns an event as S3 would send it of a key.
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html>
fn sample(way: &Way<'_>, need: EventNeed, key: &str) -> Value {
    let (kind, reason, deletion) = named(need.event);
    let filter = &way.rule.filter;
    let bucket = way.rule.source.bucket.as_str();
    let owner = way.owner.as_deref().or(way.reader.split(':').nth(4));
    let owner = owner.unwrap_or("000000000000");
    let size = filter.size_min.unwrap_or(1).max(1);
    let (etag, version) = (
        "d41d8cd98f00b204e9800998ecf8427e",
        "IYV3p45BT0ac8hjHg1houSdS1a.Mro8e",
    );
    let mut detail = json!({
        "version": "0", "bucket": {"name": bucket}, "requester": owner,
        "object": {
            "key": key, "size": size, "etag": etag, "version-id": version,
            "sequencer": "617f08299329d189",
        },
        "request-id": "N4N7GDK58NMKJ12R", "source-ip-address": "192.0.2.1",
    });
    for (name, value) in [("reason", reason), ("deletion-type", deletion)] {
        if let Some(value) = value {
            detail = with_field(detail, name, json!(value));
        }
    }
    json!({
        "version": "0", "id": "17793124-05d4-b198-2fde-7ededc63b103", "detail-type": kind,
        "source": "aws.s3", "account": owner, "time": "2026-01-01T00:00:00Z",
        "region": way.account.region, "resources": [bucket_arn(way.account, bucket)],
        "detail": detail,
    })
}

type BusEvent = (&'static str, Option<&'static str>, Option<&'static str>);

/// Returns the type, reason and type of deletion that EventBridge has for an event of S3:
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/EventBridge.html>
fn named(event: &str) -> BusEvent {
    let (family, detail) = event.rsplit_once(':').unwrap_or((event, ""));
    let deletion = match detail {
        "DeleteMarkerCreated" => "Delete Marker Created",
        _ => "Permanently Deleted",
    };
    match (family, detail) {
        ("s3:ObjectCreated", "Post") => ("Object Created", Some("POST Object"), None),
        ("s3:ObjectCreated", "Copy") => ("Object Created", Some("CopyObject"), None),
        ("s3:ObjectCreated", "Put") => ("Object Created", Some("PutObject"), None),
        ("s3:ObjectCreated", _) => ("Object Created", Some("CompleteMultipartUpload"), None),
        ("s3:ObjectTagging", "Put") => ("Object Tags Added", None, None),
        ("s3:ObjectTagging", _) => ("Object Tags Deleted", None, None),
        ("s3:LifecycleExpiration", _) => (
            "Object Deleted",
            Some("Lifecycle Expiration"),
            Some(deletion),
        ),
        (_, _) => ("Object Deleted", Some("DeleteObject"), Some(deletion)),
    }
}

/// Names an event of S3 as EventBridge does.
pub(super) fn event_name(event: &str) -> String {
    let (kind, reason, deletion) = named(event);
    let more: Vec<&str> = reason.into_iter().chain(deletion).collect();
    match more.is_empty() {
        true => format!("{kind:?}"),
        false => format!("{kind:?} ({})", more.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::check::access::tests::{documents_of, plain_settings};
    use crate::metrics::Metrics;
    use crate::s3::accounts::Accounts;

    fn refusal(kind: RefusalKind, region: Option<&str>) -> Refusal {
        Refusal {
            kind,
            code: String::new(),
            words: "scripted".to_owned(),
            region: region.map(str::to_owned),
        }
    }

    fn good() -> BucketState {
        BucketState {
            region: Ok(Some("eu-west-1".to_owned())),
            versioning: Ok(Some(BucketVersioningStatus::Enabled)),
            lock: Ok(Lock::default()),
            notifications: Ok(Notifications::default()),
            is_foreign: Some(false),
        }
    }

    fn account(endpoint: Option<&str>) -> Account {
        Account {
            name: "source".to_owned(),
            region: "eu-west-1".to_owned(),
            endpoint: endpoint.map(str::to_owned),
            ..Account::default()
        }
    }

    async fn clients(account: &Account) -> AccountClients {
        let all = BTreeMap::from([(account.name.clone(), account.clone())]);
        let metrics = Metrics::new().unwrap();
        let accounts = Accounts::connect(&all, &metrics, None).await.unwrap();
        accounts.get(&account.name).unwrap().clone()
    }

    /// A place whose name and documents live as long as the tests.
    fn place<'a>(account: &'a Account, clients: &'a AccountClients) -> BucketPlace<'a> {
        let settings = Box::leak(Box::new(plain_settings()));
        let documents = documents_of(settings);
        let name = BucketRef {
            account: account.name.clone(),
            bucket: "orders".try_into().unwrap(),
        };
        BucketPlace {
            bucket: "orders",
            name: Box::leak(Box::new(name)),
            account,
            clients,
            principal: None,
            documents: Box::leak(Box::new(documents)),
        }
    }

    #[tokio::test]
    async fn a_bucket_that_cannot_be_used_is_said_to_be_elsewhere_absent_or_silent() {
        use CheckName::{BucketAttributes, BucketExists, BucketRegion, SourceVersioning};
        use Severity::{Problem, Unasked};
        let region = |region: access::Asked<Option<&str>>| BucketState {
            region: region.map(|region| region.map(str::to_owned)),
            ..good()
        };
        let (absent, silent) = (
            refusal(RefusalKind::Absent, None),
            refusal(RefusalKind::Silent, None),
        );
        let redirect = refusal(RefusalKind::Elsewhere, Some("us-east-1"));
        let unversioned = |attributes, refusal: &Refusal| BucketState {
            versioning: Err(refusal.clone()),
            ..attributes
        };
        let never = BucketState {
            versioning: Ok(None),
            ..good()
        };
        let cases = [
            (good(), None),
            (
                unversioned(region(Err(redirect.clone())), &redirect),
                Some((BucketRegion, Problem)),
            ),
            (region(Ok(Some("us-east-1"))), Some((BucketRegion, Problem))),
            (
                unversioned(region(Err(silent.clone())), &absent),
                Some((BucketExists, Problem)),
            ),
            // A HEAD without a text may be answered by anything on the way.
            (region(Err(absent)), None),
            (
                unversioned(region(Err(silent.clone())), &silent),
                Some((BucketAttributes, Unasked)),
            ),
            (never, Some((SourceVersioning, Problem))),
        ];
        let aws = account(None);
        let clients = clients(&aws).await;
        for (attributes, expected) in cases {
            let mut section = Section::new("rule");
            judge(
                (place(&aws, &clients), &attributes),
                End::Source,
                &mut section,
            );
            let found = section.findings.first();
            let found = found.map(|found| (found.check, found.severity));
            assert_eq!(found, expected, "{attributes:?}");
        }
    }

    #[tokio::test]
    async fn a_store_that_is_not_aws_has_regions_as_it_likes() {
        let store = account(Some("http://127.0.0.1:1"));
        let clients = clients(&store).await;
        let other = BucketState {
            region: Ok(Some("us-east-1".to_owned())),
            ..good()
        };
        let mut section = Section::new("rule");
        assert!(judge(
            (place(&store, &clients), &other),
            End::Source,
            &mut section
        ));
        assert_eq!(section.findings, []);
    }

    #[tokio::test]
    async fn a_lock_at_the_source_needs_one_at_the_destination() {
        let aws = account(None);
        let clients = clients(&aws).await;
        let with = |lock| BucketState { lock, ..good() };
        let lock = |is_enabled| {
            Ok(Lock {
                is_enabled,
                is_default: false,
            })
        };
        let denied = || Err(refusal(RefusalKind::Denied, None));
        let unknown = || Err(refusal(RefusalKind::Unimplemented, None));
        let cases = [
            (lock(false), denied(), None),
            (lock(true), lock(true), None),
            (lock(true), lock(false), Some(Severity::Problem)),
            (lock(true), denied(), Some(Severity::Unasked)),
            (denied(), lock(true), Some(Severity::Unasked)),
            (unknown(), lock(false), None),
            (lock(true), unknown(), Some(Severity::Problem)),
        ];
        for (source, destination, expected) in cases {
            let (source, destination) = (with(source), with(destination));
            let place = place(&aws, &clients);
            let found = compare_locks((place, &source), (place, &destination));
            let severity = found.map(|found| found.severity);
            assert_eq!(severity, expected, "{source:?} {destination:?}");
        }
    }
}
