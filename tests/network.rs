//! The program opens no network connection: it is not linked against what opens one, and no crate in it is for networks.
use std::{fs, path::PathBuf};

use crate::common::program;

/// The names that an ELF program takes from its libraries (its dynamic symbol table's undefined entries).
fn imported(elf: &[u8]) -> Option<Vec<String>> {
    let word = |at: usize, n: usize| -> Option<usize> {
        let mut bytes = [0u8; 8];
        bytes[..n].copy_from_slice(elf.get(at..at + n)?);
        Some(u64::from_le_bytes(bytes) as usize)
    };
    // 64 bits, little-endian.
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count) = (word(0x28, 8)?, word(0x3a, 2)?, word(0x3c, 2)?);
    let section = |i: usize| {
        let at = table + i * size;
        Some((word(at + 4, 4)?, word(at + 0x18, 8)?, word(at + 0x20, 8)?, word(at + 0x28, 4)?))
    };
    const DYNAMIC_SYMBOLS: usize = 11;
    let symbols = (0..count).filter_map(section).find(|s| s.0 == DYNAMIC_SYMBOLS)?;
    let (_, names, _, _) = section(symbols.3)?;
    let mut found = vec![];
    for at in (symbols.1..symbols.1 + symbols.2).step_by(24) {
        if word(at + 6, 2)? == 0 {
            let name = elf.get(names + word(at, 4)?..)?.split(|b| *b == 0).next()?;
            found.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    Some(found)
}

/// What opens a connection to somewhere, or asks the network for an address.
const OUTGOING: [&str; 7] =
    ["connect", "sendto", "gethostbyname", "gethostbyname_r", "gethostbyaddr", "getnameinfo", "res_query"];

#[test]
#[cfg(target_os = "linux")]
fn the_program_is_not_linked_against_what_opens_a_connection() {
    let path = PathBuf::from(program().get_program());
    let names = imported(&fs::read(&path).unwrap()).expect("an ELF program with a dynamic symbol table");
    // The table was read: it has what every program takes.
    assert!(names.len() > 50 && names.iter().any(|n| n == "malloc" || n == "mmap"), "{names:?}");
    let outgoing: Vec<_> = names.iter().filter(|n| OUTGOING.contains(&n.as_str())).collect();
    assert!(outgoing.is_empty(), "{} can open connections: {outgoing:?}", path.display());
}

/// Crates that speak to a network, by their names in Cargo.lock. (`rustix` and `libc` could: the first has no network feature on, the second is used for one
/// signal.)
#[test]
fn no_dependency_is_for_networks() {
    const NETWORKS: [&str; 30] = [
        "reqwest",
        "hyper",
        "ureq",
        "curl",
        "curl-sys",
        "isahc",
        "attohttpc",
        "minreq",
        "surf",
        "http",
        "h2",
        "h3",
        "quinn",
        "tokio",
        "mio",
        "async-std",
        "smol",
        "socket2",
        "openssl",
        "openssl-sys",
        "native-tls",
        "rustls",
        "hf-hub",
        "trust-dns-resolver",
        "hickory-resolver",
        "tungstenite",
        "tonic",
        "git2",
        "ssh2",
        "nix",
    ];
    let lock = fs::read_to_string("Cargo.lock").unwrap();
    let names: Vec<&str> =
        lock.lines().filter_map(|l| l.strip_prefix("name = \"")).map(|l| l.trim_end_matches('"')).collect();
    assert!(names.len() > 50 && names.contains(&"sdrrl"), "{names:?}");
    let found: Vec<_> = names.iter().filter(|n| NETWORKS.contains(n)).collect();
    assert!(found.is_empty(), "{found:?}");
    let manifest: toml::Table = fs::read_to_string("Cargo.toml").unwrap().parse().unwrap();
    let features = format!("{}", manifest["dependencies"]["rustix"]["features"]);
    assert!(!features.contains("net") && !features.contains("all-apis"), "{features}");
}
