//! Accounts: whose credentials sign, and which endpoints they are good for.

use std::collections::BTreeMap;

use replicator_core::object::Bucket;
use strum::{EnumString, VariantNames};

use crate::diagnostics::Problems;
use crate::schema::Field;
use crate::{schema, values};

/// Credentials and the services they reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// The name that queues and rules use.
    pub name: String,
    /// The Region that requests are signed for.
    pub region: String,
    /// The role to assume, from the profile or the default credential chain.
    pub role_arn: Option<String>,
    /// The external id that the role's trust policy requires.
    pub external_id: Option<String>,
    /// The profile of the shared configuration that signs.
    pub profile: Option<String>,
    /// The endpoint of every service that `endpoints` does not name; AWS when absent.
    pub endpoint: Option<String>,
    /// Endpoints of single services.
    pub endpoints: ServiceEndpoints,
    /// Whether the bucket stands in the path rather than in the host name.
    pub path_style: bool,
    /// Whether the S3 endpoint honours conditions on writes.
    pub conditional_writes: ConditionalWrites,
    /// The AWS account that has to own every bucket that is reached by this.
    pub owner: Option<String>,
    /// Whether AWS is reached by endpoints that have IPv6 addresses too.
    pub use_dualstack: bool,
    /// Whether AWS is reached by endpoints with FIPS 140 cryptography.
    pub use_fips: bool,
    /// The access points through which buckets are reached, by their ARNs.
    pub access_points: BTreeMap<Bucket, String>,
}

/// Endpoints of single services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceEndpoints {
    /// Object storage.
    pub s3: Option<String>,
    /// Queues.
    pub sqs: Option<String>,
    /// Keys.
    pub kms: Option<String>,
    /// Roles.
    pub sts: Option<String>,
}

/// A service that an account reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Object storage.
    S3,
    /// Queues.
    Sqs,
    /// Keys.
    Kms,
    /// Roles.
    Sts,
}

/// Whether an S3 endpoint honours conditions on writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum ConditionalWrites {
    /// Found out at run time, operation by operation.
    #[default]
    Auto,
    /// It does, and that is relied on.
    #[strum(serialize = "true")]
    On,
    /// It does not.
    #[strum(serialize = "false")]
    Off,
}

impl Account {
    /// Returns the endpoint of a service; AWS's own when absent.
    pub fn endpoint_of(&self, service: Service) -> Option<&str> {
        let own = match service {
            Service::S3 => &self.endpoints.s3,
            Service::Sqs => &self.endpoints.sqs,
            Service::Kms => &self.endpoints.kms,
            Service::Sts => &self.endpoints.sts,
        };
        own.as_deref().or(self.endpoint.as_deref())
    }

    /// Returns the URL of a service that the file names no endpoint for, in a Region; as the
    /// endpoint rules of AWS's SDKs have it.
    pub fn service_url(&self, service: &str, region: &str) -> String {
        if let Some(endpoint) = &self.endpoint {
            return format!("{endpoint}/");
        }
        let partition = values::likely_partition(region);
        let suffix = match self.use_dualstack {
            true => partition.dual_stack_suffix,
            false => partition.dns_suffix,
        };
        // The plain endpoints of GovCloud are FIPS endpoints, of EventBridge the dual-stack one too.
        let is_fips =
            partition.name == "aws-us-gov" && (!self.use_dualstack || service == "events");
        let marker = match self.use_fips && !is_fips {
            true => "-fips",
            false => "",
        };
        format!("https://{service}{marker}.{region}.{suffix}/")
    }
}

/// Accounts as written.
type Written = Field<BTreeMap<String, Field<schema::Account>>>;

/// Checks every account; one with a problem is there all the same, so that it can be referred to.
pub(super) fn resolve(written: &Written, problems: &mut Problems<'_>) -> BTreeMap<String, Account> {
    let entries = written.present_value().into_iter().flatten();
    entries
        .map(|(name, written)| (name.clone(), account(name, written, problems)))
        .collect()
}

/// Checks that a queue or rule names an account that is there.
pub(super) fn resolve_account_name(
    written: &Field<String>,
    accounts: &BTreeMap<String, Account>,
    problems: &mut Problems<'_>,
) -> Option<String> {
    written.require_with("name one of the accounts", problems, |name: &str| {
        if let Some(account) = accounts.get(name) {
            return Ok(account.name.clone());
        }
        let hint = if accounts.is_empty() {
            format!("add [accounts.{name}]")
        } else {
            values::suggest_nearest(name, accounts.keys().map(String::as_str))
        };
        Err(format!("account {name:?} is not defined; {hint}"))
    })
}

fn account(name: &str, written: &Field<schema::Account>, problems: &mut Problems<'_>) -> Account {
    let mut account = Account {
        name: name.to_owned(),
        ..Account::default()
    };
    let Some(written) = written.present_value() else {
        return account;
    };
    let remedy = "name the Region to sign for, like \"eu-west-1\"";
    let region = written.region.require_with(remedy, problems, region);
    account.region = region.unwrap_or_default();
    account.role_arn = written.role_arn.parse_with(problems, values::role_arn);
    account.external_id = written.external_id.parse_with(problems, external_id);
    account.profile = written.profile.parse_with(problems, profile);
    let may_be_seen = written.allow_http.value_or(false);
    let mut endpoint = |field: &Field<String>| {
        field.parse_with(problems, |text: &str| check_endpoint(text, may_be_seen))
    };
    account.endpoint = endpoint(&written.endpoint);
    if let Some(endpoints) = written.endpoints.present_value() {
        account.endpoints = ServiceEndpoints {
            s3: endpoint(&endpoints.s3),
            sqs: endpoint(&endpoints.sqs),
            kms: endpoint(&endpoints.kms),
            sts: endpoint(&endpoints.sts),
        };
    }
    let has_endpoint = account.endpoint_of(Service::S3).is_some();
    account.path_style = written.path_style.value_or(has_endpoint);
    let conditional_writes = &written.conditional_writes;
    account.conditional_writes = conditional_writes
        .parse_with(problems, values::word)
        .unwrap_or_default();
    account.owner = written.owner.parse_with(problems, values::account_number);
    account.use_dualstack = written.use_dualstack.value_or(false);
    account.use_fips = written.use_fips.value_or(false);
    account.access_points = access_points(&written.access_points, &account.region, problems);
    refuse_contradictions(&account, written, problems);
    if written.role_arn.is_absent() {
        let message = "has no use without role_arn; add the role or leave it out";
        written.external_id.refuse_present(problems, message);
    }
    account
}

/// Refuses what only AWS's own endpoints have beside others, and a role of another partition.
fn refuse_contradictions(
    account: &Account,
    written: &schema::Account,
    problems: &mut Problems<'_>,
) {
    let has_endpoint = [Service::S3, Service::Sqs, Service::Kms, Service::Sts]
        .into_iter()
        .any(|service| account.endpoint_of(service).is_some());
    let message = "chooses among AWS's own endpoints; name the one to use as the endpoint, or leave the endpoint out";
    if has_endpoint && account.use_dualstack {
        written.use_dualstack.refuse_present(problems, message);
    }
    if has_endpoint && account.use_fips {
        written.use_fips.refuse_present(problems, message);
    }
    if account.endpoint_of(Service::S3).is_some() || account.path_style {
        let message =
            "AWS alone has access points, in the host name; leave out endpoint and path_style";
        written.access_points.refuse_present(problems, message);
    }
    let partition = values::likely_partition(&account.region).name;
    let foreign = account.role_arn.as_deref().and_then(|role| {
        let named = role.split(':').nth(1)?;
        (named != partition && !has_endpoint).then_some(named)
    });
    if let Some(named) = foreign {
        let message = format!(
            "is in partition {named}, and Region {:?} in {partition}, where its credentials are unknown; name a role of {partition}",
            account.region
        );
        written.role_arn.refuse_present(problems, &message);
    }
}

fn access_points(
    written: &Field<BTreeMap<String, Field<String>>>,
    region: &str,
    problems: &mut Problems<'_>,
) -> BTreeMap<Bucket, String> {
    let mut found = BTreeMap::new();
    for (bucket, arn) in written.present_value().into_iter().flatten() {
        let bucket = Bucket::try_from(bucket.as_str())
            .map_err(|error| problems.add_problem(&arn.spot, error.to_string()))
            .ok();
        let arn = arn.parse_with(problems, |text: &str| values::access_point(text, region));
        found.extend(bucket.zip(arn));
    }
    found
}

/// Over plain HTTP bodies, keys and session tokens can be read and changed without a trace.
fn check_endpoint(text: &str, may_be_seen: bool) -> Result<String, String> {
    let endpoint = values::endpoint(text)?;
    if values::is_in_the_clear(&endpoint) && !may_be_seen {
        return Err(format!(
            "{text:?} sends everything in the clear; use https://, or say allow_http = true here"
        ));
    }
    Ok(endpoint)
}

fn region(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.is_empty() || !text.chars().all(legal) {
        return Err(values::mismatch(text, "a Region", "eu-west-1"));
    }
    Ok(text.to_owned())
}

// https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
fn external_id(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "_+=,.@:/-".contains(c);
    if (2..=1224).contains(&text.len()) && text.chars().all(legal) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} is not 2 to 1,224 letters, digits and _+=,.@:/- long; copy it from the role's trust policy"
    ))
}

fn profile(text: &str) -> Result<String, String> {
    let message = "empty; name a profile, or leave it out for the default credential chain";
    match text {
        "" => Err(message.to_owned()),
        _ => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_asked_at_the_endpoint_that_the_account_chooses() {
        let cases = [
            ("sns eu-west-1", "https://sns.eu-west-1.amazonaws.com/"),
            (
                "sns us-east-1 fips",
                "https://sns-fips.us-east-1.amazonaws.com/",
            ),
            ("sns us-east-1 dual", "https://sns.us-east-1.api.aws/"),
            (
                "sns us-east-1 fips dual",
                "https://sns-fips.us-east-1.api.aws/",
            ),
            (
                "sns us-gov-west-1 fips",
                "https://sns.us-gov-west-1.amazonaws.com/",
            ),
            ("sns cn-north-1", "https://sns.cn-north-1.amazonaws.com.cn/"),
            (
                "events us-east-1 fips",
                "https://events-fips.us-east-1.amazonaws.com/",
            ),
            (
                "events us-gov-east-1 fips",
                "https://events.us-gov-east-1.amazonaws.com/",
            ),
            (
                "events us-gov-east-1 fips dual",
                "https://events.us-gov-east-1.api.aws/",
            ),
        ];
        for (case, expected) in cases {
            let words: Vec<&str> = case.split(' ').collect();
            let account = Account {
                use_fips: words.contains(&"fips"),
                use_dualstack: words.contains(&"dual"),
                ..Account::default()
            };
            let (service, region) = (words.first(), words.get(1));
            let url = service
                .zip(region)
                .map(|(service, region)| account.service_url(service, region));
            assert_eq!(url.as_deref(), Some(expected), "{case}");
        }
        let account = Account {
            endpoint: Some("http://127.0.0.1:4566".to_owned()),
            ..Account::default()
        };
        assert_eq!(
            account.service_url("sns", "eu-west-1"),
            "http://127.0.0.1:4566/"
        );
    }
}
