#include "peaks.h"

#include <sched.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "isa.h"
#include "team.h"

namespace rnn_ext {
#define RNN_EXT_PEAK_LOOPS            \
  double fma_loop(long rounds);       \
  double read_loop(const void* memory, long count, long rounds)
namespace isa_baseline { RNN_EXT_PEAK_LOOPS; }
namespace isa_avx2 { RNN_EXT_PEAK_LOOPS; }
namespace isa_avx512 { RNN_EXT_PEAK_LOOPS; }
namespace isa_amx { double amx_loop(long rounds); }
#undef RNN_EXT_PEAK_LOOPS

namespace {

// The loops of the best set that the machine has, and its vectors' size.
struct Loops {
  double (*fma)(long) = isa_baseline::fma_loop;
  double (*read)(const void*, long, long) = isa_baseline::read_loop;
  size_t vector_bytes = 16;
};

Loops best_loops() {
#if defined(__x86_64__)
  if (detect() >= Isa::avx512) return {isa_avx512::fma_loop, isa_avx512::read_loop, 64};
  if (detect() == Isa::avx2) return {isa_avx2::fma_loop, isa_avx2::read_loop, 32};
#endif
  return {};
}

// Of a loop that returns what it has done in well under a millisecond, so that the clock costs nothing and is not
// overrun.
template <class Loop>
double rate(const Loop& loop, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  double done = 0, elapsed = 0;
  while (elapsed < seconds) {
    done += loop();
    elapsed = std::chrono::duration<double>(Clock::now() - start).count();
  }
  return done / elapsed / 1e9;
}

// Of `threads` threads that run at the same time; each makes its own loop.
template <class MakeLoop>
double summed_rate(const MakeLoop& make_loop, double seconds, int threads) {
  std::vector<double> rates(threads);
  std::barrier together(threads);
  std::vector<std::jthread> team;
  for (double& one : rates)
    team.emplace_back([&] {
      const auto loop = make_loop();
      together.arrive_and_wait();
      one = rate(loop, seconds);
    });
  team.clear();  // joins
  return std::reduce(rates.begin(), rates.end());
}

// Binds the calling thread to the n-th of the processor's cores that it may use, counted round and round.
void stay_on_core(int n) {
  cpu_set_t allowed, one;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  n %= CPU_COUNT(&allowed);
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &allowed) && n-- == 0) {
      CPU_ZERO(&one);
      CPU_SET(core, &one);
      sched_setaffinity(0, sizeof one, &one);
      return;
    }
}

}  // namespace

double fma_peak(double seconds, int threads) {
  return summed_rate([loop = best_loops().fma] { return [loop] { return loop(100000); }; }, seconds, threads);
}

double read_rate(double seconds, int threads, size_t bytes) {
  const Loops loops = best_loops();
  const size_t unit = 4 * loops.vector_bytes, size = std::max<size_t>(bytes / unit, 1) * unit;
  const long count = long(size / loops.vector_bytes), rounds = long(std::max<size_t>((1 << 18) / size, 1));
  return summed_rate(
      [&] {
        const std::shared_ptr<void> memory(std::aligned_alloc(256, (size + 255) / 256 * 256), std::free);
        if (memory) std::memset(memory.get(), 0, size);
        return [=, read = loops.read] { return memory ? read(memory.get(), count, rounds) : 0; };
      },
      seconds, threads);
}

double barrier_seconds(double seconds, int threads) {
  using Clock = std::chrono::steady_clock;
  constexpr int kRounds = 500;
  Barrier barrier;
  double mean = 0;
  bool enough = false;
  std::vector<std::jthread> team;
  for (int rank = 0; rank < threads; ++rank)
    team.emplace_back([&, rank] {
      stay_on_core(rank);  // or else the first few milliseconds may pass with all of them on one
      barrier.wait(threads);
      const auto start = Clock::now();
      for (double rounds = kRounds; !enough; rounds += kRounds) {
        for (int i = 1; i < kRounds; ++i) barrier.wait(threads);
        if (rank == 0) {  // the others read it behind the next barrier, and rank 0 is not here again before that
          const double elapsed = std::chrono::duration<double>(Clock::now() - start).count();
          mean = elapsed / rounds;
          enough = elapsed >= seconds;
        }
        barrier.wait(threads);
      }
    });
  team.clear();  // joins
  return mean;
}

double amx_rate(double seconds, int threads) {
#if defined(__x86_64__)
  if (detect() >= Isa::amx) return summed_rate([] { return [] { return isa_amx::amx_loop(20); }; }, seconds, threads);
#endif
  (void)seconds, (void)threads;
  return 0;
}

}  // namespace rnn_ext
