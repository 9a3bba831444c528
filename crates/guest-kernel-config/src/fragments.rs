//! The configuration fragments, in the order in which they are merged, and the overrides among them.

/// A fragment: the settings of one concern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// File name without `.config`.
    pub name: &'static str,
    /// The file's text.
    pub text: &'static str,
}

/// A place where a later fragment changes what an earlier one says, with the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Override {
    /// Symbol without `CONFIG_`.
    pub symbol: &'static str,
    /// Name of the fragment that has the last word.
    pub fragment: &'static str,
    /// Why the earlier word stands all the same, and why this one wins.
    pub reason: &'static str,
}

macro_rules! fragment {
    ($name:literal) => {
        Fragment { name: $name, text: include_str!(concat!("../fragments/", $name, ".config")) }
    };
}

/// Every fragment of the ordinary guest kernel, first to last.
pub const FRAGMENTS: &[Fragment] = &[
    fragment!("00-core"),
    fragment!("10-kvmguest"),
    fragment!("20-virtio"),
    fragment!("30-fs"),
    fragment!("40-containers"),
    fragment!("50-net"),
    fragment!("60-netfilter"),
    fragment!("70-security"),
    fragment!("71-nomitigations"),
    fragment!("80-tuning"),
    fragment!("81-fastboot"),
];

/// What [`Mitigations::On`] puts in the place of `71-nomitigations`.
const MITIGATIONS: Fragment = fragment!("71-mitigations");

/// Whether the guest's kernel defends itself against its own processes through flaws of the processor. What one VM may
/// learn of another is the host's affair either way (`docs/adr/0008-no-mitigations-in-the-guest.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mitigations {
    /// The ordinary kernel.
    #[default]
    Off,
    /// For a guest whose processes must not read each other's memory through the kernel.
    On,
}

/// The fragments of one kind of kernel, first to last.
pub fn fragments(mitigations: Mitigations) -> Vec<Fragment> {
    let choose = |fragment: &Fragment| match mitigations {
        Mitigations::On if fragment.name == "71-nomitigations" => MITIGATIONS,
        _ => *fragment,
    };
    FRAGMENTS.iter().map(choose).collect()
}

/// The only contradictions that a merge accepts.
pub const OVERRIDES: &[Override] = &[Override {
    symbol: "PARAVIRT_SPINLOCKS",
    fragment: "81-fastboot",
    reason: "10-kvmguest lists what a KVM guest can use; patching its 6,700 alternatives costs 14.8 M instructions \
             of every boot, which a guest of few vCPUs never earns back",
}];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Merged;

    #[test]
    fn each_kind_says_its_word_on_mitigations() {
        for (mitigations, line) in [
            (Mitigations::Off, "# CONFIG_CPU_MITIGATIONS is not set"),
            (Mitigations::On, "CONFIG_CPU_MITIGATIONS=y"),
        ] {
            let text = Merged::new(&fragments(mitigations), OVERRIDES).unwrap().text();
            assert!(text.lines().any(|found| found == line), "{mitigations:?}");
        }
    }
}
