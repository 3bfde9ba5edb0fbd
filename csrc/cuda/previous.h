// A small kernel around the time loop.
#pragma once
#include "storage.h"
#include "steps.h"

namespace rnn_ext::cuda {

template <class S>
RNN_EXT_KERNEL(kThreads) previous_states(RNN_EXT_PARAM PreviousStates p) {
  const int64_t t = block() / p.blocks_per_step, before = p.direction == 0 ? t - 1 : t + 1;
  const int64_t going = before < 0 || before >= p.seq.T ? 0 : p.seq.active(before);
  const int64_t count = p.seq.active(t) * p.H, row = p.seq.first_row(t);
  const int64_t row_before = going > 0 ? p.seq.first_row(before) : 0;
  for (int64_t i = block() % p.blocks_per_step * int64_t(threads()) + thread(); i < count;
       i += int64_t(p.blocks_per_step) * threads()) {
    const int64_t b = i / p.H, j = i % p.H;
    S h{};
    if (b < going) h = static_cast<const S*>(p.y)[(row_before + b) * p.D * p.H + p.direction * p.H + j];
    else if (p.h_0) h = static_cast<const S*>(p.h_0)[b * p.H + j];
    static_cast<S*>(p.previous)[(row + b) * p.H + j] = h;
  }
}

}  // namespace rnn_ext::cuda
