//! How old an object is by the server's own clock, which may differ from ours.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextRef;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;

/// Keeps the date of an answer, which the SDK leaves out.
#[derive(Debug, Clone, Default)]
pub(super) struct Dated {
    date: Arc<Mutex<Option<DateTime>>>,
}

impl Dated {
    /// Returns the time from then until the answer; nothing when the server does not say what time it is.
    pub(super) fn age(&self, then: &DateTime) -> Option<Duration> {
        let date = self.date.lock().ok()?.as_ref()?.secs();
        Some(Duration::from_secs(u64::try_from(date - then.secs()).unwrap_or(0)))
    }
}

#[aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint]
impl Intercept for Dated {
    fn name(&self) -> &'static str {
        "Dated"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let text = context.response().headers().get("date");
        let date = text.and_then(|text| DateTime::from_str(text, DateTimeFormat::HttpDate).ok());
        if let Ok(mut kept) = self.date.lock() {
            *kept = date;
        }
        Ok(())
    }
}
