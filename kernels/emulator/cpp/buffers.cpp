// Device memory: buffers between guard pages, known to the checks by address.
#include <sys/mman.h>

#include <mutex>

#include "runtime.hpp"

namespace emu {
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
}  // namespace emu

using namespace emu;
extern "C" {
void* emu_malloc(size_t bytes) { return make_memory(bytes); }
void emu_free(void* p) { free_memory(p); }
int emu_copy_in(void* to, const void* from, size_t n) { memcpy(to, from, n); mark_initialised(to, n); return 0; }
int emu_fill_zero(void* to, size_t n) { memset(to, 0, n); mark_initialised(to, n); return 0; }
}
