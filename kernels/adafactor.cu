// Adafactor (Shazeer and Stern 2018, algorithm 4, as transformers has it without relative steps): the second moment of a matrix (R, C) as its mean by rows and by
// columns, that of a vector whole; updates whose root mean square is above 1 are scaled down to it. Everything f32, sums f64 in a fixed order.
//
// Work: rows and their squares a block each; columns 32 a block, every 32nd row a lane; vectors THREADS elements a block. Bytes: 20 an element (grad read four times, param
// read and written) for a matrix. Six launches a matrix.
//
// | version | idea | % of ceiling | GPU | date |
// | 1 | a launch a step | not measured on a GPU yet | | |
#include "prelude.cuh"

namespace {
constexpr int THREADS = 256, COLUMNS = 32, LANES = 32;

// The sum over the block's threads, always in the same order; in all threads.
DEV double ordered_sum(double value) {
  SHARED(double, all, [THREADS]);
  __syncthreads();
  all[threadIdx.x] = value;
  __syncthreads();
  for (int half = THREADS / 2; half > 0; half /= 2) {
    if (int(threadIdx.x) < half) all[threadIdx.x] += all[threadIdx.x + half];
    __syncthreads();
  }
  return all[0];
}
DEV float moved(float old, double mean, float beta, float eps) { return beta * old + (1.0f - beta) * (float(mean) + eps); }
// What the gradient of an element is multiplied by.
DEV float factor(float row, float row_mean, float col) { return 1.0f / sqrtf(row / row_mean) * (1.0f / sqrtf(col)); }
}  // namespace

// row (R), a block each: beta row + (1 - beta) (mean of the scaled grad's squares + eps)
KERNEL(adafactor_rows, THREADS, 1)(float* row, const float* grad, int cols, float beta, float eps, float scale) {
  const float* own = grad + size_t(blockIdx.x) * cols;
  double sum = 0;
  for (int c = threadIdx.x; c < cols; c += THREADS) {
    double g = double(own[c] * scale);
    sum += g * g;
  }
  sum = ordered_sum(sum);
  if (threadIdx.x == 0) row[blockIdx.x] = moved(row[blockIdx.x], sum / cols, beta, eps);
}
EXPORT_KERNEL(adafactor_rows, THREADS)

// col (C), the same.
KERNEL(adafactor_cols, COLUMNS * LANES, 1)(float* col, const float* grad, int rows, int cols, float beta, float eps, float scale) {
  SHARED(double, all, [COLUMNS * LANES]);
  int c = blockIdx.x * COLUMNS + threadIdx.x % COLUMNS, lane = threadIdx.x / COLUMNS;
  double sum = 0;
  if (c < cols)
    for (int r = lane; r < rows; r += LANES) {
      double g = double(grad[size_t(r) * cols + c] * scale);
      sum += g * g;
    }
  all[threadIdx.x] = sum;
  __syncthreads();
  if (lane > 0 || c >= cols) return;
  for (int other = 1; other < LANES; other++) sum += all[other * COLUMNS + threadIdx.x];
  col[c] = moved(col[c], sum / rows, beta, eps);
}
EXPORT_KERNEL(adafactor_cols, COLUMNS * LANES)
EXPORT_CONSTANT(adafactor_columns, COLUMNS)

// mean (1) of row (R); one block.
KERNEL(adafactor_mean, THREADS, 1)(float* mean, const float* row, int rows) {
  double sum = 0;
  for (int r = threadIdx.x; r < rows; r += THREADS) sum += double(row[r]);
  sum = ordered_sum(sum);
  if (threadIdx.x == 0) *mean = float(sum / rows);
}
EXPORT_KERNEL(adafactor_mean, THREADS)

// partial (R): the sum of the update's squares in each row, a block each.
KERNEL(adafactor_squares, THREADS, 1)(double* partial, const float* grad, const float* row, const float* col, const float* mean, int cols, float scale) {
  const float* own = grad + size_t(blockIdx.x) * cols;
  float r = row[blockIdx.x], m = *mean;
  double sum = 0;
  for (int c = threadIdx.x; c < cols; c += THREADS) {
    double u = double(own[c] * scale * factor(r, m, col[c]));
    sum += u * u;
  }
  sum = ordered_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
EXPORT_KERNEL(adafactor_squares, THREADS)

// A vector's second moment (N) and the sum of its update's squares, a block THREADS elements.
KERNEL(adafactor_vector, THREADS, 1)(double* partial, float* square, const float* grad, int n, float beta, float eps, float scale) {
  int i = blockIdx.x * THREADS + threadIdx.x;
  double sum = 0;
  if (i < n) {
    float g = grad[i] * scale, s = moved(square[i], double(g) * double(g), beta, eps);
    square[i] = s;
    double u = double(g * (1.0f / sqrtf(s)));
    sum = u * u;
  }
  sum = ordered_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
EXPORT_KERNEL(adafactor_vector, THREADS)
EXPORT_CONSTANT(adafactor_block, THREADS)

// param (R, C) = keep param - rate update / max(1, its root mean square); a vector has the factors of one row, and no row and mean.
KERNEL(adafactor_apply, THREADS, 1)
(float* param, const float* grad, const float* OPTIONAL row, const float* col, const float* OPTIONAL mean, const double* squares, unsigned long long n, int cols, float scale, float keep, float rate) {
  size_t i = size_t(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  float rms = float(sqrt(*squares / double(n))), x = row ? factor(row[i / cols], *mean, col[i % cols]) : 1.0f / sqrtf(col[i]);
  param[i] = param[i] * keep - rate * (grad[i] * scale * x / fmaxf(1.0f, rms));
}
EXPORT_KERNEL(adafactor_apply, THREADS)
