//! Kernel configuration text: fragments in, one merged configuration out, and the check of what Kconfig kept of it.
//!
//! Kconfig drops a setting whose name is unknown or whose dependency is off without a word. [`Merged::check`]
//! is that word.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::fragments::{Fragment, Override};
use crate::required::Requirement;

/// What a symbol is set to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Built in (`=y`).
    Yes,
    /// Off: `# CONFIG_X is not set`, or no line at all.
    No,
    /// A number or a string, as written.
    Text(String),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Yes => f.write_str("y"),
            Self::No => f.write_str("not set"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A line is neither a setting nor a comment.
    #[error("{file} line {line}: {text:?} is no kernel setting")]
    BadLine {
        /// Fragment, or `.config`.
        file: String,
        /// Line number from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// A later fragment says something else than an earlier one, and no override is documented.
    #[error(
        "CONFIG_{symbol} is {first} in {first_fragment} but {second} in {second_fragment}: document the override"
    )]
    Contradiction {
        /// Symbol without `CONFIG_`.
        symbol: String,
        /// Earlier value.
        first: Value,
        /// Earlier fragment.
        first_fragment: String,
        /// Later value.
        second: Value,
        /// Later fragment.
        second_fragment: String,
    },
    /// A documented override that overrides nothing.
    #[error("the override of CONFIG_{0} changes nothing: remove it")]
    StaleOverride(String),
    /// Settings that Kconfig did not keep.
    #[error("{}", lost_text(.0))]
    Lost(Vec<Lost>),
}

/// A setting that is not in the final configuration as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Symbol without `CONFIG_`.
    pub symbol: String,
    /// What was asked.
    pub wanted: Value,
    /// What the final configuration says.
    pub found: Value,
    /// The fragment that asked, or the feature that needs it.
    pub origin: String,
    /// Stands in the list of required symbols.
    pub required: bool,
}

fn lost_text(lost: &[Lost]) -> String {
    let mut out = String::new();
    for (index, l) in lost.iter().enumerate() {
        let kind = if l.required { "required symbol" } else { "setting" };
        let separator = if index == 0 { "" } else { "\n" };
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "{separator}{kind} CONFIG_{} did not survive: is {}, wanted {} ({})",
            l.symbol, l.found, l.wanted, l.origin
        );
    }
    out
}

/// Reads one line: a setting, or `None` for a comment or an empty line.
fn parse_line(line: &str) -> Result<Option<(&str, Value)>, ()> {
    let line = line.trim();
    if let Some(comment) = line.strip_prefix('#') {
        let words = comment.trim().strip_prefix("CONFIG_").and_then(|rest| rest.strip_suffix(" is not set"));
        return match words {
            Some(symbol) if is_symbol(symbol) => Ok(Some((symbol, Value::No))),
            Some(_) => Err(()),
            None => Ok(None),
        };
    }
    if line.is_empty() {
        return Ok(None);
    }
    let (symbol, value) = line.strip_prefix("CONFIG_").and_then(|rest| rest.split_once('=')).ok_or(())?;
    if !is_symbol(symbol) {
        return Err(());
    }
    match value {
        "y" => Ok(Some((symbol, Value::Yes))),
        "n" => Ok(Some((symbol, Value::No))),
        // The guest has no modules.
        "" | "m" => Err(()),
        text => Ok(Some((symbol, Value::Text(text.to_owned())))),
    }
}

fn is_symbol(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
}

fn parse<'a>(file: &str, text: &'a str) -> Result<Vec<(&'a str, Value)>, ConfigError> {
    let mut settings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        match parse_line(line) {
            Ok(Some(setting)) => settings.push(setting),
            Ok(None) => {}
            Err(()) => {
                return Err(ConfigError::BadLine {
                    file: file.to_owned(),
                    line: index + 1,
                    text: line.to_owned(),
                });
            }
        }
    }
    Ok(settings)
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    value: Value,
    fragment: String,
}

/// All fragments as one configuration, sorted by symbol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    settings: BTreeMap<String, Setting>,
}

impl Merged {
    /// Merges fragments in their order. Saying the same again is allowed, saying something else is not, unless
    /// `overrides` documents it.
    ///
    /// # Errors
    /// A line that is no setting, a contradiction, or an override that is not used.
    pub fn new(fragments: &[Fragment], overrides: &[Override]) -> Result<Self, ConfigError> {
        let mut settings: BTreeMap<String, Setting> = BTreeMap::new();
        let mut used = Vec::new();
        for fragment in fragments {
            for (symbol, value) in parse(fragment.name, fragment.text)? {
                if let Some(first) = settings.get(symbol).filter(|first| first.value != value) {
                    if !overrides.iter().any(|o| o.symbol == symbol && o.fragment == fragment.name) {
                        return Err(ConfigError::Contradiction {
                            symbol: symbol.to_owned(),
                            first: first.value.clone(),
                            first_fragment: first.fragment.clone(),
                            second: value,
                            second_fragment: fragment.name.to_owned(),
                        });
                    }
                    used.push(symbol.to_owned());
                }
                settings.insert(symbol.to_owned(), Setting { value, fragment: fragment.name.to_owned() });
            }
        }
        if let Some(stale) = overrides.iter().find(|o| !used.iter().any(|u| u == o.symbol)) {
            return Err(ConfigError::StaleOverride(stale.symbol.to_owned()));
        }
        Ok(Self { settings })
    }

    /// The configuration as Kconfig reads it (`KCONFIG_ALLCONFIG`).
    pub fn text(&self) -> String {
        let mut out = String::new();
        for (symbol, setting) in &self.settings {
            // Writing to a String cannot fail.
            let _ = match &setting.value {
                Value::No => writeln!(out, "# CONFIG_{symbol} is not set"),
                value => writeln!(out, "CONFIG_{symbol}={value}"),
            };
        }
        out
    }

    /// Compares `dot_config`, which Kconfig made from [`Merged::text`], with what was asked for.
    ///
    /// # Errors
    /// [`ConfigError::Lost`] with every setting and requirement that did not survive.
    pub fn check(&self, dot_config: &str, required: &[Requirement]) -> Result<(), ConfigError> {
        let text = without_empty_values(dot_config);
        let found: BTreeMap<&str, Value> = parse(".config", &text)?.into_iter().collect();
        let at = |symbol: &str| found.get(symbol).cloned().unwrap_or(Value::No);
        let mut lost = Vec::new();
        for requirement in required {
            let value = at(requirement.symbol);
            if value == Value::No {
                lost.push(Lost {
                    symbol: requirement.symbol.to_owned(),
                    wanted: Value::Yes,
                    found: value,
                    origin: format!("needed for {}", requirement.feature),
                    required: true,
                });
            }
        }
        for (symbol, setting) in &self.settings {
            let value = at(symbol);
            if value != setting.value && !lost.iter().any(|l| &l.symbol == symbol) {
                lost.push(Lost {
                    symbol: symbol.clone(),
                    wanted: setting.value.clone(),
                    found: value,
                    origin: format!("set in fragment {}", setting.fragment),
                    required: false,
                });
            }
        }
        if lost.is_empty() { Ok(()) } else { Err(ConfigError::Lost(lost)) }
    }
}

/// `.config` holds `CONFIG_X=` lines for symbols that are defined as empty; they say nothing.
fn without_empty_values(text: &str) -> String {
    text.lines()
        .filter(|line| line.split_once('=').is_none_or(|(_, value)| !value.is_empty()))
        .fold(String::with_capacity(text.len()), |out, line| out + line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fragments::{FRAGMENTS, OVERRIDES};
    use crate::required::REQUIRED;
    use proptest::prelude::*;

    const FUSE: &[Requirement] = &[Requirement { symbol: "FUSE_FS", feature: "host directories" }];

    fn fragment(name: &'static str, text: &'static str) -> Fragment {
        Fragment { name, text }
    }

    fn merged(text: &'static str) -> Merged {
        Merged::new(&[fragment("a", text)], &[]).unwrap()
    }

    #[test]
    fn fragments_of_the_project_merge() {
        let merged = Merged::new(FRAGMENTS, OVERRIDES).unwrap();
        assert!(merged.text().contains("\nCONFIG_EROFS_FS=y\n"));
        assert!(merged.text().contains("\n# CONFIG_PARAVIRT_SPINLOCKS is not set\n"));
    }

    #[test]
    fn every_required_symbol_is_asked_for_by_a_fragment() {
        let merged = Merged::new(FRAGMENTS, OVERRIDES).unwrap();
        for requirement in REQUIRED {
            let setting = merged.settings.get(requirement.symbol);
            assert!(setting.is_some_and(|s| s.value != Value::No), "{}", requirement.symbol);
        }
    }

    #[test]
    fn later_fragment_that_contradicts_is_named() {
        let error = Merged::new(&[fragment("a", "CONFIG_X=y"), fragment("b", "# CONFIG_X is not set")], &[]);
        assert_eq!(
            error.unwrap_err().to_string(),
            "CONFIG_X is y in a but not set in b: document the override"
        );
    }

    #[test]
    fn documented_override_wins() {
        let overrides = [Override { symbol: "X", fragment: "b", reason: "test" }];
        let merged =
            Merged::new(&[fragment("a", "CONFIG_X=1"), fragment("b", "CONFIG_X=2")], &overrides).unwrap();
        assert_eq!(merged.text(), "CONFIG_X=2\n");
    }

    #[test]
    fn override_that_changes_nothing_is_an_error() {
        let overrides = [Override { symbol: "X", fragment: "a", reason: "test" }];
        let error = Merged::new(&[fragment("a", "CONFIG_X=y")], &overrides).unwrap_err();
        assert_eq!(error, ConfigError::StaleOverride("X".into()));
    }

    #[test]
    fn modules_and_stray_text_are_errors_with_their_line() {
        for bad in ["CONFIG_X=m", "X=y", "CONFIG_=y", "CONFIG_X", "CONFIG_X="] {
            let text: &'static str = Box::leak(format!("# comment\n{bad}").into_boxed_str());
            let error = Merged::new(&[fragment("a", text)], &[]).unwrap_err();
            assert!(matches!(error, ConfigError::BadLine { line: 2, .. }), "{bad}: {error}");
        }
    }

    #[test]
    fn kept_configuration_passes() {
        let asked = merged("CONFIG_FUSE_FS=y\n# CONFIG_PCI is not set\nCONFIG_HZ=100\n");
        let made = "CONFIG_CC_VERSION_TEXT=\"gcc\"\nCONFIG_EMPTY=\nCONFIG_FUSE_FS=y\nCONFIG_HZ=100\n";
        assert_eq!(asked.check(made, FUSE), Ok(()));
    }

    #[test]
    fn required_symbol_that_did_not_survive_is_named() {
        let error = merged("CONFIG_FUSE_FS=y").check("# CONFIG_FUSE_FS is not set\n", FUSE).unwrap_err();
        assert_eq!(
            error.to_string(),
            "required symbol CONFIG_FUSE_FS did not survive: is not set, wanted y (needed for host directories)"
        );
    }

    #[test]
    fn setting_without_effect_is_named_with_its_fragment() {
        let error =
            merged("CONFIG_HZ=100\nCONFIG_FUSE_FS=y\n").check("CONFIG_HZ=250\nCONFIG_FUSE_FS=y\n", FUSE);
        assert_eq!(
            error.unwrap_err().to_string(),
            "setting CONFIG_HZ did not survive: is 250, wanted 100 (set in fragment a)"
        );
    }

    #[test]
    fn text_that_ends_in_an_equals_sign_is_a_value() {
        let asked = merged("CONFIG_X==");
        assert_eq!(asked.check("CONFIG_X==\nCONFIG_EMPTY=\n", &[]), Ok(()));
    }

    #[test]
    fn symbol_that_was_switched_on_behind_our_back_is_named() {
        let error = merged("# CONFIG_PCI is not set").check("CONFIG_PCI=y\n", &[]).unwrap_err();
        assert!(error.to_string().contains("CONFIG_PCI did not survive: is y, wanted not set"));
    }

    proptest! {
        #[test]
        fn any_text_merges_or_fails_without_panic(text in "(CONFIG_|# )?[A-Z_=ym\"0-9 \n]{0,60}") {
            let text: &'static str = Box::leak(text.into_boxed_str());
            if let Ok(merged) = Merged::new(&[fragment("a", text)], &[]) {
                prop_assert_eq!(merged.check(&merged.text(), &[]), Ok(()));
            }
        }
    }
}
