//! Clients of each account's services, and what each endpoint turned out to be able to do.

pub(crate) mod capabilities;
pub(crate) mod owner;
pub(crate) mod refusal;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation};
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::http::{HttpConnectorSettings, SharedHttpConnector};
use replicator_config::{Account, ConditionalWrites, Service};

use aws_config::SdkConfig;

use crate::metrics::Metrics;
use crate::wire::{Endpoints, Signer, Wire};
use capabilities::Capabilities;
use owner::Owner;
use watch::Watch;

/// An account's clients.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) name: Arc<str>,
    /// For requests that come with every object.
    pub(crate) wire: Wire,
    /// For requests that are safe to repeat: the SDK retries them.
    pub(crate) s3: aws_sdk_s3::Client,
    /// For writes that readers see: sent once, because after a lost answer only a fresh read
    /// tells whether to send again (protocol rule 7).
    pub(crate) s3_once: aws_sdk_s3::Client,
    pub(crate) sqs: aws_sdk_sqs::Client,
    pub(crate) capabilities: Arc<Capabilities>,
    /// Whether the endpoint is AWS itself, whose documented behaviour can be relied on.
    pub(crate) is_aws: bool,
    /// Whether TLS keeps what passes from changing on its way.
    pub(crate) is_tls: bool,
}

/// How every account reaches AWS, where it is not by the default credential chain and real connections.
#[derive(Debug, Clone)]
pub struct Given {
    /// What the SDK uses.
    pub sdk: SdkConfig,
    /// What sends the requests that do not go through the SDK.
    pub connector: SharedHttpConnector,
}

/// Every account of the configuration by its name.
#[derive(Debug, Clone)]
pub(crate) struct Accounts {
    by_name: BTreeMap<String, Access>,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests whose deadline no rule of the protocol rests on have this long to be answered.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);

/// Returns a client's settings with another deadline for each attempt.
pub(crate) fn deadline(timeout: Duration) -> aws_sdk_s3::config::Builder {
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).operation_attempt_timeout(timeout);
    aws_sdk_s3::config::Builder::new().timeout_config(timeouts.build())
}

// The client must be more patient than the longest poll.
const POLL_TIMEOUT: Duration = Duration::from_secs(30);

impl Accounts {
    /// Makes the clients; nothing is sent yet.
    pub(crate) async fn connect(
        accounts: &BTreeMap<String, Account>,
        metrics: &Metrics,
        given: Option<&Given>,
    ) -> Self {
        let connector = given.map_or_else(connector, |given| given.connector.clone());
        let mut by_name = BTreeMap::new();
        for (name, account) in accounts {
            let config = match given {
                Some(given) => given.sdk.to_builder().region(Region::new(account.region.clone())).build(),
                None => Box::pin(credentials(account)).await,
            };
            by_name.insert(name.clone(), Access::connect(account, &config, &connector, metrics));
        }
        Self { by_name }
    }

    /// Returns an account; the configuration was checked, so every rule's account is here.
    pub(crate) fn get(&self, name: &str) -> Option<&Access> {
        self.by_name.get(name)
    }
}

impl Access {
    fn connect(account: &Account, config: &SdkConfig, connector: &SharedHttpConnector, metrics: &Metrics) -> Self {
        let watch = Watch::new(&account.name, metrics);
        let way = (Endpoints::new(account, config), Signer::new(config.credentials_provider()));
        Self {
            name: Arc::from(account.name.as_str()),
            wire: Wire::new(&account.name, connector.clone(), way, metrics),
            s3: s3(account, config, watch.clone(), RetryConfig::standard().with_max_attempts(3)),
            s3_once: s3(account, config, watch.clone(), RetryConfig::disabled()),
            sqs: sqs(account, config, watch),
            capabilities: Arc::new(Capabilities::new(account.conditional_writes != ConditionalWrites::Off)),
            is_aws: account.endpoint_of(Service::S3).is_none(),
            is_tls: account.endpoint_of(Service::S3).is_none_or(|endpoint| endpoint.starts_with("https://")),
        }
    }
}

/// Makes what the SDK makes for itself: TLS by the machine's own certificates, proxies as the environment says.
fn connector() -> SharedHttpConnector {
    let settings = HttpConnectorSettings::builder().connect_timeout(CONNECT_TIMEOUT).build();
    let builder = Connector::builder().connector_settings(settings).proxy_config(ProxyConfig::from_env());
    SharedHttpConnector::new(builder.tls_provider(Provider::Rustls(CryptoMode::AwsLc)).build())
}

/// Finds who signs: the default chain or a profile, and the role assumed on top of it.
async fn credentials(account: &Account) -> SdkConfig {
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(account.region.clone()))
        .retry_config(RetryConfig::standard().with_max_attempts(3))
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .operation_attempt_timeout(ATTEMPT_TIMEOUT)
                .build(),
        );
    if let Some(profile) = &account.profile {
        loader = loader.profile_name(profile);
    }
    let base = loader.load().await;
    let Some(role) = &account.role_arn else { return base };
    let sts = match account.endpoint_of(Service::Sts) {
        Some(endpoint) => base.to_builder().endpoint_url(endpoint).build(),
        None => base.clone(),
    };
    let mut assume = AssumeRoleProvider::builder(role).session_name("s3-replicator").configure(&sts);
    if let Some(external_id) = &account.external_id {
        assume = assume.external_id(external_id);
    }
    let provider = assume.build().await;
    base.to_builder().credentials_provider(aws_sdk_s3::config::SharedCredentialsProvider::new(provider)).build()
}

/// Checksums are ours to compute, once: the SDK adds none of its own, which some S3-compatible
/// servers would even store as part of the body.
fn s3(account: &Account, config: &SdkConfig, watch: Watch, retries: RetryConfig) -> aws_sdk_s3::Client {
    let mut builder = aws_sdk_s3::config::Builder::from(config)
        .force_path_style(account.path_style)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .retry_config(retries)
        .interceptor(watch);
    // What the environment says of endpoints does not count: abilities are known by what the file says.
    builder.set_endpoint_url(account.endpoint_of(Service::S3).map(str::to_owned));
    if let Some(owner) = Owner::of(account) {
        builder = builder.interceptor(owner);
    }
    aws_sdk_s3::Client::from_conf(builder.build())
}

fn sqs(account: &Account, config: &SdkConfig, watch: Watch) -> aws_sdk_sqs::Client {
    let timeouts =
        TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).operation_attempt_timeout(POLL_TIMEOUT).build();
    let mut builder = aws_sdk_sqs::config::Builder::from(config).timeout_config(timeouts).interceptor(watch);
    builder.set_endpoint_url(account.endpoint_of(Service::Sqs).map(str::to_owned));
    aws_sdk_sqs::Client::from_conf(builder.build())
}
