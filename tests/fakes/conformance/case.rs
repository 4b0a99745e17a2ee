//! A case: a few requests, told in one line, and the line that AWS's documents give.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use futures::FutureExt;

use crate::differences::{Listed, outcome};
use crate::ground::Ground;

/// A run of a case.
pub(crate) type Outcome = Pin<Box<dyn Future<Output = String> + Send>>;

/// A question to a store.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    /// What it is about, in a few words.
    pub(crate) name: &'static str,
    /// The document that decides.
    pub(crate) document: &'static str,
    /// What it comes to on AWS.
    pub(crate) aws: &'static str,
    pub(crate) run: fn(Ground) -> Outcome,
}

/// Runs all cases about what the store has, and fails if one comes to neither what AWS says nor
/// what is listed for the store, or no longer to what is listed.
pub(crate) async fn run(ground: &Ground, listed: &[Listed]) {
    let mut wrong = Vec::new();
    let cases = ground
        .way
        .services
        .iter()
        .flat_map(|service| crate::cases::about(*service));
    for (number, case) in cases.enumerate() {
        let found = AssertUnwindSafe((case.run)(ground.of_case(number)))
            .catch_unwind()
            .await;
        let found = found.unwrap_or_else(|_| "the preparation is refused".to_owned());
        let expected = outcome(listed, case.name).unwrap_or(case.aws);
        if found != case.aws {
            eprintln!(
                "{}: {}: {found} (AWS: {})",
                ground.store, case.name, case.aws
            );
        }
        if found != expected {
            wrong.push(format!("{}: {found} instead of {expected}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", ground.store, wrong.join("\n"));
}

/// Says how a request went: `ok`, or status and code.
pub(crate) fn word<T, E: ProvideErrorMetadata>(
    result: &Result<T, SdkError<E, HttpResponse>>,
) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => {
            let status = error
                .raw_response()
                .map_or(0, |answer| answer.status().as_u16());
            // An answer to HEAD has no body to name a code; the SDK makes this one up.
            let code = error
                .code()
                .filter(|code| *code != "NotFound")
                .unwrap_or_default();
            format!("{status} {code}").trim().to_owned()
        }
    }
}
