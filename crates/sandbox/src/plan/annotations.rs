//! Annotations that mean anything to nacre: an allow-list with typed values.
//!
//! An annotation may come from whoever writes a pod or an image. None names a host path, a program, a kernel
//! parameter or a VMM option (H02, H03), and an unknown one under our prefix is refused instead of ignored, so
//! that a misspelt wish does not pass unseen. Annotations of others are not ours to judge.

use std::collections::BTreeMap;

use nacre_protocol::annotations::INIT;
use nacre_protocol::vm::KernelLog;

use crate::text::harmless;

/// Prefix of our annotations.
pub const PREFIX: &str = "dev.nacre.";

/// `quiet`, `info` or `debug`: how much the guest kernel prints.
pub const KERNEL_LOG: &str = "dev.nacre.kernel-log";

/// What annotations may choose.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// How much the guest kernel prints.
    pub kernel_log: KernelLog,
}

/// An annotation that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// Not in the list.
    #[error("annotation {0} is not allowed")]
    Unknown(String),
    /// The value is not of the annotation's type.
    #[error("annotation {key} cannot be {value:?}")]
    BadValue {
        /// The annotation.
        key: &'static str,
        /// Its value.
        value: String,
    },
}

/// Reads the annotations that are ours.
///
/// # Errors
/// See [`AnnotationError`].
pub fn parse(annotations: &BTreeMap<String, String>) -> Result<Options, AnnotationError> {
    let mut options = Options::default();
    for (key, value) in annotations.iter().filter(|(key, _)| key.starts_with(PREFIX)) {
        match key.as_str() {
            KERNEL_LOG => options.kernel_log = kernel_log(value)?,
            // For the agent, which reads it from the configuration.
            INIT => check_switch(INIT, value)?,
            _ => return Err(AnnotationError::Unknown(harmless(key, 128))),
        }
    }
    Ok(options)
}

fn check_switch(key: &'static str, value: &str) -> Result<(), AnnotationError> {
    match value {
        "true" | "false" => Ok(()),
        _ => Err(AnnotationError::BadValue { key, value: harmless(value, 64) }),
    }
}

fn kernel_log(value: &str) -> Result<KernelLog, AnnotationError> {
    match value {
        "quiet" => Ok(KernelLog::Quiet),
        "info" => Ok(KernelLog::Info),
        "debug" => Ok(KernelLog::Debug),
        _ => Err(AnnotationError::BadValue { key: KERNEL_LOG, value: harmless(value, 64) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(key: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(key.to_owned(), value.to_owned())])
    }

    #[test]
    fn h02_annotations_for_programs_paths_and_parameters_are_refused() {
        for key in [
            "dev.nacre.vmm-path",
            "dev.nacre.fs-args",
            "dev.nacre.kernel-params",
            "dev.nacre.config",
            "dev.nacre.",
        ] {
            assert!(matches!(parse(&one(key, "/bin/sh")), Err(AnnotationError::Unknown(_))), "{key}");
        }
    }

    #[test]
    fn h03_values_are_words_of_a_list() {
        for value in ["", "debug ", "debug\n", "info init=/bin/sh", "quiet+debug", "Debug"] {
            assert!(parse(&one(KERNEL_LOG, value)).is_err(), "{value:?}");
            assert!(parse(&one(INIT, value)).is_err(), "{value:?}");
        }
        assert!(parse(&one(INIT, "true")).is_ok() && parse(&one(INIT, "false")).is_ok());
        assert_eq!(parse(&one(KERNEL_LOG, "debug")).unwrap().kernel_log, KernelLog::Debug);
    }

    #[test]
    fn annotations_of_others_are_left_alone() {
        assert_eq!(parse(&one("org.systemd.property.ExecStart", "x=+y\n")), Ok(Options::default()));
    }

    proptest! {
        #[test]
        fn h02_any_other_key_of_ours_is_refused(rest in "[ -~]{0,40}", value in "[ -~]{0,40}") {
            let key = format!("{PREFIX}{rest}");
            prop_assume!(key != KERNEL_LOG && key != INIT);
            prop_assert!(parse(&one(&key, &value)).is_err());
        }
    }
}
