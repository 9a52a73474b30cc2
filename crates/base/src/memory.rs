//! The process's memory.
//!
//! A service of ours makes large things for a moment, on whichever thread is free: a password's hash takes 19 MiB, a
//! release's tarball is packed in buffers. The C library's allocator keeps what was freed for the next time, for each of up to eight
//! arenas a processor, and after the first large piece was freed it takes the next ones from the arenas, too (its threshold
//! grows up to 32 MiB). After a flood of log-ins a service that needs 60 MiB has 800.

use std::time::Duration;

/// From which size on a piece is mapped by itself and goes back to the system as soon as it is freed. It is the allocator's
/// first threshold; that it is said keeps it from growing.
const MAPPED_FROM: i32 = 128 * 1024;
/// How much may be free at the end of an arena before it goes back to the system.
const FREE_AT_END: i32 = 1024 * 1024;
/// Arenas at most. Threads that allocate at the same moment wait for each other with fewer; pieces lie closer together.
const ARENAS: i32 = 4;
/// How often what is free in the middle of arenas is given back.
const GIVE_BACK: Duration = Duration::from_secs(60);

/// Has the allocator give back what is not used. To be called before there are other threads.
pub fn settle() {
    imp::settle();
}

/// Gives back from time to time what is free between pieces that are in use. Runs as long as the process.
pub async fn keep_settled() -> Result<(), std::convert::Infallible> {
    loop {
        tokio::time::sleep(GIVE_BACK).await;
        // It walks through all arenas, for some milliseconds.
        let _ = tokio::task::spawn_blocking(imp::give_back).await;
    }
}

/// Resident memory of this process in bytes.
///
/// # Errors
/// When /proc cannot be read.
pub fn resident() -> std::io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: Option<u64> = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    kib.map(|kib| kib * 1024)
        .ok_or_else(|| std::io::Error::other("/proc/self/status does not say it"))
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod imp {
    use super::{ARENAS, FREE_AT_END, MAPPED_FROM};

    #[expect(unsafe_code, reason = "mallopt has no safe binding")]
    pub(super) fn settle() {
        for (what, value) in [
            (libc::M_MMAP_THRESHOLD, MAPPED_FROM),
            (libc::M_TRIM_THRESHOLD, FREE_AT_END),
            (libc::M_ARENA_MAX, ARENAS),
        ] {
            // SAFETY: mallopt takes two numbers and locks what it changes; a number that it does not know it refuses.
            // JUSTIFICATION: the allocator has no other interface that a program can use for itself.
            if unsafe { libc::mallopt(what, value) } == 0 {
                tracing::warn!(what, value, "the allocator refuses a setting");
            }
        }
    }

    #[expect(unsafe_code, reason = "malloc_trim has no safe binding")]
    pub(super) fn give_back() {
        // SAFETY: malloc_trim takes a number and locks each arena that it looks at; pieces in use stay where they are.
        // JUSTIFICATION: as above.
        unsafe { libc::malloc_trim(0) };
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod imp {
    pub(super) fn settle() {}
    pub(super) fn give_back() {}
}
