//! Which cores this process may use, and how many of them are its own.

/// Cores by number, one bit each, as many as Linux's `Cpus_allowed_list` names below the limit.
pub(super) type Mask = [u64; 16];

/// The cores this process may use; none where the system does not tell (elsewhere than on Linux).
pub(super) fn mine() -> Mask {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    mask(list.unwrap_or_default())
}

/// The cores of a list such as `0-3,8`.
fn mask(list: &str) -> Mask {
    let mut mask = [0; 16];
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            for core in first..=last.min(64 * mask.len() - 1) {
                mask[core / 64] |= 1 << (core % 64);
            }
        }
    }
    mask
}

/// Threads for one of the processes of a machine, of which each may use the cores of its mask: its cores over how many
/// processes share them; 1 at least. Where the system tells nothing all of them share all cores.
pub(super) fn threads(mine: &Mask, all: &[Mask]) -> usize {
    let cores: u32 = mine.iter().map(|word| word.count_ones()).sum();
    if cores == 0 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        return (cores / all.len().max(1)).max(1);
    }
    let shares = |other: &&Mask| other.iter().zip(mine).any(|(a, b)| a & b != 0);
    let sharers = all.iter().filter(shares).count();
    (cores as usize / sharers.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_divided_among_those_who_may_use_them() {
        let all = mask("0-15");
        assert_eq!(threads(&all, &[all; 4]), 4);
        // Bound to two sockets, two ranks each.
        let (left, right) = (mask("\t0-3,8-11\n"), mask("4-7,12-15"));
        assert_eq!(threads(&left, &[left, left, right, right]), 4);
        // Each bound to cores of its own.
        assert_eq!(threads(&mask("2"), &[mask("2"), mask("3")]), 1);
        // More ranks than cores.
        assert_eq!(threads(&mask("0-1"), &[mask("0-1"); 4]), 1);
        assert!(threads(&mask(""), &[mask("")]) >= 1);
        assert_eq!(mask("70,5000-9999")[1], 1 << 6);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_may_use_the_cores_that_rust_counts() {
        let counted = std::thread::available_parallelism().expect("a count");
        assert!(threads(&mine(), &[mine()]) >= counted.get());
    }
}
