//! What the guest learns about its processor: KVM's own list with the edits of a table, then the topology.
//!
//! Edits only hide what has no place in a guest, with two exceptions that KVM leaves to its user: the hypervisor bit and the TSC deadline
//! timer, which KVM runs but does not list.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// What the edits depend on.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// vCPUs of the machine.
    pub vcpus: u8,
    /// KVM_CAP_TSC_DEADLINE_TIMER.
    pub tsc_deadline: bool,
}

/// A register of a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// What happens to the bits of the mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Hide(u32),
    Show(u32),
    ShowWithTscDeadline(u32),
}

struct Edit {
    leaf: u32,
    subleaf: u32,
    register: Register,
    change: Change,
}

const fn edit(leaf: u32, subleaf: u32, register: Register, change: Change) -> Edit {
    Edit { leaf, subleaf, register, change }
}

const fn bits(list: &[u32]) -> u32 {
    let mut mask = 0;
    let mut at = 0;
    while at < list.len() {
        mask |= 1 << list[at];
        at += 1;
    }
    mask
}

use Change::{Hide, Show, ShowWithTscDeadline};
use Register::{Eax, Ebx, Ecx, Edx};

const EDITS: &[Edit] = &[
    // A guest must know that it is one: kvmclock, paravirtual EOI and steal time hang on this bit.
    edit(0x1, 0, Ecx, Show(bits(&[31]))),
    // Timer without calibration: 240 million instructions less at boot.
    edit(0x1, 0, Ecx, ShowWithTscDeadline(bits(&[24]))),
    // MONITOR: would only exit. VMX: no nesting, so that the host's nested code cannot be reached.
    // SMX, PDCM: no such MSRs in a guest.
    edit(0x1, 0, Ecx, Hide(bits(&[3, 5, 6, 15]))),
    // Debug store, thermal monitor, pending-break: no such MSRs in a guest.
    edit(0x1, 0, Edx, Hide(bits(&[21, 22, 29, 31]))),
    // SGX, cache monitoring and allocation, processor trace: host resources that are not handed out.
    edit(0x7, 0, Ebx, Hide(bits(&[2, 12, 15, 25]))),
    edit(0x7, 0, Ecx, Hide(bits(&[30]))),
    // AMX: 8 KiB of state a thread, and a host permission of its own (ARCH_REQ_XCOMP_GUEST_PERM).
    edit(0x7, 0, Edx, Hide(bits(&[22, 24, 25]))),
    edit(0x7, 1, Eax, Hide(bits(&[21]))),
    edit(0x7, 1, Edx, Hide(bits(&[8]))),
    edit(0xd, 0, Eax, Hide(bits(&[17, 18]))),
    // SVM: no nesting. IBS, performance counter extensions: counters see other tenants of the core.
    edit(0x8000_0001, 0, Ecx, Hide(bits(&[2, 10, 23, 24, 28]))),
];

/// Leaves that read as zero, and why.
const HIDDEN_LEAVES: &[u32] = &[
    0xa,         // performance counters: see other tenants of the core
    0xf,         // cache monitoring
    0x10,        // cache allocation
    0x12,        // SGX
    0x14,        // processor trace
    0x1d,        // AMX tiles
    0x1e,        // AMX multiplier
    0x1f,        // topology, second form: 0xb says it all
    0x8000_000a, // SVM
    0x8000_001b, // IBS
    0x8000_001f, // memory encryption
    0x8000_0022, // performance counters
    0x8000_0026, // topology, AMD's second form
];

const HTT: u32 = 1 << 28;
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// A list that KVM's structure has no room for.
#[derive(Debug, thiserror::Error)]
#[error("the CPUID list could not be made")]
pub struct CpuIdError(#[source] vmm_sys_util::fam::Error);

/// The list of vCPU `id`, from KVM's `supported`.
///
/// # Errors
/// [`CpuIdError`] where the list gets too long.
pub fn for_vcpu(supported: &CpuId, machine: Machine, id: u8) -> Result<CpuId, CpuIdError> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        // The topology leaf is written anew, with as many sub-leaves as it needs.
        .filter(|entry| entry.function != 0xb)
        .copied()
        .collect();
    for entry in &mut entries {
        apply_edits(entry, machine);
        apply_topology(entry, machine.vcpus, id);
    }
    entries.extend(extended_topology(machine.vcpus, id));
    CpuId::from_entries(&entries).map_err(CpuIdError)
}

fn apply_edits(entry: &mut kvm_cpuid_entry2, machine: Machine) {
    let tiles = entry.function == 0xd && matches!(entry.index, 17 | 18);
    if HIDDEN_LEAVES.contains(&entry.function) || tiles {
        (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        return;
    }
    for edit in EDITS.iter().filter(|edit| (edit.leaf, edit.subleaf) == (entry.function, entry.index)) {
        let register = match edit.register {
            Eax => &mut entry.eax,
            Ebx => &mut entry.ebx,
            Ecx => &mut entry.ecx,
            Edx => &mut entry.edx,
        };
        match edit.change {
            Hide(mask) => *register &= !mask,
            Show(mask) => *register |= mask,
            ShowWithTscDeadline(mask) if machine.tsc_deadline => *register |= mask,
            ShowWithTscDeadline(mask) => *register &= !mask,
        }
    }
}

/// One package of `vcpus` cores with one thread each, in the leaves that KVM fills from the host.
fn apply_topology(entry: &mut kvm_cpuid_entry2, vcpus: u8, id: u8) {
    let last = u32::from(vcpus) - 1;
    let id = u32::from(id);
    let id_bits = core_bits(vcpus);
    match entry.function {
        0x1 => {
            let ids = 1 << id_bits;
            entry.ebx = (entry.ebx & 0xffff) | (ids << 16) | (id << 24);
            entry.edx = if vcpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
        }
        // Caches: EAX bits 14-25 threads that share it, bits 26-31 cores of the package. Only level 3 is shared.
        0x4 if entry.eax & 0x1f != 0 => {
            let sharing = if (entry.eax >> 5) & 7 >= 3 { last } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | (sharing << 14) | (last.min(63) << 26);
        }
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let sharing = if (entry.eax >> 5) & 7 >= 3 { last } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | (sharing << 14);
        }
        0x8000_0008 => entry.ecx = (entry.ecx & !0xf0ff) | last | (id_bits << 12),
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        _ => {}
    }
}

fn extended_topology(vcpus: u8, id: u8) -> [kvm_cpuid_entry2; 3] {
    let level = |index, shift, count, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: (kind << 8) | index,
        edx: u32::from(id),
        ..Default::default()
    };
    [level(0, 0, 1, LEVEL_SMT), level(1, core_bits(vcpus), u32::from(vcpus), LEVEL_CORE), level(2, 0, 0, 0)]
}

/// Bits of an APIC id that number the cores.
fn core_bits(vcpus: u8) -> u32 {
    u32::from(vcpus).next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, all: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax: all, ebx: all, ecx: all, edx: all, ..Default::default() }
    }

    fn make(entries: &[kvm_cpuid_entry2], machine: Machine, id: u8) -> Vec<kvm_cpuid_entry2> {
        for_vcpu(&CpuId::from_entries(entries).unwrap(), machine, id).unwrap().as_slice().to_vec()
    }

    fn find(list: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *list.iter().find(|entry| (entry.function, entry.index) == (function, index)).unwrap()
    }

    const TWO: Machine = Machine { vcpus: 2, tsc_deadline: true };

    #[test]
    fn hypervisor_and_deadline_bits_are_added() {
        let list = make(&[entry(1, 0, 0)], TWO, 0);
        assert_eq!(find(&list, 1, 0).ecx, 1 << 31 | 1 << 24);
    }

    #[test]
    fn deadline_bit_is_hidden_where_kvm_has_no_such_timer() {
        let machine = Machine { vcpus: 1, tsc_deadline: false };
        let list = make(&[entry(1, 0, u32::MAX)], machine, 0);
        assert_eq!(find(&list, 1, 0).ecx & (1 << 24), 0);
    }

    #[test]
    fn s36_nesting_counters_and_tiles_are_hidden() {
        let all = u32::MAX;
        let list = make(
            &[entry(1, 0, all), entry(7, 0, all), entry(0xa, 0, all), entry(0x8000_0001, 0, all)],
            TWO,
            0,
        );
        assert_eq!(find(&list, 1, 0).ecx & (1 << 5), 0);
        assert_eq!(find(&list, 0x8000_0001, 0).ecx & (1 << 2), 0);
        assert_eq!(find(&list, 0xa, 0).eax, 0);
        assert_eq!(find(&list, 7, 0).edx & (1 << 24), 0);
    }

    #[test]
    fn each_vcpu_reads_its_own_id() {
        let machine = Machine { vcpus: 5, tsc_deadline: true };
        let list = make(&[entry(1, 0, 0), entry(0xb, 0, 9)], machine, 4);
        assert_eq!(find(&list, 1, 0).ebx, 4 << 24 | 8 << 16);
        assert_eq!(find(&list, 0xb, 0).edx, 4);
        let core = find(&list, 0xb, 1);
        assert_eq!((core.eax, core.ebx, core.ecx), (3, 5, 0x201));
        assert_eq!(list.iter().filter(|entry| entry.function == 0xb).count(), 3);
    }
}
