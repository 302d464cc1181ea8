//! The program opens no connection but to an endpoint that a person names: one module has the client, and what it opens is seen from outside.
use std::{fs, path::PathBuf, process::Command};

use crate::{
    common::{program, source::rust_files},
    remote::{TestServer, Work, answers},
};

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

/// What sends to somewhere without a connection, or asks the network for an address in another way than by the system's resolver.
const OUTGOING: [&str; 6] =
    ["sendto", "gethostbyname", "gethostbyname_r", "gethostbyaddr", "getnameinfo", "res_query"];

#[test]
#[cfg(target_os = "linux")]
fn the_program_is_linked_against_no_other_way_out() {
    let path = PathBuf::from(program().get_program());
    let names = imported(&fs::read(&path).unwrap()).expect("an ELF program with a dynamic symbol table");
    // The table was read: it has what every program takes.
    assert!(names.len() > 50 && names.iter().any(|n| n == "malloc" || n == "mmap"), "{names:?}");
    let outgoing: Vec<_> = names.iter().filter(|n| OUTGOING.contains(&n.as_str())).collect();
    assert!(outgoing.is_empty(), "{} can send to others: {outgoing:?}", path.display());
}

#[test]
fn one_module_has_the_client() {
    let mut client = 0;
    for path in rust_files("src") {
        let text = fs::read_to_string(&path).unwrap();
        let inside = path.starts_with("src/remote");
        client += usize::from(inside && text.contains("ureq"));
        for word in ["ureq", "TcpStream::connect", "UdpSocket", "UnixStream", "ToSocketAddrs"] {
            // Ranks of a training connect to rank 0, at the address that their launcher names.
            let ranks = path.starts_with("src/distributed") && word == "TcpStream::connect";
            assert!(
                inside && word == "ureq" || ranks || !text.contains(word),
                "{} has {word}",
                path.display()
            );
        }
    }
    assert!(client > 0);
}

/// A library that is loaded before libc, and notes every address that the program connects to and every name that it looks up.
const RECORDER: &str = r#"
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
static void note(const char *what, const char *where, int port) {
    FILE *out = fopen(getenv("CONNECTIONS"), "a");
    if (out) { fprintf(out, "%s %s:%d\n", what, where, port); fclose(out); }
}
int connect(int fd, const struct sockaddr *to, socklen_t n) {
    char text[INET6_ADDRSTRLEN] = "a socket of this machine";
    const struct sockaddr_in *in = (const void *)to;
    if (to->sa_family == AF_INET) inet_ntop(AF_INET, &in->sin_addr, text, sizeof text);
    if (to->sa_family == AF_INET6) inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)to)->sin6_addr, text, sizeof text);
    note("connect", text, ntohs(in->sin_port));
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    return real(fd, to, n);
}
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    note("look up", node ? node : "", 0);
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
    return real(node, service, hints, found);
}
"#;

/// Local work opens nothing; a remote engine opens its endpoint, by its address or its name, whatever proxies the environment has.
#[test]
#[cfg(target_os = "linux")]
fn nothing_is_connected_to_but_the_endpoint() {
    let work = Work::new(3);
    fs::write(work.at("recorder.c"), RECORDER).unwrap();
    let library = work.at("recorder.so");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(work.at("recorder.c"))
        .arg("-ldl")
        .status();
    assert!(built.unwrap().success(), "the recorder compiles");
    let connections = |command: &mut Command| {
        let log = work.at("connections");
        let _ = fs::remove_file(&log);
        command
            .env("LD_PRELOAD", &library)
            .env("CONNECTIONS", &log)
            .env("http_proxy", "http://127.0.0.1:9")
            .env("ALL_PROXY", "http://127.0.0.1:9");
        let out = command.output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let mut lines: Vec<String> =
            fs::read_to_string(log).unwrap_or_default().lines().map(String::from).collect();
        lines.sort();
        lines.dedup();
        lines
    };
    let sets = [
        "generate.limit=24",
        "generate.max-new-tokens=8",
        "train.max-steps=1",
        "variants=[\"sft\"]",
        "eval.bootstrap-samples=10",
    ];
    let mut run = program();
    run.args(["run", "recipes/quickstart.toml", "--set"]).arg(format!("work={}", work.at("run").display()));
    for set in sets {
        run.args(["--set", set]);
    }
    assert_eq!(connections(&mut run), Vec::<String>::new());
    let server = TestServer::start(answers);
    assert_eq!(connections(&mut work.command(&server.url(), &[])), [format!("connect {}", server.address())]);
    fs::remove_dir_all(work.at("out")).unwrap();
    let port = server.address().split(':').next_back().unwrap();
    let lines = connections(&mut work.command(&format!("http://localhost:{port}/v1"), &[]));
    // ::1 may be tried first.
    let own = |line: &String| {
        line == "look up localhost:0" || line.starts_with("connect ") && line.ends_with(&format!(":{port}"))
    };
    assert!(lines.iter().all(own) && lines.iter().any(|l| l.starts_with("look up")), "{lines:?}");
}

/// Crates that speak to a network, by their names in Cargo.lock, but for the one client and what it is made of. (`rustix` and `libc` could: the first has no
/// network feature on, the second is used for one signal.)
#[test]
fn no_other_dependency_is_for_networks() {
    const NETWORKS: [&str; 27] = [
        "reqwest",
        "hyper",
        "curl",
        "curl-sys",
        "isahc",
        "attohttpc",
        "minreq",
        "surf",
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
    assert!(names.len() > 50 && names.contains(&"sdrrl") && names.contains(&"ureq"), "{names:?}");
    let found: Vec<_> = names.iter().filter(|n| NETWORKS.contains(n)).collect();
    assert!(found.is_empty(), "{found:?}");
    let manifest: toml::Table = fs::read_to_string("Cargo.toml").unwrap().parse().unwrap();
    let features = format!("{}", manifest["dependencies"]["rustix"]["features"]);
    assert!(!features.contains("net") && !features.contains("all-apis"), "{features}");
}
