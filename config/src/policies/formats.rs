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
            DocumentKind::Permissions => {
                let service = json!({"Ref": "Service"});
                let trust = trust_of(documents, attached_to, service);
                let (path, name) = role_name(attached_to);
                let policies =
                    json!([{"PolicyName": "s3-replicator", "PolicyDocument": document.policy()}]);
                let role = json!({"Path": path, "RoleName": name, "AssumeRolePolicyDocument": trust, "Policies": policies});
                ("AWS::IAM::Role", role)
            }
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
            DocumentKind::KeyPolicy => {
                let output = json!({"Condition": condition, "Description": key_hint(attached_to), "Value": document.policy().to_string()});
                outputs.insert(logical_name(document), output);
                continue;
            }
            DocumentKind::Trust => continue,
        };
        let resource = json!({"Type": sort, "Condition": condition, "Properties": properties});
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

fn module(documents: &[Document]) -> Value {
    let mut resources: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    let (mut outputs, mut aliases) = (Map::new(), BTreeSet::new());
    for document in documents {
        let name = logical_name(document);
        if document.kind == DocumentKind::KeyPolicy {
            let value = literal(&document.policy());
            let hint = key_hint(&document.attached_to);
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
        DocumentKind::Permissions => {
            let trust = literal(&trust_of(documents, attached_to, SERVICE.into()));
            let trust = trust.replace(SERVICE, "${var.service}");
            let (path, role) = role_name(attached_to);
            let role = json!({"provider": provider, "name": role, "path": path, "assume_role_policy": trust});
            let id = format!("${{aws_iam_role.{name}.id}}");
            let inline = json!({"provider": provider, "name": "s3-replicator", "role": id, "policy": policy});
            vec![("aws_iam_role", role), ("aws_iam_role_policy", inline)]
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

fn key_hint(key: &str) -> String {
    format!("Statements for the policy of the key {key}, beside what it has")
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

/// Splits the ARN of a role into path and name.
fn role_name(arn: &str) -> (String, &str) {
    let whole = arn.split_once(":role").map_or("/", |(_, whole)| whole);
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
            let domain = values::partition(region).1;
            format!("https://sqs.{region}.{domain}/{account}/{name}")
        }
        _ => arn.to_owned(),
    }
}
