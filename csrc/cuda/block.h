// What forward and backward share on one block: which units and sequences are its own, its product, and how the blocks of
// a group learn each other's results.
#pragma once
#include "product.h"
#include "staging.h"

namespace rnn_ext::cuda {

// kHeld: W stays in registers and shared memory, for the tensor cores.
template <class S, bool kHeld>
struct BlockWork {
  using T = Compute<S>;
  const StepsArgs& p;
  const Geometry& g;
  const int K;  // length of the product's sums
  int direction, part;  // part: which of the unit_blocks
  int first_unit, units, first_sequence, rows;
  S *weights, *staged;
  T *parts, *sums, *h, *carry;
  uint32_t* flags;         // of the group: how many results each of its blocks has published
  uint32_t published = 0;  // by this block
  HeldWeights<S> held;
  int turn = 0;            // which half of `staged` holds this step's rows in a cluster

  // rows_per_unit: rows of W for each hidden unit; columns: sums kept for each.
  RNN_EXT_DEVICE BlockWork(const StepsArgs& args, int K, int rows_per_unit, int columns) : p(args), g(args.g), K(K) {
    part = block() % g.unit_blocks;
    const int group = block() / g.unit_blocks % g.groups;
    direction = block() / g.unit_blocks / g.groups;
    first_unit = part * g.units;
    units = larger(smaller(g.units, int(p.H) - first_unit), 0);
    first_sequence = group * g.sequences;
    rows = units * rows_per_unit;
    flags = p.flags + (direction * g.groups + group) * g.unit_blocks;
    const Layout at(g, g.units * rows_per_unit, columns, sizeof(S), sizeof(T));
    weights = reinterpret_cast<S*>(shared() + at.weights);
    staged = reinterpret_cast<S*>(shared() + at.staged);
    parts = reinterpret_cast<T*>(shared() + at.parts);
    sums = reinterpret_cast<T*>(shared() + at.sums);
    h = reinterpret_cast<T*>(shared() + at.h);
    carry = reinterpret_cast<T*>(shared() + at.carry);
  }

  // Where this block runs through time.
  RNN_EXT_DEVICE int64_t first_row(int64_t s) const { return p.seq.first_row(direction, s); }
  // Sequences of the group that take part in step s; none before the first and after the last.
  RNN_EXT_DEVICE int active(int64_t s) const {
    const int64_t n = p.seq.active(direction, s) - first_sequence;
    return n < 0 ? 0 : n < g.sequences ? int(n) : g.sequences;
  }

  // weight_row(r): row r of this block's part of W. Once, before the first product.
  template <class Row>
  RNN_EXT_DEVICE void begin(Row weight_row) {
    if constexpr (kHeld) held.load(g, rows, K, weights, weight_row);
    else if (g.resident) stage(g, K, weights, rows, 0, weight_row);
    if (!g.cluster) return;
    for (int i = thread(); i < 2 * g.sequences * g.stride; i += threads()) staged[i] = S{};
    sync_cluster();  // from here on the others may write
  }

  // Into `parts`: the products of W with row(i) of the sequences [0, count).
  template <class Weights, class Row, class There>
  RNN_EXT_DEVICE void multiply(int count, Weights weight_row, Row row, There there) {
    S* v = staged + (g.cluster ? turn * g.sequences * g.stride : 0);
    const Product<S> product{g, weights, v, parts, rows, count};
    for (int k = 0; k < K; k += g.depth) {
      if (!kHeld && !g.resident) stage(g, K, weights, rows, k, weight_row);
      stage(g, K, v, count, k, row, there);
      copies_done();
      sync();
      if constexpr (kHeld) product.run(held);
      else product.run(k == 0);
      sync();
    }
  }
  // Where the product is a launch of its own: that of column j for sequence i, in rows of `width`.
  RNN_EXT_DEVICE T product_apart(int i, int64_t j, int64_t width) const {
    return static_cast<const T*>(p.product[direction])[(first_sequence + i) * width + j];
  }
  RNN_EXT_DEVICE T product_of(int sequence, int row) const {
    return Product<S>{g, weights, staged, parts, rows, 0}.sum(sequence, row);
  }

  // Waits until every block of the group has published as much as this one. Also a barrier of this block.
  RNN_EXT_DEVICE void wait_for_group() const {
    if (g.persistent && !g.cluster && published > 0)
      for (int i = thread(); i < g.unit_blocks; i += threads()) wait_until_at_least(flags + i, published);
    sync();
  }
  // Ends a step: what this block wrote is there for the others.
  RNN_EXT_DEVICE void end_step() {
    if (g.cluster) {
      sync_cluster();
      turn ^= 1;
    } else {
      sync();
      if (g.persistent && thread() == 0) publish(flags + part, published + 1);
    }
    ++published;
  }

  // In a cluster: where the next step's row of a sequence is put together.
  RNN_EXT_DEVICE S* next_row(int sequence) const {
    return staged + ((turn ^ 1) * g.sequences + sequence) * g.stride;
  }
  // Copies this block's units of the next rows to all others of the cluster; a row holds `segments` times H.
  RNN_EXT_DEVICE void share(int count, int segments) const {
    constexpr int V = kPerLine<S>;
    sync();
    const int lines = (units + V - 1) / V, each = count * segments * lines;
    for (int i = thread(); i < (g.unit_blocks - 1) * each; i += threads()) {
      const int other = i / each, rest = i % each;
      const int peer = other < part ? other : other + 1;
      const int k = rest / lines % segments * int(p.H) + first_unit + rest % lines * V;
      S* mine = next_row(rest / lines / segments) + k;
      *reinterpret_cast<Line*>(shared_of_peer(reinterpret_cast<char*>(mine), peer)) = *reinterpret_cast<Line*>(mine);
    }
  }
};

}  // namespace rnn_ext::cuda
