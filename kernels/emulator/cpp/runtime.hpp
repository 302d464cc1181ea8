// The emulator's own state: fibers, blocks, shadow memory. Not seen by kernels.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "api.hpp"
#include "cuda_emulation.hpp"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

// scheduler.cpp: a new stack's first frame, and the frame that a signal returns to.
void* first_frame(char* stack_end, void (*entry)());
void redirect(ucontext_t* c, char* stack_end, void (*to)());
extern "C" void emu_switch(void** save, void* load);

namespace emu {
constexpr size_t STACK = 64 * 1024;
// A block's shared memory: addresses are offsets into it, 18 bits, so that matrix descriptors decode as on the chip.
// Between arrays lie gaps that no access may touch.
constexpr size_t ARENA = 256 * 1024, SHARED_BASE = 1024, SHARED_LIMIT = 232448, DEFAULT_LIMIT = 49152, RED_ZONE = 256;
constexpr int MAX_CLUSTER = 64;

using Clock = std::vector<uint32_t>;      // by thread of the gang: every access up to this is known

enum class State : uint8_t { Ready, Waiting, Done };
struct Cta;
struct CpAsync { void* dst; const void* src; int bytes, src_bytes, group; bool done; };
struct Fence { uint32_t epoch, clk; };
struct Access { uint32_t visit, bytes; uintptr_t addr; bool write; };
struct Fiber : Thread {
  void* sp; char* stack; State state; Cta* cta; const char* what; const char* file; int line; uintptr_t fault;
  int rank;                      // in the gang: block * threads + linear
  uint32_t warp;                 // in the gang
  uint32_t clk; Clock vc; std::vector<Fence> fences;      // each fence.proxy.async
  uint64_t* waits_for;           // the mbarrier
  std::vector<CpAsync> cp; int cp_group;
  int wg_issued, wg_retired; bool wg_fenced; std::vector<int> wg_group_end;
  std::vector<Fence> mbar_fences;          // each fence.mbarrier_init
  int registers; size_t set_registers;     // owned; how many setmaxnreg it ran
  int bulk_group;
  std::unordered_map<uintptr_t, uint32_t> visits; std::vector<std::pair<uintptr_t, Access>> log;
};
struct Collective { uint32_t mask, arrived; int kind; void* args[32]; const char* file; int line; bool used; };
struct Barrier { int arrived = 0, expected = 0; const char* file = ""; int line = 0; std::vector<Fiber*> waiters; Clock vc; };
struct WgOp { uint64_t da, db; int n; bool scale, ta, tb, from_regs; Operand type; int deposited, root; std::vector<uint32_t> a_regs; int reader = -1; uint32_t read_clk = 0; };
struct WgPtr { float* d; int n; };
struct Warpgroup {
  std::vector<WgOp> ops; std::vector<Fiber*> waiters; size_t executed = 0;
  std::map<int, std::vector<float>> shadow; std::vector<std::array<WgPtr, 128>> ptr;
};
struct BulkStore;
// What those who arrived in this phase, and in all complete ones, knew.
// And who initialised it, for whom only fence.mbarrier_init speaks to the asynchronous proxy and to other blocks.
struct MbarMeta { Clock arriving, done; std::vector<Fiber*> waiters; int init_rank = -1; uint32_t init_clk = 0; };
// One setmaxnreg of a warpgroup, and how many of its threads have run it.
struct SetRegisters { int registers; bool increase; const char* file; int line; int threads; };
struct Cta {
  uint8_t* smem; int nthreads, index, live; std::vector<int> warp_live; std::vector<Fiber> fibers; std::vector<std::array<Collective, 4>> warps; Barrier bar[16];
  std::vector<std::vector<SetRegisters>> set_registers;    // by warpgroup
  int free_registers = 0, launch_registers = 0; std::vector<Fiber*> register_waiters;
  std::vector<Warpgroup> wg; std::unordered_map<uint64_t*, MbarMeta> mbar; std::vector<std::shared_ptr<BulkStore>> stores;
};

// Who touched two bytes of memory last. `run` numbers gangs over the whole process, so stale cells need no clearing.
// Two readers that know nothing of each other are remembered (of one gang), so that a writer meets at least one that is not itself. A mask
// says which of the two bytes.
struct Touch { uint32_t epoch, clk; uint16_t rank; uint8_t mask; };
struct Cell { uint64_t w_run, r_run; Touch w, r[2]; uint8_t flags; };
enum : uint8_t { GENERIC_WRITE = 1, IN_FLIGHT = 2, READ_BY_OTHERS = 4, ATOMIC = 8, BEING_READ = 16 };

struct Alloc { uint8_t *base, *user; size_t bytes, mapped; Cell* cells; uint8_t* init; };   // init: one byte for two of memory
// The size of the static arrays is learnt at the first launch.
struct Kernel { void (*entry)(void**); int nargs; std::vector<uint32_t> sizes; int max_threads; size_t static_bytes = 0; };
std::map<std::string, Kernel>& kernels();
// Why a driver would refuse the launch; empty if it would not.
std::string refuse(const Kernel& k, EmuDim grid, EmuDim block, EmuDim cluster, uint32_t smem, const uint32_t* sizes, int nargs, const EmuConfig& cfg);

// What a thread knows of another gang through atomics: everything of that gang before this.
struct Knowledge { uint32_t epoch; Clock vc; };
using KnownGangs = std::map<uint64_t, Knowledge>;
struct Learnt { int rank; uint32_t epoch, clk; KnownGangs gangs; };

// The asynchronous engine counts as one more thread of the gang, whose clock the mbarriers hand on.
struct Gang {
  std::vector<std::unique_ptr<Cta>> ctas; uint32_t epoch = 1; Barrier cluster_bar; int live = 0; uint64_t run = 0; int threads = 0; uint32_t engine_clk = 0;
  std::vector<Learnt> learnt; std::unordered_map<int, Knowledge> fences;     // by thread rank: its last __threadfence
};
struct Scheduler {
  Scheduler() = default;
  Scheduler(const Scheduler&) = delete;
  ~Scheduler();                   // gives the mappings back
  void* main_sp = nullptr; char* stacks = nullptr; int nstacks = 0; uint8_t* arena = nullptr; Cell* shared_cells = nullptr; bool inside = false;
  void* arena_mapping = nullptr;  // what `arena` lies in
  std::vector<uint32_t> ready_lanes, priority; std::vector<Fiber*> warp_base; std::vector<uint64_t> ready_warps; size_t count = 0, cursor = 0;
  Gang gang; std::deque<std::function<void()>> async; EmuConfig cfg{}; uint64_t rng = 1; std::string error; bool failed = false;
  const Kernel* kernel = nullptr; const char* name = ""; void** args = nullptr; size_t static_end = 0, static_bytes = 0; std::unordered_map<const void*, size_t> statics; unsigned dynamic = 0;
  std::array<uint8_t, ARENA / 16> room{};       // how many of each 16 bytes of shared memory belong to an array
  std::vector<std::pair<size_t, size_t>> arrays;     // offset and size of each: the dynamic part, then static ones
  EmuStats stats{}; uint64_t first_run = 0, steps = 0;
  std::unordered_map<uintptr_t, KnownGangs> released;       // by address of an atomic in global memory
  std::vector<Alloc> allocs; uint64_t allocs_version = 0;
  std::array<const Alloc*, 1024> by_page{};     // the buffer that a page lies in, by the page's number; guard pages keep buffers on pages of their own
  std::array<uintptr_t, 1024> foreign{};        // numbers of pages of the program's constants
};
extern __thread Scheduler* current;
Scheduler& own_scheduler();     // made at the first call of an operating-system thread, gone when that ends
inline Scheduler& sched() { return *current; }
inline Fiber* me() { return static_cast<Fiber*>(self); }
uint32_t rnd();

// async.cpp
std::string describe_mbar(uint64_t* p);
bool finish_stores(Cta* c);

// scheduler.cpp
void make_ready(Fiber* f);
Fiber* pick();
void run_next(Fiber* f);
void block_on(const char* what, const char* file, int line);
std::string check_registers(Cta* c);
std::string shared_excess(size_t fixed, size_t dynamic, const EmuConfig& cfg);
void yield();
const char* base_name(const char* file);

// checks.cpp
inline bool in_arena(const void* p) { auto& s = sched(); return uintptr_t(p) - uintptr_t(s.arena) < ARENA * s.gang.ctas.size(); }
Cta* cta_of(const void* p);
const Alloc* find_alloc(uintptr_t p);
void refresh_allocs();
void access(const void* p, size_t n, bool write, const char* what = nullptr, bool atomic = false);
uintptr_t site_of(const char* file, int line, int part = 0);
void log_access(const void* p, size_t n, bool write, uintptr_t site);
void flush_profile(Cta* c, int warp);
void join(Clock& to, const Clock& from);
void release(Fiber* f, Clock& to);
void acquire(Fiber* f, const Clock& from);
bool knows(const Fiber* f, uint32_t epoch, uint32_t clk, unsigned rank);
void async_write_begin(Cta* c, uint32_t off, uint32_t n, const char* what, int line);
void async_write_end(Cta* c, uint32_t off, uint32_t n, MbarMeta& to);
// An asynchronous read: nobody may write the bytes from its beginning to its end, when it counts as a read of the thread that waited.
enum class Reading { Begins, Ended };
void async_read(Cta* c, uint32_t off, uint32_t n, const char* what, Reading when, int line);
void copy_begins(Fiber* f, void* dst, uint32_t n);
void copy_ends(Fiber* f, void* dst, uint32_t n);
bool has_room(size_t off, size_t n);
void give_room(size_t off, size_t n);
[[noreturn]] void outside_shared(size_t off, const char* what, int line);
void mark_initialised(const void* p, size_t n);
void reset_shared_cells(const void* p, size_t n);
void* make_memory(size_t bytes);
void free_memory(void* p);
void poison(void* p, size_t n);
}  // namespace emu
