//! NVIDIA's collective communication library, NCCL: `libnccl.so.2` is opened at run time, as libcuda is. cudarc's bindings look for `libnccl.so` alone, which
//! neither NVIDIA's runtime packages nor PyTorch's wheels have, and panic without it; these are the few calls that training needs (nccl.h of NCCL 2).
use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    mem::transmute_copy,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    ptr::null_mut,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result, anyhow, ensure};

use super::driver::Stream;
use crate::error::Error;

/// NCCL_UNIQUE_ID_BYTES.
pub const ID_BYTES: usize = 128;
const SONAME: &str = "libnccl.so.2";
/// ncclUint8 of ncclDataType_t; ncclSum of ncclRedOp_t; ncclInProgress of ncclResult_t.
const UINT8: c_int = 1;
const SUM: c_int = 0;
const IN_PROGRESS: c_int = 7;

type Handle = *mut c_void;
type Code = c_int;

/// What is summed, as ncclDataType_t has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Number {
    /// ncclFloat32.
    F32 = 7,
    /// ncclBfloat16: every sum of two is rounded to it.
    Bf16 = 9,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([c_char; ID_BYTES]);

/// The library's functions.
pub struct Nccl {
    get_version: unsafe extern "C" fn(*mut c_int) -> Code,
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> Code,
    init_rank: unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int) -> Code,
    all_reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Handle) -> Code,
    reduce:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, c_int, Handle, Handle) -> Code,
    all_gather: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Handle, Handle) -> Code,
    broadcast: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Handle) -> Code,
    group_start: unsafe extern "C" fn() -> Code,
    group_end: unsafe extern "C" fn() -> Code,
    async_error: unsafe extern "C" fn(Handle, *mut Code) -> Code,
    abort: unsafe extern "C" fn(Handle) -> Code,
    destroy: unsafe extern "C" fn(Handle) -> Code,
    error_string: unsafe extern "C" fn(Code) -> *const c_char,
    /// Whether it is the one that works on the memory of the emulated GPU (kernels/emulator/driver/libnccl.cpp).
    rehearsal: bool,
}

impl Nccl {
    /// Opens the file or the folder that `SDRRL_NCCL` names, else `libnccl.so.2` where the system looks for libraries.
    ///
    /// # Errors
    /// A library that is missing, cannot be opened, or lacks a function: what to install, or which variable to set.
    pub fn open() -> Result<Arc<Nccl>> {
        let named = std::env::var_os("SDRRL_NCCL").filter(|v| !v.is_empty()).map(PathBuf::from);
        let path = match named {
            Some(folder) if folder.is_dir() => folder.join(SONAME),
            Some(file) => file,
            None => SONAME.into(),
        };
        let advice = "install NCCL 2 (NVIDIA's libnccl2), or set SDRRL_NCCL to a libnccl.so.2, such as site-packages/nvidia/nccl/lib/libnccl.so.2 of PyTorch's wheels";
        let name = CString::new(path.as_os_str().as_bytes()).context("SDRRL_NCCL")?;
        // SAFETY: opens a shared library, whose constructors are NCCL's own; it stays loaded.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        let missing = || {
            let message =
                format!("NCCL cannot be opened ({}): {advice}", super::nvtx_injection::last_error());
            Error::no_device("libnccl.so.2", message)
        };
        ensure!(!library.is_null(), missing());
        let all: Result<Nccl> = (|| {
            Ok(Nccl {
                get_version: symbol(library, c"ncclGetVersion")?,
                get_unique_id: symbol(library, c"ncclGetUniqueId")?,
                init_rank: symbol(library, c"ncclCommInitRank")?,
                all_reduce: symbol(library, c"ncclAllReduce")?,
                reduce: symbol(library, c"ncclReduce")?,
                all_gather: symbol(library, c"ncclAllGather")?,
                broadcast: symbol(library, c"ncclBroadcast")?,
                group_start: symbol(library, c"ncclGroupStart")?,
                group_end: symbol(library, c"ncclGroupEnd")?,
                async_error: symbol(library, c"ncclCommGetAsyncError")?,
                abort: symbol(library, c"ncclCommAbort")?,
                destroy: symbol(library, c"ncclCommDestroy")?,
                error_string: symbol(library, c"ncclGetErrorString")?,
                rehearsal: symbol::<*const c_void>(library, c"sdrrlRehearsal").is_ok(),
            })
        })();
        Ok(Arc::new(all.with_context(|| format!("{} is no NCCL 2: {advice}", path.display()))?))
    }

    /// True if it works on the memory of the emulated GPU, which NVIDIA's cannot.
    pub fn is_rehearsal(&self) -> bool {
        self.rehearsal
    }

    /// Such as 22703 for 2.27.3.
    pub fn version(&self) -> Result<i32> {
        let mut version = 0;
        // SAFETY: a place for the result.
        self.check("ask for NCCL's version", unsafe { (self.get_version)(&mut version) })?;
        Ok(version)
    }

    /// What all ranks of a communicator are given by one of them.
    pub fn unique_id(&self) -> Result<[u8; ID_BYTES]> {
        let mut id = UniqueId([0; ID_BYTES]);
        // SAFETY: a place for the result.
        self.check("make NCCL's id", unsafe { (self.get_unique_id)(&mut id) })?;
        Ok(id.0.map(|c| c as u8))
    }

    fn check(&self, what: &str, code: Code) -> Result<()> {
        // SAFETY: gives a string that lives as long as the library.
        let text = || unsafe { CStr::from_ptr((self.error_string)(code)) }.to_string_lossy().into_owned();
        if code == 0 {
            return Ok(());
        }
        Err(anyhow!("{what}: NCCL says `{}` ({code}); NCCL_DEBUG=INFO makes it say more", text()))
    }
}

fn symbol<T>(library: *mut c_void, name: &CStr) -> Result<T> {
    // SAFETY: a library that is open; the types of the functions are those of nccl.h, all of them pointers.
    unsafe {
        let found = libc::dlsym(library, name.as_ptr());
        ensure!(!found.is_null(), "it has no {}", name.to_string_lossy());
        Ok(transmute_copy::<*mut c_void, T>(&found))
    }
}

/// One rank's end of a communicator. Collectives are called by every rank in the same order, whatever their streams.
pub struct Communicator {
    nccl: Arc<Nccl>,
    handle: Handle,
    size: usize,
    aborted: AtomicBool,
}
// SAFETY: NCCL lets other threads abort a communicator while one is in a call; everything else is called by the thread that made it.
unsafe impl Send for Communicator {}
// SAFETY: as above.
unsafe impl Sync for Communicator {}

impl Communicator {
    /// Waits until all `size` ranks have called it with the same id; the device must be current on this thread.
    pub fn new(nccl: Arc<Nccl>, rank: usize, size: usize, id: &[u8; ID_BYTES]) -> Result<Communicator> {
        let (mut handle, id) = (null_mut(), UniqueId(id.map(|b| b as c_char)));
        // SAFETY: a place for the result; the id is copied.
        let code = unsafe { (nccl.init_rank)(&mut handle, size as c_int, id, rank as c_int) };
        nccl.check(&format!("join as rank {rank} of {size}"), code)?;
        Ok(Communicator { nccl, handle, size, aborted: AtomicBool::new(false) })
    }

    /// Ranks.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Every rank's `n` numbers at `at` become the sums over all ranks; with an `owner` its own alone do, and those of the others are undefined.
    ///
    /// # Safety
    /// `at` is device memory of that many numbers, aligned to one, which lives until `stream` was waited for.
    pub(crate) unsafe fn sum(
        &self,
        (at, n): (u64, usize),
        number: Number,
        owner: Option<usize>,
        stream: Stream,
    ) -> Result<()> {
        let (at, number, nccl, stream) = (at as *mut c_void, number as c_int, &self.nccl, stream.handle());
        // SAFETY: the caller's promise.
        let code = unsafe {
            match owner {
                None => (nccl.all_reduce)(at, at, n, number, SUM, self.handle, stream),
                Some(owner) => (nccl.reduce)(at, at, n, number, SUM, owner as c_int, self.handle, stream),
            }
        };
        self.check("sum over the ranks", code)
    }

    /// `n` bytes of every rank, in the order of the ranks.
    ///
    /// # Safety
    /// As [`Communicator::sum`]: `from` has `n` bytes, `to` as many for each rank; they are apart, or `from` is this rank's place in `to`.
    pub(crate) unsafe fn all_gather(&self, from: u64, to: u64, n: usize, stream: Stream) -> Result<()> {
        let (from, to) = (from as *const c_void, to as *mut c_void);
        // SAFETY: the caller's promise.
        let code = unsafe { (self.nccl.all_gather)(from, to, n, UINT8, self.handle, stream.handle()) };
        self.check("gather from the ranks", code)
    }

    /// The `n` bytes of rank `root` on every rank.
    ///
    /// # Safety
    /// As [`Communicator::sum`].
    pub(crate) unsafe fn broadcast(&self, at: u64, n: usize, root: usize, stream: Stream) -> Result<()> {
        let at = at as *mut c_void;
        // SAFETY: the caller's promise.
        let code =
            unsafe { (self.nccl.broadcast)(at, at, n, UINT8, root as c_int, self.handle, stream.handle()) };
        self.check("send to the ranks", code)
    }

    /// Makes what `calls` asks for one call of NCCL.
    pub(crate) fn together(&self, calls: impl FnOnce() -> Result<()>) -> Result<()> {
        // SAFETY: takes nothing; ended below, whatever happens in between.
        self.nccl.check("begin a group of calls", unsafe { (self.nccl.group_start)() })?;
        let done = calls();
        // SAFETY: begun above.
        let ended = unsafe { (self.nccl.group_end)() };
        done.and_then(|()| self.check("call all ranks", ended))
    }

    /// An error if any call so far has failed, now that it was waited for.
    pub(crate) fn sound(&self) -> Result<()> {
        self.check("exchange with the ranks", 0)
    }

    fn check(&self, what: &str, code: Code) -> Result<()> {
        self.nccl.check(what, code)?;
        let mut late = 0;
        // SAFETY: a communicator that was made and not ended; a place for the result.
        let asked = unsafe { (self.nccl.async_error)(self.handle, &mut late) };
        self.nccl.check(what, asked)?;
        self.nccl.check(what, if late == IN_PROGRESS { 0 } else { late })
    }

    /// Ends what runs on it, from any thread: calls that wait for other ranks return.
    pub fn abort(&self) {
        if !self.aborted.swap(true, Ordering::SeqCst) {
            // SAFETY: once; afterwards the handle is used by calls that are about to fail only.
            unsafe { (self.nccl.abort)(self.handle) };
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if !self.aborted.load(Ordering::SeqCst) {
            // SAFETY: made by `new`, and never used again. A failure at the end is of no interest.
            unsafe { (self.nccl.destroy)(self.handle) };
        }
    }
}
