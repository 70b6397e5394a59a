//! Which instruction set the fast paths use, chosen once at run time.
//!
//! `RECLAIR_ISA=portable|avx2|avx512|amx` forces one (a set the machine lacks is ignored);
//! `RECLAIR_KERNELS=off` turns the fast paths off, so that every operation is burn's own.

use std::sync::OnceLock;

/// An instruction set the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    /// Plain Rust.
    Portable,
    /// AVX2 with FMA and F16C, 8 lanes.
    Avx2,
    /// AVX-512 F, BW, DQ and VL, 16 lanes.
    Avx512,
    /// AVX-512, and matrix tiles for products of bfloat16 (AMX-BF16).
    Amx,
}

impl Isa {
    /// The set in use: what the environment asks for if this machine has it, else the widest.
    pub(crate) fn current() -> Self {
        static CURRENT: OnceLock<Isa> = OnceLock::new();
        *CURRENT.get_or_init(|| {
            let wanted = std::env::var("RECLAIR_ISA").ok();
            let wanted = wanted.as_deref().and_then(Self::named);
            [wanted.unwrap_or(Self::Amx), Self::Avx512, Self::Avx2]
                .into_iter()
                .find(|isa| isa.is_available())
                .unwrap_or(Self::Portable)
        })
    }

    fn named(name: &str) -> Option<Self> {
        match name {
            "portable" => Some(Self::Portable),
            "avx2" => Some(Self::Avx2),
            "avx512" => Some(Self::Avx512),
            "amx" => Some(Self::Amx),
            _ => None,
        }
    }

    /// Whether this machine has it.
    pub(crate) fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && Self::Avx2.is_available()
            }
            #[cfg(target_arch = "x86_64")]
            Self::Amx => {
                Self::Avx512.is_available() && Self::has_bf16() && super::amx::is_available()
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Whether its vectors are those of AVX-512.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn is_avx512(self) -> bool {
        matches!(self, Self::Avx512 | Self::Amx)
    }

    /// Whether this machine multiplies pairs of bfloat16 values (AVX512-BF16).
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_bf16() -> bool {
        is_x86_feature_detected!("avx512bf16")
    }

    /// Whether products of bfloat16 pairs are faster than those of f32.
    pub(crate) fn multiplies_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self == Self::Amx || self == Self::Avx512 && Self::has_bf16();
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }

    /// Every set this machine has.
    #[cfg(test)]
    pub(crate) fn available() -> Vec<Self> {
        [Self::Portable, Self::Avx2, Self::Avx512, Self::Amx]
            .into_iter()
            .filter(|isa| isa.is_available())
            .collect()
    }
}

/// What `RECLAIR_ISA` and `RECLAIR_KERNELS` ask for that is not done: a line each.
pub fn ignored_settings() -> Vec<String> {
    let mut said = Vec::new();
    if let Ok(name) = std::env::var("RECLAIR_ISA") {
        let used = Isa::current();
        if Isa::named(&name).is_none() {
            said.push(format!(
                "RECLAIR_ISA={name} is not known and ignored ({used:?} is used); give portable, avx2, avx512 or amx"
            ));
        } else if Isa::named(&name) != Some(used) {
            said.push(format!(
                "RECLAIR_ISA={name}: this machine lacks it, {used:?} is used"
            ));
        }
    }
    if let Ok(value) = std::env::var("RECLAIR_KERNELS")
        && value != "off"
    {
        said.push(format!(
            "RECLAIR_KERNELS={value} is not known and ignored; only `off` turns the kernels off"
        ));
    }
    said
}

/// Whether the fast paths are on (`RECLAIR_KERNELS` is not `off`).
pub(crate) fn enabled() -> bool {
    static ENABLED: OnceLock<bool> = OnceLock::new();
    *ENABLED.get_or_init(|| std::env::var("RECLAIR_KERNELS").as_deref() != Ok("off"))
}
