//! A real GPU as the other device of the tests: their kernels as nvcc compiled them for Hopper, through cudarc.
use std::{
    collections::HashMap,
    ffi::{CString, c_void},
    mem::MaybeUninit,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use cudarc::driver::{CudaContext, DriverError, result, sys};
use sdrrl_emulator::{Config, Geometry};

#[allow(dead_code)] // The project reads all of these.
mod fatbins {
    include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));
}

struct Driver {
    context: Arc<CudaContext>,
    functions: Mutex<HashMap<(String, bool, bool), Function>>,
}
#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    shared: u32,
}
// SAFETY: a handle of the driver, valid from any thread that has made the context current.
unsafe impl Send for Function {}

fn say(what: &str) -> impl Fn(DriverError) -> String {
    move |e| format!("{what}: CUDA says {:?}", e.0)
}

fn open() -> Result<Driver, String> {
    if fatbins::FATBINS.is_empty() {
        return Err("this program was built without GPU kernels: there was no nvcc".into());
    }
    // SAFETY: only tries to open libcuda; cudarc's other calls panic without it.
    if !unsafe { sys::is_culib_present() } {
        return Err("no CUDA driver library (libcuda) on this machine".into());
    }
    let context = CudaContext::new(0).map_err(say("open the device"))?;
    let capability = context.compute_capability().map_err(say("ask for the device's capability"))?;
    if capability != (9, 0) {
        return Err(format!("the device is of capability {capability:?}; these kernels are sm_90a code"));
    }
    Ok(Driver { context, functions: Mutex::default() })
}

/// The first GPU, current on this thread.
fn driver() -> Result<&'static Driver, String> {
    static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
    let driver = DRIVER.get_or_init(open).as_ref().map_err(String::clone)?;
    driver.context.bind_to_thread().map_err(say("bind the device"))?;
    Ok(driver)
}

/// Device memory; not given back before the program ends, so that no error of a kernel meets a second one.
pub struct Buffer {
    at: u64,
    bytes: usize,
}

impl Buffer {
    /// Memory full of NaN.
    pub fn new(bytes: usize) -> Result<Buffer, String> {
        driver()?;
        // SAFETY: any size is fine.
        let at = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(say("allocate"))?;
        let buffer = Buffer { at, bytes };
        buffer.write(&vec![0xff; bytes])?;
        Ok(buffer)
    }
    /// The address that kernels get.
    pub fn address(&self) -> u64 {
        self.at
    }
    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
    /// Copies `from` to the beginning.
    pub fn write(&self, from: &[u8]) -> Result<(), String> {
        driver()?;
        assert!(from.len() <= self.bytes, "write past the end of device memory");
        // SAFETY: in bounds; the copy has ended on return.
        unsafe { result::memcpy_htod_sync(self.at, from) }.map_err(say("copy to the device"))
    }
    /// Copies from the beginning to `to`.
    pub fn read(&self, to: &mut [u8]) -> Result<(), String> {
        driver()?;
        assert!(to.len() <= self.bytes, "read past the end of device memory");
        // SAFETY: as in `write`.
        unsafe { result::memcpy_dtoh_sync(to, self.at) }.map_err(say("copy from the device"))
    }
}

impl Driver {
    /// The kernel's handle with what `config` asks for. What was asked for once stays, hence a module for each kind.
    fn function(&self, kernel: &str, shared: u32, config: &Config) -> Result<sys::CUfunction, String> {
        let mut known = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (kernel.to_string(), config.default_shared, config.large_clusters);
        let mut f = match known.get(&key) {
            Some(f) => *f,
            None => Function { handle: find(kernel)?, shared: 0 },
        };
        let ask = |attribute, value: u32| {
            // SAFETY: a valid function.
            unsafe { result::function::set_function_attribute(f.handle, attribute, value as i32) }
                .map_err(say(&format!("{attribute:?} = {value} for {kernel}")))
        };
        use sys::CUfunction_attribute as A;
        if shared > f.shared && !config.default_shared {
            ask(A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)?;
            f.shared = shared;
        }
        if config.large_clusters {
            ask(A::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)?;
        }
        known.insert(key, f);
        Ok(f.handle)
    }
}

/// The kernel in a module of its own.
fn find(kernel: &str) -> Result<sys::CUfunction, String> {
    let name = CString::new(kernel).map_err(|e| e.to_string())?;
    for (file, image) in fatbins::FATBINS {
        // SAFETY: a fatbin that nvcc wrote.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }
            .map_err(say(&format!("load kernels/{file}.cu")))?;
        // SAFETY: a loaded module, which is never unloaded.
        if let Ok(handle) = unsafe { result::module::get_function(module, name.clone()) } {
            return Ok(handle);
        }
        // SAFETY: nothing of it is used.
        unsafe { result::module::unload(module) }.map_err(say("unload a module"))?;
    }
    Err(format!("kernel {kernel}: there is no kernel of this name"))
}

fn attribute(id: sys::CUlaunchAttributeID) -> sys::CUlaunchAttribute {
    // SAFETY: a C struct of integers for which zero is a value.
    let zeroed: sys::CUlaunchAttribute = unsafe { MaybeUninit::zeroed().assume_init() };
    sys::CUlaunchAttribute { id, ..zeroed }
}

/// Launches and waits.
///
/// # Safety
/// Pointers among the arguments must be device memory that lives.
pub unsafe fn launch(kernel: &str, at: Geometry, args: &[Vec<u8>], config: &Config) -> Result<(), String> {
    let driver = driver()?;
    let function = driver.function(kernel, at.shared_bytes, config)?;
    use sys::CUlaunchAttributeID as Id;
    let mut attributes = vec![];
    if at.cluster != [1; 3] {
        let mut cluster = attribute(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
        cluster.value.clusterDim.x = at.cluster[0];
        cluster.value.clusterDim.y = at.cluster[1];
        cluster.value.clusterDim.z = at.cluster[2];
        attributes.push(cluster);
    }
    if config.cooperative {
        let mut cooperative = attribute(Id::CU_LAUNCH_ATTRIBUTE_COOPERATIVE);
        cooperative.value.cooperative = 1;
        attributes.push(cooperative);
    }
    let how = sys::CUlaunchConfig {
        gridDimX: at.grid[0],
        gridDimY: at.grid[1],
        gridDimZ: at.grid[2],
        blockDimX: at.block[0],
        blockDimY: at.block[1],
        blockDimZ: at.block[2],
        sharedMemBytes: at.shared_bytes,
        hStream: std::ptr::null_mut(),
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    };
    let mut args = args.to_vec();
    let mut pointers: Vec<*mut c_void> = args.iter_mut().map(|a| a.as_mut_ptr().cast()).collect();
    // SAFETY: parameters by the caller's promise; the driver copies them before it returns.
    unsafe { sys::cuLaunchKernelEx(&how, function, pointers.as_mut_ptr(), std::ptr::null_mut()) }
        .result()
        .map_err(say(&format!("launch {kernel}")))?;
    result::ctx::synchronize().map_err(say(&format!("run {kernel}")))
}

/// As [`sdrrl_emulator::tensor_map`], by the driver.
pub fn tensor_map(
    base: u64,
    elem: usize,
    dims: &[u64],
    strides: &[u64],
    tile: &[u32],
    swizzle: u32,
) -> Result<[u8; 128], String> {
    driver()?;
    use sys::{CUtensorMapDataType as Type, CUtensorMapSwizzle as Swizzle};
    let of = match elem {
        1 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        2 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        4 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        _ => return Err(format!("elements of {elem} bytes")),
    };
    let swizzle = match swizzle {
        0 => Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        1 => Swizzle::CU_TENSOR_MAP_SWIZZLE_32B,
        2 => Swizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        _ => Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    #[repr(align(64))]
    struct Aligned([u8; 128]);
    let mut map = Aligned([0; 128]);
    let steps = vec![1u32; dims.len()];
    // A map of rank 1 has no strides, but the driver wants an address.
    let strides = if strides.is_empty() { &[0] } else { strides };
    // SAFETY: the arrays have `rank` entries (strides one less); only the addresses are stored.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            (&raw mut map).cast(),
            of,
            dims.len() as u32,
            base as *mut c_void,
            dims.as_ptr(),
            strides.as_ptr(),
            tile.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()
    .map_err(say(&format!("tensor map {dims:?}, strides {strides:?}, box {tile:?}")))?;
    Ok(map.0)
}
