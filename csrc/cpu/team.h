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

// A clock that only tells how durations compare.
RNN_EXT_INLINE long ticks() {
#if defined(__x86_64__) || defined(__i386__)
  return long(__builtin_ia32_rdtsc());
#elif defined(__aarch64__)
  long now;
  asm volatile("mrs %0, cntvct_el0" : "=r"(now));
  return now;
#else
  return 0;
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
    wait(size, []() __attribute__((always_inline)) {});
  }
  // The last one to come calls before_all() ahead of all that comes after the barrier.
  template <class Act>
  RNN_EXT_INLINE void wait(int size, Act before_all) {
    const int now = __atomic_load_n(&phase, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == size) {
      before_all();
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

  // Those below n, and those from n on.
  RNN_EXT_INLINE Range below(long n) const { return {begin, n < begin ? begin : n < end ? n : end}; }
  RNN_EXT_INLINE Range from(long n) const { return {below(n).end, end}; }
};

// How a worker gets on, where shares follow that (Balance in shares.h); in a cache line of its own.
struct alignas(64) Pace {
  double before, share;  // of all work: what the workers before it have, and what it has
  long busy, idle;       // ticks: at work on its last share, and waiting meanwhile
};

// Changes the shares [size] of workers that took so long for them half of the way to those for which all would take as
// long; `before` of the one behind the last stays, whose `busy` counts the rounds since the last change. Nothing changes
// where they hardly differ, nor soon after a change: what a worker has got from another one comes from that one's cache,
// so that it takes longer, would give it back, and so on.
RNN_EXT_INLINE void share_by_pace(Pace* paces, int size) {
  constexpr double kAlike = 1.06;  // the slowest may take so much longer: what is shared out comes in pieces
  constexpr double kLeast = 0.2;   // of an equal share: who was held up once must be able to show that it is over
  constexpr long kSettled = 2;     // rounds
  Pace* const end = paces + size;
  if (end->busy++ < kSettled) return;
  long most = paces->busy, least = most;
  double pace = 0, sum = 0, before = 0;
  for (Pace* p = paces; p < end; ++p) {
    if (p->busy > most) most = p->busy;
    if (p->busy < least) least = p->busy;
    pace += p->share / double(p->busy);
  }
  if (least <= 0 || double(most) < kAlike * double(least)) return;
  end->busy = 0;
  for (Pace* p = paces; p < end; ++p) {
    const double share = (p->share + p->share / double(p->busy) / pace) / 2;
    sum += p->share = share < kLeast / size ? kLeast / size : share;
  }
  for (Pace* p = paces; p < end; ++p) {
    p->before = before;
    before += p->share /= sum;
  }
}

// A worker's view of the workers that run the same code: its rank among them, and ways to share work out.
struct Team {
  int rank = 0, size = 1;
  Barrier* barrier = nullptr;  // [4]: all workers, one for each half (see half), one for a pipeline's products
  Pace* paces = nullptr;       // [size + 1]; null where shares are equal

  RNN_EXT_INLINE void wait() const {
    if (size == 1) return;
    if (!paces) return barrier->wait(size);
    const long since = ticks();
    barrier->wait(size);
    paces[rank].idle += ticks() - since;
  }

  // This worker's part of [0, n), in multiples of `unit`.
  RNN_EXT_INLINE Range part(long n, long unit = 1) const { return {border(rank, n, unit), border(rank + 1, n, unit)}; }

  // The team of one direction when each direction gets half of the workers.
  RNN_EXT_INLINE int half_of() const { return rank < (size + 1) / 2 ? 0 : 1; }
  RNN_EXT_INLINE Team half() const {
    const int first = (size + 1) / 2, which = half_of();
    return which == 0 ? Team{rank, first, barrier + 1} : Team{rank - first, size - first, barrier + 2};
  }

 private:
  // Where the part of worker r begins.
  RNN_EXT_INLINE long border(int r, long n, long unit) const {
    const long units = (n + unit - 1) / unit;
    const long at = (paces ? long(double(units) * paces[r].before + 0.5) : units * r / size) * unit;
    return at < n ? at : n;
  }
};

}  // namespace rnn_ext
