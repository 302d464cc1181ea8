// out (D, C) = the mean of the rows of inp (N, C) of each document, f32, and dinp (N, C) = dout (D, C) of its document / its rows: sentence vectors from
// hidden states, and back. Documents lie back to back, document d from row cu_seqlens[d] to cu_seqlens[d + 1]; one without rows has the mean 0.
//
// Work: a block for THREADS columns of a document, a thread a column, from row to row. Any sizes. Bytes: N C e + 4 D C.
// Sums go from the first row to the last, whatever the batch.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | a thread a column | not measured on a GPU yet | | |
#include "prelude.cuh"

namespace {
constexpr int THREADS = 128;

// The rows of the block's document, none beyond those that there are.
struct Segment {
  uint32_t begin, end;
  DEV Segment(const uint32_t* cu_seqlens, int rows) {
    end = min(cu_seqlens[blockIdx.y + 1], uint32_t(rows));
    begin = min(cu_seqlens[blockIdx.y], end);
  }
};

template <class T> DEV void segment_mean_forward(float* out, const T* inp, const uint32_t* cu_seqlens, int rows, int cols) {
  int c = blockIdx.x * THREADS + threadIdx.x;
  if (c >= cols) return;
  Segment s(cu_seqlens, rows);
  float sum = 0.0f;
  for (uint32_t i = s.begin; i < s.end; i++) sum += to_float(inp[size_t(i) * cols + c]);
  out[size_t(blockIdx.y) * cols + c] = s.end > s.begin ? sum / float(s.end - s.begin) : 0.0f;
}

template <class T> DEV void segment_mean_backward(T* dinp, const float* dout, const uint32_t* cu_seqlens, int rows, int cols) {
  int c = blockIdx.x * THREADS + threadIdx.x;
  if (c >= cols) return;
  Segment s(cu_seqlens, rows);
  if (s.begin == s.end) return;
  T each = from_float<T>(dout[size_t(blockIdx.y) * cols + c] / float(s.end - s.begin));
  for (uint32_t i = s.begin; i < s.end; i++) dinp[size_t(i) * cols + c] = each;
}
}  // namespace

#define SEGMENT_MEAN(T, suffix)                                                                                                          \
  KERNEL(segment_mean_forward_##suffix, THREADS, 1)(float* out, const T* inp, const uint32_t* cu_seqlens, int rows, int cols) {          \
    segment_mean_forward(out, inp, cu_seqlens, rows, cols);                                                                              \
  }                                                                                                                                      \
  EXPORT_KERNEL(segment_mean_forward_##suffix, THREADS)                                                                                  \
  TILE(segment_mean_forward_##suffix, THREADS, 1)                                                                                        \
  KERNEL(segment_mean_backward_##suffix, THREADS, 1)(T* dinp, const float* dout, const uint32_t* cu_seqlens, int rows, int cols) {       \
    segment_mean_backward(dinp, dout, cu_seqlens, rows, cols);                                                                           \
  }                                                                                                                                      \
  EXPORT_KERNEL(segment_mean_backward_##suffix, THREADS)                                                                                 \
  TILE(segment_mean_backward_##suffix, THREADS, 1)
SEGMENT_MEAN(float, f32)
SEGMENT_MEAN(bf16, bf16)
