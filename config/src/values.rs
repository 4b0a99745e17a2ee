//! Reads single values: sizes, rates, durations and moments, and the names that AWS gives, ARNs and
//! URLs among them. Suggests the nearest name where one is not known.

use std::net::IpAddr;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use replicator_core::object::{Timestamp, parse_rfc3339};
use strum::VariantNames;

/// Reads a number of bytes, like `256MiB`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| mismatch(text, "a size", "256MiB"))
}

/// Reads a number of bytes per second, like `200MiB/s`.
pub(crate) fn parse_bandwidth(text: &str) -> Result<NonZeroU64, String> {
    let rate = text
        .strip_suffix("/s")
        .map(str::trim_end)
        .and_then(parse_bytes);
    let rate = rate.ok_or_else(|| mismatch(text, "a bandwidth", "200MiB/s"))?;
    NonZeroU64::new(rate).ok_or_else(|| NO_RATE.to_owned())
}

/// Reads a length of time, like `1m 30s`.
pub(crate) fn parse_time_span(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| format!("{text:?} is not a duration; write it like \"90s\" or \"2m\""))
}

/// Reads a moment, like `2026-01-01T00:00:00Z`.
pub(crate) fn parse_moment(text: &str) -> Result<Timestamp, String> {
    parse_rfc3339(text)
        .filter(|moment| moment.year() >= 0)
        .ok_or_else(|| mismatch(text, "a moment of RFC 3339", "2026-01-01T00:00:00Z"))
}

/// What to say about a rate of zero.
pub(crate) const NO_RATE: &str =
    "zero would stop the rule; leave it out for no limit, or disable the rule with enabled = false";

/// Suggests the nearest of the known names, or lists them all.
pub fn suggest_nearest<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    match nearest_name(name, known.clone()) {
        Some(candidate) => format!("did you mean {candidate:?}?"),
        None => format!("known here: {}", join_quoted(known)),
    }
}

/// Returns the nearest of the known names, if one is so near that it may be meant.
pub fn nearest_name<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let nearest = known
        .map(|candidate| {
            (
                strsim::osa_distance(&name.to_lowercase(), &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(distance, candidate)| distance * 3 <= candidate.len().max(3))
        .min();
    nearest.map(|(_, candidate)| candidate)
}

/// Returns what texts have in common at their start.
pub(crate) fn common_prefix<'r>(prefixes: impl Iterator<Item = &'r str>) -> String {
    let common = prefixes.reduce(|one, other| {
        let pairs = one.char_indices().zip(other.chars());
        let same = pairs.take_while(|((_, one), other)| one == other);
        let end = same.last().map_or(0, |((at, c), _)| at + c.len_utf8());
        one.get(..end).unwrap_or_default()
    });
    common.unwrap_or_default().to_owned()
}

/// Checks the ARN of a KMS key.
pub(crate) fn kms_key(text: &str) -> Result<String, String> {
    arn_of(text, "kms", "key/").ok_or_else(|| mismatch(text, "the ARN of a KMS key", KEY_EXAMPLE))
}

/// Checks the ARN of a KMS key or of an alias.
pub(crate) fn kms_key_or_alias(text: &str) -> Result<String, String> {
    arn_of(text, "kms", "alias/")
        .or_else(|| arn_of(text, "kms", "key/"))
        .ok_or_else(|| mismatch(text, "the ARN of a KMS key or alias", KEY_EXAMPLE))
}

/// Checks the ARN of a principal that has credentials.
pub(crate) fn principal_arn(text: &str) -> Result<String, String> {
    ["role/", "user/"]
        .into_iter()
        .find_map(|kind| arn_of(text, "iam", kind))
        .ok_or_else(|| mismatch(text, "the ARN of an IAM role or user", ROLE_EXAMPLE))
}

/// Checks the ARN of an IAM role.
pub(crate) fn role_arn(text: &str) -> Result<String, String> {
    arn_of(text, "iam", "role/")
        .ok_or_else(|| mismatch(text, "the ARN of an IAM role", ROLE_EXAMPLE))
}

/// Checks an http or https URL that carries neither credentials nor a query.
pub(crate) fn endpoint(text: &str) -> Result<String, String> {
    refuse_credentials(text)?;
    let url = url_path(text).map(|_| text.trim_end_matches('/').to_owned());
    url.ok_or_else(|| mismatch(text, "an http(s) URL", "https://s3.example.net:9000"))
}

/// Says whether what is sent to an endpoint can be read on its way, which it cannot be within this
/// machine.
pub(crate) fn is_in_the_clear(endpoint: &str) -> bool {
    let Some(rest) = endpoint.strip_prefix("http://") else {
        return false;
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let host = match authority
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((address, _)) => address,
        None => authority.split(':').next().unwrap_or_default(),
    };
    let is_loopback = host
        .parse::<IpAddr>()
        .is_ok_and(|address| address.is_loopback());
    !is_loopback && !host.eq_ignore_ascii_case("localhost")
}

/// Checks the name of a host, without a port.
pub(crate) fn host_name(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.chars().all(legal);
    if text.len() <= 253 && text.split('.').all(is_label) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(format!(
        "{text:?} is not the name of a host; write it without scheme and port, like \"replicator.internal\""
    ))
}

/// Checks the number of an AWS account.
pub(crate) fn account_number(text: &str) -> Result<String, String> {
    if text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} is not the number of an AWS account; write its 12 digits in quotes, like \"111111111111\""
    ))
}

/// Checks the URL of a queue.
pub(crate) fn queue_url(text: &str) -> Result<String, String> {
    refuse_credentials(text)?;
    let url = text.trim_end_matches('/');
    if url.ends_with(".fifo") && url_path(url).is_some() {
        return Err(format!(
            "{text:?} is a FIFO queue, and S3 sends its events to none; use a standard queue"
        ));
    }
    if is_queue(url) {
        return Ok(url.to_owned());
    }
    let example = "https://sqs.eu-west-1.amazonaws.com/111111111111/orders-events";
    Err(mismatch(text, "the URL of a queue", example))
}

/// Checks the URL of a FIFO queue.
pub(crate) fn work_queue_url(text: &str) -> Result<String, String> {
    refuse_credentials(text)?;
    let url = text.trim_end_matches('/');
    if url.ends_with(".fifo") && is_queue(url) {
        return Ok(url.to_owned());
    }
    let example = "https://sqs.eu-west-1.amazonaws.com/111111111111/orders-work.fifo";
    Err(mismatch(text, "the URL of a FIFO queue", example))
}

/// Returns the Region in the URL of a queue at AWS; none for other URLs.
/// <https://docs.aws.amazon.com/general/latest/gr/sqs-service.html>
pub(crate) fn queue_region(url: &str) -> Option<&str> {
    let host = url.strip_prefix("https://")?.split('/').next()?;
    let rest = host
        .strip_prefix("sqs.")
        .or_else(|| host.strip_prefix("sqs-fips."))?;
    let (region, domain) = rest.split_once('.')?;
    let has_domain = |partition: &Partition| partition.dns_suffix == domain;
    PARTITIONS.iter().any(has_domain).then_some(region)
}

/// Checks the ARN of an access point in a Region. A multi-Region one has no Region, and wants
/// another signature.
pub(crate) fn access_point(text: &str, region: &str) -> Result<String, String> {
    let arn = arn_of(text, "s3", "accesspoint/")
        .ok_or_else(|| mismatch(text, "the ARN of an access point", ACCESS_POINT_EXAMPLE))?;
    let named = arn.split(':').nth(3).unwrap_or_default();
    if !region.is_empty() && named != region {
        return Err(format!(
            "{text:?} is in {named}, and the account in {region}; name an access point of that Region"
        ));
    }
    Ok(arn)
}

/// A partition of AWS: Regions that share accounts, names and the form of ARNs.
#[derive(Debug, PartialEq, Eq)]
pub struct Partition {
    /// As ARNs have it.
    pub name: &'static str,
    /// The domain of its services.
    pub dns_suffix: &'static str,
    /// The domain of those that have IPv6 addresses too.
    pub dual_stack_suffix: &'static str,
    /// How names of its Regions begin, before their direction and number.
    areas: &'static [&'static str],
}

// The Region patterns of the endpoint rules that the SDK of AWS resolves with:
// https://github.com/boto/botocore/blob/develop/botocore/data/partitions.json
const AWS: Partition = Partition {
    name: "aws",
    dns_suffix: "amazonaws.com",
    dual_stack_suffix: "api.aws",
    areas: &["us", "eu", "ap", "sa", "ca", "me", "af", "il", "mx"],
};
const PARTITIONS: [Partition; 8] = [
    AWS,
    partition(
        "aws-cn",
        ["amazonaws.com.cn", "api.amazonwebservices.com.cn"],
        &["cn"],
    ),
    partition("aws-us-gov", ["amazonaws.com", "api.aws"], &["us-gov"]),
    partition("aws-iso", ["c2s.ic.gov", "api.aws.ic.gov"], &["us-iso"]),
    partition(
        "aws-iso-b",
        ["sc2s.sgov.gov", "api.aws.scloud"],
        &["us-isob"],
    ),
    partition(
        "aws-iso-e",
        ["cloud.adc-e.uk", "api.cloud-aws.adc-e.uk"],
        &["eu-isoe"],
    ),
    partition(
        "aws-iso-f",
        ["csp.hci.ic.gov", "api.aws.hci.ic.gov"],
        &["us-isof"],
    ),
    partition(
        "aws-eusc",
        ["amazonaws.eu", "api.amazonwebservices.eu"],
        &["eusc-de"],
    ),
];

const fn partition(
    name: &'static str,
    [dns_suffix, dual_stack_suffix]: [&'static str; 2],
    areas: &'static [&'static str],
) -> Partition {
    Partition {
        name,
        dns_suffix,
        dual_stack_suffix,
        areas,
    }
}

/// Finds the partition that has a Region, by the form of its name.
pub fn partition_of(region: &str) -> Option<&'static Partition> {
    let (rest, number) = region.rsplit_once('-')?;
    let (area, direction) = rest.rsplit_once('-')?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let is_word =
        !direction.is_empty() && direction.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let has = |partition: &&Partition| partition.areas.contains(&area);
    PARTITIONS.iter().find(has).filter(|_| is_number && is_word)
}

/// Returns the partition of a Region; that of most, for a name that no partition has: an
/// S3-compatible store has Regions as it likes.
pub fn likely_partition(region: &str) -> &'static Partition {
    partition_of(region).unwrap_or(&AWS)
}

/// Returns the account in an ARN.
pub(crate) fn arn_account(arn: &str) -> Option<&str> {
    arn.split(':').nth(4)
}

/// Returns the ARN of the account that an ARN is in, which stands for all of its principals.
pub(crate) fn account_root(arn: &str) -> String {
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    match parts.as_slice() {
        [scheme, partition, _, _, account, _] => {
            format!("{scheme}:{partition}:iam::{account}:root")
        }
        _ => arn.to_owned(),
    }
}

/// Returns the account in the URL of a queue, the step before its name.
pub(crate) fn queue_account(url: &str) -> Option<&str> {
    let account = url.rsplit('/').nth(1)?;
    account_number(account).ok().map(|_| account)
}

/// Writes what policies would take for a wildcard or a variable as what it is.
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_variables.html#policy-vars-specialchars>
pub(crate) fn escape_wildcards(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '*' | '?' | '$' => escaped.extend(['$', '{', c, '}']),
            _ => escaped.push(c),
        }
    }
    escaped
}

/// Checks a storage class that S3 takes replicas in.
pub(crate) fn storage_class(text: &str) -> Result<String, String> {
    if STORAGE_CLASSES.contains(&text) {
        return Ok(text.to_owned());
    }
    let hint = suggest_nearest(text, STORAGE_CLASSES.into_iter());
    Err(format!(
        "{text:?} is not a storage class of replicas; {hint}"
    ))
}

/// Reads one of the words that name the variants of an enum.
pub(crate) fn word<T: FromStr + VariantNames>(text: &str) -> Result<T, String> {
    let words = || join_quoted(T::VARIANTS.iter().copied());
    text.parse()
        .map_err(|_| format!("{text:?} is not one of {}", words()))
}

/// Joins names as messages show them.
pub(crate) fn join_quoted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names
        .map(|name| format!("{name:?}"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Says what a text should have been, and how that is written.
pub(crate) fn mismatch(text: &str, what: &str, example: &str) -> String {
    format!("{text:?} is not {what}; write it like {example:?}")
}

const KEY_EXAMPLE: &str =
    "arn:aws:kms:us-east-1:222222222222:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const ACCESS_POINT_EXAMPLE: &str = "arn:aws:s3:eu-west-1:111111111111:accesspoint/orders";
const ROLE_EXAMPLE: &str = "arn:aws:iam::111111111111:role/replicator";

// https://docs.aws.amazon.com/AmazonS3/latest/API/API_Destination.html#AmazonS3-Type-Destination-StorageClass
const STORAGE_CLASSES: [&str; 8] = [
    "STANDARD",
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER",
    "DEEP_ARCHIVE",
    "GLACIER_IR",
];

fn parse_bytes(text: &str) -> Option<u64> {
    text.parse().ok().map(|ByteSize(bytes)| bytes)
}

/// Returns an ARN of a service whose resource is of this kind. IAM has no Regions.
fn arn_of(text: &str, service: &str, kind: &str) -> Option<String> {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let [scheme, partition, found, region, account, resource] = parts.as_slice() else {
        return None;
    };
    let name = resource.strip_prefix(kind)?;
    // These three would make a policy let in others too, or a variable of what was meant as a name.
    let is_sign = |c: char| c.is_ascii_graphic() && !matches!(c, '*' | '?' | '$');
    let is_valid = *scheme == "arn"
        && (*partition == "aws" || partition.starts_with("aws-"))
        && *found == service
        && region.is_empty() == (service == "iam")
        && account.len() == 12
        && account.chars().all(|c| c.is_ascii_digit())
        && !name.is_empty()
        && !name.ends_with('/')
        && name.chars().all(is_sign);
    is_valid.then(|| text.to_owned())
}

/// Says whether a URL has the path of a queue: an account and a name, perhaps below others.
fn is_queue(url: &str) -> bool {
    let segments: Vec<_> = url_path(url)
        .into_iter()
        .flat_map(|path| path.split('/').skip(1))
        .collect();
    segments.len() >= 2 && !segments.contains(&"")
}

/// Returns the path of an http or https URL, from its slash on, when the rest is in order.
fn url_path(text: &str) -> Option<&str> {
    let rest = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))?;
    let host_end = rest.find('/').unwrap_or(rest.len());
    let (host, path) = rest.split_at_checked(host_end)?;
    let stray =
        |c: char| c.is_whitespace() || c.is_control() || matches!(c, '?' | '#' | '"' | '\\');
    let in_order = !host.is_empty() && !host.starts_with(':') && !rest.contains(stray);
    in_order.then_some(path)
}

/// Keeps secrets out of the file, and out of what is said about it.
fn refuse_credentials(url: &str) -> Result<(), String> {
    if url.contains('@') {
        return Err(
            "has an @, as URLs with credentials do; leave them to a profile or role".to_owned(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_gets_the_nearest_name_and_nonsense_gets_them_all() {
        let known = ["prefix", "suffix", "tags"];
        assert_eq!(
            suggest_nearest("prefx", known.into_iter()),
            "did you mean \"prefix\"?"
        );
        assert_eq!(
            suggest_nearest("TAGS", known.into_iter()),
            "did you mean \"tags\"?"
        );
        assert_eq!(
            suggest_nearest("colour", known.into_iter()),
            "known here: \"prefix\", \"suffix\", \"tags\""
        );
    }

    #[test]
    fn arns_are_checked_part_by_part() {
        assert!(kms_key("arn:aws:kms:eu-west-1:111111111111:key/1234").is_ok());
        assert!(kms_key("arn:aws-cn:kms:cn-north-1:111111111111:key/mrk-1234").is_ok());
        assert!(kms_key("arn:aws:kms:eu-west-1:111111111111:alias/orders").is_err());
        assert!(kms_key_or_alias("arn:aws:kms:eu-west-1:111111111111:alias/orders").is_ok());
        assert!(kms_key("arn:aws:kms::111111111111:key/1234").is_err());
        assert!(kms_key("1234abcd-12ab-34cd-56ef-1234567890ab").is_err());
        assert!(role_arn("arn:aws:iam::111111111111:role/team/replicator").is_ok());
        assert!(role_arn("arn:aws:iam::111111111111:user/replicator").is_err());
        assert!(role_arn("arn:aws:iam::1111:role/replicator").is_err());
        assert!(role_arn("arn:aws:iam::111111111111:role/a=b,c@d").is_ok());
        for wrong in [
            "role/*",
            "role/team/",
            "role/a b",
            "role/ä",
            "role/${aws:username}",
        ] {
            assert!(
                role_arn(&format!("arn:aws:iam::111111111111:{wrong}")).is_err(),
                "{wrong}"
            );
        }
        assert!(role_arn("arn:awsome:iam::111111111111:role/replicator").is_err());
    }

    #[test]
    fn queue_urls_have_an_account_and_a_name() {
        assert!(
            queue_url("https://sqs.eu-west-1.amazonaws.com/111111111111/orders-events").is_ok()
        );
        assert!(queue_url("http://localhost:4566/queue/eu-west-1/000000000000/orders").is_ok());
        assert!(queue_url("https://sqs.eu-west-1.amazonaws.com/orders-events").is_err());
        assert!(queue_url("https://sqs.eu-west-1.amazonaws.com//orders-events").is_err());
        assert!(queue_url("arn:aws:sqs:eu-west-1:111111111111:orders-events").is_err());
    }

    #[test]
    fn a_queue_at_aws_names_its_region() {
        assert_eq!(
            queue_region("https://sqs.cn-north-1.amazonaws.com.cn/111111111111/orders"),
            Some("cn-north-1")
        );
        assert_eq!(
            queue_region("https://sqs-fips.us-east-1.amazonaws.com/111111111111/orders"),
            Some("us-east-1")
        );
        assert_eq!(
            queue_region("http://sqs.eu-west-1.localhost:4566/111111111111/orders"),
            None
        );
        assert_eq!(
            queue_region("https://vpce-1.sqs.eu-west-1.vpce.amazonaws.com/111111111111/orders"),
            None
        );
    }

    #[test]
    fn endpoints_are_http_without_credentials() {
        assert_eq!(
            endpoint("http://127.0.0.1:4566/"),
            Ok("http://127.0.0.1:4566".to_owned())
        );
        assert!(
            !endpoint("http://user:secret@127.0.0.1")
                .unwrap_err()
                .contains("secret")
        );
        assert!(endpoint("127.0.0.1:4566").is_err());
        assert!(endpoint("https://").is_err());
    }

    #[test]
    fn sizes_are_binary_or_decimal() {
        assert_eq!(parse_size("256MiB"), Ok(268_435_456));
        assert_eq!(parse_size("1.5 GB"), Ok(1_500_000_000));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert!(parse_size("-1").is_err());
        assert!(parse_size("256 elephants").is_err());
    }

    #[test]
    fn a_bandwidth_is_a_size_per_second_and_never_zero() {
        assert_eq!(
            parse_bandwidth("200MiB/s"),
            Ok(NonZeroU64::new(209_715_200).unwrap())
        );
        assert!(parse_bandwidth("200MiB").is_err());
        assert_eq!(parse_bandwidth("0MB/s"), Err(NO_RATE.to_owned()));
    }

    #[test]
    fn moments_are_kept_in_utc() {
        assert_eq!(
            parse_moment("2026-01-01T02:00:00+02:00"),
            parse_moment("2026-01-01T00:00:00Z")
        );
        assert!(parse_moment("2026-01-01").is_err());
        assert!(parse_moment("9999-12-31T23:59:59-23:59").is_err());
        assert!(parse_moment("0000-01-01T00:00:00+23:59").is_err());
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_time_span("1m 30s"), Ok(Duration::from_secs(90)));
        assert!(parse_time_span("90").is_err());
    }

    #[test]
    fn a_region_is_of_the_partition_whose_pattern_it_has() {
        let cases = [
            ("eu-west-1", Some("aws")),
            ("ap-southeast-7", Some("aws")),
            ("mx-central-1", Some("aws")),
            ("cn-north-1", Some("aws-cn")),
            ("us-gov-west-1", Some("aws-us-gov")),
            ("us-iso-east-1", Some("aws-iso")),
            ("us-isob-east-1", Some("aws-iso-b")),
            ("eu-isoe-west-1", Some("aws-iso-e")),
            ("us-isof-south-1", Some("aws-iso-f")),
            ("eusc-de-east-1", Some("aws-eusc")),
            ("eu-west", None),
            ("eu-west-1a", None),
            ("euwest1", None),
            ("xx-west-1", None),
            ("us-gov-1", Some("aws")),
            ("", None),
        ];
        for (region, expected) in cases {
            assert_eq!(
                partition_of(region).map(|found| found.name),
                expected,
                "{region}"
            );
        }
    }
}
