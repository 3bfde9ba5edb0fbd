// Compiled once for each storage type, RNN_EXT_STORAGE = float, double, bfloat16, float16.
#include <algorithm>

#include "kernels.h"

#include "around.h"
#include "backward.h"
#include "forward.h"
#include "multiply.h"

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

// The kernel of a cell and storage type, with W held for the tensor cores or not.
template <class Cell, class S, bool kHeld>
constexpr auto kernel_of(const ForwardSteps&) { return forward_steps<Cell, S, kHeld>; }
template <class Cell, class S, bool kHeld>
constexpr auto kernel_of(const BackwardSteps&) { return backward_steps<Cell, S, kHeld>; }

// act(the kernel of these arguments).
template <class S, class Args, class Act>
const char* with_kernel(int cell, const Args& args, Act act) {
  const auto of = [&]<class Cell>(Cell) {
    if constexpr (sizeof(S) <= 4) {
      if (args.g.held) return act(kernel_of<Cell, S, true>(args));
    }
    return act(kernel_of<Cell, S, false>(args));
  };
  switch (CellKind(cell)) {
#define RNN_EXT_CASE(name, type) \
  case CellKind::name: return of(type());
    RNN_EXT_CELLS(RNN_EXT_CASE)
#undef RNN_EXT_CASE
    default: return "no such cell";
  }
}

template <class S, class Args>
const char* run_steps(int cell, const Args& args, void* stream) {
  return with_kernel<S>(cell, args, [&](auto kernel) { return launch(kernel, launch_of(args, stream), args); });
}
template <class S, class Args>
const char* prepare_steps(int cell, const Args& args, bool& fits) {
  const Launch l = launch_of(args, nullptr);
  int at_once = 0;
  const char* error = with_kernel<S>(cell, args, [&](auto kernel) { return prepare_launch(kernel, l, &at_once); });
  fits = at_once >= (l.cooperative ? l.blocks : l.cluster);
  return error;
}

template <class S>
const char* Kernels<S>::run(int cell, const ForwardSteps& args, void* stream) {
  return run_steps<S>(cell, args, stream);
}
template <class S>
const char* Kernels<S>::run(int cell, const BackwardSteps& args, void* stream) {
  return run_steps<S>(cell, args, stream);
}
template <class S>
const char* Kernels<S>::prepare(int cell, const ForwardSteps& args, bool& fits) {
  return prepare_steps<S>(cell, args, fits);
}
template <class S>
const char* Kernels<S>::prepare(int cell, const BackwardSteps& args, bool& fits) {
  return prepare_steps<S>(cell, args, fits);
}

template <class S>
const char* Kernels<S>::run(const PreviousStates& args, void* stream) {
  Launch l;
  l.blocks = int(args.times) * args.blocks_per_step;
  l.stream = stream;
  return launch(previous_states<S>, l, args);
}
template <class S>
const char* Kernels<S>::run(const StateGradients& args, void* stream) {
  Launch l;
  l.blocks = int((args.seq.B * args.P + kThreads - 1) / kThreads);
  l.stream = stream;
  return launch(state_gradients<S>, l, args);
}
template <class S>
const char* Kernels<S>::run(const MultiplyRows& args, void* stream) {
  Launch l;
  l.blocks = args.g.unit_blocks * args.g.groups;
  l.shared_bytes = args.g.shared_bytes;
  l.stream = stream;
  return launch(multiply_rows<S>, l, args);
}

template <class S>
const char* Kernels<S>::run(const Add& args, void* stream) {
  Launch l;
  l.blocks = int(std::min<int64_t>((args.count + kThreads - 1) / kThreads, 4096));
  l.stream = stream;
  return launch(add<S>, l, args);
}

template struct Kernels<RNN_EXT_STORAGE>;

}  // namespace rnn_ext::cuda
