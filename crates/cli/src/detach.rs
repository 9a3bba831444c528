//! The keys that leave a terminal and let its process live on (`--detach-keys`), as Docker has them.

use std::str::FromStr;

/// Longest sequence; more would only be forgotten.
const MAX_KEYS: usize = 16;

/// What `--detach-keys` says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown key {0:?}: keys are single characters, ctrl- with one of a-z @ [ \\ ] ^ _, or DEL, with commas between"
)]
pub(crate) struct BadKeys(String);

/// The sequence; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys(Vec<u8>);

impl FromStr for DetachKeys {
    type Err = BadKeys;

    fn from_str(text: &str) -> Result<Self, BadKeys> {
        let keys: Option<Vec<u8>> = text.split(',').map(key).collect();
        keys.filter(|keys| keys.len() <= MAX_KEYS).map(Self).ok_or_else(|| BadKeys(text.to_owned()))
    }
}

fn key(text: &str) -> Option<u8> {
    match text.as_bytes() {
        [byte] if byte.is_ascii() => Some(*byte),
        b"DEL" => Some(0x7f),
        // Control characters are numbered from @ on, and letters are written small.
        [b'c', b't', b'r', b'l', b'-', byte @ (b'a'..=b'z')] => Some(byte - b'a' + 1),
        [b'c', b't', b'r', b'l', b'-', byte @ (b'@' | b'['..=b'_')] => Some(byte - b'@'),
        _ => None,
    }
}

/// Looks for the sequence in what is typed, and holds back what may be the beginning of it.
#[derive(Debug)]
pub(crate) struct Filter {
    keys: DetachKeys,
    held: Vec<u8>,
}

/// What comes out of a [`Filter`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// For the process; it may be nothing.
    Input(Vec<u8>),
    /// For the process before the sequence, which is for nobody.
    Detached(Vec<u8>),
}

impl Filter {
    pub(crate) fn new(keys: DetachKeys) -> Self {
        Self { keys, held: Vec::new() }
    }

    pub(crate) fn push(&mut self, typed: &[u8]) -> Typed {
        let mut out = Vec::with_capacity(typed.len() + self.held.len());
        for byte in typed {
            self.held.push(*byte);
            while !self.keys.0.starts_with(&self.held) {
                out.push(self.held.remove(0));
            }
            if self.held == self.keys.0 {
                self.held.clear();
                return Typed::Detached(out);
            }
        }
        Typed::Input(out)
    }

    /// The end of what is typed: what was held back was no sequence.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(text: &str) -> DetachKeys {
        text.parse().unwrap()
    }

    fn input(text: &str) -> Typed {
        Typed::Input(text.into())
    }

    #[test]
    fn keys_are_written_as_dockers() {
        assert_eq!(keys("ctrl-p,ctrl-q"), DetachKeys(vec![16, 17]));
        assert_eq!(
            keys("a,ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_,DEL"),
            DetachKeys(vec![97, 0, 27, 28, 29, 30, 31, 127])
        );
        for bad in ["", ",", "ctrl-", "ctrl-1", "ctrl-P", "ctrl-pq", "del", "ä", "a,,b", "ctrl-p,ctrl-q,"] {
            assert!(bad.parse::<DetachKeys>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sequence_is_swallowed_wherever_it_is_cut() {
        let mut whole = Filter::new(keys("ctrl-p,ctrl-q"));
        assert_eq!(whole.push(b"ls\x10\x11rest"), Typed::Detached(b"ls".to_vec()));
        let mut cut = Filter::new(keys("ctrl-p,ctrl-q"));
        assert_eq!(cut.push(b"ls\x10"), input("ls"));
        assert_eq!(cut.push(b"\x11"), Typed::Detached(Vec::new()));
    }

    #[test]
    fn beginning_that_leads_nowhere_is_passed_on() {
        let mut filter = Filter::new(keys("ctrl-p,ctrl-q"));
        assert_eq!((filter.push(b"\x10"), filter.push(b"x\x10")), (input(""), input("\x10x")));
        assert_eq!(filter.push(b"\x10"), input("\x10"));
        assert_eq!(filter.finish(), b"\x10");
    }

    #[test]
    fn sequence_that_begins_within_a_failed_one_is_found() {
        let mut filter = Filter::new(keys("a,a,b"));
        assert_eq!(filter.push(b"aaab"), Typed::Detached(b"a".to_vec()));
    }

    proptest! {
        #[test]
        fn input_without_the_sequence_comes_out_whole(parts in prop::collection::vec("[ab]{0,4}", 0..8)) {
            let all = parts.concat();
            prop_assume!(!all.contains("aabb"));
            let mut filter = Filter::new(keys("a,a,b,b"));
            let mut out = Vec::new();
            for part in &parts {
                let Typed::Input(bytes) = filter.push(part.as_bytes()) else { panic!("detached by {all:?}") };
                out.extend(bytes);
            }
            out.extend(filter.finish());
            prop_assert_eq!(String::from_utf8(out).unwrap(), all);
        }

        #[test]
        fn sequence_is_found_after_any_input(before in "[ab]{0,12}") {
            let mut filter = Filter::new(keys("a,a,b,b"));
            let typed = format!("{before}aabb");
            let at = typed.find("aabb").unwrap();
            prop_assert_eq!(filter.push(typed.as_bytes()), Typed::Detached(typed.as_bytes()[..at].to_vec()));
        }
    }
}
