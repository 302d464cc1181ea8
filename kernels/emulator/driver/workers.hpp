// The threads that share a launch's blocks.
#pragma once
#include <algorithm>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace {
// Threads that stay: each has stacks of its own in the emulator, which are never given back.
class Workers {
  std::mutex lock;
  std::condition_variable changed;
  std::function<void(int)> work;
  int round = 0, busy = 0;

 public:
  const int count = int(std::max(1u, std::thread::hardware_concurrency()));
  Workers() {
    for (int i = 1; i < count; i++) std::thread([this, i] { serve(i); }).detach();
  }
  // f(0) here, f(1) .. f(count - 1) in the others.
  void run(std::function<void(int)> f) {
    {
      std::lock_guard<std::mutex> guard(lock);
      work = f;
      busy = count - 1;
      round++;
    }
    changed.notify_all();
    f(0);
    std::unique_lock<std::mutex> guard(lock);
    changed.wait(guard, [this] { return busy == 0; });
  }

 private:
  void serve(int i) {
    for (int seen = 0;;) {
      std::unique_lock<std::mutex> guard(lock);
      changed.wait(guard, [&] { return round != seen; });
      seen = round;
      auto f = work;
      guard.unlock();
      f(i);
      guard.lock();
      if (--busy == 0) changed.notify_all();
    }
  }
};
}  // namespace
