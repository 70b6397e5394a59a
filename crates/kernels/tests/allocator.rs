//! What is freed goes back to the system when it is asked for. Alone in its program: the measure is the process's.
#![cfg(target_os = "linux")]

#[global_allocator]
static ALLOCATOR: kernels::Allocator = kernels::Allocator;

/// Pages of this process that no file backs, MB.
fn anonymous_mb() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kb = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kb.expect("a line of kB")
        .parse::<usize>()
        .expect("a number")
        / 1000
}

#[test]
fn what_was_dropped_is_given_back_at_once() {
    let before = anonymous_mb();
    let blocks: Vec<Vec<u8>> = (0..64).map(|_| vec![1; 3 << 20]).collect();
    let held = anonymous_mb();
    assert!(held >= before + 190, "{before} MB, then {held}");
    drop(blocks);
    let kept = anonymous_mb();
    kernels::give_back();
    let after = anonymous_mb();
    assert!(
        after < before + 20,
        "{before} MB, {held}, {kept} when dropped, {after} when given back"
    );
}
