// All kernels of one instruction set; compiled once for each with its flags and its namespace. Includes neither
// torch nor standard containers: of an inline function shared with other files the linker keeps one copy, and that
// might be the one with instructions that the machine lacks.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 about its own intrinsics
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
#include "math.h"
#include "../cells/rnn.h"
#include "../cells/lstm.h"
#include "../cells/gru.h"
#include "product.h"
#include "layer.h"
#include "forward.h"
#include "backward.h"

template <class Cell, int kGates, int kStates, int kTape, class S>
constexpr Kernel kernel_of() {
  static_assert(Cell::gates == kGates && Cell::tape == kTape && (Cell::carry == Carry::cell) == (kStates == 2),
                "the list of cells and the cell disagree");
  return {
      [](const ForwardArgs& args) { return Forward<Cell, S>(args).workspace_bytes(); },
      [](const ForwardArgs& args, const Team& team) { Forward<Cell, S>(args).run(team); },
      [](const BackwardArgs& args) { return Backward<Cell, S>(args).workspace_bytes(); },
      [](const BackwardArgs& args, const Team& team) { Backward<Cell, S>(args).run(team); },
  };
}

}  // namespace

const KernelTable& table() {
  static constexpr KernelTable all = {
      {
#define RNN_EXT_KERNELS(name, type, ...)                                                  \
  {kernel_of<type, __VA_ARGS__, float>(), kernel_of<type, __VA_ARGS__, double>(), \
   kernel_of<type, __VA_ARGS__, bfloat16>()},
          RNN_EXT_CELLS(RNN_EXT_KERNELS)
#undef RNN_EXT_KERNELS
      },
  };
  return all;
}

}  // namespace rnn_ext::RNN_EXT_ISA_NAMESPACE
