//! Bad input and dying parts: one line that says what happened and what to do, the right status, and nothing left
//! behind (which `TestSandbox` checks at the end of each test).
//!
//! | module | what fails |
//! |---|---|
//! | [`host`] | KVM that is not there, not allowed, not KVM, or emulated |
//! | [`input`] | options, names, limits, programs |
//! | [`registry`] | registries that are down, refuse, limit, or cannot be trusted |
//! | [`disk`] | disks that are full while pulling and while running |
//! | [`assets`] | kernels and agent images that are missing or damaged |
//! | [`guest`] | guests that panic, hang, or lose their agent |
//! | [`dying`] | VMMs and shims that are killed |

mod assets;
mod disk;
mod dying;
mod guest;
mod host;
mod input;
mod registry;

use nacre_tests::Outcome;

/// One line of standard error with all of these words, in any case, and this status.
#[track_caller]
fn assert_one_line(out: &Outcome, status: i32, words: &[&str]) {
    assert_eq!(out.stderr.trim_end().lines().count(), 1, "{out:?}");
    assert_last_line(out, status, words);
}

/// The same after the lines that tell how a pull goes.
#[track_caller]
fn assert_last_line(out: &Outcome, status: i32, words: &[&str]) {
    assert_eq!(out.status, status, "{out:?}");
    let lines: Vec<&str> = out.stderr.trim_end().lines().collect();
    let (last, progress) = lines.split_last().expect("standard error is empty");
    assert!(last.starts_with("nacre: "), "{out:?}");
    assert!(progress.iter().all(|line| !line.starts_with("nacre: ")), "{out:?}");
    for word in words {
        assert!(last.to_lowercase().contains(&word.to_lowercase()), "no {word:?} in {out:?}");
    }
    assert!(!out.stderr.contains("panicked at"), "{out:?}");
}
