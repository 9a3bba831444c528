//! Connections that have said their token and wait for the process that they belong to, and the other way round.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nacre_protocol::stream::{HELLO_LEN, MAX_UNCLAIMED, Token, UNCLAIMED_TIMEOUT_S};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::fd::AsyncStream;

/// A stream that did not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// No connection with this token within [`UNCLAIMED_TIMEOUT_S`].
    #[error("no stream connection came for {0} within {UNCLAIMED_TIMEOUT_S} s")]
    TimedOut(&'static str),
    /// Another process waits for the same token.
    #[error("the stream token for {0} is in use")]
    Taken(&'static str),
}

/// Where connections and processes meet, by token.
#[derive(Debug)]
pub struct Unclaimed {
    meetings: Mutex<HashMap<Token, Meeting>>,
    places: Arc<Semaphore>,
    patience: Duration,
}

#[derive(Debug)]
enum Meeting {
    /// A connection is there.
    Arrived(AsyncStream),
    /// A process waits.
    Wanted(oneshot::Sender<AsyncStream>),
}

impl Default for Unclaimed {
    fn default() -> Self {
        Self::with_patience(Duration::from_secs(UNCLAIMED_TIMEOUT_S))
    }
}

impl Unclaimed {
    /// As [`default`](Self::default), with another timeout.
    pub fn with_patience(patience: Duration) -> Self {
        Self { meetings: Mutex::default(), places: Arc::new(Semaphore::new(MAX_UNCLAIMED)), patience }
    }

    /// Takes a new connection. It is closed where [`MAX_UNCLAIMED`] others wait, where it says no proper hello, or
    /// where nobody claims it in time.
    pub fn admit(self: &Arc<Self>, connection: OwnedFd) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            tracing::warn!("stream connection refused: too many are unclaimed");
            return;
        };
        let unclaimed = Arc::clone(self);
        tokio::spawn(async move {
            unclaimed.meet(connection).await;
            drop(place);
        });
    }

    async fn meet(&self, connection: OwnedFd) {
        let deadline = Instant::now() + self.patience;
        let Ok(connection) = AsyncStream::new(connection) else { return };
        let Ok(Some(token)) = timeout_at(deadline, read_hello(&connection)).await else {
            tracing::warn!("stream connection without a hello closed");
            return;
        };
        if self.hand_over(token, connection) {
            sleep_until(deadline).await;
            self.forget_arrived(token);
        }
    }

    /// Gives the connection to its process, or stores it: true where it was stored.
    ///
    /// A second connection with the token of a stored one is dropped: the first keeps its place.
    fn hand_over(&self, token: Token, connection: AsyncStream) -> bool {
        match self.lock().entry(token) {
            Entry::Vacant(entry) => {
                entry.insert(Meeting::Arrived(connection));
                true
            }
            Entry::Occupied(entry) if matches!(entry.get(), Meeting::Wanted(_)) => {
                if let Meeting::Wanted(process) = entry.remove() {
                    // A process that has given up since drops the connection.
                    let _ = process.send(connection);
                }
                false
            }
            Entry::Occupied(_) => false,
        }
    }

    /// Ends a wait without a claim. Tokens are random and used once, so a later connection of the same token that
    /// this might hit does not exist.
    fn forget_arrived(&self, token: Token) {
        if let Entry::Occupied(entry) = self.lock().entry(token)
            && matches!(entry.get(), Meeting::Arrived(_))
        {
            entry.remove();
        }
    }

    /// The connection with this token: at once where it has arrived, else as soon as it does.
    ///
    /// # Errors
    /// [`ClaimError`] where it does not come in time; `name` says which stream it is.
    pub async fn claim(&self, token: Token, name: &'static str) -> Result<AsyncStream, ClaimError> {
        let deadline = Instant::now() + self.patience;
        let arrival = match self.lock().entry(token) {
            Entry::Occupied(entry) => match entry.remove() {
                Meeting::Arrived(connection) => return Ok(connection),
                // Both are refused: whose the token is cannot be known.
                Meeting::Wanted(_) => return Err(ClaimError::Taken(name)),
            },
            Entry::Vacant(entry) => {
                let (process, arrival) = oneshot::channel();
                entry.insert(Meeting::Wanted(process));
                arrival
            }
        };
        let _forget = Forget { unclaimed: self, token };
        match timeout_at(deadline, arrival).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(_)) => Err(ClaimError::Taken(name)),
            Err(_) => Err(ClaimError::TimedOut(name)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Token, Meeting>> {
        // No code panics with the lock held.
        self.meetings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a process's entry out of the table when its claim ends, by whatever way.
struct Forget<'a> {
    unclaimed: &'a Unclaimed,
    token: Token,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Entry::Occupied(entry) = self.unclaimed.lock().entry(self.token)
            && matches!(entry.get(), Meeting::Wanted(_))
        {
            entry.remove();
        }
    }
}

async fn read_hello(connection: &AsyncStream) -> Option<Token> {
    let mut hello = [0; HELLO_LEN];
    let mut filled = 0;
    while let Some(rest @ [_, ..]) = hello.get_mut(filled..) {
        match connection.read(rest).await {
            Ok(length @ 1..) => filled += length,
            Ok(0) | Err(_) => return None,
        }
    }
    Token::from_hello(&hello).ok()
}
