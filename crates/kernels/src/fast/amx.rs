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

/// Results of up to two by two tiles, by rows.
#[repr(C, align(64))]
#[derive(Clone)]
pub(super) struct Results(pub(super) [[f32; 2 * SIDE]; 2 * SIDE]);

impl Results {
    /// Zeros.
    pub(super) const ZERO: Self = Self([[0.0; 2 * SIDE]; 2 * SIDE]);

    /// Where they are.
    pub(super) fn place(&mut self) -> Place {
        Place {
            at: self.0.as_mut_ptr().cast(),
            stride: 4 * 2 * SIDE,
        }
    }
}

/// Where up to two by two tiles lie.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Place {
    /// The first row.
    pub(super) at: *mut f32,
    /// Bytes between rows; 0 where all are the same.
    pub(super) stride: usize,
}

/// A row of zeros.
static ZEROS: [f32; 2 * SIDE] = [0.0; 2 * SIDE];

impl Place {
    /// The same row again and again; to be read.
    pub(super) fn every_row(row: &[f32]) -> Self {
        Self {
            at: row.as_ptr().cast_mut(),
            stride: 0,
        }
    }

    /// Zeros; to be read.
    pub(super) fn zeros() -> Self {
        Self::every_row(&ZEROS)
    }
}

/// What comes next and is fetched meanwhile into the second-level cache: with every step one line of each of four rows.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Next {
    /// The first row; it need not be valid.
    pub(super) at: *const u8,
    /// Bytes between rows.
    pub(super) stride: usize,
    /// Bytes from a step's lines to the next step's.
    pub(super) step: usize,
}

impl Next {
    /// Nothing but what is there already.
    pub(super) fn nothing(there: *const f32) -> Self {
        Self {
            at: there.cast(),
            stride: 0,
            step: 0,
        }
    }
}

/// Operands of up to two by two result tiles.
#[derive(Clone, Copy)]
#[repr(C)]
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
    /// What the products are added to.
    pub(super) start: Place,
    /// Where the sums go.
    pub(super) out: Place,
    /// What is fetched meanwhile.
    pub(super) next: Next,
}

impl<'a> Operands<'a> {
    /// Packed tiles, two rows of them `second` elements apart, times a panel `[16 steps, 32]`, of which `steps` are
    /// the bytes before each.
    pub(super) fn of_panel(
        a: &[f32],
        second: usize,
        b: &[f32],
        steps: &'a [usize],
        [start, out]: [Place; 2],
    ) -> Self {
        Self {
            a: a.as_ptr(),
            a_second: 4 * second,
            a_stride: 4 * DEPTH,
            a_step: 4 * TILE,
            b: b.as_ptr(),
            b_second: 4 * SIDE,
            b_stride: 4 * 2 * SIDE,
            steps,
            start,
            out,
            next: Next::nothing(b.as_ptr()),
        }
    }

    /// The steps of a panel.
    pub(super) fn steps_of_panel(count: usize) -> Vec<usize> {
        (0..count).map(|step| step * 4 * DEPTH * 2 * SIDE).collect()
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x86 {
    use std::{arch::asm, marker::PhantomData, mem::offset_of, sync::OnceLock};

    use super::Operands;

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

        /// `out = start + a b` for `M` rows and `N` columns of tiles.
        ///
        /// # Safety
        /// Every tile that the operands describe is valid for reading, those of `out` for writing.
        #[inline(always)]
        unsafe fn multiply<const M: usize, const N: usize>(&self, operands: &Operands<'_>) {
            const { assert!(M == 1 || M == 2) };
            const { assert!(N == 1 || N == 2) };
            assert!(!operands.steps.is_empty());
            let steps = operands.steps.as_ptr_range();
            macro_rules! run {
                ($load:literal, $products:literal, $store:literal) => {
                    // SAFETY: by the caller's promise; `self` says that the tiles are configured. LLVM uses no
                    // tile on its own.
                    unsafe {
                        asm!(
                            "mov {s}, [{o} + {START_STRIDE}]",
                            "mov {a0}, [{o} + {START}]",
                            "mov {a1}, {s}",
                            "shl {a1}, 4",
                            "add {a1}, {a0}",
                            $load,
                            "mov {s}, [{o} + {A_STRIDE}]",
                            "mov {a0}, [{o} + {A}]",
                            "mov {a1}, {a0}",
                            "add {a1}, [{o} + {A_SECOND}]",
                            "mov {bs}, [{o} + {B_STRIDE}]",
                            "mov {b2}, [{o} + {B_SECOND}]",
                            "mov {next}, [{o} + {NEXT}]",
                            "mov {ns}, [{o} + {NEXT_STRIDE}]",
                            "2:",
                            "mov {at}, [{step}]",
                            "add {at}, [{o} + {B}]",
                            $products,
                            "lea {at}, [{next} + 2 * {ns}]",
                            "prefetcht1 [{next}]",
                            "prefetcht1 [{next} + {ns}]",
                            "prefetcht1 [{at}]",
                            "prefetcht1 [{at} + {ns}]",
                            "add {next}, [{o} + {NEXT_STEP}]",
                            "add {a0}, [{o} + {A_STEP}]",
                            "add {a1}, [{o} + {A_STEP}]",
                            "add {step}, 8",
                            "cmp {step}, {end}",
                            "jne 2b",
                            "mov {s}, [{o} + {OUT_STRIDE}]",
                            "mov {a0}, [{o} + {OUT}]",
                            "mov {a1}, {s}",
                            "shl {a1}, 4",
                            "add {a1}, {a0}",
                            $store,
                            o = in(reg) operands,
                            step = inout(reg) steps.start => _,
                            end = in(reg) steps.end,
                            at = out(reg) _,
                            bs = out(reg) _,
                            b2 = out(reg) _,
                            a0 = out(reg) _,
                            a1 = out(reg) _,
                            s = out(reg) _,
                            next = out(reg) _,
                            ns = out(reg) _,
                            A = const offset_of!(Operands<'_>, a),
                            A_SECOND = const offset_of!(Operands<'_>, a_second),
                            A_STRIDE = const offset_of!(Operands<'_>, a_stride),
                            A_STEP = const offset_of!(Operands<'_>, a_step),
                            B = const offset_of!(Operands<'_>, b),
                            B_SECOND = const offset_of!(Operands<'_>, b_second),
                            B_STRIDE = const offset_of!(Operands<'_>, b_stride),
                            START = const offset_of!(Operands<'_>, start.at),
                            START_STRIDE = const offset_of!(Operands<'_>, start.stride),
                            OUT = const offset_of!(Operands<'_>, out.at),
                            OUT_STRIDE = const offset_of!(Operands<'_>, out.stride),
                            NEXT = const offset_of!(Operands<'_>, next.at),
                            NEXT_STRIDE = const offset_of!(Operands<'_>, next.stride),
                            NEXT_STEP = const offset_of!(Operands<'_>, next.step),
                            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                            options(nostack)
                        );
                    }
                };
            }
            match (M, N) {
                (1, 1) => run!(
                    "tileloadd tmm0, [{a0} + {s}]",
                    "tileloadd tmm6, [{at} + {bs}]
                     tileloadd tmm4, [{a0} + {s}]
                     tdpbf16ps tmm0, tmm4, tmm6",
                    "tilestored [{a0} + {s}], tmm0"
                ),
                (1, 2) => run!(
                    "tileloadd tmm0, [{a0} + {s}]
                     tileloadd tmm1, [{a0} + {s} + 64]",
                    "tileloadd tmm6, [{at} + {bs}]
                     tileloadd tmm4, [{a0} + {s}]
                     add {at}, {b2}
                     tdpbf16ps tmm0, tmm4, tmm6
                     tileloadd tmm7, [{at} + {bs}]
                     tdpbf16ps tmm1, tmm4, tmm7",
                    "tilestored [{a0} + {s}], tmm0
                     tilestored [{a0} + {s} + 64], tmm1"
                ),
                (2, 1) => run!(
                    "tileloadd tmm0, [{a0} + {s}]
                     tileloadd tmm2, [{a1} + {s}]",
                    "tileloadd tmm6, [{at} + {bs}]
                     tileloadd tmm4, [{a0} + {s}]
                     tdpbf16ps tmm0, tmm4, tmm6
                     tileloadd tmm5, [{a1} + {s}]
                     tdpbf16ps tmm2, tmm5, tmm6",
                    "tilestored [{a0} + {s}], tmm0
                     tilestored [{a1} + {s}], tmm2"
                ),
                _ => run!(
                    "tileloadd tmm0, [{a0} + {s}]
                     tileloadd tmm1, [{a0} + {s} + 64]
                     tileloadd tmm2, [{a1} + {s}]
                     tileloadd tmm3, [{a1} + {s} + 64]",
                    "tileloadd tmm6, [{at} + {bs}]
                     tileloadd tmm4, [{a0} + {s}]
                     add {at}, {b2}
                     tdpbf16ps tmm0, tmm4, tmm6
                     tileloadd tmm5, [{a1} + {s}]
                     tdpbf16ps tmm2, tmm5, tmm6
                     tileloadd tmm7, [{at} + {bs}]
                     tdpbf16ps tmm1, tmm4, tmm7
                     tdpbf16ps tmm3, tmm5, tmm7",
                    "tilestored [{a0} + {s}], tmm0
                     tilestored [{a0} + {s} + 64], tmm1
                     tilestored [{a1} + {s}], tmm2
                     tilestored [{a1} + {s} + 64], tmm3"
                ),
            }
        }

        /// [`Self::multiply`] for `rows` and `columns` of tiles, 1 or 2 each.
        ///
        /// # Safety
        /// As there.
        #[inline(always)]
        pub(in crate::fast) unsafe fn run(
            &self,
            [rows, columns]: [usize; 2],
            operands: &Operands<'_>,
        ) {
            // SAFETY: by the caller's promise.
            unsafe {
                match (rows, columns) {
                    (1, 1) => self.multiply::<1, 1>(operands),
                    (1, _) => self.multiply::<1, 2>(operands),
                    (_, 1) => self.multiply::<2, 1>(operands),
                    _ => self.multiply::<2, 2>(operands),
                }
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
    use super::Operands;

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
        pub(in crate::fast) unsafe fn run(&self, _: [usize; 2], _: &Operands<'_>) {
            match *self {}
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(super) use none::{Tiles, is_available};
