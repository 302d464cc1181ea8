//! CUDA's driver through cudarc, which opens libcuda at run time: without it this program still starts and says so.
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    ffi::{CString, c_void},
    mem::MaybeUninit,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use crate::error::Error;
use anyhow::{Context, Result, anyhow, bail, ensure};
use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::{
    driver::{Driver, DriverMemory, Mark, Stream},
    launch::{Geometry, Kernel, TensorMap},
};

mod event;
pub(super) use event::Event;

mod fatbins {
    include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));
}
use fatbins::FATBINS;
pub(super) use fatbins::{KERNEL_USAGE, NVCC_VERSION};

/// Dynamic shared memory that a kernel may have without asking.
const DEFAULT_SHARED: u32 = 48 * 1024;

pub(super) struct Cuda {
    context: Arc<CudaContext>,
    modules: HashMap<&'static str, Module>,
    functions: Mutex<HashMap<Kernel, Function>>,
    /// True if memory is allocated and freed in the order of the stream, without waiting.
    pools: bool,
    pub(super) name: String,
    pub(super) arch: u32,
    multiprocessors: u32,
}

/// Devices that were opened, by ordinal. They stay open until the program ends: a context and its kernels take long to make.
static OPEN: Mutex<BTreeMap<usize, Arc<Cuda>>> = Mutex::new(BTreeMap::new());

struct Module(sys::CUmodule);
#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    shared: u32,
}
// SAFETY: handles of the driver, valid from any thread that has made the context current.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}
// SAFETY: as above.
unsafe impl Send for Function {}

/// Device memory.
struct Buffer {
    at: sys::CUdeviceptr,
    context: Arc<CudaContext>,
    /// Where it is freed, if in the order of a stream.
    pooled: Option<Stream>,
}

impl DriverMemory for Buffer {
    fn address(&self) -> u64 {
        self.at
    }
    fn write(&self, offset: usize, from: &[u8], _: Stream) -> Result<()> {
        bind(&self.context)?;
        // SAFETY: in bounds by the caller's shapes; the copy comes after what the default stream holds, and has ended on return.
        unsafe { result::memcpy_htod_sync(self.at + offset as u64, from) }
            .map_err(|e| explain("copy to the device", e))
    }
    fn read(&self, offset: usize, to: &mut [u8], _: Stream) -> Result<()> {
        bind(&self.context)?;
        // SAFETY: as in `write`.
        unsafe { result::memcpy_dtoh_sync(to, self.at + offset as u64) }
            .map_err(|e| explain("copy from the device", e))
    }
    fn zero(&self, offset: usize, n: usize, _: Stream) -> Result<()> {
        bind(&self.context)?;
        // SAFETY: in bounds by the caller's shapes.
        unsafe { result::memset_d8_sync(self.at + offset as u64, 0, n) }
            .map_err(|e| explain("clear memory", e))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `Cuda::allocate`; nobody holds the address any more, and kernels that were launched with it come before it in the
            // stream. A failure at exit is of no interest.
            let _ = unsafe {
                match self.pooled {
                    Some(stream) => result::free_async(self.at, stream.handle()),
                    None => result::free_sync(self.at),
                }
            };
        }
    }
}

fn bind(context: &CudaContext) -> Result<()> {
    context.bind_to_thread().map_err(|e| explain("bind the device", e))
}

/// A driver's error in words: its name, and what usually causes it.
fn explain(what: &str, e: DriverError) -> anyhow::Error {
    use sys::CUresult as R;
    let hint = match e.0 {
        R::CUDA_ERROR_OUT_OF_MEMORY => {
            ": the GPU's memory is full; lower the batch size or the sequence length"
        }
        R::CUDA_ERROR_NO_BINARY_FOR_GPU => {
            ": this build has no code for this GPU; kernels are built for sm_80, sm_90a and, as PTX, later ones"
        }
        R::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | R::CUDA_ERROR_INVALID_PTX => {
            ": the driver is older than the nvcc of this build (CUDA 13 needs driver 580); update it or build with an older nvcc"
        }
        R::CUDA_ERROR_ILLEGAL_ADDRESS | R::CUDA_ERROR_MISALIGNED_ADDRESS => {
            ": a kernel left its buffers; please report it (compute-sanitizer names the place)"
        }
        R::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | R::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            ": libcuda and the kernel driver do not belong together; restart after an update"
        }
        _ => "",
    };
    let message = format!("{what}: CUDA says {:?}{hint}", e.0);
    match e.0 {
        R::CUDA_ERROR_OUT_OF_MEMORY => Error::out_of_memory(message).into(),
        _ => anyhow!(message),
    }
}

impl Cuda {
    /// The device `ordinal`, its kernels loaded.
    pub(super) fn open(ordinal: usize) -> Result<Arc<Cuda>> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(driver) = open.get(&ordinal) {
            return Ok(driver.clone());
        }
        let driver = Arc::new(Cuda::load(ordinal)?);
        open.insert(ordinal, driver.clone());
        Ok(driver)
    }

    fn load(ordinal: usize) -> Result<Cuda> {
        if FATBINS.is_empty() {
            bail!(
                "this program was built without GPU kernels, because there was no nvcc: run scripts/get_nvcc.sh (or set NVCC) and build again"
            );
        }
        let found = super::gpus().map_err(|why| anyhow!(why))?;
        let info = found.get(ordinal).with_context(|| {
            format!("there is no CUDA device {ordinal}: this machine has {} of them", found.len())
        })?;
        let (major, minor) = info.compute_capability;
        let arch = (major * 10 + minor) as u32;
        ensure!(arch >= 80, "{} is an sm_{arch}; the kernels need sm_80 (Ampere) or later", info.name);
        let context = CudaContext::new(ordinal).map_err(|e| explain("open the device", e))?;
        let mut modules = HashMap::new();
        let (mut name, folder) = (info.name.clone(), std::env::var_os("SDRRL_FATBINS"));
        for &(file, own) in FATBINS {
            if file.starts_with("sm90/") && arch != 90 {
                continue;
            }
            let image = match &folder {
                Some(folder) => instead_of(own, file, Path::new(folder), &mut name)?,
                None => Cow::Borrowed(own),
            };
            // SAFETY: a fatbin that nvcc wrote.
            let module = unsafe { result::module::load_data(image.as_ptr().cast()) }
                .map_err(|e| explain(&format!("load kernels/{file}.cu"), e))?;
            modules.insert(file, Module(module));
        }
        let multiprocessors = context
            .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .map_err(|e| explain("count the multiprocessors", e))? as u32;
        let pools = context.has_async_alloc();
        if pools {
            keep_freed_memory(&context)?;
        }
        Ok(Cuda { context, modules, functions: Mutex::default(), pools, name, arch, multiprocessors })
    }

    /// The kernel's handle, allowed at least `shared` bytes of dynamic shared memory.
    fn function(&self, kernel: Kernel, shared: u32) -> Result<sys::CUfunction> {
        let mut known = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let mut f = match known.get(&kernel) {
            Some(f) => *f,
            None => {
                let module = self.modules.get(kernel.file).with_context(|| {
                    format!("kernels/{}.cu is not built for sm_{}", kernel.file, self.arch)
                })?;
                // SAFETY: a loaded module.
                let handle = unsafe { result::module::get_function(module.0, CString::new(kernel.name)?) }
                    .map_err(|e| explain(&format!("find kernel {}", kernel.name), e))?;
                Function { handle, shared: DEFAULT_SHARED }
            }
        };
        if shared > f.shared {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a valid function.
            unsafe { result::function::set_function_attribute(f.handle, attribute, shared as i32) }
                .map_err(|e| explain(&format!("{shared} bytes of shared memory for {}", kernel.name), e))?;
            f.shared = shared;
        }
        known.insert(kernel, f);
        Ok(f.handle)
    }
}

impl Driver for Cuda {
    fn is_emulated(&self) -> bool {
        false
    }
    fn reports_late(&self) -> bool {
        true
    }
    fn multiprocessors(&self) -> usize {
        self.multiprocessors as usize
    }

    fn allocate(&self, bytes: usize, stream: Stream) -> Result<Box<dyn DriverMemory>> {
        bind(&self.context)?;
        let bytes = bytes.max(1);
        // SAFETY: freed once, by Buffer's drop.
        let at = unsafe {
            if self.pools { result::malloc_async(stream.handle(), bytes) } else { result::malloc_sync(bytes) }
        }
        .map_err(|e| explain("allocate", e))?;
        Ok(Box::new(Buffer { at, context: self.context.clone(), pooled: self.pools.then_some(stream) }))
    }

    fn synchronize(&self) -> Result<()> {
        bind(&self.context)?;
        result::ctx::synchronize().map_err(|e| explain("wait for the device", e))
    }

    fn stream(&self) -> Result<Stream> {
        bind(&self.context)?;
        // The default stream waits for those of the other kind, and they for it.
        let made = result::stream::create(result::stream::StreamKind::NonBlocking);
        Ok(Stream::of(made.map_err(|e| explain("create a stream", e))?))
    }

    fn mark(&self, stream: Stream) -> Result<Mark> {
        bind(&self.context)?;
        let event = Event::new(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        event.record(stream)?;
        Ok(Mark(Some(event)))
    }

    fn after(&self, mark: &Mark, stream: Stream) -> Result<()> {
        bind(&self.context)?;
        mark.0.as_ref().map_or(Ok(()), |event| event.before(stream))
    }

    fn time(&self, run: &mut dyn FnMut() -> Result<()>, stream: Stream) -> Result<f64> {
        bind(&self.context)?;
        let new = || Event::new(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let (begin, end) = (new()?, new()?);
        begin.record(stream)?;
        run()?;
        end.record(stream)?;
        self.synchronize()?;
        begin.seconds_to(&end)
    }

    /// `ncu --profile-from-start off` sees nothing else.
    fn profile(&self, run: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.synchronize()?;
        // SAFETY: a context is current; without a profiler the calls do nothing.
        unsafe { sys::cuProfilerStart() }.result().map_err(|e| explain("start the profiler's range", e))?;
        let done = run().and_then(|()| self.synchronize());
        // SAFETY: as above.
        unsafe { sys::cuProfilerStop() }.result().map_err(|e| explain("end the profiler's range", e))?;
        done
    }

    unsafe fn launch(
        &self,
        kernel: Kernel,
        at: Geometry,
        mut args: Vec<Vec<u8>>,
        stream: Stream,
    ) -> Result<()> {
        bind(&self.context)?;
        let function = self.function(kernel, at.shared_bytes)?;
        let mut pointers: Vec<*mut c_void> = args.iter_mut().map(|a| a.as_mut_ptr().cast()).collect();
        let mut attribute: sys::CUlaunchAttribute = unsafe_zeroed();
        attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        attribute.value.clusterDim.x = at.cluster;
        attribute.value.clusterDim.y = 1;
        attribute.value.clusterDim.z = 1;
        let config = sys::CUlaunchConfig {
            gridDimX: at.grid[0],
            gridDimY: at.grid[1],
            gridDimZ: at.grid[2],
            blockDimX: at.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: at.shared_bytes,
            hStream: stream.handle(),
            attrs: &mut attribute,
            numAttrs: (at.cluster > 1) as u32,
        };
        // SAFETY: parameters by the caller's promise; the driver copies them before it returns.
        unsafe { sys::cuLaunchKernelEx(&config, function, pointers.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(|e| explain("launch", e))
    }

    fn tensor_map(&self, base: u64, dims: &[u64], strides: &[u64], tile: &[u32]) -> Result<TensorMap> {
        #[repr(align(64))]
        struct Aligned(MaybeUninit<sys::CUtensorMap>);
        let mut map = Aligned(MaybeUninit::zeroed());
        let steps = vec![1u32; dims.len()];
        // SAFETY: the arrays have `rank` entries (strides one less).
        unsafe {
            sys::cuTensorMapEncodeTiled(
                map.0.as_mut_ptr(),
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                dims.len() as u32,
                base as *mut c_void,
                dims.as_ptr(),
                strides.as_ptr(),
                tile.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(|e| explain(&format!("describe a tensor {dims:?}, strides {strides:?}, box {tile:?}"), e))?;
        // SAFETY: 128 bytes of plain data, zeroed and then written by the driver.
        Ok(unsafe { std::mem::transmute_copy::<sys::CUtensorMap, TensorMap>(map.0.assume_init_ref()) })
    }
}

/// Memory that is freed stays with the program, for its next allocation.
fn keep_freed_memory(context: &CudaContext) -> Result<()> {
    let mut all = u64::MAX;
    // SAFETY: a device of the driver, and an attribute of 64 bits.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut all).cast())
    }
    .map_err(|e| explain("set up the memory pool", e))
}

/// `folder/FILE.fatbin` in place of the program's own, if there is one; the device's name then says so.
fn instead_of(
    own: &'static [u8],
    file: &str,
    folder: &Path,
    name: &mut String,
) -> Result<Cow<'static, [u8]>> {
    let path = folder.join(format!("{file}.fatbin"));
    if !path.exists() {
        return Ok(Cow::Borrowed(own));
    }
    let image = std::fs::read(&path).with_context(|| format!("read {} (SDRRL_FATBINS)", path.display()))?;
    // The driver trusts the lengths in the image: the least that can be said of a wrong file is said here.
    let wrong = || format!("{} (SDRRL_FATBINS) is no fatbin: make it with nvcc -fatbin", path.display());
    ensure!(image.starts_with(&FATBIN_MAGIC), Error::bad_input(path.display(), wrong()));
    name.push_str(&format!(", {file} of {}", folder.display()));
    Ok(Cow::Owned(image))
}

/// How every fatbin begins.
const FATBIN_MAGIC: [u8; 4] = 0xba55_ed50u32.to_le_bytes();

fn unsafe_zeroed() -> sys::CUlaunchAttribute {
    // SAFETY: a C struct of integers for which zero is a value.
    unsafe { MaybeUninit::zeroed().assume_init() }
}
