//! Which vector instructions the CPU arms use. Results are the same bytes on processors of one level, not of two: sums have an order for each width.
//!
//! `SDRRL_VECTORS` lowers the level, so that a run can go on with the bits that it began with on a processor that has more.
use std::{fmt, sync::OnceLock};

use anyhow::{Result, bail};

/// A set of vector instructions, from the narrowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Vectors {
    /// Four lanes, by the compiler.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512.
    Avx512,
}

const NAMES: [(&str, Vectors); 3] =
    [("portable", Vectors::Portable), ("avx2", Vectors::Avx2), ("avx512", Vectors::Avx512)];

impl fmt::Display for Vectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        NAMES.iter().filter(|(_, v)| v == self).try_for_each(|(name, _)| write!(f, "{name}"))
    }
}

impl Vectors {
    /// Whether this processor has them.
    pub fn is_there(self) -> bool {
        match self {
            Vectors::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512 => is_x86_feature_detected!("avx512f"),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }
}

/// What `SDRRL_VECTORS` asks for. Errors if it names nothing, or what this processor does not have.
pub fn wanted() -> Result<Option<Vectors>> {
    let Some(name) = std::env::var_os("SDRRL_VECTORS").filter(|v| !v.is_empty()) else { return Ok(None) };
    let Some((name, level)) = NAMES.iter().find(|(known, _)| name.to_str() == Some(known)) else {
        bail!("SDRRL_VECTORS is {name:?}: avx512, avx2 or portable was expected");
    };
    if !level.is_there() {
        bail!("SDRRL_VECTORS is {name}, which this processor does not have");
    }
    Ok(Some(*level))
}

/// The level at which the CPU arms compute.
pub fn best() -> Vectors {
    static BEST: OnceLock<Vectors> = OnceLock::new();
    *BEST.get_or_init(|| {
        let there = NAMES.iter().rev().map(|(_, level)| *level).find(|level| level.is_there());
        wanted().ok().flatten().or(there).unwrap_or(Vectors::Portable)
    })
}

/// How this process computes on the CPU, for manifests and checkpoints: the same text, the same bits.
pub fn processor() -> String {
    let level = best();
    if has_tile_unit() { format!("{level}+amx") } else { level.to_string() }
}

/// What to say where work that `then` began is to go on here, if the bits may differ.
pub fn other_level(then: &str) -> Option<String> {
    let now = processor();
    if then.is_empty() || then == now {
        return None;
    }
    let (level, tiles) = then.strip_suffix("+amx").map_or((then, false), |level| (level, true));
    let switch =
        if tiles { format!("SDRRL_VECTORS={level}") } else { format!("SDRRL_VECTORS={level} SDRRL_AMX=0") };
    Some(format!(
        "it was begun with {then} and goes on with {now}, so that its last bits may differ from an undisturbed run's; {switch} asks for the former, where \
         the processor has it"
    ))
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
/// No tile unit is used here.
pub fn has_tile_unit() -> bool {
    false
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
/// No tile unit is used here.
pub fn has_int8_tiles() -> bool {
    false
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use tiles::{has_int8_tiles, has_tile_unit};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles {
    use std::{arch::asm, arch::x86_64::*, sync::OnceLock};

    use super::{Vectors, best};

    /// True if the processor has the tile unit and the operating system lets this process use it.
    pub fn has_tile_unit() -> bool {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(|| {
            let vectors = best() == Vectors::Avx512
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512bf16");
            let wanted = std::env::var_os("SDRRL_AMX").is_none_or(|v| v != "0");
            wanted && vectors && has_tiles() && permitted()
        })
    }

    /// True if it multiplies numbers of 8 bits, too (and AVX-512 does).
    pub fn has_int8_tiles() -> bool {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(|| {
            // CPUID 7.0 EDX: bit 25 AMX-INT8.
            let vectors = is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl");
            has_tile_unit() && vectors && __cpuid_count(7, 0).edx >> 25 & 1 == 1
        })
    }

    fn has_tiles() -> bool {
        // CPUID 7.0 EDX: bit 22 AMX-BF16, bit 24 AMX-TILE; CPUID 1 ECX bit 27: the system has enabled XGETBV.
        let (features, extended) = (__cpuid(1), __cpuid_count(7, 0));
        if extended.edx >> 22 & 1 == 0 || extended.edx >> 24 & 1 == 0 || features.ecx >> 27 & 1 == 0 {
            return false;
        }
        let enabled: u32;
        // SAFETY: XGETBV is enabled, as just checked; bits 17 and 18 are the tiles' configuration and data.
        unsafe { asm!("xgetbv", in("ecx") 0, out("eax") enabled, out("edx") _, options(nomem, nostack)) };
        enabled >> 17 & 3 == 3
    }

    /// Linux gives a process the tiles' 8 KiB of state only if it asks: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
    fn permitted() -> bool {
        let answer: i64;
        // SAFETY: the call changes nothing but the permission; the kernel clobbers rcx and r11.
        unsafe {
            asm!("syscall", inlateout("rax") 158i64 => answer, in("rdi") 0x1023, in("rsi") 18,
                lateout("rcx") _, lateout("r11") _, options(nostack))
        };
        answer == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_has_one_name_and_another_one_is_told() {
        for (name, level) in NAMES {
            assert_eq!(level.to_string(), name);
        }
        assert!(best().is_there() && Vectors::Portable.is_there());
        assert_eq!(other_level(""), None);
        assert_eq!(other_level(&processor()), None);
        let told = other_level("sve").unwrap();
        assert!(told.contains("begun with sve") && told.contains("SDRRL_VECTORS=sve SDRRL_AMX=0"), "{told}");
        assert!(!other_level("other+amx").unwrap().contains("SDRRL_AMX=0"));
    }
}
