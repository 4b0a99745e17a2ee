//! From the settings to grants: which identity needs which action on what, under which conditions,
//! and whose policy has to say so.

use std::collections::{BTreeMap, BTreeSet};

use replicator_core::rule::{BucketRef, Encryption, ReplicaKey, Rule};

use super::table::{Permission, Place, client_key, rows, rows_of};
use super::{
    ArnTable, Conditions, Document, DocumentKind, Grant, PolicyOptions, Principal, add_condition,
};
use crate::settings::Settings;
use crate::settings::queues::Queue;
use crate::values;

/// Documents in the making.
pub(super) struct GrantDraft<'a> {
    settings: &'a Settings,
    options: &'a PolicyOptions,
    arns: ArnTable<'a>,
    documents: BTreeMap<(DocumentKind, String), Document>,
}

/// A resource of some identity, and what holds for all of its grants.
#[derive(Debug, Clone)]
struct Target<'a> {
    account: &'a str,
    /// The number of the account that owns it.
    owner: String,
    /// Whether that is known to be another one than the identity's.
    is_foreign: bool,
    /// The policy that lets other accounts in, and the ARN it is attached to.
    policy: (DocumentKind, String),
    /// What requests are about, whichever way they take to it.
    about: String,
    resource: String,
    conditions: Conditions,
}

impl Target<'_> {
    fn with_prefix(mut self, pattern: Option<&String>) -> Self {
        if let Some(pattern) = pattern {
            let prefix = ("StringLike", "s3:prefix");
            add_condition(&mut self.conditions, prefix, [pattern.clone()]);
        }
        self
    }
}

impl<'a> GrantDraft<'a> {
    /// Starts without a document.
    pub(super) fn new(
        settings: &'a Settings,
        options: &'a PolicyOptions,
        arns: ArnTable<'a>,
    ) -> Self {
        Self {
            settings,
            options,
            arns,
            documents: BTreeMap::new(),
        }
    }

    /// Lists what all enabled rules need.
    pub(super) fn finish(mut self) -> Vec<Document> {
        for rule in enabled_rules(self.settings) {
            self.grant_source(rule);
            self.grant_destination(rule);
            self.grant_client_keys(rule);
            if self.options.event_bridge {
                self.grant_event_bus(&rule.source);
            }
        }
        self.grant_queues();
        self.grant_roles();
        self.documents.into_values().collect()
    }

    fn grant_source(&mut self, rule: &'a Rule) {
        let place = &rule.source;
        let rules = enabled_rules(self.settings).filter(|other| other.source == *place);
        let listed = values::common_prefix(rules.map(source_prefix));
        self.grant_bucket(rule, (Place::SourceBucket, place), &listed);
        self.grant_objects(rule, (Place::SourceObjects, place), source_prefix(rule));
        if !rule.sse_kms_objects {
            return;
        }
        let mapped = match &rule.encryption {
            Encryption::Same { key_map } | Encryption::Kms { key_map, .. } => key_map.keys(),
            Encryption::BucketDefault | Encryption::S3 | Encryption::Dsse { .. } => {
                Default::default()
            }
        };
        let contexts = [
            self.arns.bucket(place),
            self.arns.objects(place, source_prefix(rule)),
        ];
        for key in self.arns.source_keys(rule, mapped) {
            self.grant_key(rule, (Place::SourceKeys, place), &key, &contexts);
        }
    }

    fn grant_destination(&mut self, rule: &'a Rule) {
        let place = &rule.destination;
        let rules = enabled_rules(self.settings).filter(|other| other.destination == *place);
        let listed = values::common_prefix(rules.map(destination_prefix));
        self.grant_bucket(rule, (Place::DestinationBucket, place), &listed);
        self.grant_objects(rule, (Place::Replicas, place), destination_prefix(rule));
        let bucket = self.arns.bucket(place);
        let objects = self.arns.objects(place, destination_prefix(rule));
        // What S3 encrypts under, with a bucket key, is for the bucket; without one, for the object.
        // https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucket-key.html
        let (keys, contexts): (Vec<String>, Vec<String>) = match &rule.encryption {
            Encryption::Kms {
                key,
                key_map,
                bucket_key,
            } => {
                let mut keys = match key {
                    ReplicaKey::Named(key) => vec![key.clone()],
                    ReplicaKey::Related => self.arns.related_keys(rule),
                };
                keys.extend(key_map.values().cloned());
                let context = if *bucket_key { bucket } else { objects };
                (keys, vec![context])
            }
            Encryption::Dsse { key } => (vec![key.clone()], vec![objects]),
            // What no KMS key encrypts goes as the bucket encrypts by default.
            Encryption::Same { key_map } => {
                let mapped = key_map.values().filter(|_| rule.sse_kms_objects);
                let keys = mapped.chain(&self.options.destination_keys);
                (keys.cloned().collect(), vec![bucket, objects])
            }
            Encryption::BucketDefault => {
                (self.options.destination_keys.clone(), vec![bucket, objects])
            }
            Encryption::S3 => return,
        };
        for key in keys {
            self.grant_key(rule, (Place::DestinationKeys, place), &key, &contexts);
        }
    }

    fn grant_bucket(&mut self, rule: &Rule, (kind, place): (Place, &'a BucketRef), listed: &str) {
        for permission in rows_of(kind, rule) {
            let is_beside = permission.is_beside_access_points();
            let targets = match self.arns.access_point(place).filter(|_| !is_beside) {
                Some(point) => self.targets_through(place, point, None),
                None => vec![self.bucket_target(place, self.arns.bucket(place))],
            };
            // A list of neighbouring keys asks for what they have in common. Other requests have no
            // prefix, and would be refused.
            let is_list = permission.action == "s3:ListBucketVersions" && !listed.is_empty();
            let pattern = is_list.then(|| format!("{}*", values::escape_wildcards(listed)));
            for target in targets {
                self.grant(permission, &target.with_prefix(pattern.as_ref()));
            }
        }
    }

    fn grant_objects(&mut self, rule: &Rule, (kind, place): (Place, &'a BucketRef), prefix: &str) {
        let targets = match self.arns.access_point(place) {
            Some(point) => self.targets_through(place, point, Some(prefix)),
            None => vec![self.bucket_target(place, self.arns.objects(place, prefix))],
        };
        for permission in rows_of(kind, rule) {
            for target in &targets {
                self.grant(permission, target);
            }
        }
    }

    /// A request through an access point has to be allowed there, and on the bucket as one that
    /// comes through it:
    /// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/access-points-policies.html>
    fn targets_through(
        &self,
        place: &'a BucketRef,
        point: &str,
        prefix: Option<&str>,
    ) -> Vec<Target<'a>> {
        let about = match prefix {
            Some(prefix) => self.arns.objects(place, prefix),
            None => self.arns.bucket(place),
        };
        let mut behind = self.bucket_target(place, about);
        let resource = match prefix {
            Some(prefix) => format!("{point}/object/{}*", values::escape_wildcards(prefix)),
            None => point.to_owned(),
        };
        let number = values::arn_account(point).unwrap_or_default();
        let front = Target {
            owner: number.to_owned(),
            is_foreign: false,
            policy: (DocumentKind::AccessPointPolicy, point.to_owned()),
            resource,
            ..behind.clone()
        };
        let through = ("StringEquals", "s3:DataAccessPointArn");
        add_condition(&mut behind.conditions, through, [point.to_owned()]);
        vec![front, behind]
    }

    fn bucket_target(&self, place: &'a BucketRef, resource: String) -> Target<'a> {
        let mut conditions = Conditions::new();
        let account = self.arns.account(&place.account);
        if let Some(owner) = account.and_then(|account| account.owner.as_ref()) {
            add_condition(
                &mut conditions,
                ("StringEquals", "s3:ResourceAccount"),
                [owner.clone()],
            );
        }
        Target {
            account: &place.account,
            owner: self.arns.number_of(&place.account),
            is_foreign: self.options.foreign_buckets.contains(place),
            policy: (DocumentKind::BucketPolicy, self.arns.bucket(place)),
            about: resource.clone(),
            resource,
            conditions,
        }
    }

    /// Lets S3 use a key for the sake of some objects, and the daemon look at it.
    fn grant_key(
        &mut self,
        rule: &Rule,
        (kind, place): (Place, &'a BucketRef),
        key: &str,
        contexts: &[String],
    ) {
        let (mut resource, mut conditions) = (key.to_owned(), Conditions::new());
        if let Some((scope, alias)) = key.split_once(":alias/") {
            // https://docs.aws.amazon.com/kms/latest/developerguide/alias-authorization.html
            resource = format!("{scope}:key/*");
            let aliases = ("ForAnyValue:StringEquals", "kms:ResourceAliases");
            add_condition(&mut conditions, aliases, [format!("alias/{alias}")]);
        }
        let region = self.arns.region(&place.account);
        let suffix = values::likely_partition(region).dns_suffix;
        let service = format!("s3.{region}.{suffix}");
        for permission in rows_of(kind, rule) {
            let mut conditions = conditions.clone();
            if permission.action != "kms:DescribeKey" {
                let via = ("StringEquals", "kms:ViaService");
                add_condition(&mut conditions, via, [service.clone()]);
                let context = ("StringLike", "kms:EncryptionContext:aws:s3:arn");
                add_condition(&mut conditions, context, contexts.iter().cloned());
            }
            let target = Target {
                resource: resource.clone(),
                conditions,
                ..key_target(&place.account, key)
            };
            self.grant(permission, &target);
        }
    }

    /// Lets the daemon wrap the data keys of clients anew.
    fn grant_client_keys(&mut self, rule: &'a Rule) {
        for keys in &rule.client_side_keys {
            let used = rows(Place::ClientSideKeys).filter_map(|permission| {
                Some((permission, client_key(permission.action, keys, rule)?))
            });
            for (permission, (key, place)) in used {
                self.grant(permission, &key_target(&place.account, key));
            }
        }
    }

    /// Lets `check` read the rules of the event bus that a bucket sends its events to.
    fn grant_event_bus(&mut self, source: &BucketRef) {
        let Some(account) = self.arns.account(&source.account) else {
            return;
        };
        let identity = self.arns.identity(account).to_owned();
        let of_rules = self.arns.event_bus_rules(&source.account);
        for permission in rows(Place::EventBus) {
            let grant = Grant::of(permission.action, "*");
            self.add(DocumentKind::Permissions, &identity, grant);
        }
        for permission in rows(Place::EventBusRules) {
            let grant = Grant::of(permission.action, &of_rules);
            self.add(DocumentKind::Permissions, &identity, grant);
        }
    }

    fn grant_queues(&mut self) {
        let settings = self.settings;
        for queue in &settings.queues {
            self.grant_queue(Place::EventsQueue, queue, &queue.url);
            self.grant_queue(Place::DeadLetterQueue, queue, &queue.dead_letter_url);
            self.let_s3_send(queue);
        }
        for queue in settings.work_queues.iter().chain(&settings.backfill_queues) {
            self.grant_queue(Place::WorkQueue, queue, &queue.url);
        }
    }

    fn grant_queue(&mut self, place: Place, queue: &'a Queue, url: &str) {
        let arn = self.arns.queue(queue, url);
        let target = Target {
            account: &queue.account,
            owner: values::arn_account(&arn).unwrap_or_default().to_owned(),
            is_foreign: false,
            policy: (DocumentKind::QueuePolicy, arn.clone()),
            about: arn.clone(),
            resource: arn,
            conditions: Conditions::new(),
        };
        for permission in rows(place) {
            self.grant(permission, &target);
        }
    }

    /// S3 sends the events of the buckets of the queue's Region.
    fn let_s3_send(&mut self, queue: &Queue) {
        let arn = self.arns.queue(queue, &queue.url);
        let region = |name: &String| self.arns.region(name);
        // The events of a disabled rule wait in its work queue.
        let rules = self.settings.rules.iter();
        let feeding: Vec<&BucketRef> = rules
            .filter(|rule| rule.enabled || rule.work_queue.is_some())
            .map(|rule| &rule.source)
            .filter(|source| region(&source.account) == region(&queue.account))
            .collect();
        let mut by_owner: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for source in feeding {
            let owner = self.arns.number_of(&source.account);
            let buckets = by_owner.entry(owner).or_default();
            buckets.insert(self.arns.bucket(source));
        }
        for (owner, buckets) in by_owner {
            let mut conditions = Conditions::new();
            add_condition(&mut conditions, ("ArnEquals", "aws:SourceArn"), buckets);
            add_condition(
                &mut conditions,
                ("StringEquals", "aws:SourceAccount"),
                [owner],
            );
            let grant = Grant {
                principal: Some(Principal::Service("s3.amazonaws.com".to_owned())),
                conditions,
                ..Grant::of("sqs:SendMessage", &arn)
            };
            self.add(DocumentKind::QueuePolicy, &arn, grant);
        }
    }

    /// Lets the principals that sign assume the roles of the configuration.
    fn grant_roles(&mut self) {
        for account in self.settings.accounts.values() {
            let base = self.arns.base(account).to_owned();
            let role = self.arns.identity(account).to_owned();
            if role != base {
                self.grant_role(&role, &base, account.external_id.as_ref());
            }
        }
    }

    fn grant_role(&mut self, role: &str, base: &str, external_id: Option<&String>) {
        for permission in rows(Place::Role) {
            let grant = Grant::of(permission.action, role);
            let mut trust = Grant {
                principal: Some(Principal::Aws(base.to_owned())),
                resource: None,
                ..grant.clone()
            };
            if let Some(id) = external_id {
                let key = ("StringEquals", "sts:ExternalId");
                add_condition(&mut trust.conditions, key, [id.clone()]);
            }
            self.add(DocumentKind::Permissions, base, grant);
            self.add(DocumentKind::Trust, role, trust);
        }
    }

    /// Allows an action to the identity that an account is reached by, and where the resource is
    /// another account's, by the policy of that, too.
    fn grant(&mut self, permission: &Permission, target: &Target<'_>) {
        let Some(account) = self.arns.account(target.account) else {
            return;
        };
        let identity = self.arns.identity(account).to_owned();
        let (kind, attached_to) = &target.policy;
        let grant = Grant {
            resource: Some(target.resource.clone()),
            conditions: target.conditions.clone(),
            ..Grant::of(permission.action, &target.about)
        };
        self.add(DocumentKind::Permissions, &identity, grant.clone());
        let is_key = *kind == DocumentKind::KeyPolicy;
        let is_own = values::arn_account(&identity) == Some(target.owner.as_str());
        if !is_key && is_own && !target.is_foreign {
            return;
        }
        let mut grant = Grant {
            principal: Some(Principal::Aws(values::account_root(&identity))),
            ..grant
        };
        grant.conditions.remove("ForAnyValue:StringEquals");
        if let Some(keys) = grant.conditions.get_mut("StringEquals") {
            keys.remove("s3:ResourceAccount");
        }
        grant.conditions.retain(|_, keys| !keys.is_empty());
        let role = ("ArnEquals", "aws:PrincipalArn");
        add_condition(&mut grant.conditions, role, [identity]);
        if is_key {
            // In the policy of a key, that key.
            grant.resource = Some("*".to_owned());
        }
        self.add(*kind, attached_to, grant);
    }

    fn add(&mut self, kind: DocumentKind, attached_to: &str, grant: Grant) {
        let place = (kind, attached_to.to_owned());
        let owner = values::arn_account(attached_to).filter(|owner| !owner.is_empty());
        let document = self.documents.entry(place).or_insert_with(|| Document {
            kind,
            attached_to: attached_to.to_owned(),
            account: owner.unwrap_or_default().to_owned(),
            grants: Vec::new(),
        });
        if !document.grants.contains(&grant) {
            document.grants.push(grant);
        }
    }
}

fn enabled_rules(settings: &Settings) -> impl Iterator<Item = &Rule> {
    settings.rules.iter().filter(|rule| rule.enabled)
}

fn source_prefix(rule: &Rule) -> &str {
    &rule.filter.prefix
}

fn destination_prefix(rule: &Rule) -> &str {
    rule.rewrite.as_deref().unwrap_or(&rule.filter.prefix)
}

fn key_target<'t>(account: &'t str, key: &str) -> Target<'t> {
    Target {
        account,
        owner: values::arn_account(key).unwrap_or_default().to_owned(),
        is_foreign: false,
        policy: (DocumentKind::KeyPolicy, key.to_owned()),
        about: key.to_owned(),
        resource: key.to_owned(),
        conditions: Conditions::new(),
    }
}
