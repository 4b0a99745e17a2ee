//! Reads sizes, rates, durations and moments as they are written.

use std::num::NonZeroU64;
use std::time::Duration;

use bytesize::ByteSize;
use replicator_core::object::Timestamp;
use time::UtcOffset;
use time::format_description::well_known::Rfc3339;

/// Reads a number of bytes, like `256MiB`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| format!("{text:?} is not a size; write it like \"256MiB\""))
}

/// Reads a number of bytes per second, like `200MiB/s`.
pub(crate) fn parse_bandwidth(text: &str) -> Result<NonZeroU64, String> {
    let Some(rate) = text
        .strip_suffix("/s")
        .and_then(|size| parse_bytes(size.trim_end()))
    else {
        return Err(format!(
            "{text:?} is not a bandwidth; write it like \"200MiB/s\""
        ));
    };
    NonZeroU64::new(rate).ok_or_else(|| NO_RATE.to_owned())
}

/// Reads a length of time, like `1m 30s`.
pub(crate) fn parse_time_span(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| format!("{text:?} is not a duration; write it like \"90s\" or \"2m\""))
}

/// Reads a moment, like `2026-01-01T00:00:00Z`.
pub(crate) fn parse_moment(text: &str) -> Result<Timestamp, String> {
    // The years at either end have hours that lie outside of what RFC 3339 can write in UTC.
    let moment = Timestamp::parse(text, &Rfc3339)
        .ok()
        .and_then(|moment| moment.checked_to_offset(UtcOffset::UTC));
    moment.filter(|moment| moment.year() >= 0).ok_or_else(|| {
        format!("{text:?} is not a moment of RFC 3339; write it like \"2026-01-01T00:00:00Z\"")
    })
}

/// What to say about a rate of zero.
pub(crate) const NO_RATE: &str =
    "zero would stop the rule; leave it out for no limit, or disable the rule with enabled = false";

fn parse_bytes(text: &str) -> Option<u64> {
    text.parse().ok().map(|ByteSize(bytes)| bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
