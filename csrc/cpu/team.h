// The workers of one call and the barrier between them.
#pragma once
#include <sched.h>

#include "../params.h"

namespace rnn_ext {

RNN_EXT_INLINE void spin_pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `done()` holds: spins, since a step takes about a microsecond, then gives the core away, since
// the worker that is waited for may need this very core.
template <class Done>
RNN_EXT_INLINE void spin_until(Done done) {
  for (int i = 0; !done(); ++i) {
    if (i < 2000)
      spin_pause();
    else
      sched_yield();
  }
}

struct Barrier {
  alignas(64) int arrived = 0;
  alignas(64) int phase = 0;

  RNN_EXT_INLINE void wait(int size) {
    const int now = __atomic_load_n(&phase, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == size) {
      __atomic_store_n(&arrived, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&phase, now + 1, __ATOMIC_RELEASE);
    } else {
      spin_until([&] { return __atomic_load_n(&phase, __ATOMIC_ACQUIRE) != now; });
    }
  }
};

struct Range {
  long begin, end;
  RNN_EXT_INLINE long size() const { return end - begin; }
};

// Every `step`-th of the numbers from `first` to before `end`.
struct Part {
  long first, step, end;

  RNN_EXT_INLINE long operator[](long i) const { return first + i * step; }
  // How many of them are below n.
  RNN_EXT_INLINE long count(long n) const {
    const long last = n < end ? n : end;
    return last > first ? (last - first + step - 1) / step : 0;
  }
  // Those from n on.
  RNN_EXT_INLINE Part from(long n) const { return {(*this)[count(n)], step, end}; }
};

// A worker's view of the workers that run the same code: its rank among them, and ways to share work out.
struct Team {
  int rank = 0, size = 1;
  Barrier* barrier = nullptr;  // [4]: all workers, one for each half (see half), one for a pipeline's products

  RNN_EXT_INLINE void wait() const {
    if (size > 1) barrier->wait(size);
  }

  // This worker's part of [0, n), in multiples of `unit`.
  RNN_EXT_INLINE Range part(long n, long unit = 1) const {
    const long units = (n + unit - 1) / unit;
    const long begin = units * rank / size * unit, end = units * (rank + 1) / size * unit;
    return {begin < n ? begin : n, end < n ? end : n};
  }

  // The team of one direction when each direction gets half of the workers.
  RNN_EXT_INLINE int half_of() const { return rank < (size + 1) / 2 ? 0 : 1; }
  RNN_EXT_INLINE Team half() const {
    const int first = (size + 1) / 2, which = half_of();
    return which == 0 ? Team{rank, first, barrier + 1} : Team{rank - first, size - first, barrier + 2};
  }
};

}  // namespace rnn_ext
