//! What S3 names: buckets, keys, versions and ETags, parsed once at the border so that the rest
//! of the program cannot hold a wrong one.

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
