//! The kernel command line: made of constants and numbers only, so no text of an owner reaches it (H02, H03).

use nacre_protocol::vm::KernelLog;

use super::layout;

/// Ticks a second of the guest kernel (CONFIG_HZ).
const GUEST_HZ: u64 = 100;

/// What the text depends on.
#[derive(Debug, Clone, Copy)]
pub struct CommandLine {
    /// How much the kernel prints.
    pub log: KernelLog,
    /// Slots, with a device or without.
    pub slots: usize,
    /// vCPUs.
    pub vcpus: u8,
    /// Frequency of the guest's TSC, where KVM tells it.
    pub tsc_khz: Option<u32>,
}

/// A command line that the kernel would cut.
#[derive(Debug, thiserror::Error)]
#[error("kernel command line has {0} bytes, the kernel takes fewer than {max}", max = layout::COMMAND_LINE_MAX)]
pub struct CommandLineTooLong(usize);

impl CommandLine {
    /// The text.
    ///
    /// # Errors
    /// [`CommandLineTooLong`].
    pub fn text(&self) -> Result<String, CommandLineTooLong> {
        let mut text = String::with_capacity(layout::COMMAND_LINE_MAX);
        text.push_str("console=ttyS0 ");
        text.push_str(match self.log {
            KernelLog::Quiet => "quiet",
            KernelLog::Info => "loglevel=7",
            KernelLog::Debug => "loglevel=8",
        });
        // A restart is a triple fault: the one way out that needs no device. -1: a panic restarts at once.
        text.push_str(" reboot=t panic=-1");
        // No check of one CPU's TSC against another's: KVM keeps them together.
        text.push_str(" tsc=reliable");
        // No bounce buffers: no device here is limited in its addresses. Frees 64 MiB of a large guest.
        text.push_str(" swiotlb=noforce");
        // Per-CPU memory in pages, not in units of 2 MiB: with those the kernel clears 2 MiB as it boots, and 4 MiB more (a
        // pointer for each 4 bytes of a unit) when the first memory cgroup is made.
        text.push_str(" percpu_alloc=page");
        // Lock prefixes stay in the code. A kernel with one CPU takes them all out as it boots, and so makes a copy of each
        // page of its text that the VMM maps from the file.
        text.push_str(" noreplace-smp");
        // The second CPU and on would each spend 150 ms to count loops that the TSC's rate already tells.
        if let Some(khz) = self.tsc_khz.filter(|_| self.vcpus > 1) {
            text.push_str(&format!(" lpj={}", u64::from(khz) * 1000 / GUEST_HZ));
        }
        for slot in 0..self.slots {
            let address = layout::slot_address(slot);
            let line = layout::slot_line(slot);
            text.push_str(&format!(" virtio_mmio.device=4K@{address:#x}:{line}"));
        }
        if text.len() >= layout::COMMAND_LINE_MAX {
            return Err(CommandLineTooLong(text.len()));
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_protocol::vm::MAX_SLOTS;

    #[test]
    fn h03_command_line_equals_its_golden_text() {
        let line = CommandLine { log: KernelLog::Quiet, slots: 2, vcpus: 1, tsc_khz: Some(2_500_000) };
        assert_eq!(
            line.text().unwrap(),
            "console=ttyS0 quiet reboot=t panic=-1 tsc=reliable swiotlb=noforce \
             percpu_alloc=page noreplace-smp \
             virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6"
        );
    }

    #[test]
    fn more_vcpus_are_told_the_loops_per_tick() {
        let line = CommandLine { log: KernelLog::Debug, slots: 0, vcpus: 2, tsc_khz: Some(2_500_000) };
        assert_eq!(
            line.text().unwrap(),
            "console=ttyS0 loglevel=8 reboot=t panic=-1 tsc=reliable swiotlb=noforce \
             percpu_alloc=page noreplace-smp lpj=25000000"
        );
    }

    #[test]
    fn all_slots_fit() {
        let line = CommandLine { log: KernelLog::Info, slots: MAX_SLOTS, vcpus: 64, tsc_khz: Some(u32::MAX) };
        assert!(line.text().is_ok());
    }
}
