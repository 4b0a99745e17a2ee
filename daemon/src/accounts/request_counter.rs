//! Counts every request that leaves the daemon, by the answer it got, and has those that bring no
//! body say so.

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::{
    BeforeTransmitInterceptorContextMut, FinalizerInterceptorContextRef,
};
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;

use crate::metrics::Metrics;

/// Sees each attempt of each request of one account.
#[derive(Debug, Clone)]
pub(super) struct RequestCounter {
    account: String,
    metrics: Metrics,
}

impl RequestCounter {
    pub(super) fn new(account: &str, metrics: &Metrics) -> Self {
        Self {
            account: account.to_owned(),
            metrics: metrics.clone(),
        }
    }
}

#[aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint]
impl Intercept for RequestCounter {
    fn name(&self) -> &'static str {
        "Watch"
    }

    /// Some stores answer 411 to a DELETE or POST without a length. It comes after the signature:
    /// something in between may drop what says nothing.
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
