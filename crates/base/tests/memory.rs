//! A process of its own, since the allocator's settings are the whole process's.

use std::hint::black_box;

use stolos_base::memory;

const MIB: u64 = 1 << 20;

/// `stolosd` had 800 MiB an hour after a flood of log-ins, of which it used 60: each hash takes 19 MiB on whichever thread is free, and
/// each arena kept what its threads had freed.
#[test]
fn what_was_freed_goes_back_to_the_system() {
    memory::settle();
    let before = memory::resident().expect("/proc");
    for _ in 0..3 {
        let flood: Vec<_> = (0..32)
            .map(|_| {
                std::thread::spawn(|| {
                    for _ in 0..3 {
                        drop(black_box(vec![1_u8; 19 << 20]));
                    }
                    // Something small that outlives it, as in real life.
                    black_box(vec![1_u8; 1000])
                })
            })
            .collect();
        for thread in flood {
            thread.join().expect("it ends");
        }
    }
    let after = memory::resident().expect("/proc");
    assert!(
        after < before + 40 * MIB,
        "{} MiB before, {} MiB after",
        before / MIB,
        after / MIB
    );
}
