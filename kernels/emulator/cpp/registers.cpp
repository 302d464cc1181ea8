// setmaxnreg: the registers of a block as one pool, and who may ask for them.
#include "runtime.hpp"

namespace emu {
// A launch gives every thread as many as its block's size allows (launch bounds; nvcc takes fewer only if no setmaxnreg asks for more), and no
// others ever come: `inc` waits for what `dec` of the same block has given back.
void setmaxnreg(int registers, bool increase, const char* file, int line) {
  Fiber* f = me();
  Cta* c = f->cta;
  const char* name = base_name(file);
  if (registers < 24 || registers > 256 || registers % 8) fail("setmaxnreg at %s:%d: %d is not a multiple of 8 in 24..256", name, line, registers);
  auto& all = c->set_registers[f->linear / 128];
  size_t i = f->set_registers++;
  if (i == all.size()) all.push_back({registers, increase, file, line, 0});
  SetRegisters& own = all[i];
  if (own.registers != registers || own.increase != increase || own.line != line || own.file != file)
    fail("setmaxnreg at %s:%d: another warp of the warpgroup runs the one at %s:%d (%d registers) as its number %zu", name, line, base_name(own.file), own.line, own.registers, i + 1);
  own.threads++;
  // Of a first one check_registers knows in the end what the launch gave.
  if (i > 0 && (increase ? registers < f->registers : registers > f->registers))
    fail("setmaxnreg.%s at %s:%d: to %d registers where %d are owned", increase ? "inc" : "dec", name, line, registers, f->registers);
  while (registers - f->registers > c->free_registers) { c->register_waiters.push_back(f); block_on("setmaxnreg", file, line); }
  c->free_registers += f->registers - registers;
  if (registers < f->registers) { for (Fiber* x : c->register_waiters) make_ready(x); c->register_waiters.clear(); }
  f->registers = registers;
}
// What is known of a block's setmaxnreg only when it has ended: empty if nothing is wrong.
std::string check_registers(Cta* c) {
  int most = 0;
  for (auto& group : c->set_registers) for (auto& x : group) most = std::max(most, x.registers);
  int launch = std::min(c->launch_registers, most);
  for (size_t g = 0; g < c->set_registers.size(); g++) {
    auto& group = c->set_registers[g];
    int threads = std::min(128, c->nthreads - int(g) * 128);
    auto at = [](const SetRegisters& x) { return std::string("setmaxnreg at ") + base_name(x.file) + ":" + std::to_string(x.line) + ": "; };
    for (auto& x : group) if (x.threads != threads) return at(x) + std::to_string(x.threads) + " of the " + std::to_string(threads) + " threads of a warpgroup ran it";
    if (group.empty()) continue;
    auto& x = group[0];
    if (x.increase ? x.registers < launch : x.registers > launch)
      return at(x) + (x.increase ? "inc" : "dec") + " to " + std::to_string(x.registers) + " registers where the launch gave " + std::to_string(launch);
  }
  return "";
}
}  // namespace emu
