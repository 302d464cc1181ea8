// Kernels whose launches a driver accepts or refuses: each block counts itself.
#include "ptx_sm90.cuh"

KERNEL(bound_256, 256, 1)(unsigned* count) {
  if ((threadIdx.x | threadIdx.y | threadIdx.z) == 0) atomicAdd(count, 1u);
}
EXPORT_KERNEL(bound_256, 256)

KERNEL(bound_1024, 1024, 1)(unsigned* count) {
  if ((threadIdx.x | threadIdx.y | threadIdx.z) == 0) atomicAdd(count, 1u);
}
EXPORT_KERNEL(bound_1024, 1024)

// N words of static shared memory before the dynamic part, whose last byte is touched.
template <int N> DEV void count_through(unsigned (&x)[N], uint8_t* dynamic, unsigned* count, int bytes) {
  for (int i = threadIdx.x; i < N; i += blockDim.x) x[i] = 1;
  if (threadIdx.x == 0 && bytes > 0) dynamic[bytes - 1] = 1;
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(count, x[N - 1 - threadIdx.x] * (bytes > 0 ? dynamic[bytes - 1] : 1));
}
KERNEL(static_64_bytes, 256, 1)(unsigned* count, int bytes) {
  SHARED(unsigned, x, [16]);
  DYNAMIC_SHARED(raw);
  count_through(x, raw, count, bytes);
}
EXPORT_KERNEL(static_64_bytes, 256)
KERNEL(static_4_kib, 256, 1)(unsigned* count, int bytes) {
  SHARED(unsigned, x, [1024]);
  DYNAMIC_SHARED(raw);
  count_through(x, raw, count, bytes);
}
EXPORT_KERNEL(static_4_kib, 256)
