//! Where requests go, and which credentials sign them as time passes.

use std::time::Duration;

use super::*;
use crate::s3::accounts::beside_access_points;

const ACCESS_POINT: &str = "arn:aws:s3:eu-west-1:111111111111:accesspoint/orders-in";

/// Reaches the bucket through the access point.
fn with_access_point() -> Account {
    let bucket = Bucket::try_from("orders").unwrap();
    Account {
        access_points: [(bucket, ACCESS_POINT.to_owned())].into(),
        ..account(None, false)
    }
}

async fn url_of(account: &Account, fips: bool, dual_stack: bool) -> String {
    let sdk = SdkConfig::builder()
        .use_fips(fips)
        .use_dual_stack(dual_stack);
    let endpoints = BucketEndpoints::new(account, &sdk.build());
    let bucket = Bucket::try_from("orders").unwrap();
    endpoints.endpoint_of(&bucket).await.unwrap().url.clone()
}

#[tokio::test]
async fn each_partition_has_its_own_hosts() {
    for (region, fips, dual_stack, host) in [
        ("us-east-1", false, false, "s3.us-east-1.amazonaws.com"),
        (
            "us-east-1",
            true,
            true,
            "s3-fips.dualstack.us-east-1.amazonaws.com",
        ),
        ("cn-north-1", false, false, "s3.cn-north-1.amazonaws.com.cn"),
        (
            "cn-north-1",
            false,
            true,
            "s3.dualstack.cn-north-1.amazonaws.com.cn",
        ),
        (
            "us-gov-west-1",
            false,
            false,
            "s3.us-gov-west-1.amazonaws.com",
        ),
        (
            "us-gov-west-1",
            true,
            false,
            "s3-fips.us-gov-west-1.amazonaws.com",
        ),
        (
            "eusc-de-east-1",
            false,
            false,
            "s3.eusc-de-east-1.amazonaws.eu",
        ),
    ] {
        let account = Account {
            region: region.to_owned(),
            ..account(None, false)
        };
        let url = url_of(&account, fips, dual_stack).await;
        assert_eq!(url, format!("https://orders.{host}"));
    }
    let through = with_access_point();
    let host = "s3-accesspoint-fips.dualstack.eu-west-1.amazonaws.com";
    let url = format!("https://orders-in-111111111111.{host}");
    assert_eq!(url_of(&through, true, true).await, url);
}

#[test]
fn a_bucket_is_reached_through_its_access_point_as_the_sdk_reaches_that() {
    let both = Both::by(with_access_point(), &SdkConfig::builder().build());
    let (bucket, key) = (
        Bucket::try_from("orders").unwrap(),
        Key::try_from("a b").unwrap(),
    );
    let get = both.sdk.get_object().bucket(ACCESS_POINT).key("a b");
    let call = S3Request::get_object(Side::Source, &bucket, &key);
    let [sdk, wire] = both.send(get.send(), call);
    assert_eq!(sdk, wire);
    let host = "https://orders-in-111111111111.s3-accesspoint.eu-west-1.amazonaws.com/";
    assert!(wire.uri.starts_with(host), "{}", wire.uri);

    let config = both.sdk.config().to_builder();
    let resolver = BucketResolver::new(&with_access_point());
    let ours = aws_sdk_s3::Client::from_conf(config.endpoint_resolver(resolver).build());
    let uris = both.runtime.block_on(async {
        let _empty = both
            .sdk
            .delete_object()
            .bucket(ACCESS_POINT)
            .key("a b")
            .send()
            .await;
        let _empty = ours
            .delete_object()
            .bucket("orders")
            .key("a b")
            .send()
            .await;
        let asked = ours.get_bucket_versioning().bucket("orders").customize();
        let _empty = asked.config_override(beside_access_points()).send().await;
        let _empty = ours
            .delete_object()
            .bucket("archive")
            .key("a b")
            .send()
            .await;
        let seen = std::mem::take(&mut *both.tap.0.lock().unwrap());
        seen.into_iter().map(|seen| seen.uri).collect::<Vec<_>>()
    });
    assert_eq!(uris[0], uris[1], "as the SDK with the ARN");
    assert!(uris[0].starts_with(host), "{uris:?}");
    let plain =
        ["orders", "archive"].map(|bucket| format!("https://{bucket}.s3.eu-west-1.amazonaws.com/"));
    assert!(uris[2].starts_with(&plain[0]), "{uris:?}");
    assert!(uris[3].starts_with(&plain[1]), "{uris:?}");
}

/// Gives credentials that are good for four minutes, each under a name of its own.
#[derive(Debug, Clone, Default)]
struct Brief(Arc<Mutex<Vec<SystemTime>>>);

impl ProvideCredentials for Brief {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let end = SystemTime::from(clock::now()) + Duration::from_secs(240);
        let mut ends = self.0.lock().unwrap();
        let id = format!("AKID{}", ends.len());
        ends.push(end);
        future::ProvideCredentials::ready(Ok(Credentials::new(
            id,
            "secret",
            None,
            Some(end),
            "test",
        )))
    }
}

#[tokio::test(start_paused = true)]
async fn parts_of_a_long_upload_are_signed_by_credentials_that_are_good_then() {
    clock::simulate(time::macros::datetime!(2026-11-26 12:00 UTC));
    let (tap, brief) = (Tap::default(), Brief::default());
    let connector = SharedHttpConnector::new(tap.clone());
    let wire = lone(None, brief.clone(), connector);
    let (bucket, key) = (
        Bucket::try_from("archive").unwrap(),
        Key::try_from("large").unwrap(),
    );
    let mut signed_by = Vec::new();
    for number in 1..=60 {
        let call = S3Request::part(&bucket, &key, ("upload", number), content());
        wire.send(call).await.unwrap();
        let seen = tap.0.lock().unwrap().pop().unwrap();
        let scope = seen
            .header("authorization")
            .unwrap()
            .split("AKID")
            .nth(1)
            .unwrap();
        let id: usize = scope.split('/').next().unwrap().parse().unwrap();
        let now = SystemTime::from(clock::now());
        assert!(
            now < brief.0.lock().unwrap()[id],
            "part {number} is signed by AKID{id}"
        );
        signed_by.push(id);
        tokio::time::advance(Duration::from_secs(10)).await;
    }
    signed_by.dedup();
    assert_eq!(
        signed_by,
        [0, 1, 2, 3],
        "ten minutes of four each, renewed a minute before"
    );
}
