// The memory profile: the lanes of a warp, matched by (place in the code, visit number), make one request.
#include "runtime.hpp"

namespace emu {
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
uintptr_t site_of(const char* file, int line, int part) { return (uintptr_t(file) * 31 + uintptr_t(line)) * 4 + uintptr_t(part); }
void log_access(const void* p, size_t n, bool write, uintptr_t site) {
  Fiber* f = me();
  if (!f || !sched().cfg.profile || uintptr_t(p) - uintptr_t(f->stack) < STACK) return;
  if (!in_arena(p) && !find_alloc(uintptr_t(p))) return;
  uint32_t visit = f->visits[site]++;
  f->log.push_back({site, Access{visit, uint32_t(n), uintptr_t(p), write}});
}
}  // namespace emu
