//! Read-only file mappings: the one place in `data` that needs unsafe code.
//!
//! A file that another program makes shorter while it is mapped has no bytes any more where its end was: reading there is a bus error. So is a
//! disk that fails. A handler knows every mapping, and ends the program with an error that names the file (`guard`).
#![allow(unsafe_code)]

use std::{
    collections::BTreeSet,
    ffi::{c_int, c_void},
    fs::File,
    mem::MaybeUninit,
    ops::Deref,
    path::Path,
    ptr::{null_mut, with_exposed_provenance},
    sync::{
        Mutex, Once,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use crate::data::files::FileContext;
use anyhow::{Context, Result};
use memmap2::Mmap;

/// A mapped file that the handler knows.
#[derive(Debug)]
pub struct Map {
    bytes: Mmap,
    /// Its place in [`KNOWN`]; absent if that was full.
    place: Option<usize>,
}

/// One mapping: where it begins (0: free, 1: being written), its length, and its name.
struct Known {
    start: AtomicUsize,
    length: AtomicUsize,
    name: AtomicUsize,
    name_length: AtomicUsize,
}

/// Mappings that the handler can name at a time; a program has some hundred.
const MOST: usize = 4096;

static KNOWN: [Known; MOST] = [const {
    Known {
        start: AtomicUsize::new(0),
        length: AtomicUsize::new(0),
        name: AtomicUsize::new(0),
        name_length: AtomicUsize::new(0),
    }
}; MOST];

/// Every name once and for ever: the handler cannot free what it reads.
static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

/// Maps the whole of `path`.
pub fn map_path(path: &Path) -> Result<Map> {
    guard();
    let file = File::open(path).opening(path)?;
    // SAFETY: this project replaces files by rename and never changes one that it may have mapped. Where another program writes into it, its
    // bytes change under what was read: parsers check what they take from it, and see a number as it was when they read it. Where another
    // program cuts it off, the handler ends this process (README, "Files").
    let bytes = unsafe { Mmap::map(&file) }.with_context(|| format!("map {} into memory", path.display()))?;
    let place = register(&bytes, path);
    Ok(Map { bytes, place })
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            KNOWN[place].start.store(0, SeqCst);
        }
    }
}

fn register(bytes: &Mmap, path: &Path) -> Option<usize> {
    let text = path.display().to_string().escape_debug().to_string();
    let mut names = NAMES.lock().unwrap_or_else(|e| e.into_inner());
    let name: &'static str = match names.get(text.as_str()) {
        Some(name) => name,
        None => {
            let name: &'static str = Box::leak(text.into_boxed_str());
            names.insert(name);
            name
        }
    };
    let free = |k: &Known| k.start.compare_exchange(0, 1, SeqCst, SeqCst).is_ok();
    let place = KNOWN.iter().position(free)?;
    let known = &KNOWN[place];
    known.length.store(bytes.len(), SeqCst);
    known.name.store(name.as_ptr().expose_provenance(), SeqCst);
    known.name_length.store(name.len(), SeqCst);
    known.start.store(bytes.as_ptr().addr(), SeqCst);
    Some(place)
}

/// What bus errors were for before.
static BEFORE: Mutex<Option<libc::sigaction>> = Mutex::new(None);

/// From the first mapping on, a bus error in a mapped file ends the program with exit code 1 and a message; another one ends it as ever.
fn guard() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: a sigaction of zeros is valid (no flags, an empty mask); the handler has the signature that SA_SIGINFO asks for and calls only
        // what may be called in a handler; `before` is as large as the call needs.
        unsafe {
            let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_bus_error;
            action.sa_sigaction = handler as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            if libc::sigaction(libc::SIGBUS, &action, before.as_mut_ptr()) == 0 {
                *BEFORE.lock().unwrap_or_else(|e| e.into_inner()) = Some(before.assume_init());
            }
        }
    });
}

extern "C" fn on_bus_error(_: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo for SIGBUS.
    let address = unsafe { (*info).si_addr() }.addr();
    let inside = |k: &&Known| {
        let start = k.start.load(SeqCst);
        start > 1 && address >= start && address - start < k.length.load(SeqCst).next_multiple_of(1 << 16)
    };
    match KNOWN.iter().find(inside) {
        Some(known) => {
            let name = with_exposed_provenance::<u8>(known.name.load(SeqCst));
            // SAFETY: a place whose `start` is set names a text that was leaked, with its length.
            let name = unsafe { std::slice::from_raw_parts(name, known.name_length.load(SeqCst)) };
            say(b"error: ");
            say(name);
            say(b" became shorter while it was read, or its disk cannot be read: let no other program change it, and run the same command again; finished work is kept\n");
            // SAFETY: always safe; it runs no destructors, as a handler must not.
            unsafe { libc::_exit(1) }
        }
        None => {
            let before = BEFORE.try_lock().ok().and_then(|b| *b);
            let before = before.as_ref().map_or(null_mut(), |b| std::ptr::from_ref(b).cast_mut());
            // SAFETY: `before` is null, which changes nothing, or what was there; the instruction runs again and meets it.
            unsafe {
                if before.is_null() {
                    libc::signal(libc::SIGBUS, libc::SIG_DFL);
                } else {
                    libc::sigaction(libc::SIGBUS, before, null_mut());
                }
            }
        }
    }
}

/// Writes to standard error as a handler may.
fn say(text: &[u8]) {
    // SAFETY: the pointer and the length are of one slice. That nobody reads it is no error.
    let _ = unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
}
