// What the compiler's -fsanitize=thread calls lead to: bounds, alignment, uninitialised reads, data races, proxy fences; and the
// memory profile. libtsan is never linked: the symbols it would give are at the end of this file.
//
// Races are found with vector clocks. Every two bytes remember their last write and a last read (gang, epoch, thread, clock); an
// access is ordered after one of an earlier epoch (a barrier of all threads lay between) or one that its thread knows of.
#include <sys/mman.h>

#include <mutex>

#include "runtime.hpp"

namespace emu {
// ---- clocks ----
void join(Clock& to, const Clock& from) {
  if (to.size() < from.size()) to.resize(from.size(), 0);
  for (size_t i = 0; i < from.size(); i++) to[i] = std::max(to[i], from[i]);
}
void release(Fiber* f, Clock& to) {
  join(to, f->vc);
  if (to.size() < size_t(f->rank) + 1) to.resize(f->rank + 1, 0);
  to[f->rank] = std::max(to[f->rank], f->clk++);
}
void acquire(Fiber* f, const Clock& from) { join(f->vc, from); }

static bool knows(const Fiber* f, uint32_t epoch, uint32_t clk, unsigned rank) {
  return epoch < sched().gang.epoch || int(rank) == f->rank || (rank < f->vc.size() && f->vc[rank] >= clk);
}
// Across gangs of one launch only atomics after a __threadfence order anything. What a thread learnt so, the threads that are
// ordered after it know too.
static bool knows_gang(const Fiber* f, uint64_t run, uint32_t epoch, uint32_t clk, unsigned rank) {
  for (const Learnt& l : sched().gang.learnt) {
    if (!knows(f, l.epoch, l.clk, unsigned(l.rank))) continue;
    auto k = l.gangs.find(run);
    if (k == l.gangs.end()) continue;
    if (epoch < k->second.epoch || (epoch == k->second.epoch && rank < k->second.vc.size() && k->second.vc[rank] >= clk)) return true;
  }
  return false;
}
static void merge(KnownGangs& to, const KnownGangs& from) {
  for (auto& [run, k] : from) {
    auto [it, fresh] = to.try_emplace(run, k);
    if (fresh) continue;
    if (k.epoch > it->second.epoch) it->second = k;
    else if (k.epoch == it->second.epoch) join(it->second.vc, k.vc);
  }
}
void thread_fence() {
  auto& s = sched();
  if (!s.cfg.checks) return;
  Fiber* f = me();
  Knowledge k{s.gang.epoch, {}};
  release(f, k.vc);
  s.gang.fences[f->rank] = k;
}
static void acquire_load(const void* p) {
  auto& s = sched();
  if (!s.cfg.checks || in_arena(p)) return;
  Fiber* f = me();
  auto here = s.released.find(uintptr_t(p));
  if (here == s.released.end()) return;
  KnownGangs others = here->second;
  auto own = others.find(s.gang.run);
  if (own != others.end()) { acquire(f, own->second.vc); others.erase(own); }
  if (!others.empty()) s.gang.learnt.push_back({f->rank, s.gang.epoch, f->clk, others});
}
// An atomic on global memory learns what others passed on, and passes on what its thread fenced.
static void atomic_order(const void* p) {
  auto& s = sched();
  Fiber* f = me();
  acquire_load(p);
  auto fence = s.gang.fences.find(f->rank);
  if (fence == s.gang.fences.end()) return;
  KnownGangs out{{s.gang.run, fence->second}};
  for (const Learnt& l : s.gang.learnt) if (l.rank == f->rank) merge(out, l.gangs);
  merge(s.released[uintptr_t(p)], out);
}

// ---- buffers ----
static std::mutex g_mutex;
static std::map<uintptr_t, Alloc> g_allocs;
static uint64_t g_version = 1;
void refresh_allocs() {
  auto& s = own_scheduler();
  std::lock_guard<std::mutex> lock(g_mutex);
  if (s.allocs_version == g_version) return;
  s.allocs.clear();
  for (auto& [at, a] : g_allocs) s.allocs.push_back(a);
  s.allocs_version = g_version;
  s.by_page.fill(nullptr);
  s.foreign.fill(0);
}
const Alloc* find_alloc(uintptr_t p) {
  auto& s = sched();
  auto within = [p](const Alloc* a) { return p - uintptr_t(a->base) < a->mapped; };
  const Alloc*& known = s.by_page[p / 4096 % s.by_page.size()];
  if (known && within(known)) return known;
  if (s.foreign[p / 4096 % s.foreign.size()] == p / 4096) return nullptr;
  auto it = std::upper_bound(s.allocs.begin(), s.allocs.end(), p, [](uintptr_t x, const Alloc& a) { return x < uintptr_t(a.base); });
  if (it == s.allocs.begin() || !within(&*std::prev(it))) {
    s.foreign[p / 4096 % s.foreign.size()] = p / 4096;
    return nullptr;
  }
  return known = &*std::prev(it);
}
static void* reserve_zero(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : p;
}
// The buffer's end meets a guard page (but for up to 255 bytes of alignment); fresh memory is all ones, which is NaN.
void* make_memory(size_t bytes) {
  constexpr size_t page = 4096, align = 256;
  size_t round = (bytes + align - 1) / align * align, need = (round + page - 1) / page * page;
  auto* b = static_cast<uint8_t*>(reserve_zero(need + 2 * page));
  auto* cells = static_cast<Cell*>(reserve_zero((round / 2 + 1) * sizeof(Cell)));
  auto* init = static_cast<uint8_t*>(reserve_zero(round / 2 + 1));
  if (!b || !cells || !init) return nullptr;
  mprotect(b, page, PROT_NONE);
  mprotect(b + page + need, page, PROT_NONE);
  auto* u = b + page + (need - round);
  memset(b + page, 0xff, need);
  std::lock_guard<std::mutex> lock(g_mutex);
  g_allocs[uintptr_t(b)] = Alloc{b, u, bytes, need + 2 * page, cells, init};
  g_version++;
  return u;
}
void free_memory(void* p) {
  std::lock_guard<std::mutex> lock(g_mutex);
  auto it = g_allocs.upper_bound(uintptr_t(p));
  if (it == g_allocs.begin()) return;
  Alloc a = (--it)->second;
  size_t round = (a.bytes + 255) / 256 * 256;
  munmap(a.base, a.mapped);
  munmap(a.cells, (round / 2 + 1) * sizeof(Cell));
  munmap(a.init, round / 2 + 1);
  g_allocs.erase(it);
  g_version++;
}
void mark_initialised(const void* p, size_t n) {
  refresh_allocs();
  const Alloc* a = find_alloc(uintptr_t(p));
  if (!a) return;
  size_t off = static_cast<const uint8_t*>(p) - a->user;
  memset(a->init + off / 2, 1, (off % 2 + n + 1) / 2);
}
void poison(void* p, size_t n) { memset(p, 0xff, n); }

// ---- one access ----
Cta* cta_of(const void* p) {
  auto& s = sched();
  return s.gang.ctas[(static_cast<const uint8_t*>(p) - s.arena) / ARENA].get();
}
static Cell* shared_cell(const void* p) { auto& s = sched(); return s.shared_cells + (static_cast<const uint8_t*>(p) - s.arena) / 2; }

struct Place { const char* space; size_t offset; };
[[noreturn]] static void race(bool write, Place at, bool after_write, unsigned rank, bool same_gang, const char* what) {
  int threads = me()->cta->nthreads;
  char who[96];
  if (!same_gang) snprintf(who, sizeof who, "a thread of another block");
  else if (int(rank) / threads == me()->cta->index) snprintf(who, sizeof who, "thread %d", int(rank) % threads);
  else snprintf(who, sizeof who, "thread %d of block %d of the cluster", int(rank) % threads, int(rank) / threads);
  fail("race: %s%s of %s memory at offset %zu after an unordered %s by %s", what ? what : "", write ? (what ? " write" : "write") : (what ? " read" : "read"), at.space, at.offset, after_write ? "write" : "read", who);
}
// Ordering of one access to the two bytes of a cell, then its record.
static void check_cell(Cell& c, bool write, bool atomic, Fiber* f, Place at, const char* what) {
  auto& s = sched();
  if (c.w_run >= s.first_run && !(atomic && (c.flags & ATOMIC))) {
    bool same = c.w_run == s.gang.run;
    if (same ? !knows(f, c.w_epoch, c.w_clk, c.w_rank) : !knows_gang(f, c.w_run, c.w_epoch, c.w_clk, c.w_rank)) race(write, at, true, c.w_rank, same, what);
  }
  if (write) {
    if (c.r_run >= s.first_run) {
      bool same = c.r_run == s.gang.run;
        if (same ? !knows(f, c.r_epoch, c.r_clk, c.r_rank) : !knows_gang(f, c.r_run, c.r_epoch, c.r_clk, c.r_rank)) race(write, at, false, c.r_rank, same, what);
      if ((c.flags & READ_BY_OTHERS) && s.gang.learnt.empty()) race(write, at, false, 0, false, what);
    }
    c.w_run = s.gang.run; c.w_epoch = s.gang.epoch; c.w_clk = f->clk; c.w_rank = uint16_t(f->rank);
    c.r_run = 0;
    c.flags = uint8_t(GENERIC_WRITE | (atomic ? ATOMIC : 0));
  } else {
    // One reader is remembered: the latest that covers the one before, or one of two unordered ones by chance.
    bool stale = c.r_run < s.first_run, other = !stale && c.r_run != s.gang.run;
    if (stale || other || knows(f, c.r_epoch, c.r_clk, c.r_rank) || (rnd() & 1)) {
      c.flags = uint8_t((c.flags & ~READ_BY_OTHERS) | (other || (!stale && (c.flags & READ_BY_OTHERS)) ? READ_BY_OTHERS : 0));
      c.r_run = s.gang.run; c.r_epoch = s.gang.epoch; c.r_clk = f->clk; c.r_rank = uint16_t(f->rank);
    }
  }
}
static void shared_access(const void* p, size_t n, bool write, bool atomic, Fiber* f, const char* what) {
  auto& s = sched();
  Cta* c = cta_of(p);
  size_t off = static_cast<const uint8_t*>(p) - c->smem;
  if (off < SHARED_BASE || off + n > c->used) fail("%sshared memory access out of bounds: offset %zd of %zu bytes", what ? (std::string(what) + ": ").c_str() : "", ssize_t(off - SHARED_BASE), c->used - SHARED_BASE);
  if (!s.cfg.checks) return;
  Cell* cell = shared_cell(p);
  for (size_t i = 0; i < (n + 1) / 2; i++, cell++) {
    Place at{"shared", off - SHARED_BASE + 2 * i};
    if (cell->w_run != s.gang.run) {
      if (!write || atomic) fail("%sread of uninitialised shared memory at offset %zu", what ? (std::string(what) + ": ").c_str() : "", at.offset);
      *cell = Cell{};
    }
    if (cell->flags & IN_FLIGHT) fail("%s of shared memory at offset %zu while an asynchronous copy is writing it", write ? "write" : "read", at.offset);
    check_cell(*cell, write, atomic, f, at, what);
  }
}
static void global_access(const void* p, size_t n, bool write, bool atomic, Fiber* f, const char* what) {
  auto& s = sched();
  uintptr_t a = uintptr_t(p);
  const Alloc* al = find_alloc(a);
  if (!al) {
    if (write && a - uintptr_t(s.stacks) >= s.nstacks * STACK) fail("%zu-byte store to %p, which is neither shared memory nor in any buffer", n, p);
    return;
  }
  size_t off = a - uintptr_t(al->user);
  if (a < uintptr_t(al->user) || off + n > al->bytes) fail("global memory access out of bounds: %s of %zu bytes at offset %zd of a buffer of %zu bytes", write ? "store" : "load", n, ssize_t(off), al->bytes);
  if (!s.cfg.checks) { if (write) memset(al->init + off / 2, 1, (n + 1) / 2); return; }
  for (size_t i = 0; i < (n + 1) / 2; i++) {
    Place at{"global", off + 2 * i};
    uint8_t& init = al->init[off / 2 + i];
    if ((!write || atomic) && !init) fail("read of uninitialised global memory at offset %zu of a buffer of %zu bytes", at.offset, al->bytes);
    if (write) init = 1;
    check_cell(al->cells[off / 2 + i], write, atomic, f, at, what);
  }
}
// Where nothing is recorded: bounds and alignment only, and quickly. False if it is not a plain hit.
static inline bool quick_access(Scheduler& s, uintptr_t a, size_t n, bool write) {
  if (s.cfg.checks || s.cfg.preempt || (a & (n - 1))) return false;
  uintptr_t in_shared = a - uintptr_t(s.arena);
  if (in_shared < ARENA) return in_shared >= SHARED_BASE && in_shared + n <= s.gang.ctas[0]->used;
  if (!write && s.foreign[a / 4096 % s.foreign.size()] == a / 4096) return true;
  const Alloc* al = s.by_page[a / 4096 % s.by_page.size()];
  if (!al || a < uintptr_t(al->user) || a + n > uintptr_t(al->user) + al->bytes) return false;
  if (write) for (size_t i = 0; i < (n + 1) / 2; i++) al->init[(a - uintptr_t(al->user)) / 2 + i] = 1;
  return true;
}
static void any_access(const void* p, size_t n, bool write, bool atomic, const char* what, int) {
  Fiber* f = me();
  if (!f || uintptr_t(p) - uintptr_t(f->stack) < STACK) return;
  auto& s = sched();
  s.stats.accesses++;
  if ((n & (n - 1)) == 0 && (uintptr_t(p) & (n - 1))) fail("misaligned %zu-byte %s at %p", n, write ? "store" : "load", p);
  if (in_arena(p)) shared_access(p, n, write, atomic, f, what);
  else global_access(p, n, write, atomic, f, what);
  if (s.cfg.preempt && (rnd() & 1023) < unsigned(s.cfg.preempt)) yield();
}
void access(const void* p, size_t n, bool write, const char* what, int line) { any_access(p, n, write, false, what, line); }
void atomic_access(void* p, size_t n) {
  auto& s = sched();
  if (s.cfg.checks && !in_arena(p)) atomic_order(p);
  any_access(p, n, true, true, nullptr, 0);
}

static std::mutex g_atomics;
AtomicLock::AtomicLock() { g_atomics.lock(); }
AtomicLock::~AtomicLock() { g_atomics.unlock(); }

uint32_t poll(const uint32_t* p) {
  spin_yield();
  acquire_load(p);
  return *p;
}

// ---- asynchronous engines reading and writing shared memory ----
// At issue: the destination must be free, as for a write of the issuing thread; until it is done, nobody may touch it.
void async_write_begin(Cta* c, uint32_t off, uint32_t n, const char* what, int line) {
  auto& s = sched();
  if (!s.cfg.checks) return;
  Fiber* f = me();
  Cell* cell = shared_cell(c->smem + off);
  for (uint32_t i = 0; i < n / 2; i++, cell++) {
    if (cell->w_run != s.gang.run) *cell = Cell{};
    if (cell->flags & IN_FLIGHT) fail("%s (line %d) overwrites shared memory at offset %zu that another copy is still writing", what, line, off + 2 * i - SHARED_BASE);
    check_cell(*cell, true, false, f, {"shared", off + 2 * i - SHARED_BASE}, what);
    cell->flags = IN_FLIGHT;
  }
}
void async_write_end(Cta* c, uint32_t off, uint32_t n) {
  auto& s = sched();
  if (!s.cfg.checks) return;
  Cell* cell = shared_cell(c->smem + off);
  // The mbarrier hands it over: ordered for whoever waits; the copy itself has no clock, late and random modes catch who does not.
  for (uint32_t i = 0; i < n / 2; i++, cell++) { *cell = Cell{}; cell->w_run = s.gang.run; }
}
void async_read(Cta* c, uint32_t off, uint32_t n, const char* what, bool record, int line) {
  auto& s = sched();
  if (off + n > c->used) fail("%s (line %d) reads shared memory to offset %zu, past its %zu bytes", what, line, off + n - SHARED_BASE, c->used - SHARED_BASE);
  if (!s.cfg.checks) return;
  Fiber* f = me();
  Cell* cell = shared_cell(c->smem + off);
  for (uint32_t i = 0; i < n / 2; i++, cell++) {
    size_t at = off + 2 * i - SHARED_BASE;
    if (cell->w_run != s.gang.run) fail("%s (line %d) reads uninitialised shared memory at offset %zu", what, line, at);
    if (cell->flags & IN_FLIGHT) fail("%s (line %d) reads shared memory at offset %zu while an asynchronous copy is writing it", what, line, at);
    if (cell->flags & GENERIC_WRITE) {
      int threads = f->cta->nthreads;
      const Fiber& writer = s.gang.ctas[cell->w_rank / threads]->fibers[cell->w_rank % threads];
      if (writer.proxy_fence <= cell->w_clk) fail("%s (line %d) reads shared memory at offset %zu that thread %d wrote with ordinary stores and no fence.proxy.async since", what, line, at, cell->w_rank % threads);
    }
    if (record) check_cell(*cell, false, false, f, {"shared", at}, what);
    else if (!knows(f, cell->w_epoch, cell->w_clk, cell->w_rank)) race(false, {"shared", at}, true, cell->w_rank, true, what);
  }
}
void reset_shared_cells(Cta* c, const void* p, size_t n) {
  auto& s = sched();
  (void)c;
  if (!s.cfg.checks) return;
  Cell* cell = shared_cell(p);
  for (size_t i = 0; i < n / 2; i++, cell++) { *cell = Cell{}; cell->w_run = s.gang.run; }
}

// ---- profile: the lanes of a warp, matched by (place in the code, visit number), make one request ----
static void count_shared(EmuStats& st, const std::vector<Access*>& lanes) {
  // 16-byte accesses go by quarter warps, 8-byte ones by half warps.
  size_t phases = lanes[0]->bytes == 16 ? 4 : lanes[0]->bytes == 8 ? 2 : 1, per = 32 / phases;
  st.shared_requests++;
  for (size_t at = 0; at < lanes.size(); at += per) {
    std::array<std::vector<uintptr_t>, 32> bank;
    size_t worst = 1;
    for (size_t i = at; i < std::min(lanes.size(), at + per); i++)
      for (uint32_t b = 0; b < std::max(4u, lanes[i]->bytes); b += 4) {
        uintptr_t word = (lanes[i]->addr + b) / 4;
        auto& x = bank[word % 32];
        if (std::find(x.begin(), x.end(), word) == x.end()) { x.push_back(word); worst = std::max(worst, x.size()); }
      }
    st.shared_wavefronts += worst;
    st.shared_ideal++;
  }
}
static void count_global(EmuStats& st, const std::vector<Access*>& lanes) {
  std::vector<uintptr_t> sectors, bytes;
  for (auto* a : lanes) {
    for (uintptr_t x = a->addr / 32; x <= (a->addr + a->bytes - 1) / 32; x++) sectors.push_back(x);
    bytes.push_back(a->addr);
  }
  auto distinct = [](std::vector<uintptr_t>& v) { std::sort(v.begin(), v.end()); return size_t(std::unique(v.begin(), v.end()) - v.begin()); };
  st.global_requests++;
  st.global_sectors += distinct(sectors);
  st.global_ideal += (distinct(bytes) * lanes[0]->bytes + 31) / 32;
}
void flush_profile(Cta* c, int warp) {
  std::map<std::pair<uintptr_t, uint32_t>, std::vector<Access*>> requests;
  size_t first = warp * 32, last = std::min(first + 32, c->fibers.size());
  for (size_t i = first; i < last; i++) for (auto& e : c->fibers[i].log) requests[{e.first, e.second.visit}].push_back(&e.second);
  auto& s = sched();
  for (auto& [site, lanes] : requests) {
    if (lanes[0]->addr - uintptr_t(s.arena) < ARENA * MAX_CLUSTER) count_shared(s.stats, lanes);
    else count_global(s.stats, lanes);
  }
  for (size_t i = first; i < last; i++) { c->fibers[i].log.clear(); c->fibers[i].visits.clear(); }
}
void log_access(const void* p, size_t n, bool write, uintptr_t site) {
  Fiber* f = me();
  if (!f || !sched().cfg.profile || uintptr_t(p) - uintptr_t(f->stack) < STACK) return;
  if (!in_arena(p) && !find_alloc(uintptr_t(p))) return;
  uint32_t visit = f->visits[site]++;
  f->log.push_back({site, Access{visit, uint32_t(n), uintptr_t(p), write}});
}
}  // namespace emu

using namespace emu;
extern "C" {
void* emu_malloc(size_t bytes) { return make_memory(bytes); }
void emu_free(void* p) { free_memory(p); }
int emu_copy_in(void* to, const void* from, size_t n) { memcpy(to, from, n); mark_initialised(to, n); return 0; }
int emu_fill_zero(void* to, size_t n) { memset(to, 0, n); mark_initialised(to, n); return 0; }

// The symbols of -fsanitize=thread.
#define HOOK(name, n, write) \
  void __tsan_##name(void* p) { \
    if (!self) return; \
    if (uintptr_t(p) - uintptr_t(self) < sizeof(Thread)) return; /* threadIdx and its like */ \
    if (uintptr_t(p) - uintptr_t(me()->stack) < STACK || quick_access(sched(), uintptr_t(p), n, write)) { if (!sched().cfg.profile) return; } \
    else access(p, n, write); \
    if (sched().cfg.profile) log_access(p, n, write, uintptr_t(__builtin_return_address(0))); \
  }
#define HOOKS(n) \
  HOOK(read##n, n, false) HOOK(write##n, n, true) HOOK(unaligned_read##n, n, false) HOOK(unaligned_write##n, n, true) \
  HOOK(volatile_read##n, n, false) HOOK(volatile_write##n, n, true)
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
void __tsan_read_range(void* p, size_t n) { if (self) for (size_t i = 0; i < n; i++) access(static_cast<char*>(p) + i, 1, false); }
void __tsan_write_range(void* p, size_t n) { if (self) for (size_t i = 0; i < n; i++) access(static_cast<char*>(p) + i, 1, true); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
