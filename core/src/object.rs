//! What S3 names: buckets, keys, versions and ETags, parsed once at the border so that the rest
//! of the program cannot hold a wrong one; and the parts that it takes an object in.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use time::UtcOffset;
use time::format_description::well_known::Rfc3339;

/// A moment in UTC, as S3 and SQS state it.
pub type Timestamp = time::OffsetDateTime;

/// Reads a moment as RFC 3339 writes it; none where it is no year of four digits in UTC, by which
/// moments are compared.
pub fn parse_rfc3339(text: &str) -> Option<Timestamp> {
    Timestamp::parse(text, &Rfc3339)
        .ok()?
        .checked_to_offset(UtcOffset::UTC)
}

/// Shows a text on one line, with what is no letter but a command to the terminal escaped.
pub fn escape_controls(text: &str) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        text.chars().try_for_each(|c| {
            if is_command(c) {
                write!(f, "{}", c.escape_default())
            } else {
                write!(f, "{c}")
            }
        })
    })
}

/// Escapes, as JSON does, all commands to the terminal but line breaks. What JSON means stays the
/// same.
pub fn without_commands(text: &str) -> Cow<'_, str> {
    let is_escaped = |c: char| is_command(c) && c != '\n';
    if !text.contains(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_escaped(c) {
            true => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

/// Says whether a character moves the cursor, ends a line, or turns the text around that follows
/// (C0, C1, Unicode's line separators and its bidirectional controls:
/// <https://www.unicode.org/reports/tr9/#Directional_Formatting_Characters>).
fn is_command(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}')
}

/// A name that S3 would never have given or accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what} {value:?} {problem}")]
pub struct NameError {
    what: &'static str,
    value: String,
    problem: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        /// For logs and reports: a line break in a key makes no second line, and an escape moves no
        /// cursor.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", escape_controls(&self.0))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl TryFrom<&str> for $name {
            type Error = NameError;
            fn try_from(text: &str) -> Result<Self, NameError> {
                Self::try_from(text.to_owned())
            }
        }
    };
}

name! {
    /// The name of a bucket.
    Bucket
}
name! {
    /// The key of an object, decoded: exactly the bytes S3 stores.
    Key
}
name! {
    /// The id of one version of an object, or `null` for the version written without versioning.
    VersionId
}
name! {
    /// An entity tag without its quotes.
    ETag
}

impl TryFrom<String> for Bucket {
    type Error = NameError;

    // General purpose buckets have 3 to 63 characters; those made in us-east-1 before March 2018
    // up to 255, capitals and underscores included:
    // https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
    fn try_from(value: String) -> Result<Self, NameError> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let problem = if !(3..=255).contains(&value.len()) {
            "is not 3 to 255 characters long"
        } else if !value.chars().all(legal) {
            "has a character other than letters, digits, '.', '-' and '_'"
        } else {
            return Ok(Self(value));
        };
        Err(NameError {
            what: "bucket name",
            value,
            problem,
        })
    }
}

impl TryFrom<String> for Key {
    type Error = NameError;

    // https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
    fn try_from(value: String) -> Result<Self, NameError> {
        if (1..=1024).contains(&value.len()) {
            return Ok(Self(value));
        }
        Err(NameError {
            what: "object key",
            value,
            problem: "is not 1 to 1024 bytes long",
        })
    }
}

impl TryFrom<String> for VersionId {
    type Error = NameError;

    // https://docs.aws.amazon.com/AmazonS3/latest/userguide/versioning-workflows.html
    fn try_from(value: String) -> Result<Self, NameError> {
        let printable = |byte: u8| matches!(byte, b' '..=b'~');
        if (1..=1024).contains(&value.len()) && value.bytes().all(printable) {
            return Ok(Self(value));
        }
        Err(NameError {
            what: "version id",
            value,
            problem: "is not 1 to 1024 printable ASCII characters long",
        })
    }
}

impl TryFrom<String> for ETag {
    type Error = NameError;

    fn try_from(value: String) -> Result<Self, NameError> {
        let bare = value.trim_matches('"');
        // S3's have 38 characters at most; they are kept with every version.
        if !(1..=1024).contains(&bare.len()) {
            return Err(NameError {
                what: "ETag",
                value,
                problem: "is not 1 to 1024 bytes long",
            });
        }
        Ok(Self(bare.to_owned()))
    }
}

impl VersionId {
    /// Says whether this is the `null` version, which S3 overwrites in place: not an identity.
    pub fn is_null(&self) -> bool {
        self.0 == "null"
    }
}

impl ETag {
    /// Says whether the tag reads like the MD5 of the content, which it is unless a key of KMS or
    /// the customer is in play:
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html>
    pub fn is_digest(&self) -> bool {
        self.0.len() == 32 && self.0.bytes().all(|byte| byte.is_ascii_hexdigit())
    }

    /// Returns the tag as HTTP writes it, in quotes.
    pub fn to_quoted(&self) -> String {
        format!("\"{}\"", self.0)
    }
}

/// How an object of any size is cut into the parts of a multipart upload.
pub mod parts {
    use thiserror::Error;

    // The four limits: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html

    /// The smallest part S3 takes, except for the last.
    pub const PART_BYTES_MIN: u64 = 5 * MIB;
    /// The largest part S3 takes.
    pub const PART_BYTES_MAX: u64 = 5 * 1024 * MIB;
    /// How many parts an upload may have.
    pub const PARTS_MAX: u32 = 10_000;
    /// The largest object S3 holds: 48.8 TiB, sold as 50 TB.
    pub const OBJECT_BYTES_MAX: u64 = PARTS_MAX as u64 * PART_BYTES_MAX;

    /// An object larger than S3 can hold.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
    #[error(
        "object of {size_bytes} bytes is larger than the {OBJECT_BYTES_MAX} bytes that S3 can hold"
    )]
    pub struct TooLarge {
        /// The requested size.
        pub size_bytes: u64,
    }

    /// The cut of one object into parts of equal size, of which only the last may be smaller.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Layout {
        size_bytes: u64,
        part_bytes: u64,
        count: u32,
    }

    /// One part of an object.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Part {
        /// Its number, from 1.
        pub number: u32,
        /// Where it begins in the object.
        pub offset: u64,
        /// How many bytes it has; never none.
        pub len: u64,
    }

    /// Cuts an object into parts of the preferred size, or of a larger one where too many would be
    /// needed; always whole MiB, within what S3 allows. An empty object has no parts.
    pub fn plan_layout(size_bytes: u64, part_bytes_preferred: u64) -> Result<Layout, TooLarge> {
        if size_bytes > OBJECT_BYTES_MAX {
            return Err(TooLarge { size_bytes });
        }
        let needed = size_bytes.div_ceil(u64::from(PARTS_MAX));
        let wanted = part_bytes_preferred.clamp(PART_BYTES_MIN, PART_BYTES_MAX);
        let part_bytes = wanted.max(needed).next_multiple_of(MIB);
        let count =
            u32::try_from(size_bytes.div_ceil(part_bytes)).map_err(|_| TooLarge { size_bytes })?;
        Ok(Layout {
            size_bytes,
            part_bytes,
            count,
        })
    }

    impl Layout {
        /// Returns the size of every part but the last.
        pub fn part_bytes(&self) -> u64 {
            self.part_bytes
        }

        /// Returns all parts, in order.
        pub fn parts(&self) -> impl Iterator<Item = Part> + use<> {
            let layout = *self;
            (1..=layout.count).filter_map(move |number| layout.part(number))
        }

        /// Returns the part of this number, counted from 1.
        pub fn part(&self, number: u32) -> Option<Part> {
            if number > self.count {
                return None;
            }
            let offset = u64::from(number.checked_sub(1)?) * self.part_bytes;
            let len = self.part_bytes.min(self.size_bytes - offset);
            Some(Part {
                number,
                offset,
                len,
            })
        }
    }

    impl Part {
        /// Returns the part as an HTTP range, which names the last byte, not the one after it.
        pub fn range(&self) -> String {
            format!(
                "bytes={}-{}",
                self.offset,
                (self.offset + self.len).saturating_sub(1)
            )
        }
    }

    const MIB: u64 = 1024 * 1024;

    #[cfg(test)]
    mod tests {
        use proptest::prelude::*;

        use super::*;

        fn shape(size_bytes: u64, preferred: u64) -> Option<(u64, u32)> {
            plan_layout(size_bytes, preferred)
                .ok()
                .map(|layout| (layout.part_bytes(), layout.count))
        }

        #[test]
        fn the_preferred_size_is_kept_until_ten_thousand_parts_are_too_few() {
            assert_eq!(shape(156 * 1024 * MIB, 16 * MIB), Some((16 * MIB, 9_984)));
            assert_eq!(shape(160_000 * MIB, 16 * MIB), Some((16 * MIB, 10_000)));
            assert_eq!(shape(160_000 * MIB + 1, 16 * MIB), Some((17 * MIB, 9_412)));
        }

        #[test]
        fn the_largest_object_fits_and_one_byte_more_does_not() {
            assert_eq!(OBJECT_BYTES_MAX, 53_687_091_200_000);
            assert_eq!(
                shape(OBJECT_BYTES_MAX, 8 * MIB),
                Some((PART_BYTES_MAX, PARTS_MAX))
            );
            let size_bytes = OBJECT_BYTES_MAX + 1;
            assert_eq!(
                plan_layout(size_bytes, 8 * MIB),
                Err(TooLarge { size_bytes })
            );
            assert!(plan_layout(u64::MAX, 0).is_err());
        }

        #[test]
        fn an_unfit_preference_is_moved_to_the_nearest_that_s3_allows() {
            assert_eq!(shape(20 * MIB, 0), Some((5 * MIB, 4)));
            assert_eq!(shape(20 * MIB, 8 * MIB - 1), Some((8 * MIB, 3)));
            assert_eq!(
                shape(OBJECT_BYTES_MAX, u64::MAX),
                Some((PART_BYTES_MAX, PARTS_MAX))
            );
        }

        #[test]
        fn an_empty_object_has_no_parts() {
            assert_eq!(
                plan_layout(0, 8 * MIB).map(|layout| layout.parts().count()),
                Ok(0)
            );
        }

        #[test]
        fn a_range_names_its_last_byte() {
            let parts =
                plan_layout(8 * MIB + 1, 8 * MIB).map(|layout| layout.parts().collect::<Vec<_>>());
            let ranges = parts.map(|parts| parts.iter().map(Part::range).collect::<Vec<_>>());
            assert_eq!(
                ranges,
                Ok(vec![
                    "bytes=0-8388607".to_owned(),
                    "bytes=8388608-8388608".to_owned()
                ])
            );
        }

        #[test]
        fn only_numbers_from_one_to_the_count_have_a_part() {
            let numbers = [0, 1, 2, 3, u32::MAX];
            let there = plan_layout(10 * MIB, 5 * MIB)
                .map(|layout| numbers.map(|number| layout.part(number).is_some()));
            assert_eq!(there, Ok([false, true, true, false, false]));
        }

        // Sizes of every magnitude, and those one byte beside a multiple of something that matters.
        fn any_size() -> impl Strategy<Value = u64> {
            let unit = prop_oneof![
                Just(MIB),
                Just(PART_BYTES_MIN),
                Just(8 * MIB),
                Just(PART_BYTES_MAX),
                Just(u64::from(PARTS_MAX) * MIB),
                Just(OBJECT_BYTES_MAX),
            ];
            let boundary =
                (unit, 0..=u64::from(PARTS_MAX), 0..3u64).prop_map(|(unit, times, nudge)| {
                    (unit * times + nudge)
                        .saturating_sub(1)
                        .min(OBJECT_BYTES_MAX)
                });
            let magnitude = (0..64u32, any::<u64>())
                .prop_map(|(shift, bits)| (bits >> shift).min(OBJECT_BYTES_MAX));
            prop_oneof![boundary, magnitude, 0..=OBJECT_BYTES_MAX]
        }

        fn any_preference() -> impl Strategy<Value = u64> {
            prop_oneof![
                Just(0),
                Just(u64::MAX),
                0..=2 * PART_BYTES_MAX,
                (1..=5120u64).prop_map(|mib| mib * MIB)
            ]
        }

        proptest! {
            #[test]
            fn parts_cover_the_object_without_gap_or_overlap(size in any_size(), preferred in any_preference()) {
                let parts = plan_layout(size, preferred)?.parts().collect::<Vec<_>>();
                let mut end = 0;
                for (number, part) in (1..).zip(&parts) {
                    prop_assert_eq!((part.number, part.offset), (number, end));
                    prop_assert!(part.len > 0);
                    end += part.len;
                }
                prop_assert_eq!(end, size);
            }

            #[test]
            fn every_limit_of_s3_is_kept(size in any_size(), preferred in any_preference()) {
                let layout = plan_layout(size, preferred)?;
                prop_assert!(layout.count <= PARTS_MAX);
                prop_assert!((PART_BYTES_MIN..=PART_BYTES_MAX).contains(&layout.part_bytes()));
                prop_assert!(layout.part_bytes() % MIB == 0);
                prop_assert!(layout.part_bytes() >= preferred.min(PART_BYTES_MAX));
                let whole = usize::try_from(layout.count.saturating_sub(1))?;
                prop_assert!(layout.parts().take(whole).all(|part| part.len == layout.part_bytes()));
            }

            #[test]
            fn parts_are_not_made_larger_than_they_need_to_be(size in any_size(), mib in 5..=5120u64) {
                let layout = plan_layout(size, mib * MIB)?;
                let smaller = layout.part_bytes() - MIB;
                let enough = layout.part_bytes() == mib * MIB || size.div_ceil(smaller) > u64::from(PARTS_MAX);
                prop_assert!(enough);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_means_the_same_with_and_without_quotes() {
        let bare = ETag::try_from("9b2cf535f27731c974343645a3985328").ok();
        assert!(bare.is_some());
        assert_eq!(
            bare,
            ETag::try_from("\"9b2cf535f27731c974343645a3985328\"").ok()
        );
    }

    #[test]
    fn a_key_is_shown_on_one_line() {
        let key = Key::try_from("a\nINFO settled\u{1b}[2J ü").unwrap();
        assert_eq!(key.to_string(), "a\\nINFO settled\\u{1b}[2J ü");
        assert_eq!(key.as_str(), "a\nINFO settled\u{1b}[2J ü");
    }

    #[test]
    fn nothing_that_is_shown_commands_the_terminal() {
        let commands =
            "\u{1b}[31m\u{9b}31m\u{7f}\u{85}\u{202e}fdp.exe\u{2066}\u{61c}\u{200f}\u{2028}\r";
        let (line, json) = (
            escape_controls(commands).to_string(),
            without_commands(commands),
        );
        assert_eq!(
            line,
            "\\u{1b}[31m\\u{9b}31m\\u{7f}\\u{85}\\u{202e}fdp.exe\\u{2066}\\u{61c}\\u{200f}\\u{2028}\\r"
        );
        assert_eq!(
            json,
            "\\u001b[31m\\u009b31m\\u007f\\u0085\\u202efdp.exe\\u2066\\u061c\\u200f\\u2028\\u000d"
        );
        let text = "ünï 日本語 😀 עברית\nsecond line";
        assert_eq!(without_commands(text), text);
    }

    #[test]
    fn names_that_s3_cannot_hold_are_refused() {
        assert!(Bucket::try_from("ab").is_err());
        assert!(Bucket::try_from("a b c").is_err());
        assert!(Bucket::try_from("Legacy_Bucket").is_ok());
        assert!(Key::try_from("").is_err());
        assert!(Key::try_from("ü".repeat(513)).is_err());
        assert!(Key::try_from("ü".repeat(512)).is_ok());
        assert!(VersionId::try_from("").is_err());
        assert!(VersionId::try_from("v1\n").is_err());
        assert!(ETag::try_from("\"\"").is_err());
        assert!(ETag::try_from("a".repeat(1025)).is_err());
    }
}
