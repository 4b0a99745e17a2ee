//! What is sent when, and what could not be.

use super::*;

fn lone(
    endpoint: Option<&str>,
    provider: impl ProvideCredentials + 'static,
    way: SharedHttpConnector,
) -> S3Http {
    let signer = Signer::new(Some(Arc::new(Keeper::new(SharedCredentialsProvider::new(
        provider,
    )))));
    let endpoints = BucketEndpoints::new(&account(endpoint, true), &SdkConfig::builder().build());
    S3Http::new(
        "source",
        (way, Bounds::new("source")),
        (endpoints, signer),
        &Metrics::new().unwrap(),
    )
}

#[tokio::test]
async fn what_could_not_be_sent_cannot_have_been_carried_out() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let wire = lone(Some(&url), Credentials::for_tests(), connect().unwrap());
    let (bucket, key) = (
        Bucket::try_from("orders-2026").unwrap(),
        Key::try_from("a").unwrap(),
    );
    let refusal = wire
        .send(S3Request::put_object(&bucket, &key, content()))
        .await
        .unwrap_err();
    assert_eq!(
        refusal.failure.kind,
        FailureKind::Transient,
        "{:?}",
        refusal.failure
    );
}

/// Credentials that take long to come.
#[derive(Debug)]
struct Slow;

impl ProvideCredentials for Slow {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            tokio::time::sleep(Duration::from_secs(100)).await;
            Ok(Credentials::for_tests())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_is_not_sent_after_its_deadline_however_long_the_credentials_take() {
    let tap = Tap::default();
    let wire = lone(None, Slow, SharedHttpConnector::new(tap.clone()));
    let (bucket, key) = (
        Bucket::try_from("orders-2026").unwrap(),
        Key::try_from("a").unwrap(),
    );
    let put = || {
        S3Request::put_object(&bucket, &key, BodyChunks::from(Bytes::from_static(b"one")))
            .with_timeout(Duration::from_secs(30))
    };
    let refusal = wire.send(put()).await.unwrap_err();
    assert_eq!(refusal.failure.kind, FailureKind::OutcomeUnknown);
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(*tap.0.lock().unwrap(), []);
}
