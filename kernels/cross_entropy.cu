// The loss of sentence-level distillation on one chunk of logits: nll = ln sum exp(logits) - logits[target], and where wanted
// dlogits = scale weight (softmax - onehot); with a cap (above 0) of cap tanh(logits / cap) and through it. The products with the head around it are gemm.cu's; all logits never exist.
//
// Work: one block a row, three passes (maximum, sum, gradient), the later ones from L2; the first writes capped logits back. A target that is not below V gives NaN.
// Bytes: 4 V a row read and, with the gradient, V times its element's size written. Sums of each thread's part in f32 blocks, over the block in f64.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | three passes | not measured on a GPU yet | | |
#include "activation.cuh"
#include "reduce.cuh"

namespace {
constexpr int THREADS = 512;

// `rows` maps rows of the chunk to rows of losses, targets and weights (null: each to its own); `weights` belong to the gradient.
template <class T>
DEV void softmax_loss(float* losses, T* dlogits, float* logits, const int* rows, const uint32_t* targets, const float* weights, int vocab, float scale, float cap) {
  SHARED(float, scratch, [32]);
  size_t row = blockIdx.x;
  int i = rows ? rows[row] : int(row);
  float* x = logits + row * vocab;
  uint32_t target = targets[i];
  float top = -INFINITY;
  // Each column is the same thread's in every pass; only the target's is read by another, behind a barrier.
  if (cap > 0) for (int c = threadIdx.x; c < vocab; c += THREADS) x[c] = soft_cap<float>(x[c], cap);
  for (int c = threadIdx.x; c < vocab; c += THREADS) top = fmaxf(top, x[c]);
  top = block_max(top, scratch);
  float sum = 0;
  for (int c = threadIdx.x; c < vocab; c += THREADS) sum += expf(x[c] - top);
  sum = block_sum(sum, scratch);
  float log_sum = logf(sum);
  bool known = target < uint32_t(vocab);
  if (threadIdx.x == 0) losses[i] = known ? log_sum - (x[target] - top) : NAN;
  if (!dlogits) return;
  __syncthreads();        // dlogits may be the logits' own memory, and x[target] was read above
  float factor = scale * weights[i];
  for (int c = threadIdx.x; c < vocab; c += THREADS) {
    float y = x[c], p = expf(y - top - log_sum), d = factor * (uint32_t(c) == target ? p - 1.0f : p);
    dlogits[row * vocab + c] = from_float<T>(cap > 0 ? d * soft_cap_slope(y, cap) : d);
  }
}
}  // namespace

KERNEL(softmax_loss_f32, THREADS, 1)
(float* losses, float* OPTIONAL dlogits, float* logits, const int* OPTIONAL rows, const uint32_t* targets, const float* OPTIONAL weights, int vocab, float scale, float cap) {
  softmax_loss(losses, dlogits, logits, rows, targets, weights, vocab, scale, cap);
}
EXPORT_KERNEL(softmax_loss_f32, THREADS)
KERNEL(softmax_loss_bf16, THREADS, 1)
(float* losses, bf16* OPTIONAL dlogits, float* logits, const int* OPTIONAL rows, const uint32_t* targets, const float* OPTIONAL weights, int vocab, float scale, float cap) {
  softmax_loss(losses, dlogits, logits, rows, targets, weights, vocab, scale, cap);
}
EXPORT_KERNEL(softmax_loss_bf16, THREADS)
