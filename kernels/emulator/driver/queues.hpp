// Work of libcuda.cpp that waits to be run, stream by stream.
#pragma once
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>

namespace {
using Clock = std::chrono::steady_clock;
struct Mark { Clock::time_point at; bool happened = false; };
struct Event { std::shared_ptr<Mark> mark = std::make_shared<Mark>(); };
struct Op {
  std::function<void()> run;
  std::shared_ptr<Mark> wait;              // comes first
};
struct Queue {
  std::deque<Op> ops;
  void push_back(std::function<void()> run) { ops.push_back({std::move(run), nullptr}); }
  // Runs the next one; false if there is none, or if it has to wait.
  bool step() {
    if (ops.empty() || (ops.front().wait && !ops.front().wait->happened)) return false;
    Op op = std::move(ops.front());
    ops.pop_front();
    if (op.run) op.run();
    return true;
  }
};
// Runs everything as long as `is_sound`, and forgets what is left then: streams beside the default one as early as the events that they wait for allow, or as late. False if none of them can go on.
template <class Stream, class Sound>
bool run_all(Queue& first, std::map<Stream, Queue>& beside, Sound is_sound) {
  const char* when = getenv("SDRRL_REHEARSAL_STREAMS");
  bool late = when && !strcmp(when, "late"), moved = true;
  auto any_beside = [&] { for (auto& [stream, queue] : beside) if (queue.step()) return true; return false; };
  auto is_empty = [&] {
    bool empty = first.ops.empty();
    for (auto& [stream, queue] : beside) empty = empty && queue.ops.empty();
    return empty;
  };
  while (moved && is_sound() && !is_empty()) moved = late ? first.step() || any_beside() : any_beside() || first.step();
  first.ops.clear();
  for (auto& [stream, queue] : beside) queue.ops.clear();
  return moved;
}
// A line of what ran.
void trace(const char* what) {
  const char* path = getenv("SDRRL_REHEARSAL_TRACE");
  if (!path) return;
  FILE* file = fopen(path, "a");
  if (!file) return;
  fprintf(file, "%d %s\n", int(getpid()), what);
  fclose(file);
}
}  // namespace
