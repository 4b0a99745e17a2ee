//! The documents as text: a list in JSON, a template of CloudFormation, a module of Terraform. The
//! latter two are deployed in each account, and leave out what belongs to others. The policy of a key
//! is part of the key, and has more than this: there it is an output, to add by hand.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use strum::{EnumString, VariantNames};

use super::{Document, DocumentKind};
use crate::values;

/// How documents are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum PolicyFormat {
    /// A list, each with what it is attached to.
    #[default]
    Json,
    /// One template for all accounts.
    Cloudformation,
    /// One module, with a provider for each account.
    Terraform,
}

/// Writes documents in a format.
pub fn render(documents: &[Document], format: PolicyFormat) -> String {
    let value = match format {
        PolicyFormat::Json => documents.iter().map(list_entry).collect(),
        PolicyFormat::Cloudformation => template(documents),
        PolicyFormat::Terraform => module(documents),
    };
    format!("{value:#}")
}

// A role without a trust policy here is that of the process, which some service gives it.
const SERVICE: &str = "ecs-tasks.amazonaws.com";
const SERVICE_MEANING: &str =
    "The service that the daemon runs in: ecs-tasks.amazonaws.com or ec2.amazonaws.com";

fn list_entry(document: &Document) -> Value {
    json!({
        "kind": document.kind.to_string(),
        "account": document.account,
        "attached_to": document.attached_to,
        "policy": document.policy(),
    })
}

fn template(documents: &[Document]) -> Value {
    let (mut conditions, mut resources, mut outputs) = (Map::new(), Map::new(), Map::new());
    for document in documents {
        let Document {
            kind,
            attached_to,
            account,
            ..
        } = document;
        let condition = format!("In{account}");
        let is_here = json!({"Fn::Equals": [{"Ref": "AWS::AccountId"}, account]});
        conditions.insert(condition.clone(), is_here);
        let (sort, properties) = match kind {
            DocumentKind::Permissions => principal_properties(documents, document),
            DocumentKind::BucketPolicy => {
                let bucket = last_part(attached_to, ':');
                (
                    "AWS::S3::BucketPolicy",
                    json!({"Bucket": bucket, "PolicyDocument": document.policy()}),
                )
            }
            DocumentKind::QueuePolicy => {
                let queues = [queue_url(attached_to)];
                (
                    "AWS::SQS::QueuePolicy",
                    json!({"Queues": queues, "PolicyDocument": document.policy()}),
                )
            }
            DocumentKind::KeyPolicy | DocumentKind::AccessPointPolicy => {
                let output = json!({"Condition": condition, "Description": by_hand(document), "Value": document.policy().to_string()});
                outputs.insert(logical_name(document), output);
                continue;
            }
            DocumentKind::Trust => continue,
        };
        let mut resource = json!({"Type": sort, "Condition": condition, "Properties": properties});
        let earlier = trusted_by(documents, document)
            .filter(|earlier| earlier.account == *account)
            .map(logical_name);
        if let Some(name) = earlier {
            resource = with_field(resource, "DependsOn", name.into());
        }
        resources.insert(logical_name(document), resource);
    }
    let service = json!({"Type": "String", "Default": SERVICE, "Description": SERVICE_MEANING});
    let mut template = json!({
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": "Permissions of s3-replicator: for each account, in the Region of its buckets and queues",
        "Parameters": {"Service": service},
        "Conditions": conditions,
        "Resources": resources,
    });
    if let Some(template) = template.as_object_mut().filter(|_| !outputs.is_empty()) {
        template.insert("Outputs".to_owned(), outputs.into());
    }
    template
}

/// Returns the type and the properties of a role with its policies, or of a user's policy.
fn principal_properties(documents: &[Document], document: &Document) -> (&'static str, Value) {
    let (path, name) = principal_name(&document.attached_to);
    let policy = json!({"PolicyName": "s3-replicator", "PolicyDocument": document.policy()});
    if is_user(document) {
        let of_user = with_field(policy, "UserName", name.into());
        return ("AWS::IAM::UserPolicy", of_user);
    }
    let trust = trust_of(documents, &document.attached_to, json!({"Ref": "Service"}));
    let role = json!({"Path": path, "RoleName": name, "AssumeRolePolicyDocument": trust, "Policies": [policy]});
    ("AWS::IAM::Role", role)
}

/// Finds the principal that a role trusts. IAM takes only one that is there, and the ARN says
/// nothing of that to a template, so it has to be made first:
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_principal.html>
fn trusted_by<'d>(documents: &'d [Document], role: &Document) -> Option<&'d Document> {
    let is_trust = |document: &&Document| {
        document.kind == DocumentKind::Trust && document.attached_to == role.attached_to
    };
    let trust = documents.iter().find(is_trust)?;
    let is_trusted = |document: &&Document| {
        document.kind == DocumentKind::Permissions
            && role.kind == DocumentKind::Permissions
            && !is_user(document)
            && trust.names_principal(&document.attached_to)
    };
    documents.iter().find(is_trusted)
}

fn is_user(document: &Document) -> bool {
    document.attached_to.contains(":user/")
}

fn module(documents: &[Document]) -> Value {
    let mut resources: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    let (mut outputs, mut aliases) = (Map::new(), BTreeSet::new());
    for document in documents {
        let name = logical_name(document);
        if document.kind == DocumentKind::KeyPolicy {
            let value = literal(&document.policy());
            let hint = by_hand(document);
            outputs.insert(name.clone(), json!({"description": hint, "value": value}));
        }
        for (sort, resource) in terraform_resources(documents, document, &name) {
            let of_sort = resources.entry(sort).or_default();
            of_sort.insert(name.clone(), resource);
        }
        aliases.insert(provider_of(document));
    }
    let provider = json!({"source": "hashicorp/aws", "configuration_aliases": aliases});
    let service = json!({"type": "string", "default": SERVICE, "description": SERVICE_MEANING});
    json!({
        "terraform": {"required_providers": {"aws": provider}},
        "variable": {"service": service},
        "resource": resources,
        "output": outputs,
    })
}

fn provider_of(document: &Document) -> String {
    format!("aws.account_{}", document.account)
}

fn terraform_resources(
    documents: &[Document],
    document: &Document,
    name: &str,
) -> Vec<(&'static str, Value)> {
    let (policy, provider) = (literal(&document.policy()), provider_of(document));
    let attached_to = document.attached_to.as_str();
    match document.kind {
        DocumentKind::Permissions if is_user(document) => {
            let (_, user) = principal_name(attached_to);
            let inline = json!({"provider": provider, "name": "s3-replicator", "user": user, "policy": policy});
            vec![("aws_iam_user_policy", inline)]
        }
        DocumentKind::Permissions => {
            let trust = literal(&trust_of(documents, attached_to, SERVICE.into()));
            let trust = trust.replace(SERVICE, "${var.service}");
            let (path, role) = principal_name(attached_to);
            let role = json!({"provider": provider, "name": role, "path": path, "assume_role_policy": trust});
            let earlier = trusted_by(documents, document).map(logical_name);
            let role = match earlier {
                Some(name) => {
                    with_field(role, "depends_on", json!([format!("aws_iam_role.{name}")]))
                }
                None => role,
            };
            let id = format!("${{aws_iam_role.{name}.id}}");
            let inline = json!({"provider": provider, "name": "s3-replicator", "role": id, "policy": policy});
            vec![("aws_iam_role", role), ("aws_iam_role_policy", inline)]
        }
        DocumentKind::AccessPointPolicy => {
            let resource =
                json!({"provider": provider, "access_point_arn": attached_to, "policy": policy});
            vec![("aws_s3control_access_point_policy", resource)]
        }
        DocumentKind::BucketPolicy => {
            let bucket = last_part(attached_to, ':');
            let resource = json!({"provider": provider, "bucket": bucket, "policy": policy});
            vec![("aws_s3_bucket_policy", resource)]
        }
        DocumentKind::QueuePolicy => {
            let resource = json!({"provider": provider, "queue_url": queue_url(attached_to), "policy": policy});
            vec![("aws_sqs_queue_policy", resource)]
        }
        DocumentKind::Trust | DocumentKind::KeyPolicy => Vec::new(),
    }
}

/// Returns what may assume a role; the service that the daemon runs in, if no document says so.
fn trust_of(documents: &[Document], role: &str, service: Value) -> Value {
    let trust = documents
        .iter()
        .find(|document| document.kind == DocumentKind::Trust && document.attached_to == role);
    trust.map(Document::policy).unwrap_or_else(|| {
        let statement = json!({"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"});
        json!({"Version": "2012-10-17", "Statement": [statement]})
    })
}

/// Writes a policy as a text in which Terraform replaces nothing.
fn literal(policy: &Value) -> String {
    policy.to_string().replace("${", "$${").replace("%{", "%%{")
}

/// Says what becomes of a policy that is part of something that is there already.
fn by_hand(document: &Document) -> String {
    let what = &document.attached_to;
    format!("Statements for the policy of {what}, beside what it has")
}

fn with_field(mut object: Value, name: &str, value: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(name.to_owned(), value);
    }
    object
}

/// Makes a name of letters and digits out of what a document is, and what it is attached to.
fn logical_name(document: &Document) -> String {
    let text = format!(
        "{}-{}",
        document.kind,
        document
            .attached_to
            .splitn(3, ':')
            .last()
            .unwrap_or_default()
    );
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    let upper = |word: &str| {
        let mut letters = word.chars();
        let first = letters.next().map(|c| c.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    };
    words.map(upper).collect()
}

/// Splits the ARN of a role or user into path and name.
fn principal_name(arn: &str) -> (String, &str) {
    let whole = arn.split_once(":role").or_else(|| arn.split_once(":user"));
    let whole = whole.map_or("/", |(_, whole)| whole);
    let (path, name) = whole.rsplit_once('/').unwrap_or(("", whole));
    (format!("{path}/"), name)
}

fn last_part(text: &str, separator: char) -> &str {
    text.rsplit(separator).next().unwrap_or(text)
}

fn queue_url(arn: &str) -> String {
    let parts: Vec<&str> = arn.split(':').collect();
    match parts.as_slice() {
        [_, _, _, region, account, name] => {
            let domain = values::likely_partition(region).dns_suffix;
            format!("https://sqs.{region}.{domain}/{account}/{name}")
        }
        _ => arn.to_owned(),
    }
}
