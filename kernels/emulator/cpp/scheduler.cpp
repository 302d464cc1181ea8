// Fibers, the order in which they run, everything at which threads meet, and the launch.
#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
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
static void* first_frame(char* stack_end, void (*entry)()) {
  auto* sp = reinterpret_cast<uint64_t*>(stack_end);
  *--sp = 0;
  *--sp = uint64_t(entry);
  for (int k = 0; k < 6; k++) *--sp = 0;
  return sp;
}
// Nothing returns to the frames that were there: `to` begins at the stack's end.
static void redirect(ucontext_t* c, char* stack_end, void (*to)()) {
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
static void* first_frame(char* stack_end, void (*entry)()) {
  auto* sp = reinterpret_cast<uint64_t*>(stack_end) - 20;
  for (int k = 0; k < 20; k++) sp[k] = 0;
  sp[11] = uint64_t(entry);
  return sp;
}
static void redirect(ucontext_t* c, char* stack_end, void (*to)()) {
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
  if (!current) current = new Scheduler;
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
static Fiber* pick() {
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
      auto& e = where[b];
      if (!e.first++) e.second = f.linear;
    }
  std::string m = "deadlock: " + std::to_string(done) + " threads finished";
  for (auto& [k, v] : where) m += "; " + std::to_string(v.first) + " (first: thread " + std::to_string(v.second) + ") wait in " + k;
  fail("%s", m.c_str());
}
static void run_next(Fiber* f) {  // f gives up the processor; its state is set already
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
void setmaxnreg(int registers, bool, const char* file, int line) {
  if (registers < 24 || registers > 256 || registers % 8) fail("setmaxnreg at %s:%d: %d is not a multiple of 8 in 24..256", base_name(file), line, registers);
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

// ---- launch ----
static void fiber_main() {
  auto& s = sched();
  s.kernel->entry(s.args);
  Fiber* f = me();
  if (!f->cp.empty() && s.cfg.checks) fail("the thread ended with a cp.async not waited for");
  f->state = State::Done;
  s.gang.live--;
  f->cta->live--;
  if (--f->cta->warp_live[f->linear / 32] == 0 && s.cfg.profile) flush_profile(f->cta, f->linear / 32);
  run_next(f);
  __builtin_unreachable();
}
static void fault() {
  if (me()->fault - uintptr_t(me()->stack) < 4096) fail("the thread's stack of %zu KiB overflowed: too much local memory", STACK / 1024);
  fail("memory fault: address %p is outside every buffer", reinterpret_cast<void*>(me()->fault));
}
static struct sigaction old_segv, old_bus;
static void on_fault(int sig, siginfo_t* info, void* context) {
  Fiber* f = me();
  if (!f || !own_scheduler().inside) {  // not ours: the next occurrence goes where it went before
    sigaction(sig, sig == SIGBUS ? &old_bus : &old_segv, nullptr);
    return;
  }
  f->fault = uintptr_t(info->si_addr);
  redirect(static_cast<ucontext_t*>(context), f->stack + STACK, fault);
}
static void catch_faults() {
  static bool installed = [] {
    struct sigaction sa {};
    sa.sa_sigaction = on_fault;
    sa.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &sa, &old_segv);
    sigaction(SIGBUS, &sa, &old_bus);
    return true;
  }();
  (void)installed;
  static __thread char* stack = nullptr;
  stack_t now{};
  sigaltstack(nullptr, &now);
  if (!stack || now.ss_flags & SS_DISABLE) {
    stack = static_cast<char*>(malloc(65536));
    stack_t ss{stack, 0, 65536};
    sigaltstack(&ss, nullptr);
  }
}
static bool reserve(Scheduler& s, int threads) {
  if (!s.arena) {
    void* p = mmap(nullptr, ARENA * (MAX_CLUSTER + 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    void* cells = mmap(nullptr, ARENA * MAX_CLUSTER / 2 * sizeof(Cell), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || cells == MAP_FAILED) return false;
    s.arena = reinterpret_cast<uint8_t*>((uintptr_t(p) + ARENA - 1) / ARENA * ARENA);
    s.shared_cells = static_cast<Cell*>(cells);
  }
  if (s.nstacks < threads) {
    if (s.stacks) munmap(s.stacks, s.nstacks * STACK);
    void* p = mmap(nullptr, threads * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    s.nstacks = 0;
    s.stacks = nullptr;
    if (p == MAP_FAILED) return false;
    s.stacks = static_cast<char*>(p);
    s.nstacks = threads;
    for (int i = 0; i < threads; i++) mprotect(s.stacks + i * STACK, 4096, PROT_NONE);
  }
  return true;
}
static uint64_t next_run() {
  static uint64_t runs = 0;
  return __atomic_add_fetch(&runs, 1, __ATOMIC_RELAXED);
}
static void init_fiber(Scheduler& s, Cta* c, int t, EmuDim grid, EmuDim block, EmuDim bid) {
  Fiber& f = c->fibers[t];
  f.linear = t; f.lane = t % 32; f.cta = c;
  f.tid = {t % block.x, t / block.x % block.y, t / block.x / block.y};
  f.bid = {bid.x, bid.y, bid.z};
  f.bdim = {block.x, block.y, block.z};
  f.gdim = {grid.x, grid.y, grid.z};
  f.rank = c->index * c->nthreads + t;
  f.warp = c->index * ((c->nthreads + 31) / 32) + t / 32;
  f.cp.clear(); f.wg_group_end.clear(); f.log.clear(); f.visits.clear();
  f.cp_group = f.wg_issued = f.wg_retired = f.bulk_group = 0;
  f.wg_fenced = false;
  f.clk = 1; f.vc.clear(); f.fences.clear();
  f.stack = s.stacks + size_t(f.rank) * STACK;
  f.sp = first_frame(f.stack + STACK, fiber_main);
  if (t % 32 == 0) s.warp_base[f.warp] = &f;
}
static void init_cta(Scheduler& s, unsigned i, unsigned threads, EmuDim grid, EmuDim block, unsigned number) {
  if (s.gang.ctas.size() <= i) s.gang.ctas.push_back(std::make_unique<Cta>());
  Cta* c = s.gang.ctas[i].get();
  c->index = int(i); c->nthreads = c->live = int(threads);
  c->smem = s.arena + i * ARENA;
  memset(c->smem + SHARED_BASE, 0xff, std::min<size_t>(ARENA - SHARED_BASE, s.dynamic + DEFAULT_LIMIT + 64 * RED_ZONE));
  for (auto& b : c->bar) { b.arrived = 0; b.waiters.clear(); }
  c->warps.resize((threads + 31) / 32);
  c->warp_live.resize(c->warps.size());
  for (size_t w = 0; w < c->warps.size(); w++) c->warp_live[w] = std::min(32, int(threads) - int(w) * 32);
  for (auto& w : c->warps) for (auto& x : w) x.used = false;
  c->wg.clear(); c->wg.resize((threads + 127) / 128);
  c->mbar.clear(); c->stores.clear();
  c->fibers.resize(threads);
  EmuDim bid{number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
  for (unsigned t = 0; t < threads; t++) init_fiber(s, c, int(t), grid, block, bid);
}
static void run_gang(unsigned nctas, EmuDim grid, EmuDim block, const unsigned* order) {
  auto& s = sched();
  unsigned threads = block.x * block.y * block.z, warps = (threads + 31) / 32;
  s.gang.ctas.resize(std::min<size_t>(s.gang.ctas.size(), nctas));
  s.gang.threads = int(nctas * threads); s.gang.live = s.gang.threads;
  s.gang.epoch = 1; s.gang.run = next_run(); s.gang.learnt.clear(); s.gang.fences.clear(); s.gang.engine_clk = 0;
  s.gang.cluster_bar.arrived = 0; s.gang.cluster_bar.waiters.clear();
  s.ready_lanes.assign(nctas * warps, 0);
  s.ready_warps.assign(nctas * warps / 64 + 1, 0);
  s.warp_base.assign(nctas * warps, nullptr);
  s.priority.resize(nctas * warps);
  for (auto& p : s.priority) p = rnd();
  s.count = s.cursor = 0;
  s.async.clear();
  for (unsigned i = 0; i < nctas; i++) init_cta(s, i, threads, grid, block, order[i]);
  for (auto& c : s.gang.ctas) for (int i = 0; i < c->nthreads; i++) make_ready(&c->fibers[s.cfg.schedule == 1 ? c->nthreads - 1 - i : i]);
  Fiber* n = pick();
  self = n;
  emu_switch(&s.main_sp, n->sp);
  self = nullptr;
  if (s.failed) return;
  auto leftover = [&](const char* what) { s.failed = true; s.error = std::string("kernel ") + s.name + ": " + what; };
  for (auto& c : s.gang.ctas) if (!finish_stores(c.get())) return leftover("a thread ended with a TMA store not waited for");
  if (!s.async.empty()) return leftover("a block ended with asynchronous copies in flight");
}
std::string refuse(const Kernel& k, EmuDim grid, EmuDim block, EmuDim cluster, uint32_t smem, const uint32_t* sizes, int nargs, const EmuConfig& cfg) {
  uint64_t threads = uint64_t(block.x) * block.y * block.z, blocks = uint64_t(grid.x) * grid.y * grid.z, per = uint64_t(cluster.x) * cluster.y * cluster.z;
  auto n = [](uint64_t x) { return std::to_string(x); };
  if (nargs != k.nargs) return n(nargs) + " arguments given, it takes " + n(k.nargs);
  for (int i = 0; i < nargs; i++) if (sizes[i] != k.sizes[i]) return "argument " + n(i) + " has " + n(sizes[i]) + " bytes, it takes " + n(k.sizes[i]);
  if (threads == 0 || blocks == 0) return "an empty grid or block";
  if (grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffff) return "grid (" + n(grid.x) + "," + n(grid.y) + "," + n(grid.z) + ") passes the hardware's limits (2^31-1, 65535, 65535)";
  if (threads > 1024 || block.x > 1024 || block.y > 1024 || block.z > 64) return "block (" + n(block.x) + "," + n(block.y) + "," + n(block.z) + ") passes the hardware's limits (1024, 1024, 64; 1024 threads)";
  if (threads > uint64_t(k.max_threads)) return "a block of " + n(threads) + " threads exceeds its launch bound of " + n(k.max_threads);
  if (std::string why = shared_excess(__atomic_load_n(&k.static_bytes, __ATOMIC_RELAXED), smem, cfg); !why.empty()) return why;
  if (per == 0 || per > 16 || grid.x % cluster.x || grid.y % cluster.y || grid.z % cluster.z) return "the cluster does not divide the grid, or has more than 16 blocks";
  if (per > 8 && !cfg.large_clusters) return "a cluster of " + n(per) + " blocks; more than 8 must be asked for";
  if (cfg.cooperative && per > 1) return "a cooperative launch of clusters, which is not modelled";
  if (cfg.cooperative && blocks * threads > 65535) return "a cooperative grid of " + n(blocks * threads) + " threads; the emulator holds 65535";
  if (cfg.cooperative && blocks > MAX_CLUSTER) return "a cooperative grid of " + n(blocks) + " blocks; the emulator holds " + n(MAX_CLUSTER);
  return "";
}
static std::vector<unsigned> block_order(EmuDim grid, EmuDim cluster, const EmuConfig& cfg) {
  // Blocks of one cluster stand next to each other; the clusters run in the schedule's order.
  std::vector<unsigned> order;
  unsigned gx = grid.x / cluster.x, gy = grid.y / cluster.y, gz = grid.z / cluster.z, groups = gx * gy * gz;
  std::vector<unsigned> group(groups);
  for (unsigned i = 0; i < groups; i++) group[i] = cfg.schedule == 1 ? groups - 1 - i : i;
  if (cfg.schedule >= 2) for (unsigned i = groups; i > 1; i--) std::swap(group[i - 1], group[rnd() % i]);
  for (unsigned g : group)
    for (unsigned z = 0; z < cluster.z; z++) for (unsigned y = 0; y < cluster.y; y++) for (unsigned x = 0; x < cluster.x; x++) {
      unsigned bx = g % gx * cluster.x + x, by = g / gx % gy * cluster.y + y, bz = g / gx / gy * cluster.z + z;
      order.push_back((bz * grid.y + by) * grid.x + bx);
    }
  return order;
}
}  // namespace emu

using namespace emu;
extern "C" int emu_launch(const char* name, EmuDim grid, EmuDim block, EmuDim cluster, uint32_t smem, void** args, const uint32_t* sizes, int nargs, const EmuConfig* cfg, EmuStats* stats) {
  auto& s = own_scheduler();
  s.failed = false;
  s.error.clear();
  auto no = [&](const std::string& m) { s.error = "kernel " + std::string(name) + ": " + m; return 1; };
  auto it = kernels().find(name);
  if (it == kernels().end()) return no("there is no kernel of this name");
  std::string why = refuse(it->second, grid, block, cluster, smem, sizes, nargs, *cfg);
  if (!why.empty()) return no(why);
  unsigned total = grid.x * grid.y * grid.z, per = cfg->cooperative ? total : cluster.x * cluster.y * cluster.z;
  if (!reserve(s, int(per * block.x * block.y * block.z))) return no("out of memory for the threads' stacks");
  catch_faults();
  refresh_allocs();
  s.cfg = *cfg;
  s.rng = (cfg->seed + 1) * 0x9e3779b97f4a7c15ull | 1;
  s.kernel = &it->second; s.name = it->first.c_str(); s.args = args;
  s.dynamic = smem; s.statics.clear(); s.static_end = SHARED_BASE + smem; s.static_bytes = 0;
  s.room.fill(0); s.arrays.clear();
  give_room(SHARED_BASE, smem);
  s.stats = {}; s.steps = 0; s.released.clear();
  s.first_run = next_run();
  s.inside = true;
  auto order = block_order(grid, cluster, *cfg);
  unsigned groups = total / per, parts = std::max(1, cfg->parts), first = uint64_t(groups) * cfg->part / parts, last = uint64_t(groups) * (cfg->part + 1) / parts;
  for (unsigned g = first; g < last && !s.failed; g++) run_gang(per, grid, block, &order[g * per]);
  s.inside = false;
  if (!s.failed) __atomic_store_n(&it->second.static_bytes, s.static_bytes, __ATOMIC_RELAXED);
  if (stats) *stats = s.stats;
  return s.failed ? 1 : 0;
}
extern "C" const char* emu_last_error() { return own_scheduler().error.c_str(); }
extern "C" const char* emu_kernel_name(int i) {
  for (auto& [name, k] : kernels()) if (i-- == 0) return name.c_str();
  return nullptr;
}
extern "C" int emu_load_kernels(const char* path) {
  if (dlopen(path, RTLD_NOW | RTLD_LOCAL)) return 0;
  own_scheduler().error = dlerror();
  return 1;
}
