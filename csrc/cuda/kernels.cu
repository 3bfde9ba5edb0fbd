// Compiled once for each storage type, RNN_EXT_STORAGE = float, double, bfloat16, float16.
#include "kernels.h"

#include "backward.h"
#include "forward.h"
#include "previous.h"

namespace rnn_ext::cuda {

inline Launch launch_of(const StepsArgs& args, void* stream) {
  const Geometry& g = args.g;
  Launch l;
  l.blocks = int(args.D) * g.groups * g.unit_blocks;
  l.shared_bytes = g.shared_bytes;
  l.cluster = g.cluster ? g.unit_blocks : 1;
  l.cooperative = g.persistent && !g.cluster;
  l.stream = stream;
  return l;
}

// The kernel of a cell and storage type, with or without fragments held in registers.
template <class Cell, class S, bool kHeld>
constexpr auto kernel_of(const ForwardSteps&) { return forward_steps<Cell, S, kHeld>; }
template <class Cell, class S, bool kHeld>
constexpr auto kernel_of(const BackwardSteps&) { return backward_steps<Cell, S, kHeld>; }

template <class Cell, class S, class Args>
const char* launch_steps(const Args& args, void* stream) {
  if constexpr (sizeof(S) == 2) {
    if (args.g.held) return launch(kernel_of<Cell, S, true>(args), launch_of(args, stream), args);
  }
  return launch(kernel_of<Cell, S, false>(args), launch_of(args, stream), args);
}

template <class S>
const char* Kernels<S>::forward(int cell, const ForwardSteps& args, void* stream) {
  switch (CellKind(cell)) {
#define RNN_EXT_CASE(name, type, gates, states, tape) \
  case CellKind::name: return launch_steps<type, S>(args, stream);
    RNN_EXT_CELLS(RNN_EXT_CASE)
#undef RNN_EXT_CASE
    default: return "no such cell";
  }
}

template <class S>
const char* Kernels<S>::backward(int cell, const BackwardSteps& args, void* stream) {
  switch (CellKind(cell)) {
#define RNN_EXT_CASE(name, type, gates, states, tape) \
  case CellKind::name: return launch_steps<type, S>(args, stream);
    RNN_EXT_CELLS(RNN_EXT_CASE)
#undef RNN_EXT_CASE
    default: return "no such cell";
  }
}

template <class S>
const char* Kernels<S>::previous(const PreviousStates& args, void* stream) {
  Launch l;
  l.blocks = int(args.seq.T) * args.blocks_per_step;
  l.stream = stream;
  return launch(previous_states<S>, l, args);
}

template struct Kernels<RNN_EXT_STORAGE>;

}  // namespace rnn_ext::cuda
