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

// Multiplies 32 x 256 by 256 x 256 so many times. Returns the floating-point operations done.
double amx_loop(long rounds) {
  constexpr int64_t M = 32, N = 256;
  alignas(64) static uint16_t rows[SplitRows<3>::bytes(M, N) / 2 + TilePanels<3>::bytes(N, N) / 2];  // zeros
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
