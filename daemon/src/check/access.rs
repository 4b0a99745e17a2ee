//! Credentials: which principal an account's credentials are, whether its role can be assumed, and which
//! of the documents that `policies` prints would permit what was denied.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::get_caller_identity::GetCallerIdentityOutput;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use replicator_config::policies::{
    Document, DocumentKind, PolicyError, PolicyOptions, bucket_arn, policies,
};
use replicator_config::{Account, Service, Settings};
use replicator_core::rule::BucketRef;
use serde_json::Value;

use super::finding::{CheckName, Finding, Fix, Section};
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
    fn principal(&self) -> Option<&CallingPrincipal> {
        match self {
            Self::As(principal) => Some(principal),
            Self::Unnamed | Self::Impossible => None,
        }
    }
}

/// Which principal signs for each account, and the documents that these need.
pub(super) struct Signings<'a> {
    pub(super) by_account: BTreeMap<&'a str, Signing>,
    pub(super) documents: DocumentSet<'a>,
}

impl Signings<'_> {
    pub(super) fn principal(&self, account: &str) -> Option<&CallingPrincipal> {
        self.by_account.get(account).and_then(Signing::principal)
    }

    pub(super) fn can_sign(&self, account: &str) -> bool {
        let signing = self.by_account.get(account);
        signing.is_some_and(|signing| *signing != Signing::Impossible)
    }
}

/// What STS said of an account's credentials.
#[derive(Debug)]
pub(super) struct StsAnswers {
    /// Of those that sign without a role; nothing where no STS is there to ask.
    base: Option<Asked<CallingPrincipal>>,
    /// Of the role's.
    role: Option<Asked<CallingPrincipal>>,
}

/// Asks which principal signs, and whether the account's role can be assumed.
pub(super) async fn identify(account: &Account, clients: &AccountClients) -> StsAnswers {
    let is_aws = account.endpoint_of(Service::S3).is_none();
    let mut identity = StsAnswers {
        base: None,
        role: None,
    };
    if !is_aws && account.endpoint_of(Service::Sts).is_none() {
        return identity;
    }
    let answer = ask(clients.sts_before_role.get_caller_identity().send()).await;
    let answer = answer.map(|answer| principal(answer, None));
    let may_sign = match &answer {
        Ok(_) => true,
        Err(refusal) => refused_credentials(account, refusal).is_none(),
    };
    identity.base = Some(answer);
    if let Some(role) = account.role_arn.as_ref().filter(|_| may_sign) {
        let answer = ask(clients.sts.get_caller_identity().send()).await;
        identity.role = Some(answer.map(|answer| principal(answer, Some(role))));
    }
    identity
}

/// Judges what STS said of an account's credentials.
pub(super) fn judge_identity(
    account: &Account,
    identity: &StsAnswers,
    documents: &DocumentSet<'_>,
) -> (Section, Signing) {
    let mut section = Section::new(format!("account {}", account.name));
    let Some(answer) = &identity.base else {
        section.fine("not asked who signs: its endpoint is not AWS, and no STS is named");
        return (section, Signing::Unnamed);
    };
    let refused = answer.as_ref().err();
    if let Some((refusal, finding)) =
        refused.and_then(|refusal| Some((refusal, refused_credentials(account, refusal)?)))
    {
        section.add([finding]);
        // Without a role, other services may answer where STS does not.
        let may_sign = refusal.kind == RefusalKind::Silent && account.role_arn.is_none();
        let signing = match may_sign {
            true => Signing::Unnamed,
            false => Signing::Impossible,
        };
        return (section, signing);
    }
    let base = answer.as_ref().ok();
    match (&account.role_arn, &identity.role) {
        (Some(role), Some(Ok(own))) => {
            section.fine(format!("{role} is assumed"));
            (section, Signing::As(own.clone()))
        }
        (Some(role), Some(Err(refusal))) => {
            section.add([refused_role((account, role), base, refusal, documents)]);
            (section, Signing::Impossible)
        }
        (Some(_), None) | (None, _) => {
            section.fine(signer_line(base));
            (section, base.cloned().map_or(Signing::Unnamed, Signing::As))
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
        | RefusalKind::Inapplicable
        | RefusalKind::Refused => None,
    }
}

/// Judges the refusal of a role. STS answers alike for a role that does not exist, does not trust
/// the principal, or requires another external id, unless its words name the kind of policy.
fn refused_role(
    (account, role): (&Account, &str),
    base: Option<&CallingPrincipal>,
    refusal: &Refusal,
    documents: &DocumentSet<'_>,
) -> Finding {
    let words = &refusal.words;
    let why = "every request of this account is signed as this role: nothing of it is replicated";
    let finding = |what: String| Finding::problem(CheckName::AssumeRole, role, what, why);
    if refusal.code != "AccessDenied" {
        return finding(format!("the role cannot be assumed: {words}")).into_unasked();
    }
    let base = base.map_or("the principal that signs", |base| base.arn.as_str());
    let external_id = match &account.external_id {
        Some(id) => format!("it demands another external id than {id:?}"),
        None => "it demands an external id, and the file names none".to_owned(),
    };
    let what = match named_policy(words) {
        Some(NamedPolicy::Identity) => {
            format!("certain: the permissions of {base} do not let it assume the role: {words}")
        }
        Some(NamedPolicy::Resource) => format!(
            "certain: the role's trust policy does not let {base} assume it. Either it does not \
             name this principal, or {external_id}; STS does not tell which: {words}"
        ),
        None => format!(
            "certain: {base} may not assume the role. STS does not say why; it may be that its \
             permissions lack sts:AssumeRole, that the role's trust policy does not name it, that \
             {external_id}, or that there is no such role: {words}"
        ),
    };
    let needed = Needed::of("sts:AssumeRole", role);
    finding(what).fixed_by(documents.fixes(refusal, needed))
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

/// An action that a request needs, and on what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Needed<'a> {
    pub(super) action: &'a str,
    /// The ARN, as `policies` names it.
    arn: &'a str,
    /// The bucket that it is about, unless it is the principal's own account's.
    foreign: Option<&'a BucketRef>,
}

impl<'a> Needed<'a> {
    pub(super) fn of(action: &'a str, arn: &'a str) -> Self {
        Self {
            action,
            arn,
            foreign: None,
        }
    }

    pub(super) fn in_foreign(self, foreign: Option<&'a BucketRef>) -> Self {
        Self { foreign, ..self }
    }
}

/// The documents that `s3-replicator policies` prints for a configuration, for the principals that
/// the services name.
#[derive(Debug)]
pub(super) struct DocumentSet<'a> {
    settings: &'a Settings,
    options: PolicyOptions,
}

impl<'a> DocumentSet<'a> {
    /// Takes over which principal signs for each account, where that is known.
    pub(super) fn new<'i>(
        settings: &'a Settings,
        identities: impl Iterator<Item = (&'i String, &'i StsAnswers)>,
    ) -> Self {
        let base = |(name, identity): (&String, &StsAnswers)| {
            let account = settings.accounts.get(name)?;
            let stand_in = || format!("the principal that signs for {name}");
            let arn = match &identity.base {
                Some(Ok(base)) => Some(base.arn.clone()),
                // Where STS does not say it, the daemon's own role is likely, but not here.
                Some(Err(_)) => account.profile.as_ref().map(|_| stand_in()),
                None => Some(stand_in()),
            };
            Some((name.clone(), arn?))
        };
        let principals: BTreeMap<String, String> = identities.filter_map(base).collect();
        let options = PolicyOptions {
            principals,
            ..PolicyOptions::default()
        };
        Self { settings, options }
    }

    /// Lists the documents that have to permit what was denied, each with its statement. Within one
    /// AWS account the principal's own policy suffices; across accounts both sides have to permit it:
    /// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic-cross-account.html>
    pub(super) fn fixes(&self, refusal: &Refusal, needed: Needed<'_>) -> Vec<Fix> {
        let words = &refusal.words;
        let Needed { action, arn, .. } = needed;
        if !matches!(refusal.kind, RefusalKind::Denied | RefusalKind::RoleRefused) {
            return vec![Fix::advice("change what the service names")];
        }
        if let Some((_, rest)) = words.split_once("explicit deny in a") {
            let policy = rest.trim_start_matches('n').trim();
            return vec![Fix::advice(format!(
                "take the Deny of {action} on {arn} out of the {policy}"
            ))];
        }
        // A denial of KMS behind a request of S3 names the key.
        let named = denied_action(words);
        let named = named.map(|(action, on)| (action, on.unwrap_or(arn)));
        let other = named.filter(|(named, _)| *named != action);
        let found = match other.map(|other| self.statements(other, needed)) {
            Some(Ok(found)) if !found.is_empty() => Ok(found),
            Some(Ok(_) | Err(_)) | None => self.statements((action, arn), needed),
        };
        let advice = |why: String| {
            let text = format!("let the principal that signs do {action} on {arn}: {why}");
            vec![Fix::advice(text)]
        };
        match found {
            Ok(found) if found.is_empty() => {
                advice("`s3-replicator policies` prints no statement for it".to_owned())
            }
            Ok(found) => of_policy(found, named_policy(words)),
            Err(error) => advice(format!("`s3-replicator policies` prints the rest: {error}")),
        }
    }

    /// Lists the statements about one action on one thing.
    fn statements(
        &self,
        (action, arn): (&str, &str),
        needed: Needed<'_>,
    ) -> Result<Vec<Fix>, PolicyError> {
        let mut options = self.options.clone();
        options.foreign_buckets.extend(needed.foreign.cloned());
        let all = policies(self.settings, &options)?;
        let found = statements(&all, |one| one.statements_about(action, arn));
        if !found.is_empty() {
            return Ok(found);
        }
        let over = statements(&all, |one| one.statements_over(action, arn));
        if arn.split(':').nth(2) != Some("kms") {
            return Ok(over);
        }
        // A key that the configuration does not name: a bucket's default, or that of an object.
        match self.is_of_destination(needed.arn) {
            true => options.destination_keys.push(arn.to_owned()),
            false => options.source_keys.push(arn.to_owned()),
        }
        let all = policies(self.settings, &options)?;
        let found = statements(&all, |one| one.statements_about(action, arn));
        Ok(if found.is_empty() { over } else { found })
    }

    fn is_of_destination(&self, arn: &str) -> bool {
        self.settings.rules.iter().any(|rule| {
            let place = &rule.destination;
            let account = self.settings.accounts.get(&place.account);
            let bucket = account.map(|account| bucket_arn(account, place.bucket.as_str()));
            bucket.is_some_and(|bucket| arn.starts_with(&bucket))
        })
    }

    /// Lists the statements that let S3 send the events of the rules' buckets to a queue.
    pub(super) fn of_sender(&self, queue_arn: &str) -> Vec<Fix> {
        let all = policies(self.settings, &self.options).unwrap_or_default();
        statements(&all, |one| match one.kind == DocumentKind::QueuePolicy {
            true => one.statements_about("sqs:SendMessage", queue_arn),
            false => Vec::new(),
        })
    }
}

/// Lists statements of each document, as what is to be added to it.
fn statements(documents: &[Document], of: impl Fn(&Document) -> Vec<Value>) -> Vec<Fix> {
    let fixes = documents.iter().flat_map(|document| {
        let statements = of(document).into_iter();
        statements.map(|one| Fix::statement(document.kind, &document.attached_to, one))
    });
    fixes.collect()
}

/// Which policy a service says was at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NamedPolicy {
    Identity,
    Resource,
}

// https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_access-denied.html
fn named_policy(words: &str) -> Option<NamedPolicy> {
    let is_identity = words.contains("no identity-based policy allows");
    let is_resource =
        words.contains("no resource-based policy allows") || words.contains("trust policy");
    match (is_identity, is_resource) {
        (true, false) => Some(NamedPolicy::Identity),
        (false, true) => Some(NamedPolicy::Resource),
        (true, true) | (false, false) => None,
    }
}

/// Keeps the statements of the policy that is named, if there are any.
fn of_policy(found: Vec<Fix>, named: Option<NamedPolicy>) -> Vec<Fix> {
    let is_named = |fix: &&Fix| match (fix, named) {
        (Fix::Statement { document, .. }, Some(named)) => {
            let is_identity = document.kind == DocumentKind::Permissions;
            is_identity == (named == NamedPolicy::Identity)
        }
        (_, _) => false,
    };
    let kept: Vec<Fix> = found.iter().filter(is_named).cloned().collect();
    if kept.is_empty() { found } else { kept }
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::check::finding::{PolicyDocument, Severity};

    fn refusal(code: &str, words: &str) -> Refusal {
        Refusal {
            kind: RefusalKind::Denied,
            code: code.to_owned(),
            words: words.to_owned(),
            region: None,
        }
    }

    const DAEMON: &str = "arn:aws:iam::111111111111:role/s3-replicator";
    const ROLE: &str = "arn:aws:iam::222222222222:role/replicator";
    const ASSUMED: &str = "role_arn = \"arn:aws:iam::222222222222:role/replicator\"\nexternal_id = \"orders-archive\"";
    const OWNED: &str = "owner = \"222222222222\"";

    /// A configuration whose rule uses everything, and whose destination is reached by a role.
    pub(in crate::check) fn plain_settings() -> Settings {
        settings(ASSUMED)
    }

    fn settings(archive: &str) -> Settings {
        let text = format!(
            "[accounts.source]\nregion = \"eu-west-1\"\n\
             [accounts.archive]\nregion = \"us-east-1\"\n{archive}\n\
             [[queues]]\nurl = \"https://sqs.eu-west-1.amazonaws.com/111111111111/events\"\n\
             account = \"source\"\n\
             dead_letter_url = \"https://sqs.eu-west-1.amazonaws.com/111111111111/parked\"\n\
             work_queue = \"https://sqs.eu-west-1.amazonaws.com/111111111111/work.fifo\"\n\
             [[rules]]\nid = \"orders\"\nsource = {{ account = \"source\", bucket = \"orders\" }}\n\
             destination = {{ account = \"archive\", bucket = \"orders-replica\" }}\n\
             history = \"latest\"\ndelete_markers = true\nversion_deletes = true\n\
             sse_kms_objects = true\n\
             encryption = {{ mode = \"kms\", key = \"arn:aws:kms:us-east-1:222222222222:key/1\" }}\n\
             client_side_keys = {{ \"arn:aws:kms:eu-west-1:111111111111:key/2\" = \"arn:aws:kms:us-east-1:222222222222:key/3\" }}\n"
        );
        replicator_config::parse(&text).unwrap_or_else(|error| panic!("{error}"))
    }

    fn caller(arn: &str) -> CallingPrincipal {
        CallingPrincipal {
            arn: arn.to_owned(),
            account: arn.split(':').nth(4).unwrap().to_owned(),
        }
    }

    /// Returns the documents for a daemon whose own role signs.
    pub(in crate::check) fn documents_of(settings: &Settings) -> DocumentSet<'_> {
        let identity = StsAnswers {
            base: Some(Ok(caller(DAEMON))),
            role: None,
        };
        let accounts = settings.accounts.keys();
        DocumentSet::new(settings, accounts.map(|name| (name, &identity)))
    }

    fn named(fixes: &[Fix]) -> Vec<PolicyDocument> {
        let document = |fix: &Fix| match fix {
            Fix::Statement { document, .. } => document.clone(),
            Fix::Command { .. } | Fix::Config { .. } | Fix::Advice { .. } => panic!("{fix:?}"),
        };
        fixes.iter().map(document).collect()
    }

    fn document(kind: DocumentKind, attached_to: &str) -> PolicyDocument {
        PolicyDocument {
            kind,
            attached_to: attached_to.to_owned(),
        }
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
    fn each_action_that_lacks_is_told_with_the_document_that_policies_prints_it_in() {
        for archive in [ASSUMED, OWNED] {
            let settings = settings(archive);
            let set = documents_of(&settings);
            let all = policies(&settings, &set.options).unwrap();
            let each = all.iter().flat_map(|one| {
                let grants = one.grants().into_iter();
                grants.map(move |grant| (one, grant))
            });
            let told = each.map(|(one, grant)| assert_told(&set, one, grant));
            assert!(told.count() > 50);
        }
    }

    /// Takes an action away from a document: what is denied names exactly that.
    fn assert_told(set: &DocumentSet<'_>, one: &Document, (action, about): (&str, &str)) {
        let side = match one.kind == DocumentKind::Permissions {
            true => "identity",
            false => "resource",
        };
        let words = format!(
            "answered 403 AccessDenied: User: x is not authorized to perform: {action} because no \
             {side}-based policy allows the {action} action"
        );
        let fixes = set.fixes(&refusal("AccessDenied", &words), Needed::of(action, about));
        let expected = document(one.kind, &one.attached_to);
        let statements = one.statements_about(action, about);
        for (named, fix) in named(&fixes).iter().zip(&fixes) {
            let Fix::Statement { statement, .. } = fix else {
                panic!("{fixes:?}")
            };
            assert_eq!(*named, expected, "{action} on {about}");
            assert_eq!(statement["Action"], action);
            assert!(statements.contains(statement), "{statement:#}");
        }
        assert_eq!(fixes.len(), statements.len(), "{action} on {about}");
    }

    #[test]
    fn a_refused_role_is_said_to_be_refused_for_certain_and_why_as_far_as_sts_tells() {
        let start = "AssumeRole answered AccessDenied: User: x is not authorized to perform: sts:AssumeRole";
        let identity = document(DocumentKind::Permissions, DAEMON);
        let trust = document(DocumentKind::Trust, ROLE);
        let cases = [
            (
                " because no identity-based policy allows the sts:AssumeRole action",
                vec![identity.clone()],
                "the permissions of",
            ),
            (
                " because no resource-based policy allows the sts:AssumeRole action",
                vec![trust.clone()],
                "STS does not tell which",
            ),
            ("", vec![identity, trust], "STS does not say why"),
        ];
        let settings = settings(ASSUMED);
        let (set, base) = (documents_of(&settings), caller(DAEMON));
        let account = &settings.accounts["archive"];
        let refused = |refusal: &Refusal| refused_role((account, ROLE), Some(&base), refusal, &set);
        for (end, expected, why) in cases {
            let found = refused(&refusal("AccessDenied", &format!("{start}{end}")));
            assert_eq!(named(&found.fix), expected, "{end}");
            assert_eq!(found.severity, Severity::Problem);
            assert!(found.what.starts_with("certain: "), "{}", found.what);
            assert!(found.what.contains(why), "{}", found.what);
        }
        let found = refused(&refusal("AccessDenied", ""));
        assert!(found.what.contains("orders-archive"), "{}", found.what);
        let Some(Fix::Statement { statement, .. }) = found.fix.get(1) else {
            panic!("{found:?}")
        };
        let id = &statement["Condition"]["StringEquals"]["sts:ExternalId"];
        assert_eq!(id, "orders-archive");
        let throttled = refused(&refusal("Throttling", ""));
        assert_eq!(throttled.severity, Severity::Unasked);
    }

    #[test]
    fn where_the_owner_is_not_known_both_sides_have_to_permit_it() {
        let settings = settings(ASSUMED);
        let set = documents_of(&settings);
        let own = document(DocumentKind::Permissions, DAEMON);
        let bucket = document(DocumentKind::BucketPolicy, "arn:aws:s3:::orders");
        let needed = Needed::of("s3:GetObjectVersion", "arn:aws:s3:::orders/*");
        let fixes = |words: &str, needed| set.fixes(&refusal("AccessDenied", words), needed);
        let plain = named(&fixes("Access Denied", needed));
        assert_eq!(plain, std::slice::from_ref(&own));
        let source = &settings.rules[0].source;
        let needed = needed.in_foreign(Some(source));
        assert_eq!(
            named(&fixes("Access Denied", needed)),
            [own, bucket.clone()]
        );
        let words = "because no resource-based policy allows the action";
        assert_eq!(named(&fixes(words, needed)), [bucket]);
        let denied = fixes("x with an explicit deny in a resource-based policy", needed);
        assert!(
            matches!(&denied[..], [Fix::Advice { text }] if text.contains("resource-based policy"))
        );
    }

    #[test]
    fn a_principal_that_no_sts_names_leaves_the_documents_of_others_alone() {
        let settings = settings("profile = \"store\"\nendpoint = \"https://store.example.net\"");
        let [own, unnamed] =
            [Some(Ok(caller(DAEMON))), None].map(|base| StsAnswers { base, role: None });
        let answers = |name: &String| if name == "source" { &own } else { &unnamed };
        let accounts = settings.accounts.keys();
        let set = DocumentSet::new(&settings, accounts.map(|name| (name, answers(name))));
        let read = Needed::of("s3:GetObjectVersion", "arn:aws:s3:::orders/*");
        let denied = refusal("AccessDenied", "Access Denied");
        let own = document(DocumentKind::Permissions, DAEMON);
        assert_eq!(named(&set.fixes(&denied, read)), [own]);
        let written = Needed::of("s3:PutObject", "arn:aws:s3:::orders-replica/*");
        let fixes = named(&set.fixes(&denied, written));
        let unnamed = document(
            DocumentKind::Permissions,
            "the principal that signs for archive",
        );
        assert!(fixes.contains(&unnamed), "{fixes:?}");
    }

    #[test]
    fn a_denial_of_kms_behind_a_request_names_the_key() {
        let settings = settings(ASSUMED);
        let set = documents_of(&settings);
        let of = |action: &str, key: &str, needed: Needed<'_>| {
            let words = format!(
                "User: x is not authorized to perform: {action} on resource: {key} because no identity-based policy allows it"
            );
            set.fixes(&refusal("AccessDenied", &words), needed)
        };
        let read = Needed::of("s3:GetObjectVersion", "arn:aws:s3:::orders/*");
        let written = Needed::of("s3:PutObject", "arn:aws:s3:::orders-replica/*");
        let cases = [
            (
                read,
                "kms:Decrypt",
                "arn:aws:kms:eu-west-1:111111111111:key/9",
                DAEMON,
            ),
            // Keys that the configuration does not name.
            (
                read,
                "kms:Decrypt",
                "arn:aws:kms:eu-west-1:333333333333:key/9",
                DAEMON,
            ),
            (
                written,
                "kms:GenerateDataKey",
                "arn:aws:kms:us-east-1:222222222222:key/1",
                ROLE,
            ),
        ];
        for (needed, action, key, principal) in cases {
            let fixes = of(action, key, needed);
            let expected = document(DocumentKind::Permissions, principal);
            assert_eq!(named(&fixes), [expected], "{key}");
            let Some(Fix::Statement { statement, .. }) = fixes.first() else {
                panic!("{fixes:?}")
            };
            assert_eq!(statement["Action"], action);
        }
        // A name that IAM does not have, as emulators say, is passed over.
        let fixes = of("s3:Invented", "arn:aws:s3:::orders/a", read);
        let Some(Fix::Statement { statement, .. }) = fixes.first() else {
            panic!("{fixes:?}")
        };
        assert_eq!(statement["Action"], "s3:GetObjectVersion");
    }

    #[test]
    fn a_clock_is_wrong_on_either_side_from_five_minutes_on() {
        let settings = settings(ASSUMED);
        let account = &settings.accounts["archive"];
        let words = |ahead| skewed_clock(account, ahead).map(|found| found.what);
        assert_eq!(words(300), None);
        assert_eq!(words(-300), None);
        assert!(words(301).unwrap().contains("301 s behind"));
        assert!(words(-3_600).unwrap().contains("3600 s ahead of"));
    }
}
