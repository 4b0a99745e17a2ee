//! SQS: queues with visibility, redelivery and receipt handles.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::{Request, Response, header};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::net::{Answering, Serve};

mod dice;
mod fifo;
mod message;
mod operations;
mod queue;
mod queues;
mod quirks;
mod receipt;
mod refusal;
#[cfg(test)]
mod tests;

use dice::Dice;
use fifo::Habits;
use message::{Content, Sending};
use queue::{Admission, Moment, Queue, Received};
use queues::is_fifo;
use refusal::Refusal;

pub use message::Stage;
pub use queue::{Deleted, Settings};
pub use quirks::Quirks;

/// A fake SQS; a handle, cheap to clone.
#[derive(Debug, Clone)]
pub struct Fake {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    endpoint: String,
    clock: Clock,
    state: Mutex<State>,
    /// Tells polling clients that something may be there to receive.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    queues: BTreeMap<String, Queue>,
    dice: Dice,
}

/// How many messages a queue has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Those that can be received.
    pub visible: usize,
    /// Those that were received and not deleted.
    pub hidden: usize,
    /// Those that were not visible so far.
    pub delayed: usize,
}

/// A message as its queue holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its id; two copies of one message have the same.
    pub id: String,
    /// What was sent.
    pub body: String,
    /// The attributes of type `String` that its sender gave it.
    pub attributes: BTreeMap<String, String>,
    /// How often it was received.
    pub receives: u32,
    /// Where it stands.
    pub stage: Stage,
    /// Its `MessageGroupId`, in a FIFO queue.
    pub group: Option<String>,
    /// Its `MessageDeduplicationId`, in a FIFO queue.
    pub deduplication: Option<String>,
}

/// The account of all queues.
const ACCOUNT: &str = "000000000000";

impl Fake {
    /// Makes a fake without queues whose URLs begin with `endpoint`; the seed decides on chances.
    pub fn new(endpoint: &str, clock: Clock, seed: u64) -> Self {
        let state = State {
            queues: BTreeMap::new(),
            dice: Dice::new(seed),
        };
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let (state, changed) = (Mutex::new(state), Notify::new());
        Self {
            shared: Arc::new(Shared {
                endpoint,
                clock,
                state,
                changed,
            }),
        }
    }

    /// Makes a queue, unless it is there; returns its URL.
    pub fn create(&self, name: &str) -> String {
        assert!(!is_fifo(name), "{name}: only FIFO queues have such a name");
        self.ensure(name, || Queue::new(name))
    }

    /// Makes a FIFO queue, unless it is there; returns its URL.
    pub fn create_fifo(&self, name: &str) -> String {
        assert!(is_fifo(name), "{name}: a FIFO queue's name ends in .fifo");
        self.ensure(name, || Queue::fifo(name, Habits::default()))
    }

    fn ensure(&self, name: &str, new: impl FnOnce() -> Queue) -> String {
        let mut state = self.shared.state.lock().unwrap();
        state.queues.entry(name.to_owned()).or_insert_with(new);
        self.url(name)
    }

    /// Returns the URL of a queue.
    pub fn url(&self, name: &str) -> String {
        format!("{}/{ACCOUNT}/{name}", self.shared.endpoint)
    }

    /// Sets how a queue works from now on.
    pub fn settings(&self, queue: &str, settings: Settings) {
        self.known(queue, |queue| queue.settings = settings);
    }

    /// Sets how a queue misbehaves from now on.
    pub fn quirks(&self, queue: &str, quirks: Quirks) {
        self.known(queue, |queue| queue.quirks = quirks);
    }

    /// Sends a message; returns its id.
    pub fn send(&self, queue: &str, body: impl Into<String>, delay: Duration) -> String {
        let sent = self.put(
            queue,
            Sending {
                body: body.into(),
                delay,
                ..Sending::default()
            },
        );
        sent.unwrap_or_else(|refusal| panic!("{queue}: {}", refusal.message))
            .0
    }

    /// Sends a message of a group to a FIFO queue; returns its id, or that of the one it repeats.
    pub fn send_fifo(
        &self,
        queue: &str,
        group: &str,
        deduplication: &str,
        body: impl Into<String>,
    ) -> String {
        let (group, deduplication) = (Some(group.to_owned()), Some(deduplication.to_owned()));
        let sent = self.put(
            queue,
            Sending {
                body: body.into(),
                group,
                deduplication,
                ..Sending::default()
            },
        );
        sent.unwrap_or_else(|refusal| panic!("{queue}: {}", refusal.message))
            .0
    }

    /// Counts a queue's messages.
    pub fn depth(&self, queue: &str) -> Depth {
        let now = Instant::now();
        let mut depth = Depth::default();
        self.known(queue, |queue| {
            for message in &queue.messages {
                match message.stage(now) {
                    Stage::Visible => depth.visible += 1,
                    Stage::Hidden => depth.hidden += 1,
                    Stage::Delayed => depth.delayed += 1,
                }
            }
        });
        depth
    }

    /// Returns a queue's messages in the order in which they were sent.
    pub fn messages(&self, queue: &str) -> Vec<Message> {
        let now = Instant::now();
        self.known(queue, |queue| {
            queue
                .messages
                .iter()
                .map(|stored| Message::of(stored, now))
                .collect()
        })
    }

    /// Returns a queue's messages that were deleted, in that order.
    pub fn deleted(&self, queue: &str) -> Vec<Deleted> {
        self.known(queue, |queue| queue.deleted.clone())
    }

    /// Returns what was said to those whose request for a queue, or an entry of it, was refused.
    pub fn refused(&self, queue: &str) -> Vec<String> {
        self.known(queue, |queue| queue.refused.clone())
    }

    /// Shows again what is hidden, as if its visibility had run out, so that two hold one message.
    pub fn redeliver_hidden(&self, queue: &str) {
        self.known(queue, |queue| queue.show_hidden(Instant::now()));
        self.shared.changed.notify_waiters();
    }

    /// Answers a request of the JSON protocol.
    pub async fn call(&self, request: Request<Bytes>) -> Response<Bytes> {
        let target = request
            .headers()
            .get("x-amz-target")
            .and_then(|target| target.to_str().ok());
        match self
            .perform(target.unwrap_or_default(), request.body())
            .await
        {
            Ok(answer) => {
                self.shared.changed.notify_waiters();
                let response =
                    Response::builder().header(header::CONTENT_TYPE, "application/x-amz-json-1.0");
                response.body(Bytes::from(answer.to_string())).unwrap()
            }
            Err(refusal) => refusal.response(),
        }
    }

    /// Sends a message; returns its id, or that of the one it repeats, and in a FIFO queue its
    /// sequence number.
    fn put(&self, queue: &str, sending: Sending) -> Result<(String, Option<u64>), Refusal> {
        let moment = self.moment();
        let mut state = self.shared.state.lock().unwrap();
        let State { queues, dice } = &mut *state;
        let found = queues.get_mut(queue).ok_or_else(|| Refusal::queue(queue))?;
        let place = match found.admit(&sending, moment.now)? {
            Admission::New(place) => place,
            Admission::Repeated(first) => return Ok((first.id, Some(first.place.sequence))),
        };
        let (id, sequence) = (dice.id(), place.as_ref().map(|place| place.sequence));
        let content = Content {
            id: id.clone(),
            body: sending.body,
            attributes: sending.attributes,
            place,
        };
        found.send(content, moment, sending.delay, dice);
        drop(state);
        self.shared.changed.notify_waiters();
        Ok((id, sequence))
    }

    /// Receives at once; what was received too often goes to the dead-letter queue instead.
    fn receive(
        &self,
        queue: &str,
        count_max: usize,
        hidden: Option<Duration>,
    ) -> Result<Vec<Received>, Refusal> {
        let moment = self.moment();
        let State { queues, dice } = &mut *self.shared.state.lock().unwrap();
        let found = queues.get_mut(queue).ok_or_else(|| Refusal::queue(queue))?;
        let spent = found.give_up(moment.now);
        let hidden = hidden.unwrap_or(found.settings.visibility);
        let received = found.receive(count_max, hidden, moment, dice);
        let target = found
            .settings
            .redrive
            .as_ref()
            .map(|(target, _)| target.clone());
        if let Some(dead) = target.and_then(|target| queues.get_mut(&target)) {
            spent
                .into_iter()
                .for_each(|content| dead.send(content, moment, Duration::ZERO, dice));
            self.shared.changed.notify_waiters();
        }
        received
    }

    /// Says by chance that an entry of a batch fails.
    fn fails(&self, queue: &str) -> Result<bool, Refusal> {
        let State { queues, dice } = &mut *self.shared.state.lock().unwrap();
        let found = queues.get(queue).ok_or_else(|| Refusal::queue(queue))?;
        Ok(dice.falls(found.quirks.batch_failures))
    }

    /// Says by chance that a receipt has expired.
    fn expire(&self, queue: &str, handle: &str) -> Result<(), Refusal> {
        let State { queues, dice } = &mut *self.shared.state.lock().unwrap();
        let found = queues.get_mut(queue).ok_or_else(|| Refusal::queue(queue))?;
        found.expire(handle, Instant::now(), dice)
    }

    fn queue<T>(&self, name: &str, act: impl FnOnce(&mut Queue) -> T) -> Result<T, Refusal> {
        let mut state = self.shared.state.lock().unwrap();
        state
            .queues
            .get_mut(name)
            .map(act)
            .ok_or_else(|| Refusal::queue(name))
    }

    fn known<T>(&self, name: &str, act: impl FnOnce(&mut Queue) -> T) -> T {
        self.queue(name, act)
            .unwrap_or_else(|_| panic!("no queue {name}"))
    }

    fn moment(&self) -> Moment {
        let wall = self
            .shared
            .clock
            .now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Moment {
            now: Instant::now(),
            wall_ms: wall.as_millis(),
        }
    }
}

impl Serve for Fake {
    fn serve(&self, request: Request<Bytes>, _client: &str) -> Answering {
        let fake = self.clone();
        Box::pin(async move { fake.call(request).await })
    }
}

impl Message {
    fn of(stored: &message::Stored, now: Instant) -> Self {
        let given = stored.content.attributes.iter();
        let attributes =
            given.filter_map(|(name, value)| Some((name.clone(), value.string_value.clone()?)));
        Self {
            id: stored.content.id.clone(),
            body: stored.content.body.clone(),
            attributes: attributes.collect(),
            receives: stored.receives,
            stage: stored.stage(now),
            group: stored
                .content
                .place
                .as_ref()
                .map(|place| place.group.clone()),
            deduplication: stored
                .content
                .place
                .as_ref()
                .map(|place| place.deduplication.clone()),
        }
    }
}
