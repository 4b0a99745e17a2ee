//! LocalStack: two accounts, and what a test needs in them. S3 and SQS are spoken through the SDK;
//! the few calls to KMS and SNS are plain requests, for its account is named by the access key and
//! no signature is checked.

use aws_sdk_sqs::types::QueueAttributeName;
use std::env;

use aws_sdk_s3::types::{
    BucketLocationConstraint, BucketVersioningStatus, CreateBucketConfiguration, Event,
    NotificationConfiguration, QueueConfiguration, TopicConfiguration, VersioningConfiguration,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::http;

/// An account and the Region that its things are in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Account {
    pub(crate) id: &'static str,
    pub(crate) region: &'static str,
}

/// Where objects are written.
pub(crate) const SOURCE: Account = Account {
    id: "111111111111",
    region: "eu-west-1",
};
/// Where replicas go.
pub(crate) const ARCHIVE: Account = Account {
    id: "222222222222",
    region: "us-east-1",
};

// Everything that can change what replication must bring about.
const EVENTS: [&str; 4] = [
    "s3:ObjectCreated:*",
    "s3:ObjectRemoved:*",
    "s3:ObjectTagging:*",
    "s3:ObjectAcl:Put",
];

/// Returns LocalStack's address; there is nothing to test without it.
pub(crate) fn endpoint() -> String {
    env::var("REPLICATOR_LOCALSTACK_URL")
        .expect("REPLICATOR_LOCALSTACK_URL is not set: run `make test`")
}

/// Returns a name that no other test uses. In a run of minutes the system gives the id of a process
/// to another one.
pub(crate) fn unique(what: &str) -> String {
    format!("{what}-{:012x}", fastrand::u64(..1 << 48))
}

impl Account {
    /// Returns a client of the account's S3.
    pub(crate) fn s3(self) -> aws_sdk_s3::Client {
        use aws_sdk_s3::config::{
            BehaviorVersion, Builder, Credentials, Region, RequestChecksumCalculation,
        };
        let config = Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(endpoint())
            .region(Region::new(self.region))
            .credentials_provider(Credentials::new(self.id, "any", None, None, "tests"))
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .force_path_style(true);
        aws_sdk_s3::Client::from_conf(config.build())
    }

    /// Returns a client of the account's SQS.
    pub(crate) fn sqs(self) -> aws_sdk_sqs::Client {
        use aws_sdk_sqs::config::{BehaviorVersion, Builder, Credentials, Region};
        let config = Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(endpoint())
            .region(Region::new(self.region))
            .credentials_provider(Credentials::new(self.id, "any", None, None, "tests"));
        aws_sdk_sqs::Client::from_conf(config.build())
    }

    /// Makes a bucket that keeps versions.
    pub(crate) async fn create_bucket(self, name: &str) {
        let location = (self.region != "us-east-1").then(|| {
            let region = BucketLocationConstraint::from(self.region);
            CreateBucketConfiguration::builder()
                .location_constraint(region)
                .build()
        });
        let s3 = self.s3();
        s3.create_bucket()
            .bucket(name)
            .set_create_bucket_configuration(location)
            .send()
            .await
            .unwrap();
        let enabled = VersioningConfiguration::builder()
            .status(BucketVersioningStatus::Enabled)
            .build();
        s3.put_bucket_versioning()
            .bucket(name)
            .versioning_configuration(enabled)
            .send()
            .await
            .unwrap();
    }

    /// Makes a queue and returns its URL.
    pub(crate) async fn create_queue(self, name: &str) -> String {
        self.sqs()
            .create_queue()
            .queue_name(name)
            .send()
            .await
            .unwrap()
            .queue_url
            .unwrap()
    }

    /// Makes a FIFO queue and returns its URL.
    pub(crate) async fn create_fifo_queue(self, name: &str) -> String {
        let request = self.sqs().create_queue().queue_name(format!("{name}.fifo"));
        let request = request.attributes(QueueAttributeName::FifoQueue, "true");
        request.send().await.unwrap().queue_url.unwrap()
    }

    /// Makes a KMS key and returns its ARN.
    pub(crate) async fn create_key(self) -> String {
        let made = self.kms("CreateKey", &json!({})).await;
        made["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
    }

    /// Asks the account's KMS for an operation.
    pub(crate) async fn kms(self, operation: &str, asked: &Value) -> Value {
        let request = self.request("kms", "application/x-amz-json-1.1");
        let request = request.header("x-amz-target", format!("TrentService.{operation}"));
        let answer = http::send(request.body(asked.to_string().into()).unwrap()).await;
        serde_json::from_str(&answer).unwrap_or_default()
    }

    /// Makes an SNS topic that feeds a queue, and returns the topic's ARN.
    pub(crate) async fn create_topic(self, name: &str, queue_url: &str, raw: bool) -> String {
        let topic = self.sns(&[("Action", "CreateTopic"), ("Name", name)]).await;
        let topic = between(&topic, "<TopicArn>", "</TopicArn>").to_owned();
        let subscription = [
            ("Action", "Subscribe"),
            ("TopicArn", &topic),
            ("Protocol", "sqs"),
            ("Endpoint", &self.queue_arn(queue_url)),
            ("Attributes.entry.1.key", "RawMessageDelivery"),
            (
                "Attributes.entry.1.value",
                if raw { "true" } else { "false" },
            ),
        ];
        self.sns(&subscription).await;
        topic
    }

    /// Sends a bucket's events to a queue or topic, given by its ARN.
    pub(crate) async fn notify(self, bucket: &str, arn: &str) {
        let events = || EVENTS.iter().map(|event| Event::from(*event)).collect();
        let configuration = NotificationConfiguration::builder();
        let configuration = if arn.contains(":sqs:") {
            let queue = QueueConfiguration::builder()
                .queue_arn(arn)
                .set_events(Some(events()))
                .build()
                .unwrap();
            configuration.queue_configurations(queue)
        } else {
            let topic = TopicConfiguration::builder()
                .topic_arn(arn)
                .set_events(Some(events()))
                .build()
                .unwrap();
            configuration.topic_configurations(topic)
        };
        let request = self
            .s3()
            .put_bucket_notification_configuration()
            .bucket(bucket);
        request
            .notification_configuration(configuration.build())
            .send()
            .await
            .unwrap();
    }

    /// Ends a bucket's events.
    pub(crate) async fn silence(self, bucket: &str) {
        let nothing = NotificationConfiguration::builder().build();
        let request = self
            .s3()
            .put_bucket_notification_configuration()
            .bucket(bucket);
        request
            .notification_configuration(nothing)
            .send()
            .await
            .unwrap();
    }

    /// Returns the ARN of a queue of this account.
    pub(crate) fn queue_arn(self, url: &str) -> String {
        format!(
            "arn:aws:sqs:{}:{}:{}",
            self.region,
            self.id,
            url.rsplit('/').next().unwrap()
        )
    }

    async fn sns(self, parameters: &[(&str, &str)]) -> String {
        let mut form = "Version=2010-03-31".to_owned();
        for (name, value) in parameters {
            form.push_str(&format!(
                "&{name}={}",
                utf8_percent_encode(value, NON_ALPHANUMERIC)
            ));
        }
        let request = self.request("sns", "application/x-www-form-urlencoded");
        http::send(request.body(form.into()).unwrap()).await
    }

    fn request(self, service: &str, content_type: &str) -> http::request::Builder {
        let scope = format!(
            "{}/20260101/{}/{service}/aws4_request",
            self.id, self.region
        );
        let authorization =
            format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=none");
        http::Request::post(endpoint())
            .header("authorization", authorization)
            .header("x-amz-date", "20260101T000000Z")
            .header("content-type", content_type)
    }
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let (_, rest) = text
        .split_once(start)
        .unwrap_or_else(|| panic!("no {start} in {text}"));
    rest.split_once(end).unwrap().0
}
