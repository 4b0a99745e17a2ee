//! The owner that an account's requests expect of their buckets: S3 refuses them where another
//! account owns the bucket, as one may that was deleted and made anew under its name.
//! <https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucket-owner-condition.html>

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::BeforeTransmitInterceptorContextMut;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use http::HeaderValue;
use replicator_config::Account;

/// Adds the owner to each request of an S3 client of the SDK.
#[derive(Debug, Clone)]
pub(crate) struct Owner(HeaderValue);

pub(crate) const EXPECTED_OWNER: &str = "x-amz-expected-bucket-owner";

impl Owner {
    /// Returns the owner that the configuration names, if it does.
    pub(crate) fn from_account(account: &Account) -> Option<Self> {
        // The configuration was checked: they are digits.
        account
            .owner
            .as_deref()
            .and_then(|owner| HeaderValue::from_str(owner).ok())
            .map(Self)
    }

    pub(crate) fn header_value(&self) -> HeaderValue {
        self.0.clone()
    }
}

#[aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint]
impl Intercept for Owner {
    fn name(&self) -> &'static str {
        "Owner"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        context
            .request_mut()
            .headers_mut()
            .try_insert(EXPECTED_OWNER, self.0.to_str()?.to_owned())?;
        Ok(())
    }
}
