//! What the convolutions are computed with.

#[cfg(target_arch = "x86_64")]
use super::lanes::Wide;
use super::lanes::{Lanes, Portable};

/// What is written over [`Lanes`], to be run with the best of them.
pub(super) trait Work {
    /// To be inlined into a function that has the instructions.
    ///
    /// # Safety
    /// The machine has the instructions of `L`.
    unsafe fn run<L: Lanes>(self);
}

/// A set of instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Machine {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Any,
}

impl Machine {
    /// All that can be had here, the fastest first.
    pub fn all() -> impl Iterator<Item = Self> {
        let found = [
            #[cfg(target_arch = "x86_64")]
            (Self::Avx512, is_x86_feature_detected!("avx512f")),
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")),
            (Self::Any, true),
        ];
        found.into_iter().filter(|found| found.1).map(|found| found.0)
    }

    /// Whether this beats the runtime's own convolutions. Without the registers of AVX-512 it is no faster than they are.
    pub fn pays(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => true,
            _ => false,
        }
    }

    /// # Safety
    /// The machine is one of [`Machine::all`].
    pub unsafe fn run(self, work: impl Work) {
        // SAFETY: the instructions are there.
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { avx512(work) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2(work) },
            Self::Any => unsafe { any(work) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,fma")]
unsafe fn avx512(work: impl Work) {
    // SAFETY: as the caller promises.
    unsafe { work.run::<Wide>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(work: impl Work) {
    // SAFETY: as the caller promises.
    unsafe { work.run::<Portable<true>>() }
}

unsafe fn any(work: impl Work) {
    const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
    // SAFETY: as the caller promises.
    unsafe { work.run::<Portable<FUSED>>() }
}
