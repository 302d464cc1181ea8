// What keeps a language on one chunk of logits: the forward KL divergence of a fixed model to the one in training, KL(q || p) = sum q (ln q - ln p) with
// q = softmax(base), p = softmax(logits), beside the loss of the targets, nll = ln sum exp(logits) - logits[target]; and where wanted
// dlogits = weight (hard (p - onehot) + soft (p - q)), with a cap (above 0) of cap tanh(x / cap) on both and through the first. The products with the head
// around it are gemm.cu's; all logits never exist. With `clipped` a term t = q (ln q - ln p) of a column counts up to `clip`: clipped = sum min(t, clip), and
// the gradient is that of it, soft (p sum q' - q') with q' = q where t is not above the clip and 0 elsewhere.
//
// Work: one block a row, three passes (maxima, sums, divergence with the gradient), four with a clip, the later ones from L2; the first writes capped logits back.
// The divergence is summed as p - q + t: every term is at least 0, and an error of a normaliser, common to all terms, cancels; with a clip it stands in the share of q that is
// not above it, which p - q is therefore multiplied by.
// A target that is not below V gives NaN.
// Bytes: 8 V a row read and, with the gradient, V times its element's size written. Sums of each thread's part in f32.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | three passes, a fourth with a clip | not measured on a GPU yet | | |
#include "activation.cuh"
#include "reduce.cuh"

namespace {
constexpr int THREADS = 512;

// q (ln q - ln p).
DEV float kl_term(float log_p, float log_q) { return expf(log_q) * (log_q - log_p); }

// `rows` maps rows of the chunk to rows of losses, divergences, targets and weights.
template <class T>
DEV void softmax_kl(float* losses, float* divergences, float* clipped, T* dlogits, float* logits, float* base, const int* rows, const uint32_t* targets, const float* weights, int vocab, float hard, float soft, float cap, float clip) {
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
  float out = 0;          // of q, over the columns above the clip
  if (clipped) {
    for (int c = threadIdx.x; c < vocab; c += THREADS) {
      float log_q = z[c] - base_top - base_log_sum;
      if (kl_term(x[c] - top - log_sum, log_q) > clip) out += expf(log_q);
    }
    out = block_sum(out, scratch);
  }
  float weight = weights[i], divergence = 0, limited = 0;
  for (int c = threadIdx.x; c < vocab; c += THREADS) {
    float y = x[c], log_p = y - top - log_sum, log_q = z[c] - base_top - base_log_sum, p = expf(log_p), q = expf(log_q);
    float term = kl_term(log_p, log_q);
    divergence += p - q + term;
    if (clipped) limited += (1 - out) * (p - q) + fminf(term, clip);
    if (!dlogits) continue;
    float kept = clipped && term > clip ? 0.0f : q;
    float d = weight * (hard * (uint32_t(c) == target ? p - 1.0f : p) + soft * (p - kept - out * p));
    dlogits[row * vocab + c] = from_float<T>(cap > 0 ? d * soft_cap_slope(y, cap) : d);
  }
  divergence = block_sum(divergence, scratch);
  if (clipped) limited = block_sum(limited, scratch);
  if (threadIdx.x == 0) {
    divergences[i] = divergence;
    if (clipped) clipped[i] = limited;
  }
}
}  // namespace

KERNEL(softmax_kl_f32, THREADS, 1)
(float* losses, float* divergences, float* OPTIONAL clipped, float* OPTIONAL dlogits, float* logits, float* base, const int* rows, const uint32_t* targets, const float* weights, int vocab, float hard, float soft, float cap, float clip) {
  softmax_kl(losses, divergences, clipped, dlogits, logits, base, rows, targets, weights, vocab, hard, soft, cap, clip);
}
EXPORT_KERNEL(softmax_kl_f32, THREADS)
KERNEL(softmax_kl_bf16, THREADS, 1)
(float* losses, float* divergences, float* OPTIONAL clipped, bf16* OPTIONAL dlogits, float* logits, float* base, const int* rows, const uint32_t* targets, const float* weights, int vocab, float hard, float soft, float cap, float clip) {
  softmax_kl(losses, divergences, clipped, dlogits, logits, base, rows, targets, weights, vocab, hard, soft, cap, clip);
}
EXPORT_KERNEL(softmax_kl_bf16, THREADS)
