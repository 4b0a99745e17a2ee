//! The documents of a configuration: as the documentation shows them, no wider than the rules, and
//! for every request that the daemon sends.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that can't go on should stop"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use replicator_config::parse;
use replicator_config::policies::{
    Document, DocumentKind, PERMISSIONS, PolicyFormat, PolicyLayout, PolicyOptions, policies,
    render,
};
use serde_json::Value;

const PAGE: &str = include_str!("../../docs/setup-aws.md");
const OWN: &str = "arn:aws:iam::111111111111:role/s3-replicator";
const REPLICATOR: &str = "arn:aws:iam::222222222222:role/replicator";

#[test]
fn the_documentation_shows_what_is_printed() {
    let shown: Vec<Value> = blocks("json")
        .iter()
        .map(|text| serde_json::from_str(text).unwrap())
        .collect();
    let config = config();
    for layout in [PolicyLayout::Roles, PolicyLayout::BucketPolicy] {
        for document in documents(&config, layout) {
            // The layouts differ in what the roles may do, and one is shown whole.
            let is_shown =
                layout == PolicyLayout::Roles || document.kind == DocumentKind::BucketPolicy;
            let policy = document.policy();
            assert!(!is_shown || shown.contains(&policy), "{policy:#}");
        }
    }
}

#[test]
fn the_documentation_lists_the_table() {
    let section = PAGE.split_once("\n### Permissions by request").unwrap().1;
    let section = section.split_once("\n## ").unwrap().0;
    let listed: Vec<(String, String)> = section.lines().filter_map(cells).collect();
    let table: Vec<(String, String)> = PERMISSIONS
        .iter()
        .map(|row| (row.action.to_owned(), row.place.to_string()))
        .collect();
    assert_eq!(listed, table);
}

/// The action and the place of a row.
fn cells(line: &str) -> Option<(String, String)> {
    let mut cells = line.strip_prefix("| `")?.split(" | ");
    let action = cells.next()?.trim_end_matches('`');
    Some((action.to_owned(), cells.next()?.to_owned()))
}

#[test]
fn every_request_of_the_daemon_is_in_the_table() {
    let known: BTreeSet<&str> = PERMISSIONS
        .iter()
        .flat_map(|row| row.requests)
        .copied()
        .collect();
    let failures = fs::read_to_string(root().join("core/src/failure.rs")).unwrap();
    let operations = failures.split_once("pub enum Operation {").unwrap().1;
    let operations = operations.split_once("\n}").unwrap().0;
    let lines: Vec<&str> = operations.lines().map(str::trim).collect();
    let of_services = lines
        .windows(2)
        .filter(|pair| pair[0].contains("https://docs.aws.amazon.com/"));
    let mut sent: BTreeSet<String> = of_services
        .map(|pair| pair[1].trim_end_matches(',').to_owned())
        .collect();
    for file in sources(&root().join("daemon/src")) {
        let text = fs::read_to_string(file).unwrap();
        sent.extend(sdk_requests(&text));
        sent.extend(bus_requests(&text));
    }
    // The name of its batches is in the journal; alone it is sent by none.
    sent.remove("ChangeMessageVisibility");
    assert!(sent.len() > 24, "{sent:?}");
    let missing: Vec<&String> = sent
        .iter()
        .filter(|name| !known.contains(name.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "no permission is listed for {missing:?}"
    );
    // The SDK assumes roles by itself.
    sent.insert("AssumeRole".to_owned());
    let needless: Vec<&&str> = known.iter().filter(|name| !sent.contains(**name)).collect();
    assert!(
        needless.is_empty(),
        "permissions are listed for {needless:?}, which nothing sends"
    );
}

/// The requests that some code builds by the SDK.
fn sdk_requests(text: &str) -> Vec<String> {
    let verbs = [
        "abort_",
        "change_",
        "delete_",
        "describe_",
        "get_",
        "head_",
        "list_",
        "put_",
        "receive_",
        "send_",
    ];
    let nouns = [
        "_bucket",
        "_key",
        "_message",
        "_multipart",
        "_object",
        "_parts",
        "_queue",
    ];
    let calls = text
        .split('.')
        .skip(1)
        .filter_map(|rest| Some(rest.split_once("()")?.0));
    let of_sdk = calls.filter(|call| {
        let is_verb = verbs.iter().any(|verb| call.starts_with(verb));
        let is_name = !call.contains(|c: char| !c.is_ascii_lowercase() && c != '_' && c != '2');
        is_verb && is_name && nouns.iter().any(|noun| call.contains(noun))
    });
    let camel = |call: &str| {
        let words = call.split('_').map(|word| {
            let (first, rest) = word.split_at(1);
            format!("{}{rest}", first.to_uppercase())
        });
        words.collect::<String>()
    };
    of_sdk.map(camel).collect()
}

/// The requests to EventBridge, which no SDK builds.
fn bus_requests(text: &str) -> Vec<String> {
    let calls = text
        .split_once("EventBus<'_> {")
        .map_or("", |(_, calls)| calls);
    let calls = { calls.split(".ask(\"") }.chain(calls.split(".list(\""));
    let names = calls.filter_map(|rest| Some(rest.split_once("\",")?.0.to_owned()));
    let is_name = |name: &String| name.chars().all(char::is_alphanumeric);
    names.filter(is_name).collect()
}

#[test]
fn what_no_rule_uses_is_allowed_to_nobody() {
    let plain = config()
        .replace(
            "delete_markers = true\n",
            "filter = { size_max = \"1MiB\" }\n",
        )
        .replace("sse_kms_objects = true\n", "");
    let plain: String = plain
        .lines()
        .filter(|line| !line.starts_with("encryption"))
        .map(|line| format!("{line}\n"))
        .collect();
    let whole = format!("{}version_deletes = true\nhistory = \"latest\"\n", config());
    let (plain, whole) = (actions(&plain), actions(&whole));
    let more = |role: &str| -> Vec<&str> {
        let (plain, whole) = (&plain[role], &whole[role]);
        assert!(plain.is_subset(whole));
        whole.difference(plain).map(String::as_str).collect()
    };
    assert_eq!(
        more(OWN),
        ["kms:Decrypt", "kms:DescribeKey", "s3:GetObject"]
    );
    assert_eq!(
        more(REPLICATOR),
        [
            "kms:Decrypt",
            "kms:DescribeKey",
            "kms:GenerateDataKey",
            "s3:AbortMultipartUpload",
            "s3:DeleteObject",
            "s3:DeleteObjectVersion",
            "s3:ListBucketMultipartUploads",
            "s3:ListMultipartUploadParts",
        ]
    );
}

#[test]
fn a_disabled_rule_needs_nothing() {
    let text = format!("{}enabled = false\n", config());
    let kinds: Vec<DocumentKind> = documents(&text, PolicyLayout::Roles)
        .iter()
        .map(|document| document.kind)
        .collect();
    assert!(!kinds.contains(&DocumentKind::KeyPolicy), "{kinds:?}");
    assert!(
        actions(&text)[OWN]
            .iter()
            .all(|action| !action.starts_with("s3:"))
    );
}

#[test]
fn prefixes_are_written_so_that_no_character_stands_for_others() {
    let text = format!("{}filter = {{ prefix = \"in?/${{a}}*\" }}\n", config());
    let text = text.replace(
        "bucket = \"orders-replica\"",
        "bucket = \"orders-replica\", prefix = \"out/\"",
    );
    let own = document(&text, DocumentKind::Permissions, OWN);
    let resource = |action: &str| own.statements_of(action)[0]["Resource"].clone();
    assert_eq!(
        resource("s3:GetObjectVersion"),
        "arn:aws:s3:::orders/in${?}/${$}{a}${*}*"
    );
    let listed = own.statements_of("s3:ListBucketVersions");
    assert_eq!(
        listed[0]["Condition"]["StringLike"]["s3:prefix"],
        "in${?}/${$}{a}${*}*"
    );
    let replicator = document(&text, DocumentKind::Permissions, REPLICATOR);
    let written = replicator.statements_of("s3:PutObject");
    assert_eq!(written[0]["Resource"], "arn:aws:s3:::orders-replica/out/*");
}

#[test]
fn a_key_is_used_through_s3_alone_and_for_these_objects() {
    let context = |text: &str| {
        let written = document(text, DocumentKind::Permissions, REPLICATOR);
        let statement = &written.statements_of("kms:GenerateDataKey")[0];
        let condition = &statement["Condition"];
        assert_eq!(
            condition["StringEquals"]["kms:ViaService"],
            "s3.us-east-1.amazonaws.com"
        );
        (statement["Resource"].clone(), condition.clone())
    };
    let arn =
        |condition: &Value| condition["StringLike"]["kms:EncryptionContext:aws:s3:arn"].clone();
    // Under a bucket key S3 asks for the bucket, without one for the object.
    assert_eq!(arn(&context(&config()).1), "arn:aws:s3:::orders-replica");
    let text = config().replace("mode = \"kms\"", "mode = \"kms\", bucket_key = false");
    assert_eq!(arn(&context(&text).1), "arn:aws:s3:::orders-replica/*");
    let text = config().replace("key/1234abcd-12ab-34cd-56ef-1234567890ab", "alias/orders");
    let (resource, condition) = context(&text);
    assert_eq!(resource, "arn:aws:kms:us-east-1:222222222222:key/*");
    assert_eq!(
        condition["ForAnyValue:StringEquals"]["kms:ResourceAliases"],
        "alias/orders"
    );
    // A refusal names the key, and not the alias.
    let role = document(&text, DocumentKind::Permissions, REPLICATOR);
    let over = |arn: &str| role.statements_over("kms:GenerateDataKey", arn).len();
    assert_eq!(over("arn:aws:kms:us-east-1:222222222222:key/9"), 1);
    assert_eq!(over("arn:aws:kms:us-east-1:333333333333:key/9"), 0);
}

#[test]
fn data_keys_are_wrapped_by_kms_itself_within_a_region_and_by_the_daemon_across() {
    let of = |region: &str, attached_to: &str| {
        let key = |region: &str, account: &str| format!("arn:aws:kms:{region}:{account}:key/1");
        let (from, to) = (
            key("eu-west-1", "111111111111"),
            key(region, "222222222222"),
        );
        let text = format!(
            "{}client_side_keys = {{ \"{from}\" = \"{to}\" }}\n",
            config()
        );
        let used = |(resource, action): (&String, &str)| {
            let document = document(&text, DocumentKind::Permissions, attached_to);
            let statements = document.statements_of(action);
            statements
                .iter()
                .any(|one| one["Resource"] == resource.as_str() && one["Condition"].is_null())
        };
        [
            (&from, "kms:ReEncryptFrom"),
            (&to, "kms:ReEncryptTo"),
            (&from, "kms:Decrypt"),
            (&to, "kms:Encrypt"),
        ]
        .map(used)
    };
    assert_eq!(of("eu-west-1", OWN), [true, true, false, false]);
    assert_eq!(of("eu-west-1", REPLICATOR), [false; 4]);
    assert_eq!(of("us-east-1", OWN), [false, false, true, false]);
    assert_eq!(of("us-east-1", REPLICATOR), [false, false, false, true]);
}

#[test]
fn one_action_is_printed_as_it_stands_in_the_policy() {
    let own = document(&config(), DocumentKind::Permissions, OWN);
    let whole = own.policy();
    for action in own.actions() {
        let statements = own.statements_of(action);
        assert!(!statements.is_empty());
        for statement in statements {
            assert_eq!(statement["Action"], action);
            let covers = |other: &Value| {
                let actions = &other["Action"];
                let has = actions == action
                    || actions
                        .as_array()
                        .is_some_and(|all| all.contains(&action.into()));
                has && other["Resource"] == statement["Resource"]
                    && other["Condition"] == statement["Condition"]
            };
            assert!(
                whole["Statement"].as_array().unwrap().iter().any(covers),
                "{statement:#}"
            );
        }
    }
}

#[test]
fn one_role_needs_to_know_whose_the_other_bucket_is() {
    let text = config().replace("owner = \"222222222222\"\n", "");
    let of = |text: &str, layout| policies(&parse(text).unwrap(), &options(layout));
    // The role that it does not use tells, too.
    assert!(of(&text, PolicyLayout::BucketPolicy).is_ok());
    let text: String = text
        .lines()
        .filter(|line| !line.contains("role_arn") && !line.contains("external_id"))
        .map(|line| format!("{line}\n"))
        .collect();
    let error = of(&text, PolicyLayout::BucketPolicy).unwrap_err();
    assert!(error.to_string().contains("set owner in [accounts.NAME]"));
}

#[test]
fn a_bucket_behind_an_access_point_is_allowed_there_and_through_it_alone() {
    let point = "arn:aws:s3:us-east-1:222222222222:accesspoint/replicas";
    let through = format!("access_points = {{ orders-replica = \"{point}\" }}\n");
    let text = config().replace(
        "owner = \"222222222222\"\n",
        &format!("owner = \"222222222222\"\n{through}"),
    );
    let role = document(&text, DocumentKind::Permissions, REPLICATOR);
    let bucket = "arn:aws:s3:::orders-replica";
    let by_resource = |action: &str| -> BTreeMap<String, Value> {
        let statements = role.statements_of(action).into_iter();
        let of = |statement: Value| {
            let condition = &statement["Condition"]["StringEquals"]["s3:DataAccessPointArn"];
            (
                statement["Resource"].as_str().unwrap().to_owned(),
                condition.clone(),
            )
        };
        statements.map(of).collect()
    };
    let expected = |front: &str, behind: &str| {
        BTreeMap::from([
            (format!("{point}{front}"), Value::Null),
            (format!("{bucket}{behind}"), point.into()),
        ])
    };
    assert_eq!(by_resource("s3:PutObject"), expected("/object/*", "/*"));
    assert_eq!(by_resource("s3:ListBucketVersions"), expected("", ""));
    // The bucket itself answers these.
    let beside = BTreeMap::from([(bucket.to_owned(), Value::Null)]);
    assert_eq!(by_resource("s3:GetBucketVersioning"), beside);
    // What is asked about is the bucket, whichever way the request takes.
    assert_eq!(
        role.statements_about("s3:PutObject", "arn:aws:s3:::orders-replica/*")
            .len(),
        2
    );
    // One role: both policies of the other account let it in.
    let all = documents(&text, PolicyLayout::BucketPolicy);
    let of = |kind, attached_to: &str| {
        let found = { all.iter() }.find(|one| one.kind == kind && one.attached_to == attached_to);
        found.unwrap().statements_of("s3:PutObject")
    };
    let front = of(DocumentKind::AccessPointPolicy, point);
    assert_eq!(front[0]["Resource"], format!("{point}/object/*"));
    let behind = of(DocumentKind::BucketPolicy, bucket);
    assert_eq!(
        behind[0]["Condition"]["StringEquals"]["s3:DataAccessPointArn"],
        point
    );
    for format in [PolicyFormat::Cloudformation, PolicyFormat::Terraform] {
        assert!(render(&all, format).contains("accesspoint/replicas"));
    }
}

#[test]
fn the_principal_of_a_profile_is_another_and_has_to_be_named() {
    let text = config().replace(
        "external_id = \"orders-archive\"\n",
        "external_id = \"orders-archive\"\nprofile = \"platform\"\n",
    );
    assert_ne!(text, config());
    let settings = parse(&text).unwrap();
    let error = policies(&settings, &PolicyOptions::default()).unwrap_err();
    assert!(
        error.to_string().contains("--principal archive=ARN"),
        "{error}"
    );
    let user = "arn:aws:iam::222222222222:user/platform";
    let mut options = options(PolicyLayout::Roles);
    let unknown =
        options.add_principal("archiv=arn:aws:iam::222222222222:user/platform", &settings);
    assert!(
        unknown
            .unwrap_err()
            .to_string()
            .contains("did you mean \"archive\"?")
    );
    assert!(
        options
            .add_principal("archive=platform", &settings)
            .is_err()
    );
    options
        .add_principal(&format!("archive={user}"), &settings)
        .unwrap();
    let all = policies(&settings, &options).unwrap();
    let of = |kind, attached_to: &str| {
        let found = { all.iter() }.find(|one| one.kind == kind && one.attached_to == attached_to);
        found
            .map(|one| one.statements_of("sts:AssumeRole"))
            .unwrap_or_default()
    };
    assert_eq!(
        of(DocumentKind::Trust, REPLICATOR)[0]["Principal"]["AWS"],
        user
    );
    assert_eq!(
        of(DocumentKind::Permissions, user)[0]["Resource"],
        REPLICATOR
    );
    assert!(of(DocumentKind::Permissions, OWN).is_empty());
    let template: Value =
        serde_json::from_str(&render(&all, PolicyFormat::Cloudformation)).unwrap();
    let of_user = &template["Resources"]["PermissionsIam222222222222UserPlatform"];
    assert_eq!(of_user["Type"], "AWS::IAM::UserPolicy", "{template:#}");
    assert_eq!(of_user["Properties"]["UserName"], "platform");
}

#[test]
fn a_principal_that_is_none_or_that_would_not_be_used_is_refused() {
    let settings = parse(&config()).unwrap();
    let with = |principals: &[&str]| {
        let mut options = PolicyOptions::default();
        let mut adding = principals.iter();
        let added = adding.try_for_each(|one| options.add_principal(one, &settings));
        added.map(|()| options)
    };
    // The name of a role may have an equals sign.
    let odd = "arn:aws:iam::111111111111:role/team=data";
    assert_eq!(with(&[odd]).unwrap().principal.as_deref(), Some(odd));
    let user = "arn:aws:iam::222222222222:user/platform";
    for (wrong, words) in [
        ([OWN, odd].as_slice(), "two roles"),
        (&["s3-replicator"], "is not the ARN of an IAM role"),
        (
            &["arn:aws:iam::111111111111:role/*"],
            "is not the ARN of an IAM role",
        ),
        (&[&format!("archive={user}")], "has no profile"),
        (
            &["archive=platform"],
            "is not the ARN of an IAM role or user",
        ),
        (&[&format!("archiv={user}")], "did you mean \"archive\"?"),
    ] {
        let refused = with(wrong).unwrap_err().to_string();
        assert!(refused.contains(words), "{wrong:?}: {refused}");
    }
    let text = config().replace(
        "external_id = \"orders-archive\"\n",
        "external_id = \"orders-archive\"\nprofile = \"platform\"\n",
    );
    let settings = parse(&text).unwrap();
    let mut options = PolicyOptions::default();
    let of_archive = format!("archive={user}");
    options.add_principal(&of_archive, &settings).unwrap();
    let refused = options.add_principal(&of_archive, &settings).unwrap_err();
    assert!(refused.to_string().contains("two principals"), "{refused}");
}

#[test]
fn keys_that_are_no_arns_are_refused() {
    let key = "arn:aws:kms:eu-west-1:111111111111:key/1".to_owned();
    let with = |source: &str, destination: &str| {
        PolicyOptions::default().with_keys(&[source.to_owned()], &[destination.to_owned()])
    };
    assert_eq!(with(&key, &key).unwrap().source_keys, [key.as_str()]);
    assert!(with("alias/orders", &key).is_err() && with(&key, "1").is_err());
}

#[test]
fn a_role_that_names_another_of_its_template_is_made_after_it() {
    let own = "arn:aws:iam::222222222222:role/s3-replicator";
    let mut options = options(PolicyLayout::Roles);
    options.principal = Some(own.to_owned());
    let all = policies(&parse(&config()).unwrap(), &options).unwrap();
    let rendered = |format| serde_json::from_str::<Value>(&render(&all, format)).unwrap();
    let (own, role) = (
        "PermissionsIam222222222222RoleS3Replicator",
        "PermissionsIam222222222222RoleReplicator",
    );
    let template = rendered(PolicyFormat::Cloudformation);
    assert_eq!(
        template["Resources"][role]["DependsOn"], own,
        "{template:#}"
    );
    assert_eq!(template["Resources"][own]["DependsOn"], Value::Null);
    let module = rendered(PolicyFormat::Terraform);
    let made = &module["resource"]["aws_iam_role"][role]["depends_on"];
    assert_eq!(made[0], format!("aws_iam_role.{own}"), "{module:#}");
    // In another account the other role is no part of the stack.
    let template = documents(&config(), PolicyLayout::Roles);
    let template: Value =
        serde_json::from_str(&render(&template, PolicyFormat::Cloudformation)).unwrap();
    assert_eq!(template["Resources"][role]["DependsOn"], Value::Null);
}

#[test]
fn the_example_gets_its_documents_once_its_profile_is_known() {
    let text = fs::read_to_string(root().join("config/example.toml")).unwrap();
    let settings = parse(&text).unwrap();
    let mut options = PolicyOptions::default();
    let (name, _) = { settings.accounts.iter() }
        .find(|(_, account)| account.profile.is_some())
        .unwrap();
    let principal = format!("{name}=arn:aws:iam::111111111111:role/platform");
    options.add_principal(&principal, &settings).unwrap();
    let all = policies(&settings, &options).unwrap();
    let through = "arn:aws:s3:eu-west-1:111111111111:accesspoint/orders";
    let is_through = |one: &Document| one.policy().to_string().contains(through);
    assert!(all.iter().any(is_through));
}

#[test]
fn templates_have_every_document() {
    for layout in [PolicyLayout::Roles, PolicyLayout::BucketPolicy] {
        let documents = documents(&config(), layout);
        let json: Value = serde_json::from_str(&render(&documents, PolicyFormat::Json)).unwrap();
        assert_eq!(json.as_array().unwrap().len(), documents.len());
        let template: Value =
            serde_json::from_str(&render(&documents, PolicyFormat::Cloudformation)).unwrap();
        let module: Value =
            serde_json::from_str(&render(&documents, PolicyFormat::Terraform)).unwrap();
        let parts = |value: &Value| value.as_object().map_or(0, serde_json::Map::len);
        let count = |kinds: &[DocumentKind]| {
            documents
                .iter()
                .filter(|document| kinds.contains(&document.kind))
                .count()
        };
        let resources = count(&[
            DocumentKind::Permissions,
            DocumentKind::BucketPolicy,
            DocumentKind::QueuePolicy,
        ]);
        assert_eq!(parts(&template["Resources"]), resources);
        assert_eq!(
            parts(&template["Outputs"]),
            count(&[DocumentKind::KeyPolicy])
        );
        let sorts = module["resource"].as_object().unwrap();
        let made: usize = sorts
            .iter()
            .filter(|(sort, _)| *sort != "aws_iam_role_policy")
            .map(|(_, all)| parts(all))
            .sum();
        assert_eq!(made, resources);
    }
}

fn actions(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let all = documents(text, PolicyLayout::Roles);
    let of_roles = all
        .into_iter()
        .filter(|document| document.kind == DocumentKind::Permissions);
    of_roles
        .map(|document| {
            let actions = document.actions().into_iter().map(str::to_owned).collect();
            (document.attached_to, actions)
        })
        .collect()
}

fn document(text: &str, kind: DocumentKind, attached_to: &str) -> Document {
    let all = documents(text, PolicyLayout::Roles);
    let found = all
        .into_iter()
        .find(|document| document.kind == kind && document.attached_to == attached_to);
    found.unwrap()
}

fn documents(text: &str, layout: PolicyLayout) -> Vec<Document> {
    let settings = parse(text).map_err(|invalid| invalid.to_string()).unwrap();
    policies(&settings, &options(layout)).unwrap()
}

/// As the page calls the command.
fn options(layout: PolicyLayout) -> PolicyOptions {
    PolicyOptions {
        layout,
        source_keys: vec![
            "arn:aws:kms:eu-west-1:111111111111:key/0987dcba-09fe-87dc-65ba-ab0987654321"
                .to_owned(),
        ],
        ..PolicyOptions::default()
    }
}

/// The configuration of the page.
fn config() -> String {
    let mut blocks = blocks("toml").into_iter();
    blocks.find(|block| block.contains("[[queues]]")).unwrap()
}

/// The blocks of code of the page in a language.
fn blocks(language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let blocks = PAGE
        .split(&fence)
        .skip(1)
        .filter_map(|rest| rest.split_once("\n```"));
    blocks.map(|(block, _)| format!("{block}\n")).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => sources(&path),
            false => vec![path],
        })
        .collect()
}
