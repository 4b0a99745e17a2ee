//! The KMS keys that a rule names: whether each is there and can be used. That the principal may
//! use it through S3 alone no question shows.

use replicator_config::{Account, Service};

use super::access::{ask, cli_options};
use super::finding::{CheckName, Finding, Fix, Section};
use crate::kms::{KeyReport, KeySide, KeyState, KeyUse};
use crate::s3::accounts::AccountClients;
use crate::s3::accounts::error::RefusalKind;

/// Asks about a key as the account that uses it.
pub(super) async fn judge_key(
    key: &KeyUse,
    (account, clients): (&Account, &AccountClients),
    section: &mut Section,
) {
    let name = &key.name;
    let described = ask(clients.kms.describe_key().key_id(name).send()).await;
    match described.map(|described| described.key_metadata.map(KeyReport::from)) {
        Ok(Some(answer)) => match answer.state {
            Some(KeyState::Invalid | KeyState::Missing) => {
                section.add([unusable(key, account, &answer)]);
            }
            Some(KeyState::Usable) => section.fine(format!("{} key {name} is usable", key.side)),
            Some(KeyState::Unknown) | None => section.skip(unknown(key, &answer.detail)),
        },
        Err(refusal) if refusal.kind == RefusalKind::Absent => {
            section.add([missing(key, account, &refusal.words)]);
        }
        Ok(None) => section.skip(unknown(key, "the answer is empty")),
        Err(refusal) => section.skip(unknown(key, &refusal.words)),
    }
}

fn unknown(key: &KeyUse, words: &str) -> String {
    let name = &key.name;
    format!("whether key {name} can be used (kms:DescribeKey): {words}")
}

fn unusable(key: &KeyUse, account: &Account, answer: &KeyReport) -> Finding {
    let arn = answer.arn.as_ref().unwrap_or(&key.name);
    let command = |verb: &str| {
        let options = cli_options(account, Service::Kms);
        Fix::command(format!("aws kms {verb} --key-id {arn}{options}"))
    };
    let fixes = match answer.detail.as_str() {
        "Disabled" => vec![command("enable-key")],
        "PendingDeletion" => vec![command("cancel-key-deletion"), command("enable-key")],
        _ => vec![Fix::advice(format!(
            "name an enabled symmetric key of {} that encrypts and decrypts",
            account.region
        ))],
    };
    let what = format!("the key is not usable: {}", answer.detail);
    Finding::problem(check_of(key.side), &key.name, what, WHY).fixed_by(fixes)
}

fn missing(key: &KeyUse, account: &Account, words: &str) -> Finding {
    let advice = format!(
        "name a key that account {} has in {}",
        account.name, account.region
    );
    let what = format!("there is no such key: {words}");
    Finding::problem(check_of(key.side), &key.name, what, WHY).fixed_by([Fix::advice(advice)])
}

const WHY: &str = "what needs the key is parked until it can be used";

fn check_of(side: KeySide) -> CheckName {
    match side {
        KeySide::Source => CheckName::SourceKey,
        KeySide::Destination => CheckName::DestinationKey,
    }
}
