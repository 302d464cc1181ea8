// The CUDA device environment for a host compiler: what a kernel source sees instead of CUDA's own headers.
// Everything that a kernel may call lives here; how it works lives in the .cpp files beside it.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define __shared__ static_assert(false, "use SHARED() or DYNAMIC_SHARED()");
#define __constant__ static_assert(false, "pass constants as arguments or as constexpr");

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
namespace emu { void vector_access(const void* p, size_t n, bool write, const void* site); }
// A vector is loaded and stored as one access, as on the chip, where the host compiler might go member by member.
#define EMU_VECTOR(name, T, N, M, params, init)                                                                         \
  struct alignas(sizeof(T) * N) name {                                                                                  \
    T M;                                                                                                                \
    name() = default;                                                                                                   \
    name params : init {}                                                                                               \
    __attribute__((no_sanitize("thread"), noinline)) name(const name& o) {                                              \
      emu::vector_access(&o, sizeof o, false, __builtin_return_address(0));                                             \
      memcpy(static_cast<void*>(this), &o, sizeof o);                                                                   \
    }                                                                                                                   \
    __attribute__((no_sanitize("thread"), noinline)) name& operator=(const name& o) {                                   \
      emu::vector_access(&o, sizeof o, false, __builtin_return_address(0));                                             \
      emu::vector_access(this, sizeof o, true, __builtin_return_address(0));                                            \
      memcpy(static_cast<void*>(this), &o, sizeof o);                                                                   \
      return *this;                                                                                                     \
    }                                                                                                                   \
  }
#define EMU_PARENS(...) __VA_ARGS__
#define EMU_VECTOR2(name, T) EMU_VECTOR(name, T, 2, EMU_PARENS(x, y), (T a, T b), EMU_PARENS(x(a), y(b)))
#define EMU_VECTOR4(name, T) EMU_VECTOR(name, T, 4, EMU_PARENS(x, y, z, w), (T a, T b, T c, T d), EMU_PARENS(x(a), y(b), z(c), w(d)))
EMU_VECTOR2(float2, float);
EMU_VECTOR2(int2, int);
EMU_VECTOR2(uint2, unsigned);
EMU_VECTOR4(float4, float);
EMU_VECTOR4(int4, int);
EMU_VECTOR4(uint4, unsigned);
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// ---- 16-bit floats ----
struct alignas(2) __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float f) { *this = from(f); }
  static __nv_bfloat16 raw(uint16_t b) { __nv_bfloat16 r; r.bits = b; return r; }
  static __nv_bfloat16 from(float f) {  // round to nearest even; NaN becomes the canonical one, as on the chip
    uint32_t u; memcpy(&u, &f, 4);
    if ((u & 0x7fffffff) > 0x7f800000) return raw(0x7fff);
    return raw(uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16));
  }
  operator float() const { uint32_t u = uint32_t(bits) << 16; float f; memcpy(&f, &u, 4); return f; }
};
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
inline float __bfloat162float(__nv_bfloat16 v) { return float(v); }
inline __nv_bfloat16 __float2bfloat16(float f) { return __nv_bfloat16::from(f); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return __nv_bfloat16::from(f); }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { __nv_bfloat162 r; r.x = __nv_bfloat16::from(a); r.y = __nv_bfloat16::from(b); return r; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {float(v.x), float(v.y)}; }
struct alignas(2) __half {
  uint16_t bits;
  __half() = default;
  __half(float f) { _Float16 h = _Float16(f); memcpy(&bits, &h, 2); }
  operator float() const { _Float16 h; memcpy(&h, &bits, 2); return float(h); }
};
inline float __half2float(__half v) { return float(v); }
inline __half __float2half(float f) { return __half(f); }
inline __half __float2half_rn(float f) { return __half(f); }
inline __half __ushort_as_half(unsigned short b) { __half h; h.bits = b; return h; }
inline unsigned short __half_as_ushort(__half h) { return h.bits; }

namespace emu {
struct Thread { uint3 tid; int lane; uint3 bid; int linear; dim3 bdim, gdim; };
extern __thread Thread* self;

#define EMU_WHERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMU_NO_HOOKS __attribute__((no_sanitize("thread")))
using CollFn = void (*)(void** lane_args, uint32_t mask);
[[noreturn]] void fail(const char* fmt, ...) __attribute__((format(printf, 1, 2)));
void warp_collective(uint32_t mask, int kind, void* args, CollFn fn, const char* what, const char* file, int line);
void sync_warp(uint32_t mask, const char* file, int line);
void barrier(int id, int count, bool wait, const char* file, int line);
void cluster_sync(const char* file, int line);
unsigned cluster_rank();
void* map_shared_rank(const void* p, unsigned rank, const char* file, int line);
void thread_fence();
void spin_yield();
void atomic_access(void* p, size_t n);
uint32_t poll(const uint32_t* p);

void* static_shared(const void* tag, size_t bytes, size_t align);
void* dynamic_shared();
uint32_t shared_address(const void* p);

void cp_async(void* dst, const void* src, int bytes, int src_bytes, const char* file, int line);
void cp_async_commit();
void cp_async_wait(int keep);
void ldmatrix(uint32_t* r, int n, bool trans, const void* row, const char* file, int line);
void stmatrix(const uint32_t* r, int n, bool trans, void* row, const char* file, int line);
// d[mi][ni][4] += a[mi][4] * b[ni][2], all tiles of a warp in one meeting.
void mma_tile(float* d, const uint32_t* a, const uint32_t* b, int mi, int ni, const char* file, int line);

void mbar_init(uint64_t* bar, uint32_t count, const char* file, int line);
void mbar_fence_init();
void mbar_arrive(uint64_t* bar, uint32_t tx, bool arrives, const char* file, int line);
void mbar_wait(uint64_t* bar, uint32_t parity, const char* file, int line);
void tma_load(void* dst, const void* map, uint64_t* bar, const int* coord, int rank, uint16_t multicast, const char* file, int line);
void tma_store(const void* map, const void* src, const int* coord, int rank, bool add, const char* file, int line);
void tma_store_commit();
void tma_store_wait(int keep, bool read_only);
void fence_proxy_async();
enum class Operand { Bf16, E4m3 };
void wgmma_fence();
void wgmma(float* d, int n, const uint32_t* a_regs, uint64_t da, uint64_t db, bool scale_d, bool ta, bool tb, Operand type, const char* file, int line);
void wgmma_commit();
void wgmma_wait(int keep, const char* file, int line);
void setmaxnreg(int registers, bool increase, const char* file, int line);

void register_kernel(const char* name, void (*entry)(void**), int nargs, const uint32_t* sizes, int max_threads);
template <class... A, size_t... I> EMU_NO_HOOKS void call(void (*fn)(A...), void** a, std::index_sequence<I...>) { fn(*static_cast<std::remove_reference_t<A>*>(a[I])...); }
template <auto fn> struct Entry;
template <class... A, void (*fn)(A...)> struct Entry<fn> {
  static constexpr int nargs = sizeof...(A);
  static constexpr uint32_t sizes[] = {uint32_t(sizeof(A))..., 0};
  EMU_NO_HOOKS static void run(void** a) { call(fn, a, std::index_sequence_for<A...>{}); }
};

template <class T> struct ShflArgs { T in, out; int src; };
template <class T> T shfl(uint32_t mask, T v, int src, const char* what, const char* file, int line) {
  ShflArgs<T> a{v, v, src};
  warp_collective(mask, 1, &a, [](void** p, uint32_t m) EMU_NO_HOOKS {
    for (int l = 0; l < 32; l++) if (m >> l & 1) {
      auto* x = static_cast<ShflArgs<T>*>(p[l]);
      if (!(m >> x->src & 1)) fail("shuffle: lane %d reads lane %d, which is outside mask %08x", l, x->src, m);
      x->out = static_cast<ShflArgs<T>*>(p[x->src])->in;
    }
  }, what, file, line);
  return a.out;
}
template <class T, class Op> T reduce(uint32_t mask, T v, const char* what, const char* file, int line) {
  struct R { T in, out; } a{v, v};
  warp_collective(mask, 2, &a, [](void** p, uint32_t m) EMU_NO_HOOKS {
    T acc{}; bool first = true;
    for (int l = 0; l < 32; l++) if (m >> l & 1) { T x = static_cast<R*>(p[l])->in; acc = first ? x : Op{}(acc, x); first = false; }
    for (int l = 0; l < 32; l++) if (m >> l & 1) static_cast<R*>(p[l])->out = acc;
  }, what, file, line);
  return a.out;
}
struct Ballot { uint32_t in, out; };
inline uint32_t ballot(uint32_t mask, bool v, const char* what, const char* file, int line) {
  Ballot a{v, 0};
  warp_collective(mask, 3, &a, [](void** p, uint32_t m) EMU_NO_HOOKS {
    uint32_t r = 0;
    for (int l = 0; l < 32; l++) if (m >> l & 1) r |= static_cast<Ballot*>(p[l])->in << l;
    for (int l = 0; l < 32; l++) if (m >> l & 1) static_cast<Ballot*>(p[l])->out = r;
  }, what, file, line);
  return a.out;
}
// Threads of a block share an operating-system thread, blocks may not: one lock for all atomics.
struct AtomicLock { AtomicLock(); ~AtomicLock(); };
template <class T, class F> EMU_NO_HOOKS __attribute__((noinline)) T rmw(T* p, F f) {
  atomic_access(p, sizeof(T));
  AtomicLock lock;
  T old = *p;
  *p = f(old);
  return old;
}
struct Add { template <class T> T operator()(T a, T b) const { return a + b; } };
struct Max { template <class T> T operator()(T a, T b) const { return a > b ? a : b; } };
struct Min { template <class T> T operator()(T a, T b) const { return a < b ? a : b; } };
}  // namespace emu

#define threadIdx (emu::self->tid)
#define blockIdx (emu::self->bid)
#define blockDim (emu::self->bdim)
#define gridDim (emu::self->gdim)
constexpr int warpSize = 32;

inline void __syncthreads(EMU_WHERE) { emu::barrier(0, -1, true, file, line); }
inline void __syncwarp(uint32_t m = 0xffffffffu, EMU_WHERE) { emu::sync_warp(m, file, line); }
inline void __threadfence() { emu::thread_fence(); }
inline void __threadfence_block() {}
template <class T> T __shfl_xor_sync(uint32_t m, T v, int x, int width = 32, EMU_WHERE) {
  int l = emu::self->lane, s = l ^ x; if (s >= (l / width + 1) * width) s = l;
  return emu::shfl(m, v, s, "__shfl_xor_sync", file, line);
}
template <class T> T __shfl_sync(uint32_t m, T v, int src, int width = 32, EMU_WHERE) {
  int l = emu::self->lane;
  return emu::shfl(m, v, (l & ~(width - 1)) | (src & (width - 1)), "__shfl_sync", file, line);
}
template <class T> T __shfl_down_sync(uint32_t m, T v, int d, int width = 32, EMU_WHERE) {
  int l = emu::self->lane, s = l + d; if (s >= (l / width + 1) * width) s = l;
  return emu::shfl(m, v, s, "__shfl_down_sync", file, line);
}
template <class T> T __shfl_up_sync(uint32_t m, T v, int d, int width = 32, EMU_WHERE) {
  int l = emu::self->lane, s = l - d; if (s < l / width * width) s = l;
  return emu::shfl(m, v, s, "__shfl_up_sync", file, line);
}
inline unsigned __ballot_sync(uint32_t m, bool v, EMU_WHERE) { return emu::ballot(m, v, "__ballot_sync", file, line); }
inline bool __any_sync(uint32_t m, bool v, EMU_WHERE) { return emu::ballot(m, v, "__any_sync", file, line) != 0; }
inline bool __all_sync(uint32_t m, bool v, EMU_WHERE) { return emu::ballot(m, v, "__all_sync", file, line) == m; }
inline unsigned __reduce_add_sync(uint32_t m, unsigned v, EMU_WHERE) { return emu::reduce<unsigned, emu::Add>(m, v, "__reduce_add_sync", file, line); }
inline unsigned __reduce_max_sync(uint32_t m, unsigned v, EMU_WHERE) { return emu::reduce<unsigned, emu::Max>(m, v, "__reduce_max_sync", file, line); }
inline unsigned __reduce_min_sync(uint32_t m, unsigned v, EMU_WHERE) { return emu::reduce<unsigned, emu::Min>(m, v, "__reduce_min_sync", file, line); }

template <class T> T atomicAdd(T* p, T v) { return emu::rmw(p, [v](T o) { return T(o + v); }); }
template <class T> T atomicMax(T* p, T v) { return emu::rmw(p, [v](T o) { return o > v ? o : v; }); }
template <class T> T atomicMin(T* p, T v) { return emu::rmw(p, [v](T o) { return o < v ? o : v; }); }
template <class T> T atomicExch(T* p, T v) { return emu::rmw(p, [v](T) { return v; }); }
template <class T> T atomicCAS(T* p, T c, T v) { return emu::rmw(p, [c, v](T o) { return o == c ? v : o; }); }

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __uint_as_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
inline uint32_t __float_as_uint(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
inline int __float_as_int(float f) { int i; memcpy(&i, &f, 4); return i; }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
template <class T> T __ldg(const T* p) { return *p; }

// Shared memory comes from the emulated block's arena, so that it can be poisoned, bounds-checked and given per block of a cluster.
#define SHARED(T, name, dims)                                                                             \
  static const char name##_tag_ = 0;                                                                      \
  using name##_type_ = T dims;                                                                            \
  auto& name = *static_cast<name##_type_*>(emu::static_shared(&name##_tag_, sizeof(name##_type_), alignof(name##_type_)))
#define DYNAMIC_SHARED(name) uint8_t* const name = static_cast<uint8_t*>(emu::dynamic_shared())
#define KERNEL(name, threads, blocks) extern "C" void name
// A number that Rust reads by its symbol.
#define EMU_EXPORT(symbol, ...) extern "C" { extern const unsigned symbol; const unsigned symbol = unsigned(__VA_ARGS__); }
#define EXPORT_KERNEL(name, threads)                                    \
  EMU_EXPORT(sdrrl_threads_##name, threads)                              \
  __attribute__((constructor)) static void name##_register_() {          \
    emu::register_kernel(#name, emu::Entry<&name>::run, emu::Entry<&name>::nargs, emu::Entry<&name>::sizes, threads); \
  }
#define SHARED_BYTES(name, ...)                                                             \
  static_assert((__VA_ARGS__) <= 227 * 1024, "a block has no more shared memory");          \
  EMU_EXPORT(sdrrl_shared_##name, __VA_ARGS__)
#define TILE(name, x, y)                \
  EMU_EXPORT(sdrrl_tile_x_##name, x)    \
  EMU_EXPORT(sdrrl_tile_y_##name, y)
#define EXPORT_CONSTANT(name, ...) EMU_EXPORT(sdrrl_constant_##name, __VA_ARGS__)
#define OPTIONAL
