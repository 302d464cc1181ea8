// ggml's block formats and bitsandbytes' NF4: values out of blocks as f32 or bf16, all of them or the rows of some tokens, and Q8_0, Q4_0 and Q4_1 blocks out of f32.
// The arithmetic is src/ops/quantize/unpack.rs and formats.rs, bit for bit: single operations that the compiler may not fuse.
//
// Work: dequantise: a thread a value, so that values are written side by side; a block's scales come from L1. Quantise: a warp a block of 32. Any
// number of blocks; they begin at multiples of 2 bytes (F32 and NF4: of 4).
// Bytes: 2 to 4 written a value, 0.33 (Q2_K) to 4 (F32) read; quantise the other way round.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | a thread a value, byte loads | not measured on a GPU yet | | |
#include "choose.cuh"

namespace {
constexpr int THREADS = 256;
enum Kind { F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, NF4 };

DEV float half_at(const uint8_t* p) { return __half2float(__ushort_as_half(*reinterpret_cast<const uint16_t*>(p))); }
DEV void store_half(uint8_t* p, float x) { *reinterpret_cast<uint16_t*>(p) = __half_as_ushort(__float2half_rn(x)); }
DEV float signed_byte(uint8_t x) { return float(int8_t(x)); }
// Nibble i of 32: the low ones first.
DEV int nibble(const uint8_t* q, int i) { return i < 16 ? q[i] & 15 : q[i - 16] >> 4; }
// Number i of 32 with five bits: the fifth ones lie apart.
DEV float five(const uint8_t* high, const uint8_t* q, int i) { return float(nibble(q, i) | (high[i / 8] >> (i % 8) & 1) << 4); }
// What IQ4's four bits choose from: -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113.
DEV float iq4(int q) { return float(int8_t((q < 8 ? 0xf6eaddcfbfad9881ull : 0x7159453526190d01ull) >> (q % 8 * 8))); }

// What NF4's four bits choose from (src/ops/quantize/unpack.rs): eight that are negative or zero, eight that are positive.
DEV float nf4(int q) {
  if (q < 8) {
    if (q < 4) return q < 2 ? (q == 0 ? -1.0f : -0.6961928f) : (q == 2 ? -0.52507305f : -0.39491749f);
    return q < 6 ? (q == 4 ? -0.28444138f : -0.18477343f) : (q == 6 ? -0.091050036f : 0.0f);
  }
  if (q < 12) return q < 10 ? (q == 8 ? 0.0795803f : 0.1609302f) : (q == 10 ? 0.2461123f : 0.33791524f);
  return q < 14 ? (q == 12 ? 0.44070983f : 0.562617f) : (q == 14 ? 0.72295684f : 1.0f);
}

// The 6-bit scale and minimum of sub-block j out of 12 packed bytes, times the block's.
DEV float2 scale_min(const uint8_t* b, int j) {
  const uint8_t* s = b + 4;
  int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
  int min = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
  return make_float2(mul_rn(half_at(b), float(scale)), mul_rn(half_at(b + 2), float(min)));
}
// Value i of a super-block of 256.
DEV float q2_k(const uint8_t* b, int i) {
  int run = i / 32, s = b[i / 16], q = b[16 + run / 4 * 32 + i % 32] >> (run % 4 * 2) & 3;
  return add_rn(mul_rn(mul_rn(half_at(b + 80), float(s & 15)), float(q)), -mul_rn(half_at(b + 82), float(s >> 4)));
}
DEV float q3_k(const uint8_t* b, int i) {
  int run = i / 32, k = i / 16, q = b[32 + run / 4 * 32 + i % 32] >> (run % 4 * 2) & 3;
  int third = (b[i % 32] >> run & 1) << 2;                   // where it is not set 4 is taken away
  int scale = (k < 8 ? b[96 + k] & 15 : b[88 + k] >> 4) | (b[104 + k % 4] >> (k / 4 * 2) & 3) << 4;
  return mul_rn(mul_rn(half_at(b + 108), float(scale - 32)), float((q | third) - 4));
}
DEV float q4_k(const uint8_t* b, int i) {
  int sub = i / 32, q = b[16 + sub / 2 * 32 + i % 32] >> (sub % 2 * 4) & 15;
  float2 s = scale_min(b, sub);
  return add_rn(mul_rn(s.x, float(q)), -s.y);
}
DEV float q5_k(const uint8_t* b, int i) {
  int sub = i / 32, q = b[48 + sub / 2 * 32 + i % 32] >> (sub % 2 * 4) & 15, fifth = b[16 + i % 32] >> sub & 1;
  float2 s = scale_min(b, sub);
  return add_rn(mul_rn(s.x, float(q | fifth << 4)), -s.y);
}
DEV float q6_k(const uint8_t* b, int i) {
  int half = i / 128, part = i % 128 / 32, j = i % 32;       // parts share low bytes in pairs
  int low = b[half * 64 + part % 2 * 32 + j] >> (part / 2 * 4) & 15, high = b[128 + half * 32 + j] >> (part * 2) & 3;
  float scale = mul_rn(half_at(b + 208), signed_byte(b[192 + half * 8 + part * 2 + j / 16]));
  return mul_rn(scale, float((low | high << 4) - 32));
}
DEV float iq4_xs(const uint8_t* b, int i) {
  int sub = i / 32, high = *reinterpret_cast<const uint16_t*>(b + 2) >> (2 * sub) & 3;
  int scale = (b[4 + sub / 2] >> (sub % 2 * 4) & 15) | high << 4;
  return mul_rn(mul_rn(half_at(b), float(scale - 32)), iq4(nibble(b + 8 + 16 * sub, i % 32)));
}
template <int K> DEV float value(const uint8_t* blocks, u64 i) {
  int j = int(i % 32);
  if constexpr (K == F32) {
    return reinterpret_cast<const float*>(blocks)[i];
  } else if constexpr (K == F16) {
    return half_at(blocks + i * 2);
  } else if constexpr (K == BF16) {
    return __uint_as_float(uint32_t(reinterpret_cast<const uint16_t*>(blocks)[i]) << 16);
  } else if constexpr (K == Q4_0) {
    const uint8_t* b = blocks + i / 32 * 18;
    return mul_rn(float(nibble(b + 2, j) - 8), half_at(b));
  } else if constexpr (K == Q4_1) {
    const uint8_t* b = blocks + i / 32 * 20;
    return add_rn(mul_rn(float(nibble(b + 4, j)), half_at(b)), half_at(b + 2));
  } else if constexpr (K == Q5_0) {
    const uint8_t* b = blocks + i / 32 * 22;
    return mul_rn(add_rn(five(b + 2, b + 6, j), -16.0f), half_at(b));
  } else if constexpr (K == Q5_1) {
    const uint8_t* b = blocks + i / 32 * 24;
    return add_rn(mul_rn(five(b + 4, b + 8, j), half_at(b)), half_at(b + 2));
  } else if constexpr (K == Q8_0) {
    const uint8_t* b = blocks + i / 32 * 34;
    return mul_rn(half_at(b), signed_byte(b[2 + j]));
  } else if constexpr (K == IQ4_NL) {
    const uint8_t* b = blocks + i / 32 * 18;
    return mul_rn(half_at(b), iq4(nibble(b + 2, j)));
  } else if constexpr (K == NF4) {
    const uint8_t* b = blocks + i / 64 * 36;
    int at = int(i % 64), q = b[4 + at / 2] >> (at % 2 ? 0 : 4) & 15;
    return mul_rn(nf4(q), *reinterpret_cast<const float*>(b));
  } else if constexpr (K == Q2_K) {
    return q2_k(blocks + i / 256 * 84, int(i % 256));
  } else if constexpr (K == Q3_K) {
    return q3_k(blocks + i / 256 * 110, int(i % 256));
  } else if constexpr (K == Q4_K) {
    return q4_k(blocks + i / 256 * 144, int(i % 256));
  } else if constexpr (K == Q5_K) {
    return q5_k(blocks + i / 256 * 176, int(i % 256));
  } else if constexpr (K == Q6_K) {
    return q6_k(blocks + i / 256 * 210, int(i % 256));
  } else {
    return iq4_xs(blocks + i / 256 * 136, int(i % 256));
  }
}
template <class T, int K>
DEV void dequantize(T* out, const uint8_t* blocks, const uint32_t* tokens, u64 n, int cols, int vocab) {
  u64 i = u64(blockIdx.x) * THREADS + threadIdx.x, at = i;
  if (i >= n) return;
  if (tokens) {
    uint32_t token = tokens[i / cols];
    if (token >= uint32_t(vocab)) {
      out[i] = from_float<T>(__uint_as_float(0x7fc00000));   // no such row: NaN
      return;
    }
    at = u64(token) * cols + i % cols;
  }
  out[i] = from_float<T>(value<K>(blocks, at));
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

// out (n values) from whole blocks; with tokens (n / cols): from the rows, of cols values each, that they name of a table of vocab rows
#define DEQUANTIZE_AS(kind, name, T)                                                                                        \
  KERNEL(dequantize_##name, THREADS, 1)(T* out, const uint8_t* blocks, const uint32_t* OPTIONAL tokens, u64 n, int cols, int vocab) { \
    dequantize<T, kind>(out, blocks, tokens, n, cols, vocab);                                                               \
  }                                                                                                                         \
  EXPORT_KERNEL(dequantize_##name, THREADS)
#define DEQUANTIZE(kind, name)              \
  DEQUANTIZE_AS(kind, name##_f32, float)    \
  DEQUANTIZE_AS(kind, name##_bf16, bf16)
DEQUANTIZE(F32, float32)
DEQUANTIZE(F16, float16)
DEQUANTIZE(BF16, bfloat16)
DEQUANTIZE(Q4_0, q4_0)
DEQUANTIZE(Q4_1, q4_1)
DEQUANTIZE(Q5_0, q5_0)
DEQUANTIZE(Q5_1, q5_1)
DEQUANTIZE(Q8_0, q8_0)
DEQUANTIZE(Q2_K, q2_k)
DEQUANTIZE(Q3_K, q3_k)
DEQUANTIZE(Q4_K, q4_k)
DEQUANTIZE(Q5_K, q5_k)
DEQUANTIZE(Q6_K, q6_k)
DEQUANTIZE(IQ4_NL, iq4_nl)
DEQUANTIZE(IQ4_XS, iq4_xs)
DEQUANTIZE(NF4, nf4)
// n blocks of 32 values
#define QUANTIZE(kind, name)                                                                                                \
  KERNEL(quantize_##name, THREADS, 1)(uint8_t* blocks, const float* inp, u64 n) { quantize<kind>(blocks, inp, n); }         \
  EXPORT_KERNEL(quantize_##name, THREADS)
QUANTIZE(Q4_0, q4_0)
QUANTIZE(Q4_1, q4_1)
QUANTIZE(Q8_0, q8_0)
