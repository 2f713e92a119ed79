//! How much memory this process holds.
#![allow(clippy::print_stdout, reason = "a measurement is for its reader")]

/// Resident memory in bytes, as the kernel counts it (`proc_pid_statm(5)`).
pub fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = statm.split_whitespace().nth(1).expect("a second field");
    // Pages are of 4 KiB wherever this is tested; larger ones would only make the bound stricter.
    4096 * pages.parse::<u64>().expect("a number")
}

/// Asserts that resident memory has grown by no more than `bound` since `before`, and prints both.
pub fn assert_flat(what: &str, before: u64, bound: u64) {
    let after = resident();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "{what}: {:.1} MiB before, {:.1} MiB after, {:.1} MiB allowed",
        mib(before),
        mib(after),
        mib(bound)
    );
    assert!(
        after <= before + bound,
        "{what}: grew by {:.1} MiB, more than {:.1} MiB",
        mib(after - before),
        mib(bound)
    );
}
