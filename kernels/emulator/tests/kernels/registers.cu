// setmaxnreg in a block of three warpgroups, 168 registers a thread at launch: out[i] = i. registers_NONE is right; the others break one rule each.
#include "ptx_sm90.cuh"

namespace {
enum Fault { NONE, BEYOND_THE_POOL, ONE_WARP, FEWER_AT_FIRST, FEWER_LATER, MORE_LATER, DIFFERENT };
template <int fault> DEV void share(unsigned* out) {
  int group = threadIdx.x / 128, warp = threadIdx.x % 128 / 32;
  if (group == 0) {
    if (fault != ONE_WARP || warp == 0) {
      if (fault == DIFFERENT && warp == 3) setmaxnreg_dec<48>();
      else setmaxnreg_dec<40>();
    }
    if (fault == MORE_LATER) setmaxnreg_dec<48>();
  } else if (fault == BEYOND_THE_POOL) {
    setmaxnreg_inc<240>();
  } else {
    if (fault == FEWER_AT_FIRST && group == 1) setmaxnreg_inc<160>();
    else if (fault != ONE_WARP) setmaxnreg_inc<232>();
    if (fault == FEWER_LATER) setmaxnreg_inc<224>();
  }
  out[threadIdx.x] = threadIdx.x;
}
}  // namespace

#define REGISTERS(fault)                                                       \
  KERNEL(registers_##fault, 384, 1)(unsigned* out) { share<fault>(out); }      \
  EXPORT_KERNEL(registers_##fault, 384)
REGISTERS(NONE) REGISTERS(BEYOND_THE_POOL) REGISTERS(ONE_WARP) REGISTERS(FEWER_AT_FIRST) REGISTERS(FEWER_LATER) REGISTERS(MORE_LATER) REGISTERS(DIFFERENT)
