//! From the settings to grants: which identity needs which action on what, under which conditions,
//! and whose policy has to say so.

use std::collections::{BTreeMap, BTreeSet};

use replicator_core::rule::{BucketRef, Encryption, ReplicaKey, Rule, related_key};

use super::table::{Permission, Place, client_key, rows, rows_of};
use super::{
    Conditions, Document, DocumentKind, Grant, PolicyLayout, PolicyOptions, Principal,
    add_condition,
};
use crate::settings::Settings;
use crate::settings::accounts::Account;
use crate::settings::queues::Queue;
use crate::values;

/// Documents in the making.
pub(super) struct GrantDraft<'a> {
    settings: &'a Settings,
    options: &'a PolicyOptions,
    /// The daemon's own role.
    own: String,
    documents: BTreeMap<(DocumentKind, String), Document>,
}

/// A resource of some identity, and what holds for all of its grants.
struct Target<'a> {
    account: &'a str,
    /// The number of the account that owns it.
    owner: String,
    /// The policy that lets other accounts in, and the ARN it is attached to.
    policy: (DocumentKind, String),
    resource: String,
    conditions: Conditions,
}

impl<'a> GrantDraft<'a> {
    /// Starts without a document.
    pub(super) fn new(settings: &'a Settings, options: &'a PolicyOptions, own: String) -> Self {
        Self {
            settings,
            options,
            own,
            documents: BTreeMap::new(),
        }
    }

    /// Lists what all enabled rules need.
    pub(super) fn finish(mut self) -> Vec<Document> {
        for rule in enabled_rules(self.settings) {
            self.grant_source(rule);
            self.grant_destination(rule);
            self.grant_client_keys(rule);
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
        let known = &self.options.source_keys;
        let mut keys: BTreeSet<String> = known.iter().chain(mapped).cloned().collect();
        if known.is_empty() {
            keys = BTreeSet::from([self.any_key(&place.account)]);
        }
        let contexts = [
            bucket_arn(self.settings, place),
            object_arn(self.settings, place, source_prefix(rule)),
        ];
        for key in keys {
            self.grant_key(rule, (Place::SourceKeys, place), &key, &contexts);
        }
    }

    fn grant_destination(&mut self, rule: &'a Rule) {
        let place = &rule.destination;
        let rules = enabled_rules(self.settings).filter(|other| other.destination == *place);
        let listed = values::common_prefix(rules.map(destination_prefix));
        self.grant_bucket(rule, (Place::DestinationBucket, place), &listed);
        self.grant_objects(rule, (Place::Replicas, place), destination_prefix(rule));
        let bucket = bucket_arn(self.settings, place);
        let objects = object_arn(self.settings, place, destination_prefix(rule));
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
                    ReplicaKey::Related => self.related_keys(rule),
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
        let bucket = bucket_arn(self.settings, place);
        for permission in rows_of(kind, rule) {
            let mut target = self.bucket_target(place, bucket.clone());
            // A list of neighbouring keys asks for what they have in common. Other requests have no
            // prefix, and would be refused.
            if permission.action == "s3:ListBucketVersions" && !listed.is_empty() {
                add_condition(
                    &mut target.conditions,
                    ("StringLike", "s3:prefix"),
                    [format!("{}*", values::escape_wildcards(listed))],
                );
            }
            self.grant(permission, &target);
        }
    }

    fn grant_objects(&mut self, rule: &Rule, (kind, place): (Place, &'a BucketRef), prefix: &str) {
        let target = self.bucket_target(place, object_arn(self.settings, place, prefix));
        for permission in rows_of(kind, rule) {
            self.grant(permission, &target);
        }
    }

    fn bucket_target(&self, place: &'a BucketRef, resource: String) -> Target<'a> {
        let mut conditions = Conditions::new();
        let account = self.settings.accounts.get(&place.account);
        if let Some(owner) = account.and_then(|account| account.owner.as_ref()) {
            add_condition(
                &mut conditions,
                ("StringEquals", "s3:ResourceAccount"),
                [owner.clone()],
            );
        }
        Target {
            account: &place.account,
            owner: self.number_of(&place.account),
            policy: (DocumentKind::BucketPolicy, bucket_arn(self.settings, place)),
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
        let region = region_of(self.settings, &place.account);
        let service = format!("s3.{region}.{}", values::partition(region).1);
        for permission in rows_of(kind, rule) {
            let mut conditions = conditions.clone();
            if permission.action != "kms:DescribeKey" {
                let via = ("StringEquals", "kms:ViaService");
                add_condition(&mut conditions, via, [service.clone()]);
                let context = ("StringLike", "kms:EncryptionContext:aws:s3:arn");
                add_condition(&mut conditions, context, contexts.iter().cloned());
            }
            let target = Target {
                account: &place.account,
                owner: values::arn_account(key).unwrap_or_default().to_owned(),
                policy: (DocumentKind::KeyPolicy, key.to_owned()),
                resource: resource.clone(),
                conditions,
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
                let target = Target {
                    account: &place.account,
                    owner: values::arn_account(key).unwrap_or_default().to_owned(),
                    policy: (DocumentKind::KeyPolicy, key.to_owned()),
                    resource: key.to_owned(),
                    conditions: Conditions::new(),
                };
                self.grant(permission, &target);
            }
        }
    }

    fn grant_queues(&mut self) {
        let settings = self.settings;
        for queue in &settings.queues {
            self.grant_queue(Place::EventsQueue, queue, &queue.url);
            self.grant_queue(Place::DeadLetterQueue, queue, &queue.dead_letter_url);
            self.let_s3_send(queue);
        }
        for queue in &settings.work_queues {
            self.grant_queue(Place::WorkQueue, queue, &queue.url);
        }
    }

    fn grant_queue(&mut self, place: Place, queue: &'a Queue, url: &str) {
        let arn = self.queue_arn(queue, url);
        let target = Target {
            account: &queue.account,
            owner: values::arn_account(&arn).unwrap_or_default().to_owned(),
            policy: (DocumentKind::QueuePolicy, arn.clone()),
            resource: arn,
            conditions: Conditions::new(),
        };
        for permission in rows(place) {
            self.grant(permission, &target);
        }
    }

    /// S3 sends the events of the buckets of the queue's Region.
    fn let_s3_send(&mut self, queue: &Queue) {
        let arn = self.queue_arn(queue, &queue.url);
        let region = |name: &String| region_of(self.settings, name);
        // The events of a disabled rule wait in its work queue.
        let rules = self.settings.rules.iter();
        let feeding: Vec<&BucketRef> = rules
            .filter(|rule| rule.enabled || rule.work_queue.is_some())
            .map(|rule| &rule.source)
            .filter(|source| region(&source.account) == region(&queue.account))
            .collect();
        let mut by_owner: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for source in feeding {
            let buckets = by_owner.entry(self.number_of(&source.account)).or_default();
            buckets.insert(bucket_arn(self.settings, source));
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
                action: "sqs:SendMessage",
                resource: Some(arn.clone()),
                conditions,
            };
            self.add(DocumentKind::QueuePolicy, &arn, grant);
        }
    }

    /// Lets the daemon's own role assume the roles of the configuration.
    fn grant_roles(&mut self) {
        for account in self.settings.accounts.values() {
            let role = self.identity(account);
            if role != self.own {
                self.grant_role(&role, account.external_id.as_ref());
            }
        }
    }

    fn grant_role(&mut self, role: &str, external_id: Option<&String>) {
        let own = self.own.clone();
        for permission in rows(Place::Role) {
            let grant = Grant {
                principal: None,
                action: permission.action,
                resource: Some(role.to_owned()),
                conditions: Conditions::new(),
            };
            let mut trust = Grant {
                principal: Some(Principal::Aws(own.clone())),
                resource: None,
                ..grant.clone()
            };
            if let Some(id) = external_id {
                let key = ("StringEquals", "sts:ExternalId");
                add_condition(&mut trust.conditions, key, [id.clone()]);
            }
            self.add(DocumentKind::Permissions, &own, grant);
            self.add(DocumentKind::Trust, role, trust);
        }
    }

    /// Allows an action to the identity that an account is reached by, and where the resource is
    /// another account's, by the policy of that, too.
    fn grant(&mut self, permission: &Permission, target: &Target<'_>) {
        let Some(account) = self.settings.accounts.get(target.account) else {
            return;
        };
        let identity = self.identity(account);
        let (kind, attached_to) = &target.policy;
        let grant = Grant {
            principal: None,
            action: permission.action,
            resource: Some(target.resource.clone()),
            conditions: target.conditions.clone(),
        };
        self.add(DocumentKind::Permissions, &identity, grant.clone());
        let is_key = *kind == DocumentKind::KeyPolicy;
        if !is_key && values::arn_account(&identity) == Some(target.owner.as_str()) {
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

    /// Returns the role that reaches an account's services.
    fn identity(&self, account: &Account) -> String {
        match (&account.role_arn, self.options.layout) {
            (Some(role), PolicyLayout::Roles) => role.clone(),
            _ => self.own.clone(),
        }
    }

    /// Returns the number of the account that owns the buckets reached by this: its role's or the
    /// daemon's own, if nothing else is said.
    fn number_of(&self, account: &str) -> String {
        let account = self.settings.accounts.get(account);
        let owner = account.and_then(|account| account.owner.as_deref());
        let role = account.and_then(|account| account.role_arn.as_deref());
        let number = owner.or(values::arn_account(role.unwrap_or(&self.own)));
        number.unwrap_or_default().to_owned()
    }

    fn any_key(&self, account: &str) -> String {
        let region = region_of(self.settings, account);
        format!(
            "arn:{}:kms:{region}:{}:key/*",
            values::partition(region).0,
            self.number_of(account)
        )
    }

    /// Lists the replicas of the source's multi-Region keys: those of the keys that are known, or
    /// any of the source's account.
    fn related_keys(&self, rule: &Rule) -> Vec<String> {
        let region = region_of(self.settings, &rule.destination.account);
        let known = self.options.source_keys.iter();
        let related: Vec<String> = known.filter_map(|key| related_key(key, region)).collect();
        if !related.is_empty() {
            return related;
        }
        let any = self
            .any_key(&rule.source.account)
            .replace(":key/*", ":key/mrk-*");
        related_key(&any, region).into_iter().collect()
    }

    fn queue_arn(&self, queue: &Queue, url: &str) -> String {
        let region = region_of(self.settings, &queue.account);
        let name = url.rsplit('/').next().unwrap_or_default();
        let number = values::queue_account(url)
            .or(values::arn_account(&self.own))
            .unwrap_or_default();
        format!(
            "arn:{}:sqs:{region}:{number}:{name}",
            values::partition(region).0
        )
    }
}

fn enabled_rules(settings: &Settings) -> impl Iterator<Item = &Rule> {
    settings.rules.iter().filter(|rule| rule.enabled)
}

fn region_of<'s>(settings: &'s Settings, account: &str) -> &'s str {
    let account = settings.accounts.get(account);
    account.map_or("", |account| account.region.as_str())
}

fn source_prefix(rule: &Rule) -> &str {
    &rule.filter.prefix
}

fn destination_prefix(rule: &Rule) -> &str {
    rule.rewrite.as_deref().unwrap_or(&rule.filter.prefix)
}

fn bucket_arn(settings: &Settings, place: &BucketRef) -> String {
    let region = region_of(settings, &place.account);
    format!(
        "arn:{}:s3:::{}",
        values::partition(region).0,
        place.bucket.as_str()
    )
}

fn object_arn(settings: &Settings, place: &BucketRef, prefix: &str) -> String {
    format!(
        "{}/{}*",
        bucket_arn(settings, place),
        values::escape_wildcards(prefix)
    )
}
