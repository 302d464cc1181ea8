//! The main memory that this process may use: the machine's, or what its control groups (containers, job schedulers) leave it.
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Version 1 writes about this number where there is no limit.
const NO_LIMIT: u64 = 1 << 60;

/// (total, available) bytes: of the machine from /proc/meminfo, or less where a control group of version 1 or 2, or one above it, has a limit
/// (`memory.max`, `memory.high`, `memory.limit_in_bytes`). What a group has in its page cache counts as available. `None` where there is no
/// /proc/meminfo.
pub fn host_memory() -> Option<(u64, u64)> {
    memory_below(Path::new("/"))
}

/// The same for the files below `root`.
fn memory_below(root: &Path) -> Option<(u64, u64)> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let machine = (field("MemTotal:")?, field("MemAvailable:")?);
    Some(
        groups(root)
            .iter()
            .filter_map(|group| group.memory())
            .fold(machine, |(total, free), (most, left)| (total.min(most), free.min(left))),
    )
}

/// A control group's folder.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    folder: PathBuf,
    version: u8,
}

impl Group {
    /// (limit, what is left of it), if it has one.
    fn memory(&self) -> Option<(u64, u64)> {
        let number = |name: &str| -> Option<u64> {
            fs::read_to_string(self.folder.join(name)).ok()?.trim().parse::<u64>().ok()
        };
        let (limits, used, cache) = match self.version {
            1 => (&["memory.limit_in_bytes"][..], "memory.usage_in_bytes", "total_inactive_file"),
            _ => (&["memory.max", "memory.high"][..], "memory.current", "inactive_file"),
        };
        let limit = limits.iter().filter_map(|name| number(name)).min().filter(|most| *most < NO_LIMIT)?;
        let stat = fs::read_to_string(self.folder.join("memory.stat")).unwrap_or_default();
        let cached =
            stat.lines().find_map(|l| l.strip_prefix(cache)?.trim().parse::<u64>().ok()).unwrap_or(0);
        let used = number(used).unwrap_or(0).saturating_sub(cached);
        Some((limit, limit.saturating_sub(used)))
    }
}

/// The groups that this process is in, and all above them, of both versions.
fn groups(root: &Path) -> Vec<Group> {
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_default();
    let (mounts, own) = (read("proc/self/mountinfo"), read("proc/self/cgroup"));
    let mut found = vec![];
    for line in own.lines() {
        // hierarchy:controllers:path
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let version = if controllers.is_empty() { 2 } else { 1 };
        if version == 1 && !controllers.split(',').any(|c| c == "memory") {
            continue;
        }
        for (above, mount) in mounts.lines().filter_map(|line| mount(line, version)) {
            let top = root.join(mount.trim_start_matches('/'));
            // In a container the mount shows a part of the tree, or the path is that of another view of it.
            let below = path.strip_prefix(above.trim_end_matches('/')).unwrap_or("");
            let mut folder = top.join(below.trim_start_matches('/'));
            while !folder.is_dir() && folder.starts_with(&top) && folder != top {
                folder.pop();
            }
            while folder.starts_with(&top) {
                found.push(Group { folder: folder.clone(), version });
                if !folder.pop() {
                    break;
                }
            }
        }
    }
    found
}

/// (what of the tree is mounted, where) if a line of mountinfo mounts groups of this version with memory.
fn mount(line: &str, version: u8) -> Option<(&str, &str)> {
    // id parent device root place options ... - kind source options
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(3);
    let (above, place) = (fields.next()?, fields.next()?);
    let mut fields = after.split(' ');
    let (kind, options) = (fields.next()?, fields.nth(1).unwrap_or_default());
    let wanted = match version {
        1 => kind == "cgroup" && options.split(',').any(|o| o == "memory"),
        _ => kind == "cgroup2",
    };
    wanted.then_some((above, place))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A machine of 1000 MiB, 800 of them free, with these further files.
    fn machine(files: &[(&str, String)]) -> Option<(u64, u64)> {
        let dir = tempfile::tempdir().unwrap();
        let meminfo = (
            "proc/meminfo",
            format!("MemTotal: {} kB\nMemFree: 1 kB\nMemAvailable: {} kB\n", 1000 << 10, 800 << 10),
        );
        for (name, text) in files.iter().chain([&meminfo]) {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        memory_below(dir.path()).map(|(total, free)| (total / MIB, free / MIB))
    }

    fn text(name: &'static str, text: &str) -> (&'static str, String) {
        (name, text.into())
    }

    fn mib(name: &'static str, n: u64) -> (&'static str, String) {
        (name, format!("{}\n", n * MIB))
    }

    const V2: &str = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "31 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n32 24 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";

    #[test]
    fn without_groups_or_limits_it_is_the_machines() {
        assert_eq!(machine(&[]), Some((1000, 800)));
        let own = [text("proc/self/mountinfo", V2), text("proc/self/cgroup", "0::/a\n")];
        assert_eq!(machine(&own), Some((1000, 800)));
        let [a, b] = own;
        assert_eq!(
            machine(&[
                a,
                b,
                text("sys/fs/cgroup/a/memory.max", "max\n"),
                mib("sys/fs/cgroup/a/memory.current", 5)
            ]),
            Some((1000, 800))
        );
        assert_eq!(memory_below(Path::new("/nowhere")), None);
    }

    #[test]
    fn the_tightest_group_above_counts() {
        let own = || [text("proc/self/mountinfo", V2), text("proc/self/cgroup", "0::/job/step\n")];
        let [a, b] = own();
        let inner = [
            a,
            b,
            mib("sys/fs/cgroup/job/step/memory.max", 300),
            mib("sys/fs/cgroup/job/step/memory.current", 100),
            text("sys/fs/cgroup/job/step/memory.stat", &format!("anon 1\ninactive_file {}\n", 50 * MIB)),
            text("sys/fs/cgroup/job/memory.max", "max\n"),
        ];
        assert_eq!(machine(&inner), Some((300, 250)));
        let [a, b] = own();
        let outer = [
            a,
            b,
            text("sys/fs/cgroup/job/step/memory.max", "max"),
            mib("sys/fs/cgroup/job/memory.max", 200),
            mib("sys/fs/cgroup/job/memory.current", 190),
        ];
        assert_eq!(machine(&outer), Some((200, 10)));
        let [a, b] = own();
        let high = [
            a,
            b,
            mib("sys/fs/cgroup/job/step/memory.max", 500),
            mib("sys/fs/cgroup/job/step/memory.high", 400),
            mib("sys/fs/cgroup/job/step/memory.current", 450),
        ];
        assert_eq!(machine(&high), Some((400, 0)));
        // A limit beyond the machine changes nothing.
        let [a, b] = own();
        assert_eq!(machine(&[a, b, mib("sys/fs/cgroup/job/memory.max", 5000)]), Some((1000, 800)));
    }

    #[test]
    fn version_1_and_both_at_once() {
        let own =
            |cgroup| [text("proc/self/mountinfo", &format!("{V2}{V1}")), text("proc/self/cgroup", cgroup)];
        let [a, b] = own("9:name=systemd:/x\n4:memory:/docker/abc\n2:cpu:/docker/abc\n0::/\n");
        let limit = [
            a,
            b,
            mib("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", 256),
            mib("sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes", 56),
            text("sys/fs/cgroup/memory/docker/abc/memory.stat", "cache 1\ntotal_inactive_file 1048576\n"),
            text("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712"),
        ];
        assert_eq!(machine(&limit), Some((256, 201)));
        // In a container the group's own folder is the mount.
        let [a, b] = own("4:memory:/docker/abc\n");
        assert_eq!(
            machine(&[a, b, mib("sys/fs/cgroup/memory/memory.limit_in_bytes", 128)]),
            Some((128, 128))
        );
    }

    #[test]
    fn damaged_files_are_no_limit() {
        for cgroup in ["", "0", "0:", "::", "0::../../..", "a:memory:/\0", "0::/job"] {
            let files = [
                text("proc/self/mountinfo", &format!("x - \n - \n{V2}")),
                text("proc/self/cgroup", cgroup),
                text("sys/fs/cgroup/job/memory.max", "-1"),
            ];
            assert_eq!(machine(&files), Some((1000, 800)), "{cgroup:?}");
        }
    }
}
