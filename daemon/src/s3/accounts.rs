//! Clients of each account's services, and what each endpoint turned out to be able to do.

pub(crate) mod capabilities;
pub(crate) mod error;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::ProvideCredentials;
use aws_sdk_s3::config::endpoint::DefaultResolver;
use aws_sdk_s3::config::{
    RequestChecksumCalculation, ResponseChecksumValidation, SharedCredentialsProvider,
};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::http::{SharedHttpClient, SharedHttpConnector, http_client_fn};
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::{
    BeforeTransmitInterceptorContextMut, FinalizerInterceptorContextRef,
};
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use http::HeaderValue;
use replicator_config::{Account, ConditionalWrites, Service};
use replicator_core::failure::{Failure, FailureKind, Operation, error_chain};
use replicator_core::rule::BucketRef;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::metrics::Metrics;
use crate::s3::client::{
    self, Bounds, BucketEndpoints, BucketResolver, EXPECTED_OWNER, Keeper, REQUEST_TIMEOUT,
    S3Error, S3Http, S3Request, S3Response, Signer, expected_owner,
};
use capabilities::{Capabilities, DisabledFeature, Feature};

/// An account's clients.
#[derive(Debug, Clone)]
pub(crate) struct AccountClients {
    pub(crate) name: Arc<str>,
    /// For requests that come with every object.
    pub(crate) wire: Arc<S3Http>,
    /// For requests that are safe to repeat: the SDK retries them.
    pub(crate) s3: aws_sdk_s3::Client,
    /// For writes that readers see: sent once, because after a lost answer only a fresh read
    /// shows whether to send again (protocol rule 5).
    pub(crate) s3_once: aws_sdk_s3::Client,
    pub(crate) sqs: aws_sdk_sqs::Client,
    /// Says which principal the account's credentials are.
    pub(crate) sts: aws_sdk_sts::Client,
    /// The same of the credentials that assume its role; of its own where it has none.
    pub(crate) sts_before_role: aws_sdk_sts::Client,
    /// For the states of keys, which are asked about beside the objects.
    pub(crate) kms: aws_sdk_kms::Client,
    pub(crate) capabilities: Arc<Capabilities>,
    /// The principal that begins its uploads, as lists of uploads name it, once that is known.
    pub(crate) principal: Arc<OnceLock<String>>,
    /// Whether the endpoint is AWS itself, whose documented behaviour can be relied on.
    pub(crate) is_aws: bool,
    /// Whether a write with `If-None-Match: *` can be relied on: it is AWS, or the configuration
    /// says so.
    pub(crate) keeps_conditions: bool,
    /// Whether TLS keeps what passes from changing on its way.
    pub(crate) is_tls: bool,
}

/// How every account reaches AWS, where it is not by the default credential chain and real
/// connections.
#[derive(Debug, Clone)]
pub struct AwsOverride {
    /// What the SDK uses.
    pub sdk: SdkConfig,
    /// What sends the requests that do not go through the SDK.
    pub connector: SharedHttpConnector,
}

/// Every account of the configuration by its name.
#[derive(Debug, Clone)]
pub(crate) struct Accounts {
    by_name: BTreeMap<String, AccountClients>,
}

/// A clock that is so far from ours that its dates are not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FarOffClock {
    /// The account whose services have it.
    pub account: String,
    /// By how much it is ahead of ours; behind, if that is negative.
    pub ahead_seconds: i64,
}

pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns a client's settings with another deadline for each attempt.
pub(crate) fn attempt_deadline(timeout: Duration) -> aws_sdk_s3::config::Builder {
    aws_sdk_s3::config::Builder::new().timeout_config(timeouts(timeout))
}

/// Returns a client's settings for what no access point serves: the bucket itself is asked.
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/access-points-service-api-support.html>
pub(crate) fn beside_access_points() -> aws_sdk_s3::config::Builder {
    aws_sdk_s3::config::Builder::new().endpoint_resolver(DefaultResolver::new())
}

fn timeouts(attempt: Duration) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(attempt)
        .build()
}

// Longer than the longest poll.
const POLL_TIMEOUT: Duration = Duration::from_secs(30);

// KMS answers in milliseconds.
const KEY_TIMEOUT: Duration = Duration::from_secs(10);

impl Accounts {
    /// Makes the clients; nothing is sent yet.
    pub(crate) async fn connect(
        accounts: &BTreeMap<String, Account>,
        metrics: &Metrics,
        overrides: Option<&AwsOverride>,
    ) -> Result<Self, client::NoTls> {
        let connector =
            overrides.map_or_else(client::connect, |given| Ok(given.connector.clone()))?;
        let mut by_name = BTreeMap::new();
        for (name, account) in accounts {
            let bounds = Bounds::new(name);
            let (base, sdk) = match overrides {
                Some(given) => {
                    let client = given.sdk.http_client();
                    let client = client.map(|client| bounds.bound_client(client));
                    let region = Region::new(account.region.clone());
                    let mut sdk = given.sdk.to_builder().region(region);
                    sdk.set_http_client(client);
                    let sdk = sdk.build();
                    (sdk.clone(), sdk)
                }
                None => {
                    let connector = connector.clone();
                    let client = http_client_fn(move |_, _| connector.clone());
                    Box::pin(load_sdk_config(account, bounds.bound_client(client))).await
                }
            };
            let network = (connector.clone(), bounds);
            let clients = AccountClients::connect(account, (&base, sdk), network, metrics);
            by_name.insert(name.clone(), clients);
        }
        Ok(Self { by_name })
    }

    /// Lists the features that endpoints turned out to lack.
    pub(crate) fn missing_features(&self) -> Vec<DisabledFeature> {
        self.by_name
            .values()
            .flat_map(|access| access.capabilities.missing_features(&access.name))
            .collect()
    }

    /// Lists the accounts whose services' clocks are too far from ours.
    pub(crate) fn far_off_clocks(&self) -> Vec<FarOffClock> {
        let clock = |access: &AccountClients| {
            let ahead_seconds = access.wire.bounds.far_off()?;
            Some(FarOffClock {
                account: access.name.to_string(),
                ahead_seconds,
            })
        };
        self.by_name.values().filter_map(clock).collect()
    }

    /// Returns an account; the configuration was checked, so every rule's account is here.
    pub(crate) fn get(&self, name: &str) -> Option<&AccountClients> {
        self.by_name.get(name)
    }

    /// Returns the clients for a place.
    pub(crate) fn access_to(&self, place: &BucketRef) -> Result<&AccountClients, Failure> {
        // The configuration is checked before it gets here, so this is a refusal to guess.
        self.get(&place.account).ok_or_else(|| {
            let words = format!("account {:?} is not configured", place.account);
            Failure::with_source(FailureKind::Transient, Operation::FindAccount, words)
        })
    }
}

impl AccountClients {
    fn connect(
        account: &Account,
        (base, sdk): (&SdkConfig, SdkConfig),
        (connector, bounds): (SharedHttpConnector, Bounds),
        metrics: &Metrics,
    ) -> Self {
        let keeper = sdk
            .credentials_provider()
            .map(|provider| Arc::new(Keeper::new(provider)));
        let kept = keeper
            .clone()
            .map(|keeper| SharedCredentialsProvider::new(keeper as Arc<dyn ProvideCredentials>));
        let mut sdk = sdk.into_builder();
        sdk.set_credentials_provider(kept);
        let sdk = &sdk.build();
        let (name, owner) = (
            Arc::<str>::from(account.name.as_str()),
            expected_owner(account),
        );
        let interceptor = |owner| SdkInterceptor {
            account: Arc::clone(&name),
            metrics: metrics.clone(),
            owner,
        };
        let s3 = |retries| s3_client(account, sdk, interceptor(owner.clone()), retries);
        let endpoint = account.endpoint_of(Service::S3);
        let is_aws = endpoint.is_none();
        let conditional = account.conditional_writes;
        Self {
            wire: Arc::new(S3Http {
                account: Arc::clone(&name),
                connector,
                bounds,
                endpoints: BucketEndpoints::new(account, sdk),
                owner: owner.clone(),
                signer: Signer::new(keeper),
                metrics: metrics.clone(),
            }),
            s3: s3(RetryConfig::standard().with_max_attempts(3)),
            s3_once: s3(RetryConfig::disabled()),
            sqs: sqs_client(account, sdk, interceptor(None)),
            sts: sts_client(account, sdk),
            sts_before_role: sts_client(account, base),
            kms: kms_client(account, sdk, interceptor(None)),
            capabilities: Arc::new(Capabilities::new(conditional != ConditionalWrites::Off)),
            principal: Arc::default(),
            is_aws,
            keeps_conditions: is_aws || conditional == ConditionalWrites::On,
            is_tls: endpoint.is_none_or(|endpoint| endpoint.starts_with("https://")),
            name,
        }
    }

    /// Returns the Region that its requests are signed for.
    pub(crate) fn region(&self) -> &str {
        self.kms.config().region().map_or("", AsRef::as_ref)
    }

    /// Sends a request for an object with its checksums, and one without them where the endpoint
    /// does not support that.
    pub(crate) async fn send_for_checksums<'a>(
        &self,
        call: impl Fn() -> S3Request<'a>,
    ) -> Result<S3Response, S3Error> {
        if !self.capabilities.has_feature(Feature::ChecksumRead) {
            return self.wire.send(call()).await;
        }
        let refusal = match self.wire.send(call().checksums()).await {
            Err(refusal) if may_refuse_checksums(&refusal.failure) => refusal,
            sent => return sent,
        };
        let plain = self.wire.send(call()).await?;
        self.capabilities.disable_feature(
            Feature::ChecksumRead,
            &self.name,
            &error_chain(&refusal.failure),
        );
        Ok(plain)
    }
}

/// Says whether a refusal is, or may be, about the request for checksums: the request makes use of
/// no other optional feature.
fn may_refuse_checksums(failure: &Failure) -> bool {
    let may_be = failure
        .header
        .as_deref()
        .is_none_or(|header| Feature::ChecksumRead.is_asked_by(header));
    failure.kind == FailureKind::NotImplemented && may_be
}

/// Finds the credentials that sign: of the default chain or a profile, or of the role assumed with
/// them. Those without the role come first.
async fn load_sdk_config(account: &Account, client: SharedHttpClient) -> (SdkConfig, SdkConfig) {
    let region = Region::new(account.region.clone());
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .region(region.clone())
        .http_client(client.clone())
        .retry_config(RetryConfig::standard().with_max_attempts(3))
        .timeout_config(timeouts(REQUEST_TIMEOUT));
    if let Some(profile) = &account.profile {
        // In the default chain the environment's keys would come before it, for every account alike.
        let network = ProviderConfig::default().with_region(Some(region));
        let provider = ProfileFileCredentialsProvider::builder()
            .profile_name(profile)
            .configure(&network.with_http_client(client))
            .build();
        loader = loader.profile_name(profile).credentials_provider(provider);
    }
    if account.use_dualstack {
        loader = loader.use_dual_stack(true);
    }
    if account.use_fips {
        loader = loader.use_fips(true);
    }
    let base = loader.load().await;
    match &account.role_arn {
        Some(role) => {
            let own = assume_role(account, role, &base).await;
            (base, own)
        }
        None => (base.clone(), base),
    }
}

/// Has the role's credentials sign, fetched from the STS of the account's Region by those that
/// would sign without the role.
async fn assume_role(account: &Account, role: &str, base: &SdkConfig) -> SdkConfig {
    let sts = match account.endpoint_of(Service::Sts) {
        Some(endpoint) => base.to_builder().endpoint_url(endpoint).build(),
        None => base.clone(),
    };
    let mut assume = AssumeRoleProvider::builder(role)
        .session_name(session_name(rustix::system::uname().nodename()))
        .configure(&sts);
    if let Some(external_id) = &account.external_id {
        assume = assume.external_id(external_id);
    }
    let provider = SharedCredentialsProvider::new(assume.build().await);
    base.to_builder().credentials_provider(provider).build()
}

/// Names a session after the host, so that CloudTrail and the owners of the role can tell daemons
/// apart: at most 64 letters, digits and `+=,.@-_`.
/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html>
fn session_name(host: &CStr) -> String {
    let is_legal = |c: &char| c.is_ascii_alphanumeric() || "+=,.@-_".contains(*c);
    let host = host.to_string_lossy();
    "s3-replicator-"
        .chars()
        .chain(host.chars().filter(is_legal))
        .take(64)
        .collect()
}

/// Checksums are ours to compute, once: the SDK adds none of its own, which some S3-compatible
/// servers would even store as part of the body.
fn s3_client(
    account: &Account,
    config: &SdkConfig,
    interceptor: SdkInterceptor,
    retries: RetryConfig,
) -> aws_sdk_s3::Client {
    let mut builder = aws_sdk_s3::config::Builder::from(config)
        .force_path_style(account.path_style)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .retry_config(retries)
        .interceptor(interceptor);
    // What the environment says of endpoints does not count: features are known by what the file
    // says.
    builder.set_endpoint_url(account.endpoint_of(Service::S3).map(str::to_owned));
    let builder = builder.endpoint_resolver(BucketResolver::new(account));
    aws_sdk_s3::Client::from_conf(builder.build())
}

fn sqs_client(
    account: &Account,
    config: &SdkConfig,
    interceptor: SdkInterceptor,
) -> aws_sdk_sqs::Client {
    let mut builder = aws_sdk_sqs::config::Builder::from(config)
        .timeout_config(timeouts(POLL_TIMEOUT))
        .interceptor(interceptor);
    builder.set_endpoint_url(account.endpoint_of(Service::Sqs).map(str::to_owned));
    aws_sdk_sqs::Client::from_conf(builder.build())
}

fn sts_client(account: &Account, config: &SdkConfig) -> aws_sdk_sts::Client {
    let mut builder = aws_sdk_sts::config::Builder::from(config);
    builder.set_endpoint_url(account.endpoint_of(Service::Sts).map(str::to_owned));
    aws_sdk_sts::Client::from_conf(builder.build())
}

fn kms_client(
    account: &Account,
    config: &SdkConfig,
    interceptor: SdkInterceptor,
) -> aws_sdk_kms::Client {
    let mut builder = aws_sdk_kms::config::Builder::from(config)
        .timeout_config(timeouts(KEY_TIMEOUT))
        .retry_config(RetryConfig::standard().with_max_attempts(3))
        .interceptor(interceptor);
    builder.set_endpoint_url(account.endpoint_of(Service::Kms).map(str::to_owned));
    aws_sdk_kms::Client::from_conf(builder.build())
}

/// Adds headers to the requests of the SDK's clients of one account, and counts each attempt by the
/// answer that it got.
#[derive(Debug, Clone)]
pub(crate) struct SdkInterceptor {
    pub(crate) account: Arc<str>,
    pub(crate) metrics: Metrics,
    /// The account that has to own the buckets, if that matters.
    pub(crate) owner: Option<HeaderValue>,
}

#[aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint]
impl Intercept for SdkInterceptor {
    fn name(&self) -> &'static str {
        "SdkInterceptor"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(owner) = &self.owner {
            let headers = context.request_mut().headers_mut();
            headers.try_insert(EXPECTED_OWNER, owner.to_str()?.to_owned())?;
        }
        Ok(())
    }

    /// Some stores answer 411 to a DELETE or POST without a length. It comes after the signature:
    /// a proxy may drop it.
    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let request = context.request_mut();
        let has_body = request.body().content_length() != Some(0);
        if !has_body && !matches!(request.method(), "GET" | "HEAD") {
            request.headers_mut().insert("content-length", "0");
        }
        Ok(())
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let status = context
            .response()
            .map_or(0, |response| response.status().as_u16());
        if let Some(request) = config.load::<Metadata>() {
            let service = request.service().to_ascii_lowercase();
            self.metrics
                .request(&service, request.name(), &self.account, status);
        }
        Ok(())
    }
}
