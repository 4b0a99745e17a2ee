//! Where a bucket's requests go: the SDK's own resolver says it, once for each bucket.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, RwLock};

use aws_config::SdkConfig;
use aws_sdk_s3::config::endpoint::{DefaultResolver, Params, ParamsBuilder, ResolveEndpoint};
use aws_smithy_types::Document;
use http::Uri;
use replicator_config::{Account, Service};
use replicator_core::object::Bucket;

use super::signer::Error;
use crate::accounts::owner::Owner;

/// A bucket's URL, and how what goes there is signed.
#[derive(Debug)]
pub(crate) struct Endpoint {
    url: String,
    region: String,
    /// Whether bodies go unsigned: TLS protects them, or they do not leave the machine. Their
    /// checksum goes along anyway.
    is_private: bool,
}

/// The endpoints of one account.
#[derive(Debug)]
pub(crate) struct BucketEndpoints {
    resolver: DefaultResolver,
    region: String,
    /// All that decides but the bucket.
    params: ParamsBuilder,
    owner: Option<Owner>,
    known: RwLock<HashMap<Bucket, Arc<Endpoint>>>,
}

impl BucketEndpoints {
    /// Makes an account's endpoints, by what its configuration says and how the machine's AWS
    /// settings reach AWS.
    pub(crate) fn new(account: &Account, sdk: &SdkConfig) -> Self {
        let params = Params::builder()
            .region(account.region.as_str())
            .set_endpoint(account.endpoint_of(Service::S3).map(str::to_owned))
            .force_path_style(account.path_style)
            .set_use_fips(sdk.use_fips())
            .set_use_dual_stack(sdk.use_dual_stack());
        let (resolver, region) = (DefaultResolver::new(), account.region.clone());
        Self {
            resolver,
            region,
            params,
            owner: Owner::from_account(account),
            known: RwLock::default(),
        }
    }

    /// Returns the account that has to own the buckets, if that matters.
    pub(super) fn owner(&self) -> Option<&Owner> {
        self.owner.as_ref()
    }

    /// Returns where a bucket is.
    pub(super) async fn of(&self, bucket: &Bucket) -> Result<Arc<Endpoint>, Error> {
        if let Some(endpoint) = self
            .known
            .read()
            .ok()
            .and_then(|known| known.get(bucket).cloned())
        {
            return Ok(endpoint);
        }
        let endpoint = Arc::new(self.resolve(bucket).await?);
        if let Ok(mut known) = self.known.write() {
            known.insert(bucket.clone(), Arc::clone(&endpoint));
        }
        Ok(endpoint)
    }

    async fn resolve(&self, bucket: &Bucket) -> Result<Endpoint, Error> {
        let params = self.params.clone().bucket(bucket.as_str()).build()?;
        let resolved = self.resolver.resolve_endpoint(&params).await?;
        let scheme = first_scheme(resolved.properties().get("authSchemes"));
        let told = |name| {
            scheme
                .and_then(|scheme| scheme.get(name))
                .and_then(Document::as_string)
        };
        if told("name").is_some_and(|name| name != "sigv4") {
            return Err(format!("bucket {bucket} wants another signature than SigV4").into());
        }
        let region = told("signingRegion").unwrap_or(&self.region).to_owned();
        let url = resolved.url().trim_end_matches('/').to_owned();
        Ok(Endpoint {
            is_private: is_private(&url),
            url,
            region,
        })
    }
}

impl Endpoint {
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn region(&self) -> &str {
        &self.region
    }

    pub(super) fn is_private(&self) -> bool {
        self.is_private
    }
}

fn first_scheme(schemes: Option<&Document>) -> Option<&HashMap<String, Document>> {
    schemes?.as_array()?.first()?.as_object()
}

fn is_private(url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else {
        return false;
    };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_loopback = || {
        host == "localhost"
            || host
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    };
    uri.scheme_str() == Some("https") || is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_go_unsigned_only_where_nobody_can_change_them() {
        let private = [
            "https://b.s3.eu-west-1.amazonaws.com",
            "http://127.0.0.1:4566/b",
            "http://[::1]:9000/b",
        ];
        assert!(
            private
                .into_iter()
                .chain(["http://localhost:8333/b"])
                .all(is_private)
        );
        assert!(
            ![
                "http://minio:9000/b",
                "http://10.0.0.7/b",
                "http://localhost.example.com/b"
            ]
            .into_iter()
            .any(is_private)
        );
    }
}
