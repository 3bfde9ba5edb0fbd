// Forward of one layer's time loop:  h_t = cell(W_ih x_t + W_hh h_{t-1} + b),  both directions in one launch. Where h is
// projected, the cell's output is all that a launch makes.
#pragma once
#include "block.h"
#include "cells.h"

namespace rnn_ext::cuda {

template <class Cell, class S, bool kHeld>
RNN_EXT_KERNEL(kThreads) forward_steps(RNN_EXT_PARAM ForwardSteps p) {
  using T = Compute<S>;
  constexpr int G = Cell::gates, C = Cell::columns;
  const int H = int(p.H);
  BlockWork<S, kHeld> work(p, H, G, C);
  const int d = work.direction, units = work.units, first_unit = work.first_unit;
  const int64_t first_sequence = work.first_sequence, outputs = p.D * p.P;

  // Rows of this block: unit by unit, gate by gate.
  const auto weight_row = [&](int r) {
    return static_cast<const S*>(p.W[d]) + (int64_t(r % G) * H + first_unit + r / G) * H;
  };
  // Unit u of sequence i in a state [B, H].
  const auto in_state = [&](int i, int u) { return (first_sequence + i) * H + first_unit + u; };
  const auto output_row = [&](int64_t s, int i) {
    return static_cast<S*>(p.y) + (work.first_row(s) + first_sequence + i) * outputs + d * p.P;
  };
  work.begin(weight_row);

  for (int64_t s = p.begin; s < p.end; ++s) {
    const int active = work.active(s), before = work.active(s - 1), next = work.active(s + 1);
    if (active == 0) continue;
    const bool loaded = work.published > 0;  // the states of going sequences are in shared memory
    const int64_t row = work.first_row(s) + first_sequence;

    // What does not need the other blocks comes first, while they may still be at work.
    for (int i = thread(); i < active * units; i += threads()) {
      const int b = i / units, u = i % units;
      const T* projection = static_cast<const T*>(p.projection[d]) + (row + b - p.chunk_row[d]) * G * H + first_unit + u;
      T a[C] = {};
      RNN_EXT_UNROLL
      for (int gate = 0; gate < G; ++gate) {
        a[gate] += projection[gate * H];
        if (p.b_ih[d]) {
          a[gate] += widen(static_cast<const S*>(p.b_ih[d])[gate * H + first_unit + u]);
          a[Cell::hidden_column(gate)] += widen(static_cast<const S*>(p.b_hh[d])[gate * H + first_unit + u]);
        }
      }
      RNN_EXT_UNROLL
      for (int c = 0; c < C; ++c) work.sums[(b * C + c) * units + u] = a[c];
      if (b >= before) {
        work.h[i] = p.h_0[d] && !p.projected ? widen(static_cast<const S*>(p.h_0[d])[in_state(b, u)]) : T(0);
        if (Cell::carry == Carry::cell)
          work.carry[i] = p.c_0[d] ? widen(static_cast<const S*>(p.c_0[d])[in_state(b, u)]) : T(0);
      } else if (!loaded) {
        work.h[i] = p.projected ? T(0) : widen(output_row(s - 1, b)[first_unit + u]);
        if (Cell::carry == Carry::cell) work.carry[i] = static_cast<const T*>(p.c[d])[in_state(b, u)];
      }
    }
    work.wait_for_group();

    for (int first = 0; first < active; first += p.g.tile) {
      const int count = smaller(p.g.tile, active - first);
      const auto previous = [&](int i) -> const S* {
        const int b = first + i;
        if (b < before) return output_row(s - 1, b);
        return p.h_0[d] ? static_cast<const S*>(p.h_0[d]) + (first_sequence + b) * H : nullptr;
      };
      if (!p.g.apart)
        work.multiply(count, weight_row, previous, [&](int i) { return p.g.cluster && loaded && first + i < before; });
      for (int i = first * units + thread(); i < (first + count) * units; i += threads()) {
        const int b = i / units, u = i % units;
        T a[C], tape_t[Cell::tape + 1], c = work.carry[i];
        RNN_EXT_UNROLL
        for (int column = 0; column < C; ++column) a[column] = work.sums[(b * C + column) * units + u];
        RNN_EXT_UNROLL
        for (int gate = 0; gate < G; ++gate)
          a[Cell::hidden_column(gate)] += p.g.apart
                                              ? work.product_apart(b, int64_t(gate) * H + first_unit + u, int64_t(G) * H)
                                              : work.product_of(b - first, u * G + gate);
        const T h = as_stored<S>(Cell::forward(a, work.h[i], c, tape_t));
        work.h[i] = h;
        work.carry[i] = c;
        if (p.projected) static_cast<S*>(p.out[d])[(first_sequence + b) * p.out_stride + first_unit + u] = narrow<S>(h);
        else output_row(s, b)[first_unit + u] = narrow<S>(h);
        if (p.g.cluster) work.next_row(b)[first_unit + u] = narrow<S>(h);
        if (p.tape[d]) {
          S* tape = static_cast<S*>(p.tape[d]) + (row + b) * (Cell::tape + p.projected) * H + first_unit + u;
          RNN_EXT_UNROLL
          for (int k = 0; k < Cell::tape; ++k) tape[k * H] = narrow<S>(tape_t[k]);
        }
        if (b >= next) {
          if (!p.projected) static_cast<S*>(p.h_n[d])[in_state(b, u)] = narrow<S>(h);
          if (Cell::carry == Carry::cell) static_cast<S*>(p.c_n[d])[in_state(b, u)] = narrow<S>(c);
        } else if (Cell::carry == Carry::cell && s + 1 == p.end) {
          static_cast<T*>(p.c[d])[in_state(b, u)] = c;
        }
      }
    }
    if (p.g.cluster) work.share(active, 1);
    work.end_step();
  }
}

}  // namespace rnn_ext::cuda
