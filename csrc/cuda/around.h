// Small kernels around the time loop, pointwise.
#pragma once
#include "steps.h"
#include "storage.h"

namespace rnn_ext::cuda {

template <class S>
RNN_EXT_KERNEL(kThreads) add(RNN_EXT_PARAM Add p) {
  for (int64_t i = block() * int64_t(threads()) + thread(); i < p.count; i += int64_t(blocks()) * threads())
    static_cast<Compute<S>*>(p.to)[i] += static_cast<const Compute<S>*>(p.from)[i];
}

template <class S>
RNN_EXT_KERNEL(kThreads) previous_states(RNN_EXT_PARAM PreviousStates p) {
  const int64_t t = p.first_time + block() / p.blocks_per_step, before = p.direction == 0 ? t - 1 : t + 1;
  const int64_t going = before < 0 || before >= p.seq.T ? 0 : p.seq.active_at(before);
  const int64_t count = p.seq.active_at(t) * p.P, row = p.seq.first_row_at(t) - p.first_row;
  const int64_t row_before = going > 0 ? p.seq.first_row_at(before) : 0;
  for (int64_t i = block() % p.blocks_per_step * int64_t(threads()) + thread(); i < count;
       i += int64_t(p.blocks_per_step) * threads()) {
    const int64_t b = i / p.P, j = i % p.P;
    S h{};
    if (b < going) h = static_cast<const S*>(p.y)[(row_before + b) * p.D * p.P + p.direction * p.P + j];
    else if (p.h_0) h = static_cast<const S*>(p.h_0)[b * p.P + j];
    static_cast<S*>(p.previous)[(row + b) * p.P + j] = h;
  }
}

// Of one unit: `at` in [R, D*P]; `state` in [B, P] at a sequence's last step, else -1.
template <class S>
RNN_EXT_DEVICE Compute<S> given_gradient(const OutputGradients& given, int direction, int64_t at, int64_t state) {
  Compute<S> dh = 0;
  if (given.dy) dh = widen(static_cast<const S*>(given.dy)[at]);
  if (given.dy_above) {
    dh = static_cast<const Compute<S>*>(given.dy_above)[at];
    if (given.mask) dh *= widen(static_cast<const S*>(given.mask)[at]);
  }
  if (state >= 0 && given.dh_n[direction]) dh += widen(static_cast<const S*>(given.dh_n[direction])[state]);
  return dh;
}

template <class S>
RNN_EXT_KERNEL(kThreads) state_gradients(RNN_EXT_PARAM StateGradients p) {
  const int64_t active = p.seq.active(p.direction, p.step), next = p.seq.active(p.direction, p.step + 1);
  const int64_t row = active > 0 ? p.seq.first_row(p.direction, p.step) : 0, here = active > next ? active : next;
  for (int64_t i = block() * int64_t(threads()) + thread(); i < here * p.P; i += int64_t(blocks()) * threads()) {
    const int64_t b = i / p.P, j = i % p.P;
    Compute<S> dh = b < next ? static_cast<const Compute<S>*>(p.product)[i] : 0;
    if (b < active) {
      dh += given_gradient<S>(p.given, int(p.direction), (row + b) * p.D * p.P + p.direction * p.P + j, b >= next ? i : -1);
      static_cast<S*>(p.dh)[(row - p.chunk_row + b) * p.P + j] = narrow<S>(dh);
    } else if (p.dh_0) {
      static_cast<Compute<S>*>(p.dh_0)[i] = dh;
    }
  }
}

}  // namespace rnn_ext::cuda
