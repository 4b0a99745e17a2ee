//! One queue: what is sent to it, shown, hidden, shown again and deleted. Time and chance come in.
//!
//! ```text
//!             send            receive              delete with the newest receipt
//!   (none) ─────────▶ delayed ──▶ visible ──▶ hidden ─────────────────────────────▶ (none)
//!                                    ▲           │ visibility runs out, or is set to 0
//!                                    └───────────┘ received too often: to the dead-letter queue
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

use super::message::{Content, Stage, Stored};
use super::quirks::Quirks;
use super::refusal::Refusal;

/// What a queue is set to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long a received message is hidden if its receiver does not say.
    pub visibility: Duration,
    /// The dead-letter queue's name, and how often a message is received before it goes there.
    pub redrive: Option<(String, u32)>,
    /// More messages than this are not hidden at once:
    /// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html>
    pub in_flight_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { visibility: Duration::from_secs(30), redrive: None, in_flight_max: 120_000 }
    }
}

/// A queue.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) name: String,
    pub(super) settings: Settings,
    pub(super) quirks: Quirks,
    /// In the order in which they were sent. Most go from the front.
    pub(super) messages: VecDeque<Stored>,
    /// The ids of those that were deleted, and when.
    pub(super) deleted: Vec<(String, Instant)>,
    /// What was said to those whose request, or an entry of it, was refused.
    pub(super) refused: Vec<String>,
}

/// A message as a receiver gets it.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) message: Stored,
    pub(super) receipt: String,
}

/// SQS hides a message for at most 12 hours from its receipt:
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html>
const HIDDEN_MAX: Duration = Duration::from_secs(12 * 3600);

impl Queue {
    pub(super) fn new(name: &str) -> Self {
        let (settings, quirks) = (Settings::default(), Quirks::default());
        let (name, messages) = (name.to_owned(), VecDeque::new());
        Self { name, settings, quirks, messages, deleted: Vec::new(), refused: Vec::new() }
    }

    /// Takes a message, and by chance takes it twice or late.
    pub(super) fn send(&mut self, content: Content, sent_ms: u128, visible_at: Instant, dice: &mut Dice) {
        let late = dice.falls(self.quirks.delayed);
        let visible_at = visible_at + if late { dice.time(self.quirks.delay_max) } else { Duration::ZERO };
        let mut copies = vec![(content, visible_at)];
        if dice.falls(self.quirks.duplicates) {
            let again = copies[0].0.clone();
            copies.push((again, visible_at + dice.time(self.quirks.delay_max)));
        }
        for (content, visible_at) in copies {
            let serial = dice.serial();
            let (receives, first_received_ms, received_at) = (0, None, None);
            let stored = Stored { serial, content, sent_ms, visible_at, receives, first_received_ms, received_at };
            self.messages.push_back(stored);
        }
    }

    /// Takes out what was received too often.
    pub(super) fn give_up(&mut self, now: Instant) -> Vec<Content> {
        let Some((_, receives_max)) = self.settings.redrive else { return Vec::new() };
        let is_spent = |message: &Stored| message.stage(now) == Stage::Visible && message.receives >= receives_max;
        let (spent, kept): (VecDeque<_>, _) = std::mem::take(&mut self.messages).into_iter().partition(is_spent);
        self.messages = kept;
        spent.into_iter().map(|message| message.content).collect()
    }

    /// Hides up to so many messages and hands them out.
    pub(super) fn receive(
        &mut self,
        count_max: usize,
        hidden: Duration,
        moment: Moment,
        dice: &mut Dice,
    ) -> Result<Vec<Received>, Refusal> {
        let count = |stage| self.messages.iter().filter(|message| message.stage(moment.now) == stage).count();
        let room = self.settings.in_flight_max.saturating_sub(count(Stage::Hidden));
        if room == 0 && count(Stage::Visible) > 0 {
            return Err(Refusal::over_limit());
        }
        let visible = |message: &&mut Stored| message.stage(moment.now) == Stage::Visible;
        // The dice have to see all; else no more are looked for than are wanted.
        let wanted = if self.quirks.reorder { usize::MAX } else { count_max.min(room) };
        let mut found: Vec<&mut Stored> = self.messages.iter_mut().filter(visible).take(wanted).collect();
        let mut taken = found.len().min(count_max).min(room);
        if self.quirks.reorder && taken > 0 {
            dice.shuffle(&mut found);
            taken = dice.one_to(taken);
        }
        found.truncate(taken);
        Ok(found.into_iter().map(|message| hand_out(&self.name, message, hidden, moment)).collect())
    }

    /// Returns when the next message shows by itself.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        self.messages.iter().map(|message| message.visible_at).filter(|at| *at > now).min()
    }

    /// Deletes a message. With a receipt that is not its newest nothing happens, and that is no error:
    /// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessage.html>
    pub(super) fn delete(&mut self, handle: &str, now: Instant) -> Result<(), Refusal> {
        let receipt = Receipt::read(&self.name, handle)?;
        if let Some(at) = self.messages.iter().position(|message| receipt.is_newest_of(message)) {
            self.deleted.extend(self.messages.remove(at).map(|message| (message.content.id, now)));
        }
        Ok(())
    }

    /// Hides a message for so long from now, or shows it at once.
    pub(super) fn hide(&mut self, handle: &str, seconds: i64, now: Instant) -> Result<(), Refusal> {
        let receipt = Receipt::read(&self.name, handle)?;
        let value = |reason| Refusal::value("VisibilityTimeout", &seconds.to_string(), reason);
        let hidden_max = self.quirks.hidden_max.unwrap_or(HIDDEN_MAX);
        let hidden = u64::try_from(seconds).map(Duration::from_secs).ok().filter(|hidden| *hidden <= HIDDEN_MAX);
        let hidden = hidden.ok_or_else(|| value("Must be between 0 and 43200, if provided."))?;
        let message = self.messages.iter_mut().find(|message| receipt.is_newest_of(message)).ok_or_else(|| {
            let reason = "Message does not exist or is not available for visibility timeout change.";
            Refusal::value("ReceiptHandle", handle, reason)
        })?;
        if message.stage(now) != Stage::Hidden {
            return Err(Refusal::not_in_flight(handle));
        }
        if message.received_at.is_some_and(|received| now + hidden > received + hidden_max) {
            return Err(value("Total VisibilityTimeout for the message is beyond the limit [43200 seconds]."));
        }
        message.visible_at = now + hidden;
        Ok(())
    }

    /// Shows again what is hidden, as if its time were over.
    pub(super) fn show_hidden(&mut self, now: Instant) {
        self.show(now, |_| true);
    }

    /// Shows the message of a receipt again, by chance, and says that the receipt is worth nothing any more.
    pub(super) fn expire(&mut self, handle: &str, now: Instant, dice: &mut Dice) -> Result<(), Refusal> {
        if !dice.falls(self.quirks.expired) {
            return Ok(());
        }
        let receipt = Receipt::read(&self.name, handle)?;
        self.show(now, |message| receipt.is_newest_of(message));
        Err(Refusal::value("ReceiptHandle", handle, "The receipt handle has expired."))
    }

    fn show(&mut self, now: Instant, is_meant: impl Fn(&Stored) -> bool) {
        let hidden = self.messages.iter_mut().filter(|message| message.stage(now) == Stage::Hidden);
        hidden.filter(|message| is_meant(message)).for_each(|message| message.visible_at = now);
    }
}

/// A moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) now: Instant,
    pub(super) wall_ms: u128,
}

fn hand_out(queue: &str, message: &mut Stored, hidden: Duration, moment: Moment) -> Received {
    message.receives += 1;
    message.visible_at = moment.now + hidden;
    message.received_at = Some(moment.now);
    message.first_received_ms.get_or_insert(moment.wall_ms);
    let receipt = Receipt { serial: message.serial, receives: message.receives };
    Received { message: message.clone(), receipt: receipt.write(queue) }
}

/// What a receipt handle stands for: one receipt of one copy of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Receipt {
    serial: u64,
    receives: u32,
}

impl Receipt {
    fn write(self, queue: &str) -> String {
        format!("{queue}/{}/{}", self.serial, self.receives)
    }

    fn read(queue: &str, handle: &str) -> Result<Self, Refusal> {
        let numbers = handle.strip_prefix(queue).and_then(|rest| rest.strip_prefix('/')?.split_once('/'));
        let receipt = numbers.and_then(|(serial, receives)| {
            Some(Self { serial: serial.parse().ok()?, receives: receives.parse().ok()? })
        });
        receipt.ok_or_else(|| Refusal::receipt(handle))
    }

    fn is_newest_of(self, message: &Stored) -> bool {
        message.serial == self.serial && message.receives == self.receives
    }
}

/// Chance from a seed, and numbers that are given once.
#[derive(Debug)]
pub(super) struct Dice {
    rng: Rng,
    serial: u64,
}

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self { rng: Rng::with_seed(seed), serial: 0 }
    }

    pub(super) fn falls(&mut self, share: f64) -> bool {
        share > 0.0 && self.rng.f64() < share
    }

    /// Returns a message id, which looks like a UUID.
    pub(super) fn id(&mut self) -> String {
        let (high, low) = (self.rng.u64(..), self.rng.u64(..));
        let (a, b, c) = (high >> 32, high >> 16 & 0xffff, high & 0xffff);
        format!("{a:08x}-{b:04x}-{c:04x}-{:04x}-{:012x}", low >> 48, low & 0xffff_ffff_ffff)
    }

    fn time(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.rng.f64())
    }

    fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        self.rng.shuffle(items);
    }

    fn one_to(&mut self, most: usize) -> usize {
        self.rng.usize(1..=most)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Sends the letters to a queue and receives up to ten at the same moment.
    fn received(quirks: Quirks) -> String {
        let (mut queue, mut dice, now) = (Queue::new("orders"), Dice::new(1), Instant::now());
        queue.quirks = quirks;
        for letter in 'a'..='j' {
            let content = Content { id: dice.id(), body: letter.to_string(), attributes: BTreeMap::new() };
            queue.send(content, 0, now, &mut dice);
        }
        let received = queue.receive(10, HIDDEN_MAX, Moment { now, wall_ms: 0 }, &mut dice).unwrap();
        received.into_iter().map(|received| received.message.content.body).collect()
    }

    #[test]
    fn a_queue_without_quirks_gives_the_oldest_first() {
        assert_eq!(received(Quirks::default()), "abcdefghij");
    }

    #[test]
    fn a_queue_that_reorders_gives_some_in_another_order() {
        let letters = received(Quirks { reorder: true, ..Quirks::default() });
        assert!(!letters.is_empty() && !letters.chars().collect::<Vec<_>>().is_sorted(), "{letters}");
    }

    #[test]
    fn a_message_that_comes_late_is_not_there_yet() {
        let late = Quirks { delayed: 0.5, delay_max: Duration::from_secs(60), ..Quirks::default() };
        let letters = received(late);
        assert!((1..10).contains(&letters.len()), "{letters}");
    }

    #[test]
    fn a_receipt_that_expired_is_refused_and_its_message_shown_again() {
        let (mut queue, mut dice, now) = (Queue::new("orders"), Dice::new(1), Instant::now());
        queue.quirks = Quirks { expired: 1.0, ..Quirks::default() };
        queue.send(Content { id: dice.id(), body: String::new(), attributes: BTreeMap::new() }, 0, now, &mut dice);
        let received = queue.receive(1, HIDDEN_MAX, Moment { now, wall_ms: 0 }, &mut dice).unwrap();
        let refusal = queue.expire(&received[0].receipt, now, &mut dice).unwrap_err();
        assert!(refusal.message.contains("expired"));
        assert_eq!(queue.messages[0].stage(now), Stage::Visible);
        queue.quirks = Quirks::default();
        assert!(queue.expire(&received[0].receipt, now, &mut dice).is_ok());
    }
}
