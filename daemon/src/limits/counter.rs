//! A limiter that serves in the order of arrival.

use std::num::NonZeroU32;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// So much a second, of which a part may go at once.
#[derive(Debug)]
pub(super) struct Counter {
    limiter: RateLimiter<NotKeyed, InMemoryState, RuntimeClock, NoOpMiddleware<std::time::Instant>>,
    turn: Mutex<()>,
}

/// The runtime's clock, by which everything else here waits too.
#[derive(Debug, Clone, Default)]
struct RuntimeClock;

impl Clock for RuntimeClock {
    type Instant = std::time::Instant;

    fn now(&self) -> Self::Instant {
        Instant::now().into_std()
    }
}

impl Counter {
    pub(super) fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        let quota = Quota::per_second(per_second).allow_burst(burst);
        let limiter = RateLimiter::direct_with_clock(quota, RuntimeClock);
        Self {
            limiter,
            turn: Mutex::default(),
        }
    }

    /// Takes so many, what may go at once at most, once they are there and the turn has come.
    /// Returns false, and takes nothing, when this limit no longer holds.
    pub(super) async fn take(&self, wanted: NonZeroU32, is_current: impl Fn() -> bool) -> bool {
        let _turn = self.turn.lock().await;
        while is_current() {
            let Ok(Err(early)) = self.limiter.check_n(wanted) else {
                return true;
            };
            tokio::time::sleep(early.wait_time_from(RuntimeClock.now())).await;
        }
        false
    }
}
