//! Times as S3 writes them.

use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use super::traits::Resolution;

// RFC 9110, section 5.6.7.
const HTTP_DATE: &[BorrowedFormatItem<'_>] = format_description!(
    "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
);
const ISO: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// As in `Date` and `Last-Modified`.
pub(super) fn http_date(time: SystemTime) -> String {
    OffsetDateTime::from(time)
        .format(HTTP_DATE)
        .unwrap_or_default()
}

/// As in listings, always with three digits behind the point.
pub(super) fn iso(time: SystemTime, resolution: Resolution) -> String {
    let time = OffsetDateTime::from(time);
    let shown = match resolution {
        Resolution::Milliseconds => time,
        Resolution::Seconds => whole(time),
    };
    shown.format(ISO).unwrap_or_default()
}

/// Reads a time as headers of Object Lock have it.
pub(super) fn parse_iso(text: &str) -> Option<SystemTime> {
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        .map(SystemTime::from)
}

/// Cuts a time to whole seconds, which is all that a header can say.
pub(super) fn whole_seconds(time: SystemTime) -> SystemTime {
    whole(OffsetDateTime::from(time)).into()
}

fn whole(time: OffsetDateTime) -> OffsetDateTime {
    time.replace_nanosecond(0).unwrap_or(time)
}
