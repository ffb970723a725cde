//! The floating-point modes of this thread. A host process may have subnormal numbers flushed to zero
//! (`torch.set_flush_denormal`), and threads inherit this. Two scores with a subnormal gap would be tied.
#![allow(unsafe_code)]

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use std::arch::asm;

/// The modes of IEEE 754 on this thread, as Rust expects them, until the value is dropped.
pub(crate) struct Standard {
    found: u64,
}

impl Standard {
    #[inline]
    pub(crate) fn modes() -> Standard {
        let found = read();
        if found & CHANGED != 0 {
            write(found & !CHANGED);
        }
        Standard { found }
    }
}

impl Drop for Standard {
    #[inline]
    fn drop(&mut self) {
        if self.found & CHANGED != 0 {
            write(self.found);
        }
    }
}

/// MXCSR: flush-to-zero, the direction of rounding, and denormals-are-zeros.
#[cfg(target_arch = "x86_64")]
const CHANGED: u64 = 0xe040;

#[cfg(target_arch = "x86_64")]
fn read() -> u64 {
    let mut modes = 0u32;
    // SAFETY: every x86-64 has SSE, and the instruction writes the four bytes of `modes`.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut modes, options(nostack, preserves_flags)) };
    modes.into()
}

#[cfg(target_arch = "x86_64")]
fn write(modes: u64) {
    let modes = modes as u32;
    // SAFETY: `modes` is what `read` found, with some modes off, so no reserved bit is set.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const modes, options(nostack, preserves_flags)) };
}

/// FPCR: flush-to-zero, for half precision too, and the direction of rounding.
#[cfg(target_arch = "aarch64")]
const CHANGED: u64 = 0x1c8_0000;

#[cfg(target_arch = "aarch64")]
fn read() -> u64 {
    let modes: u64;
    // SAFETY: every AArch64 lets a program read its FPCR.
    unsafe { asm!("mrs {}, fpcr", out(reg) modes, options(nostack, preserves_flags)) };
    modes
}

#[cfg(target_arch = "aarch64")]
fn write(modes: u64) {
    // SAFETY: `modes` is what `read` found, with some modes off.
    unsafe { asm!("msr fpcr, {}", in(reg) modes, options(nostack, preserves_flags)) };
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const CHANGED: u64 = 0;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn read() -> u64 {
    0
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn write(_: u64) {}
