// Every kernel file includes this first. nvcc gets CUDA's own headers, the host compiler the emulation of them.
//
// What the build reads of a kernel (build/bindings makes its launch function in Rust from it):
//   KERNEL(name, threads, blocks)(parameters) {..}   an OPTIONAL pointer may be null
//   EXPORT_KERNEL(name, threads)                     behind it, with the same threads
//   SHARED_BYTES(name, bytes)                        its dynamic shared memory; needed where it has some
//   TILE(name, x, y)                                 what a block takes along x and y, in elements of what the launch counts; needed for Grid::tiles
//   EXPORT_CONSTANT(name, value)                     a number that the launch goes by
#pragma once
#if defined(SDRRL_SIGNATURES)
#define KERNEL(name, threads, blocks) sdrrl_kernel name (threads)
#define EXPORT_KERNEL(name, threads) sdrrl_export name (threads)
#define SHARED_BYTES(name, ...) sdrrl_shared name
#define TILE(name, x, y) sdrrl_tile name
#define EXPORT_CONSTANT(name, ...) sdrrl_constant name
#define DYNAMIC_SHARED(name) sdrrl_dynamic
#define OPTIONAL sdrrl_optional
#elif defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#define SHARED(T, name, dims) __shared__ __align__(16) T name dims  // vectors and cp.async go through them
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) uint8_t name[]
#define KERNEL(name, threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks) name
#define EXPORT_KERNEL(name, threads)
#define SHARED_BYTES(name, ...) static_assert((__VA_ARGS__) <= 227 * 1024, "a block has no more shared memory");
#define TILE(name, x, y)
#define EXPORT_CONSTANT(name, ...)
#define OPTIONAL
#define WHERE
#define WHERE0
#define PASS_WHERE
#define TWIN(device, host) device
#else
#include "cuda_emulation.hpp"
#define WHERE , EMU_WHERE
#define WHERE0 EMU_WHERE
#define PASS_WHERE , file, line
#define TWIN(device, host) host
#endif
#define DEV __device__ __forceinline__
#define FULL_MASK 0xffffffffu
using bf16 = __nv_bfloat16;
using bf162 = __nv_bfloat162;
struct alignas(64) TensorMap { uint64_t opaque[16]; };  // CUtensorMap on the device

DEV float to_float(float x) { return x; }
DEV float to_float(bf16 x) { return __bfloat162float(x); }
template <class T> DEV T from_float(float x);
template <> DEV float from_float<float>(float x) { return x; }
template <> DEV bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }
DEV uint32_t pack_bf16(float a, float b) {
  bf162 v = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<uint32_t*>(&v);
}
DEV float2 unpack_bf16(uint32_t v) { return __bfloat1622float2(*reinterpret_cast<bf162*>(&v)); }

// 16 bytes of T as floats: 4 of f32, 8 of bf16. Addresses must be 16-byte aligned.
template <class T> struct Pack;
template <> struct Pack<float> {
  static constexpr int N = 4;
  float v[4];
  DEV void load(const float* p) { float4 x = *reinterpret_cast<const float4*>(p); v[0] = x.x; v[1] = x.y; v[2] = x.z; v[3] = x.w; }
  DEV void store(float* p) const { *reinterpret_cast<float4*>(p) = make_float4(v[0], v[1], v[2], v[3]); }
};
template <> struct Pack<bf16> {
  static constexpr int N = 8;
  float v[8];
  DEV void load(const bf16* p) {
    uint4 x = *reinterpret_cast<const uint4*>(p);
    float2 a = unpack_bf16(x.x), b = unpack_bf16(x.y), c = unpack_bf16(x.z), d = unpack_bf16(x.w);
    v[0] = a.x; v[1] = a.y; v[2] = b.x; v[3] = b.y; v[4] = c.x; v[5] = c.y; v[6] = d.x; v[7] = d.y;
  }
  DEV void store(bf16* p) const {
    *reinterpret_cast<uint4*>(p) = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
  }
};
// N values from p, of which only those below `left` exist; `vector` if p is 16-byte aligned and all rows are.
template <class T> DEV void load_some(Pack<T>& x, const T* p, int left, bool vector) {
  if (vector && left >= Pack<T>::N) return x.load(p);
#pragma unroll
  for (int i = 0; i < Pack<T>::N; i++) x.v[i] = i < left ? to_float(p[i]) : 0.0f;
}
template <class T> DEV void store_some(const Pack<T>& x, T* p, int left, bool vector) {
  if (vector && left >= Pack<T>::N) return x.store(p);
#pragma unroll
  for (int i = 0; i < Pack<T>::N; i++) if (i < left) p[i] = from_float<T>(x.v[i]);
}
template <class T> DEV bool aligned16(const T* p, int row) { return reinterpret_cast<uintptr_t>(p) % 16 == 0 && row * sizeof(T) % 16 == 0; }
