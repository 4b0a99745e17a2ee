//! What several tasks ask for is asked once. One read of an object serves several destinations: the
//! first task that needs a piece reads it, tasks that need it meanwhile wait for that read, and for
//! those yet to come it is kept as long as the memory is not needed. One list serves several keys: a
//! request that comes while others are being answered goes into the next batch with all that have
//! come by then, and a first one waits a moment for company.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use replicator_core::object::Key;
use replicator_core::plan::VersionRef;
use replicator_core::rule::BucketRef;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::clock::BootInstant;
use crate::limit::quotas::MemoryPermit;
use crate::metrics::Unproved;
use crate::s3::client::{Filled, ResponseHead};

/// Which readers read which object, and which of its pieces are here.
#[derive(Debug, Default)]
pub(crate) struct SingleFlight {
    state: Mutex<FlightState>,
}

/// One task's interest in an object, while it lasts.
#[derive(Debug)]
pub(crate) struct Subscriber {
    single_flight: Arc<SingleFlight>,
    object: Object,
    number: u64,
    turn: tokio::sync::Mutex<()>,
}

/// Some bytes of a version.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct RangeKey {
    pub(crate) version: VersionRef,
    /// For a part the source does not state the checksum of the whole: it is not the same as a
    /// small object, even if it has all its bytes.
    pub(crate) is_part: bool,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// A piece that was read, and what the source said of it; in memory that was paid for.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) head: ResponseHead,
    /// When it was requested.
    pub(crate) read: BootInstant,
    pub(crate) filled: Filled,
    /// Why nothing proves that it is the source's, if it was read whole. Parts are proved together.
    pub(crate) unproved: Option<Unproved>,
    #[expect(dead_code, reason = "held for its drop")]
    pub(crate) paid: MemoryPermit,
}

/// What a reader gets for its claim to a piece.
#[derive(Debug)]
pub(crate) enum RangeClaim<'a> {
    /// It is here.
    Have(Arc<Body>),
    /// It is this reader's to read.
    Lead(Leader<'a>),
}

/// The right to read a piece for other readers too. When it is dropped unfilled, one of the waiting
/// readers gets it.
#[derive(Debug)]
pub(crate) struct Leader<'a> {
    reader: &'a Subscriber,
    /// None if no other reader gets it.
    read: Option<(RangeKey, u64, DropGuard)>,
}

/// While one of these is held, nothing is kept for readers yet to come.
#[derive(Debug)]
pub(crate) struct MemoryPressure<'a>(&'a SingleFlight);

type Object = Arc<(BucketRef, Key)>;

// One may step aside, and another fail.
const WAITS_MAX: u32 = 2;

#[derive(Debug, Default)]
struct FlightState {
    /// Readers and reads are numbered in the order in which they began.
    next: u64,
    objects: HashMap<Object, ObjectReads>,
    /// Bodies that are kept for readers yet to come, by the number of the read.
    kept: BTreeMap<u64, Arc<Body>>,
    shortages: usize,
}

#[derive(Debug, Default)]
struct ObjectReads {
    readers: BTreeSet<u64>,
    reads: HashMap<RangeKey, SharedRead>,
}

#[derive(Debug)]
struct SharedRead {
    number: u64,
    stage: ReadStage,
    /// The readers that have not had it yet.
    awaited_by: BTreeSet<u64>,
}

#[derive(Debug)]
enum ReadStage {
    Coming(CancellationToken),
    Here(Weak<Body>),
}

impl SingleFlight {
    /// Enrols a task that is about to read an object. Pieces that were read before are not for it:
    /// its event may be of later changes to the tags.
    pub(crate) fn enrol(self: &Arc<Self>, source: &BucketRef, key: &Key) -> Subscriber {
        let object = Arc::new((source.clone(), key.clone()));
        let mut state = self.state.lock();
        let number = state.number();
        state
            .objects
            .entry(Arc::clone(&object))
            .or_default()
            .readers
            .insert(number);
        drop(state);
        Subscriber {
            single_flight: Arc::clone(self),
            object,
            number,
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Begins a time in which memory is short.
    pub(crate) fn begin_shortage(&self) -> MemoryPressure<'_> {
        self.state.lock().shortages += 1;
        MemoryPressure(self)
    }

    /// Drops the kept body whose turn would come last. Returns false when nothing is kept.
    pub(crate) fn drop_newest(&self) -> bool {
        self.state.lock().kept.pop_last().is_some()
    }
}

impl Drop for MemoryPressure<'_> {
    fn drop(&mut self) {
        self.0.state.lock().shortages -= 1;
    }
}

impl Subscriber {
    /// Claims a piece, and waits while another reader reads it. Not again and again for reads that
    /// fail: then each reads for itself.
    pub(crate) async fn claim_piece(&self, piece: &RangeKey) -> RangeClaim<'_> {
        for _ in 0..WAITS_MAX {
            match self.look_up_piece(piece) {
                Ok(claim) => return claim,
                Err(coming) => coming.cancelled().await,
            }
        }
        self.look_up_piece(piece)
            .unwrap_or_else(|_coming| self.claim_alone())
    }

    /// Says whether nothing else is about to read the object.
    pub(crate) fn is_alone(&self) -> bool {
        let state = self.single_flight.state.lock();
        state
            .objects
            .get(&self.object)
            .is_none_or(|shared| shared.readers.len() <= 1)
    }

    /// Waits until no other piece of this reader waits for the limits.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Records that this reader has had a piece.
    pub(crate) fn piece_had(&self, piece: &RangeKey) {
        self.single_flight
            .state
            .lock()
            .reader_had(&self.object, piece, self.number);
    }

    fn look_up_piece(&self, piece: &RangeKey) -> Result<RangeClaim<'_>, CancellationToken> {
        let mut state = self.single_flight.state.lock();
        let number = state.next;
        let Some(shared) = state.objects.get_mut(&self.object) else {
            return Ok(self.claim_alone());
        };
        match shared.reads.get(piece) {
            Some(read) if read.number < self.number => return Ok(self.claim_alone()),
            Some(read) => match &read.stage {
                ReadStage::Coming(token) => return Err(token.clone()),
                ReadStage::Here(body) => {
                    if let Some(body) = body.upgrade() {
                        return Ok(RangeClaim::Have(body));
                    }
                }
            },
            None => {}
        }
        let mut awaited_by = shared.readers.clone();
        awaited_by.remove(&self.number);
        if awaited_by.is_empty() {
            return Ok(self.claim_alone());
        }
        let coming = CancellationToken::new();
        shared.reads.insert(
            piece.clone(),
            SharedRead {
                number,
                stage: ReadStage::Coming(coming.clone()),
                awaited_by,
            },
        );
        state.number();
        Ok(RangeClaim::Lead(Leader {
            reader: self,
            read: Some((piece.clone(), number, coming.drop_guard())),
        }))
    }

    fn claim_alone(&self) -> RangeClaim<'_> {
        RangeClaim::Lead(Leader {
            reader: self,
            read: None,
        })
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.single_flight
            .state
            .lock()
            .reader_left(&self.object, self.number);
    }
}

impl Leader<'_> {
    /// Gives what was read to the readers that wait for it.
    pub(crate) fn share(mut self, body: Body) -> Arc<Body> {
        let body = Arc::new(body);
        if let Some((piece, number, _coming)) = self.read.take() {
            self.reader.single_flight.state.lock().arrived(
                &self.reader.object,
                &piece,
                number,
                &body,
            );
        }
        body
    }

    /// Reads on for this reader alone.
    pub(crate) fn step_aside(&mut self) {
        if let Some((piece, number, _coming)) = self.read.take() {
            self.reader
                .single_flight
                .state
                .lock()
                .forget_read(&self.reader.object, &piece, number);
        }
    }
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        self.step_aside();
    }
}

impl FlightState {
    fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    fn arrived(&mut self, object: &Object, piece: &RangeKey, number: u64, body: &Arc<Body>) {
        let is_short = self.shortages > 0;
        let Some(read) = self
            .read(object, piece)
            .filter(|read| read.number == number)
        else {
            return;
        };
        if read.awaited_by.is_empty() {
            return self.forget_read(object, piece, number);
        }
        read.stage = ReadStage::Here(Arc::downgrade(body));
        if !is_short {
            self.kept.insert(number, Arc::clone(body));
        }
    }

    fn reader_had(&mut self, object: &Object, piece: &RangeKey, reader: u64) {
        let Some(read) = self.read(object, piece) else {
            return;
        };
        read.awaited_by.remove(&reader);
        if read.awaited_by.is_empty() {
            let number = read.number;
            self.forget_read(object, piece, number);
        }
    }

    fn reader_left(&mut self, object: &Object, reader: u64) {
        let Some(shared) = self.objects.get_mut(object) else {
            return;
        };
        shared.readers.remove(&reader);
        let kept = &mut self.kept;
        shared.reads.retain(|_, read| {
            read.awaited_by.remove(&reader);
            let is_over = read.awaited_by.is_empty() && matches!(read.stage, ReadStage::Here(_));
            if is_over {
                kept.remove(&read.number);
            }
            !is_over
        });
        if shared.readers.is_empty() {
            self.objects.remove(object);
        }
    }

    /// Forgets a read, unless it is another one by now.
    fn forget_read(&mut self, object: &Object, piece: &RangeKey, number: u64) {
        if self
            .read(object, piece)
            .is_none_or(|read| read.number != number)
        {
            return;
        }
        self.kept.remove(&number);
        if let Some(shared) = self.objects.get_mut(object) {
            shared.reads.remove(piece);
        }
    }

    fn read(&mut self, object: &Object, piece: &RangeKey) -> Option<&mut SharedRead> {
        self.objects.get_mut(object)?.reads.get_mut(piece)
    }
}

/// For each bucket the tasks that wait for a list, which has an answer for each key.
#[derive(Debug)]
pub(crate) struct Batchers<A>(Mutex<HashMap<BucketRef, Arc<Batcher<Key, A>>>>);

/// The requests to one dependency.
#[derive(Debug)]
pub(crate) struct Batcher<Q, A>(Mutex<BatchState<Q, A>>);

#[derive(Debug)]
struct BatchState<Q, A> {
    waiting: Vec<(Q, oneshot::Sender<A>)>,
    under_way: usize,
    /// Answers on their way, which outlive the task that began them.
    running: JoinSet<()>,
}

// Tasks of one message, or of one batch of them, come within this.
const LINGER: Duration = Duration::from_millis(2);

// Far more than a daemon has at work in one bucket.
const BATCH_MAX: usize = 256;

// A slow one holds up few requests for long; with more, each would serve fewer.
const UNDER_WAY_MAX: usize = 2;

impl<A> Default for Batchers<A> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<A: Send + 'static> Batchers<A> {
    /// Returns the requests to a bucket.
    pub(crate) fn at(&self, place: &BucketRef) -> Arc<Batcher<Key, A>> {
        let mut all = self.0.lock();
        Arc::clone(all.entry(place.clone()).or_default())
    }
}

impl<Q, A> Default for Batcher<Q, A> {
    fn default() -> Self {
        Self(Mutex::new(BatchState {
            waiting: Vec::new(),
            under_way: 0,
            running: JoinSet::new(),
        }))
    }
}

impl<Q, A> BatchState<Q, A> {
    /// Adds a request; says whether one more batch is to begin.
    fn add(&mut self, request: Q, sender: oneshot::Sender<A>) -> bool {
        self.waiting.push((request, sender));
        while self.running.try_join_next().is_some() {}
        let begins = self.under_way < UNDER_WAY_MAX;
        self.under_way += usize::from(begins);
        begins
    }

    fn next_batch(&mut self) -> Option<(Vec<Q>, Vec<oneshot::Sender<A>>)> {
        if self.waiting.is_empty() {
            self.under_way -= 1;
            return None;
        }
        let together = self.waiting.len().min(BATCH_MAX);
        Some(self.waiting.drain(..together).unzip())
    }
}

impl<Q: Send + 'static, A: Send + 'static> Batcher<Q, A> {
    /// Makes a request, to be answered alone or together with others; `answer` gives one answer
    /// for each request, in their order. Returns none when it did not.
    pub(crate) async fn ask_together<F>(self: &Arc<Self>, request: Q, answer: F) -> Option<A>
    where
        F: Fn(Vec<Q>) -> BoxFuture<'static, Vec<A>> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        if self.0.lock().add(request, sender) {
            let batcher = Arc::clone(self);
            let answers = async move { batcher.answer_all(answer).await };
            self.0.lock().running.spawn(answers);
        }
        receiver.await.ok()
    }

    /// Answers until no request waits.
    async fn answer_all<F>(&self, answer: F)
    where
        F: Fn(Vec<Q>) -> BoxFuture<'static, Vec<A>> + Send,
    {
        tokio::time::sleep(LINGER).await;
        while let Some((requests, senders)) = { self.0.lock().next_batch() } {
            let answers = senders.into_iter().zip(answer(requests).await);
            // A cancelled task needs no answer.
            answers.for_each(|(sender, answer)| drop(sender.send(answer)));
            tokio::time::sleep(LINGER).await;
        }
    }
}

#[cfg(test)]
mod tests;
