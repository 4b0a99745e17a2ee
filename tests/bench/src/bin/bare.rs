//! The least that a client built on aws-sdk-s3 can do: GetObject, PutObject, so many in flight.
//! What it moves is what the servers allow, and what the SDK's own request path costs.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    BehaviorVersion, Builder, Credentials, Region, RequestChecksumCalculation,
    ResponseChecksumValidation,
};
use clap::Parser;
use futures::{StreamExt, TryStreamExt, stream};

#[derive(Debug, Parser)]
struct Arguments {
    /// Where objects are read.
    #[arg(long)]
    source: String,
    /// Where they are written.
    #[arg(long)]
    destination: String,
    /// The bucket that they are written to.
    #[arg(long)]
    bucket: String,
    /// The file of the keys to copy, one a line.
    #[arg(long)]
    keys: PathBuf,
    #[arg(long, default_value_t = 32)]
    in_flight: usize,
    /// Write only what is not there, as a client that must not overwrite another's object does.
    #[arg(long)]
    if_none_match: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let (source, destination) = (client(&arguments.source), client(&arguments.destination));
    let condition = arguments.if_none_match.then_some("*");
    let keys = fs::read_to_string(&arguments.keys).context("the keys")?;
    let copies = stream::iter(keys.lines())
        .map(|key| copy(&source, (&destination, &arguments.bucket), key, condition));
    copies
        .buffer_unordered(arguments.in_flight)
        .try_collect()
        .await
}

async fn copy(
    source: &Client,
    (destination, bucket): (&Client, &str),
    key: &str,
    if_none_match: Option<&str>,
) -> anyhow::Result<()> {
    let object = source
        .get_object()
        .bucket("orders")
        .key(key)
        .send()
        .await
        .context("GetObject")?;
    let body = object
        .body
        .collect()
        .await
        .context("the body")?
        .into_bytes();
    let put = destination
        .put_object()
        .bucket(bucket)
        .key(key)
        .body(body.into());
    put.set_if_none_match(if_none_match.map(str::to_owned))
        .send()
        .await
        .context("PutObject")?;
    Ok(())
}

fn client(endpoint: &str) -> Client {
    let config = Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-west-1"))
        .credentials_provider(Credentials::new("AKIDBENCH", "secret", None, None, "bench"))
        .endpoint_url(endpoint)
        .force_path_style(true)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    Client::from_conf(config.build())
}
