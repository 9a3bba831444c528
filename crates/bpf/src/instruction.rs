//! Instructions.

/// One instruction of extended BPF (kernel: Documentation/bpf/standardization/instruction-set.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Insn {
    /// Class, source and operation.
    pub code: u8,
    /// Destination register in the low four bits, source register in the high four.
    pub registers: u8,
    /// Jump or memory offset.
    pub offset: i16,
    /// Immediate operand.
    pub immediate: i32,
}
