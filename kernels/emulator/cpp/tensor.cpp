// Matrix instructions: ldmatrix, stmatrix, mma.sync (a warp meets) and wgmma (a warpgroup, asynchronously).
#include "runtime.hpp"

namespace emu {
static inline float bf(uint32_t h) { uint32_t u = h << 16; float f; memcpy(&f, &u, 4); return f; }

// ---- ldmatrix, stmatrix: lane 8m+i gives row i of matrix m; lane l holds elements (l/4, l%4*2 + 0, 1) ----
struct MatrixArgs { uint32_t* r; uint8_t* row; int n; bool trans; };
static void check_row(const char* what, int n, const void* row, bool write, const char* file, int line) {
  Fiber* f = me();
  if (f->lane >= 8 * n) return;
  if (uintptr_t(row) & 15) fail("%s at %s:%d: the row's address is not 16-byte aligned", what, base_name(file), line);
  if (!in_arena(row)) fail("%s at %s:%d: the row is not in shared memory", what, base_name(file), line);
  access(row, 16, write, what);
  if (sched().cfg.profile) log_access(row, 16, write, site_of(file, line));
}
void ldmatrix(uint32_t* r, int n, bool trans, const void* row, const char* file, int line) {
  check_row("ldmatrix", n, row, false, file, line);
  MatrixArgs a{r, static_cast<uint8_t*>(const_cast<void*>(row)), n, trans};
  warp_collective(~0u, 4, &a, [](void** p, uint32_t) {
    auto* first = static_cast<MatrixArgs*>(p[0]);
    for (int m = 0; m < first->n; m++) {
      uint16_t t[8][8];
      for (int i = 0; i < 8; i++) memcpy(t[i], static_cast<MatrixArgs*>(p[m * 8 + i])->row, 16);
      for (int l = 0; l < 32; l++) {
        int i = l / 4, j = l % 4 * 2;
        uint32_t lo = first->trans ? t[j][i] : t[i][j], hi = first->trans ? t[j + 1][i] : t[i][j + 1];
        static_cast<MatrixArgs*>(p[l])->r[m] = lo | hi << 16;
      }
    }
  }, "ldmatrix", file, line);
}
void stmatrix(const uint32_t* r, int n, bool trans, void* row, const char* file, int line) {
  check_row("stmatrix", n, row, true, file, line);
  MatrixArgs a{const_cast<uint32_t*>(r), static_cast<uint8_t*>(row), n, trans};
  warp_collective(~0u, 5, &a, [](void** p, uint32_t) {
    auto* first = static_cast<MatrixArgs*>(p[0]);
    for (int m = 0; m < first->n; m++)
      for (int l = 0; l < 32; l++) {
        int i = l / 4, j = l % 4 * 2;
        uint32_t v = static_cast<MatrixArgs*>(p[l])->r[m];
        for (int h = 0; h < 2; h++) {
          int row = first->trans ? j + h : i, col = first->trans ? i : j + h;
          uint16_t x = uint16_t(v >> (16 * h));
          memcpy(static_cast<MatrixArgs*>(p[m * 8 + row])->row + 2 * col, &x, 2);
        }
      }
  }, "stmatrix", file, line);
}

// ---- mma.sync.m16n8k16, bf16 in, f32 accumulation ----
struct MmaArgs { float* d; const uint32_t *a, *b; int mi, ni; };
__attribute__((target_clones("avx2,fma", "default")))
static void multiply(float* __restrict c, const float* __restrict a, const float* __restrict b, int rows, int cols, int depth) {
  for (int i = 0; i < rows; i++)
    for (int k = 0; k < depth; k++) {
      float x = a[i * depth + k];
      for (int j = 0; j < cols; j++) c[i * cols + j] += x * b[k * cols + j];
    }
}
void mma_tile(float* d, const uint32_t* a, const uint32_t* b, int mi, int ni, const char* file, int line) {
  MmaArgs x{d, a, b, mi, ni};
  warp_collective(~0u, 6, &x, [](void** p, uint32_t) {
    auto lane = [p](int l) { return static_cast<MmaArgs*>(p[l]); };
    int mi = lane(0)->mi, ni = lane(0)->ni, cols = ni * 8;
    static thread_local std::vector<float> A, B, C;
    A.assign(mi * 256, 0); B.assign(cols * 16, 0); C.assign(mi * 16 * cols, 0);
    for (int l = 0; l < 32; l++) {
      auto* m = lane(l);
      int g = l / 4, t = l % 4 * 2;
      for (int i = 0; i < mi; i++)
        for (int r = 0; r < 4; r++)
          for (int h = 0; h < 2; h++) A[(i * 16 + g + 8 * (r & 1)) * 16 + t + h + 8 * (r >> 1)] = bf(m->a[i * 4 + r] >> (16 * h) & 0xffff);
      for (int j = 0; j < ni; j++)
        for (int r = 0; r < 2; r++)
          for (int h = 0; h < 2; h++) B[(t + h + 8 * r) * cols + j * 8 + g] = bf(m->b[j * 2 + r] >> (16 * h) & 0xffff);
    }
    multiply(C.data(), A.data(), B.data(), mi * 16, cols, 16);
    for (int l = 0; l < 32; l++) {
      auto* m = lane(l);
      int g = l / 4, t = l % 4 * 2;
      for (int i = 0; i < mi; i++)
        for (int j = 0; j < ni; j++)
          for (int r = 0; r < 4; r++) m->d[(i * ni + j) * 4 + r] += C[(i * 16 + g + 8 * (r >> 1)) * cols + j * 8 + t + (r & 1)];
    }
  }, "mma.sync", file, line);
}

// ---- wgmma: m64 nN k(32 bytes) ----
// A thread's i-th wgmma finds record i of its warpgroup, deposits its accumulators there and gets NaN in its registers. A record may run
// once all 128 threads have deposited: at issue, or at a wait, reading shared memory only then, so that a stage freed too early gives a
// wrong result as it would on the chip. Chains on one accumulator array share a deposit.
static Warpgroup& my_warpgroup(Fiber* f) { return f->cta->wg[f->linear / 128]; }
void wgmma_fence() { me()->wg_fenced = true; }

static float e4m3(uint8_t x) {
  int e = x >> 3 & 15, m = x & 7;
  if (e == 15 && m == 7) return std::numeric_limits<float>::quiet_NaN();
  float v = e ? std::ldexp(float(8 + m), e - 10) : std::ldexp(float(m), -9);
  return x & 0x80 ? -v : v;
}
static float element(const uint8_t* p, Operand type) {
  if (type == Operand::E4m3) return e4m3(*p);
  uint16_t h;
  memcpy(&h, p, 2);
  return bf(h);
}
struct Descriptor { uint32_t base, lbo, sbo; int swizzle; };
static Descriptor decode(uint64_t d) {
  int mode = int(d >> 62);
  return {uint32_t(d & 0x3fff) << 4, uint32_t(d >> 16 & 0x3fff) << 4, uint32_t(d >> 32 & 0x3fff) << 4, mode == 1 ? 3 : mode == 2 ? 2 : mode == 3 ? 1 : 0};
}
// Shared offset of the first byte of element (r, k): PTX ISA, "Shared memory matrix layout" for wgmma.
static uint32_t place(const Descriptor& d, int r, int k, int elem, bool mn_major) {
  uint32_t span = 16u << d.swizzle, a;      // bytes of one swizzled row; 16 without swizzle, where lbo and sbo change places if MN-major
  if (!mn_major) {
    uint32_t byte = uint32_t(k * elem);
    a = d.swizzle ? d.base + r / 8 * d.sbo + r % 8 * span + byte : d.base + r / 8 * d.sbo + byte / 16 * d.lbo + r % 8 * 16 + byte % 16;
  } else {
    uint32_t e = span / elem;
    uint32_t along = d.swizzle ? d.lbo : d.sbo, deep = d.swizzle ? d.sbo : d.lbo;
    a = d.base + r / e * along + k / 8 * deep + k % 8 * span + r % e * elem;
  }
  uint32_t mask = (1u << d.swizzle) - 1;
  return (a ^ ((a >> 7 & mask) << 4)) & 0x3ffff;
}
// A swizzle's pattern repeats every 1024, 512 or 256 bytes; a start in the middle of one needs the base offset, which is not modelled.
static void check_atom(uint64_t desc, const char* which, const char* file, int line) {
  Descriptor d = decode(desc);
  uint32_t inside = d.base & (d.swizzle == 3 ? 0x380 : d.swizzle == 2 ? 0x180 : d.swizzle == 1 ? 0x80 : 0);
  if (desc >> 49 & 7) fail("wgmma at %s:%d: a descriptor with a base offset, which is not modelled: align swizzled tiles to their 8 rows", base_name(file), line);
  if (inside) fail("wgmma at %s:%d: %s begins %u bytes into a swizzle atom of %d bytes, with base offset 0", base_name(file), line, which, inside, 128 << d.swizzle);
}
static int depth_of(Operand t) { return t == Operand::E4m3 ? 32 : 16; }
static void read_tile(Cta* c, uint64_t desc, int rows, bool mn_major, Operand type, float* out, bool rows_first) {
  Descriptor d = decode(desc);
  int depth = depth_of(type), elem = type == Operand::E4m3 ? 1 : 2;
  for (int r = 0; r < rows; r++)
    for (int k = 0; k < depth; k++) {
      uint32_t a = place(d, r, k, elem, mn_major);
      if (!has_room(a, elem)) outside_shared(a, "wgmma", 0);
      out[rows_first ? r * depth + k : k * rows + r] = element(c->smem + a, type);
    }
}
static void check_tile(Cta* c, uint64_t desc, int rows, bool mn_major, Operand type, Reading when, int line) {
  if (!sched().cfg.checks) return;
  Descriptor d = decode(desc);
  int depth = depth_of(type), elem = type == Operand::E4m3 ? 1 : 2, step = 16 / elem;     // 16 bytes lie together
  if (mn_major) for (int k = 0; k < depth; k++) for (int r = 0; r < rows; r += step) async_read(c, place(d, r, k, elem, true), 16, "wgmma", when, line);
  else for (int r = 0; r < rows; r++) for (int k = 0; k < depth; k += step) async_read(c, place(d, r, k, elem, false), 16, "wgmma", when, line);
}
static void run_wgmma(Fiber* f, Warpgroup& w, size_t upto) {
  static thread_local std::vector<float> A, B;
  for (; w.executed < upto; w.executed++) {
    WgOp& o = w.ops[w.executed];
    auto& acc = w.shadow[o.root];
    int depth = depth_of(o.type);
    A.assign(64 * depth, 0); B.assign(o.n * depth, 0);
    if (o.from_regs) {
      for (int t = 0; t < 128; t++)
        for (int r = 0; r < 4; r++) {
          int row = t / 32 * 16 + t % 32 / 4 + 8 * (r & 1);
          if (o.type == Operand::Bf16) for (int h = 0; h < 2; h++) A[row * 16 + t % 4 * 2 + h + 8 * (r >> 1)] = bf(o.a_regs[t * 4 + r] >> (16 * h) & 0xffff);
          else for (int h = 0; h < 4; h++) A[row * 32 + t % 4 * 4 + h + 16 * (r >> 1)] = e4m3(uint8_t(o.a_regs[t * 4 + r] >> (8 * h)));
        }
    } else {
      read_tile(f->cta, o.da, 64, o.ta, o.type, A.data(), true);
    }
    read_tile(f->cta, o.db, o.n, o.tb, o.type, B.data(), false);
    if (!o.scale) std::fill(acc.begin(), acc.end(), 0.f);
    multiply(acc.data(), A.data(), B.data(), 64, o.n, depth);
  }
}
static int fragment_row(int t, int i) { return t / 32 * 16 + t % 32 / 4 + 8 * (i / 2 % 2); }
static int fragment_col(int t, int i) { return i / 4 * 8 + t % 4 * 2 + i % 2; }

void wgmma(float* d, int n, const uint32_t* a_regs, uint64_t da, uint64_t db, bool scale, bool ta, bool tb, Operand type, const char* file, int line) {
  auto& s = sched();
  Fiber* f = me();
  Warpgroup& w = my_warpgroup(f);
  int t = f->linear % 128, i = f->wg_issued++;
  if (!f->wg_fenced) fail("wgmma at %s:%d without a wgmma.fence after the last wait", base_name(file), line);
  if (n < 8 || n > 256 || n % 8) fail("wgmma at %s:%d: N is %d, not a multiple of 8 up to 256", base_name(file), line, n);
  check_atom(db, "b", file, line);
  if (!a_regs) check_atom(da, "a", file, line);
  if (type == Operand::E4m3 && (ta || tb)) fail("wgmma at %s:%d: 8-bit operands must be K-major", base_name(file), line);
  if (size_t(i) == w.ops.size()) {
    w.ops.push_back({da, db, n, scale, ta, tb, a_regs != nullptr, type, 0, i, std::vector<uint32_t>(a_regs ? 512 : 0)});
    w.ptr.emplace_back();
  }
  WgOp& o = w.ops[i];
  bool same = o.da == da && o.db == db && o.n == n && o.scale == scale && o.ta == ta && o.tb == tb && o.from_regs == (a_regs != nullptr) && o.type == type;
  if (!same) fail("wgmma at %s:%d: the threads of a warpgroup disagree on the operands of its wgmma number %d", base_name(file), line, i);
  if (a_regs) for (int r = 0; r < 4; r++) o.a_regs[t * 4 + r] = a_regs[r];
  int root = i;
  for (int j = i - 1; j >= f->wg_retired; j--) if (w.ptr[j][t].d == d) { root = w.ops[j].root; break; }
  w.ptr[i][t] = {d, n};
  if (o.deposited == 0) o.root = root;
  else if (o.root != root) fail("wgmma at %s:%d: accumulators chained differently in one warpgroup", base_name(file), line);
  if (root == i) {
    auto& acc = w.shadow[i];
    acc.resize(64 * n);
    for (int k = 0; k < n / 2; k++) { acc[fragment_row(t, k) * n + fragment_col(t, k)] = d[k]; d[k] = std::numeric_limits<float>::quiet_NaN(); }
  }
  if (++o.deposited < 128) return;
  check_tile(f->cta, db, n, tb, type, Reading::Begins, line);
  if (!a_regs) check_tile(f->cta, da, 64, ta, type, Reading::Begins, line);
  for (Fiber* x : w.waiters) make_ready(x);
  w.waiters.clear();
  if (s.cfg.asynchrony == 0 || (s.cfg.asynchrony == 2 && (rnd() & 1))) {
    size_t upto = w.executed;
    while (upto < w.ops.size() && w.ops[upto].deposited == 128) upto++;
    run_wgmma(f, w, upto);
  }
}
void wgmma_commit() { me()->wg_group_end.push_back(me()->wg_issued); }
// The reads of a wgmma end at the first wait that covers it. The wait of any one thread counts for its warpgroup (published kernels free a
// stage from one thread), so every later waiter learns the first one's clock.
static void retire_reads(Fiber* f, WgOp& o, int line) {
  if (o.reader < 0) {
    check_tile(f->cta, o.db, o.n, o.tb, o.type, Reading::Ended, line);
    if (!o.from_regs) check_tile(f->cta, o.da, 64, o.ta, o.type, Reading::Ended, line);
    o.reader = f->rank;
    o.read_clk = f->clk;
  }
  if (f->vc.size() <= size_t(o.reader)) f->vc.resize(o.reader + 1, 0);
  f->vc[o.reader] = std::max(f->vc[o.reader], o.read_clk);
}
void wgmma_wait(int keep, const char* file, int line) {
  Fiber* f = me();
  Warpgroup& w = my_warpgroup(f);
  int t = f->linear % 128, group = int(f->wg_group_end.size()) - keep;
  if (group <= 0) return;
  int upto = f->wg_group_end[group - 1];
  while (upto > 0 && w.ops[upto - 1].deposited < 128) { w.waiters.push_back(f); block_on("wgmma.wait_group", file, line); }
  run_wgmma(f, w, std::max<size_t>(w.executed, upto));
  for (int i = f->wg_retired; i < upto; i++) {
    auto [d, n] = w.ptr[i][t];
    bool later = false;
    for (int j = i + 1; j < f->wg_issued; j++) later |= w.ptr[j][t].d == d;
    if (sched().cfg.checks) retire_reads(f, w.ops[i], line);
    if (later) continue;
    auto& acc = w.shadow[w.ops[i].root];
    for (int k = 0; k < n / 2; k++) d[k] = acc[fragment_row(t, k) * n + fragment_col(t, k)];
  }
  f->wg_retired = upto;
  if (f->wg_retired == f->wg_issued) f->wg_fenced = false;
}
}  // namespace emu
