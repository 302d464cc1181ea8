// Forward KL divergence from a teacher's k likeliest tokens K, all others as one bucket, to the model in training:
// KL = sum over K of q (ln q - ln p) + q_r (ln q_r - ln p_r), with p = softmax(logits), p_r = 1 - sum over K of p, and q, q_r as they were stored; beside the loss of the targets,
// nll = ln sum exp(logits) - logits[target]; and where wanted dlogits = weight (hard (p - onehot) + soft (p - q)) in K, and with soft (p - q_r p / p_r) elsewhere, with a cap
// (above 0) of cap tanh(x / cap) on the logits and through it. The products with the head around it are gemm.cu's; all logits never exist.
//
// Work: one block a row. The logits of K are moved to `kept`, so that every further pass over the row sees the rest alone: maximum, sum, gradient; what K has in the gradient is
// written last. p_r comes from the rest's own sum, not from 1 - sum, and the rest's gradient from its shares in that: neither is lost where the teacher is sure.
// The divergence is summed as p - q + q (ln q - ln p): every term is at least 0, and an error of a normaliser, common to all terms, cancels.
// A target that is not below V gives NaN. The ids of a row differ from each other and are below V.
// Bytes: 4 V a row read and, with the gradient, V times its element's size written. Sums of each thread's part in f32.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | the k logits moved out of the row | not measured on a GPU yet | | |
#include "activation.cuh"
#include "reduce.cuh"

namespace {
constexpr int THREADS = 512;

DEV float bucket_term(float log_q, float log_p) {
  float p = expf(log_p), q = expf(log_q);
  return q > 0 ? p - q + q * (log_q - log_p) : p;
}

// `rows` maps rows of the chunk to rows of losses, divergences, targets and weights; kept, ids (rows, k) and log_q (rows, k + 1) go by rows of the chunk.
template <class T>
DEV void softmax_top_k(float* losses, float* divergences, T* dlogits, float* logits, float* kept, const int* rows, const uint32_t* ids, const float* log_q, const uint32_t* targets, const float* weights, int vocab, int k, float hard, float soft, float cap) {
  SHARED(float, scratch, [32]);
  size_t row = blockIdx.x;
  int i = rows[row];
  float *x = logits + row * vocab, *own = kept + row * k;
  ids += row * k;
  log_q += row * (size_t(k) + 1);
  uint32_t target = targets[i];
  bool known = target < uint32_t(vocab), has_rest = k < vocab;
  if (cap > 0) {
    for (int c = threadIdx.x; c < vocab; c += THREADS) x[c] = soft_cap<float>(x[c], cap);
    __syncthreads();
  }
  float at_target = known ? x[target] : NAN;
  __syncthreads();        // every thread has read the target's logit, which one may take away
  float top = -INFINITY, rest_top = -INFINITY;
  for (int j = threadIdx.x; j < k; j += THREADS) {
    float y = x[ids[j]];
    own[j] = y;
    x[ids[j]] = -INFINITY;
    top = fmaxf(top, y);
  }
  top = block_max(top, scratch);
  for (int c = threadIdx.x; c < vocab; c += THREADS) rest_top = fmaxf(rest_top, x[c]);
  rest_top = block_max(rest_top, scratch);
  float sum = 0, rest_sum = 0;
  for (int j = threadIdx.x; j < k; j += THREADS) sum += expf(own[j] - top);
  sum = block_sum(sum, scratch);
  if (has_rest) {
    for (int c = threadIdx.x; c < vocab; c += THREADS) rest_sum += expf(x[c] - rest_top);
    rest_sum = block_sum(rest_sum, scratch);
  }
  // ln of everything is high + log_all.
  float high = fmaxf(top, rest_top), log_all = logf(sum * expf(top - high) + (has_rest ? rest_sum * expf(rest_top - high) : 0.0f));
  float log_rest = has_rest ? rest_top - high + logf(rest_sum) - log_all : -INFINITY, weight = weights[i], divergence = 0;
  for (int j = threadIdx.x; j < k; j += THREADS) divergence += bucket_term(log_q[j], own[j] - high - log_all);
  divergence = block_sum(divergence, scratch);
  if (threadIdx.x == 0) {
    losses[i] = log_all - (at_target - high);
    divergences[i] = divergence + bucket_term(log_q[k], log_rest);
  }
  if (!dlogits) return;
  if (has_rest) {
    float factor = ((hard + soft) * expf(log_rest) - soft * expf(log_q[k])) / rest_sum;
    for (int c = threadIdx.x; c < vocab; c += THREADS) {
      float y = x[c], d = weight * (factor * expf(y - rest_top) - (uint32_t(c) == target ? hard : 0.0f));
      dlogits[row * vocab + c] = from_float<T>(cap > 0 ? d * soft_cap_slope(y, cap) : d);
    }
    __syncthreads();      // those of K are written anew
  }
  for (int j = threadIdx.x; j < k; j += THREADS) {
    float y = own[j], d = weight * ((hard + soft) * expf(y - high - log_all) - soft * expf(log_q[j]) - (ids[j] == target ? hard : 0.0f));
    dlogits[row * vocab + ids[j]] = from_float<T>(cap > 0 ? d * soft_cap_slope(y, cap) : d);
  }
}
}  // namespace

KERNEL(softmax_top_k_f32, THREADS, 1)
(float* losses, float* divergences, float* OPTIONAL dlogits, float* logits, float* kept, const int* rows, const uint32_t* ids, const float* log_q, const uint32_t* targets, const float* weights, int vocab, int k, float hard, float soft, float cap) {
  softmax_top_k(losses, divergences, dlogits, logits, kept, rows, ids, log_q, targets, weights, vocab, k, hard, soft, cap);
}
EXPORT_KERNEL(softmax_top_k_f32, THREADS)
KERNEL(softmax_top_k_bf16, THREADS, 1)
(float* losses, float* divergences, bf16* OPTIONAL dlogits, float* logits, float* kept, const int* rows, const uint32_t* ids, const float* log_q, const uint32_t* targets, const float* weights, int vocab, int k, float hard, float soft, float cap) {
  softmax_top_k(losses, divergences, dlogits, logits, kept, rows, ids, log_q, targets, weights, vocab, k, hard, soft, cap);
}
EXPORT_KERNEL(softmax_top_k_bf16, THREADS)
