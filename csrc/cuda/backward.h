// Backward of one layer's time loop:  dh_t = dy_t + W_hh^T da_{t+1},  da_t = cell.backward(h_t, dh_t),  both directions
// in one launch. The step after the last one makes the gradients of the initial states. Where h is projected, the product
// is the gradient of the cell's output, made ahead of the launch.
#pragma once
#include "around.h"
#include "block.h"
#include "cells.h"

namespace rnn_ext::cuda {

template <class Cell, class S, bool kHeld>
RNN_EXT_KERNEL(kThreads) backward_steps(RNN_EXT_PARAM BackwardSteps p) {
  using T = Compute<S>;
  constexpr int G = Cell::gates, C = Cell::columns;
  constexpr bool kCarries = Cell::carry != Carry::none;
  const int H = int(p.H);
  BlockWork<S, kHeld> work(p, G * H, 1, 1);
  const int d = work.direction, units = work.units, first_unit = work.first_unit;
  const int64_t first_sequence = work.first_sequence, outputs = p.D * p.P;

  const auto weight_row = [&](int r) { return static_cast<const S*>(p.W[d]) + int64_t(first_unit + r) * G * H; };
  const auto in_state = [&](int i, int u) { return (first_sequence + i) * H + first_unit + u; };
  const auto in_state_or_zero = [&](const void* state, int i, int u) {
    return state ? widen(static_cast<const S*>(state)[in_state(i, u)]) : T(0);
  };
  work.begin(weight_row);

  for (int64_t step = p.begin; step < p.end; ++step) {
    const int64_t s = p.seq.T - 1 - step;
    const int active = work.active(s), next = work.active(s + 1);
    const int here = larger(active, next);  // sequences at this step, and those that begin after it
    if (here == 0) continue;
    const bool loaded = work.published > 0;
    const int64_t row = active > 0 ? work.first_row(s) + first_sequence : 0;

    for (int i = thread(); i < here * units; i += threads()) {
      const int b = i / units, u = i % units;
      T dh = 0;
      if (b < active) {
        const int64_t at = (row + b) * outputs + d * H + first_unit + u;
        if (!p.projected) dh = given_gradient<S>(p.given, d, at, b >= next ? in_state(b, u) : -1);
      }
      work.sums[i] = dh;
      if (!kCarries) continue;
      if (b >= next) work.carry[i] = in_state_or_zero(p.dc_n[d], b, u);
      else if (!loaded) work.carry[i] = static_cast<const T*>(p.carry[d])[in_state(b, u)];
    }
    work.wait_for_group();

    for (int first = 0; first < here; first += p.g.tile) {
      const int count = smaller(p.g.tile, here - first);
      if (first < next && !p.g.apart) {
        const int64_t later = work.first_row(s + 1) - p.chunk_row[d] + first_sequence + first;
        const auto da_later = [&](int i) { return static_cast<const S*>(p.da_h[d]) + (later + i) * G * H; };
        work.multiply(smaller(count, next - first), weight_row, da_later, [&](int) { return p.g.cluster && loaded; });
      }
      for (int i = first * units + thread(); i < (first + count) * units; i += threads()) {
        const int b = i / units, u = i % units;
        T dh = work.sums[i], carry = work.carry[i];
        if (b < (p.projected ? active : next))
          dh += p.g.apart ? work.product_apart(b, first_unit + u, H) : work.product_of(b - first, u);
        if (Cell::carry == Carry::hidden) dh += carry;
        if (b >= active) {  // its first step was s + 1
          if (p.dh_0[d]) static_cast<T*>(p.dh_0[d])[in_state(b, u)] = dh;
          if (Cell::carry == Carry::cell && p.dc_0[d]) static_cast<T*>(p.dc_0[d])[in_state(b, u)] = carry;
          continue;
        }
        T tape_t[Cell::tape + 1], da[C];
        const S* tape = static_cast<const S*>(p.tape[d]) + (row + b) * (Cell::tape + p.projected) * H + first_unit + u;
        RNN_EXT_UNROLL
        for (int k = 0; k < Cell::tape; ++k) tape_t[k] = widen(tape[k * H]);
        const T h = widen(p.projected ? tape[Cell::tape * H]
                                      : static_cast<const S*>(p.y)[(row + b) * outputs + d * H + first_unit + u]);
        Cell::backward(tape_t, h, dh, carry, da);
        work.carry[i] = carry;
        const int64_t at = (row + b - p.chunk_row[d]) * G * H + first_unit + u;
        RNN_EXT_UNROLL
        for (int gate = 0; gate < G; ++gate) {
          static_cast<S*>(p.da_x[d])[at + gate * H] = narrow<S>(da[gate]);
          const S of_h = narrow<S>(da[Cell::hidden_column(gate)]);
          if (C > G) static_cast<S*>(p.da_h[d])[at + gate * H] = of_h;
          if (p.g.cluster) work.next_row(b)[gate * H + first_unit + u] = of_h;
        }
        if (kCarries && step + 1 == p.end) static_cast<T*>(p.carry[d])[in_state(b, u)] = carry;
      }
    }
    if (p.g.cluster) work.share(active, G);
    work.end_step();
  }
}

}  // namespace rnn_ext::cuda
