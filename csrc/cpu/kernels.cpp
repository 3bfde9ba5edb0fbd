// All kernels of one instruction set and storage type; compiled once for each (but for double on AMX: kernel_table.h),
// with its flags, its namespace and RNN_EXT_STORAGE = float, double, bfloat16, float16. The headers are parts of this
// file, in the order in which they build on each other. Includes neither torch nor standard containers: of an inline
// function shared with other files the linker keeps one copy, and that might be the one with instructions that the
// machine lacks.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // both: GCC 12 about its own intrinsics
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <stddef.h>
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "../cells/facts.h"
#include "../params.h"
#include "team.h"

namespace rnn_ext::RNN_EXT_ISA_NAMESPACE {
namespace {

#include "vec.h"
#include "pack.h"
#include "math.h"
#include "../cells/all.h"
#include "transpose.h"
#include "product.h"
#include "dot.h"
#if defined(RNN_EXT_AVX512)
#include "parts.h"
#endif
#if defined(RNN_EXT_AMX)
#if defined(RNN_EXT_EMULATE_TILES)
#include "emulated_tiles.h"
#endif
#include "amx.h"
#elif defined(RNN_EXT_AVX512)
#include "bf16.h"
#endif
#include "shares.h"
#include "pieces.h"
#include "layer.h"
#include "wavefront.h"
#include "forward_weights.h"
#include "forward.h"
#include "backward_weights.h"
#include "weight_gradients.h"
#include "backward.h"
#include "stack.h"
#include "by_sequence.h"
#include "forward_by_sequence.h"
#include "backward_by_sequence.h"

// Calls act with the way to multiply that the plan asks for.
template <class S, class Act>
auto with_product([[maybe_unused]] const Plan& plan, Act act) {
#if defined(RNN_EXT_AMX)
  if constexpr (sizeof(S) <= sizeof(float))
    if (plan.multiply == Multiply::amx) return act(AmxProduct<S>{});
#elif defined(RNN_EXT_AVX512)
  if constexpr (kIsBfloat16<S>)
    if (plan.multiply == Multiply::bf16) return act(Bf16Product{});
#endif
  return act(FmaProduct<S>{});
}

// What a pass must know of a cell.
template <class Pass, class Cell>
constexpr auto kCell = Pass::template cell_of<Cell>();

template <template <class, class> class Loops, class Cell, class S, class Args>
size_t workspace_bytes(const Args& args) {
  if constexpr (sizeof(S) == sizeof(Compute<S>))
    if (args.plan.by_sequence) {
      using Pass = BySequence<S, Args>;
      return Pass(args, kCell<Pass, Cell>, 0).workspace_bytes();
    }
  return with_product<S>(args.plan, [&](auto product) -> size_t {
    using Pass = Loops<S, decltype(product)>;
    return Pass(args, kCell<Pass, Cell>).workspace_bytes();
  });
}

template <template <class, class> class Loops, class Cell, class S, class Args>
void run(const Args& args, const Team& team) {
  if constexpr (sizeof(S) == sizeof(Compute<S>))
    if (args.plan.by_sequence) {
      using Pass = BySequence<S, Args>;
      return Pass(args, kCell<Pass, Cell>, team.rank).run(team);
    }
  with_product<S>(args.plan, [&](auto product) {
    using Pass = Loops<S, decltype(product)>;
    run_stack<Pass>(args, kCell<Pass, Cell>, team);
  });
}

template <class Cell, class S>
size_t kept_bytes(const ForwardArgs& args) {
  return with_product<S>(args.plan, [&](auto product) -> size_t {
    using Pass = Forward<S, decltype(product)>;
    return Pass(args, kCell<Pass, Cell>).kept_bytes();
  });
}

template <class Cell, class S>
void keep(const ForwardArgs& args, const Team& team) {
  with_product<S>(args.plan, [&](auto product) {
    using Pass = Forward<S, decltype(product)>;
    [[maybe_unused]] const typename Pass::Use use;
    Pass(args, kCell<Pass, Cell>).keep(team);
  });
}

template <class Cell, class S>
constexpr Kernel kernel_of() {
  return {kept_bytes<Cell, S>, keep<Cell, S>,
          workspace_bytes<Forward, Cell, S, ForwardArgs>, run<Forward, Cell, S, ForwardArgs>,
          workspace_bytes<Backward, Cell, S, BackwardArgs>, run<Backward, Cell, S, BackwardArgs>};
}

}  // namespace

#define RNN_EXT_JOIN(a, b) a##b
#define RNN_EXT_KERNELS_OF(storage) RNN_EXT_JOIN(kernels_of_, storage)

const Kernel* RNN_EXT_KERNELS_OF(RNN_EXT_STORAGE)() {
  static constexpr Kernel kernels[] = {
#define RNN_EXT_KERNEL(name, type) kernel_of<type, RNN_EXT_STORAGE>(),
      RNN_EXT_CELLS(RNN_EXT_KERNEL)
#undef RNN_EXT_KERNEL
  };
  return kernels;
}

}  // namespace rnn_ext::RNN_EXT_ISA_NAMESPACE
