//! Recognises the names that AWS gives, ARNs and URLs among them, and suggests the nearest when
//! a name is not known.

use std::net::IpAddr;

/// Suggests the nearest of the known names, or lists them all.
pub fn suggest_nearest<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let nearest = known
        .clone()
        .map(|candidate| {
            (
                strsim::osa_distance(&name.to_lowercase(), &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(distance, candidate)| distance * 3 <= candidate.len().max(3))
        .min();
    match nearest {
        Some((_, candidate)) => format!("did you mean {candidate:?}?"),
        None => format!("known here: {}", join_quoted(known)),
    }
}

/// Checks the ARN of a KMS key.
pub(crate) fn kms_key(text: &str) -> Result<String, String> {
    match arn_resource(text, "kms") {
        Some(resource) if resource.strip_prefix("key/").is_some_and(is_word) => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not the ARN of a KMS key; {KEY_FORM}")),
    }
}

/// Checks the ARN of a KMS key or of an alias.
pub(crate) fn kms_key_or_alias(text: &str) -> Result<String, String> {
    match arn_resource(text, "kms").and_then(|resource| resource.strip_prefix("alias/")) {
        Some(alias) if !alias.is_empty() => Ok(text.to_owned()),
        _ => kms_key(text)
            .map_err(|_| format!("{text:?} is not the ARN of a KMS key or alias; {KEY_FORM}")),
    }
}

/// Checks the ARN of an IAM role.
pub(crate) fn parse_role_arn(text: &str) -> Result<String, String> {
    match arn_resource(text, "iam") {
        Some(resource) if resource.strip_prefix("role/").is_some_and(is_word) => {
            Ok(text.to_owned())
        }
        _ => Err(format!(
            "{text:?} is not the ARN of an IAM role; write it like \"arn:aws:iam::111111111111:role/replicator\""
        )),
    }
}

/// Checks an http or https URL that carries neither credentials nor a query.
pub(crate) fn parse_endpoint(text: &str) -> Result<String, String> {
    refuse_credentials(text)?;
    match url_path(text) {
        Some(_) => Ok(text.trim_end_matches('/').to_owned()),
        None => Err(format!(
            "{text:?} is not an http(s) URL; write it like \"https://s3.example.net:9000\""
        )),
    }
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
pub(crate) fn host(text: &str) -> Result<String, String> {
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
    let segments = url_path(text).map(|path| {
        path.trim_end_matches('/')
            .split('/')
            .skip(1)
            .collect::<Vec<_>>()
    });
    match segments {
        Some(segments) if segments.last().is_some_and(|name| name.ends_with(".fifo")) => {
            Err(format!(
                "{text:?} is a FIFO queue, and S3 sends its events to none; use a standard queue"
            ))
        }
        Some(segments) if segments.len() >= 2 && !segments.contains(&"") => {
            Ok(text.trim_end_matches('/').to_owned())
        }
        _ => Err(format!(
            "{text:?} is not the URL of a queue; write it like \"https://sqs.eu-west-1.amazonaws.com/111111111111/orders-events\""
        )),
    }
}

/// Checks the URL of a FIFO queue.
pub(crate) fn work_queue_url(text: &str) -> Result<String, String> {
    refuse_credentials(text)?;
    let url = text.trim_end_matches('/');
    let is_queue = url_path(url).is_some_and(|path| {
        path.split('/')
            .skip(1)
            .filter(|part| !part.is_empty())
            .count()
            >= 2
    });
    match url.strip_suffix(".fifo") {
        Some(_) if is_queue => Ok(url.to_owned()),
        _ => Err(format!(
            "{text:?} is not the URL of a FIFO queue; write it like \"https://sqs.eu-west-1.amazonaws.com/111111111111/orders-work.fifo\""
        )),
    }
}

/// Returns the Region in the URL of a queue at AWS; none for other URLs.
/// <https://docs.aws.amazon.com/general/latest/gr/sqs-service.html>
pub(crate) fn queue_region(url: &str) -> Option<&str> {
    let host = url.strip_prefix("https://")?.split('/').next()?;
    let rest = host
        .strip_prefix("sqs.")
        .or_else(|| host.strip_prefix("sqs-fips."))?;
    let (region, domain) = rest.split_once('.')?;
    domain.starts_with("amazonaws.com").then_some(region)
}

/// Checks a storage class of S3.
pub(crate) fn storage_class(text: &str) -> Result<String, String> {
    if STORAGE_CLASSES.contains(&text) {
        return Ok(text.to_owned());
    }
    if UNWRITABLE_CLASSES.contains(&text) {
        return Err(format!(
            "S3 does not take replicas in {text}; leave it out to keep the class of the source"
        ));
    }
    Err(format!(
        "{text:?} is not a storage class; {}",
        suggest_nearest(text, STORAGE_CLASSES.into_iter())
    ))
}

/// Picks what a word stands for among the words that are possible.
pub(crate) fn one_of<T: Clone>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    match words.iter().find(|(word, _)| *word == text) {
        Some((_, meaning)) => Ok(meaning.clone()),
        None => Err(format!(
            "{text:?} is not one of {}",
            join_quoted(words.iter().map(|(word, _)| *word))
        )),
    }
}

/// Joins names as messages show them.
pub(crate) fn join_quoted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names
        .map(|name| format!("{name:?}"))
        .collect::<Vec<_>>()
        .join(", ")
}

const KEY_FORM: &str =
    "write it like \"arn:aws:kms:us-east-1:222222222222:key/1234abcd-12ab-34cd-56ef-1234567890ab\"";

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

// Classes of buckets that keep no versions, or are of other services, which S3 only shows.
const UNWRITABLE_CLASSES: [&str; 7] = [
    "OUTPOSTS",
    "SNOW",
    "EXPRESS_ONEZONE",
    "FSX_OPENZFS",
    "FSX_ONTAP",
    "AWS_BACKUP_WARM",
    "AWS_BACKUP_LOW_COST_WARM",
];

/// Returns the resource of an ARN of a service, when the rest is in order. IAM has no Regions.
fn arn_resource<'a>(text: &'a str, service: &str) -> Option<&'a str> {
    let mut parts = text.splitn(6, ':');
    let mut next = || parts.next();
    let (scheme, partition, found, region, account) = (next()?, next()?, next()?, next()?, next()?);
    let in_order = scheme == "arn"
        && partition.starts_with("aws")
        && found == service
        && region.is_empty() == (service == "iam")
        && account.len() == 12
        && account.chars().all(|c| c.is_ascii_digit());
    next().filter(|_| in_order)
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

fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_whitespace)
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
        assert!(parse_role_arn("arn:aws:iam::111111111111:role/team/replicator").is_ok());
        assert!(parse_role_arn("arn:aws:iam::111111111111:user/replicator").is_err());
        assert!(parse_role_arn("arn:aws:iam::1111:role/replicator").is_err());
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
            parse_endpoint("http://127.0.0.1:4566/"),
            Ok("http://127.0.0.1:4566".to_owned())
        );
        assert!(
            !parse_endpoint("http://user:secret@127.0.0.1")
                .unwrap_err()
                .contains("secret")
        );
        assert!(parse_endpoint("127.0.0.1:4566").is_err());
        assert!(parse_endpoint("https://").is_err());
    }
}
