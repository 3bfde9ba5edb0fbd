// A product of two matrices for which the order of every sum is fixed: that of the pieces of k, whatever M is. A block
// makes g.units columns of the result for g.tile rows.
#pragma once
#include "product.h"
#include "staging.h"

namespace rnn_ext::cuda {

template <class S>
RNN_EXT_KERNEL(kThreads) multiply_rows(RNN_EXT_PARAM MultiplyRows p) {
  using T = Compute<S>;
  const Geometry& g = p.g;
  const int64_t n = block() % g.unit_blocks * int64_t(g.units), m = block() / g.unit_blocks * int64_t(g.tile);
  const int columns = int(p.N - n < g.units ? p.N - n : g.units), rows = int(p.M - m < g.tile ? p.M - m : g.tile);
  const Layout at(g, g.units, 0, sizeof(S), sizeof(T));
  S* weights = reinterpret_cast<S*>(shared() + at.weights);
  S* staged = reinterpret_cast<S*>(shared() + at.staged);
  T* parts = reinterpret_cast<T*>(shared() + at.parts);
  const Product<S> product{g, weights, staged, parts, columns, rows};
  for (int k = 0; k < int(p.K); k += g.depth) {
    stage(g, int(p.K), weights, columns, k, [&](int i) { return static_cast<const S*>(p.b) + (n + i) * p.b_stride; });
    stage(g, int(p.K), staged, rows, k, [&](int i) { return static_cast<const S*>(p.a) + (m + i) * p.a_stride; });
    copies_done();
    sync();
    product.run(k == 0);
    sync();
  }
  for (int i = thread(); i < rows * columns; i += threads()) {
    const int64_t to = (m + i / columns) * p.out_stride + n + i % columns;
    T sum = product.sum(i / columns, i % columns);
    if (p.stored) {
      static_cast<S*>(p.out)[to] = narrow<S>(sum);
    } else {
      T* out = static_cast<T*>(p.out) + to;
      *out = p.add ? *out + sum : sum;
    }
  }
}

}  // namespace rnn_ext::cuda
