//! The ARNs of what a configuration names: buckets and their objects, access points, queues and keys,
//! and the principals that reach them.

use std::collections::BTreeSet;

use replicator_core::rule::{BucketRef, Rule, related_key};

use super::{PolicyError, PolicyLayout, PolicyOptions};
use crate::settings::Settings;
use crate::settings::accounts::Account;
use crate::settings::queues::Queue;
use crate::values;

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
