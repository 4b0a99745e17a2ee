//! What makes a queue a FIFO one: groups, of which nothing passes a message that is in flight, and
//! the memory of what was accepted lately, so that it is not delivered again.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::dice::Dice;
use super::message::{Sending, Stage, Stored, hex};
use super::refusal::Refusal;

/// The groups of a FIFO queue, and what it remembers.
#[derive(Debug, Default)]
pub(super) struct Fifo {
    pub(super) habits: Habits,
    /// The serial numbers of each group's messages.
    groups: HashMap<String, BTreeSet<u64>>,
    accepted: HashMap<Key, Accepted>,
    /// When each was accepted, oldest first.
    times: VecDeque<(Instant, Key)>,
    sequence: u64,
}

/// What a FIFO queue was made to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Habits {
    /// A message without a `MessageDeduplicationId` has the SHA-256 of its body as one.
    pub(super) content_based: bool,
    /// Messages of two groups do not repeat each other, whatever their ids.
    pub(super) per_group: bool,
}

/// Where a message belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) group: String,
    pub(super) deduplication: String,
    pub(super) sequence: u64,
}

/// A message that was accepted: later ones may repeat it.
#[derive(Debug, Clone)]
pub(super) struct Accepted {
    /// The message's id.
    pub(super) id: String,
    pub(super) place: Place,
}

/// A group, where that counts, and a `MessageDeduplicationId`.
type Key = (Option<String>, String);

/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/FIFO-queues-exactly-once-processing.html>
const REPEATS_FOR: Duration = Duration::from_secs(300);
/// So many messages are looked through for groups of which something can be handed out:
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/avoid-backlog-with-the-same-message-group-id.html>
const LOOKED_THROUGH: usize = 120_000;
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html>
const ID_MAX: usize = 128;

impl Fifo {
    pub(super) fn new(habits: Habits) -> Self {
        Self {
            habits,
            ..Self::default()
        }
    }

    /// Says what a message lacks, or has too much, for a FIFO queue.
    pub(super) fn check(&self, sending: &Sending) -> Result<(), Refusal> {
        let (group, deduplication) = (sending.group.as_deref(), sending.deduplication.as_deref());
        if !sending.delay.is_zero() {
            return Err(Refusal::not_of_type(
                "DelaySeconds",
                &sending.delay.as_secs().to_string(),
            ));
        }
        self.check_ids(group, deduplication)?;
        for (parameter, id) in [
            ("MessageGroupId", group),
            ("MessageDeduplicationId", deduplication),
        ] {
            if let Some(id) = id.filter(|id| !is_id(id)) {
                let reason = "it has 1 to 128 letters, digits and punctuation characters";
                return Err(Refusal::value(parameter, id, reason));
            }
        }
        Ok(())
    }

    /// Says that an id is missing.
    pub(super) fn check_ids(
        &self,
        group: Option<&str>,
        deduplication: Option<&str>,
    ) -> Result<(), Refusal> {
        match (group, deduplication) {
            (None, _) => Err(Refusal::missing("MessageGroupId")),
            (Some(_), None) if !self.habits.content_based => Err(Refusal::no_deduplication()),
            _ => Ok(()),
        }
    }

    /// Gives a message its place, or returns the one that it repeats.
    pub(super) fn accept(&mut self, sending: &Sending, now: Instant) -> Result<Place, Accepted> {
        self.forget(now);
        let group = sending.group.clone().unwrap_or_default();
        let deduplication = sending
            .deduplication
            .clone()
            .unwrap_or_else(|| hex(Sha256::digest(&sending.body)));
        if let Some(first) = self.accepted.get(&self.key(&group, &deduplication)) {
            return Err(first.clone());
        }
        self.sequence += 1;
        Ok(Place {
            group,
            deduplication,
            sequence: self.sequence,
        })
    }

    /// Remembers what was accepted.
    pub(super) fn remember(&mut self, id: &str, place: &Place, now: Instant) {
        let key = self.key(&place.group, &place.deduplication);
        self.accepted.insert(
            key.clone(),
            Accepted {
                id: id.to_owned(),
                place: place.clone(),
            },
        );
        self.times.push_back((now, key));
    }

    fn forget(&mut self, now: Instant) {
        while let Some((_, key)) = self
            .times
            .pop_front_if(|(accepted, _)| *accepted + REPEATS_FOR <= now)
        {
            self.accepted.remove(&key);
        }
    }

    fn key(&self, group: &str, deduplication: &str) -> Key {
        (
            self.habits.per_group.then(|| group.to_owned()),
            deduplication.to_owned(),
        )
    }

    /// Puts a message at the end of its group.
    pub(super) fn add(&mut self, message: &Stored) {
        if let Some(place) = &message.content.place {
            self.groups
                .entry(place.group.clone())
                .or_default()
                .insert(message.serial);
        }
    }

    /// Takes a message out of its group.
    pub(super) fn remove(&mut self, message: &Stored) {
        let Some(place) = &message.content.place else {
            return;
        };
        let Some(group) = self.groups.get_mut(&place.group) else {
            return;
        };
        group.remove(&message.serial);
        if group.is_empty() {
            self.groups.remove(&place.group);
        }
    }

    /// Returns the positions of what can be handed out: as many of one group as there are, then
    /// those of the next. Which group comes first is no promise, so with dice it is left to them.
    pub(super) fn choose(
        &self,
        messages: &VecDeque<Stored>,
        count_max: usize,
        now: Instant,
        dice: Option<&mut Dice>,
    ) -> Vec<usize> {
        let mut seen = HashSet::new();
        let places = messages
            .iter()
            .take(LOOKED_THROUGH)
            .filter_map(|message| message.content.place.as_ref());
        let new = places
            .map(|place| place.group.as_str())
            .filter(|group| seen.insert(*group));
        let positions = |group| self.ready(group, messages, now);
        match dice {
            None => new.flat_map(positions).take(count_max).collect(),
            Some(dice) => {
                let mut groups: Vec<&str> = new.collect();
                dice.shuffle(&mut groups);
                groups
                    .into_iter()
                    .flat_map(positions)
                    .take(count_max)
                    .collect()
            }
        }
    }

    /// Returns the positions of a group's messages up to the first that is not visible. So one in
    /// flight holds back all that was sent after it; what was sent before it and shows again comes
    /// all the same, as it does on AWS:
    /// <https://github.com/localstack/localstack/blob/master/tests/aws/services/sqs/test_sqs.py>
    fn ready(
        &self,
        group: &str,
        messages: &VecDeque<Stored>,
        now: Instant,
    ) -> impl Iterator<Item = usize> {
        let serials = self.groups.get(group).into_iter().flatten();
        let at = serials.filter_map(|serial| {
            messages
                .binary_search_by_key(serial, |message| message.serial)
                .ok()
        });
        at.take_while(move |at| messages[*at].stage(now) == Stage::Visible)
    }
}

fn is_id(text: &str) -> bool {
    let may_be =
        |character: char| character.is_ascii_alphanumeric() || character.is_ascii_punctuation();
    (1..=ID_MAX).contains(&text.len()) && text.chars().all(may_be)
}
