// What keeps a language on one chunk of logits: the forward KL divergence of a fixed model to the one in training, KL(q || p) = sum q (ln q - ln p) with
// q = softmax(base), p = softmax(logits), beside the loss of the targets, nll = ln sum exp(logits) - logits[target]; and where wanted
// dlogits = weight (hard (p - onehot) + soft (p - q)), with a cap (above 0) of cap tanh(x / cap) on both and through the first. The products with the head
// around it are gemm.cu's; all logits never exist.
//
// Work: one block a row, three passes (maxima, sums, divergence with the gradient), the later ones from L2; the first writes capped logits back.
// The divergence is summed as p - q - q (ln p - ln q): every term is at least 0, and an error of a normaliser, common to all terms, cancels.
// A target that is not below V gives NaN.
// Bytes: 8 V a row read and, with the gradient, V times its element's size written. Sums of each thread's part in f32.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | three passes | not measured on a GPU yet | | |
#include "activation.cuh"
#include "reduce.cuh"

namespace {
constexpr int THREADS = 512;

// `rows` maps rows of the chunk to rows of losses, divergences, targets and weights.
template <class T>
DEV void softmax_kl(float* losses, float* divergences, T* dlogits, float* logits, float* base, const int* rows, const uint32_t* targets, const float* weights, int vocab, float hard, float soft, float cap) {
  SHARED(float, scratch, [32]);
  size_t row = blockIdx.x;
  int i = rows[row];
  float *x = logits + row * vocab, *z = base + row * vocab;
  uint32_t target = targets[i];
  float top = -INFINITY, base_top = -INFINITY;
  // Each column is the same thread's in every pass; only the target's is read by another, behind a barrier.
  if (cap > 0) for (int c = threadIdx.x; c < vocab; c += THREADS) { x[c] = soft_cap<float>(x[c], cap); z[c] = soft_cap<float>(z[c], cap); }
  for (int c = threadIdx.x; c < vocab; c += THREADS) { top = fmaxf(top, x[c]); base_top = fmaxf(base_top, z[c]); }
  top = block_max(top, scratch);
  base_top = block_max(base_top, scratch);
  float sum = 0, base_sum = 0;
  for (int c = threadIdx.x; c < vocab; c += THREADS) { sum += expf(x[c] - top); base_sum += expf(z[c] - base_top); }
  float log_sum = logf(block_sum(sum, scratch)), base_log_sum = logf(block_sum(base_sum, scratch));
  bool known = target < uint32_t(vocab);
  if (threadIdx.x == 0) losses[i] = known ? log_sum - (x[target] - top) : NAN;
  __syncthreads();        // dlogits may be the logits' own memory, and x[target] was read above
  float weight = weights[i], divergence = 0;
  for (int c = threadIdx.x; c < vocab; c += THREADS) {
    float y = x[c], log_p = y - top - log_sum, log_q = z[c] - base_top - base_log_sum, p = expf(log_p), q = expf(log_q);
    divergence += p - q - q * (log_p - log_q);
    if (!dlogits) continue;
    float d = weight * (hard * (uint32_t(c) == target ? p - 1.0f : p) + soft * (p - q));
    dlogits[row * vocab + c] = from_float<T>(cap > 0 ? d * soft_cap_slope(y, cap) : d);
  }
  divergence = block_sum(divergence, scratch);
  if (threadIdx.x == 0) divergences[i] = divergence;
}
}  // namespace

KERNEL(softmax_kl_f32, THREADS, 1)
(float* losses, float* divergences, float* OPTIONAL dlogits, float* logits, float* base, const int* rows, const uint32_t* targets, const float* weights, int vocab, float hard, float soft, float cap) {
  softmax_kl(losses, divergences, dlogits, logits, base, rows, targets, weights, vocab, hard, soft, cap);
}
EXPORT_KERNEL(softmax_kl_f32, THREADS)
KERNEL(softmax_kl_bf16, THREADS, 1)
(float* losses, float* divergences, bf16* OPTIONAL dlogits, float* logits, float* base, const int* rows, const uint32_t* targets, const float* weights, int vocab, float hard, float soft, float cap) {
  softmax_kl(losses, divergences, dlogits, logits, base, rows, targets, weights, vocab, hard, soft, cap);
}
EXPORT_KERNEL(softmax_kl_bf16, THREADS)
