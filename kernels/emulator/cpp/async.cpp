// cp.async, mbarriers and the tensor memory accelerator. Asynchronous work is done at issue (eager), when something waits for it (late)
// or at some moment between (random); in the last two its destination is poisoned at issue.
#include "runtime.hpp"

namespace emu {
// ---- cp.async: groups of a thread ----
static void run_copy(const CpAsync& c) {
  memcpy(c.dst, c.src, c.src_bytes);
  memset(static_cast<uint8_t*>(c.dst) + c.src_bytes, 0, c.bytes - c.src_bytes);
}
void cp_async(void* dst, const void* src, int bytes, int src_bytes, const char* file, int line) {
  auto& s = sched();
  Fiber* f = me();
  if (uintptr_t(dst) % bytes || (src_bytes && uintptr_t(src) % bytes)) fail("cp.async at %s:%d: misaligned address", base_name(file), line);
  if (!in_arena(dst)) fail("cp.async at %s:%d: the destination is not shared memory", base_name(file), line);
  if (src_bytes) access(src, src_bytes, false, "cp.async");
  access(dst, bytes, true, "cp.async");
  if (s.cfg.profile) { if (src_bytes) log_access(src, src_bytes, false, site_of(file, line)); log_access(dst, bytes, true, site_of(file, line, 1)); }
  CpAsync c{dst, src, bytes, src_bytes, f->cp_group, s.cfg.asynchrony == 0 || (s.cfg.asynchrony == 2 && (rnd() & 1))};
  if (c.done) run_copy(c);
  else poison(dst, bytes);
  if (c.done && !s.cfg.checks) return;
  if (s.cfg.checks) copy_begins(f, dst, bytes);
  f->cp.push_back(c);
}
void cp_async_commit() { me()->cp_group++; }
void cp_async_wait(int keep) {
  Fiber* f = me();
  size_t n = 0;
  for (; n < f->cp.size() && f->cp[n].group < f->cp_group - keep; n++) {
    if (!f->cp[n].done) run_copy(f->cp[n]);
    if (sched().cfg.checks) copy_ends(f, f->cp[n].dst, f->cp[n].bytes);
  }
  f->cp.erase(f->cp.begin(), f->cp.begin() + n);
}

// ---- mbarrier: kept in its own 64 bits, with a magic number that exposes an uninitialised one ----
struct Mbar { uint64_t phase : 1, expected : 15, pending : 15, tx : 24, magic : 9; };
constexpr unsigned TX_ZERO = 1 << 23, MAGIC = 0x155;
static Mbar& mbar(uint64_t* p, const char* file, int line) {
  if (!in_arena(p)) fail("mbarrier at %s:%d is not in shared memory", base_name(file), line);
  if (uintptr_t(p) & 7) fail("mbarrier at %s:%d is misaligned", base_name(file), line);
  Cta* c = cta_of(p);
  if (c != me()->cta && c->live == 0) fail("mbarrier at %s:%d: block %d of the cluster has ended", base_name(file), line, c->index);
  Mbar& m = *reinterpret_cast<Mbar*>(p);
  if (m.magic != MAGIC) fail("use of an uninitialised mbarrier at %s:%d (shared offset %zu)", base_name(file), line, shared_address(p) - SHARED_BASE);
  return m;
}
void mbar_init(uint64_t* p, uint32_t n, const char* file, int line) {
  if (!in_arena(p) || (uintptr_t(p) & 7)) fail("mbarrier.init at %s:%d: not an 8-byte aligned shared address", base_name(file), line);
  if (n == 0 || n >= 1 << 15) fail("mbarrier.init at %s:%d: a count of %u", base_name(file), line, n);
  Mbar m{0, n, n, TX_ZERO, MAGIC};
  memcpy(p, &m, 8);
  reset_shared_cells(p, 8);
  MbarMeta fresh;
  fresh.init_rank = me()->rank;
  fresh.init_clk = me()->clk++;
  cta_of(p)->mbar[p] = std::move(fresh);
}
void mbar_fence_init() {
  Fiber* f = me();
  if (sched().cfg.checks) f->mbar_fences.push_back({sched().gang.epoch, f->clk++});
}
// The asynchronous proxy and other blocks see an initialisation only behind its thread's fence.mbarrier_init, ordered before `me`.
static void check_initialised(uint64_t* p, const char* what, const char* file, int line) {
  if (!sched().cfg.checks) return;
  const MbarMeta& meta = cta_of(p)->mbar[p];
  int threads = me()->cta->nthreads;
  const Fiber& by = sched().gang.ctas[meta.init_rank / threads]->fibers[meta.init_rank % threads];
  auto fence = std::find_if(by.mbar_fences.begin(), by.mbar_fences.end(), [&](const Fence& x) { return x.clk > meta.init_clk; });
  if (fence == by.mbar_fences.end()) fail("%s at %s:%d uses an mbarrier that thread %d initialised without a fence.mbarrier_init since", what, base_name(file), line, meta.init_rank % threads);
  if (!knows(me(), fence->epoch, fence->clk, unsigned(meta.init_rank))) fail("%s at %s:%d uses an mbarrier that thread %d initialised: no barrier after its fence.mbarrier_init", what, base_name(file), line, meta.init_rank % threads);
}
static void complete(uint64_t* p) {
  Mbar& m = *reinterpret_cast<Mbar*>(p);
  if (m.pending || m.tx != TX_ZERO) return;
  m.phase ^= 1;
  m.pending = m.expected;
  auto& meta = cta_of(p)->mbar[p];
  if (sched().cfg.checks) join(meta.done, meta.arriving);
  for (Fiber* f : meta.waiters) make_ready(f);
  meta.waiters.clear();
}
void mbar_arrive(uint64_t* p, uint32_t tx, bool arrives, const char* file, int line) {
  Mbar& m = mbar(p, file, line);
  if (cta_of(p) != me()->cta) check_initialised(p, "a remote arrival", file, line);
  if (arrives && !m.pending) fail("mbarrier at %s:%d: more arrivals than its count %u in one phase", base_name(file), line, unsigned(m.expected));
  if (sched().cfg.checks && arrives) release(me(), cta_of(p)->mbar[p].arriving);
  m.tx += tx;
  if (arrives) m.pending--;
  complete(p);
}
void mbar_wait(uint64_t* p, uint32_t parity, const char* file, int line) {
  Fiber* f = me();
  while (mbar(p, file, line).phase == (parity & 1)) {
    cta_of(p)->mbar[p].waiters.push_back(f);
    f->waits_for = p;
    block_on("mbarrier wait", file, line);
  }
  if (sched().cfg.checks) acquire(f, cta_of(p)->mbar[p].done);
}
std::string describe_mbar(uint64_t* p) {
  const Mbar& m = *reinterpret_cast<Mbar*>(p);
  char text[128];
  snprintf(text, sizeof text, " (shared offset %zu, phase %u: %u arrivals and %d bytes missing)", shared_address(p) - SHARED_BASE, unsigned(m.phase), unsigned(m.pending), int(m.tx) - int(TX_ZERO));
  return text;
}

// ---- tensor maps and the copies they describe ----
struct Map { uint64_t magic; uint8_t* base; uint64_t dims[5], strides[5]; uint16_t box[5]; uint8_t rank, elem, swizzle; };
static_assert(sizeof(Map) <= 128);
constexpr uint64_t MAP_MAGIC = 0x7a3fe11d5d22100bull;
static uint32_t swizzled(uint32_t addr, int mode) {
  uint32_t mask = mode == 3 ? 7 : mode == 2 ? 3 : mode == 1 ? 1 : 0;
  return addr ^ ((addr >> 7 & mask) << 4);
}
struct Box { Map m; std::array<int, 5> at; };
enum class Direction { Load, Store, Add };
static void add_element(uint8_t* to, const uint8_t* from, int elem) {
  if (elem == 4) { float a, b; memcpy(&a, to, 4); memcpy(&b, from, 4); a += b; memcpy(to, &a, 4); return; }
  __nv_bfloat16 a, b;
  memcpy(&a, to, 2); memcpy(&b, from, 2);
  a = __nv_bfloat16(float(a) + float(b));
  memcpy(to, &a, 2);
}
static void move_box(const Box& b, uint8_t* smem, uint32_t off, Direction dir) {
  const Map& m = b.m;
  uint32_t inner = m.box[0] * m.elem, rows = 1;
  for (int i = 1; i < m.rank; i++) rows *= m.box[i];
  for (uint32_t r = 0; r < rows; r++) {
    uint32_t q = r;
    bool inside = true;
    uint64_t g = 0;
    for (int i = 1; i < m.rank; i++) {
      int64_t x = b.at[i] + int64_t(q % m.box[i]);
      q /= m.box[i];
      inside &= x >= 0 && x < int64_t(m.dims[i]);
      g += x * m.strides[i];
    }
    for (uint32_t byte = 0; byte < inner; byte += m.elem) {
      uint8_t* sh = smem + swizzled(off + r * inner + (byte & ~15u), m.swizzle) + (byte & 15);
      int64_t x = b.at[0] + int64_t(byte / m.elem);
      bool in = inside && x >= 0 && x < int64_t(m.dims[0]);
      uint8_t* gl = m.base + g + x * m.elem;
      if (dir == Direction::Load) { if (in) memcpy(sh, gl, m.elem); else memset(sh, 0, m.elem); }
      else if (in && dir == Direction::Store) memcpy(gl, sh, m.elem);
      else if (in) add_element(gl, sh, m.elem);
    }
  }
}
// Blocks may run on several operating-system threads: what adds to global memory is one step, as an atomic is.
static void copy_box(const Box& b, uint8_t* smem, uint32_t off, Direction dir) {
  if (dir != Direction::Add) return move_box(b, smem, off, dir);
  AtomicLock lock;
  move_box(b, smem, off, dir);
}
static Box make_box(const void* map, const int* coord, int rank, const char* what, int line) {
  Box b{};
  memcpy(&b.m, map, sizeof b.m);
  if (b.m.magic != MAP_MAGIC) fail("%s (line %d): not a tensor map", what, line);
  if (uintptr_t(map) & 63) fail("%s (line %d): the tensor map is not 64-byte aligned", what, line);
  if (b.m.rank != rank) fail("%s (line %d): the tensor map has rank %d, the copy %d", what, line, b.m.rank, rank);
  for (int i = 0; i < rank; i++) b.at[i] = coord[i];
  return b;
}
static uint32_t box_bytes(const Map& m) {
  uint32_t n = m.elem;
  for (int i = 0; i < m.rank; i++) n *= m.box[i];
  return n;
}
// Every element of the box that lies in the tensor, as an access of the issuing thread: bounds, initialisation, races.
static void check_global(const Box& b, Direction dir, const char* what) {
  const Map& m = b.m;
  uint32_t rows = 1;
  for (int i = 1; i < m.rank; i++) rows *= m.box[i];
  int64_t x0 = std::max<int64_t>(b.at[0], 0), x1 = std::min<int64_t>(b.at[0] + int64_t(m.box[0]), int64_t(m.dims[0]));
  for (uint32_t r = 0; r < rows; r++) {
    uint32_t q = r;
    bool inside = x0 < x1;
    uint64_t g = 0;
    for (int i = 1; i < m.rank; i++) {
      int64_t x = b.at[i] + int64_t(q % m.box[i]);
      q /= m.box[i];
      inside &= x >= 0 && x < int64_t(m.dims[i]);
      g += x * m.strides[i];
    }
    if (!inside) continue;
    for (int64_t byte = x0 * m.elem; byte < x1 * m.elem; byte += m.elem) access(m.base + g + byte, m.elem, dir != Direction::Load, what, dir == Direction::Add);
  }
}
// What has landed was read: whoever waits for it may write where it came from. `issuer` is ordered before up to `issued`.
static void land(Box b, Cta* c, uint32_t off, uint64_t* bar, uint32_t n, int issuer, uint32_t issued) {
  copy_box(b, c->smem, off, Direction::Load);
  async_write_end(c, off, n, c->mbar[bar]);
  if (sched().cfg.checks) {
    Clock& to = c->mbar[bar].arriving;
    if (to.size() <= size_t(issuer)) to.resize(issuer + 1, 0);
    to[issuer] = std::max(to[issuer], issued);
  }
  Mbar& m = *reinterpret_cast<Mbar*>(bar);
  m.tx -= n;
  complete(bar);
}
void tma_load(void* dst, const void* map, uint64_t* bar, const int* coord, int rank, uint16_t multicast, const char* file, int line) {
  auto& s = sched();
  Box b = make_box(map, coord, rank, "TMA load", line);
  Cta* own = cta_of(dst);
  uint32_t off = shared_address(dst), n = box_bytes(b.m), bar_off = shared_address(bar);
  if (off & 127) fail("TMA load at %s:%d: the shared address is not 128-byte aligned", base_name(file), line);
  if (!has_room(off, n)) fail("TMA load at %s:%d: %u bytes at shared offset %zu pass the end of their array", base_name(file), line, n, off - SHARED_BASE);
  check_global(b, Direction::Load, "TMA load");
  int issuer = me()->rank;
  uint32_t issued = me()->clk++;
  if (multicast >> s.gang.ctas.size()) fail("TMA load at %s:%d: multicast mask %x names blocks that the cluster of %zu does not have", base_name(file), line, multicast, s.gang.ctas.size());
  for (unsigned r = 0; r < s.gang.ctas.size(); r++) {
    if (multicast ? !(multicast >> r & 1) : int(r) != own->index) continue;
    Cta* c = s.gang.ctas[r].get();
    auto* its_bar = reinterpret_cast<uint64_t*>(c->smem + bar_off);
    mbar(its_bar, file, line);
    check_initialised(its_bar, "TMA load", file, line);
    async_write_begin(c, off, n, "TMA load", line);
    if (s.cfg.asynchrony == 0) { land(b, c, off, its_bar, n, issuer, issued); continue; }
    poison(c->smem + off, n);
    s.async.push_back([=] { land(b, c, off, its_bar, n, issuer, issued); });
  }
}
struct BulkStore {
  Fiber* f; int group; bool read, written; Box box; Direction dir; Cta* c; uint32_t off, n;
  std::vector<uint8_t> data;      // the source once read, if it is not written yet
};
static void write_store(BulkStore& st) {
  uint8_t* from = st.data.empty() ? st.c->smem : st.data.data() - st.off;
  copy_box(st.box, from, st.off, st.dir);
  st.written = true;
}
void tma_store(const void* map, const void* src, const int* coord, int rank, bool add, const char* file, int line) {
  auto& s = sched();
  Fiber* f = me();
  Box b = make_box(map, coord, rank, "TMA store", line);
  Cta* c = cta_of(src);
  uint32_t off = shared_address(src), n = box_bytes(b.m);
  if (off & 127) fail("TMA store at %s:%d: the shared address is not 128-byte aligned", base_name(file), line);
  if (add && b.m.elem != 2 && b.m.elem != 4) fail("TMA reduce at %s:%d: elements of %d bytes", base_name(file), line, b.m.elem);
  async_read(c, off, n, "TMA store", Reading::Begins, line);
  check_global(b, add ? Direction::Add : Direction::Store, "TMA store");
  auto st = std::make_shared<BulkStore>(BulkStore{f, f->bulk_group, false, false, b, add ? Direction::Add : Direction::Store, c, off, n, {}});
  if (s.cfg.asynchrony == 0 || (s.cfg.asynchrony == 2 && (rnd() & 1))) write_store(*st);
  c->stores.push_back(st);
}
void tma_store_commit() { me()->bulk_group++; }
// wait_group.read: the shared memory is read, the global memory may not be written yet. wait_group: both.
void tma_store_wait(int keep, bool read_only) {
  Fiber* f = me();
  auto& all = f->cta->stores;
  for (auto& st : all) {
    if (st->f != f || st->group >= f->bulk_group - keep) continue;
    if (!st->read) {
      st->read = true;
      async_read(st->c, st->off, st->n, "TMA store", Reading::Ended, 0);
      st->data.assign(st->c->smem + st->off, st->c->smem + st->off + (st->n + 127) / 128 * 128);
    }
    if (!st->written && !(read_only && sched().cfg.asynchrony == 1)) write_store(*st);
  }
  all.erase(std::remove_if(all.begin(), all.end(), [](auto& st) { return st->read && st->written; }), all.end());
}
// What the threads left: false if a store's source was never waited for.
bool finish_stores(Cta* c) {
  for (auto& st : c->stores) {
    if (!st->read) return false;
    if (!st->written) write_store(*st);
  }
  return true;
}
// See check_proxy.
void fence_proxy_async() {
  Fiber* f = me();
  if (sched().cfg.checks) f->fences.push_back({sched().gang.epoch, ++f->clk});
}
uint32_t shared_address(const void* p) {
  if (!in_arena(p)) fail("address %p is not in shared memory", p);
  return uint32_t((static_cast<const uint8_t*>(p) - sched().arena) % ARENA);
}
}  // namespace emu

using namespace emu;
// The rules of cuTensorMapEncodeTiled; the number says which one is broken (see the Rust side).
extern "C" int emu_tensor_map_encode(void* map, int elem, int rank, void* base, const uint64_t* dims, const uint64_t* strides, const uint32_t* box, int swizzle) {
  Map m{};
  m.magic = MAP_MAGIC; m.base = static_cast<uint8_t*>(base); m.rank = uint8_t(rank); m.elem = uint8_t(elem); m.swizzle = uint8_t(swizzle);
  if (rank < 1 || rank > 5) return 1;
  if (uintptr_t(base) % 16) return 2;
  uint32_t span = swizzle ? 16u << swizzle : 1u << 30;
  if (box[0] * elem > span) return 3;
  if (box[0] * elem % 16) return 4;
  for (int i = 0; i < rank; i++) {
    if (box[i] == 0 || box[i] > 256) return 5;
    if (dims[i] == 0 || dims[i] > 1ull << 32) return 6;
    m.dims[i] = dims[i]; m.box[i] = uint16_t(box[i]);
    if (i == 0) continue;
    if (strides[i - 1] % 16 || strides[i - 1] >= 1ull << 40) return 7;
    m.strides[i] = strides[i - 1];
  }
  memset(map, 0, 128);
  memcpy(map, &m, sizeof m);
  return 0;
}
