// Fibers, the order in which they run, and everything at which threads meet.
#include <ucontext.h>

#include <cstdarg>

#include "runtime.hpp"

// ---- the switch: callee-saved registers on the old stack, then the new stack ----
#if defined(__x86_64__)
asm(R"(
.text
.globl emu_switch
.type emu_switch,@function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch,.-emu_switch
)");
void* first_frame(char* stack_end, void (*entry)()) {
  auto* sp = reinterpret_cast<uint64_t*>(stack_end);
  *--sp = 0;
  *--sp = uint64_t(entry);
  for (int k = 0; k < 6; k++) *--sp = 0;
  return sp;
}
// Nothing returns to the frames that were there: `to` begins at the stack's end.
void redirect(ucontext_t* c, char* stack_end, void (*to)()) {
  auto& sp = c->uc_mcontext.gregs[REG_RSP];
  sp = greg_t(stack_end) - 8;
  c->uc_mcontext.gregs[REG_RIP] = greg_t(to);
}
#elif defined(__aarch64__)
asm(R"(
.text
.globl emu_switch
.type emu_switch,%function
emu_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emu_switch,.-emu_switch
)");
void* first_frame(char* stack_end, void (*entry)()) {
  auto* sp = reinterpret_cast<uint64_t*>(stack_end) - 20;
  for (int k = 0; k < 20; k++) sp[k] = 0;
  sp[11] = uint64_t(entry);
  return sp;
}
void redirect(ucontext_t* c, char* stack_end, void (*to)()) {
  c->uc_mcontext.sp = uint64_t(stack_end);
  c->uc_mcontext.pc = uint64_t(to);
}
#else
#error "the emulator knows x86-64 and aarch64"
#endif
extern "C" void emu_switch(void** save, void* load);

namespace emu {
__thread Thread* self = nullptr;
__thread Scheduler* current = nullptr;
Scheduler& own_scheduler() {
  // A thread that ends takes its thousands of mappings with it: a process may have 65,530.
  struct Owner {
    std::unique_ptr<Scheduler> scheduler = std::make_unique<Scheduler>();
    ~Owner() { current = nullptr; }
  };
  if (!current) {
    static thread_local Owner owner;
    current = owner.scheduler.get();
  }
  return *current;
}
uint32_t rnd() {
  auto& x = sched().rng;
  x ^= x << 13; x ^= x >> 7; x ^= x << 17;
  return uint32_t(x >> 32);
}
const char* base_name(const char* file) { const char* s = strrchr(file, '/'); return s ? s + 1 : file; }

std::map<std::string, Kernel>& kernels() { static std::map<std::string, Kernel> k; return k; }
void register_kernel(const char* name, void (*entry)(void**), int nargs, const uint32_t* sizes, int max_threads) {
  kernels()[name] = {entry, nargs, std::vector<uint32_t>(sizes, sizes + nargs), max_threads, 0};
}

// ---- who runs next ----
void make_ready(Fiber* f) {
  auto& s = sched();
  f->state = State::Ready;
  s.ready_lanes[f->warp] |= 1u << f->lane;
  s.ready_warps[f->warp / 64] |= 1ull << (f->warp % 64);
  s.count++;
}
static size_t pick_warp(Scheduler& s) {
  size_t n = s.ready_lanes.size();
  if (s.cfg.schedule == 3) {  // a random priority per warp, reshuffled now and then: one warp runs far ahead of the others
    if (!(rnd() & 255)) for (auto& p : s.priority) p = rnd();
    size_t best = SIZE_MAX;
    for (size_t i = 0; i < s.ready_warps.size(); i++)
      for (uint64_t b = s.ready_warps[i]; b; b &= b - 1) {
        size_t w = i * 64 + __builtin_ctzll(b);
        if (best == SIZE_MAX || s.priority[w] > s.priority[best]) best = w;
      }
    return best;
  }
  size_t start = s.cfg.schedule == 2 ? rnd() % n : s.cursor;
  for (size_t i = 0; i < n; i++) {
    size_t w = s.cfg.schedule == 1 ? (start + n - i) % n : (start + i) % n;
    if (s.ready_lanes[w]) return s.cursor = w;
  }
  return 0;
}
Fiber* pick() {
  auto& s = sched();
  while (!s.async.empty() && (s.count == 0 || (s.cfg.asynchrony == 2 && (rnd() & 7) == 0))) {
    size_t i = s.cfg.asynchrony == 2 ? rnd() % s.async.size() : 0;
    auto fn = std::move(s.async[i]);
    s.async.erase(s.async.begin() + i);
    fn();
  }
  if (!s.count) return nullptr;
  size_t w = pick_warp(s);
  uint32_t lanes = s.ready_lanes[w];
  int lane = __builtin_ctz(lanes);
  if (s.cfg.schedule == 1) lane = 31 - __builtin_clz(lanes);
  if (s.cfg.schedule >= 2) {
    int r = rnd() & 31;
    uint32_t turned = lanes >> r | (r ? lanes << (32 - r) : 0);
    lane = (__builtin_ctz(turned) + r) & 31;
  }
  s.ready_lanes[w] &= ~(1u << lane);
  if (!s.ready_lanes[w]) s.ready_warps[w / 64] &= ~(1ull << (w % 64));
  s.count--;
  return s.warp_base[w] + lane;
}
[[noreturn]] static void to_main() {
  void* dropped;
  self = nullptr;
  emu_switch(&dropped, sched().main_sp);
  __builtin_unreachable();
}
void fail(const char* fmt, ...) {
  auto& s = sched();
  char text[1024];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  if (!s.inside) { fprintf(stderr, "emulator: %s\n", text); abort(); }
  std::string who = std::string("kernel ") + s.name;
  if (self) {
    char w[96];
    snprintf(w, sizeof w, ", block (%u,%u,%u), thread %d", self->bid.x, self->bid.y, self->bid.z, self->linear);
    who += w;
  }
  if (!s.failed) s.error = who + ": " + text;
  s.failed = true;
  to_main();
}
static void deadlock() {
  std::map<std::string, std::pair<int, int>> where;
  int done = 0;
  for (auto& c : sched().gang.ctas)
    for (auto& f : c->fibers) {
      if (f.state == State::Done) { done++; continue; }
      std::string b = std::string(f.what) + " at " + base_name(f.file) + ":" + std::to_string(f.line);
      if (!strcmp(f.what, "mbarrier wait")) b += describe_mbar(f.waits_for);
      if (!strcmp(f.what, "setmaxnreg")) b += " (" + std::to_string(c->free_registers) + " registers of the block's " + std::to_string(c->launch_registers * c->nthreads) + " are free)";
      auto& e = where[b];
      if (!e.first++) e.second = f.linear;
    }
  std::string m = "deadlock: " + std::to_string(done) + " threads finished";
  for (auto& [k, v] : where) m += "; " + std::to_string(v.first) + " (first: thread " + std::to_string(v.second) + ") wait in " + k;
  fail("%s", m.c_str());
}
void run_next(Fiber* f) {  // f gives up the processor; its state is set already
  auto& s = sched();
  Fiber* n = pick();
  if (!n) {
    if (s.gang.live == 0) to_main();
    deadlock();
  }
  if (n == f) return;
  s.stats.switches++;
  self = n;
  emu_switch(&f->sp, n->sp);
}
void block_on(const char* what, const char* file, int line) {
  Fiber* f = me();
  f->state = State::Waiting; f->what = what; f->file = file; f->line = line;
  run_next(f);
}
void yield() {
  auto& s = sched();
  if (!s.count && s.async.empty()) return;
  make_ready(me());
  run_next(me());
}
void spin_yield() {  // a spinning warp must lose its turn, else it starves the thread it waits for
  auto& s = sched();
  Fiber* f = me();
  if (++s.steps > 20'000'000) fail("a thread polled 20 million times: nothing will ever change what it waits for");
  size_t n = s.ready_lanes.size();
  s.priority[f->warp] = 0;
  s.cursor = (s.cfg.schedule == 1 ? f->warp + n - 1 : f->warp + 1) % n;
  yield();
}

// ---- meeting points ----
static uint32_t live_mask(Fiber* f) {
  int n = f->cta->nthreads - (f->linear - f->lane);
  return n >= 32 ? 0xffffffffu : (1u << n) - 1;
}
void warp_collective(uint32_t mask, int kind, void* args, CollFn fn, const char* what, const char* file, int line) {
  auto& s = sched();
  Fiber* f = me();
  if (!(mask >> f->lane & 1)) fail("%s at %s:%d: the calling lane %d is not in mask %08x", what, base_name(file), line, f->lane, mask);
  if (mask & ~live_mask(f)) fail("%s at %s:%d: mask %08x names lanes that the block of %d threads does not have", what, base_name(file), line, mask, f->cta->nthreads);
  auto& slots = f->cta->warps[f->linear / 32];
  Collective *c = nullptr, *empty = nullptr;
  for (auto& x : slots) {
    if (x.used && (x.mask & mask)) c = &x;
    else if (!x.used && !empty) empty = &x;
  }
  if (!c) {
    c = empty;
    c->used = true; c->mask = mask; c->arrived = 0; c->kind = kind; c->file = file; c->line = line;
  } else if (c->mask != mask || c->kind != kind || c->line != line || c->file != file) {
    fail("%s (mask %08x, line %d) meets other lanes of its warp in a different collective (mask %08x, line %d)", what, mask, line, c->mask, c->line);
  }
  c->args[f->lane] = args;
  c->arrived |= 1u << f->lane;
  if (c->arrived != mask) return block_on(what, file, line);
  if (fn) fn(c->args, mask);
  c->used = false;
  Fiber* base = f - f->lane;
  if (s.cfg.checks && kind == 0) {  // __syncwarp orders memory; shuffles and the rest do not
    Clock all;
    for (int l = 0; l < 32; l++) if (mask >> l & 1) release(base + l, all);
    for (int l = 0; l < 32; l++) if (mask >> l & 1) acquire(base + l, all);
  }
  if (s.cfg.profile && __builtin_popcount(mask) == f->cta->warp_live[f->linear / 32]) flush_profile(f->cta, f->linear / 32);
  for (int l = 0; l < 32; l++) if ((mask >> l & 1) && l != f->lane) make_ready(base + l);
  if (s.cfg.schedule >= 2) yield();
}
void sync_warp(uint32_t mask, const char* file, int line) { warp_collective(mask & live_mask(me()), 0, nullptr, nullptr, "__syncwarp", file, line); }

static void open_barrier(Barrier& b, bool whole) {
  auto& s = sched();
  b.arrived = 0;
  // Only where every lane of a warp stands at the same place may its requests be counted.
  if (s.cfg.profile && whole) for (size_t w = 0; w < me()->cta->warps.size(); w++) flush_profile(me()->cta, int(w));
  std::vector<Fiber*> waiters;
  waiters.swap(b.waiters);
  for (Fiber* x : waiters) make_ready(x);
  waiters.clear();
  b.waiters.swap(waiters);
  if (s.cfg.schedule >= 2) yield();
}
void barrier(int id, int count, bool wait, const char* file, int line) {
  auto& s = sched();
  Fiber* f = me();
  Cta* c = f->cta;
  if (id < 0 || id > 15) fail("barrier %d at %s:%d: a block has barriers 0 to 15", id, base_name(file), line);
  Barrier& b = c->bar[id];
  bool whole = count < 0;
  if (whole) count = c->nthreads;
  if (count % 32 && !whole) fail("barrier %d at %s:%d: %d threads are not whole warps", id, base_name(file), line, count);
  if (b.arrived == 0) { b.expected = count; b.file = file; b.line = line; b.vc.clear(); }
  else if (b.expected != count) fail("barrier %d: line %d expects %d threads, line %d expected %d", id, line, count, b.line, b.expected);
  else if (id == 0 && (b.line != line || b.file != file)) fail("threads of one block meet in different __syncthreads (lines %d and %d)", b.line, line);
  // A barrier of all threads there are begins a new epoch: everything before it is ordered, nothing need be joined.
  bool all = s.gang.threads == count;
  if (s.cfg.checks && !(all && wait)) release(f, b.vc);
  if (++b.arrived < b.expected) {
    if (wait) { b.waiters.push_back(f); block_on(id ? "named barrier" : "__syncthreads", file, line); }
    return;
  }
  if (s.cfg.checks) {
    if (all && wait && b.waiters.size() + 1 == size_t(count)) s.gang.epoch++;
    else {
      if (all) for (Fiber* x : b.waiters) release(x, b.vc);
      if (all && wait) release(f, b.vc);
      for (Fiber* x : b.waiters) acquire(x, b.vc);
      if (wait) acquire(f, b.vc);
    }
  }
  open_barrier(b, wait && b.waiters.size() + 1 == size_t(c->nthreads));
}
void cluster_sync(const char* file, int line) {
  auto& s = sched();
  if (s.cfg.cooperative) fail("cluster barrier at %s:%d: clusters in a cooperative launch are not modelled", base_name(file), line);
  Barrier& b = s.gang.cluster_bar;
  if (++b.arrived < s.gang.threads) { b.waiters.push_back(me()); return block_on("cluster barrier", file, line); }
  if (s.cfg.checks) s.gang.epoch++;
  open_barrier(b, false);
}
unsigned cluster_rank() { return sched().cfg.cooperative ? 0 : unsigned(me()->cta->index); }
void* map_shared_rank(const void* p, unsigned rank, const char* file, int line) {
  auto& s = sched();
  size_t blocks = s.cfg.cooperative ? 1 : s.gang.ctas.size();
  if (rank >= blocks) fail("mapa at %s:%d: rank %u of a cluster of %zu blocks", base_name(file), line, rank, blocks);
  if (s.cfg.cooperative) return const_cast<void*>(p);
  if (!in_arena(p)) fail("mapa at %s:%d: the address is not in shared memory", base_name(file), line);
  return s.arena + rank * ARENA + (static_cast<const uint8_t*>(p) - s.arena) % ARENA;
}

// ---- shared memory ----
// DYNAMIC_SHARED is aligned to 1024 bytes: nvcc pads the static arrays before it, and a driver counts that.
std::string shared_excess(size_t fixed, size_t dynamic, const EmuConfig& cfg) {
  if (dynamic) fixed = (fixed + 1023) / 1024 * 1024;
  size_t limit = cfg.default_shared ? DEFAULT_LIMIT : SHARED_LIMIT;
  if (fixed + dynamic <= limit) return "";
  return std::to_string(fixed + dynamic) + " bytes of shared memory; " + std::to_string(limit) + " is the limit" + (cfg.default_shared ? " unless more is asked for" : "");
}
void* static_shared(const void* tag, size_t bytes, size_t align) {
  auto& s = sched();
  Cta* c = me()->cta;
  auto [it, fresh] = s.statics.try_emplace(tag, 0);
  if (fresh) {  // static arrays live above the dynamic part, so that their sizes need not be known beforehand
    align = std::max<size_t>(align, 16);
    it->second = (s.static_end + RED_ZONE + align - 1) / align * align;
    s.static_end = it->second + bytes;
    s.static_bytes += (bytes + 15) / 16 * 16;
    if (s.static_bytes > DEFAULT_LIMIT) fail("%zu bytes of static shared memory; 48 KiB is the limit", s.static_bytes);
    std::string why = shared_excess(s.static_bytes, s.dynamic, s.cfg);
    if (why.empty() && s.static_end > ARENA) why = "too many arrays in shared memory for the emulator";
    if (!why.empty()) fail("%s", why.c_str());
    give_room(it->second, bytes);
  }
  return c->smem + it->second;
}
void* dynamic_shared() { return me()->cta->smem + SHARED_BASE; }
}  // namespace emu
