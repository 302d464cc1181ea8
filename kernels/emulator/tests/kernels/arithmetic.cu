// Arithmetic of the chip that the emulator only approximates, for measuring (tests/arithmetic.rs).
#include "ptx_sm90.cuh"

KERNEL(elementary, 256, 1)(float* out, const float* in, int n, int which) {
  int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  float x = in[i], y = 0;
  switch (which) {
    case 0: y = exp2_approx(x); break;
    case 1: y = rsqrtf(x); break;
    case 2: y = __expf(x); break;
    case 3: y = expf(x); break;
    case 4: y = logf(x); break;
    case 5: y = tanhf(x); break;
  }
  out[i] = y;
}
EXPORT_KERNEL(elementary, 256)

KERNEL(round_bf16, 256, 1)(bf16* out, const float* in, int n) {
  int i = blockIdx.x * 256 + threadIdx.x;
  if (i < n) out[i] = __float2bfloat16_rn(in[i]);
}
EXPORT_KERNEL(round_bf16, 256)

// d = c + a b, one product of 16 x 8 x 16; everything as the lanes hold it.
KERNEL(mma_sum, 32, 1)(float* d, const uint32_t* a, const uint32_t* b, const float* c) {
  int lane = threadIdx.x;
  uint32_t fa[4], fb[2];
  float acc[4];
  for (int r = 0; r < 4; r++) { fa[r] = a[lane * 4 + r]; acc[r] = c[lane * 4 + r]; }
  for (int r = 0; r < 2; r++) fb[r] = b[lane * 2 + r];
  mma_m16n8k16(acc, fa, fb);
  for (int r = 0; r < 4; r++) d[lane * 4 + r] = acc[r];
}
EXPORT_KERNEL(mma_sum, 32)
