//! Keeping what is in memory to ourselves.

use std::io;

/// From here on no image of this process's memory is written when it crashes, and no other process of the same user may
/// look into it (`PR_SET_DUMPABLE`). A program that it starts is none of this: exec gives it its own memory, and the
/// system's rule for it.
pub fn no_core_dumps() -> io::Result<()> {
    Ok(nix::sys::prctl::set_dumpable(false)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_wants_so_is_not_dumped() {
        let before = nix::sys::prctl::get_dumpable().unwrap();

        no_core_dumps().unwrap();

        assert!(!nix::sys::prctl::get_dumpable().unwrap());
        nix::sys::prctl::set_dumpable(before).unwrap();
    }
}
