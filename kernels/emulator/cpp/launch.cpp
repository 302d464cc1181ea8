// The launch: what is refused, blocks and fibers made ready, gangs run one after the other, faults of memory caught.
#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "runtime.hpp"

namespace emu {
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
Scheduler::~Scheduler() {
  if (stacks) munmap(stacks, nstacks * STACK);
  if (arena_mapping) munmap(arena_mapping, ARENA * (MAX_CLUSTER + 1));
  if (shared_cells) munmap(shared_cells, ARENA * MAX_CLUSTER / 2 * sizeof(Cell));
}
static bool reserve(Scheduler& s, int threads) {
  if (!s.arena) {
    void* p = mmap(nullptr, ARENA * (MAX_CLUSTER + 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    void* cells = mmap(nullptr, ARENA * MAX_CLUSTER / 2 * sizeof(Cell), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || cells == MAP_FAILED) return false;
    s.arena_mapping = p;
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
  f.clk = 1; f.vc.clear(); f.fences.clear(); f.mbar_fences.clear();
  f.registers = c->launch_registers; f.set_registers = 0;
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
  c->set_registers.clear(); c->set_registers.resize(c->wg.size()); c->register_waiters.clear();
  c->launch_registers = std::min(256, 65536 / int((threads + 31) / 32 * 32) / 8 * 8); c->free_registers = 0;
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
  for (auto& c : s.gang.ctas) if (std::string why = check_registers(c.get()); !why.empty()) return leftover(why.c_str());
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
