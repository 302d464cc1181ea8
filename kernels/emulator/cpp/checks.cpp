// What the compiler's -fsanitize=thread calls lead to: bounds, alignment, uninitialised reads, data races, proxy fences; and the
// hooks that feed the memory profile. libtsan is never linked: the symbols it would give are at the end of this file.
//
// Races are found with vector clocks. Every two bytes remember their last write and a last read (gang, epoch, thread, clock); an
// access is ordered after one of an earlier epoch (a barrier of all threads lay between) or one that its thread knows of.
#include <link.h>

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

bool knows(const Fiber* f, uint32_t epoch, uint32_t clk, unsigned rank) {
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
static bool ordered(const Fiber* f, uint64_t run, const Touch& t) {
  auto& s = sched();
  if (run < s.first_run) return true;
  return run == s.gang.run ? knows(f, t.epoch, t.clk, t.rank) : knows_gang(f, run, t.epoch, t.clk, t.rank);
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
const Alloc* find_alloc(uintptr_t p) {
  auto& s = sched();
  auto within = [p](const Alloc* a) { return p - uintptr_t(a->base) < a->mapped; };
  const Alloc*& known = s.by_page[p / 4096 % s.by_page.size()];
  if (known && within(known)) return known;
  auto it = std::upper_bound(s.allocs.begin(), s.allocs.end(), p, [](uintptr_t x, const Alloc& a) { return x < uintptr_t(a.base); });
  if (it == s.allocs.begin() || !within(&*std::prev(it))) return nullptr;
  return known = &*std::prev(it);
}
// What kernels may read beside shared memory and buffers: constants of the program and its libraries.
static bool in_program(uintptr_t p) {
  auto look = [](dl_phdr_info* object, size_t, void* wanted) {
    auto at = *static_cast<uintptr_t*>(wanted) - object->dlpi_addr;
    for (int i = 0; i < object->dlpi_phnum; i++)
      if (object->dlpi_phdr[i].p_type == PT_LOAD && at - object->dlpi_phdr[i].p_vaddr < object->dlpi_phdr[i].p_memsz) return 1;
    return 0;
  };
  return dl_iterate_phdr(look, &p) != 0;
}

// ---- one access ----
Cta* cta_of(const void* p) {
  auto& s = sched();
  return s.gang.ctas[(static_cast<const uint8_t*>(p) - s.arena) / ARENA].get();
}
static Cell* shared_cell(const void* p) { auto& s = sched(); return s.shared_cells + (static_cast<const uint8_t*>(p) - s.arena) / 2; }

// A shared offset as people count it: within its array, the dynamic part or a static array by its number of first use.
static std::string spot(size_t off) {
  auto& s = sched();
  size_t number = 0;
  for (size_t i = 1; i < s.arrays.size(); i++) if (s.arrays[i].first <= off) number = i;
  std::string text = "shared memory at offset " + std::to_string(off - s.arrays[number].first);
  return number ? text + " of static array " + std::to_string(number) : text;
}
// Where an access lies: an offset in the arena or in a buffer.
struct Place { bool shared; size_t offset; };
[[noreturn]] static void race(bool write, Place at, bool after_write, unsigned rank, bool same_gang, const char* what) {
  int threads = me()->cta->nthreads;
  char who[96];
  if (!same_gang) snprintf(who, sizeof who, "a thread of another block");
  else if (int(rank) == sched().gang.threads) snprintf(who, sizeof who, "a TMA copy");
  else if (int(rank) / threads == me()->cta->index) snprintf(who, sizeof who, "thread %d", int(rank) % threads);
  else snprintf(who, sizeof who, "thread %d of block %d of the cluster", int(rank) % threads, int(rank) / threads);
  std::string where = at.shared ? spot(at.offset) : "global memory at offset " + std::to_string(at.offset);
  fail("race: %s%s%s of %s after an unordered %s by %s", what ? what : "", what ? " " : "", write ? "write" : "read", where.c_str(), after_write ? "write" : "read", who);
}
// Ordering of one access to the bytes `mask` of a cell, then its record.
static void check_cell(Cell& c, bool write, bool atomic, uint8_t mask, Fiber* f, Place at, const char* what) {
  auto& s = sched();
  Touch now{s.gang.epoch, f->clk, uint16_t(f->rank), mask};
  if ((c.w.mask & mask) && !(atomic && (c.flags & ATOMIC)) && !ordered(f, c.w_run, c.w)) race(write, at, true, c.w.rank, c.w_run == s.gang.run, what);
  if (write) {
    for (const Touch& r : c.r) if ((r.mask & mask) && !ordered(f, c.r_run, r)) race(write, at, false, r.rank, c.r_run == s.gang.run, what);
    if (c.r_run >= s.first_run && (c.flags & READ_BY_OTHERS) && s.gang.learnt.empty()) race(write, at, false, 0, false, what);
    c.w_run = s.gang.run;
    c.w = now;
    c.r_run = 0;
    c.r[0].mask = c.r[1].mask = 0;
    c.flags = uint8_t(GENERIC_WRITE | (atomic ? ATOMIC : 0));
    return;
  }
  if (c.r_run != s.gang.run) {
    bool others = c.r_run >= s.first_run;
    c.flags = uint8_t((c.flags & ~READ_BY_OTHERS) | (others ? READ_BY_OTHERS : 0));
    c.r_run = s.gang.run;
    c.r[0] = now;
    c.r[1].mask = 0;
    return;
  }
  auto known = [&](const Touch& r) { return !r.mask || knows(f, r.epoch, r.clk, r.rank); };
  if (known(c.r[0])) c.r[0] = now;
  else if (known(c.r[1]) || (rnd() & 1)) c.r[1] = now;
}
static uint8_t mask_of(uintptr_t p, size_t n) { return n == 1 ? uint8_t(1 << (p & 1)) : 3; }

// ---- shared memory: which bytes belong to an array ----
void give_room(size_t off, size_t n) {
  auto& s = sched();
  s.arrays.emplace_back(off, n);
  for (size_t i = 0; i < n; i += 16) s.room[(off + i) / 16] = uint8_t(std::min<size_t>(16, n - i));
}
// `off` is a multiple of 16, or the bytes do not cross one.
bool has_room(size_t off, size_t n) {
  auto& s = sched();
  if (off >= ARENA || off + n > ARENA) return false;
  for (size_t at = off; at < off + n; at = (at / 16 + 1) * 16)
    if (std::min(off + n - at, size_t(16) - at % 16) + at % 16 > s.room[at / 16]) return false;
  return true;
}
void outside_shared(size_t off, const char* what, int line) {
  auto& s = sched();
  size_t number = 0;
  for (size_t i = 1; i < s.arrays.size(); i++) if (s.arrays[i].first <= off) number = i;
  char where[64] = "dynamic shared memory";
  if (number) snprintf(where, sizeof where, "static array %zu", number);
  char by[64] = "";
  if (what) line ? snprintf(by, sizeof by, "%s (line %d): ", what, line) : snprintf(by, sizeof by, "%s: ", what);
  fail("%sshared memory access out of bounds: offset %zd of %zu bytes of %s", by, ssize_t(off - s.arrays[number].first), s.arrays[number].second, where);
}
static void shared_access(const void* p, size_t n, bool write, bool atomic, Fiber* f, const char* what) {
  auto& s = sched();
  Cta* c = cta_of(p);
  size_t off = static_cast<const uint8_t*>(p) - c->smem;
  if (!has_room(off, n)) outside_shared(off, what, 0);
  if (c != f->cta && c->live == 0) fail("access to the shared memory of block %d of the cluster, which has ended", c->index);
  if (!s.cfg.checks) return;
  Cell* cell = shared_cell(p);
  uint8_t mask = mask_of(off, n);
  for (size_t i = 0; i < (n + 1) / 2; i++, cell++) {
    Place at{true, off / 2 * 2 + 2 * i};
    if (cell->w_run != s.gang.run) {
      if (!write || atomic) fail("%s%sread of uninitialised %s", what ? what : "", what ? ": " : "", spot(at.offset).c_str());
      *cell = Cell{};
    }
    if (cell->flags & IN_FLIGHT) fail("%s%s%s of %s while an asynchronous copy is writing it", what ? what : "", what ? ": " : "", write ? "write" : "read", spot(at.offset).c_str());
    if (write && (cell->flags & BEING_READ)) fail("%s%swrite of %s while an asynchronous operation is reading it", what ? what : "", what ? ": " : "", spot(at.offset).c_str());
    check_cell(*cell, write, atomic, mask, f, at, what);
  }
}
static void global_access(const void* p, size_t n, bool write, bool atomic, Fiber* f, const char* what) {
  auto& s = sched();
  uintptr_t a = uintptr_t(p);
  uintptr_t& foreign = s.foreign[a / 4096 % s.foreign.size()];
  if (!write && foreign == a / 4096) return;
  const Alloc* al = find_alloc(a);
  if (!al) {
    if (write || !in_program(a)) fail("%zu-byte %s %p, which is neither shared memory nor in any buffer", n, write ? "store to" : "load from", p);
    foreign = a / 4096;
    return;
  }
  size_t off = a - uintptr_t(al->user);
  if (a < uintptr_t(al->user) || off + n > al->bytes) fail("global memory access out of bounds: %s of %zu bytes at offset %zd of a buffer of %zu bytes", write ? "store" : "load", n, ssize_t(off), al->bytes);
  if (!s.cfg.checks) { if (write) memset(al->init + off / 2, 1, (n + 1) / 2); return; }
  uint8_t mask = mask_of(off, n);
  for (size_t i = 0; i < (n + 1) / 2; i++) {
    Place at{false, off + 2 * i};
    uint8_t& init = al->init[off / 2 + i];
    if ((!write || atomic) && !init) fail("read of uninitialised global memory at offset %zu of a buffer of %zu bytes", at.offset, al->bytes);
    if (write) init = 1;
    check_cell(al->cells[off / 2 + i], write, atomic, mask, f, at, what);
  }
}
// Where nothing is recorded: bounds and alignment only, and quickly. False if it is not a plain hit.
static inline bool quick_access(Scheduler& s, uintptr_t a, size_t n, bool write) {
  if (s.cfg.checks || s.cfg.preempt || (a & (n - 1))) return false;
  uintptr_t in_shared = a - uintptr_t(s.arena);
  if (in_shared < ARENA) return s.room[in_shared / 16] >= in_shared % 16 + n;      // aligned, so within one 16
  if (!write && s.foreign[a / 4096 % s.foreign.size()] == a / 4096) return true;
  const Alloc* al = s.by_page[a / 4096 % s.by_page.size()];
  if (!al || a < uintptr_t(al->user) || a + n > uintptr_t(al->user) + al->bytes) return false;
  if (write) for (size_t i = 0; i < (n + 1) / 2; i++) al->init[(a - uintptr_t(al->user)) / 2 + i] = 1;
  return true;
}
void access(const void* p, size_t n, bool write, const char* what, bool atomic) {
  Fiber* f = me();
  if (!f || uintptr_t(p) - uintptr_t(f->stack) < STACK) return;
  auto& s = sched();
  s.stats.accesses++;
  if ((n & (n - 1)) == 0 && (uintptr_t(p) & (n - 1))) fail("misaligned %zu-byte %s at %p", n, write ? "store" : "load", p);
  if (in_arena(p)) shared_access(p, n, write, atomic, f, what);
  else global_access(p, n, write, atomic, f, what);
  if (s.cfg.preempt && (rnd() & 1023) < unsigned(s.cfg.preempt)) yield();
}
void vector_access(const void* p, size_t n, bool write, const void* site) {
  if (!self || uintptr_t(p) - uintptr_t(me()->stack) < STACK) return;
  if (!quick_access(sched(), uintptr_t(p), n, write)) access(p, n, write);
  if (sched().cfg.profile) log_access(p, n, write, uintptr_t(site) * 2 + write);
}
void atomic_access(void* p, size_t n) {
  auto& s = sched();
  if (s.cfg.checks && !in_arena(p)) atomic_order(p);
  access(p, n, true, nullptr, true);
}

static std::mutex g_atomics;
AtomicLock::AtomicLock() { g_atomics.lock(); }
AtomicLock::~AtomicLock() { g_atomics.unlock(); }

uint32_t poll(const uint32_t* p) {
  spin_yield();
  acquire_load(p);
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

// ---- asynchronous engines reading and writing shared memory ----
// At issue: the destination must be free, as for a write of the issuing thread; until it is done, nobody may touch it.
void async_write_begin(Cta* c, uint32_t off, uint32_t n, const char* what, int line) {
  auto& s = sched();
  if (!s.cfg.checks) return;
  Fiber* f = me();
  Cell* cell = shared_cell(c->smem + off);
  for (uint32_t i = 0; i < n / 2; i++, cell++) {
    size_t at = off + 2 * i;
    if (cell->w_run != s.gang.run) *cell = Cell{};
    if (cell->flags & IN_FLIGHT) fail("%s (line %d) overwrites %s that another copy is still writing", what, line, spot(at).c_str());
    if (cell->flags & BEING_READ) fail("%s (line %d) overwrites %s that an asynchronous operation is still reading", what, line, spot(at).c_str());
    check_cell(*cell, true, false, 3, f, {true, at}, what);
    cell->flags = IN_FLIGHT;
  }
}
// It has landed: a write of the engine, which the mbarrier hands to whoever waits for it.
void async_write_end(Cta* c, uint32_t off, uint32_t n, MbarMeta& to) {
  auto& s = sched();
  if (!s.cfg.checks) return;
  auto engine = uint16_t(s.gang.threads);
  Touch now{s.gang.epoch, ++s.gang.engine_clk, engine, 3};
  if (to.arriving.size() <= engine) to.arriving.resize(engine + 1u, 0);
  to.arriving[engine] = now.clk;
  Cell* cell = shared_cell(c->smem + off);
  for (uint32_t i = 0; i < n / 2; i++, cell++) { *cell = Cell{}; cell->w_run = s.gang.run; cell->w = now; }
}
// An ordinary write is visible to the asynchronous proxy after a fence of the writer, and to `f` if that fence is ordered before it.
static void check_proxy(const Cell& cell, Fiber* f, size_t at, const char* what, int line) {
  auto& s = sched();
  int threads = f->cta->nthreads, number = cell.w.rank % threads;
  const Fiber& writer = s.gang.ctas[cell.w.rank / threads]->fibers[number];
  auto fence = std::upper_bound(writer.fences.begin(), writer.fences.end(), cell.w.clk, [](uint32_t clk, const Fence& x) { return clk < x.clk; });
  if (fence == writer.fences.end()) fail("%s (line %d) reads %s that thread %d wrote with ordinary stores and no fence.proxy.async since", what, line, spot(at).c_str(), number);
  if (!knows(f, fence->epoch, fence->clk, cell.w.rank)) fail("%s (line %d) reads %s that thread %d wrote: no barrier after its fence.proxy.async", what, line, spot(at).c_str(), number);
}
void async_read(Cta* c, uint32_t off, uint32_t n, const char* what, Reading when, int line) {
  auto& s = sched();
  if (!has_room(off, n)) outside_shared(off, what, line);
  if (!s.cfg.checks) return;
  Fiber* f = me();
  Cell* cell = shared_cell(c->smem + off);
  for (uint32_t i = 0; i < n / 2; i++, cell++) {
    size_t at = off + 2 * i;
    if (cell->w_run != s.gang.run) fail("%s (line %d) reads uninitialised %s", what, line, spot(at).c_str());
    if (cell->flags & IN_FLIGHT) fail("%s (line %d) reads %s while an asynchronous copy is writing it", what, line, spot(at).c_str());
    if (cell->flags & GENERIC_WRITE) check_proxy(*cell, f, at, what, line);
    if (when == Reading::Ended) {
      check_cell(*cell, false, false, 3, f, {true, at}, what);
      cell->flags &= uint8_t(~BEING_READ);
    } else {
      if (!ordered(f, cell->w_run, cell->w)) race(false, {true, at}, true, cell->w.rank, true, what);
      cell->flags |= BEING_READ;
    }
  }
}
// A thread's cp.async: its own write, not done before it waits.
void copy_begins(Fiber*, void* dst, uint32_t n) {
  Cell* cell = shared_cell(dst);
  for (uint32_t i = 0; i < n / 2; i++) cell[i].flags |= IN_FLIGHT;
}
void copy_ends(Fiber* f, void* dst, uint32_t n) {
  Cell* cell = shared_cell(dst);
  for (uint32_t i = 0; i < n / 2; i++) {
    cell[i].flags &= uint8_t(~IN_FLIGHT);
    cell[i].w = {sched().gang.epoch, f->clk, uint16_t(f->rank), 3};
  }
}
// Bytes that hold a barrier: initialised, and no data to race on.
void reset_shared_cells(const void* p, size_t n) {
  auto& s = sched();
  if (!s.cfg.checks) return;
  Cell* cell = shared_cell(p);
  for (size_t i = 0; i < n / 2; i++, cell++) { *cell = Cell{}; cell->w_run = s.gang.run; }
}
}  // namespace emu

using namespace emu;
extern "C" {
// The symbols of -fsanitize=thread.
#define HOOK(name, n, write) \
  void __tsan_##name(void* p) { \
    if (!self) return; \
    if (uintptr_t(p) - uintptr_t(self) < sizeof(Thread) || uintptr_t(p) - uintptr_t(&self) < sizeof self) return; /* threadIdx and its like */ \
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
