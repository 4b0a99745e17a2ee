//! The credentials that sign, for our requests and the SDK's: fetched once, and kept until shortly
//! before they end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_smithy_runtime_api::box_error::BoxError;
use replicator_core::object::Timestamp;
use tokio::time::Instant;

use crate::clock;

/// One account's credentials.
#[derive(Debug)]
pub(crate) struct Keeper {
    provider: SharedCredentialsProvider,
    kept: Mutex<Option<Kept>>,
    /// The task that finds the credentials at their end fetches new ones; the other tasks wait, and
    /// share a refusal.
    last: tokio::sync::Mutex<Option<Fetch>>,
}

#[derive(Debug, Clone)]
struct Kept {
    credentials: Credentials,
    /// From when on new ones are fetched; these are good for another while.
    renewed_from: Option<SystemTime>,
}

/// How the last fetch went.
#[derive(Debug)]
struct Fetch {
    at: Instant,
    refusal: Option<Arc<CredentialsError>>,
}

// New credentials take a moment to come, and a request signed with the old ones a moment to arrive.
const RENEWED_BEFORE_END: Duration = Duration::from_secs(60);

// Of credentials that are good for a few minutes or less, so much of their time is for that.
const RENEWED_IN_LAST: u32 = 4;

// Whatever they and the service say: the provider gets no more requests than that.
const FETCHED_EVERY: Duration = Duration::from_secs(1);

impl Keeper {
    pub(crate) fn new(provider: SharedCredentialsProvider) -> Self {
        Self {
            provider,
            kept: Mutex::default(),
            last: tokio::sync::Mutex::default(),
        }
    }

    /// Returns credentials that are good at this time, by the clock of the service that is to
    /// accept them.
    pub(super) async fn credentials(
        &self,
        now: Timestamp,
    ) -> Result<Credentials, Arc<CredentialsError>> {
        let (now, asked) = (SystemTime::from(now), Instant::now());
        if let Some(fresh) = self.fresh(now) {
            return Ok(fresh);
        }
        let mut last = self.last.lock().await;
        if let Some(fresh) = self.fresh(now) {
            return Ok(fresh);
        }
        if let Some(last) = last
            .as_ref()
            .filter(|last| last.at > asked || last.at.elapsed() < FETCHED_EVERY)
        {
            match (&last.refusal, self.newest()) {
                (Some(refusal), newest) => {
                    return unless_over(newest, now).ok_or_else(|| Arc::clone(refusal));
                }
                // They ended before they came, by our clock; the service's may be another.
                (None, Some(newest)) => return Ok(newest),
                (None, None) => tokio::time::sleep_until(last.at + FETCHED_EVERY).await,
            }
        }
        let fetched = self.provider.provide_credentials().await.map_err(Arc::new);
        *last = Some(Fetch {
            at: Instant::now(),
            refusal: fetched.as_ref().err().cloned(),
        });
        match fetched {
            Ok(credentials) => {
                let renewed_from = credentials.expiry().map(|end| renewed_from(end, now));
                *self.kept() = Some(Kept {
                    credentials: credentials.clone(),
                    renewed_from,
                });
                Ok(credentials)
            }
            Err(refusal) => unless_over(self.newest(), now).ok_or(refusal),
        }
    }

    /// Forgets credentials that a service refused; meanwhile there may be newer ones.
    pub(super) fn forget(&self, refused: &Credentials) {
        let id = |credentials: &Credentials| {
            (
                credentials.access_key_id().to_owned(),
                credentials.session_token().map(str::to_owned),
            )
        };
        self.kept()
            .take_if(|kept| id(&kept.credentials) == id(refused));
    }

    fn fresh(&self, now: SystemTime) -> Option<Credentials> {
        let kept = self.kept();
        let kept = kept
            .as_ref()
            .filter(|kept| kept.renewed_from.is_none_or(|from| now < from))?;
        Some(kept.credentials.clone())
    }

    fn newest(&self) -> Option<Credentials> {
        self.kept().as_ref().map(|kept| kept.credentials.clone())
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unless_over(credentials: Option<Credentials>, now: SystemTime) -> Option<Credentials> {
    credentials.filter(|credentials| credentials.expiry().is_none_or(|end| now < end))
}

fn renewed_from(end: SystemTime, now: SystemTime) -> SystemTime {
    let life = end.duration_since(now).unwrap_or_default();
    end - RENEWED_BEFORE_END.min(life / RENEWED_IN_LAST)
}

impl ProvideCredentials for Keeper {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            self.credentials(clock::now())
                .await
                .map_err(|refusal| CredentialsError::provider_error(BoxError::from(refusal)))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Gives after a second what lives so long, or refuses, and counts how often it was asked.
    #[derive(Debug, Clone, Default)]
    struct Giver {
        life: Option<Duration>,
        asked: Arc<AtomicU32>,
    }

    impl ProvideCredentials for Giver {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let number = self.asked.fetch_add(1, Ordering::Relaxed);
            future::ProvideCredentials::new(async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let life = self
                    .life
                    .ok_or_else(|| CredentialsError::provider_error("refused"))?;
                let end = Some(SystemTime::from(clock::now()) + life);
                Ok(Credentials::new(
                    format!("AKID{number}"),
                    "secret",
                    None,
                    end,
                    "test",
                ))
            })
        }
    }

    impl Giver {
        fn new(life: Option<Duration>) -> (Self, Keeper) {
            clock::simulate(Timestamp::UNIX_EPOCH);
            let giver = Self {
                life,
                ..Self::default()
            };
            (
                giver.clone(),
                Keeper::new(SharedCredentialsProvider::new(giver)),
            )
        }

        fn asked(&self) -> u32 {
            self.asked.load(Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_credentials_shares_the_refusal() {
        let (giver, keeper) = Giver::new(None);
        let all =
            futures::future::join_all((0..100).map(|_| keeper.credentials(clock::now()))).await;
        assert!(all.iter().all(Result::is_err));
        assert_eq!(giver.asked(), 1);
        tokio::time::advance(FETCHED_EVERY).await;
        assert!(keeper.credentials(clock::now()).await.is_err());
        assert_eq!(giver.asked(), 2, "who comes later asks anew");
    }

    /// Sends ten requests a second with credentials that live so long, and returns how often those
    /// were fetched.
    async fn fetches(life: u64, seconds: u64) -> u32 {
        let (giver, keeper) = Giver::new(Some(Duration::from_secs(life)));
        for _request in 0..seconds * 10 {
            let credentials = keeper.credentials(clock::now()).await.unwrap();
            let is_good = credentials.expiry().unwrap() > SystemTime::from(clock::now());
            assert!(is_good || life < 3, "{life}");
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        giver.asked()
    }

    #[tokio::test(start_paused = true)]
    async fn short_lives_are_used_and_not_fetched_for_each_request() {
        for (life, seconds, most) in [
            (3600, 3500, 1),
            (60, 600, 14),
            (30, 300, 14),
            (4, 40, 16),
            (1, 60, 62),
            (0, 60, 62),
        ] {
            let fetches = fetches(life, seconds).await;
            assert!(fetches <= most, "{life}: {fetches}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_service_refused_is_fetched_anew_once_for_all() {
        let (giver, keeper) = Giver::new(Some(Duration::from_secs(3600)));
        let old = keeper.credentials(clock::now()).await.unwrap();
        for _refused in 0..100 {
            keeper.forget(&old);
            assert_eq!(
                keeper
                    .credentials(clock::now())
                    .await
                    .unwrap()
                    .access_key_id(),
                "AKID1"
            );
        }
        assert_eq!(giver.asked(), 2);
    }
}
