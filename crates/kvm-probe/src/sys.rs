//! The unsafe part: memory of the test VM.
#![expect(unsafe_code, reason = "KVM takes the address of guest memory")]

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Guest physical address of the code.
pub(crate) const CODE: u64 = 0x1000;

/// Private anonymous memory that a VM may use as its own; it is unmapped when dropped.
pub(crate) struct GuestMemory {
    address: NonNull<std::ffi::c_void>,
    len: usize,
}

impl GuestMemory {
    /// Maps one page filled with the beginning `code`.
    pub(crate) fn page_with(code: &[u8]) -> nix::Result<Self> {
        const PAGE: NonZeroUsize = NonZeroUsize::new(4096).expect("4096 is not zero");
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing that exists.
        let address = unsafe { mmap_anonymous(None, PAGE, prot, MapFlags::MAP_PRIVATE)? };
        let len = code.len().min(PAGE.get());
        // SAFETY: the mapping is PAGE bytes long, writable and not shared yet; `len` is at most that and at most
        // the source's length; the two do not overlap since the mapping is new.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), address.as_ptr().cast(), len) };
        Ok(Self { address, len: PAGE.get() })
    }

    /// Gives the page to a VM at [`CODE`]. The VM must be dropped before `self`.
    pub(crate) fn attach(&self, vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: CODE,
            memory_size: self.len as u64,
            userspace_addr: self.address.as_ptr() as u64,
        };
        // SAFETY: the region is mapped for as long as `self` lives, and the caller keeps `self` longer than the VM;
        // nothing in this process reads or writes it after this.
        unsafe { vm.set_user_memory_region(region) }
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `page_with` with this length and nothing refers to it any more.
        // A failure could only leak the page.
        let _ = unsafe { munmap(self.address, self.len) };
    }
}
