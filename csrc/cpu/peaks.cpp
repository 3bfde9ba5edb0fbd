#include "peaks.h"

#include <barrier>
#include <chrono>
#include <numeric>
#include <thread>
#include <vector>

#include "isa.h"

namespace rnn_ext {
namespace isa_baseline { double fma_loop(long rounds); }
namespace isa_avx2 { double fma_loop(long rounds); }
namespace isa_avx512 { double fma_loop(long rounds); }
namespace isa_amx { double fma_loop(long rounds); double amx_loop(long rounds); }

namespace {

using Loop = double (*)(long);

Loop best_loop() {
#if defined(__x86_64__)
  if (detect() >= Isa::avx512) return isa_avx512::fma_loop;
  if (detect() == Isa::avx2) return isa_avx2::fma_loop;
#endif
  return isa_baseline::fma_loop;
}

double rate(Loop loop, long rounds, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  double operations = 0, elapsed = 0;
  while (elapsed < seconds) {
    operations += loop(rounds);
    elapsed = std::chrono::duration<double>(Clock::now() - start).count();
  }
  return operations / elapsed / 1e9;
}

// Of `threads` threads that run at the same time. One round-trip through the loop should take well under a
// millisecond, so that the clock costs nothing and is not overrun.
double summed_rate(Loop loop, long rounds, double seconds, int threads) {
  std::vector<double> rates(threads);
  std::barrier together(threads);
  std::vector<std::jthread> team;
  for (double& one : rates)
    team.emplace_back([&] {
      together.arrive_and_wait();
      one = rate(loop, rounds, seconds);
    });
  team.clear();  // joins
  return std::reduce(rates.begin(), rates.end());
}

}  // namespace

double fma_peak(double seconds, int threads) { return summed_rate(best_loop(), 100000, seconds, threads); }

double amx_rate(double seconds, int threads) {
#if defined(__x86_64__)
  if (detect() >= Isa::amx) return summed_rate(isa_amx::amx_loop, 20, seconds, threads);
#endif
  (void)seconds, (void)threads;
  return 0;
}

}  // namespace rnn_ext
