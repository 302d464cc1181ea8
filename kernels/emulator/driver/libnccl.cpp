// NCCL over shared memory: a libnccl.so.2 for ranks on emulated GPUs, whose device memory is this process's own (the emulated device and libcuda.cpp). Programs
// that train over several processes run their NCCL path against it on a machine without a GPU (scripts/rehearsal_nccl.sh builds it and says how).
//
// As in NCCL, all ranks must make the same calls in the same order, a rank that never comes leaves the others waiting, and an all-reduce gives every rank the same
// bits, in an order of sums that differs from element to element. Stricter than NCCL: calls that do not fit together are an error on every rank, not a hang.
//
// On a stream of libcuda.cpp a call is queued there and runs in that stream's order, as in NCCL; on the emulated device, which has none, it has happened when it returns.
//
// SDRRL_REHEARSAL_NCCL=WHAT:RANK:CALL plants a fault into that rank's CALLth collective (from 1): `die` (killed with half its data sent), `hang`, `stop` (the whole process), `late` (two seconds),
// `count` (one element too many). SDRRL_REHEARSAL_NCCL_LOG=FILE gets a line a rank with calls and bytes, when a communicator ends.
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>

namespace {
// ncclResult_t and ncclDataType_t of nccl.h.
enum Result { SUCCESS = 0, CUDA_FAILED = 1, SYSTEM = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE = 6 };
enum Type { UINT8 = 1, FLOAT32 = 7, BFLOAT16 = 9 };
enum Kind { ALL_REDUCE, ALL_GATHER, BROADCAST, REDUCE, KINDS };
const char* const KIND_NAMES[KINDS] = {"all_reduce", "all_gather", "broadcast", "reduce"};
constexpr int MOST = 64;
constexpr size_t CHUNK = 1 << 18;   // bytes of a rank that are in flight
constexpr size_t TURN = 256;        // elements that are summed in one order

struct Call { uint32_t kind, type; uint64_t count; int64_t root; };
struct Shared {
  std::atomic<uint32_t> arrived, generation, aborted;
  Call calls[MOST];
};
static_assert(std::atomic<uint32_t>::is_always_lock_free, "atomics between processes");

struct Comm {
  int rank, size;
  Shared* shared;
  char* slots;
  size_t bytes;
  std::atomic<bool> aborted{false};
  std::atomic<int> late{SUCCESS};   // of a call that was queued
  uint64_t made = 0, calls[KINDS] = {}, moved[KINDS] = {};
  char* slot(int r) { return slots + size_t(r) * CHUNK; }
};

std::string place(const char* id) {
  const char* tmp = getenv("TMPDIR");
  std::string folder = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : tmp && *tmp ? tmp : "/tmp";
  return folder + "/sdrrl-nccl-" + std::string(id, 32);
}
// False once anybody has given up.
bool meet(Comm* c) {
  Shared* s = c->shared;
  uint32_t generation = s->generation.load();
  if (s->arrived.fetch_add(1) + 1 == uint32_t(c->size)) {
    s->arrived = 0;
    s->generation.fetch_add(1);
    return !s->aborted;
  }
  while (s->generation.load() == generation) {
    if (s->aborted || c->aborted) return false;
    usleep(50);
  }
  return true;
}
// Calls run in the order of their stream, if the driver of libcuda.cpp has it, or now.
template <class Run>
Result submit(Comm* c, void* stream, Run run) {
  if (c->aborted || c->shared->aborted) return REMOTE;
  if (!stream) return run();
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
  auto queue = driver ? reinterpret_cast<int (*)(void*, void (*)(void*), void*)>(dlsym(driver, "sdrrlRehearsalQueue")) : nullptr;
  if (!queue) return INVALID_ARGUMENT;
  auto later = [c, run] {
    int done = c->late == SUCCESS ? run() : SUCCESS;
    if (done != SUCCESS) c->late = done;
  };
  auto* work = new std::function<void()>(later);
  auto call = [](void* work) {
    auto* own = static_cast<std::function<void()>*>(work);
    (*own)();
    delete own;
  };
  return queue(stream, call, work) == 0 ? SUCCESS : CUDA_FAILED;
}
float widened(uint16_t x) {
  uint32_t bits = uint32_t(x) << 16;
  float wide;
  memcpy(&wide, &bits, 4);
  return wide;
}
// To the nearest, ties to even.
uint16_t narrowed(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (x != x) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
// The sum over the slots of element i of a chunk whose first is the call's element `at`; in bf16 each sum of two is rounded.
template <class T>
T sum_of(Comm* c, size_t at, size_t i) {
  int first = int((at + i) / TURN % size_t(c->size));
  T sum = reinterpret_cast<const T*>(c->slot(first))[i];
  for (int k = 1; k < c->size; k++) {
    T x = reinterpret_cast<const T*>(c->slot((first + k) % c->size))[i];
    if constexpr (sizeof(T) == 2) sum = narrowed(widened(sum) + widened(x));
    else sum += x;
  }
  return sum;
}
// The fault that is planted into this call.
std::string fault(const Comm* c) {
  const char* planted = getenv("SDRRL_REHEARSAL_NCCL");
  char what[16];
  int rank = 0;
  unsigned long long call = 0;
  if (!planted || sscanf(planted, "%15[a-z]:%d:%llu", what, &rank, &call) != 3) return "";
  return rank == c->rank && call == c->made ? what : "";
}
// Begins a collective: all ranks must have called the same.
Result begin(Comm* c, Call call, size_t bytes, std::string* what) {
  if (c->aborted || c->shared->aborted) return REMOTE;
  c->made++;
  c->calls[call.kind]++;
  c->moved[call.kind] += bytes;
  *what = fault(c);
  if (*what == "late") sleep(2);
  while (*what == "hang") pause();
  if (*what == "stop") raise(SIGSTOP);
  if (*what == "count") call.count++;
  c->shared->calls[c->rank] = call;
  if (!meet(c)) return REMOTE;
  for (int r = 0; r < c->size; r++) {
    const Call& other = c->shared->calls[r];
    const Call& first = c->shared->calls[0];
    if (other.kind != first.kind || other.type != first.type || other.count != first.count || other.root != first.root) {
      fprintf(stderr, "rehearsal NCCL: rank %d: calls differ: rank %d %s of %llu, rank 0 %s of %llu\n", c->rank, r, KIND_NAMES[other.kind],
              static_cast<unsigned long long>(other.count), KIND_NAMES[first.kind], static_cast<unsigned long long>(first.count));
      return INVALID_USAGE;
    }
  }
  return SUCCESS;
}
// Everybody's bytes from `at` on, chunk by chunk; `take(begin, n)` reads the slots.
template <class Take>
Result exchange(Comm* c, const char* from, size_t bytes, const std::string& what, Take take) {
  for (size_t at = 0; at < bytes; at += CHUNK) {
    size_t n = std::min(CHUNK, bytes - at);
    memcpy(c->slot(c->rank), from + at, what == "die" ? n / 2 : n);
    if (what == "die") raise(SIGKILL);
    if (!meet(c)) return REMOTE;
    take(at, n);
    if (!meet(c)) return REMOTE;
  }
  return SUCCESS;
}
void end(Comm* c) {
  if (const char* log = getenv("SDRRL_REHEARSAL_NCCL_LOG")) {
    std::string line = "{\"rank\": " + std::to_string(c->rank);
    for (int k = 0; k < KINDS; k++)
      line += std::string(", \"") + KIND_NAMES[k] + "\": [" + std::to_string(c->calls[k]) + ", " + std::to_string(c->moved[k]) + "]";
    line += "}\n";
    int file = open(log, O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (file >= 0) {
      if (write(file, line.data(), line.size()) < 0) perror("rehearsal NCCL: log");
      close(file);
    }
  }
}
}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))
struct ncclUniqueId { char internal[128]; };

// What tells it from NVIDIA's.
EXPORT int sdrrlRehearsal() { return 1; }
EXPORT int ncclGetVersion(int* version) { *version = 22700; return SUCCESS; }
EXPORT const char* ncclGetErrorString(int code) {
  switch (code) {
    case SUCCESS: return "no error";
    case CUDA_FAILED: return "unhandled cuda error";
    case SYSTEM: return "unhandled system error";
    case INVALID_ARGUMENT: return "invalid argument";
    case INVALID_USAGE: return "invalid usage";
    case REMOTE: return "remote process exited or there was a network error";
    default: return "unknown result code";
  }
}
EXPORT int ncclGetUniqueId(ncclUniqueId* id) {
  memset(id->internal, 0, sizeof id->internal);
  unsigned char random[16];
  FILE* file = fopen("/dev/urandom", "rb");
  bool read = file && fread(random, sizeof random, 1, file) == 1;
  if (file) fclose(file);
  for (int i = 0; i < 16; i++) snprintf(id->internal + 2 * i, 3, "%02x", random[i]);
  return read ? SUCCESS : SYSTEM;
}
EXPORT int ncclCommInitRank(Comm** made, int size, ncclUniqueId id, int rank) {
  if (size < 1 || size > MOST || rank < 0 || rank >= size) return INVALID_ARGUMENT;
  std::string path = place(id.internal);
  size_t bytes = sizeof(Shared) + size_t(size) * CHUNK;
  int file = open(path.c_str(), O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, off_t(bytes)) != 0) return SYSTEM;
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (at == MAP_FAILED) return SYSTEM;
  auto* c = new Comm{rank, size, static_cast<Shared*>(at), static_cast<char*>(at) + sizeof(Shared), bytes};
  *made = c;
  if (!meet(c)) return REMOTE;
  if (rank == 0) unlink(path.c_str());
  return SUCCESS;
}
// Sums everywhere, or on rank `root` alone: NCCL leaves what the others get undefined, here it is NaN.
template <class T>
static Result sums(const void* from, void* to, size_t n, Call call, Comm* c) {
  std::string what;
  if (Result e = begin(c, call, sizeof(T) * n, &what)) return e;
  return exchange(c, static_cast<const char*>(from), sizeof(T) * n, what, [&](size_t at, size_t bytes) {
    auto* sums = reinterpret_cast<T*>(static_cast<char*>(to) + at);
    if (call.root >= 0 && call.root != c->rank) memset(sums, 0xff, bytes);
    else for (size_t i = 0; i < bytes / sizeof(T); i++) sums[i] = sum_of<T>(c, at / sizeof(T), i);
  });
}
static Result sum(const void* from, void* to, size_t n, int type, int op, Call call, Comm* c, void* stream) {
  if ((type != FLOAT32 && type != BFLOAT16) || op != 0 || call.root >= c->size) return INVALID_ARGUMENT;
  return submit(c, stream, [=] { return type == FLOAT32 ? sums<float>(from, to, n, call, c) : sums<uint16_t>(from, to, n, call, c); });
}
EXPORT int ncclAllReduce(const void* from, void* to, size_t n, int type, int op, Comm* c, void* stream) {
  return sum(from, to, n, type, op, {ALL_REDUCE, uint32_t(type), n, -1}, c, stream);
}
EXPORT int ncclReduce(const void* from, void* to, size_t n, int type, int op, int root, Comm* c, void* stream) {
  if (root < 0) return INVALID_ARGUMENT;
  return sum(from, to, n, type, op, {REDUCE, uint32_t(type), n, root}, c, stream);
}
EXPORT int ncclAllGather(const void* from, void* to, size_t n, int type, Comm* c, void* stream) {
  if (type != UINT8) return INVALID_ARGUMENT;
  return submit(c, stream, [=] {
    std::string what;
    if (Result e = begin(c, {ALL_GATHER, UINT8, n, -1}, n, &what)) return e;
    return exchange(c, static_cast<const char*>(from), n, what, [&](size_t at, size_t bytes) {
      for (int r = 0; r < c->size; r++) memcpy(static_cast<char*>(to) + size_t(r) * n + at, c->slot(r), bytes);
    });
  });
}
EXPORT int ncclBroadcast(const void* from, void* to, size_t n, int type, int root, Comm* c, void* stream) {
  if (type != UINT8 || root < 0 || root >= c->size) return INVALID_ARGUMENT;
  return submit(c, stream, [=] {
    std::string what;
    if (Result e = begin(c, {BROADCAST, UINT8, n, root}, n, &what)) return e;
    return exchange(c, static_cast<const char*>(from), n, what, [&](size_t at, size_t bytes) {
      memcpy(static_cast<char*>(to) + at, c->slot(root), bytes);
    });
  });
}
// Calls of a group run one after the other, which is a group's meaning.
EXPORT int ncclGroupStart() { return SUCCESS; }
EXPORT int ncclGroupEnd() { return SUCCESS; }
EXPORT int ncclCommGetAsyncError(Comm* c, int* code) {
  *code = c->late != SUCCESS ? c->late.load() : c->aborted || c->shared->aborted ? REMOTE : SUCCESS;
  return SUCCESS;
}
// From any thread: whoever waits returns. The memory stays, since it may be in use.
EXPORT int ncclCommAbort(Comm* c) {
  c->aborted = true;
  c->shared->aborted = 1;
  end(c);
  return SUCCESS;
}
EXPORT int ncclCommDestroy(Comm* c) {
  end(c);
  munmap(c->shared, c->bytes);
  delete c;
  return SUCCESS;
}
