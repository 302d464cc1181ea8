// The next token of each row: repetition penalty, bans, then the likeliest (greedy) or one drawn after temperature, top-k, top-p and min-p.
//
// Work: a block a row, the same passes for any vocabulary: top; for top-k and for top-p four passes that find the cut by 8 bits of the value at a
// time (choose.cuh); sums of the kept weights by warp; one warp walks the part that the draw falls into. Weights are integers, so every sum is exact: the token
// depends on the row's logits, seed, id and step alone (Philox4x32-10, Salmon et al. 2011), and is the CPU's, bit for bit.
// Bytes: 4 V a row, then up to 11 passes from L2.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | radix selection, shared-memory bins | not measured on a GPU yet | | |
#include "choose.cuh"
#include "philox.cuh"

namespace {
constexpr int THREADS = 512, WARPS = THREADS / 32;
constexpr uint32_t NOTHING = 0xffffffffu;
// As src/ops/sampling.rs writes it: lists[seen..banned] are penalised, lists[banned..end] forbidden.
struct Row { uint32_t id_low, id_high, step, seen, banned, end; };

// The first of the largest.
DEV void greedy(uint32_t* out, const float* x, int vocab, float top, ChooseScratch& s) {
  uint32_t first = NOTHING;
  for (int i = threadIdx.x; i < vocab; i += THREADS) if (x[i] == top) { first = i; break; }
  first = __reduce_min_sync(FULL_MASK, first);
  if (threadIdx.x % 32 == 0) s.counts[threadIdx.x / 32] = first;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int w = 0; w < WARPS; w++) first = min(first, s.counts[w]);
  *out = first;
}
}  // namespace

// tokens (rows); logits (rows, vocab) are consumed. 2^(exponent (x - top)) are the weights; exponent 0 is greedy; top_k 0 and top_p 0 (a fraction of
// 2^64) keep all; of those left, tokens whose logit is more than -least below the top go, too (least -inf: none). A row with a NaN or +inf, or without a token to choose, gives 2^32 - 1.
KERNEL(sample_tokens, THREADS, 1)
(uint32_t* tokens, float* logits, const Row* rows, const uint32_t* lists, int vocab, int bits, float penalty, float exponent, int top_k, u64 top_p, float least, u64 seed) {
  SHARED(ChooseScratch, scratch, [1]);
  ChooseScratch& s = scratch[0];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Row row = rows[blockIdx.x];
  float* x = logits + size_t(blockIdx.x) * vocab;
  for (uint32_t i = row.seen + threadIdx.x; i < row.banned; i += THREADS) {
    float& own = x[lists[i]];
    own = own > 0.0f ? own / penalty : mul_rn(own, penalty);
  }
  __syncthreads();
  for (uint32_t i = row.banned + threadIdx.x; i < row.end; i += THREADS) x[lists[i]] = -INFINITY;
  __syncthreads();
  float top = row_top(x, vocab, s);
  if (!(top > -INFINITY)) {
    if (threadIdx.x == 0) tokens[blockIdx.x] = NOTHING;
    return;
  }
  if (exponent == 0.0f) return greedy(tokens + blockIdx.x, x, vocab, top, s);
  auto weight_of = [&](float value) { return weight(mul_rn(add_rn(value, -top), exponent), bits); };
  // Kept are the keys above cut.key and the first `ties` of those equal to it.
  Cut cut = {0, 0};
  u64 ties = 0;
  if (top_k > 0 && top_k < vocab) {
    auto one = [&](int i, uint32_t& key) { key = order_key(x[i]); return u64(1); };
    cut = select(one, vocab, u64(top_k), s);
    ties = u64(top_k) - cut.above;
  }
  u64 total = 0;
  for (int i = threadIdx.x; i < vocab; i += THREADS) if (order_key(x[i]) > cut.key) total += weight_of(x[i]);
  total = block_sum(total, s.sums);
  u64 tie_weight = ties > 0 ? weight_of(key_value(cut.key)) : 0;
  total += ties * tie_weight;
  if (top_p > 0) {
    u64 target = mul_high(total, top_p) + (total * top_p > 0);
    uint32_t floor = cut.key;
    auto kept = [&](int i, uint32_t& key) { key = order_key(x[i]); return key >= floor ? weight_of(x[i]) : u64(0); };
    cut = select(kept, vocab, target, s);
    tie_weight = weight_of(key_value(cut.key));
    ties = (target - cut.above + tie_weight - 1) / tie_weight;
    total = cut.above + ties * tie_weight;
  }
  uint32_t floor = least > -INFINITY ? order_key(add_rn(top, least)) : 0;
  if (floor > cut.key) {
    cut.key = floor - 1;
    ties = 0;
    tie_weight = 0;
    total = 0;
    for (int i = threadIdx.x; i < vocab; i += THREADS) if (order_key(x[i]) > cut.key) total += weight_of(x[i]);
    total = block_sum(total, s.sums);
  }
  Philox drawn = philox(seed, row.id_low, row.id_high, row.step, 0);
  u64 draw = mul_high(u64(drawn.v[1]) << 32 | drawn.v[0], total);
  Segment own = segment(vocab);
  u64 sum = 0;
  uint32_t equal = 0;
  for (int i = own.first + lane; i < own.last; i += 32) {
    uint32_t key = order_key(x[i]);
    if (key > cut.key) sum += weight_of(x[i]);
    equal += key == cut.key;
  }
  sum = warp_sum(sum);
  equal = __reduce_add_sync(FULL_MASK, equal);
  if (lane == 0) { s.sums[warp] = sum; s.counts[warp] = equal; }
  __syncthreads();
  u64 before = 0, rank = 0;      // weights, and tokens with the cut's key, of the warps before
  int found = 0;
  for (; found < WARPS; found++) {
    u64 left = rank < ties ? ties - rank : 0, here = s.counts[found] < left ? s.counts[found] : left, sum = s.sums[found] + here * tie_weight;
    if (draw < before + sum) break;
    before += sum;
    rank += s.counts[found];
  }
  if (warp != found) return;
  for (int first = own.first; first < own.last; first += 32) {
    int i = first + lane;
    uint32_t key = i < own.last ? order_key(x[i]) : 0;
    uint32_t same = __ballot_sync(FULL_MASK, key == cut.key && i < own.last);
    u64 w = 0;
    if (i < own.last && key > cut.key) w = weight_of(x[i]);
    if (i < own.last && key == cut.key && rank + __popc(same & ((1u << lane) - 1)) < ties) w = tie_weight;
    u64 upto = before + warp_scan(w);
    uint32_t reached = __ballot_sync(FULL_MASK, draw < upto);
    if (reached) {
      if (lane == __ffs(int(reached)) - 1) tokens[blockIdx.x] = i;
      return;
    }
    before = __shfl_sync(FULL_MASK, upto, 31);
    rank += __popc(same);
  }
}
EXPORT_KERNEL(sample_tokens, THREADS)
EXPORT_CONSTANT(sampling_row_bytes, sizeof(Row))
