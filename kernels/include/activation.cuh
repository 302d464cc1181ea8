// The functions of activation.cu and swiglu.cu, and the cap of logits that attention, the loss and decoding share. Element by element, in f32.
#pragma once
#include "prelude.cuh"

// Each has a value and a slope; those that gate (Silu, Gelu, GeluTanh) are x share(x), and times_slope(d, x) is d slope(x).
struct Silu {
  static DEV float share(float x) { return 1.0f / (1.0f + __expf(-x)); }
  static DEV float value(float x) { return x / (1.0f + __expf(-x)); }
  static DEV float times_slope(float d, float x) { float s = share(x); return d * s * (1.0f + x * (1.0f - s)); }
  static DEV float slope(float x) { return times_slope(1.0f, x); }
};
struct Gelu {
  static DEV float share(float x) { return 0.5f * (1.0f + erff(x * 0.70710678f)); }
  static DEV float value(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }
  static DEV float slope(float x) { return share(x) + x * 0.39894228f * expf(-0.5f * x * x); }
  static DEV float times_slope(float d, float x) { return d * slope(x); }
};
// PyTorch's gelu(approximate="tanh"): share(x) = (1 + tanh(z)) / 2, z = sqrt(2 / pi) (x + 0.044715 x^3).
struct GeluTanh {
  static DEV float share(float x) { return 0.5f * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x))); }
  static DEV float value(float x) { return x * share(x); }
  static DEV float slope(float x) {
    float s = share(x);  // (1 - tanh(z)^2) / 2 = 2 s (1 - s)
    return s + x * 2.0f * s * (1.0f - s) * 0.79788456f * (1.0f + 0.134145f * x * x);
  }
  static DEV float times_slope(float d, float x) { return d * slope(x); }
};
struct Relu {
  static DEV float value(float x) { return x < 0.0f ? 0.0f : x; }      // NaN stays NaN
  static DEV float slope(float x) { return x > 0.0f ? 1.0f : 0.0f; }
};
struct Tanh {
  static DEV float value(float x) { return tanhf(x); }
  static DEV float slope(float x) { float y = tanhf(x); return 1.0f - y * y; }
};

// cap tanh(x / cap): in f32 as exact as tanhf, for bf16 by one exponential (1e-7 cap absolute).
template <class T> DEV float soft_cap(float x, float cap);
template <> DEV float soft_cap<float>(float x, float cap) { return cap * tanhf(__fdividef(x, cap)); }
template <> DEV float soft_cap<bf16>(float x, float cap) { return cap * (1.0f - __fdividef(2.0f, 1.0f + __expf(2.0f / cap * x))); }
// The slope of a capped value y.
DEV float soft_cap_slope(float y, float cap) { float t = __fdividef(y, cap); return 1.0f - t * t; }
