//! A role is assumed at its Region's own STS, in a session that says which host has it.

use std::sync::Mutex;
use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_smithy_async::time::StaticTimeSource;
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_types::body::SdkBody;

use super::*;

const ROLE: &str = "arn:aws:iam::222222222222:role/replicator";

/// Keeps where each request goes, and its body, and answers as STS does.
#[derive(Debug, Clone, Default)]
struct Sts(Arc<Mutex<Vec<(String, String)>>>);

impl HttpConnector for Sts {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let body = request.body().bytes().unwrap_or_default();
        let seen = (
            request.uri().to_owned(),
            String::from_utf8_lossy(body).into_owned(),
        );
        self.0.lock().unwrap().push(seen);
        let answer = "<AssumeRoleResponse><AssumeRoleResult><Credentials>\
            <AccessKeyId>ASIA</AccessKeyId><SecretAccessKey>secret</SecretAccessKey>\
            <SessionToken>token</SessionToken><Expiration>2036-01-01T00:00:00Z</Expiration>\
            </Credentials></AssumeRoleResult></AssumeRoleResponse>";
        let answer = HttpResponse::new(200.try_into().unwrap(), SdkBody::from(answer));
        HttpConnectorFuture::ready(Ok(answer))
    }
}

#[tokio::test]
async fn a_role_is_assumed_at_the_sts_of_its_region() {
    for (region, fips, dual_stack, host) in [
        ("us-east-1", false, false, "sts.us-east-1.amazonaws.com"),
        ("eu-west-1", false, false, "sts.eu-west-1.amazonaws.com"),
        ("us-east-1", true, false, "sts-fips.us-east-1.amazonaws.com"),
        ("eu-west-1", false, true, "sts.eu-west-1.api.aws"),
        (
            "cn-north-1",
            false,
            false,
            "sts.cn-north-1.amazonaws.com.cn",
        ),
        (
            "us-gov-west-1",
            false,
            false,
            "sts.us-gov-west-1.amazonaws.com",
        ),
        (
            "eusc-de-east-1",
            false,
            false,
            "sts.eusc-de-east-1.amazonaws.eu",
        ),
    ] {
        let sts = Sts::default();
        let connector = SharedHttpConnector::new(sts.clone());
        let base = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(region))
            .time_source(StaticTimeSource::new(SystemTime::UNIX_EPOCH))
            .use_fips(fips)
            .use_dual_stack(dual_stack)
            .credentials_provider(SharedCredentialsProvider::new(Credentials::for_tests()))
            .http_client(http_client_fn(move |_, _| connector.clone()));
        let account = Account {
            region: region.to_owned(),
            external_id: Some("orders-archive".to_owned()),
            ..Account::default()
        };
        let assumed = assume_role(&account, ROLE, &base.build()).await;
        let provider = assumed.credentials_provider().unwrap();
        let credentials = provider.provide_credentials().await.unwrap();
        assert_eq!(credentials.access_key_id(), "ASIA");
        let seen = sts.0.lock().unwrap();
        let [(uri, body)] = seen.as_slice() else {
            panic!("{seen:?}")
        };
        assert_eq!(*uri, format!("https://{host}/"));
        let host = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        assert!(
            body.contains(&format!("RoleSessionName=s3-replicator-{host}")),
            "{body}"
        );
        assert!(body.contains("ExternalId=orders-archive"), "{body}");
    }
}

#[test]
fn a_session_has_a_name_that_sts_takes() {
    for (host, name) in [
        (
            c"ip-10-0-0-7.eu-west-1.compute.internal",
            "s3-replicator-ip-10-0-0-7.eu-west-1.compute.internal",
        ),
        (c"", "s3-replicator-"),
        (c"a host: b\xff", "s3-replicator-ahostb"),
    ] {
        assert_eq!(session_name(host), name);
    }
    let long = std::ffi::CString::new("h".repeat(100)).unwrap();
    assert_eq!(session_name(&long).len(), 64);
}
