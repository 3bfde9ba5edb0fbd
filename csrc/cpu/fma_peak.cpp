#include "fma_peak.h"

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
namespace isa_amx { double fma_loop(long rounds); }

namespace {

using Loop = double (*)(long);

Loop best_loop() {
#if defined(__x86_64__)
  if (detect() >= Isa::avx512) return isa_avx512::fma_loop;
  if (detect() == Isa::avx2) return isa_avx2::fma_loop;
#endif
  return isa_baseline::fma_loop;
}

double rate(Loop loop, double seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr long rounds = 100000;  // well under a millisecond, so that the clock costs nothing and is not overrun
  const auto start = Clock::now();
  double operations = 0, elapsed = 0;
  while (elapsed < seconds) {
    operations += loop(rounds);
    elapsed = std::chrono::duration<double>(Clock::now() - start).count();
  }
  return operations / elapsed / 1e9;
}

}  // namespace

double fma_peak(double seconds, int threads) {
  std::vector<double> rates(threads);
  std::barrier together(threads);
  std::vector<std::jthread> team;
  for (double& one : rates)
    team.emplace_back([&, loop = best_loop()] {
      together.arrive_and_wait();
      one = rate(loop, seconds);
    });
  team.clear();  // joins
  return std::reduce(rates.begin(), rates.end());
}

}  // namespace rnn_ext
