//! Counting tests from what libtest prints.

use std::process::ExitCode;

/// Tests that ended one way or the other.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    passed: u32,
    failed: u32,
    /// Of those that passed: failed at first, and passed each time that they ran again.
    again: u32,
}

impl Count {
    pub(super) fn of(passed: usize, failed: usize) -> Self {
        let number = |tests: usize| u32::try_from(tests).unwrap_or(u32::MAX);
        Self { passed: number(passed), failed: number(failed), again: 0 }
    }

    /// So many of those that failed have passed when they ran again.
    pub(super) fn passed_again(&mut self, tests: usize) {
        let tests = u32::try_from(tests).unwrap_or(u32::MAX).min(self.failed);
        self.failed -= tests;
        self.passed += tests;
        self.again += tests;
    }

    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.again += other.again;
    }

    /// The last line, and the status that says the same.
    pub(super) fn finish(self) -> ExitCode {
        let again = match self.again {
            0 => String::new(),
            again => format!(" ({again} of the passed failed at first, see above)"),
        };
        println!("{} passed, {} failed{again}", self.passed, self.failed);
        if self.failed == 0 && self.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Reads libtest's summary lines as they pass by.
#[derive(Debug, Default)]
pub(super) struct Counter {
    line: Vec<u8>,
    count: Count,
    summaries: u32,
}

impl Counter {
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            if let Some(count) = summary(&String::from_utf8_lossy(&self.line)) {
                self.summaries += 1;
                self.count.add(count);
            }
            self.line.clear();
        }
    }

    /// The count of a run that ended with `success`: one that failed without a failed test (it crashed, or did
    /// not compile), or that never came to a summary, counts as one failure.
    pub(super) fn result(&self, success: bool) -> Count {
        let mut count = self.count;
        if (!success && count.failed == 0) || self.summaries == 0 {
            count.failed += 1;
        }
        count
    }
}

/// `test result: ok. 17 passed; 0 failed; 1 ignored; 0 measured; ...`, where ignored counts as failed.
fn summary(line: &str) -> Option<Count> {
    let (_, numbers) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
    let number = |word: &str| {
        let field = numbers.split(';').find(|field| field.trim().ends_with(word))?;
        field.trim().split(' ').next()?.parse::<u32>().ok()
    };
    Some(Count { passed: number("passed")?, failed: number("failed")? + number("ignored")?, again: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &str =
        "test result: ok. 17 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.02s\n";

    #[test]
    fn summaries_add_up_over_split_chunks() {
        let mut counter = Counter::default();
        let text = format!("noise\n{OK}test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured\n");
        for chunk in text.as_bytes().chunks(7) {
            counter.feed(chunk);
        }
        assert_eq!(counter.result(false), Count { passed: 19, failed: 1, again: 0 });
    }

    #[test]
    fn ignored_test_counts_as_failed() {
        let mut counter = Counter::default();
        counter.feed(b"test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured\n");
        assert_eq!(counter.result(true), Count { passed: 1, failed: 2, again: 0 });
    }

    #[test]
    fn test_that_passed_again_is_told_apart_and_no_more_pass_than_failed() {
        let mut count = Count { passed: 5, failed: 2, again: 0 };
        count.passed_again(1);
        assert_eq!(count, Count { passed: 6, failed: 1, again: 1 });
        count.passed_again(7);
        assert_eq!(count, Count { passed: 7, failed: 0, again: 2 });
    }

    #[test]
    fn run_that_crashed_counts_as_a_failure() {
        let mut counter = Counter::default();
        counter.feed(OK.as_bytes());
        assert_eq!(counter.result(false), Count { passed: 17, failed: 1, again: 0 });
        assert_eq!(Counter::default().result(true), Count { passed: 0, failed: 1, again: 0 });
    }
}
