// Muon (Jordan et al. 2024, as torch.optim.Muon): what stands before and behind the products of the Newton-Schulz iteration. All f32.
//
// Work: a thread an element. Bytes: 16 an element (momentum) and 12 (apply).
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | one pass | not measured on a GPU yet | | |
#include "prelude.cuh"

namespace {
constexpr int THREADS = 256;
}  // namespace

// moment = moment + (1 - momentum) (g - moment); update = g + momentum (moment - g): Nesterov's.
KERNEL(muon_momentum, THREADS, 1)(float* update, float* moment, const float* grad, float momentum, float scale, unsigned long long n) {
  size_t i = size_t(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  float g = grad[i] * scale, m = moment[i] + (1.0f - momentum) * (g - moment[i]);
  moment[i] = m;
  update[i] = g + momentum * (m - g);
}
EXPORT_KERNEL(muon_momentum, THREADS)

// param = keep param - rate update
KERNEL(muon_apply, THREADS, 1)(float* param, const float* update, float keep, float rate, unsigned long long n) {
  size_t i = size_t(blockIdx.x) * THREADS + threadIdx.x;
  if (i < n) param[i] = param[i] * keep - rate * update[i];
}
EXPORT_KERNEL(muon_apply, THREADS)
