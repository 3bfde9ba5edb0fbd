// All kernels of one instruction set; compiled once for each with its flags and its namespace. Includes neither
// torch nor standard containers: of an inline function shared with other files the linker keeps one copy, and that
// might be the one with instructions that the machine lacks.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // both: GCC 12 about its own intrinsics
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <stddef.h>
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kernel_table.h"
#include "team.h"

namespace rnn_ext::RNN_EXT_ISA_NAMESPACE {
namespace {

#include "vec.h"
#include "pack.h"
#include "math.h"
#include "../cells/all.h"
#include "product.h"
#include "dot.h"
#if defined(__AVX512F__)
#include "parts.h"
#endif
#if defined(__AMX_BF16__)
#if defined(RNN_EXT_EMULATE_TILES)
#include "emulated_tiles.h"
#endif
#include "amx.h"
#elif defined(__AVX512F__)
#include "bf16.h"
#endif
#include "shares.h"
#include "pieces.h"
#include "layer.h"
#include "wavefront.h"
#include "forward_weights.h"
#include "forward.h"
#include "weight_gradients.h"
#include "backward.h"
#include "stack.h"

// Calls act with the way to multiply that the plan asks for.
template <class S, class Act>
auto with_product([[maybe_unused]] const Plan& plan, Act act) {
#if defined(__AMX_BF16__)
  if constexpr (sizeof(S) <= sizeof(float))
    if (plan.multiply == Multiply::amx) return act(AmxProduct<S>{});
#elif defined(__AVX512F__)
  if constexpr (kIsBfloat16<S>)
    if (plan.multiply == Multiply::bf16) return act(Bf16Product{});
#endif
  return act(FmaProduct<S>{});
}

template <template <class, class, class> class Loops, class Cell, class S, class Args>
size_t workspace_bytes(const Args& args) {
  return with_product<S>(args.plan, [&](auto product) -> size_t {
    return Loops<Cell, S, decltype(product)>(args).workspace_bytes();
  });
}

template <template <class, class, class> class Loops, class Cell, class S, class Args>
void run(const Args& args, const Team& team) {
  with_product<S>(args.plan, [&](auto product) { run_stack<Loops<Cell, S, decltype(product)>>(args, team); });
}

template <class Cell, class S>
size_t kept_bytes(const ForwardArgs& args) {
  return with_product<S>(args.plan, [&](auto product) -> size_t {
    return Forward<Cell, S, decltype(product)>(args).kept_bytes();
  });
}

template <class Cell, class S>
void keep(const ForwardArgs& args, const Team& team) {
  with_product<S>(args.plan, [&](auto product) {
    [[maybe_unused]] const typename decltype(product)::Use use;
    Forward<Cell, S, decltype(product)>(args).keep(team);
  });
}

template <class Cell, class S>
constexpr Kernel kernel_of() {
  return {kept_bytes<Cell, S>, keep<Cell, S>,
          workspace_bytes<Forward, Cell, S, ForwardArgs>, run<Forward, Cell, S, ForwardArgs>,
          workspace_bytes<Backward, Cell, S, BackwardArgs>, run<Backward, Cell, S, BackwardArgs>};
}

}  // namespace

#if defined(__AMX_BF16__)
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
#endif

const KernelTable& table() {
  static constexpr KernelTable all = {
      {
#define RNN_EXT_KERNELS(name, type) \
  {kernel_of<type, float>(), kernel_of<type, double>(), kernel_of<type, bfloat16>(), kernel_of<type, float16>()},
          RNN_EXT_CELLS(RNN_EXT_KERNELS)
#undef RNN_EXT_KERNELS
      },
  };
  return all;
}

}  // namespace rnn_ext::RNN_EXT_ISA_NAMESPACE
