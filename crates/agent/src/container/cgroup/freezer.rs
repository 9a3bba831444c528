//! Who wants a cgroup to stand still: whoever paused the container, and the agent for a moment.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::{Cgroup, CgroupError};

/// Stands still while it is paused or held.
#[derive(Debug, Default)]
pub(super) struct Freezer(Mutex<Wishes>);

#[derive(Debug, Default)]
struct Wishes {
    paused: bool,
    holds: usize,
}

impl Cgroup {
    /// Stops every process, and waits until all have stopped.
    ///
    /// # Errors
    /// [`CgroupError::Timeout`] where they do not.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        self.wish(|wishes| wishes.paused = true)?;
        self.wait_for("frozen", "1", "frozen")
    }

    /// Lets every process go on. Where the agent holds them, they do when it lets go.
    ///
    /// # Errors
    /// [`CgroupError::Timeout`] where they do not.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        match self.wish(|wishes| wishes.paused = false)? {
            true => Ok(()),
            false => self.wait_for("frozen", "0", "thawed"),
        }
    }

    /// Changes the wishes and writes what follows; whether it is to stand still.
    fn wish(&self, change: impl FnOnce(&mut Wishes)) -> Result<bool, CgroupError> {
        let mut wishes = self.freezer.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut wishes);
        let still = wishes.paused || wishes.holds > 0;
        self.write("cgroup.freeze", if still { "1" } else { "0" })?;
        Ok(still)
    }
}

/// Keeps a cgroup still for as long as it lives.
#[derive(Debug)]
pub(crate) struct Hold(Arc<Cgroup>);

impl Hold {
    /// Tells all processes to stop. A cgroup that is removed has none.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub(crate) fn begin(cgroup: Arc<Cgroup>) -> Result<Self, CgroupError> {
        let wished = cgroup.wish(|wishes| wishes.holds += 1);
        // From here on the drop takes it back.
        let hold = Self(cgroup);
        match wished {
            Ok(_) | Err(CgroupError::NoSuchFile(_)) => Ok(hold),
            Err(error) => Err(error),
        }
    }

    /// Waits until they have.
    ///
    /// # Errors
    /// [`CgroupError::Held`] where they do not.
    pub(crate) fn wait(&self, deadline: Instant) -> Result<(), CgroupError> {
        match self.0.wait_until("frozen", "1", "frozen", deadline) {
            Ok(()) | Err(CgroupError::NoSuchFile(_)) => Ok(()),
            Err(CgroupError::Timeout(_)) => Err(CgroupError::Held(self.0.name.clone())),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn cgroup(&self) -> &Cgroup {
        &self.0
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        match self.0.wish(|wishes| wishes.holds = wishes.holds.saturating_sub(1)) {
            Ok(_) | Err(CgroupError::NoSuchFile(_)) => {}
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a container may stand still");
            }
        }
    }
}
