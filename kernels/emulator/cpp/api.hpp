// The C interface that the Rust side calls.
#pragma once
#include <cstddef>
#include <cstdint>
struct EmuConfig {
  uint64_t seed;
  int32_t schedule;        // 0 FIFO, 1 reverse, 2 random, 3 a random priority per warp
  int32_t asynchrony;      // 0 done at issue, 1 as late as allowed, 2 random
  int32_t preempt;         // chance of a forced switch at a memory access, per 1024
  int32_t checks;          // bounds, alignment, uninitialised reads, races, proxy fences
  int32_t profile;         // count bank conflicts and sectors
  int32_t cooperative;     // all blocks of the grid are resident together
  int32_t part, parts;     // run only this share of the blocks, other threads run the others
  int32_t default_shared;  // more than 48 KiB of shared memory were not asked for
  int32_t large_clusters;  // clusters of 9 to 16 blocks were asked for
};
struct EmuDim { uint32_t x, y, z; };
struct EmuStats {
  uint64_t switches, accesses;
  uint64_t shared_requests, shared_wavefronts, shared_ideal;   // a conflict is a wavefront beyond the ideal
  uint64_t global_requests, global_sectors, global_ideal;      // 32-byte sectors
};
extern "C" {
int emu_launch(const char* kernel, EmuDim grid, EmuDim block, EmuDim cluster, uint32_t smem, void** args, const uint32_t* sizes, int nargs, const EmuConfig* cfg, EmuStats* stats);
const char* emu_last_error();
int emu_load_kernels(const char* path);  // a shared object whose kernels replace those of the same names
const char* emu_kernel_name(int i);     // null past the last
void* emu_malloc(size_t bytes);
void emu_free(void* p);
int emu_copy_in(void* to, const void* from, size_t n);
int emu_fill_zero(void* to, size_t n);
int emu_tensor_map_encode(void* map, int elem, int rank, void* base, const uint64_t* dims, const uint64_t* strides, const uint32_t* box, int swizzle);
}
