//! Where a caller wants a stream to go: containerd's forms, and one of ours. A pure parser.
//!
//! | form | meaning |
//! |---|---|
//! | empty | nowhere |
//! | a path, `fifo://PATH` | a FIFO that the caller made |
//! | `file://PATH` | appended to a file |
//! | `json-file://PATH` | appended to a file, one JSON object a line |
//! | `binary://PATH?KEY=VALUE...` | standard input of a program, whose arguments are the keys and values |

use std::path::PathBuf;

use nacre_protocol::task::LOG_SCHEME;

use crate::text::harmless;

/// Where a stream goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Nowhere.
    None,
    /// A FIFO.
    Fifo(PathBuf),
    /// A file, as it comes.
    File(PathBuf),
    /// A file, JSON lines.
    JsonFile(PathBuf),
    /// A logging program.
    Binary {
        /// The program.
        path: PathBuf,
        /// Its arguments.
        args: Vec<String>,
    },
}

/// A form that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Another scheme.
    #[error("output {0:?} has a scheme that is not supported")]
    Scheme(String),
    /// Not absolute, or with bytes that no path has.
    #[error("output {0:?} has no absolute path")]
    Path(String),
}

impl Target {
    /// Parses what containerd or `nacre` gave.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        if text.is_empty() {
            return Ok(Self::None);
        }
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(Self::Fifo(absolute(text)?)) };
        match scheme {
            "fifo" => Ok(Self::Fifo(absolute(&decode(rest)?)?)),
            "file" => Ok(Self::File(absolute(&decode(rest)?)?)),
            LOG_SCHEME => Ok(Self::JsonFile(absolute(&decode(rest)?)?)),
            "binary" => {
                let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
                Ok(Self::Binary { path: absolute(&decode(path)?)?, args: arguments(query)? })
            }
            _ => Err(TargetError::Scheme(harmless(text, 256))),
        }
    }
}

fn absolute(path: &str) -> Result<PathBuf, TargetError> {
    if path.starts_with('/') && !path.contains('\0') {
        return Ok(PathBuf::from(path));
    }
    Err(TargetError::Path(harmless(path, 256)))
}

/// `a=1&b` -> `a`, `1`, `b`, in the order of the text.
fn arguments(query: &str) -> Result<Vec<String>, TargetError> {
    let mut args = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        for part in [key, value].into_iter().filter(|part| !part.is_empty()) {
            args.push(decode(&part.replace('+', " "))?);
        }
    }
    Ok(args)
}

/// Percent-decodes; what is not a valid escape stands for itself.
fn decode(text: &str) -> Result<String, TargetError> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while let Some(byte) = bytes.get(index) {
        let digits = bytes.get(index + 1..index + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *byte == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(value) => {
                out.push(value);
                index += 3;
            }
            None => {
                out.push(*byte);
                index += 1;
            }
        }
    }
    match String::from_utf8(out) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(TargetError::Path(harmless(text, 256))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn forms_are_told_apart() {
        assert_eq!(Target::parse(""), Ok(Target::None));
        assert_eq!(Target::parse("/run/x"), Ok(Target::Fifo("/run/x".into())));
        assert_eq!(Target::parse("file:///var/log/x"), Ok(Target::File("/var/log/x".into())));
        assert_eq!(Target::parse("json-file:///var/log/x"), Ok(Target::JsonFile("/var/log/x".into())));
    }

    #[test]
    fn query_of_a_binary_becomes_its_arguments() {
        let target = Target::parse("binary:///usr/bin/log%20it?id=a%26b&verbose&tag=x+y").unwrap();
        let args = ["id", "a&b", "verbose", "tag", "x y"].map(str::to_owned).to_vec();
        assert_eq!(target, Target::Binary { path: "/usr/bin/log it".into(), args });
    }

    #[test]
    fn other_schemes_and_relative_paths_are_refused() {
        for bad in ["http://x/y", "file://x", "x/y", "binary://", "file:///a%00b", "npipe:////./pipe/x"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_not_without_panic(text in ".{0,60}") {
            let _ = Target::parse(&text);
        }
    }
}
