// One step of beam search: for each batch item the 2 K best of scores[beam] + ln softmax(logits[beam])[token] over its K hypotheses.
//
// Work: beam_rows, a block a row: the log-softmax with integer weights (choose.cuh), the row's 2 K best by selection on the bits of the
// scores, ranked by counting; beam_merge, a block a batch item: the K sorted lists into one. Any vocabulary; K up to 32. Equal scores are in order of beam,
// then token. The same bits in any batch and on the CPU.
// Bytes: 4 V read and written a row, then 7 passes over the row from L2 (top, sum, 4 digits, collection twice).
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | radix selection, shared-memory bins | not measured on a GPU yet | | |
#include "choose.cuh"

namespace {
constexpr int THREADS = 512, MAX_BEAMS = 32;

// ln(sum 2^-bits), sum >= 2^bits
DEV float ln_fixed(u64 sum, int bits) {
  double x = double(sum);
  u64 u;
  memcpy(&u, &x, 8);
  int high = int(u >> 51 & 1), e = int(u >> 52) - 1023 + high;
  u = (u & ((u64(1) << 52) - 1)) | u64(1023 - high) << 52;
  double m;
  memcpy(&m, &u, 8);
  double s = (m - 1.0) / (m + 1.0), s2 = mul_rn(s, s), p = 1.0 / 15.0;
  p = add_rn(mul_rn(p, s2), 1.0 / 13.0);
  p = add_rn(mul_rn(p, s2), 1.0 / 11.0);
  p = add_rn(mul_rn(p, s2), 1.0 / 9.0);
  p = add_rn(mul_rn(p, s2), 1.0 / 7.0);
  p = add_rn(mul_rn(p, s2), 1.0 / 5.0);
  p = add_rn(mul_rn(p, s2), 1.0 / 3.0);
  p = add_rn(mul_rn(p, s2), 1.0);
  return float(add_rn(mul_rn(double(e - bits), 0.693147180559945309417), mul_rn(mul_rn(2.0, s), p)));
}

// Logits become the candidates' scores.
DEV void score_row(float* x, float own, const uint32_t* forbidden, int forbidden_n, uint32_t forced, int vocab, int bits, ChooseScratch& s) {
  if (forced != 0xffffffffu) {
    for (int i = threadIdx.x; i < vocab; i += THREADS) x[i] = uint32_t(i) == forced ? own : -INFINITY;
  } else {
    float top = row_top(x, vocab, s);
    u64 sum = 0;
    for (int i = threadIdx.x; i < vocab; i += THREADS) sum += weight(mul_rn(add_rn(x[i], -top), LOG2_E), bits);
    sum = block_sum(sum, s.sums);
    if (threadIdx.x == 0) s.tops[0] = ln_fixed(sum, bits);
    __syncthreads();
    float log_sum = s.tops[0];
    for (int i = threadIdx.x; i < vocab; i += THREADS) x[i] = own + ((x[i] - top) - log_sum);
    __syncthreads();
    for (int i = threadIdx.x; i < forbidden_n; i += THREADS) x[forbidden[i]] = -INFINITY;
  }
  __syncthreads();
}
}  // namespace

// out_keys, out_tokens (rows, n) = the n best of each row, best first; the keys order the scores. Logits (rows, vocab) are consumed.
KERNEL(beam_rows, THREADS, 1)
(uint32_t* out_keys, uint32_t* out_tokens, float* logits, const float* scores, const uint32_t* forbidden, const uint32_t* offsets, const uint32_t* forced,
 int vocab, int n, int bits) {
  SHARED(ChooseScratch, scratch, [1]);
  SHARED(uint32_t, keys, [2 * MAX_BEAMS]);
  SHARED(uint32_t, tokens, [2 * MAX_BEAMS]);
  SHARED(uint32_t, taken, [1]);
  ChooseScratch& s = scratch[0];
  size_t row = blockIdx.x;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float* x = logits + row * vocab;
  score_row(x, scores[row], forbidden + offsets[row], int(offsets[row + 1] - offsets[row]), forced[row], vocab, bits, s);
  auto one = [&](int i, uint32_t& key) { key = order_key(x[i]); return u64(1); };
  Cut cut = select(one, vocab, u64(n), s);
  uint32_t ties = uint32_t(n) - uint32_t(cut.above);
  Segment own = segment(vocab);
  uint32_t equal = 0;
  for (int i = own.first + lane; i < own.last; i += 32) equal += order_key(x[i]) == cut.key;
  equal = __reduce_add_sync(FULL_MASK, equal);
  if (lane == 0) s.counts[warp] = equal;
  if (threadIdx.x == 0) taken[0] = 0;
  __syncthreads();
  uint32_t rank = 0;      // of the next token with the cut's key
  for (int w = 0; w < warp; w++) rank += s.counts[w];
  for (int first = own.first; first < own.last; first += 32) {
    int i = first + lane;
    uint32_t key = i < own.last ? order_key(x[i]) : 0;
    uint32_t same = __ballot_sync(FULL_MASK, key == cut.key && i < own.last);
    bool tie = key == cut.key && i < own.last && rank + __popc(same & ((1u << lane) - 1)) < ties;
    if (tie || key > cut.key) {
      uint32_t at = atomicAdd(taken, 1u);
      keys[at] = key;
      tokens[at] = i;
    }
    rank += __popc(same);
  }
  __syncthreads();
  if (int(threadIdx.x) < n) {
    uint32_t key = keys[threadIdx.x], token = tokens[threadIdx.x], better = 0;
    for (int j = 0; j < n; j++) better += keys[j] > key || (keys[j] == key && tokens[j] < token);
    out_keys[row * n + better] = key;
    out_tokens[row * n + better] = token;
  }
}
EXPORT_KERNEL(beam_rows, THREADS)

// best (batch, 2 beams) from the sorted lists (batch, beams, n) of beam_rows.
KERNEL(beam_merge, THREADS, 1)
(float* best_scores, uint32_t* best_beams, uint32_t* best_tokens, const uint32_t* keys, const uint32_t* tokens, int beams, int n) {
  SHARED(uint32_t, all, [2 * MAX_BEAMS * MAX_BEAMS]);
  size_t item = blockIdx.x;
  int m = beams * n, best = 2 * beams;
  for (int i = threadIdx.x; i < m; i += THREADS) all[i] = keys[item * m + i];
  __syncthreads();
  for (int i = threadIdx.x; i < m; i += THREADS) {
    uint32_t key = all[i];
    int better = 0;
    // A list's own order is that of its tokens among equals.
    for (int j = 0; j < m; j++) better += all[j] > key || (all[j] == key && j < i);
    if (better >= best) continue;
    size_t at = item * best + better;
    best_scores[at] = key_value(key);
    best_beams[at] = i / n;
    best_tokens[at] = tokens[item * m + i];
  }
}
EXPORT_KERNEL(beam_merge, THREADS)
EXPORT_CONSTANT(beam_step_beams, MAX_BEAMS)
