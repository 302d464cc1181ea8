// A small Hopper product with everything that can go wrong in one: c (64, 64) = a (64, 64 steps) b (64, 64 steps)^T through a ring of two
// stages, a producer thread and a consumer warpgroup. wgmma_ring_NONE is the correct kernel; the others break it at one place.
#include "ptx_sm90.cuh"

namespace {
#define FAULTS(X) \
  X(NONE) X(WRONG_PARITY) X(FEW_BYTES) X(NO_INIT) X(MANY_ARRIVALS) X(SKIP_FULL) X(FREE_EARLY) X(NO_WGMMA_FENCE) X(NO_WGMMA_WAIT) X(OTHER_DESCRIPTOR) X(WRONG_SBO) \
  X(WRONG_SWIZZLE) X(NO_PROXY_FENCE) X(NO_BARRIER_AFTER_FENCE) X(REUSED_BUFFER) X(STORE_IN_FLIGHT) X(MISALIGNED) X(NOT_A_MAP) X(OUTSIDE) X(BARRIER_BEFORE_FENCE) \
  X(MANY_BYTES) X(NO_INIT_FENCE) X(OFF_ATOM)
#define NUMBER(fault) fault,
enum Fault { FAULTS(NUMBER) };
constexpr int STAGES = 2, TILE = 64 * 64;
struct alignas(1024) Smem {
  bf16 a[STAGES][TILE], b[STAGES][TILE], c[TILE];
  uint64_t full[STAGES], empty[STAGES];
};
// A kernel a fault: were it an argument, nvcc would order the matrix products of all as the worst of them needs.
template <int fault> DEV void ring(const TensorMap& ma, const TensorMap& mb, const TensorMap& mc, int steps, uint8_t* raw) {
  Smem& s = *reinterpret_cast<Smem*>(raw);
  if (threadIdx.x == 0 && fault != NO_INIT) {
    for (int i = 0; i < STAGES; i++) { mbar_init(&s.full[i], 1); mbar_init(&s.empty[i], 1); }
    if (fault != NO_INIT_FENCE) mbar_fence_init();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    setmaxnreg_dec<40>();
    if (threadIdx.x != 0) return;
    for (int t = 0; t < steps; t++) {
      int st = t % STAGES, phase = t / STAGES & 1;
      mbar_wait(&s.empty[st], phase ^ (fault == WRONG_PARITY ? 0 : 1));
      mbar_arrive_expect_tx(&s.full[st], fault == FEW_BYTES ? TILE * 2 : fault == MANY_BYTES ? TILE * 4 + 16 : TILE * 4);
      if (fault == MANY_ARRIVALS) mbar_arrive(&s.full[st]);
      bf16* a = s.a[st] + (fault == MISALIGNED ? 8 : 0);
      if (fault == OUTSIDE) a = reinterpret_cast<bf16*>(raw + sizeof(Smem) - 1024);
      tma_load_2d(a, fault == NOT_A_MAP ? reinterpret_cast<const TensorMap*>(raw) : &ma, &s.full[st], t * 64, 0);
      tma_load_2d(s.b[st], &mb, &s.full[st], t * 64, 0);
    }
    return;
  }
  setmaxnreg_inc<232>();
  int tid = threadIdx.x - 128, warp = tid / 32, lane = tid % 32;
  float acc[32];
  for (int t = 0; t < steps; t++) {
    int st = t % STAGES, phase = t / STAGES & 1;
    if (fault != SKIP_FULL || t != 3) mbar_wait(&s.full[st], phase);
    if (fault != NO_WGMMA_FENCE) wgmma_fence();
    uint64_t da = wgmma_descriptor(s.a[st] + (fault == OFF_ATOM ? 64 : 0), 16, fault == WRONG_SBO ? 512 : 1024), db = wgmma_descriptor(s.b[st], 16, 1024);
    if (fault == OTHER_DESCRIPTOR && tid == 77) da += 2;
    for (int k = 0; k < 4; k++) wgmma_bf16<64, 0, 0>(acc, da + 2 * k, db + 2 * k, t > 0 || k > 0);
    wgmma_commit();
    if (fault == FREE_EARLY && tid == 0) mbar_arrive(&s.empty[st]);
    if (fault != NO_WGMMA_WAIT || t + 1 < steps) wgmma_wait<0>();
    if (fault != FREE_EARLY && tid == 0) mbar_arrive(&s.empty[st]);
  }
  if (fault != NO_WGMMA_WAIT) wgmma_done(acc);
  for (int j = 0; j < 8; j += 2) {
    int row = warp * 16 + lane % 16, chunk = j + lane / 16;
    const float* d = &acc[j * 4];
    stmatrix_x4(&s.c[row * 64 + (fault == WRONG_SWIZZLE ? chunk : chunk ^ row % 8) * 8], pack_bf16(d[0], d[1]), pack_bf16(d[2], d[3]), pack_bf16(d[4], d[5]), pack_bf16(d[6], d[7]));
  }
  if (fault == BARRIER_BEFORE_FENCE) named_barrier<1, 128>();
  if (fault != NO_PROXY_FENCE) fence_proxy_async();
  if (fault != NO_BARRIER_AFTER_FENCE && fault != BARRIER_BEFORE_FENCE) named_barrier<1, 128>();
  if (tid == 0) {
    tma_store_2d(&mc, s.c, 0, 0);
    tma_store_commit();
    if (fault != STORE_IN_FLIGHT && fault != REUSED_BUFFER) tma_store_wait_read<0>();
  }
  named_barrier<1, 128>();
  s.c[tid] = bf16(0.0f);        // the buffer is free again
  if (fault == REUSED_BUFFER && tid == 0) tma_store_wait_read<0>();
}
}  // namespace

#define RING(fault)                                                                                                                                                   \
  KERNEL(wgmma_ring_##fault, 256, 1)(const __grid_constant__ TensorMap ma, const __grid_constant__ TensorMap mb, const __grid_constant__ TensorMap mc, int steps) { \
    DYNAMIC_SHARED(raw);                                                                                                                                              \
    ring<fault>(ma, mb, mc, steps, raw);                                                                                                                              \
  }                                                                                                                                                                   \
  EXPORT_KERNEL(wgmma_ring_##fault, 256)
FAULTS(RING)
