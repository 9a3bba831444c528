//! Words that are misspelt often, in code and documents. A short list that is never wrong beats a dictionary that
//! often is.

use std::fs;

use anyhow::{Result, bail};

use super::tracked;
use crate::project::Project;

/// Misspelt and right.
const WORDS: &[(&str, &str)] = &[
    ("accomodate", "accommodate"),
    ("adress", "address"),
    ("allocater", "allocator"),
    ("arbitary", "arbitrary"),
    ("arguement", "argument"),
    ("begining", "beginning"),
    ("calender", "calendar"),
    ("compatability", "compatibility"),
    ("concious", "conscious"),
    ("dependancy", "dependency"),
    ("desciptor", "descriptor"),
    ("existance", "existence"),
    ("explicitely", "explicitly"),
    ("guarentee", "guarantee"),
    ("immediatly", "immediately"),
    ("independant", "independent"),
    ("initalize", "initialize"),
    ("lenght", "length"),
    ("neccessary", "necessary"),
    ("occured", "occurred"),
    ("occurence", "occurrence"),
    ("paramter", "parameter"),
    ("persistant", "persistent"),
    ("priviledge", "privilege"),
    ("recieve", "receive"),
    ("refered", "referred"),
    ("relevent", "relevant"),
    ("seperate", "separate"),
    ("sucess", "success"),
    ("supress", "suppress"),
    ("teh ", "the"),
    ("threshhold", "threshold"),
    ("transfered", "transferred"),
    ("truely", "truly"),
    ("untill", "until"),
    ("writeable", "writable"),
];

/// This file, which holds the words.
const SELF: &str = "tools/xtask/src/check/spelling.rs";

/// Looks through every text file that git knows.
pub(super) fn check(project: &Project) -> Result<()> {
    let mut problems = Vec::new();
    for path in tracked(project, &["rs", "md", "toml", "proto", "config", "py", "sh"])? {
        if path.as_os_str() == SELF {
            continue;
        }
        let text = fs::read_to_string(project.root.join(&path))?;
        problems.extend(misspelt(&text).map(|(line, right)| format!("{}:{line}: {right}?", path.display())));
    }
    if problems.is_empty() { Ok(()) } else { bail!("{}", problems.join("\n")) }
}

fn misspelt(text: &str) -> impl Iterator<Item = (usize, &'static str)> + '_ {
    text.lines().enumerate().flat_map(|(index, line)| {
        let line = line.to_lowercase();
        WORDS.iter().filter_map(move |(wrong, right)| line.contains(wrong).then_some((index + 1, *right)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_word_is_found_with_its_line() {
        assert_eq!(misspelt("good\nSeperate things").collect::<Vec<_>>(), [(2, "separate")]);
    }

    #[test]
    fn right_words_pass() {
        for (_, right) in WORDS {
            assert_eq!(misspelt(right).count(), 0, "{right}");
        }
    }
}
