//! The program's allocator: large buffers that live for milliseconds are the rule here, and the system's own returns each to
//! the kernel.

#![expect(unsafe_code, reason = "the allocator's option has no safe function")]

use std::ffi::{c_int, c_long};

use libmimalloc_sys::mi_option_set;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h, versions 2 and 3: milliseconds after which free memory goes back to the kernel.
/// The crate gives experimental options no names.
const PURGE_DELAY: c_int = 15;

/// Long enough that the next step of a training finds the memory of the last one: the kernel clears what
/// it gives, which took a seventh of a step's time.
const KEPT_MS: c_long = 10_000;

/// Where whoever runs the program says it.
const VARIABLE: &str = "MIMALLOC_PURGE_DELAY";

/// Keeps free memory for some seconds, or for as long as the environment says.
pub(crate) fn keep_for_a_while() {
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: writes a number in a table that has this place.
        unsafe { mi_option_set(PURGE_DELAY, KEPT_MS) };
    }
}

#[cfg(test)]
mod tests {
    use libmimalloc_sys::mi_option_get;

    use super::*;

    #[test]
    fn the_option_is_the_one_that_is_meant() {
        // SAFETY: reads a number in a table that has this place.
        let now = || unsafe { mi_option_get(PURGE_DELAY) };
        if std::env::var_os(VARIABLE).is_none() {
            // What mimalloc.h says for versions 2 and 3.
            assert!([10, 1000].contains(&now()), "{}", now());
            keep_for_a_while();
            assert_eq!(now(), KEPT_MS);
        }
    }
}
