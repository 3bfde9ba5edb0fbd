// Rows of a matrix into shared memory.
#pragma once
#include "steps.h"
#include "storage.h"

namespace rnn_ext::cuda {

// Rows [0, count) of a matrix of K columns, elements [k, k + depth), zeros past the end of a row and where row(i) is
// null. held(i): the row is there already. There after copies_done() and sync().
template <class S, class Row, class Held>
RNN_EXT_DEVICE void stage(const Geometry& g, int K, S* to, int count, int k, Row row, Held held) {
  constexpr int V = kPerLine<S>;
  const int lines = g.depth / V;
  for (int i = thread(); i < count * lines; i += threads()) {
    const int r = i / lines, at = i % lines * V;
    if (held(r)) continue;
    const S* from = row(r);
    S* out = to + r * g.stride + at;
    const bool whole = from && k + at + V <= K && reinterpret_cast<uintptr_t>(from + k + at) % 16 == 0;
    if (whole) {
      copy_async<16>(out, from + k + at);
    } else {
      for (int e = 0; e < V; ++e) out[e] = from && k + at + e < K ? fresh(from + k + at + e) : S{};
    }
  }
}
template <class S, class Row>
RNN_EXT_DEVICE void stage(const Geometry& g, int K, S* to, int count, int k, Row row) {
  stage(g, K, to, count, k, row, [](int) { return false; });
}

}  // namespace rnn_ext::cuda
