//! Legal moves of a process (a container's init, or an exec): a pure table.
//!
//! ```text
//!            start            pause
//! created ---------> running <------> paused
//!    |  |               |     resume    |
//!    |  +----- exit ----+----- exit ----+
//!    |                  v
//!    +--- delete -> (deleted) <- delete - stopped
//! ```
//!
//! A signal moves nothing by itself: the exit that it causes does. Deleting a created process ends it first.

use std::fmt;

/// Where a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Set up, and waits for its start.
    Created,
    /// Runs its program.
    Running,
    /// Frozen with its container.
    Paused,
    /// Over; its exit status waits for the delete.
    Stopped,
    /// Forgotten.
    Deleted,
}

/// What may happen to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Move {
    /// Its program is started.
    Start,
    /// It is frozen.
    Pause,
    /// It goes on.
    Resume,
    /// It ended.
    Exit,
    /// It is forgotten.
    Delete,
}

/// A move that the state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot {action} a process that is {state}")]
pub struct IllegalMove {
    /// The state.
    pub state: State,
    /// The move.
    pub action: Move,
}

impl State {
    /// The state after a move.
    ///
    /// # Errors
    /// [`IllegalMove`] for one that the table does not have.
    pub fn after(self, action: Move) -> Result<Self, IllegalMove> {
        match (self, action) {
            (Self::Created, Move::Start) => Ok(Self::Running),
            (Self::Running, Move::Pause) => Ok(Self::Paused),
            (Self::Paused, Move::Resume) => Ok(Self::Running),
            (Self::Created | Self::Running | Self::Paused, Move::Exit) => Ok(Self::Stopped),
            (Self::Created | Self::Stopped, Move::Delete) => Ok(Self::Deleted),
            (state, action) => Err(IllegalMove { state, action }),
        }
    }

    /// Whether a signal can reach the process.
    pub fn takes_signals(self) -> bool {
        matches!(self, Self::Created | Self::Running | Self::Paused)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Deleted => "deleted",
        })
    }
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Exit => "end",
            Self::Delete => "delete",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MOVES: [Move; 5] = [Move::Start, Move::Pause, Move::Resume, Move::Exit, Move::Delete];

    fn walk(moves: &[Move]) -> State {
        moves.iter().fold(State::Created, |state, action| state.after(*action).unwrap_or(state))
    }

    #[test]
    fn ordinary_life_ends_deleted() {
        let life = [Move::Start, Move::Pause, Move::Resume, Move::Exit, Move::Delete];
        let end = life.iter().try_fold(State::Created, |state, action| state.after(*action));
        assert_eq!(end, Ok(State::Deleted));
    }

    #[test]
    fn running_process_cannot_be_deleted() {
        let error = State::Running.after(Move::Delete).unwrap_err();
        assert_eq!(error.to_string(), "cannot delete a process that is running");
    }

    proptest! {
        #[test]
        fn deleted_is_final(moves in proptest::collection::vec(proptest::sample::select(&MOVES[..]), 0..20)) {
            let state = walk(&moves);
            if state == State::Deleted {
                prop_assert!(MOVES.iter().all(|action| state.after(*action).is_err()));
            }
        }

        #[test]
        fn every_live_state_can_exit(moves in proptest::collection::vec(proptest::sample::select(&MOVES[..]), 0..20)) {
            let state = walk(&moves);
            prop_assert_eq!(state.after(Move::Exit).is_ok(), state.takes_signals());
        }
    }
}
