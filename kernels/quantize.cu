// ggml's block formats: values out of F16, Q8_0, Q4_0, Q4_1, Q4_K and Q6_K blocks as f32 or bf16, and Q8_0, Q4_0 and Q4_1 blocks out of f32.
// The arithmetic is src/ops/quantize/formats.rs, bit for bit: single operations that the compiler may not fuse.
//
// Work: dequantise: a thread a value, so that values are written side by side; a block's scales come from L1. Quantise: a warp a block of 32. Any
// number of blocks; they begin at multiples of 2 bytes.
// Bytes: 2 to 4 written a value, 0.56 (Q4) to 2 (F16) read; quantise the other way round.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | a thread a value, byte loads | not measured on a GPU yet | | |
#include "choose.cuh"

namespace {
constexpr int THREADS = 256;
enum Kind { F16, Q4_0, Q4_1, Q8_0, Q4_K, Q6_K };

DEV float half_at(const uint8_t* p) { return __half2float(__ushort_as_half(*reinterpret_cast<const uint16_t*>(p))); }
DEV void store_half(uint8_t* p, float x) { *reinterpret_cast<uint16_t*>(p) = __half_as_ushort(__float2half_rn(x)); }
DEV float signed_byte(uint8_t x) { return float(int8_t(x)); }
// Nibble i of 32: the low ones first.
DEV float nibble(const uint8_t* q, int i) { return float(i < 16 ? q[i] & 15 : q[i - 16] >> 4); }

DEV float q4_k(const uint8_t* b, int i) {
  int sub = i / 32;
  const uint8_t* s = b + 4;
  int scale = sub < 4 ? s[sub] & 63 : (s[sub + 4] & 15) | (s[sub - 4] >> 6) << 4;
  int min = sub < 4 ? s[sub + 4] & 63 : s[sub + 4] >> 4 | (s[sub] >> 6) << 4;
  int q = b[16 + sub / 2 * 32 + i % 32] >> (sub % 2 * 4) & 15;
  return add_rn(mul_rn(mul_rn(half_at(b), float(scale)), float(q)), -mul_rn(half_at(b + 2), float(min)));
}
DEV float q6_k(const uint8_t* b, int i) {
  int half = i / 128, part = i % 128 / 32, j = i % 32;       // parts share low bytes in pairs
  int low = b[half * 64 + part % 2 * 32 + j] >> (part / 2 * 4) & 15, high = b[128 + half * 32 + j] >> (part * 2) & 3;
  float scale = mul_rn(half_at(b + 208), signed_byte(b[192 + half * 8 + part * 2 + j / 16]));
  return mul_rn(scale, float((low | high << 4) - 32));
}
template <int K> DEV float value(const uint8_t* blocks, u64 i) {
  int j = int(i % 32);
  if constexpr (K == F16) {
    return half_at(blocks + i * 2);
  } else if constexpr (K == Q4_0) {
    const uint8_t* b = blocks + i / 32 * 18;
    return mul_rn(add_rn(nibble(b + 2, j), -8.0f), half_at(b));
  } else if constexpr (K == Q4_1) {
    const uint8_t* b = blocks + i / 32 * 20;
    return add_rn(mul_rn(nibble(b + 4, j), half_at(b)), half_at(b + 2));
  } else if constexpr (K == Q8_0) {
    const uint8_t* b = blocks + i / 32 * 34;
    return mul_rn(half_at(b), signed_byte(b[2 + j]));
  } else if constexpr (K == Q4_K) {
    return q4_k(blocks + i / 256 * 144, int(i % 256));
  } else {
    return q6_k(blocks + i / 256 * 210, int(i % 256));
  }
}
template <class T, int K> DEV void dequantize(T* out, const uint8_t* blocks, u64 n) {
  u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i < n) out[i] = from_float<T>(value<K>(blocks, i));
}

// The bytes of the first `lanes` lanes side by side, two a store.
DEV void store_bytes(uint8_t* to, int byte, int lanes) {
  int lane = threadIdx.x % 32, next = __shfl_down_sync(FULL_MASK, byte, 1);
  if (lane % 2 == 0 && lane < lanes) *reinterpret_cast<uint16_t*>(to + lane) = uint16_t((byte & 255) | next << 8);
}
// The 4-bit numbers of the lanes, two a byte: lane i's low, lane i + 16's high.
DEV void store_nibbles(uint8_t* to, int q) { store_bytes(to, q | __shfl_down_sync(FULL_MASK, q, 16) << 4, 16); }
template <int K> DEV void quantize(uint8_t* blocks, const float* inp, u64 n) {
  int lane = threadIdx.x % 32;
  u64 block = (u64(blockIdx.x) * THREADS + threadIdx.x) / 32;
  if (block >= n) return;
  float x = inp[block * 32 + lane], most = warp_max(fabsf(x));
  if constexpr (K == Q8_0) {
    uint8_t* b = blocks + block * 34;
    float d = most / 127.0f, inverse = d == 0 ? 0.0f : 1.0f / d;
    store_bytes(b + 2, int(roundf(mul_rn(x, inverse))), 32);
    if (lane == 0) store_half(b, d);
  }
  if constexpr (K == Q4_0) {
    uint8_t* b = blocks + block * 18;
    // The first value of the largest magnitude becomes -8.
    float d = __shfl_sync(FULL_MASK, x, __ffs(int(__ballot_sync(FULL_MASK, fabsf(x) == most))) - 1) / -8.0f;
    float inverse = d == 0 ? 0.0f : 1.0f / d;
    store_nibbles(b + 2, min(15, int(double(x) * double(inverse) + 8.5)));     // the product is exact
    if (lane == 0) store_half(b, d);
  }
  if constexpr (K == Q4_1) {
    uint8_t* b = blocks + block * 20;
    float least = -warp_max(-x), d = add_rn(warp_max(x), -least) / 15.0f, inverse = d == 0 ? 0.0f : 1.0f / d;
    store_nibbles(b + 4, min(15, int(add_rn(mul_rn(add_rn(x, -least), inverse), 0.5f))));
    if (lane == 0) { store_half(b, d); store_half(b + 2, least); }
  }
}
}  // namespace

// out (n values) from whole blocks
#define DEQUANTIZE(kind, name)                                                                                                                             \
  KERNEL(dequantize_##name##_f32, THREADS, 1)(float* out, const uint8_t* blocks, u64 n) { dequantize<float, kind>(out, blocks, n); }                       \
  EXPORT_KERNEL(dequantize_##name##_f32, THREADS)                                                                                                          \
  KERNEL(dequantize_##name##_bf16, THREADS, 1)(bf16* out, const uint8_t* blocks, u64 n) { dequantize<bf16, kind>(out, blocks, n); }                        \
  EXPORT_KERNEL(dequantize_##name##_bf16, THREADS)
DEQUANTIZE(F16, f16)
DEQUANTIZE(Q4_0, q4_0)
DEQUANTIZE(Q4_1, q4_1)
DEQUANTIZE(Q8_0, q8_0)
DEQUANTIZE(Q4_K, q4_k)
DEQUANTIZE(Q6_K, q6_k)
// n blocks of 32 values
#define QUANTIZE(kind, name)                                                                                                \
  KERNEL(quantize_##name, THREADS, 1)(uint8_t* blocks, const float* inp, u64 n) { quantize<kind>(blocks, inp, n); }         \
  EXPORT_KERNEL(quantize_##name, THREADS)
QUANTIZE(Q4_0, q4_0)
QUANTIZE(Q4_1, q4_1)
QUANTIZE(Q8_0, q8_0)
