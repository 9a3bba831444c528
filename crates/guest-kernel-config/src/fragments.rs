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

/// Every fragment of the guest kernel, first to last.
pub const FRAGMENTS: &[Fragment] = &[
    fragment!("00-core"),
    fragment!("10-kvmguest"),
    fragment!("20-virtio"),
    fragment!("30-fs"),
    fragment!("40-containers"),
    fragment!("50-net"),
    fragment!("60-netfilter"),
    fragment!("70-security"),
    fragment!("80-tuning"),
    fragment!("81-fastboot"),
];

/// The only contradictions that a merge accepts.
pub const OVERRIDES: &[Override] = &[Override {
    symbol: "PARAVIRT_SPINLOCKS",
    fragment: "81-fastboot",
    reason: "10-kvmguest lists what a KVM guest can use; patching its 6,700 alternatives costs 14.8 M instructions \
             of every boot, which a guest of few vCPUs never earns back",
}];
