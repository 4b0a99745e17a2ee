//! What a receipt handle stands for: one receipt of one copy of a message.

use super::message::Stored;
use super::refusal::Refusal;

/// A receipt of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Receipt {
    pub(super) serial: u64,
    receives: u32,
}

impl Receipt {
    /// The newest receipt of a message.
    pub(super) fn of(message: &Stored) -> Self {
        Self {
            serial: message.serial,
            receives: message.receives,
        }
    }

    pub(super) fn write(self, queue: &str) -> String {
        format!("{queue}/{}/{}", self.serial, self.receives)
    }

    pub(super) fn read(queue: &str, handle: &str) -> Result<Self, Refusal> {
        let numbers = handle
            .strip_prefix(queue)
            .and_then(|rest| rest.strip_prefix('/')?.split_once('/'));
        let receipt = numbers.and_then(|(serial, receives)| {
            Some(Self {
                serial: serial.parse().ok()?,
                receives: receives.parse().ok()?,
            })
        });
        receipt.ok_or_else(|| Refusal::receipt(handle))
    }

    pub(super) fn is_newest_of(self, message: &Stored) -> bool {
        self == Self::of(message)
    }
}
