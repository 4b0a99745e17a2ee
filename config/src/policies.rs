//! The least-privilege documents for a configuration: what each role may do, what may assume it, and
//! what buckets, queues and keys of other accounts let it do. Nothing is asked of a service.

mod formats;
mod grants;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;

use replicator_core::rule::{BucketRef, Rule, related_key};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use strum::{Display, EnumString, VariantNames};

use crate::settings::Settings;
use crate::settings::accounts::Account;
use crate::settings::queues::Queue;
use crate::values;
pub use formats::{PolicyFormat, render};
use grants::GrantDraft;
pub use table::{Need, PERMISSIONS, Permission, Place};

/// How the daemon reaches the buckets of other accounts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum PolicyLayout {
    /// By the roles that the configuration names.
    #[default]
    Roles,
    /// By its own role alone, which the policies of the buckets let in.
    BucketPolicy,
}

/// What the configuration does not say.
#[derive(Debug, Clone, Default)]
pub struct PolicyOptions {
    /// How buckets of other accounts are reached.
    pub layout: PolicyLayout,
    /// The ARN of the daemon's own role; one named `s3-replicator` in the account of the first queue
    /// when absent.
    pub principal: Option<String>,
    /// The principals that sign for single accounts, by the accounts' names: those of profiles.
    pub principals: BTreeMap<String, String>,
    /// Buckets that are known to be in another account than the principal that reaches them.
    pub foreign_buckets: BTreeSet<BucketRef>,
    /// Keys that source objects are encrypted under; any of the source's account when empty.
    pub source_keys: Vec<String>,
    /// Keys that destination buckets encrypt under by default.
    pub destination_keys: Vec<String>,
    /// Whether source buckets send their events to EventBridge.
    pub event_bridge: bool,
}

impl PolicyOptions {
    /// Takes the daemon's own role, `ARN`, or the principal of an account's profile, `NAME=ARN`;
    /// each once.
    pub fn add_principal(&mut self, text: &str, settings: &Settings) -> Result<(), PolicyError> {
        // The name of a role may have the sign, too.
        let named = text.split_once('=').filter(|_| !text.starts_with("arn:"));
        let (name, arn) = match named {
            None => {
                let arn = values::role_arn(text).map_err(PolicyError)?;
                return match self.principal.replace(arn) {
                    None => Ok(()),
                    Some(other) => Err(PolicyError(format!(
                        "--principal names two roles of the daemon, {other} and {text}; it has one"
                    ))),
                };
            }
            Some((name, arn)) => (name, values::principal_arn(arn).map_err(PolicyError)?),
        };
        let Some(account) = settings.accounts.get(name) else {
            let known = settings.accounts.keys().map(String::as_str);
            let hint = values::suggest_nearest(name, known);
            return Err(PolicyError(format!(
                "account {name:?} is not defined; {hint}"
            )));
        };
        if account.profile.is_none() {
            return Err(PolicyError(format!(
                "account {name:?} has no profile, so the daemon's own role signs for it; name that with --principal ARN"
            )));
        }
        match self.principals.insert(name.to_owned(), arn) {
            None => Ok(()),
            Some(other) => Err(PolicyError(format!(
                "--principal names two principals of account {name:?}, {other} too; a profile is one"
            ))),
        }
    }

    /// Takes keys that source objects are encrypted under, and keys that destination buckets
    /// encrypt under by default.
    pub fn with_keys(
        mut self,
        source: &[String],
        destination: &[String],
    ) -> Result<Self, PolicyError> {
        let checked = |keys: &[String]| {
            let keys = keys.iter().map(|key| values::kms_key(key));
            keys.collect::<Result<Vec<_>, _>>().map_err(PolicyError)
        };
        self.source_keys = checked(source)?;
        self.destination_keys = checked(destination)?;
        Ok(self)
    }
}

/// A configuration that documents can't be made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError(String);

impl Error for PolicyError {}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a document is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Display, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum DocumentKind {
    /// What a role may do.
    Permissions,
    /// Which principals may assume a role.
    Trust,
    /// What others may do with a bucket.
    BucketPolicy,
    /// What others may do through an access point.
    AccessPointPolicy,
    /// What others may do with a queue.
    QueuePolicy,
    /// What a key may be used for; to add to its policy, which has more.
    KeyPolicy,
}

/// A policy, and what it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What it is attached to.
    pub kind: DocumentKind,
    /// The ARN of the role, bucket, queue or key.
    pub attached_to: String,
    /// The number of the account that this is in.
    pub account: String,
    grants: Vec<Grant>,
}

/// One action on one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Grant {
    principal: Option<Principal>,
    action: &'static str,
    /// The bucket, objects, queue, key or role that it is for; a request through an access point is
    /// about the bucket behind it.
    about: String,
    resource: Option<String>,
    conditions: Conditions,
}

/// The principals of a resource's policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Principal {
    Aws(String),
    Service(String),
}

/// Operator, key of the context, and values.
type Conditions = BTreeMap<&'static str, BTreeMap<&'static str, BTreeSet<String>>>;

/// Lists the documents that the enabled rules need.
pub fn policies(
    settings: &Settings,
    options: &PolicyOptions,
) -> Result<Vec<Document>, PolicyError> {
    let arns = ArnTable::new(settings, options)?;
    let documents = GrantDraft::new(settings, options, arns).finish();
    let is_bucket_policy = |document: &Document| document.kind == DocumentKind::BucketPolicy;
    if options.layout == PolicyLayout::BucketPolicy && !documents.iter().any(is_bucket_policy) {
        let message = "no bucket is known to be in another account than the daemon's role; set owner in [accounts.NAME] to the account that has its buckets";
        return Err(PolicyError(message.to_owned()));
    }
    Ok(documents)
}

fn add_condition(
    conditions: &mut Conditions,
    (operator, key): (&'static str, &'static str),
    values: impl IntoIterator<Item = String>,
) {
    let keys = conditions.entry(operator).or_default();
    keys.entry(key).or_default().extend(values);
}

impl Document {
    /// Returns the policy as IAM has it.
    pub fn policy(&self) -> Value {
        json!({"Version": "2012-10-17", "Statement": self.statements(|_| true)})
    }

    /// Returns the statements that allow one action, as they stand in the policy but without other
    /// actions.
    pub fn statements_of(&self, action: &str) -> Vec<Value> {
        self.statements(|grant| grant.action == action)
    }

    /// Returns the statements that allow one action on one thing: a bucket or the objects of a
    /// rule, a queue, a key or a role, by the ARN that policies have for it.
    pub fn statements_about(&self, action: &str, arn: &str) -> Vec<Value> {
        self.statements(|grant| grant.action == action && grant.about == arn)
    }

    /// Returns the statements that allow one action on several things, of which this may be one.
    pub fn statements_over(&self, action: &str, arn: &str) -> Vec<Value> {
        self.statements(|grant| grant.action == action && covers(&grant.about, arn))
    }

    /// Lists the actions of the policy, each with what it is about.
    pub fn grants(&self) -> BTreeSet<(&'static str, &str)> {
        let grants = self
            .grants
            .iter()
            .map(|one| (one.action, one.about.as_str()));
        grants.collect()
    }

    /// Says whether a statement names a principal.
    fn names_principal(&self, arn: &str) -> bool {
        let named = |one: &Grant| matches!(&one.principal, Some(Principal::Aws(own)) if own == arn);
        self.grants.iter().any(named)
    }

    /// Lists the actions of the policy.
    pub fn actions(&self) -> BTreeSet<&'static str> {
        self.grants.iter().map(|grant| grant.action).collect()
    }

    /// Puts together what differs in the resource alone, and then what differs in the action alone.
    fn statements(&self, is_meant: impl Fn(&Grant) -> bool) -> Vec<Value> {
        let mut resources: Vec<(&Grant, BTreeSet<&String>)> = Vec::new();
        for grant in self.grants.iter().filter(|grant| is_meant(grant)) {
            let is_like = |(other, _): &&mut (&Grant, _)| {
                other.action == grant.action && other.is_alike(grant)
            };
            match resources.iter_mut().find(is_like) {
                Some((_, resources)) => resources.extend(&grant.resource),
                None => resources.push((grant, grant.resource.iter().collect())),
            }
        }
        let mut statements: Vec<(&Grant, BTreeSet<&String>, BTreeSet<&str>)> = Vec::new();
        for (grant, resources) in resources {
            let is_like = |(other, others, _): &&mut (&Grant, BTreeSet<&String>, _)| {
                *others == resources && other.is_alike(grant)
            };
            match statements.iter_mut().find(is_like) {
                Some((_, _, actions)) => {
                    actions.insert(grant.action);
                }
                None => statements.push((grant, resources, BTreeSet::from([grant.action]))),
            }
        }
        statements
            .into_iter()
            .map(|(grant, resources, actions)| statement(grant, &resources, &actions))
            .collect()
    }
}

/// Says whether a name, whose end may be open, may stand for an ARN. An alias may be one of any key.
fn covers(name: &str, arn: &str) -> bool {
    let alias = name.split_once(":alias/");
    let start = match alias {
        Some((scope, _)) => Some(format!("{scope}:key/")),
        None => name.strip_suffix('*').map(str::to_owned),
    };
    name == arn || start.is_some_and(|start| arn.starts_with(&start))
}

impl Grant {
    /// Makes one without principal and conditions.
    fn of(action: &'static str, resource: &str) -> Self {
        Self {
            principal: None,
            action,
            about: resource.to_owned(),
            resource: Some(resource.to_owned()),
            conditions: Conditions::new(),
        }
    }

    /// Says whether all but action and resource is the same.
    fn is_alike(&self, other: &Self) -> bool {
        self.principal == other.principal
            && self.conditions == other.conditions
            && self.resource.is_some() == other.resource.is_some()
    }
}

fn statement(grant: &Grant, resources: &BTreeSet<&String>, actions: &BTreeSet<&str>) -> Value {
    let mut statement = Map::new();
    let mut set = |name: &str, value| statement.insert(name.to_owned(), value);
    set("Effect", "Allow".into());
    match &grant.principal {
        Some(Principal::Aws(arn)) => set("Principal", json!({"AWS": arn})),
        Some(Principal::Service(name)) => set("Principal", json!({"Service": name})),
        None => None,
    };
    set("Action", one_or_many(actions));
    if !resources.is_empty() {
        set("Resource", one_or_many(resources));
    }
    if !grant.conditions.is_empty() {
        let conditions = grant.conditions.iter().map(|(operator, keys)| {
            let keys = keys
                .iter()
                .map(|(key, values)| ((*key).to_owned(), one_or_many(values)));
            ((*operator).to_owned(), Value::Object(keys.collect()))
        });
        set("Condition", Value::Object(conditions.collect()));
    }
    Value::Object(statement)
}

fn one_or_many<T: AsRef<str>>(texts: &BTreeSet<T>) -> Value {
    let mut values: Vec<Value> = texts.iter().map(|text| text.as_ref().into()).collect();
    match values.len() {
        1 => values.remove(0),
        _ => Value::Array(values),
    }
}

/// Returns the ARN of a bucket that an account reaches.
pub fn bucket_arn(account: &Account, bucket: &str) -> String {
    let partition = values::likely_partition(&account.region).name;
    format!("arn:{partition}:s3:::{bucket}")
}

/// Returns the ARN that stands for all objects with a prefix.
pub fn objects_arn(account: &Account, bucket: &str, prefix: &str) -> String {
    let prefix = values::escape_wildcards(prefix);
    format!("{}/{prefix}*", bucket_arn(account, bucket))
}

/// Returns the ARN of a queue by its URL, in the principal's account where that tells none.
pub fn queue_arn(account: &Account, url: &str, principal: &str) -> String {
    let name = url.rsplit('/').next().unwrap_or_default();
    let number = values::queue_account(url).or(values::arn_account(principal));
    format!(
        "arn:{}:sqs:{}:{}:{name}",
        values::likely_partition(&account.region).name,
        account.region,
        number.unwrap_or_default()
    )
}

/// The names of a configuration, as policies have them.
#[derive(Debug)]
pub(super) struct ArnTable<'a> {
    settings: &'a Settings,
    options: &'a PolicyOptions,
    /// The daemon's own role, where the configuration tells it.
    own: Option<String>,
}

impl<'a> ArnTable<'a> {
    /// Finds the principals of all accounts.
    pub(super) fn new(
        settings: &'a Settings,
        options: &'a PolicyOptions,
    ) -> Result<Self, PolicyError> {
        let named = options.principal.clone();
        let table = Self {
            settings,
            options,
            own: named.or_else(|| default_principal(settings)),
        };
        for account in settings.accounts.values() {
            table.require_principal(account)?;
        }
        Ok(table)
    }

    fn require_principal(&self, account: &Account) -> Result<(), PolicyError> {
        let name = &account.name;
        let message = match (self.base_of(account), &account.profile) {
            (Some(_), _) => return Ok(()),
            (None, Some(profile)) => format!(
                "the profile {profile:?} signs for account {name:?}, and which principal that is the configuration does not tell; name it with --principal {name}=ARN"
            ),
            (None, None) => "no queue's URL tells the account of the daemon's role; name the role with --principal ARN".to_owned(),
        };
        Err(PolicyError(message))
    }

    /// Returns the principal that signs for an account before it assumes a role: that of its
    /// profile, or the daemon's own role.
    fn base_of(&self, account: &Account) -> Option<&str> {
        let named = self.options.principals.get(&account.name);
        let own = self.own.as_ref().filter(|_| account.profile.is_none());
        named.or(own).map(String::as_str)
    }

    /// Returns the principal that assumes an account's role.
    pub(super) fn base(&self, account: &Account) -> &str {
        self.base_of(account).unwrap_or_default()
    }

    /// Returns the principal that reaches an account's services.
    pub(super) fn identity<'t>(&'t self, account: &'t Account) -> &'t str {
        match (&account.role_arn, self.options.layout) {
            (Some(role), PolicyLayout::Roles) => role,
            _ => self.base(account),
        }
    }

    pub(super) fn account(&self, name: &str) -> Option<&'a Account> {
        self.settings.accounts.get(name)
    }

    pub(super) fn region(&self, account: &str) -> &'a str {
        self.account(account)
            .map_or("", |account| account.region.as_str())
    }

    /// Returns the number of the account that owns the buckets reached by this: its role's or its
    /// principal's, if nothing else is said.
    pub(super) fn number_of(&self, account: &str) -> String {
        let number = self.account(account).and_then(|account| {
            let role = account.role_arn.as_deref();
            let principal = role.unwrap_or(self.base(account));
            let owner = account.owner.as_deref();
            owner.or(values::arn_account(principal))
        });
        number.unwrap_or_default().to_owned()
    }

    pub(super) fn bucket(&self, place: &BucketRef) -> String {
        let account = self.account(&place.account);
        let arn = account.map(|account| bucket_arn(account, place.bucket.as_str()));
        arn.unwrap_or_default()
    }

    pub(super) fn objects(&self, place: &BucketRef, prefix: &str) -> String {
        let account = self.account(&place.account);
        let arn = account.map(|account| objects_arn(account, place.bucket.as_str(), prefix));
        arn.unwrap_or_default()
    }

    /// Returns the access point through which a bucket is reached.
    pub(super) fn access_point(&self, place: &BucketRef) -> Option<&'a str> {
        let points = &self.account(&place.account)?.access_points;
        points.get(&place.bucket).map(String::as_str)
    }

    pub(super) fn queue(&self, queue: &Queue, url: &str) -> String {
        let account = self.account(&queue.account);
        let arn = account.map(|account| queue_arn(account, url, self.base(account)));
        arn.unwrap_or_default()
    }

    /// Lists the keys that source objects of a rule may be encrypted under.
    pub(super) fn source_keys<'k>(
        &self,
        rule: &Rule,
        mapped: impl Iterator<Item = &'k String>,
    ) -> BTreeSet<String> {
        let mut keys: BTreeSet<String> = self.options.source_keys.iter().cloned().collect();
        match keys.is_empty() {
            true => BTreeSet::from([self.any_key(&rule.source.account)]),
            false => {
                keys.extend(mapped.cloned());
                keys
            }
        }
    }

    /// Returns the ARN that stands for the rules of all event buses of an account.
    pub(super) fn event_bus_rules(&self, account: &str) -> String {
        let keys = self.any_key(account).replacen("kms", "events", 1);
        keys.replace("key/*", "rule/*")
    }

    fn any_key(&self, account: &str) -> String {
        let region = self.region(account);
        let partition = values::likely_partition(region).name;
        format!(
            "arn:{partition}:kms:{region}:{}:key/*",
            self.number_of(account)
        )
    }

    /// Lists the replicas of the source's multi-Region keys: those of the keys that are known, or
    /// any of the source's account.
    pub(super) fn related_keys(&self, rule: &Rule) -> Vec<String> {
        let region = self.region(&rule.destination.account);
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
}

/// Returns the role that signs where the configuration names none: one in the account of the first
/// queue.
fn default_principal(settings: &Settings) -> Option<String> {
    let queue = settings.queues.first()?;
    let account = settings.accounts.get(&queue.account)?;
    let number = values::queue_account(&queue.url).or(account.owner.as_deref())?;
    let partition = values::likely_partition(&account.region).name;
    Some(format!("arn:{partition}:iam::{number}:role/s3-replicator"))
}
