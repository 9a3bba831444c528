//! Ids and names of new containers.

use std::fs::File;
use std::io::{self, Read};

const ADJECTIVES: [&str; 32] = [
    "amber", "brisk", "calm", "clear", "coral", "deep", "eager", "fair", "fond", "glad", "golden", "keen",
    "kind", "light", "lucid", "mild", "merry", "neat", "noble", "opal", "pale", "quick", "quiet", "rapid",
    "ready", "round", "silver", "sleek", "smooth", "still", "swift", "warm",
];

const NOUNS: [&str; 32] = [
    "abalone", "anchor", "bay", "beacon", "cockle", "conch", "cove", "cowrie", "current", "delta", "drift",
    "dune", "fjord", "gull", "harbor", "island", "kelp", "lagoon", "limpet", "mussel", "nautilus", "oyster",
    "pearl", "pebble", "reef", "sail", "shell", "shoal", "shore", "tide", "wave", "whelk",
];

/// 64 hexadecimal digits from the kernel's random numbers.
pub(crate) fn new_id() -> io::Result<String> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A name that is easy to say, with digits that keep it apart from others.
pub(crate) fn from_id(id: &str) -> String {
    let digit = |at: usize| usize::from_str_radix(id.get(at..at + 2).unwrap_or("0"), 16).unwrap_or(0);
    format!("{}-{}-{}", ADJECTIVES[digit(0) % 32], NOUNS[digit(2) % 32], id.get(4..8).unwrap_or("0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_64_digits_and_differ() {
        let id = new_id().unwrap();
        assert_eq!(id.len(), 64);
        assert_ne!(id, new_id().unwrap());
        assert!(from_id(&id).parse::<nacre_protocol::id::ContainerId>().is_ok());
    }
}
