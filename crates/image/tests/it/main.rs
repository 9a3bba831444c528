//! Whole pulls and imports, against a registry of ours that is as good or as bad as each test wants.

mod pull;
mod support;
