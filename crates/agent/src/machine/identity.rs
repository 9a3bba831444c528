//! What makes this guest another than the next: host name, time, random numbers.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::time::{ClockId, Timespec, clock_settime};

use crate::sys;

/// Longest host name that Linux takes (`__NEW_UTS_LEN`).
const MAX_HOSTNAME_LEN: usize = 64;

/// Least entropy that a host gives.
const MIN_ENTROPY_LEN: usize = 32;

/// The guest's identity, checked.
#[derive(Debug)]
pub struct Identity {
    hostname: String,
    realtime: Timespec,
    entropy: Vec<u8>,
}

/// An identity that cannot be taken on.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Too long, or characters that no host name has (C13).
    #[error("{0:?} is not a host name")]
    Hostname(String),
    /// Before 1970.
    #[error("time {0} ns lies before the epoch")]
    Time(i64),
    /// Too little or too much.
    #[error("entropy has {0} bytes instead of {MIN_ENTROPY_LEN} to {max}", max = sys::MAX_ENTROPY_LEN)]
    Entropy(usize),
    /// The kernel refused.
    #[error("cannot set {what}")]
    Set {
        /// What was being set.
        what: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
}

impl IdentityError {
    /// Whether the request is to blame.
    pub fn is_invalid(&self) -> bool {
        !matches!(self, Self::Set { .. })
    }
}

impl Identity {
    /// Checks an identity. An empty host name leaves the kernel's.
    ///
    /// # Errors
    /// All but [`IdentityError::Set`].
    pub fn new(hostname: String, realtime_ns: i64, entropy: Vec<u8>) -> Result<Self, IdentityError> {
        let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_');
        if hostname.len() > MAX_HOSTNAME_LEN || !hostname.bytes().all(allowed) {
            return Err(IdentityError::Hostname(hostname));
        }
        if realtime_ns < 0 {
            return Err(IdentityError::Time(realtime_ns));
        }
        if !(MIN_ENTROPY_LEN..=sys::MAX_ENTROPY_LEN).contains(&entropy.len()) {
            return Err(IdentityError::Entropy(entropy.len()));
        }
        let realtime = Timespec { tv_sec: realtime_ns / 1_000_000_000, tv_nsec: realtime_ns % 1_000_000_000 };
        Ok(Self { hostname, realtime, entropy })
    }

    /// Gives it to the kernel.
    ///
    /// # Errors
    /// [`IdentityError::Set`].
    pub fn apply(&self) -> Result<(), IdentityError> {
        let set = |what| move |source| IdentityError::Set { what, source };
        if !self.hostname.is_empty() {
            rustix::system::sethostname(self.hostname.as_bytes())
                .map_err(io::Error::from)
                .map_err(set("host name"))?;
        }
        clock_settime(ClockId::Realtime, self.realtime).map_err(io::Error::from).map_err(set("time"))?;
        let random = File::options().write(true).open("/dev/urandom").map_err(set("random seed"))?;
        sys::add_entropy(random.as_fd(), &self.entropy).map_err(set("random seed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c13_hostname_with_newline_nul_or_colon_is_refused() {
        for bad in ["a\nb", "a\0b", "a:b", "a b", "a/b", &"a".repeat(65)] {
            let identity = Identity::new(bad.to_owned(), 1, vec![0; 32]);
            assert!(matches!(identity, Err(IdentityError::Hostname(_))), "{bad:?}");
        }
    }

    #[test]
    fn time_before_the_epoch_is_refused() {
        assert!(matches!(Identity::new(String::new(), -1, vec![0; 32]), Err(IdentityError::Time(-1))));
    }

    #[test]
    fn entropy_outside_its_bounds_is_refused() {
        for length in [0, 31, 513] {
            let identity = Identity::new(String::new(), 1, vec![0; length]);
            assert!(matches!(identity, Err(IdentityError::Entropy(_))), "{length}");
        }
    }
}
