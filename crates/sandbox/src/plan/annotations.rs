//! Annotations that mean anything to nacre: an allow-list with typed values.
//!
//! An annotation may come from whoever writes a pod or an image. None names a host path, a program, a kernel
//! parameter or a VMM option (H02, H03), and an unknown one under our prefix is refused instead of ignored, so
//! that a misspelt wish does not pass unseen. Annotations of others are not ours to judge.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::str::FromStr;

use nacre_protocol::annotations::INIT;
use nacre_protocol::vm::{KernelLog, MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};

use super::resources::{HostLimits, Resources, Size};
use crate::text::harmless;

/// Prefix of our annotations.
pub const PREFIX: &str = "dev.nacre.";

/// `quiet`, `info` or `debug`: how much the guest kernel prints.
pub const KERNEL_LOG: &str = "dev.nacre.kernel-log";

/// vCPUs of the VM, 1 to [`MAX_VCPUS`]; never more than the host has.
pub const VCPUS: &str = "dev.nacre.vcpus";

/// Memory of the VM in MiB, its kernel's included, [`MIN_MEMORY_MIB`] to [`MAX_MEMORY_MIB`]. Not beside a memory limit, which it would
/// go round.
pub const MEMORY_MIB: &str = "dev.nacre.memory-mib";

/// What annotations may choose.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// How much the guest kernel prints.
    pub kernel_log: KernelLog,
    /// vCPUs of the VM.
    pub vcpus: Option<u8>,
    /// Memory of the VM.
    pub memory_mib: Option<u32>,
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
    /// The VM has its memory from a limit.
    #[error("annotation {MEMORY_MIB} cannot be given beside a memory limit: the limit is the VM's size")]
    Limited,
    /// More than there is.
    #[error("annotation {MEMORY_MIB} asks for {wanted_mib} MiB, and this host has {host_mib} MiB")]
    Memory {
        /// The value.
        wanted_mib: u32,
        /// What the host has.
        host_mib: u32,
    },
}

impl Options {
    /// Gives a VM the size that was chosen for it.
    ///
    /// # Errors
    /// [`AnnotationError::Limited`], [`AnnotationError::Memory`].
    pub(super) fn resize(
        &self,
        mut size: Size,
        limits: &Resources,
        host: HostLimits,
    ) -> Result<Size, AnnotationError> {
        if let Some(vcpus) = self.vcpus {
            size.vcpus = u8::try_from(host.cpus.clamp(1, vcpus.into())).unwrap_or(MAX_VCPUS);
        }
        if let Some(wanted_mib) = self.memory_mib {
            if limits.memory.limit.is_some_and(|limit| limit > 0) {
                return Err(AnnotationError::Limited);
            }
            if wanted_mib > host.memory_mib {
                return Err(AnnotationError::Memory { wanted_mib, host_mib: host.memory_mib });
            }
            size.memory_mib = wanted_mib;
        }
        Ok(size)
    }
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
            VCPUS => options.vcpus = Some(number(VCPUS, value, 1..=MAX_VCPUS)?),
            MEMORY_MIB => {
                options.memory_mib = Some(number(MEMORY_MIB, value, MIN_MEMORY_MIB..=MAX_MEMORY_MIB)?);
            }
            // For the agent, which reads it from the configuration.
            INIT => check_switch(INIT, value)?,
            _ => return Err(AnnotationError::Unknown(harmless(key, 128))),
        }
    }
    Ok(options)
}

/// A decimal number without a sign or leading zeros.
fn number<T: FromStr + PartialOrd + ToString>(
    key: &'static str,
    value: &str,
    range: RangeInclusive<T>,
) -> Result<T, AnnotationError> {
    let number =
        value.parse().ok().filter(|number: &T| range.contains(number) && number.to_string() == value);
    number.ok_or_else(|| AnnotationError::BadValue { key, value: harmless(value, 64) })
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
    use super::super::spec::Memory;
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
    fn h03_sizes_are_numbers_of_a_range() {
        for value in ["", "0", "65", "+2", "02", " 2", "2 ", "2.5", "-1", "0x2", "99999999999999999999"] {
            assert!(parse(&one(VCPUS, value)).is_err(), "{value:?}");
        }
        for value in ["47", "1048577", "512Mi", "0512"] {
            assert!(parse(&one(MEMORY_MIB, value)).is_err(), "{value:?}");
        }
        assert_eq!(parse(&one(VCPUS, "64")).unwrap().vcpus, Some(64));
        assert_eq!(parse(&one(MEMORY_MIB, "48")).unwrap().memory_mib, Some(48));
    }

    #[test]
    fn chosen_size_is_within_the_host_and_never_beside_a_limit() {
        let host = HostLimits { cpus: 4, memory_mib: 8192 };
        let size = Size { vcpus: 1, memory_mib: 512, cpu_max: None, cpu_shares: None };
        let none = Resources::default();
        let chosen = |vcpus, memory_mib| Options { vcpus, memory_mib, ..Options::default() };
        assert_eq!(chosen(None, None).resize(size, &none, host), Ok(size));
        let resized = chosen(Some(2), Some(2048)).resize(size, &none, host).unwrap();
        assert_eq!((resized.vcpus, resized.memory_mib), (2, 2048));
        assert_eq!(chosen(Some(64), None).resize(size, &none, host).unwrap().vcpus, 4);
        let error = chosen(None, Some(8193)).resize(size, &none, host).unwrap_err();
        assert_eq!(error, AnnotationError::Memory { wanted_mib: 8193, host_mib: 8192 });
        let limited = Resources { memory: Memory { limit: Some(1 << 30) }, ..Resources::default() };
        assert_eq!(chosen(None, Some(64)).resize(size, &limited, host), Err(AnnotationError::Limited));
    }

    #[test]
    fn annotations_of_others_are_left_alone() {
        assert_eq!(parse(&one("org.systemd.property.ExecStart", "x=+y\n")), Ok(Options::default()));
    }

    proptest! {
        #[test]
        fn h02_any_other_key_of_ours_is_refused(rest in "[ -~]{0,40}", value in "[ -~]{0,40}") {
            let key = format!("{PREFIX}{rest}");
            prop_assume!(![KERNEL_LOG, INIT, VCPUS, MEMORY_MIB].contains(&key.as_str()));
            prop_assert!(parse(&one(&key, &value)).is_err());
        }
    }
}
