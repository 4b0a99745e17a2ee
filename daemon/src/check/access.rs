//! Credentials: which principal an account's credentials are, whether its role can be assumed, and the
//! statement that would permit what was denied.

use std::time::Duration;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::get_caller_identity::GetCallerIdentityOutput;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use replicator_config::{Account, Service};
use serde_json::{Value, json};

use super::file::partition_of;
use super::finding::{CheckName, Finding, Fix, PolicyKind, Section};
use crate::s3::accounts::AccountClients;
use crate::s3::accounts::error::{Refusal, RefusalKind};

/// An answer, or how it was refused.
pub(super) type Asked<T> = Result<T, Refusal>;

// Every question is answered in less than a second; beyond this, the answer would be another
// question's time.
pub(super) const ASK_TIMEOUT: Duration = Duration::from_secs(15);

/// Waits for an answer, retries of the SDK included, for a bounded time.
pub(super) async fn ask<T, E>(
    call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
) -> Asked<T>
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    match tokio::time::timeout(ASK_TIMEOUT, Box::pin(call)).await {
        Ok(answer) => answer.map_err(|error| Refusal::from_sdk(&error)),
        Err(_elapsed) => Err(Refusal::unanswered(ASK_TIMEOUT)),
    }
}

/// The principal that signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CallingPrincipal {
    /// As policies name it: the role, not its session.
    pub(super) arn: String,
    /// Its AWS account.
    pub(super) account: String,
}

impl CallingPrincipal {
    /// Reads what STS says of credentials. The path of a role is not in there, so the role that the
    /// file names stands in where it is that one.
    fn from_caller(caller: &str, account: String, role: Option<&str>) -> Self {
        let session = caller
            .split_once(":assumed-role/")
            .and_then(|(head, rest)| Some((head, rest.split('/').next()?)));
        let arn = match session {
            None => caller.to_owned(),
            Some((head, name)) => {
                let of_file = role.filter(|role| role.rsplit('/').next() == Some(name));
                let plain = || format!("{}:role/{name}", head.replacen(":sts:", ":iam:", 1));
                of_file.map_or_else(plain, str::to_owned)
            }
        };
        Self { arn, account }
    }
}

/// What is known of the principal that signs an account's requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Signing {
    /// This principal does.
    As(CallingPrincipal),
    /// Some principal that no STS names.
    Unnamed,
    /// There are no credentials, so nothing else is asked.
    Impossible,
}

impl Signing {
    pub(super) fn principal(&self) -> Option<&CallingPrincipal> {
        match self {
            Self::As(principal) => Some(principal),
            Self::Unnamed | Self::Impossible => None,
        }
    }
}

/// Asks which principal signs, and whether the account's role can be assumed.
pub(super) async fn identify(account: &Account, clients: &AccountClients) -> (Section, Signing) {
    let mut section = Section::new(format!("account {}", account.name));
    let is_aws = account.endpoint_of(Service::S3).is_none();
    if !is_aws && account.endpoint_of(Service::Sts).is_none() {
        section.fine("not asked who signs: its endpoint is not AWS, and no STS is named");
        return (section, Signing::Unnamed);
    }
    let base = match ask(clients.sts_before_role.get_caller_identity().send()).await {
        Ok(answer) => Some(principal(answer, None)),
        Err(refusal) => {
            if let Some(finding) = refused_credentials(account, &refusal) {
                section.add([finding]);
                // Without a role, other services may answer where STS does not.
                let is_silent = refusal.kind == RefusalKind::Silent;
                let may_sign = is_silent && account.role_arn.is_none();
                let signing = match may_sign {
                    true => Signing::Unnamed,
                    false => Signing::Impossible,
                };
                return (section, signing);
            }
            None
        }
    };
    let Some(role) = &account.role_arn else {
        section.fine(signer_line(base.as_ref()));
        return (section, base.map_or(Signing::Unnamed, Signing::As));
    };
    match ask(clients.sts.get_caller_identity().send()).await {
        Ok(answer) => {
            let own = principal(answer, Some(role));
            section.fine(format!("{role} is assumed"));
            (section, Signing::As(own))
        }
        Err(refusal) => {
            section.add([refused_role(account, role, base.as_ref(), &refusal)]);
            (section, Signing::Impossible)
        }
    }
}

fn signer_line(principal: Option<&CallingPrincipal>) -> String {
    principal.map_or_else(
        || "its STS does not say who signs".to_owned(),
        |principal| format!("{} signs", principal.arn),
    )
}

fn principal(answer: GetCallerIdentityOutput, role: Option<&str>) -> CallingPrincipal {
    let account = answer.account.unwrap_or_default();
    CallingPrincipal::from_caller(&answer.arn.unwrap_or_default(), account, role)
}

/// Judges a refused GetCallerIdentity; an STS that does not know the question is none.
fn refused_credentials(account: &Account, refusal: &Refusal) -> Option<Finding> {
    let found = |what: String, fix: Fix| {
        let why = match (refusal.kind == RefusalKind::Silent, &account.role_arn) {
            (true, None) => "who signs is not known, and whether the credentials are accepted",
            _ => "no request of this account can be signed, so nothing of it is replicated",
        };
        let place = format!("accounts.{}", account.name);
        Finding::problem(CheckName::Credentials, place, what, why).fixed_by([fix])
    };
    match refusal.kind {
        RefusalKind::Unsigned => {
            let what = format!("there are no credentials: {}", refusal.words);
            let fix = "give this host a role, or name a `profile` in the account; the default \
                 chain is the environment, the shared configuration, a web identity, the container \
                 and the instance";
            Some(found(what, Fix::advice(fix)).into_unasked())
        }
        RefusalKind::Unauthenticated => {
            let fix = "put valid credentials in place of those that the profile, the environment \
                 or the instance gives; where the code is about time, set this host's clock";
            Some(found(format!("STS {}", refusal.words), Fix::advice(fix)))
        }
        RefusalKind::Silent => {
            let fix = "let this host reach the STS endpoint of the account's Region";
            Some(found(format!("STS: {}", refusal.words), Fix::advice(fix)).into_unasked())
        }
        RefusalKind::Denied
        | RefusalKind::Absent
        | RefusalKind::Elsewhere
        | RefusalKind::Unimplemented
        | RefusalKind::RoleRefused
        | RefusalKind::Refused => None,
    }
}

/// Judges the refusal of a role. STS answers alike for a role that does not exist, does not trust
/// the principal, or requires another external id, unless its words name the kind of policy.
fn refused_role(
    account: &Account,
    role: &str,
    base: Option<&CallingPrincipal>,
    refusal: &Refusal,
) -> Finding {
    let words = &refusal.words;
    let why = "every request of this account is signed as this role: nothing of it is replicated";
    let finding = |what: String| Finding::problem(CheckName::AssumeRole, role, what, why);
    if refusal.code != "AccessDenied" {
        return finding(format!("the role cannot be assumed: {words}")).into_unasked();
    }
    let own = format!("{}:root", role.split(":role/").next().unwrap_or_default());
    let base_arn = base.map_or(own.as_str(), |base| base.arn.as_str());
    let identity = json!({"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": role});
    let mut trust =
        json!({"Effect": "Allow", "Principal": {"AWS": base_arn}, "Action": "sts:AssumeRole"});
    if let (Some(id), Some(trust)) = (&account.external_id, trust.as_object_mut()) {
        trust.insert(
            "Condition".to_owned(),
            json!({"StringEquals": {"sts:ExternalId": id}}),
        );
    }
    let identity = Fix::statement(PolicyKind::Identity, base_arn, identity);
    let trust = Fix::statement(PolicyKind::Trust, role, trust);
    let lacks_identity = words.contains("identity-based policy");
    let lacks_trust = words.contains("resource-based policy") || words.contains("trust policy");
    let (what, fixes) = match (lacks_identity, lacks_trust) {
        (true, false) => (
            format!("the identity policy of {base_arn} does not let it assume the role: {words}"),
            vec![identity],
        ),
        (false, true) => (
            format!("the role's trust policy does not let {base_arn} assume it: {words}"),
            vec![trust],
        ),
        _ => (
            format!(
                "{base_arn} may not assume the role: its identity policy, the role's trust policy, \
                 {}, or the role's name: {words}",
                external_id_words(account)
            ),
            vec![identity, trust],
        ),
    };
    finding(what).fixed_by(fixes)
}

fn external_id_words(account: &Account) -> String {
    match &account.external_id {
        Some(id) => format!("an external id other than {id:?}"),
        None => {
            "an external id that the trust policy demands and the file does not name".to_owned()
        }
    }
}

// AWS takes signatures that are less than 15 minutes off; a clock that is this far off drifts:
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-auth-using-authorization-header.html
const SKEW_SECONDS_MAX: u64 = 300;

/// Judges by how much the clock of an account's services is ahead of this host's, or behind.
pub(super) fn skewed_clock(account: &Account, ahead_seconds: i64) -> Option<Finding> {
    let skew = ahead_seconds.unsigned_abs();
    if skew <= SKEW_SECONDS_MAX {
        return None;
    }
    let side = if ahead_seconds < 0 {
        "ahead of"
    } else {
        "behind"
    };
    let what = format!("this host's clock is {skew} s {side} that of the account's services");
    let why = "beyond 15 minutes AWS refuses what is signed by it; ages and `since` are wrong by as \
         much";
    let place = format!("accounts.{}", account.name);
    let finding = Finding::problem(CheckName::ClockSkew, place, what, why).into_warning();
    Some(finding.fixed_by([Fix::command("sudo timedatectl set-ntp true")]))
}

/// Something that a policy can permit access to.
#[derive(Debug, Clone)]
pub(super) struct Resource {
    /// As statements name it.
    pub(super) arn: String,
    /// The policy that it has itself, and what that belongs to.
    pub(super) policy: (PolicyKind, String),
    /// Whether it is in another AWS account than the principal, where that is known.
    pub(super) is_foreign: Option<bool>,
}

/// Returns the statements that permit what was denied. Within one AWS account the principal's own
/// policy suffices; across accounts both sides have to permit it:
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic-cross-account.html>
pub(super) fn grant(
    principal: Option<&CallingPrincipal>,
    refusal: &Refusal,
    actions: &[&str],
    resource: &Resource,
) -> Vec<Fix> {
    let words = &refusal.words;
    if let Some((_, rest)) = words.split_once("explicit deny in a") {
        let policy = rest.trim_start_matches('n').trim();
        return vec![Fix::advice(format!(
            "take the Deny of {} on {} out of the {policy}",
            actions.join(" and "),
            resource.arn
        ))];
    }
    let named = denied_action(words);
    let (actions, arn) = match named {
        Some((action, on)) if !actions.contains(&action) => {
            (json!(action), on.unwrap_or(&resource.arn))
        }
        Some((action, _)) => (json!(action), resource.arn.as_str()),
        None => (action_list(actions), resource.arn.as_str()),
    };
    let arn_of_principal = principal.map_or("the principal that signs", |one| one.arn.as_str());
    let identity = json!({"Effect": "Allow", "Action": actions, "Resource": arn});
    let identity = Fix::statement(PolicyKind::Identity, arn_of_principal, identity);
    // A denial of KMS behind a request of S3 is about the key, whose policy speaks of that alone.
    let is_key = arn.split(':').nth(2) == Some("kms");
    let (policy, own_resource) = match is_key {
        true => ((PolicyKind::Key, arn.to_owned()), "*"),
        false => (resource.policy.clone(), arn),
    };
    let own = json!({
        "Effect": "Allow",
        "Principal": {"AWS": arn_of_principal},
        "Action": actions,
        "Resource": own_resource,
    });
    let own = Fix::statement(policy.0, policy.1, own);
    let is_own = resource.is_foreign == Some(false) && !is_key;
    if words.contains("no resource-based policy allows") {
        vec![own]
    } else if words.contains("no identity-based policy allows") || is_own {
        vec![identity]
    } else {
        vec![identity, own]
    }
}

fn action_list(actions: &[&str]) -> Value {
    match actions {
        [one] => json!(one),
        several => json!(several),
    }
}

/// Reads the action and the resource that a service says were denied.
fn denied_action(words: &str) -> Option<(&str, Option<&str>)> {
    let (_, rest) = words.split_once("not authorized to perform: ")?;
    let action = rest.split([' ', ',']).next()?;
    let resource = rest
        .split_once("on resource: ")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .map(|arn| arn.trim_matches(['"', '\'', '.', ',']));
    let is_action = action.contains(':');
    is_action.then_some((action, resource.filter(|arn| arn.starts_with("arn:"))))
}

/// Begins the ARN of something in a Region, or in none.
pub(super) fn arn_start(region: &str) -> String {
    let partition = partition_of(region).map_or("aws", |partition| partition.name);
    format!("arn:{partition}")
}

/// Writes the options of the AWS CLI that reach an account's service as the daemon does.
pub(super) fn cli_options(account: &Account, service: Service) -> String {
    let mut options = format!(" --region {}", account.region);
    if let Some(endpoint) = account.endpoint_of(service) {
        options.push_str(" --endpoint-url ");
        options.push_str(endpoint);
    }
    options
}

/// Quotes a word for a shell.
pub(super) fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::PolicyDocument;

    fn refusal(code: &str, words: &str) -> Refusal {
        Refusal {
            kind: RefusalKind::Denied,
            code: code.to_owned(),
            words: words.to_owned(),
            region: None,
        }
    }

    fn account() -> Account {
        Account {
            name: "archive".to_owned(),
            region: "us-east-1".to_owned(),
            external_id: Some("orders-archive".to_owned()),
            ..Account::default()
        }
    }

    fn daemon() -> CallingPrincipal {
        CallingPrincipal {
            arn: "arn:aws:iam::111111111111:role/s3-replicator".to_owned(),
            account: "111111111111".to_owned(),
        }
    }

    const ROLE: &str = "arn:aws:iam::222222222222:role/replicator";

    fn documents(fixes: &[Fix]) -> Vec<String> {
        let document = |fix: &Fix| match fix {
            Fix::Statement { document, .. } => document.to_string(),
            Fix::Command { .. } | Fix::Config { .. } | Fix::Advice { .. } => format!("{fix:?}"),
        };
        fixes.iter().map(document).collect()
    }

    #[test]
    fn a_session_is_named_by_its_role() {
        let caller = "arn:aws:sts::222222222222:assumed-role/replicator/s3-replicator";
        let read =
            |role| CallingPrincipal::from_caller(caller, "222222222222".to_owned(), role).arn;
        assert_eq!(read(None), ROLE);
        let pathed = "arn:aws:iam::222222222222:role/team/replicator";
        assert_eq!(read(Some(pathed)), pathed);
        let user = "arn:aws:iam::111111111111:user/me";
        let read = CallingPrincipal::from_caller(user, "111111111111".to_owned(), None);
        assert_eq!(read.arn, user);
    }

    #[test]
    fn a_refused_role_names_the_document_that_sts_names_and_else_both() {
        let start = "AssumeRole answered AccessDenied: User: x is not authorized to perform: sts:AssumeRole";
        let identity = "identity policy of arn:aws:iam::111111111111:role/s3-replicator";
        let trust = format!("trust policy of {ROLE}");
        let cases = [
            (
                " because no identity-based policy allows the sts:AssumeRole action",
                vec![identity.to_owned()],
            ),
            (
                " because no resource-based policy allows the sts:AssumeRole action",
                vec![trust.clone()],
            ),
            ("", vec![identity.to_owned(), trust]),
        ];
        for (end, expected) in cases {
            let refusal = refusal("AccessDenied", &format!("{start}{end}"));
            let found = refused_role(&account(), ROLE, Some(&daemon()), &refusal);
            assert_eq!(documents(&found.fix), expected, "{end}");
            assert_eq!(found.severity, crate::check::finding::Severity::Problem);
        }
        let found = refused_role(
            &account(),
            ROLE,
            Some(&daemon()),
            &refusal("AccessDenied", ""),
        );
        assert!(found.what.contains("orders-archive"), "{}", found.what);
        let Some(Fix::Statement { statement, .. }) = found.fix.get(1) else {
            panic!("{found:?}")
        };
        let id = &statement["Condition"]["StringEquals"]["sts:ExternalId"];
        assert_eq!(id, "orders-archive");
        let throttled = refused_role(&account(), ROLE, None, &refusal("Throttling", ""));
        assert_eq!(throttled.severity, crate::check::finding::Severity::Unasked);
    }

    #[test]
    fn a_denied_request_names_the_policies_that_have_to_permit_it() {
        let resource = |is_foreign| Resource {
            arn: "arn:aws:s3:::orders/*".to_owned(),
            policy: (PolicyKind::Bucket, "orders".to_owned()),
            is_foreign,
        };
        let granted = |words: &str, owner| {
            let refusal = refusal("AccessDenied", words);
            grant(
                Some(&daemon()),
                &refusal,
                &["s3:GetObjectVersion"],
                &resource(owner),
            )
        };
        let identity = "identity policy of arn:aws:iam::111111111111:role/s3-replicator";
        let bucket = "bucket policy of orders";
        let (own, foreign) = (Some(false), Some(true));
        assert_eq!(documents(&granted("Access Denied", own)), [identity]);
        for owner in [foreign, None] {
            let fixes = granted("Access Denied", owner);
            assert_eq!(documents(&fixes), [identity, bucket], "{owner:?}");
        }
        let words = "User: x is not authorized to perform: s3:GetObjectVersion on resource: \
            \"arn:aws:s3:::orders/a\" because no resource-based policy allows the action";
        assert_eq!(documents(&granted(words, foreign)), [bucket]);
        let kms = "User: x is not authorized to perform: kms:Decrypt on resource: \
            arn:aws:kms:eu-west-1:111111111111:key/1 because no identity-based policy allows it";
        let fixes = granted(kms, None);
        let Some(Fix::Statement {
            statement,
            document,
        }) = fixes.first()
        else {
            panic!("{fixes:?}")
        };
        assert_eq!(statement["Action"], "kms:Decrypt");
        assert_eq!(
            statement["Resource"],
            "arn:aws:kms:eu-west-1:111111111111:key/1"
        );
        let kind = PolicyKind::Identity;
        assert_eq!(
            *document,
            PolicyDocument {
                policy: kind,
                of: daemon().arn
            }
        );
        let denied = granted("x with an explicit deny in a resource-based policy", None);
        assert!(
            matches!(&denied[..], [Fix::Advice { text }] if text.contains("resource-based policy"))
        );
    }

    #[test]
    fn a_clock_is_wrong_on_either_side_from_five_minutes_on() {
        let words = |ahead| skewed_clock(&account(), ahead).map(|found| found.what);
        assert_eq!(words(300), None);
        assert_eq!(words(-300), None);
        assert!(words(301).unwrap().contains("301 s behind"));
        assert!(words(-3_600).unwrap().contains("3600 s ahead of"));
    }

    #[test]
    fn what_is_pasted_into_a_shell_stays_one_word() {
        assert_eq!(shell_quoted("it's"), r"'it'\''s'");
    }
}
