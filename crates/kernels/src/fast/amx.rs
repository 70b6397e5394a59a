//! Products of bfloat16 matrices by the tiles of AMX: 16 x 32 times 32 x 16 in one instruction.
//!
//! A tile is sixteen rows of 64 bytes. The left operand's rows are 32 values along the sum; the right operand's are 16
//! columns of a pair of them, which is how [`pairs`](super::pairs) lays elements out. Rust has no stable intrinsics for
//! this, so the kernel is assembly; the registers belong to nothing else in the program.

#![expect(unsafe_code, reason = "assembly")]

/// Rows and columns of a result tile.
pub(super) const SIDE: usize = 16;
/// Elements (pairs) along the sum in a tile.
pub(super) const DEPTH: usize = 16;
/// Elements of a tile.
pub(super) const TILE: usize = SIDE * DEPTH;

/// Results of up to two by two tiles, [row of tiles][column of tiles][row][column].
#[repr(C, align(64))]
pub(super) struct Results(pub(super) [[[[f32; SIDE]; SIDE]; 2]; 2]);

/// Operands of up to two by two result tiles.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    /// The first step's left tile.
    pub(super) a: *const f32,
    /// Bytes from it to the second row of tiles.
    pub(super) a_second: usize,
    /// Bytes between the rows of a left tile.
    pub(super) a_stride: usize,
    /// Bytes from a step's left tile to the next step's.
    pub(super) a_step: usize,
    /// What the steps count from.
    pub(super) b: *const f32,
    /// Bytes from a right tile to the second column of tiles.
    pub(super) b_second: usize,
    /// Bytes between the rows of a right tile.
    pub(super) b_stride: usize,
    /// Bytes from `b` to each step's right tile.
    pub(super) steps: &'a [usize],
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x86 {
    use std::{arch::asm, marker::PhantomData, sync::OnceLock};

    use super::{Operands, Results};

    /// Whether the processor has the tiles and the system lets this process use them.
    pub(in crate::fast) fn is_available() -> bool {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(|| {
            use std::arch::x86_64::{__cpuid, __cpuid_count};
            const AMX_BF16: u32 = 1 << 22;
            const AMX_TILE: u32 = 1 << 24;
            if __cpuid(0).eax < 7
                || __cpuid_count(7, 0).edx & (AMX_BF16 | AMX_TILE) != AMX_BF16 | AMX_TILE
            {
                return false;
            }
            // Linux gives the tiles' state to processes that ask for it (Documentation/arch/x86/xstate.rst).
            const SYS_ARCH_PRCTL: isize = 158;
            const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
            const XFEATURE_XTILEDATA: usize = 18;
            let mut result = SYS_ARCH_PRCTL;
            // SAFETY: the call reads and writes no memory of ours; the kernel keeps all registers but these.
            unsafe {
                asm!(
                    "syscall",
                    inout("rax") result,
                    in("rdi") ARCH_REQ_XCOMP_PERM,
                    in("rsi") XFEATURE_XTILEDATA,
                    lateout("rcx") _,
                    lateout("r11") _,
                    options(nostack)
                );
            }
            result == 0
        })
    }

    /// The tiles of this thread, configured; given back when dropped.
    pub(in crate::fast) struct Tiles(PhantomData<*const ()>);

    impl Tiles {
        /// Eight tiles of sixteen rows of 64 bytes. `None` where there are none.
        pub(in crate::fast) fn new() -> Option<Self> {
            #[repr(C, align(64))]
            struct Config([u8; 64]);
            static CONFIG: Config = {
                let mut bytes = [0; 64];
                bytes[0] = 1;
                let mut i = 0;
                while i < 8 {
                    bytes[16 + 2 * i] = 64;
                    bytes[48 + i] = 16;
                    i += 1;
                }
                Config(bytes)
            };
            is_available().then(|| {
                // SAFETY: the machine has the instruction; it reads 64 bytes.
                unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack)) };
                Self(PhantomData)
            })
        }

        /// `results += a b` for `M` rows and `N` columns of tiles.
        ///
        /// # Safety
        /// Every tile that the operands describe is valid for reading.
        #[inline(always)]
        pub(in crate::fast) unsafe fn multiply<const M: usize, const N: usize>(
            &self,
            operands: &Operands<'_>,
            results: &mut Results,
        ) {
            const { assert!(M == 1 || M == 2) };
            const { assert!(N == 1 || N == 2) };
            if operands.steps.is_empty() {
                return;
            }
            let steps = operands.steps.as_ptr_range();
            macro_rules! run {
                ($load:literal, $products:literal, $store:literal) => {
                    // SAFETY: by the caller's promise; `self` says that the tiles are configured, and the
                    // results are as large as the tiles that are loaded and stored. LLVM uses no tile on its own.
                    unsafe {
                        asm!(
                            $load,
                            "2:",
                            "mov {at}, [{step}]",
                            "add {at}, {b}",
                            $products,
                            "add {a0}, {a_step}",
                            "add {a1}, {a_step}",
                            "add {step}, 8",
                            "cmp {step}, {end}",
                            "jne 2b",
                            $store,
                            step = inout(reg) steps.start => _,
                            end = in(reg) steps.end,
                            at = out(reg) _,
                            b = in(reg) operands.b,
                            bs = in(reg) operands.b_stride,
                            b2 = in(reg) operands.b_second,
                            a0 = inout(reg) operands.a => _,
                            a1 = inout(reg) operands.a.wrapping_byte_add(operands.a_second) => _,
                            sa = in(reg) operands.a_stride,
                            a_step = in(reg) operands.a_step,
                            out = in(reg) results,
                            row = in(reg) 64usize,
                            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                            options(nostack)
                        );
                    }
                };
            }
            match (M, N) {
                (1, 1) => run!(
                    "tileloadd tmm0, [{out} + {row}]",
                    "tileloadd tmm6, [{at} + {bs}]
                     tileloadd tmm4, [{a0} + {sa}]
                     tdpbf16ps tmm0, tmm4, tmm6
                     /* {b2} */",
                    "tilestored [{out} + {row}], tmm0"
                ),
                (1, 2) => run!(
                    "tileloadd tmm0, [{out} + {row}]
                     tileloadd tmm1, [{out} + {row} + 1024]",
                    "tileloadd tmm6, [{at} + {bs}]
                     tileloadd tmm4, [{a0} + {sa}]
                     add {at}, {b2}
                     tdpbf16ps tmm0, tmm4, tmm6
                     tileloadd tmm7, [{at} + {bs}]
                     tdpbf16ps tmm1, tmm4, tmm7",
                    "tilestored [{out} + {row}], tmm0
                     tilestored [{out} + {row} + 1024], tmm1"
                ),
                (2, 1) => run!(
                    "tileloadd tmm0, [{out} + {row}]
                     tileloadd tmm2, [{out} + {row} + 2048]",
                    "tileloadd tmm6, [{at} + {bs}]
                     tileloadd tmm4, [{a0} + {sa}]
                     tdpbf16ps tmm0, tmm4, tmm6
                     tileloadd tmm5, [{a1} + {sa}]
                     tdpbf16ps tmm2, tmm5, tmm6
                     /* {b2} */",
                    "tilestored [{out} + {row}], tmm0
                     tilestored [{out} + {row} + 2048], tmm2"
                ),
                _ => run!(
                    "tileloadd tmm0, [{out} + {row}]
                     tileloadd tmm1, [{out} + {row} + 1024]
                     tileloadd tmm2, [{out} + {row} + 2048]
                     tileloadd tmm3, [{out} + {row} + 3072]",
                    "tileloadd tmm6, [{at} + {bs}]
                     tileloadd tmm4, [{a0} + {sa}]
                     add {at}, {b2}
                     tdpbf16ps tmm0, tmm4, tmm6
                     tileloadd tmm5, [{a1} + {sa}]
                     tdpbf16ps tmm2, tmm5, tmm6
                     tileloadd tmm7, [{at} + {bs}]
                     tdpbf16ps tmm1, tmm4, tmm7
                     tdpbf16ps tmm3, tmm5, tmm7",
                    "tilestored [{out} + {row}], tmm0
                     tilestored [{out} + {row} + 1024], tmm1
                     tilestored [{out} + {row} + 2048], tmm2
                     tilestored [{out} + {row} + 3072], tmm3"
                ),
            }
        }
    }

    impl Drop for Tiles {
        fn drop(&mut self) {
            // SAFETY: the machine has the instruction, which frees the tiles.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) use x86::{Tiles, is_available};

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod none {
    use super::{Operands, Results};

    /// There are no tiles.
    pub(in crate::fast) fn is_available() -> bool {
        false
    }

    /// Tiles, which this system does not have.
    pub(in crate::fast) enum Tiles {}

    impl Tiles {
        /// `None`.
        pub(in crate::fast) fn new() -> Option<Self> {
            None
        }

        /// Never runs.
        pub(in crate::fast) unsafe fn multiply<const M: usize, const N: usize>(
            &self,
            _: &Operands<'_>,
            _: &mut Results,
        ) {
            match *self {}
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(super) use none::{Tiles, is_available};
