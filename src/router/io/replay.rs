//! A request's body, passed on as it comes, of which the beginning is remembered as long as a second attempt may need it.
//!
//! Of a body that is too large to be remembered nothing goes to another agent before that has taken the call: whoever
//! refuses does so before megabytes travel, and the body is still whole for the next. Nor is a client that waits to be told
//! to go on told so before: our server tells it when the body is first asked for.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::{account::Received, stalls::Place};
use crate::router::{Pulse, headers::Expects};

/// A body of which more than this was passed on is not sent a second time. What goes beyond, or says so at its beginning,
/// is held back.
pub const REPLAY_BUFFER_BYTES: usize = 64 * 1024;

/// What may be read ahead of one body. Clients put a whole conversation, or an audio file (25 MB at most by OpenAI's own
/// limit), before the name of the model.
pub const MAX_AHEAD_BYTES: usize = 32 * 1024 * 1024;
/// What may be read ahead of all bodies together, not counting the first [`REPLAY_BUFFER_BYTES`] of each. Beyond it a
/// request waits until others have been passed on.
pub const ALL_AHEAD_BYTES: usize = 4 * MAX_AHEAD_BYTES;
/// Requests that may wait for that. Beyond, they are told to come back.
pub const MAX_WAITING_FOR_ROOM: usize = 64;

/// Room for what is read ahead of all bodies.
pub struct Room {
    bytes: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Room {
    /// All of it is free.
    pub fn new() -> Room {
        Room { bytes: Arc::new(Semaphore::new(ALL_AHEAD_BYTES)), waiting: Semaphore::new(MAX_WAITING_FOR_ROOM) }
    }

    /// All at once: who waits here holds nothing that another waits for.
    pub(super) async fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, NotRead> {
        let _place = self.waiting.try_acquire().map_err(|_| NotRead::NoRoom)?;
        // Never closed.
        self.bytes.clone().acquire_many_owned(bytes as u32).await.map_err(|_| NotRead::NoRoom)
    }
}

/// Why nothing more is read ahead of a body.
#[derive(Debug, thiserror::Error)]
pub enum NotRead {
    /// It broke off.
    #[error(transparent)]
    Broken(#[from] BodyBroken),
    /// Others take all the room, and enough wait for it.
    #[error("no room")]
    NoRoom,
}

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyBroken {
    /// The client went away, or sent what is no HTTP.
    #[error("the client's body broke off: {0}")]
    Client(#[from] hyper::Error),
    /// The request is over, or another attempt has taken its place.
    #[error("the attempt is over")]
    Over,
}

/// The body of one request, for several attempts, one at a time. Dropping it ends the attempt that is under way.
pub struct Replay(Option<Arc<Shared>>);

impl Replay {
    /// For `body`. A body that is empty from the beginning costs nothing and can be sent for ever.
    pub fn new(body: Incoming, expects: Expects) -> Replay {
        if body.is_end_stream() {
            return Replay(None);
        }
        let size = body.size_hint();
        let is_small = size.upper().is_some_and(|upper| upper <= REPLAY_BUFFER_BYTES as u64);
        let unasked_bytes = match expects {
            Expects::Continue => 0,
            Expects::Nothing if is_small => usize::MAX,
            Expects::Nothing if size.lower() > REPLAY_BUFFER_BYTES as u64 => 0,
            // Its length is not known.
            Expects::Nothing => REPLAY_BUFFER_BYTES,
        };
        let state = State {
            source: Some(body),
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            room: None,
            kept: Vec::new(),
            kept_bytes: 0,
            intact: true,
            attempt: 0,
            open_bytes: unasked_bytes,
            held_back: false,
            waiting: None,
            received: None,
            place: None,
        };
        Replay(Some(Arc::new(Shared { state: Mutex::new(state), unasked_bytes, holds_back: Notify::new() })))
    }

    /// The same; what comes from the client is counted in `received`.
    pub fn counting(self, received: Option<Received>) -> Replay {
        if let Some(shared) = &self.0 {
            lock(&shared.state).received = received;
        }
        self
    }

    /// From here on `place` is told when the client is waited for.
    pub fn tell(&self, place: &Arc<Place>) {
        if let Some(shared) = &self.0 {
            lock(&shared.state).place = Some(place.clone());
        }
    }

    /// The body for the next attempt, from its beginning. The one before it ends.
    pub fn attempt(&self) -> AttemptBody {
        self.attempt_open(|_| usize::MAX)
    }

    /// The same, of which only what fits the buffer passes before [`Replay::open`]; nothing if it is known not to fit.
    pub fn attempt_held_back(&self) -> AttemptBody {
        self.attempt_open(|shared| shared.unasked_bytes)
    }

    /// Waits until the attempt that is under way has more to pass than it may.
    pub async fn held_back(&self) {
        let Some(shared) = &self.0 else { return std::future::pending().await };
        loop {
            // One that is told before this waits is remembered.
            if lock(&shared.state).held_back {
                return;
            }
            shared.holds_back.notified().await;
        }
    }

    /// Lets the attempt that is under way pass the rest.
    pub fn open(&self) {
        let Some(shared) = &self.0 else { return };
        let mut state = lock(&shared.state);
        state.open_bytes = usize::MAX;
        state.held_back = false;
        if let Some(waiting) = state.waiting.take() {
            waiting.wake();
        }
    }

    /// Whether another attempt would get all of the body.
    pub fn is_intact(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| lock(&shared.state).intact)
    }

    /// Whether there is a body of which nothing was passed on: then no attempt can have been executed.
    pub fn is_untouched(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| {
            let state = lock(&shared.state);
            state.intact && state.kept.is_empty() && !state.is_over()
        })
    }

    /// Whether all of it was passed on.
    pub fn is_passed_on(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| {
            let state = lock(&shared.state);
            state.ahead.is_empty() && state.source.as_ref().is_none_or(Body::is_end_stream)
        })
    }

    /// Shows what comes to `look` until that has seen enough, before the first attempt. All of it is passed on
    /// afterwards, as if it came only then. `None` if the body ended, or goes on beyond `most` bytes. What goes beyond
    /// [`REPLAY_BUFFER_BYTES`] takes room.
    pub async fn peek<T>(
        &self,
        most: usize,
        room: &Room,
        mut look: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, NotRead> {
        let Some(shared) = &self.0 else { return Ok(None) };
        loop {
            let Some(piece) = std::future::poll_fn(|context| lock(&shared.state).poll_ahead(context)).await? else {
                return Ok(None);
            };
            let seen = look(&piece);
            let wanted = {
                let mut state = lock(&shared.state);
                if seen.is_some() {
                    state.give_back_room();
                    return Ok(seen);
                }
                if state.ahead_bytes >= most {
                    return Ok(None);
                }
                (state.ahead_bytes > REPLAY_BUFFER_BYTES && state.room.is_none()).then(|| state.most_ahead())
            };
            if let Some(wanted) = wanted {
                let all = room.take(wanted).await?;
                lock(&shared.state).room = Some(all);
            }
        }
    }

    /// What was read ahead.
    pub fn ahead_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |shared| lock(&shared.state).ahead_bytes)
    }

    fn attempt_open(&self, open_bytes: impl FnOnce(&Shared) -> usize) -> AttemptBody {
        let Some(shared) = &self.0 else { return AttemptBody::empty() };
        let mut state = lock(&shared.state);
        state.attempt += 1;
        state.open_bytes = open_bytes(shared);
        state.held_back = false;
        if let Some(waiting) = state.waiting.take() {
            waiting.wake();
        }
        AttemptBody { shared: Some(shared.clone()), attempt: state.attempt, next: 0, passed_bytes: 0 }
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            let mut state = lock(&shared.state);
            state.attempt = OVER;
            state.source = None;
            state.ahead.clear();
            state.room = None;
            if let Some(waiting) = state.waiting.take() {
                waiting.wake();
            }
        }
    }
}

/// No attempt has this number.
const OVER: u64 = u64::MAX;

struct Shared {
    state: Mutex<State>,
    /// What passes before the worker has taken the call.
    unasked_bytes: usize,
    /// Told when an attempt is held back.
    holds_back: Notify,
}

struct State {
    /// None after its end.
    source: Option<Incoming>,
    /// What has come and was not passed on.
    ahead: VecDeque<Frame<Bytes>>,
    ahead_bytes: usize,
    /// Our share of [`ALL_AHEAD_BYTES`], while something is ahead.
    room: Option<OwnedSemaphorePermit>,
    /// What was passed on, if all of it fits.
    kept: Vec<Bytes>,
    kept_bytes: usize,
    intact: bool,
    attempt: u64,
    /// What the attempt under way may pass.
    open_bytes: usize,
    held_back: bool,
    waiting: Option<Waker>,
    received: Option<Received>,
    /// What the client has at a service of this node: told when the body is waited for, and when it comes.
    place: Option<Arc<Place>>,
}

impl State {
    /// Whether all of it was passed on.
    fn is_over(&self) -> bool {
        self.source.is_none() && self.ahead.is_empty()
    }

    fn poll_ahead(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodyBroken>> {
        let Some(source) = &mut self.source else { return Poll::Ready(Ok(None)) };
        Poll::Ready(match ready!(Pin::new(source).poll_frame(context)) {
            Some(Ok(frame)) => {
                let piece = frame.data_ref().cloned().unwrap_or_default();
                self.ahead_bytes += piece.len();
                self.ahead.push_back(frame);
                Ok(Some(piece))
            }
            Some(Err(error)) => {
                self.intact = false;
                Err(error.into())
            }
            None => {
                self.source = None;
                Ok(None)
            }
        })
    }

    /// What may come to be ahead, as far as the body says how long it is.
    fn most_ahead(&self) -> usize {
        let left = self.source.as_ref().map_or(Some(0), |source| source.size_hint().upper());
        let left = left.and_then(|left| usize::try_from(left).ok()).unwrap_or(MAX_AHEAD_BYTES);
        self.ahead_bytes.saturating_add(left).min(MAX_AHEAD_BYTES)
    }

    /// Nothing more will be read ahead.
    fn give_back_room(&mut self) {
        if let Some(room) = &mut self.room {
            drop(room.split(room.num_permits().saturating_sub(self.ahead_bytes)));
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyBroken>>> {
        if let Some(frame) = self.ahead.pop_front() {
            if self.ahead.is_empty() {
                self.room = None;
            }
            self.keep(&frame);
            return Poll::Ready(Some(Ok(frame)));
        }
        let Some(source) = &mut self.source else { return Poll::Ready(None) };
        let polled = Pin::new(source).poll_frame(context);
        if let Some(place) = &self.place {
            place.note(if polled.is_pending() { Pulse::on_body_awaited } else { Pulse::on_body });
        }
        match polled {
            Poll::Pending => {
                self.waiting = Some(context.waker().clone());
                Poll::Pending
            }
            Poll::Ready(None) => {
                self.source = None;
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                self.intact = false;
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.keep(&frame);
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        // Trailers are rare, and a body that has them has ended: not worth remembering.
        let data = frame.data_ref();
        if let (Some(received), Some(data)) = (&self.received, data) {
            received.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        self.kept_bytes = self.kept_bytes.saturating_add(data.map_or(usize::MAX, Bytes::len));
        self.intact &= self.kept_bytes <= REPLAY_BUFFER_BYTES;
        if let (true, Some(data)) = (self.intact, data) {
            self.kept.push(data.clone());
        } else {
            self.kept = Vec::new();
        }
    }
}

/// The body as one attempt sees it.
pub struct AttemptBody {
    /// None for an empty body.
    shared: Option<Arc<Shared>>,
    attempt: u64,
    /// Of the remembered pieces.
    next: usize,
    passed_bytes: usize,
}

impl AttemptBody {
    /// No body at all.
    pub fn empty() -> AttemptBody {
        AttemptBody { shared: None, attempt: 0, next: 0, passed_bytes: 0 }
    }
}

impl Body for AttemptBody {
    type Data = Bytes;
    type Error = BodyBroken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyBroken>>> {
        let this = &mut *self;
        let Some(shared) = &this.shared else { return Poll::Ready(None) };
        let mut state = lock(&shared.state);
        if state.attempt != this.attempt {
            return Poll::Ready(Some(Err(BodyBroken::Over)));
        }
        if this.passed_bytes >= state.open_bytes && !state.is_over() {
            state.held_back = true;
            state.waiting = Some(context.waker().clone());
            shared.holds_back.notify_one();
            return Poll::Pending;
        }
        if let Some(piece) = state.kept.get(this.next) {
            this.next += 1;
            this.passed_bytes += piece.len();
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        let polled = state.poll(context);
        this.next = state.kept.len();
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            this.passed_bytes += frame.data_ref().map_or(0, Bytes::len);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| {
            let state = lock(&shared.state);
            state.attempt == self.attempt
                && self.next >= state.kept.len()
                && state.ahead.is_empty()
                && state.source.as_ref().is_none_or(Body::is_end_stream)
        })
    }

    fn size_hint(&self) -> SizeHint {
        let Some(shared) = &self.shared else { return SizeHint::with_exact(0) };
        let state = lock(&shared.state);
        let ahead = state.ahead.iter().filter_map(Frame::data_ref);
        let again: u64 = state.kept.iter().skip(self.next).chain(ahead).map(|piece| piece.len() as u64).sum();
        let source = state.source.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint);
        let mut hint = SizeHint::new();
        if let Some(upper) = source.upper() {
            hint.set_upper(upper + again);
        }
        hint.set_lower(source.lower() + again);
        hint
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
