// The loop behind amx_rate: float32 products on AMX tiles, of ours. Compiled for the set amx alone; see kernels.cpp.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // both: GCC 12 about its own intrinsics
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "../params.h"
#include "team.h"

namespace rnn_ext::RNN_EXT_ISA_NAMESPACE {
namespace {

#include "vec.h"
#include "transpose.h"
#include "product.h"
#include "parts.h"
#if defined(RNN_EXT_EMULATE_TILES)
#include "emulated_tiles.h"
#endif
#include "amx.h"

}  // namespace

// Multiplies 32 x 256 by 256 x 256 so many times. Returns the floating-point operations done. The parts are numbers of
// either sign between a half and one: on zeros the tiles take less power, and a processor that is short of it slows them
// down less.
double amx_loop(long rounds) {
  constexpr int64_t M = 32, N = 256, kNumbers = SplitRows<3>::bytes(M, N) / 2 + TilePanels<3>::bytes(N, N) / 2;
  struct Numbers {
    alignas(64) uint16_t bits[kNumbers];
    Numbers() {
      uint32_t random = 1;
      for (uint16_t& number : bits) {
        random = random * 1664525 + 1013904223;
        number = uint16_t((random >> 16 & 0x807f) | 0x3f00);
      }
    }
  };
  static Numbers numbers;
  uint16_t* const rows = numbers.bits;
  const TileUse use;
  const auto A = SplitRows<3>::of(rows, N);
  const auto B = TilePanels<3>::of(rows + SplitRows<3>::bytes(M, N) / 2, N, N);
  alignas(64) float C[M * N];
  for (long round = 0; round < rounds; ++round) product(C, N, A, M, B, Range{0, N}, Into::assign);
  volatile float sink = C[0];
  (void)sink;
  return 2. * M * N * N * double(rounds);
}

}  // namespace rnn_ext::RNN_EXT_ISA_NAMESPACE
