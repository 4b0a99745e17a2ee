//! One queue: what is sent to it, shown, hidden, shown again and deleted. Time and chance come in.
//!
//! ```text
//!             send            receive              delete with the newest receipt
//!   (none) ─────────▶ delayed ──▶ visible ──▶ hidden ─────────────────────────────▶ (none)
//!                                    ▲           │ visibility runs out, or is set to 0
//!                                    └───────────┘ received too often: to the dead-letter queue
//! ```

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::dice::Dice;
use super::fifo::{Accepted, Fifo, Habits, Place};
use super::message::{Content, Sending, Stage, Stored};
use super::quirks::Quirks;
use super::receipt::Receipt;
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
        Self {
            visibility: Duration::from_secs(30),
            redrive: None,
            in_flight_max: 120_000,
        }
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
    /// How often those were received that were, and their serial numbers.
    received: BTreeSet<(u32, u64)>,
    /// Its groups, if it is a FIFO queue.
    pub(super) fifo: Option<Fifo>,
    /// Those that were deleted.
    pub(super) deleted: Vec<Deleted>,
    /// What was said to those whose request, or an entry of it, was refused.
    pub(super) refused: Vec<String>,
}

/// What is known of a message that was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// Its id.
    pub id: String,
    /// Its `MessageGroupId`, in a FIFO queue.
    pub group: Option<String>,
    /// When it was deleted.
    pub at: Instant,
}

impl Deleted {
    fn of(content: Content, at: Instant) -> Self {
        Self {
            id: content.id,
            group: content.place.map(|place| place.group),
            at,
        }
    }
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
        let (name, messages, received, fifo) =
            (name.to_owned(), VecDeque::new(), BTreeSet::new(), None);
        Self {
            name,
            settings,
            quirks,
            messages,
            received,
            fifo,
            deleted: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// Makes a FIFO queue.
    pub(super) fn fifo(name: &str, habits: Habits) -> Self {
        Self {
            fifo: Some(Fifo::new(habits)),
            ..Self::new(name)
        }
    }

    /// Says what becomes of a message that is sent: it is refused, or its place in a FIFO queue, or
    /// the one it repeats.
    pub(super) fn admit(&mut self, sending: &Sending, now: Instant) -> Result<Admission, Refusal> {
        match &mut self.fifo {
            Some(fifo) => {
                fifo.check(sending)?;
                let accepted = fifo.accept(sending, now);
                Ok(accepted.map_or_else(Admission::Repeated, |place| Admission::New(Some(place))))
            }
            None => match &sending.deduplication {
                Some(id) => Err(Refusal::not_of_type("MessageDeduplicationId", id)),
                None => Ok(Admission::New(None)),
            },
        }
    }

    /// Takes a message, and by chance takes it twice or late. A FIFO queue remembers it.
    pub(super) fn send(
        &mut self,
        content: Content,
        moment: Moment,
        delay: Duration,
        dice: &mut Dice,
    ) {
        if let (Some(fifo), Some(place)) = (&mut self.fifo, &content.place) {
            fifo.remember(&content.id, place, moment.now);
        }
        let late = dice.falls(self.quirks.delayed);
        let visible_at = moment.now
            + delay
            + if late {
                dice.time(self.quirks.delay_max)
            } else {
                Duration::ZERO
            };
        let mut copies = vec![(content, visible_at)];
        if dice.falls(self.quirks.duplicates) && self.fifo.is_none() {
            let again = copies[0].0.clone();
            copies.push((again, visible_at + dice.time(self.quirks.delay_max)));
        }
        for (content, visible_at) in copies {
            let (serial, sent_ms) = (dice.serial(), moment.wall_ms);
            let (receives, first_received_ms, received_at) = (0, None, None);
            let stored = Stored {
                serial,
                content,
                sent_ms,
                visible_at,
                receives,
                first_received_ms,
                received_at,
            };
            self.fifo.iter_mut().for_each(|fifo| fifo.add(&stored));
            self.messages.push_back(stored);
        }
    }

    /// Takes out what was received too often.
    pub(super) fn give_up(&mut self, now: Instant) -> Vec<Content> {
        let Some((_, receives_max)) = self.settings.redrive else {
            return Vec::new();
        };
        let often = self
            .received
            .range((receives_max, 0)..)
            .map(|(_, serial)| *serial);
        let is_shown = |at: usize| self.messages[at].stage(now) == Stage::Visible;
        let mut spent: Vec<u64> = often
            .filter(|serial| self.position(*serial).is_some_and(is_shown))
            .collect();
        spent.sort_unstable();
        spent
            .into_iter()
            .filter_map(|serial| self.take_out(serial))
            .map(|message| message.content)
            .collect()
    }

    /// Hides up to so many messages and hands them out. Of what is in flight only a standard queue
    /// tells that it is too much:
    /// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-fifo.html>
    pub(super) fn receive(
        &mut self,
        count_max: usize,
        hidden: Duration,
        moment: Moment,
        dice: &mut Dice,
    ) -> Result<Vec<Received>, Refusal> {
        let room = self.room(count_max, moment.now);
        let is_visible = |message: &Stored| message.stage(moment.now) == Stage::Visible;
        if room == 0 && self.fifo.is_none() && self.messages.iter().any(is_visible) {
            return Err(Refusal::over_limit());
        }
        let chosen = self.choose(count_max.min(room), moment.now, dice);
        Ok(chosen
            .into_iter()
            .map(|at| self.hand_out(at, hidden, moment))
            .collect())
    }

    /// Returns how many of those that are wanted may be in flight besides those that are. Those are
    /// only counted where what was received does not tell.
    fn room(&self, wanted: usize, now: Instant) -> usize {
        let most = self.settings.in_flight_max;
        if self.received.len() + wanted <= most {
            return wanted;
        }
        most.saturating_sub(
            self.messages
                .iter()
                .filter(|message| message.stage(now) == Stage::Hidden)
                .count(),
        )
    }

    fn hand_out(&mut self, at: usize, hidden: Duration, moment: Moment) -> Received {
        let message = &mut self.messages[at];
        self.received.remove(&(message.receives, message.serial));
        message.receives += 1;
        self.received.insert((message.receives, message.serial));
        message.visible_at = moment.now + hidden;
        message.received_at = Some(moment.now);
        message.first_received_ms.get_or_insert(moment.wall_ms);
        Received {
            message: message.clone(),
            receipt: Receipt::of(message).write(&self.name),
        }
    }

    /// Returns the positions of up to so many messages that can be handed out.
    fn choose(&self, count_max: usize, now: Instant, dice: &mut Dice) -> Vec<usize> {
        let reorder = self.quirks.reorder;
        let mut found = match &self.fifo {
            Some(fifo) => fifo.choose(
                &self.messages,
                count_max,
                now,
                reorder.then_some(&mut *dice),
            ),
            None => {
                let visible = self
                    .messages
                    .iter()
                    .enumerate()
                    .filter(|(_, each)| each.stage(now) == Stage::Visible);
                // The dice have to see all; else no more are looked for than are wanted.
                let mut found: Vec<usize> = visible
                    .map(|(at, _)| at)
                    .take(if reorder { usize::MAX } else { count_max })
                    .collect();
                if reorder {
                    dice.shuffle(&mut found);
                }
                found
            }
        };
        found.truncate(count_max);
        if reorder && !found.is_empty() {
            found.truncate(dice.one_to(found.len()));
        }
        found
    }

    /// Returns when the next message shows by itself.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        self.messages
            .iter()
            .map(|message| message.visible_at)
            .filter(|at| *at > now)
            .min()
    }

    /// Deletes a message. With a receipt that is not its newest nothing happens, and that is no
    /// error:
    /// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessage.html>,
    /// except in a FIFO queue, where a receipt is worth nothing once the visibility is over:
    /// <https://repost.aws/knowledge-center/sqs-receipt-handle-error>
    pub(super) fn delete(&mut self, handle: &str, now: Instant) -> Result<(), Refusal> {
        let receipt = Receipt::read(&self.name, handle)?;
        let Some(message) = self.position(receipt.serial).map(|at| &self.messages[at]) else {
            return Ok(());
        };
        let is_newest = receipt.is_newest_of(message);
        if self.fifo.is_some() && !(is_newest && message.stage(now) == Stage::Hidden) {
            return Err(Refusal::expired(handle));
        }
        if is_newest {
            let deleted = self
                .take_out(receipt.serial)
                .map(|message| Deleted::of(message.content, now));
            self.deleted.extend(deleted);
        }
        Ok(())
    }

    /// Hides a message for so long from now, or shows it at once.
    pub(super) fn hide(&mut self, handle: &str, seconds: i64, now: Instant) -> Result<(), Refusal> {
        let receipt = Receipt::read(&self.name, handle)?;
        let value = |reason| Refusal::value("VisibilityTimeout", &seconds.to_string(), reason);
        let hidden_max = self.quirks.hidden_max.unwrap_or(HIDDEN_MAX);
        let hidden = u64::try_from(seconds)
            .map(Duration::from_secs)
            .ok()
            .filter(|hidden| *hidden <= HIDDEN_MAX);
        let hidden = hidden.ok_or_else(|| value("Must be between 0 and 43200, if provided."))?;
        let found = self
            .position(receipt.serial)
            .map(|at| &mut self.messages[at]);
        let message = found
            .filter(|message| receipt.is_newest_of(message))
            .ok_or_else(|| {
                let reason =
                    "Message does not exist or is not available for visibility timeout change.";
                Refusal::value("ReceiptHandle", handle, reason)
            })?;
        if message.stage(now) != Stage::Hidden {
            return Err(Refusal::not_in_flight(handle));
        }
        if message
            .received_at
            .is_some_and(|received| now + hidden > received + hidden_max)
        {
            return Err(value(
                "Total VisibilityTimeout for the message is beyond the limit [43200 seconds].",
            ));
        }
        message.visible_at = now + hidden;
        Ok(())
    }

    /// Shows again what is hidden, as if its time were over.
    pub(super) fn show_hidden(&mut self, now: Instant) {
        self.show(now, |_| true);
    }

    /// Shows the message of a receipt again, by chance, and says that the receipt is worth nothing
    /// any more.
    pub(super) fn expire(
        &mut self,
        handle: &str,
        now: Instant,
        dice: &mut Dice,
    ) -> Result<(), Refusal> {
        if !dice.falls(self.quirks.expired) {
            return Ok(());
        }
        let receipt = Receipt::read(&self.name, handle)?;
        self.show(now, |message| receipt.is_newest_of(message));
        Err(Refusal::expired(handle))
    }

    fn show(&mut self, now: Instant, is_meant: impl Fn(&Stored) -> bool) {
        let hidden = self
            .messages
            .iter_mut()
            .filter(|message| message.stage(now) == Stage::Hidden);
        hidden
            .filter(|message| is_meant(message))
            .for_each(|message| message.visible_at = now);
    }

    /// Serial numbers rise with the position.
    fn position(&self, serial: u64) -> Option<usize> {
        self.messages
            .binary_search_by_key(&serial, |message| message.serial)
            .ok()
    }

    fn take_out(&mut self, serial: u64) -> Option<Stored> {
        let message = self.messages.remove(self.position(serial)?)?;
        self.received.remove(&(message.receives, serial));
        self.fifo.iter_mut().for_each(|fifo| fifo.remove(&message));
        Some(message)
    }
}

/// What becomes of a message that is sent.
#[derive(Debug)]
pub(super) enum Admission {
    /// It is taken; in a FIFO queue this is its place.
    New(Option<Place>),
    /// It repeats one that was accepted.
    Repeated(Accepted),
}

/// A moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) now: Instant,
    pub(super) wall_ms: u128,
}

#[cfg(test)]
mod tests {
    use super::super::message::Attributes;
    use super::*;

    fn content(dice: &mut Dice, body: String) -> Content {
        Content {
            id: dice.id(),
            body,
            attributes: Attributes::new(),
            place: None,
        }
    }

    /// Sends the letters to a queue and receives up to ten at the same moment.
    fn received(quirks: Quirks) -> String {
        let (mut queue, mut dice, now) = (Queue::new("orders"), Dice::new(1), Instant::now());
        queue.quirks = quirks;
        for letter in 'a'..='j' {
            let content = content(&mut dice, letter.to_string());
            queue.send(
                content,
                Moment { now, wall_ms: 0 },
                Duration::ZERO,
                &mut dice,
            );
        }
        let received = queue
            .receive(10, HIDDEN_MAX, Moment { now, wall_ms: 0 }, &mut dice)
            .unwrap();
        received
            .into_iter()
            .map(|received| received.message.content.body)
            .collect()
    }

    #[test]
    fn a_queue_without_quirks_gives_the_oldest_first() {
        assert_eq!(received(Quirks::default()), "abcdefghij");
    }

    #[test]
    fn a_queue_that_reorders_gives_some_in_another_order() {
        let letters = received(Quirks {
            reorder: true,
            ..Quirks::default()
        });
        assert!(
            !letters.is_empty() && !letters.chars().collect::<Vec<_>>().is_sorted(),
            "{letters}"
        );
    }

    #[test]
    fn a_message_that_comes_late_is_not_there_yet() {
        let late = Quirks {
            delayed: 0.5,
            delay_max: Duration::from_secs(60),
            ..Quirks::default()
        };
        let letters = received(late);
        assert!((1..10).contains(&letters.len()), "{letters}");
    }

    #[test]
    fn a_receipt_that_expired_is_refused_and_its_message_shown_again() {
        let (mut queue, mut dice, now) = (Queue::new("orders"), Dice::new(1), Instant::now());
        queue.quirks = Quirks {
            expired: 1.0,
            ..Quirks::default()
        };
        let content = content(&mut dice, String::new());
        queue.send(
            content,
            Moment { now, wall_ms: 0 },
            Duration::ZERO,
            &mut dice,
        );
        let received = queue
            .receive(1, HIDDEN_MAX, Moment { now, wall_ms: 0 }, &mut dice)
            .unwrap();
        let refusal = queue
            .expire(&received[0].receipt, now, &mut dice)
            .unwrap_err();
        assert!(refusal.message.contains("expired"));
        assert_eq!(queue.messages[0].stage(now), Stage::Visible);
        queue.quirks = Quirks::default();
        assert!(queue.expire(&received[0].receipt, now, &mut dice).is_ok());
    }
}
