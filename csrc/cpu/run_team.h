// Runs one function on a team of workers from torch's thread pool.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <chrono>

#include "team.h"

#ifdef __SANITIZE_THREAD__
extern "C" void __tsan_acquire(void*);
extern "C" void __tsan_release(void*);
#define RNN_EXT_BEFORE_TAKING __attribute__((no_sanitize_thread))
#else
#define RNN_EXT_BEFORE_TAKING
#endif

namespace rnn_ext {

// How long a team waits for its workers. Under ThreadSanitizer all takes longer, and a worker alone has no races.
#ifdef __SANITIZE_THREAD__
constexpr std::chrono::microseconds kLate{100'000};
#else
constexpr std::chrono::microseconds kLate{500};
#endif

// What a thread has written before it gives is there for the one that takes. torch's pool sees to that, and
// ThreadSanitizer, which does not see into the pool, has to be told.
struct Handover {
#ifdef __SANITIZE_THREAD__
  static inline char place;
  static void give() { __tsan_release(&place); }
  static void take() { __tsan_acquire(&place); }
#else
  static void give() {}
  static void take() {}
#endif
};

// parallel_for promises no number of threads: it may run all inline (nested calls, one thread), give several parts
// to one thread, or run them one after the other. So the workers that really arrive make up the team. Who is not
// there within a moment is left out and finds nothing to do; results do not depend on the size of the team.
class Rendezvous {
 public:
  explicit Rendezvous(int64_t parts) : parts_(parts) {}

  // Joins with `covered` parts. Returns false if the team has started without this worker.
  bool join(int64_t covered, Team& team) {
    int state = __atomic_load_n(&state_, __ATOMIC_RELAXED);
    do {
      if (state & kClosed) return false;
    } while (!__atomic_compare_exchange_n(&state_, &state, state + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
    __atomic_add_fetch(&covered_, covered, __ATOMIC_ACQ_REL);
    const auto late = std::chrono::steady_clock::now() + kLate;
    for (int i = 0; __atomic_load_n(&covered_, __ATOMIC_ACQUIRE) < parts_; ++i) {
      if (__atomic_load_n(&state_, __ATOMIC_ACQUIRE) & kClosed) break;
      spin_pause();
      if (i % 64 == 63 && std::chrono::steady_clock::now() > late) __atomic_or_fetch(&state_, kClosed, __ATOMIC_ACQ_REL);
    }
    team = Team{state, __atomic_load_n(&state_, __ATOMIC_ACQUIRE) & ~kClosed, barriers_};
    return true;
  }

 private:
  static constexpr int kClosed = 1 << 30;
  const int64_t parts_;
  alignas(64) int state_ = 0;  // workers that have joined, and whether the team is closed
  alignas(64) int64_t covered_ = 0;
  Barrier barriers_[4];
};

// Calls work(team) on up to `threads` workers and returns when all are done. `work` must not throw.
template <class Work>
void run_team(int threads, const Work& work) {
  if (threads <= 1) {
    work(Team{});
    return;
  }
  Rendezvous rendezvous(threads);
  Handover::give();
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) RNN_EXT_BEFORE_TAKING {
    Handover::take();
    Team team;
    if (rendezvous.join(end - begin, team)) work(team);
    Handover::give();
  });
  Handover::take();
}

}  // namespace rnn_ext
