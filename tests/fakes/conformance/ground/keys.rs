//! Keys of KMS in each state that they can be in. KMS is spoken in plain requests: a whole SDK for
//! four of them would be too much.

use aws_sdk_s3::types::ServerSideEncryption;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use super::Ground;
use crate::case::word;
use crate::stores::{ACCOUNT, REGION};

/// A state of a key.
#[derive(Clone, Copy)]
pub(crate) enum KeyState {
    Enabled,
    Disabled,
    PendingDeletion,
    /// There is no such key.
    Unknown,
}

impl KeyState {
    /// Every state.
    pub(crate) const ALL: [Self; 4] = [
        Self::Enabled,
        Self::Disabled,
        Self::PendingDeletion,
        Self::Unknown,
    ];
}

impl Ground {
    /// A new key, by its ARN.
    pub(crate) async fn key_in(&self, state: KeyState) -> String {
        if let KeyState::Unknown = state {
            return format!(
                "arn:aws:kms:{REGION}:{ACCOUNT}:key/00000000-0000-0000-0000-000000000000"
            );
        }
        let made = self.ask_kms("CreateKey", json!({})).await.unwrap();
        let arn = made["KeyMetadata"]["Arn"].as_str().unwrap().to_owned();
        self.turn(&arn, state).await;
        arn
    }

    /// Turns a key that can be used into one that cannot.
    pub(crate) async fn turn(&self, arn: &str, state: KeyState) {
        let turned = match state {
            KeyState::Enabled | KeyState::Unknown => return,
            KeyState::Disabled => self.ask_kms("DisableKey", json!({ "KeyId": arn })).await,
            KeyState::PendingDeletion => {
                self.ask_kms(
                    "ScheduleKeyDeletion",
                    json!({ "KeyId": arn, "PendingWindowInDays": 7 }),
                )
                .await
            }
        };
        turned.unwrap();
    }

    /// Says what KMS tells of a key.
    pub(crate) async fn describe_key(&self, key: &str) -> String {
        match self.ask_kms("DescribeKey", json!({ "KeyId": key })).await {
            Ok(told) => told["KeyMetadata"]["KeyState"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            Err(refused) => refused,
        }
    }

    /// Puts under a key; says how it went.
    pub(crate) async fn put_under(&self, name: &str, key: &str) -> String {
        let request = self
            .s3
            .put_object()
            .bucket(&self.bucket)
            .key(self.key(name))
            .body(super::content(1));
        word(
            &request
                .server_side_encryption(ServerSideEncryption::AwsKms)
                .ssekms_key_id(key)
                .send()
                .await,
        )
    }

    /// Asks KMS; returns its answer, or the status and the error's name.
    async fn ask_kms(&self, operation: &str, asked: Value) -> Result<Value, String> {
        let scope = format!("{ACCOUNT}/20260101/{REGION}/kms/aws4_request");
        let request = Request::post(&self.way.url)
            .header(
                "authorization",
                format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=none"),
            )
            .header("x-amz-date", "20260101T000000Z")
            .header("x-amz-target", format!("TrentService.{operation}"))
            .header("content-type", "application/x-amz-json-1.1")
            .body(Full::new(Bytes::from(asked.to_string())))
            .unwrap();
        let answer = Client::builder(TokioExecutor::new())
            .build_http()
            .request(request)
            .await
            .unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let told: Value = serde_json::from_slice(&body).unwrap_or_default();
        let name = told["__type"]
            .as_str()
            .and_then(|name| name.rsplit('#').next())
            .unwrap_or_default();
        if status.is_success() {
            Ok(told)
        } else {
            Err(format!("{} {name}", status.as_u16()))
        }
    }
}
