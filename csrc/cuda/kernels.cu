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

template <class S>
const char* Kernels<S>::forward(int cell, const ForwardSteps& args, void* stream) {
  switch (CellKind(cell)) {
#define RNN_EXT_CASE(name, type, gates, states, tape) \
  case CellKind::name: return launch(forward_steps<type, S>, launch_of(args, stream), args);
    RNN_EXT_CELLS(RNN_EXT_CASE)
#undef RNN_EXT_CASE
    default: return "no such cell";
  }
}

template <class S>
const char* Kernels<S>::backward(int cell, const BackwardSteps& args, void* stream) {
  switch (CellKind(cell)) {
#define RNN_EXT_CASE(name, type, gates, states, tape) \
  case CellKind::name: return launch(backward_steps<type, S>, launch_of(args, stream), args);
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
