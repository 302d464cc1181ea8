// CUDA's driver API over the emulator: a libcuda.so.1 with GPUs that are none. Programs run their CUDA path against it, from the search for the library to
// the last launch, on a machine without a GPU (scripts/rehearsal_driver.sh builds it and says how).
//
// Strict where the real driver is, so that a program that passes here has no error of these kinds left: a context must be current on the calling thread,
// dynamic shared memory above 48 KiB must be allowed first, copies stay inside one allocation, tensor maps and launches keep the hardware's limits. Work is asynchronous:
// a launch is queued with a copy of its parameters and runs at the next call that waits; its error comes out there, and then from every call until
// the context is gone. Streams beside the default one run as early as the events that they wait for allow, or, with SDRRL_REHEARSAL_STREAMS=late, as late: what misses an event has other
// bits in one of the two. SDRRL_REHEARSAL_TRACE=FILE gets a line for each launch and each exchange (libnccl.cpp), in the order in which they ran. New memory is full of NaN. Only what this project calls is here; any other symbol is missing, which cudarc reports by name.
#include <cuda.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "queues.hpp"
#include "runtime.hpp"
#include "workers.hpp"

namespace {
constexpr int DEFAULT_SHARED = 48 * 1024;   // of a block, static and dynamic, without asking
constexpr int OPTIN_SHARED = 227 * 1024;
constexpr uint32_t FATBIN = 0xba55ed50;

struct Function { std::string name; const emu::Kernel* kernel; int dynamic; bool asked, large_clusters; };
struct Module { std::map<std::string, Function> functions; };
struct Context {
  int users = 0;
  CUresult error = CUDA_SUCCESS;           // sticky
  Queue queue;                             // of the default stream
  std::map<CUstream, Queue> beside;
  std::map<CUdeviceptr, size_t> memory;
  size_t held = 0;
};
std::recursive_mutex g_lock;               // one caller at a time: this driver is for checking
bool g_ready = false;
std::map<CUdevice, Context> g_contexts;    // the primary one of each device
thread_local Context* t_current = nullptr;

size_t total_memory() {
  const char* mib = getenv("SDRRL_REHEARSAL_MIB");
  return (mib ? strtoull(mib, nullptr, 10) : 16384) << 20;
}
EmuConfig config() {
  const char* checks = getenv("SDRRL_REHEARSAL_CHECKS");
  bool on = checks && *checks == '1';
  return EmuConfig{1, on ? 3 : 0, on ? 1 : 0, 0, on, 0, 0, 0, 1};
}

// What every call but the first few begins with.
CUresult enter() {
  if (!g_ready) return CUDA_ERROR_NOT_INITIALIZED;
  if (!t_current || t_current->users == 0) return CUDA_ERROR_INVALID_CONTEXT;
  return t_current->error;
}
void fail(Context& context, const char* why) {
  fprintf(stderr, "rehearsal driver: %s\n", why);
  context.error = CUDA_ERROR_LAUNCH_FAILED;
}
CUresult drain() {
  auto& c = *t_current;
  if (!run_all(c.queue, c.beside, [&] { return c.error == CUDA_SUCCESS; })) fail(c, "streams wait for each other");
  return c.error;
}
// True if [at, at + n) lies in one allocation.
bool inside(CUdeviceptr at, size_t n) {
  auto it = t_current->memory.upper_bound(at);
  if (it == t_current->memory.begin()) return false;
  --it;
  return at - it->first <= it->second && n <= it->second - (at - it->first);
}
// SDRRL_REHEARSAL_FAIL=NAME or, on the GPU with that number alone, NAME@NUMBER.
bool is_to_fail(const Context& context, const std::string& name) {
  const char* failing = getenv("SDRRL_REHEARSAL_FAIL");
  if (!failing) return false;
  std::string planted = failing;
  size_t at = planted.find('@');
  if (planted.substr(0, at) != name) return false;
  return at == std::string::npos || &g_contexts[atoi(planted.c_str() + at + 1)] == &context;
}
// Runs a launch; blocks that are independent of each other are shared among the machine's threads.
void launch(Context& context, const std::string& name, EmuDim grid, EmuDim block, EmuDim cluster, uint32_t shared, std::vector<void*> args, const std::vector<uint32_t>& sizes, EmuConfig how) {
  static Workers& workers = *new Workers;
  bool alone = how.checks || how.cooperative || cluster.x * cluster.y * cluster.z > 1 || grid.x * grid.y * grid.z < 2;
  how.parts = alone ? 1 : workers.count;
  auto part = [&](int i) {
    EmuConfig own = how;
    own.part = i;
    if (emu_launch(name.c_str(), grid, block, cluster, shared, args.data(), sizes.data(), int(sizes.size()), &own, nullptr)) fail(context, emu_last_error());
  };
  trace(name.c_str());
  if (is_to_fail(context, name)) return fail(context, ("kernel " + name + " fails, as SDRRL_REHEARSAL_FAIL wishes").c_str());
  if (alone) part(0);
  else workers.run(part);
}
#define EXPORT extern "C" __attribute__((visibility("default"))) CUresult
#define ENTER                                            \
  std::lock_guard<std::recursive_mutex> guard(g_lock);   \
  if (CUresult e = enter()) return e
}  // namespace

// ---- the device ----
EXPORT cuInit(unsigned flags) { g_ready = true; return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS; }
// One device, or as many as SDRRL_REHEARSAL_GPUS says: for processes that use one each, and for threads that do.
static int gpus() {
  const char* n = getenv("SDRRL_REHEARSAL_GPUS");
  return n ? std::max(1, atoi(n)) : 1;
}
EXPORT cuDeviceGetCount(int* n) { *n = gpus(); return g_ready ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED; }
EXPORT cuDeviceGet(CUdevice* d, int ordinal) {
  if (!g_ready) return CUDA_ERROR_NOT_INITIALIZED;
  *d = ordinal;
  return ordinal >= 0 && ordinal < gpus() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
EXPORT cuDeviceGetName(char* name, int n, CUdevice) { snprintf(name, size_t(n), "rehearsal (no GPU)"); return CUDA_SUCCESS; }
static CUresult uuid(CUuuid* id, CUdevice device) {
  memset(id->bytes, 0, sizeof id->bytes);
  id->bytes[15] = char(device + 1);
  return CUDA_SUCCESS;
}
#undef cuDeviceGetUuid   // CUDA 13's header renames it; drivers export both
EXPORT cuDeviceGetUuid(CUuuid* id, CUdevice device) { return uuid(id, device); }
EXPORT cuDeviceGetUuid_v2(CUuuid* id, CUdevice device) { return uuid(id, device); }
EXPORT cuDeviceTotalMem(size_t* bytes, CUdevice) { *bytes = total_memory(); return CUDA_SUCCESS; }
EXPORT cuDeviceGetAttribute(int* value, CUdevice_attribute what, CUdevice) {
  switch (what) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = OPTIN_SHARED; break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED: *value = 1; break;
    default: fprintf(stderr, "rehearsal driver: attribute %d is not known here\n", int(what)); return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

// ---- the context ----
EXPORT cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  std::lock_guard<std::recursive_mutex> guard(g_lock);
  if (!g_ready) return CUDA_ERROR_NOT_INITIALIZED;
  g_contexts[device].users++;
  *context = reinterpret_cast<CUcontext>(&g_contexts[device]);
  return CUDA_SUCCESS;
}
// The last one to let go ends the context with its memory and its error.
EXPORT cuDevicePrimaryCtxRelease(CUdevice device) {
  std::lock_guard<std::recursive_mutex> guard(g_lock);
  Context& context = g_contexts[device];
  if (context.users == 0) return CUDA_ERROR_INVALID_CONTEXT;
  if (--context.users > 0) return CUDA_SUCCESS;
  for (auto& [at, bytes] : context.memory) emu_free(reinterpret_cast<void*>(at));
  context = Context{};
  return CUDA_SUCCESS;
}
EXPORT cuCtxGetCurrent(CUcontext* context) {
  *context = reinterpret_cast<CUcontext>(t_current);
  return g_ready ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}
EXPORT cuCtxSetCurrent(CUcontext context) {
  if (!g_ready) return CUDA_ERROR_NOT_INITIALIZED;
  t_current = reinterpret_cast<Context*>(context);
  return CUDA_SUCCESS;
}
EXPORT cuCtxSynchronize() { ENTER; return drain(); }

// ---- memory ----
EXPORT cuMemAlloc(CUdeviceptr* at, size_t bytes) {
  ENTER;
  auto& c = *t_current;
  if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  void* p = c.held + bytes > total_memory() ? nullptr : emu_malloc(bytes);
  if (!p) return CUDA_ERROR_OUT_OF_MEMORY;
  *at = CUdeviceptr(p);
  c.memory[*at] = bytes;
  c.held += bytes;
  return CUDA_SUCCESS;
}
EXPORT cuMemFree(CUdeviceptr at) {
  ENTER;
  auto& c = *t_current;
  CUresult done = drain();
  auto it = c.memory.find(at);
  if (it == c.memory.end()) return CUDA_ERROR_INVALID_VALUE;
  emu_free(reinterpret_cast<void*>(at));
  c.held -= it->second;
  c.memory.erase(it);
  return done;
}
EXPORT cuMemcpyHtoD(CUdeviceptr to, const void* from, size_t n) {
  ENTER;
  if (!inside(to, n)) return CUDA_ERROR_INVALID_VALUE;
  if (CUresult e = drain()) return e;
  emu_copy_in(reinterpret_cast<void*>(to), from, n);
  return CUDA_SUCCESS;
}
EXPORT cuMemcpyDtoH(void* to, CUdeviceptr from, size_t n) {
  ENTER;
  if (!inside(from, n)) return CUDA_ERROR_INVALID_VALUE;
  if (CUresult e = drain()) return e;
  memcpy(to, reinterpret_cast<const void*>(from), n);
  return CUDA_SUCCESS;
}
EXPORT cuMemsetD8(CUdeviceptr to, unsigned char value, size_t n) {
  ENTER;
  if (!inside(to, n) || value != 0) return CUDA_ERROR_INVALID_VALUE;
  t_current->queue.push_back([=] { emu_fill_zero(reinterpret_cast<void*>(to), n); });
  return CUDA_SUCCESS;
}

EXPORT cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice device) {
  std::lock_guard<std::recursive_mutex> guard(g_lock);
  *pool = reinterpret_cast<CUmemoryPool>(&g_contexts[device]);
  return CUDA_SUCCESS;
}
EXPORT cuMemPoolSetAttribute(CUmemoryPool, CUmemPool_attribute what, void*) {
  return what == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD ? CUDA_SUCCESS : CUDA_ERROR_NOT_SUPPORTED;
}
EXPORT cuMemAllocAsync(CUdeviceptr* at, size_t bytes, CUstream stream) { return stream ? CUDA_ERROR_INVALID_VALUE : cuMemAlloc(at, bytes); }
// The memory stays until the work before it is done.
EXPORT cuMemFreeAsync(CUdeviceptr at, CUstream stream) {
  ENTER;
  auto& c = *t_current;
  auto it = c.memory.find(at);
  if (stream || it == c.memory.end()) return CUDA_ERROR_INVALID_VALUE;
  c.held -= it->second;
  c.memory.erase(it);
  c.queue.push_back([=] { emu_free(reinterpret_cast<void*>(at)); });
  return CUDA_SUCCESS;
}

// ---- events ----
EXPORT cuEventCreate(CUevent* event, unsigned) { ENTER; *event = reinterpret_cast<CUevent>(new Event); return CUDA_SUCCESS; }
// What was recorded, and who waits for it, stay.
EXPORT cuEventDestroy(CUevent event) {
  ENTER;
  delete reinterpret_cast<Event*>(event);
  return CUDA_SUCCESS;
}
static Queue* queue_of(CUstream stream) {
  if (!stream) return &t_current->queue;
  auto it = t_current->beside.find(stream);
  return it == t_current->beside.end() ? nullptr : &it->second;
}
EXPORT cuEventRecord(CUevent event, CUstream stream) {
  ENTER;
  Queue* queue = queue_of(stream);
  if (!queue) return CUDA_ERROR_INVALID_HANDLE;
  auto mark = std::make_shared<Mark>();
  reinterpret_cast<Event*>(event)->mark = mark;
  queue->push_back([=] { *mark = Mark{Clock::now(), true}; });
  return CUDA_SUCCESS;
}
static CUresult elapsed(float* ms, CUevent a, CUevent b) {
  ENTER;
  Mark begin = *reinterpret_cast<Event*>(a)->mark, end = *reinterpret_cast<Event*>(b)->mark;
  if (!begin.happened || !end.happened) return CUDA_ERROR_NOT_READY;
  *ms = std::chrono::duration<float, std::milli>(end.at - begin.at).count();
  return CUDA_SUCCESS;
}
#undef cuEventElapsedTime   // CUDA 13's header renames it; drivers export both
EXPORT cuEventElapsedTime(float* ms, CUevent a, CUevent b) { return elapsed(ms, a, b); }
EXPORT cuEventElapsedTime_v2(float* ms, CUevent a, CUevent b) { return elapsed(ms, a, b); }

// ---- streams ----
EXPORT cuStreamCreate(CUstream* stream, unsigned flags) {
  ENTER;
  // One that the default stream waits for would order what is to run beside it.
  if (flags != CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
  *stream = reinterpret_cast<CUstream>(new char);
  t_current->beside[*stream];
  return CUDA_SUCCESS;
}
EXPORT cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
  ENTER;
  Queue* queue = queue_of(stream);
  if (!queue) return CUDA_ERROR_INVALID_HANDLE;
  queue->ops.push_back({nullptr, reinterpret_cast<Event*>(event)->mark});
  return CUDA_SUCCESS;
}
// An exchange of libnccl.cpp, in a stream.
extern "C" __attribute__((visibility("default"))) int sdrrlRehearsalQueue(void* stream, void (*run)(void*), void* data) {
  ENTER;
  Queue* queue = queue_of(static_cast<CUstream>(stream));
  if (!queue) return CUDA_ERROR_INVALID_HANDLE;
  queue->push_back([=] {
    trace("exchange");
    run(data);
  });
  return CUDA_SUCCESS;
}

EXPORT cuProfilerStart() { ENTER; return CUDA_SUCCESS; }
EXPORT cuProfilerStop() { ENTER; return CUDA_SUCCESS; }

// ---- kernels ----
EXPORT cuModuleLoadData(CUmodule* module, const void* image) {
  ENTER;
  uint32_t magic;
  memcpy(&magic, image, 4);
  if (magic != FATBIN) return CUDA_ERROR_INVALID_IMAGE;
  *module = reinterpret_cast<CUmodule>(new Module);
  return CUDA_SUCCESS;
}
EXPORT cuModuleUnload(CUmodule module) { ENTER; delete reinterpret_cast<Module*>(module); return CUDA_SUCCESS; }
// Kernels go by name: the image's own machine code cannot run here.
EXPORT cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  ENTER;
  auto found = emu::kernels().find(name);
  if (found == emu::kernels().end()) return CUDA_ERROR_NOT_FOUND;
  auto& known = reinterpret_cast<Module*>(module)->functions;
  auto it = known.try_emplace(name, Function{name, &found->second, DEFAULT_SHARED, false, false}).first;
  *function = reinterpret_cast<CUfunction>(&it->second);
  return CUDA_SUCCESS;
}
EXPORT cuFuncSetAttribute(CUfunction function, CUfunction_attribute what, int value) {
  ENTER;
  auto* f = reinterpret_cast<Function*>(function);
  if (what == CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED) { f->large_clusters = value; return CUDA_SUCCESS; }
  if (what != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 || value > OPTIN_SHARED) return CUDA_ERROR_INVALID_VALUE;
  f->dynamic = value;
  f->asked = true;
  return CUDA_SUCCESS;
}
EXPORT cuLaunchKernelEx(const CUlaunchConfig* at, CUfunction function, void** parameters, void** extra) {
  ENTER;
  auto* f = reinterpret_cast<Function*>(function);
  const emu::Kernel& k = *f->kernel;
  if (extra || at->hStream || int(at->sharedMemBytes) > f->dynamic) return CUDA_ERROR_INVALID_VALUE;
  if (uint64_t(at->blockDimX) * at->blockDimY * at->blockDimZ > 1024 || at->blockDimZ > 64) return CUDA_ERROR_INVALID_VALUE;
  EmuDim grid{at->gridDimX, at->gridDimY, at->gridDimZ}, block{at->blockDimX, at->blockDimY, at->blockDimZ}, cluster{1, 1, 1};
  EmuConfig how = config();
  how.default_shared = !f->asked;
  how.large_clusters = f->large_clusters;
  for (unsigned i = 0; i < at->numAttrs; i++) {
    const CUlaunchAttribute& a = at->attrs[i];
    if (a.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) cluster = {a.value.clusterDim.x, a.value.clusterDim.y, a.value.clusterDim.z};
    else if (a.id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE) how.cooperative = a.value.cooperative;
    else return CUDA_ERROR_NOT_SUPPORTED;
  }
  const std::vector<uint32_t> sizes = k.sizes;
  std::string why = emu::refuse(k, grid, block, cluster, at->sharedMemBytes, sizes.data(), k.nargs, how);
  if (!why.empty()) {
    fprintf(stderr, "rehearsal driver: launch of %s refused: %s\n", f->name.c_str(), why.c_str());
    return CUDA_ERROR_INVALID_VALUE;
  }
  std::vector<std::vector<uint64_t>> values;
  for (int i = 0; i < k.nargs; i++) {
    values.emplace_back(sizes[size_t(i)] / 8 + 16);      // room to align tensor maps to 64 bytes
    auto* to = reinterpret_cast<uint64_t*>((uintptr_t(values.back().data()) + 63) & ~uintptr_t(63));
    memcpy(to, parameters[i], sizes[size_t(i)]);
  }
  uint32_t shared = at->sharedMemBytes;
  Context* context = t_current;
  t_current->queue.push_back([=, values = std::move(values)] {
    std::vector<void*> args;
    for (auto& v : values) args.push_back(reinterpret_cast<void*>((uintptr_t(v.data()) + 63) & ~uintptr_t(63)));
    launch(*context, f->name, grid, block, cluster, shared, std::move(args), sizes, how);
  });
  return CUDA_SUCCESS;
}
EXPORT cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base, const cuuint64_t* dims, const cuuint64_t* strides,
                              const cuuint32_t* box, const cuuint32_t* steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                              CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  std::lock_guard<std::recursive_mutex> guard(g_lock);
  if (uintptr_t(map) % 64 || interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) return CUDA_ERROR_INVALID_VALUE;
  for (unsigned i = 0; i < rank && i < 5; i++) if (steps[i] != 1) return CUDA_ERROR_INVALID_VALUE;
  int bytes = type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 ? 2 : type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32 ? 4 : type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1 : 0;
  int mode = swizzle == CU_TENSOR_MAP_SWIZZLE_NONE ? 0 : swizzle == CU_TENSOR_MAP_SWIZZLE_32B ? 1 : swizzle == CU_TENSOR_MAP_SWIZZLE_64B ? 2 : 3;
  if (!bytes) return CUDA_ERROR_INVALID_VALUE;
  return emu_tensor_map_encode(map, bytes, int(rank), base, dims, strides, box, mode) ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
EXPORT cuGetErrorName(CUresult, const char** name) { *name = "an error of the rehearsal driver"; return CUDA_SUCCESS; }
EXPORT cuGetErrorString(CUresult, const char** text) { *text = "see its output"; return CUDA_SUCCESS; }
