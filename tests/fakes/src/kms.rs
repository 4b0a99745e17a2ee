//! KMS: keys and the states they can be in, as S3 tells of them and as KMS itself does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response, header};
use serde_json::{Value, json};

use crate::net::{Answering, Serve};
use crate::s3::{KeyRing, S3_KEY};

/// The keys of a world; a handle, cheap to clone. A key that was never set does not exist, unless
/// any key is taken.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    states: Arc<Mutex<BTreeMap<String, State>>>,
    aliases: Arc<Mutex<BTreeMap<String, String>>>,
    /// How often something was wrapped.
    wraps: Arc<Mutex<u64>>,
    takes_any: bool,
}

/// What can be said of a key:
/// <https://docs.aws.amazon.com/kms/latest/developerguide/key-state.html>
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It can be used.
    Enabled,
    /// It was switched off.
    Disabled,
    /// It will be deleted.
    PendingDeletion,
    /// There is none, or no more.
    Unknown,
    /// It is there, and used too much at the moment.
    Throttled,
    /// It is there, and its policy forbids the use.
    Denied,
}

/// The account of the keys that are made by request.
const ACCOUNT: &str = "000000000000";

impl Keys {
    /// Makes a world in which every key is enabled that is not set otherwise.
    pub fn any() -> Self {
        Self {
            takes_any: true,
            ..Self::default()
        }
    }

    /// Gives a key an alias, both named by their ARNs.
    pub fn alias(&self, alias: &str, arn: &str) {
        let (alias, arn) = (alias.to_owned(), arn.to_owned());
        self.aliases.lock().unwrap().insert(alias, arn);
    }

    /// Sets the state of a key, which is named by its ARN.
    pub fn set(&self, arn: &str, state: State) {
        self.states.lock().unwrap().insert(arn.to_owned(), state);
    }

    /// Returns the state of a key, named by its ARN or by its id alone.
    pub fn state(&self, key: &str) -> State {
        self.find(key).map_or(State::Unknown, |(_, state)| state)
    }

    /// Answers a request of the JSON protocol.
    pub fn call(&self, request: &Request<Bytes>) -> Response<Bytes> {
        let target = request
            .headers()
            .get("x-amz-target")
            .and_then(|target| target.to_str().ok());
        let operation = target
            .and_then(|target| target.strip_prefix("TrentService."))
            .unwrap_or("no target");
        let asked: Value = serde_json::from_slice(request.body()).unwrap_or_default();
        match (operation, asked["KeyId"].as_str()) {
            ("CreateKey", _) => self.create(),
            ("DescribeKey", Some(key)) => self.describe(key),
            ("GenerateDataKey", Some(key)) => self.generate(key, &asked),
            ("Encrypt", Some(key)) => self.encrypt(key, &asked),
            ("Decrypt", Some(key)) => self.decrypt(key, &asked),
            ("ReEncrypt", _) => self.re_encrypt(&asked),
            ("DisableKey", Some(key)) => self.turn(key, State::Disabled),
            ("ScheduleKeyDeletion", Some(key)) => self.turn(key, State::PendingDeletion),
            ("DescribeKey" | "DisableKey" | "ScheduleKeyDeletion" | "GenerateDataKey", None) => {
                refused("ValidationException", "no KeyId")
            }
            (other, _) => refused("UnknownOperationException", other),
        }
    }

    fn create(&self) -> Response<Bytes> {
        let arn = {
            let mut states = self.states.lock().unwrap();
            let arn = format!("arn:aws:kms:us-east-1:{ACCOUNT}:key/{:08}", states.len());
            states.insert(arn.clone(), State::Enabled);
            arn
        };
        described(&arn, "Enabled")
    }

    fn turn(&self, key: &str, state: State) -> Response<Bytes> {
        let Some((arn, _)) = self.find(key) else {
            return self.describe(key);
        };
        self.set(&arn, state);
        answer(200, &json!({ "KeyId": arn }))
    }

    /// Refuses the use of a key that cannot be used, or a dry run.
    fn refusal(&self, key: &str, asked: &Value) -> Option<Response<Bytes>> {
        let is_dry = asked["DryRun"] == json!(true);
        let (code, message) = match self.state(key) {
            State::Enabled if is_dry => ("DryRunOperationException", "it would succeed".to_owned()),
            State::Enabled => return None,
            State::Disabled => ("DisabledException", format!("{key} is disabled.")),
            State::PendingDeletion => (
                "KMSInvalidStateException",
                format!("{key} is pending deletion."),
            ),
            State::Unknown => ("NotFoundException", format!("Key '{key}' does not exist")),
            State::Throttled => ("ThrottlingException", "Rate exceeded".to_owned()),
            State::Denied => (
                "AccessDeniedException",
                format!("not authorized to use {key}"),
            ),
        };
        Some(refused(code, &message))
    }

    fn generate(&self, key: &str, asked: &Value) -> Response<Bytes> {
        self.refusal(key, asked).unwrap_or_else(|| {
            let plaintext = STANDARD.encode([7; 32]);
            let blob = self.wrap(key, &asked["EncryptionContext"], &json!(plaintext));
            answer(
                200,
                &json!({ "KeyId": key, "Plaintext": plaintext, "CiphertextBlob": blob }),
            )
        })
    }

    fn encrypt(&self, key: &str, asked: &Value) -> Response<Bytes> {
        self.refusal(key, asked).unwrap_or_else(|| {
            let blob = self.wrap(key, &asked["EncryptionContext"], &asked["Plaintext"]);
            answer(200, &json!({ "KeyId": key, "CiphertextBlob": blob }))
        })
    }

    fn decrypt(&self, key: &str, asked: &Value) -> Response<Bytes> {
        let unwrapped = || self.unwrap(key, &asked["EncryptionContext"], &asked["CiphertextBlob"]);
        let refusal = self.refusal(key, asked);
        refusal.unwrap_or_else(|| match unwrapped() {
            Ok(plaintext) => answer(200, &json!({ "KeyId": key, "Plaintext": plaintext })),
            Err(code) => refused(code, "cannot be unwrapped"),
        })
    }

    fn re_encrypt(&self, asked: &Value) -> Response<Bytes> {
        let name = |name: &str| asked[name].as_str().unwrap_or_default().to_owned();
        let (from, to) = (name("SourceKeyId"), name("DestinationKeyId"));
        let refusal = self.refusal(&from, asked);
        if let Some(refusal) = refusal.or_else(|| self.refusal(&to, asked)) {
            return refusal;
        }
        let context = &asked["SourceEncryptionContext"];
        match self.unwrap(&from, context, &asked["CiphertextBlob"]) {
            Ok(plaintext) => {
                let blob = self.wrap(&to, &asked["DestinationEncryptionContext"], &plaintext);
                answer(
                    200,
                    &json!({ "KeyId": to, "SourceKeyId": from, "CiphertextBlob": blob }),
                )
            }
            Err(code) => refused(code, "cannot be unwrapped"),
        }
    }

    /// Wraps what no reader but this looks into, differently each time.
    pub fn wrap(&self, key: &str, context: &Value, plaintext: &Value) -> String {
        let mut wraps = self.wraps.lock().unwrap();
        *wraps += 1;
        let wrapped =
            json!({ "key": key, "context": context, "plaintext": plaintext, "nonce": *wraps });
        STANDARD.encode(wrapped.to_string())
    }

    /// Unwraps it, or says by which code KMS would refuse.
    pub fn unwrap(&self, key: &str, context: &Value, blob: &Value) -> Result<Value, &'static str> {
        let bytes = STANDARD
            .decode(blob.as_str().unwrap_or_default())
            .unwrap_or_default();
        let wrapped: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if wrapped["key"].is_null() || wrapped["context"] != *context {
            return Err("InvalidCiphertextException");
        }
        if wrapped["key"].as_str() != Some(key) {
            return Err("IncorrectKeyException");
        }
        Ok(wrapped["plaintext"].clone())
    }

    fn describe(&self, key: &str) -> Response<Bytes> {
        let refusal = match self.find(key) {
            None | Some((_, State::Unknown)) => {
                ("NotFoundException", format!("Key '{key}' does not exist"))
            }
            Some((_, State::Throttled)) => ("ThrottlingException", "Rate exceeded".to_owned()),
            Some((_, State::Denied)) => {
                ("AccessDeniedException", format!("kms:DescribeKey on {key}"))
            }
            Some((arn, State::Enabled)) => return described(&arn, "Enabled"),
            Some((arn, State::Disabled)) => return described(&arn, "Disabled"),
            Some((arn, State::PendingDeletion)) => return described(&arn, "PendingDeletion"),
        };
        refused(refusal.0, &refusal.1)
    }

    fn find(&self, key: &str) -> Option<(String, State)> {
        let aliases = self.aliases.lock().unwrap();
        let key = aliases.get(key).map_or(key, String::as_str);
        let states = self.states.lock().unwrap();
        let found = states
            .get_key_value(key)
            .or_else(|| states.iter().find(|(arn, _)| id(arn) == key));
        let found = found.map(|(arn, state)| (arn.clone(), *state));
        found.or_else(|| self.takes_any.then(|| (key.to_owned(), State::Enabled)))
    }
}

/// S3 passes KMS's refusals on, their codes prefixed with `KMS.`:
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>
impl KeyRing for Keys {
    fn usable(&self, key: &str) -> Result<(), (u16, &'static str, String)> {
        if key == S3_KEY {
            return Ok(());
        }
        let (status, code, message) = match self.state(key) {
            State::Enabled => return Ok(()),
            State::Disabled => (400, "KMS.DisabledException", format!("{key} is disabled.")),
            State::PendingDeletion => (400, "KMS.KMSInvalidStateException", format!("{key} is pending deletion.")),
            State::Unknown => (400, "KMS.NotFoundException", format!("Key '{key}' does not exist")),
            State::Throttled => (
                400,
                "KMS.ThrottlingException",
                "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.".to_owned(),
            ),
            State::Denied => (403, "AccessDenied", format!("not authorized to perform: kms:GenerateDataKey on {key}")),
        };
        Err((status, code, message))
    }

    fn full_name(&self, key: &str) -> String {
        self.find(key)
            .map_or_else(|| key.to_owned(), |(arn, _)| arn)
    }
}

impl Serve for Keys {
    fn serve(&self, request: Request<Bytes>, _client: &str) -> Answering {
        let answer = self.call(&request);
        Box::pin(std::future::ready(answer))
    }
}

/// `arn:aws:kms:region:account:key/id`
fn id(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or(arn)
}

fn described(arn: &str, state: &str) -> Response<Bytes> {
    let metadata = json!({
        "Arn": arn,
        "KeyId": id(arn),
        "AWSAccountId": arn.split(':').nth(4).unwrap_or_default(),
        "Enabled": state == "Enabled",
        "KeyState": state,
        "KeyUsage": "ENCRYPT_DECRYPT",
        "KeySpec": "SYMMETRIC_DEFAULT",
    });
    answer(200, &json!({ "KeyMetadata": metadata }))
}

fn refused(kind: &str, message: &str) -> Response<Bytes> {
    answer(400, &json!({ "__type": kind, "message": message }))
}

fn answer(status: u16, body: &Value) -> Response<Bytes> {
    let response = Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/x-amz-json-1.1");
    response.body(Bytes::from(body.to_string())).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:kms:us-east-1:222222222222:key/one";

    fn code(keys: &Keys) -> &'static str {
        keys.usable(ARN).map_or_else(|(_, code, _)| code, |()| "")
    }

    #[test]
    fn s3_names_what_is_wrong_with_a_key() {
        let keys = Keys::default();
        assert_eq!(code(&keys), "KMS.NotFoundException");
        let cases = [
            (State::Enabled, ""),
            (State::Disabled, "KMS.DisabledException"),
            (State::PendingDeletion, "KMS.KMSInvalidStateException"),
            (State::Unknown, "KMS.NotFoundException"),
            (State::Throttled, "KMS.ThrottlingException"),
            (State::Denied, "AccessDenied"),
        ];
        for (state, expected) in cases {
            keys.set(ARN, state);
            assert_eq!(code(&keys), expected, "{state:?}");
        }
        assert_eq!(keys.state("one"), State::Denied);
    }

    #[test]
    fn a_key_is_described_by_its_arn_and_by_its_id() {
        let keys = Keys::default();
        keys.set(ARN, State::PendingDeletion);
        let ask = |key: &str| {
            let request = Request::builder().header("x-amz-target", "TrentService.DescribeKey");
            let response = keys.call(
                &request
                    .body(Bytes::from(json!({ "KeyId": key }).to_string()))
                    .unwrap(),
            );
            (
                response.status().as_u16(),
                serde_json::from_slice::<Value>(response.body()).unwrap(),
            )
        };
        for key in [ARN, "one"] {
            let (status, body) = ask(key);
            assert_eq!((status, &body["KeyMetadata"]["Arn"]), (200, &json!(ARN)));
            assert_eq!(body["KeyMetadata"]["KeyState"], "PendingDeletion");
        }
        assert_eq!(
            ask("two"),
            (
                400,
                json!({ "__type": "NotFoundException", "message": "Key 'two' does not exist" })
            )
        );
    }
}
