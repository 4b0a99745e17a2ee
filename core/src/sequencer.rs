//! The sequencer of an S3 event: says which of two events of one key came later. It looks like a
//! number and is not one.

use std::cmp::Ordering;
use std::fmt;
use std::iter;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Orders the PUT and DELETE events of one key; means nothing between keys.
///
/// There is no `Ord` on purpose: sorting would hide that a comparison is only good within a key.
/// Two sequencers are equal when [`Sequencer::compare`] says so, whatever their lengths.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sequencer(String);

/// A text that is no sequencer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("sequencer is not a short row of hexadecimal digits")]
pub struct SequencerError;

// S3 sends 16 to 20 digits and promises no length. A message may claim any, and what it claims goes
// into the stamp: so there is a limit, or a forged event could leave its replica without one.
const DIGITS_MAX: usize = 64;

impl Sequencer {
    /// Says whether this event came before or after another of the same key: the shorter text is
    /// filled up with zeros on the right, then both are compared letter by letter, as
    /// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html>
    /// prescribes. Equal means that only a request to the source can tell.
    pub fn compare(&self, other: &Self) -> Ordering {
        let width = self.0.len().max(other.0.len());
        self.filled(width).cmp(other.filled(width))
    }

    /// Returns the sequencer as text, in capitals.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn filled(&self, width: usize) -> impl Iterator<Item = u8> {
        self.0.bytes().chain(iter::repeat(b'0')).take(width)
    }
}

impl PartialEq for Sequencer {
    fn eq(&self, other: &Self) -> bool {
        self.compare(other).is_eq()
    }
}

impl Eq for Sequencer {}

impl fmt::Display for Sequencer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Sequencer {
    type Err = SequencerError;

    fn from_str(text: &str) -> Result<Self, SequencerError> {
        if !(1..=DIGITS_MAX).contains(&text.len())
            || !text.bytes().all(|byte| byte.is_ascii_hexdigit())
        {
            return Err(SequencerError);
        }
        Ok(Self(text.to_ascii_uppercase()))
    }
}

impl TryFrom<&str> for Sequencer {
    type Error = SequencerError;

    fn try_from(text: &str) -> Result<Self, SequencerError> {
        text.parse()
    }
}

impl TryFrom<String> for Sequencer {
    type Error = SequencerError;

    fn try_from(text: String) -> Result<Self, SequencerError> {
        text.parse()
    }
}

impl From<Sequencer> for String {
    fn from(sequencer: Sequencer) -> Self {
        sequencer.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn compare(a: &str, b: &str) -> Option<Ordering> {
        let (a, b): (Sequencer, Sequencer) = (a.parse().ok()?, b.parse().ok()?);
        Some(a.compare(&b))
    }

    #[test]
    fn the_shorter_one_is_filled_up_on_the_right() {
        assert_eq!(
            compare("0055AED6DCD90281E5", "0055AED6DCD90281E6"),
            Some(Ordering::Less)
        );
        assert_eq!(
            compare("0055AED6DCD9", "0055AED6DCD90281E5"),
            Some(Ordering::Less)
        );
        assert_eq!(
            compare("0055AED6DCD9", "0055AED6DCD9000000"),
            Some(Ordering::Equal)
        );
        assert_eq!(
            compare("617f08299329d189", "617F08299329D189"),
            Some(Ordering::Equal)
        );
    }

    #[test]
    fn a_longer_one_is_not_later_for_being_a_greater_number() {
        assert_eq!(compare("2", "10"), Some(Ordering::Greater));
        assert_eq!(compare("B", "0AAAA"), Some(Ordering::Greater));
    }

    #[test]
    fn anything_but_hexadecimal_digits_is_refused() {
        for text in ["", "0x1F", "-1", "+1", " 1", "1 ", "12G4", "１２"] {
            assert_eq!(text.parse::<Sequencer>(), Err(SequencerError), "{text:?}");
        }
    }

    #[test]
    fn one_that_would_fill_the_stamp_is_refused() {
        assert!("0".repeat(DIGITS_MAX).parse::<Sequencer>().is_ok());
        assert!("0".repeat(DIGITS_MAX + 1).parse::<Sequencer>().is_err());
    }

    #[test]
    fn it_is_stored_as_text_and_checked_when_read_back() {
        let read = serde_json::from_str::<Sequencer>("\"00ab\"").ok();
        assert_eq!(read.as_ref().map(Sequencer::as_str), Some("00AB"));
        assert_eq!(
            read.and_then(|it| serde_json::to_string(&it).ok())
                .as_deref(),
            Some("\"00AB\"")
        );
        assert!(serde_json::from_str::<Sequencer>("\"\"").is_err());
        assert!(serde_json::from_str::<Sequencer>("7").is_err());
    }

    // Few digits and short texts, so that equal, nested and differing ones all turn up.
    fn any_sequencer() -> impl Strategy<Value = Sequencer> {
        "[019aAfF]{1,6}|[0-9a-fA-F]{14,20}".prop_filter_map("hexadecimal", |text| text.parse().ok())
    }

    proptest! {
        #[test]
        fn the_order_is_total(a in any_sequencer(), b in any_sequencer(), c in any_sequencer()) {
            prop_assert_eq!(a.compare(&a), Ordering::Equal);
            prop_assert_eq!(a.compare(&b), b.compare(&a).reverse());
            if a.compare(&b).is_le() && b.compare(&c).is_le() {
                prop_assert!(a.compare(&c).is_le());
            }
            if a.compare(&b).is_eq() {
                prop_assert_eq!(a.compare(&c), b.compare(&c));
            }
        }

        #[test]
        fn the_order_is_that_of_fractions_and_never_of_numbers(a in "[0-9A-F]{1,15}", b in "[0-9A-F]{1,15}") {
            let fraction = |text: &str| u64::from_str_radix(&format!("{text:0<15}"), 16).ok();
            prop_assert_eq!(compare(&a, &b), fraction(&a).zip(fraction(&b)).map(|(a, b)| a.cmp(&b)));
        }

        #[test]
        fn text_and_back_changes_nothing(a in any_sequencer()) {
            let back = a.to_string().parse::<Sequencer>();
            prop_assert_eq!(back.as_ref().map(Sequencer::as_str), Ok(a.as_str()));
        }
    }
}
