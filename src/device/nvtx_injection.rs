//! NVTX 3: a profiler names its library in `NVTX_INJECTION64_PATH`; the program loads it and hands it a table of slots, into which it puts its own functions
//! (nvtxDetail/nvtxTypes.h and nvtxInit.h of NVTX 3, which C programs get as headers alone).
use std::{
    ffi::{CStr, CString, OsStr, c_char, c_int, c_uint, c_void},
    mem::transmute,
    os::unix::ffi::OsStrExt,
    ptr,
    sync::atomic::{AtomicPtr, Ordering::Acquire},
};

use anyhow::{Context, Result, ensure};

/// NVTX_ETID_CALLBACKS and NVTX_ETID_VERSIONINFO: the tables that a profiler asks for.
const CALLBACKS: u32 = 1;
const VERSION_INFO: u32 = 3;
/// Modules are numbered from 1; NVTX_CB_MODULE_CORE has the ranges.
const MODULES: usize = 7;
const CORE: usize = 1;
/// NVTX_CBID_CORE_RangePushA and NVTX_CBID_CORE_RangePop.
const PUSH: usize = 9;
const POP: usize = 11;
/// More than any module has.
const SLOTS: usize = 32;

type Slot = AtomicPtr<c_void>;
type GetExportTable = extern "C" fn(u32) -> *const c_void;
type Initialize = unsafe extern "C" fn(GetExportTable) -> c_int;

static SLOTS_OF: [[Slot; SLOTS]; MODULES] =
    [const { [const { AtomicPtr::new(ptr::null_mut()) }; SLOTS] }; MODULES];

/// The addresses of the slots of each module, with a null behind the last.
struct Addresses([[*const Slot; SLOTS + 1]; MODULES]);
// SAFETY: addresses of a static, which is itself made of atomics.
unsafe impl Sync for Addresses {}

static ADDRESSES: Addresses = {
    let mut all = [[ptr::null(); SLOTS + 1]; MODULES];
    let mut module = 0;
    while module < MODULES {
        let mut slot = 0;
        while slot < SLOTS {
            all[module][slot] = &raw const SLOTS_OF[module][slot];
            slot += 1;
        }
        module += 1;
    }
    Addresses(all)
};

#[repr(C)]
struct CallbacksTable {
    size: usize,
    get: extern "C" fn(c_uint, *mut *const *const Slot, *mut c_uint) -> c_int,
}
static CALLBACKS_TABLE: CallbacksTable =
    CallbacksTable { size: size_of::<CallbacksTable>(), get: module_table };

#[repr(C)]
struct VersionTable {
    size: usize,
    version: u32,
    reserved: u32,
    set: extern "C" fn(u32),
}
static VERSION_TABLE: VersionTable =
    VersionTable { size: size_of::<VersionTable>(), version: 3, reserved: 0, set: ignore };

extern "C" fn ignore(_: u32) {}

extern "C" fn module_table(module: c_uint, table: *mut *const *const Slot, size: *mut c_uint) -> c_int {
    let Some(slots) = ADDRESSES.0.get(module as usize).filter(|_| module > 0) else { return 0 };
    // SAFETY: the profiler passes places for both results, or null for what it does not want.
    unsafe {
        if !table.is_null() {
            *table = slots.as_ptr();
        }
        if !size.is_null() {
            *size = SLOTS as c_uint;
        }
    }
    1
}

extern "C" fn export_table(table: u32) -> *const c_void {
    match table {
        CALLBACKS => (&raw const CALLBACKS_TABLE).cast(),
        VERSION_INFO => (&raw const VERSION_TABLE).cast(),
        _ => ptr::null(),
    }
}

/// Loads the profiler's library and lets it fill the slots.
///
/// # Errors
/// A library that cannot be loaded, has no `InitializeInjectionNvtx2`, or does not take the ranges.
pub(super) fn attach(path: &OsStr) -> Result<()> {
    let name = CString::new(path.as_bytes()).context("NVTX_INJECTION64_PATH")?;
    // SAFETY: opens the library that the profiler named, whose constructors and initialisation are the profiler's; it stays loaded. The symbol has the type that
    // NVTX gives it.
    let initialised = unsafe {
        let library = libc::dlopen(name.as_ptr(), libc::RTLD_LAZY);
        ensure!(!library.is_null(), "load {}: {}", path.display(), last_error());
        let symbol = libc::dlsym(library, c"InitializeInjectionNvtx2".as_ptr());
        ensure!(!symbol.is_null(), "{} has no InitializeInjectionNvtx2", path.display());
        transmute::<*mut c_void, Initialize>(symbol)(export_table)
    };
    let taken = [PUSH, POP].iter().all(|&slot| !SLOTS_OF[CORE][slot].load(Acquire).is_null());
    ensure!(initialised != 0 && taken, "{} takes no NVTX ranges", path.display());
    Ok(())
}

pub(super) fn last_error() -> String {
    // SAFETY: dlerror gives null or a string that lives until the next call of its family on this thread.
    unsafe {
        let text = libc::dlerror();
        if text.is_null() {
            return "no reason was given".into();
        }
        CStr::from_ptr(text).to_string_lossy().into_owned()
    }
}

/// Begins a range of this thread; after [`attach`].
pub(super) fn push(name: &CStr) {
    let function = SLOTS_OF[CORE][PUSH].load(Acquire);
    if !function.is_null() {
        // SAFETY: the profiler put its RangePushA there, which copies the string.
        unsafe { transmute::<*mut c_void, extern "C" fn(*const c_char) -> c_int>(function)(name.as_ptr()) };
    }
}

/// Ends the innermost range of this thread; after [`attach`].
pub(super) fn pop() {
    let function = SLOTS_OF[CORE][POP].load(Acquire);
    if !function.is_null() {
        // SAFETY: the profiler put its RangePop there.
        unsafe { transmute::<*mut c_void, extern "C" fn() -> c_int>(function)() };
    }
}
