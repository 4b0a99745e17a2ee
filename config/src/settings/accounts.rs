//! Accounts: whose credentials sign, and which endpoints they are good for.

use std::collections::BTreeMap;

use crate::aws_names;
use crate::diagnostics::Problems;
use crate::reader::{Field, Scalar};
use crate::schema;

/// Credentials and the services they reach.
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ConditionalWrites {
    /// Found out at run time, operation by operation.
    #[default]
    Auto,
    /// It does, and that is relied on.
    On,
    /// It does not.
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
}

/// Accounts as written.
type Written = Field<BTreeMap<String, Field<schema::Account>>>;

/// Checks every account; one with a problem is there all the same, so that it can be referred to.
pub(super) fn settle(written: &Written, problems: &mut Problems<'_>) -> BTreeMap<String, Account> {
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
    written.require_present("name one of the accounts", problems)?;
    written.parse_with(problems, |name| match accounts.get(name) {
        Some(account) => Ok(account.name.clone()),
        None if accounts.is_empty() => Err(format!(
            "account {name:?} is not defined; add [accounts.{name}]"
        )),
        None => {
            let hint = aws_names::suggest_nearest(name, accounts.keys().map(String::as_str));
            Err(format!("account {name:?} is not defined; {hint}"))
        }
    })
}

fn account(name: &str, written: &Field<schema::Account>, problems: &mut Problems<'_>) -> Account {
    let mut account = blank(name);
    let Some(written) = written.present_value() else {
        return account;
    };
    if written
        .region
        .require_present("name the Region to sign for, like \"eu-west-1\"", problems)
        .is_some()
    {
        account.region = written
            .region
            .parse_with(problems, |text| region(text))
            .unwrap_or_default();
    }
    account.role_arn = written
        .role_arn
        .parse_with(problems, |text| aws_names::parse_role_arn(text));
    account.external_id = written
        .external_id
        .parse_with(problems, |text| external_id(text));
    account.profile = written.profile.parse_with(problems, |text| profile(text));
    let may_be_seen = written
        .allow_http
        .present_value()
        .copied()
        .unwrap_or_default();
    let endpoint = |text: &String| check_endpoint(text, may_be_seen);
    account.endpoint = written.endpoint.parse_with(problems, endpoint);
    account.endpoints = endpoints(&written.endpoints, endpoint, problems);
    account.path_style = written
        .path_style
        .present_value()
        .copied()
        .unwrap_or_else(|| account.endpoint_of(Service::S3).is_some());
    account.conditional_writes = written
        .conditional_writes
        .parse_with(problems, conditional_writes)
        .unwrap_or_default();
    account.owner = written
        .owner
        .parse_with(problems, |Scalar(text)| aws_names::account_number(text));
    if written.role_arn.is_absent() {
        written.external_id.refuse_present(
            problems,
            "has no use without role_arn; add the role or leave it out",
        );
    }
    account
}

fn blank(name: &str) -> Account {
    Account {
        name: name.to_owned(),
        region: String::new(),
        role_arn: None,
        external_id: None,
        profile: None,
        endpoint: None,
        endpoints: ServiceEndpoints::default(),
        path_style: false,
        conditional_writes: ConditionalWrites::Auto,
        owner: None,
    }
}

fn endpoints(
    written: &Field<schema::Endpoints>,
    parse: impl Fn(&String) -> Result<String, String>,
    problems: &mut Problems<'_>,
) -> ServiceEndpoints {
    let Some(written) = written.present_value() else {
        return ServiceEndpoints::default();
    };
    let mut endpoint = |field: &Field<String>| field.parse_with(problems, &parse);
    ServiceEndpoints {
        s3: endpoint(&written.s3),
        sqs: endpoint(&written.sqs),
        kms: endpoint(&written.kms),
        sts: endpoint(&written.sts),
    }
}

/// Over plain HTTP bodies, keys and session tokens can be read and changed without a trace.
fn check_endpoint(text: &str, may_be_seen: bool) -> Result<String, String> {
    let endpoint = aws_names::parse_endpoint(text)?;
    if aws_names::is_in_the_clear(&endpoint) && !may_be_seen {
        return Err(format!(
            "{text:?} sends everything in the clear; use https://, or say allow_http = true here"
        ));
    }
    Ok(endpoint)
}

fn region(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !text.is_empty() && text.chars().all(legal) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} is not a Region; write it like \"eu-west-1\""
    ))
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
    if text.is_empty() {
        return Err(
            "empty; name a profile, or leave it out for the default credential chain".to_owned(),
        );
    }
    Ok(text.to_owned())
}

fn conditional_writes(Scalar(text): &Scalar) -> Result<ConditionalWrites, String> {
    let words = [
        ("auto", ConditionalWrites::Auto),
        ("true", ConditionalWrites::On),
        ("false", ConditionalWrites::Off),
    ];
    aws_names::one_of(text, &words)
        .map_err(|_| format!("{text:?} is not one of \"auto\", true, false"))
}
