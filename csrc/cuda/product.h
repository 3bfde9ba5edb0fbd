// The product of a step on one block: sums over k of W[row][k] v[sequence][k], both staged in shared memory with k
// contiguous, or W held (held.h). Each sum is split into slices that different warps add up, so that small products keep
// all warps busy.
#pragma once
#include "held.h"

namespace rnn_ext::cuda {

RNN_EXT_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
RNN_EXT_DEVICE int larger(int a, int b) { return a > b ? a : b; }

// Of n values on each lane, the sum over all lanes of value lane * n / 32. Always the same order of additions.
template <int n, class T>
RNN_EXT_DEVICE T sum_over_lanes(T* value, int lanes = kWarp / 2) {
  if constexpr (n > 1) {
    const bool upper = (thread() & lanes) != 0;
    RNN_EXT_UNROLL
    for (int i = 0; i < n / 2; ++i) {
      const T low = value[i], high = value[i + n / 2];
      value[i] = (upper ? high : low) + shuffle_xor(upper ? low : high, lanes);
    }
    return sum_over_lanes<n / 2>(value, lanes / 2);
  } else {
    T sum = value[0];
    for (; lanes >= 1; lanes /= 2) sum += shuffle_xor(sum, lanes);
    return sum;
  }
}

template <class S>
RNN_EXT_DEVICE void unpack(Line line, Compute<S>* values) {
  S stored[kPerLine<S>];
  __builtin_memcpy(stored, &line, sizeof line);
  RNN_EXT_UNROLL
  for (int i = 0; i < kPerLine<S>; ++i) values[i] = widen(stored[i]);
}

// Sums of the rows x sequences of one block. `parts` is [slices, tile, rows].
template <class S>
struct Product {
  using T = Compute<S>;
  const Geometry& g;
  const S* weights;  // [rows, stride], where they are not held
  const S* staged;   // [sequences, stride]
  T* parts;
  int rows, sequences;

  RNN_EXT_DEVICE T* part(int slice, int sequence, int row) const {
    return parts + (slice * g.tile + sequence) * rows + row;
  }

  // Of the slices.
  RNN_EXT_DEVICE T sum(int sequence, int row) const {
    T total = 0;
    for (int i = 0; i < g.slices; ++i) total += *part(i, sequence, row);
    return total;
  }

  // With W as it is held.
  RNN_EXT_DEVICE void run(HeldWeights<S>& held) const {
    if (sequences > 8) by_held<2>(held);
    else by_held<1>(held);
  }

  // All warps; `first` overwrites the sums, else it adds to them.
  RNN_EXT_DEVICE void run(bool first) const {
    if constexpr (sizeof(S) <= 4) {
      if (g.fragments) return sequences > 8 ? by_fragments<2>(first) : by_fragments<1>(first);
    }
    // The more at once, the fewer loads for each multiply-add.
    if constexpr (sizeof(S) == 4) {
      if (large_tiles(rows, g.tile, sizeof(S))) return by_lanes<8, 8>(first);
    }
    if (g.tile > 1) by_lanes<4, 4>(first);
    else by_lanes<4, 1>(first);
  }

 private:
  // Each lane takes every 32nd line of k, for R rows and N sequences at once.
  template <int R, int N>
  RNN_EXT_DEVICE void by_lanes(bool first) const {
    const int row_tiles = (rows + R - 1) / R, sequence_tiles = (sequences + N - 1) / N;
    const int jobs = row_tiles * sequence_tiles * g.slices, lane = thread() % kWarp;
    for (int job = thread() / kWarp; job < jobs; job += threads() / kWarp) {
      const int slice = job % g.slices, rest = job / g.slices;
      const int row = rest % row_tiles * R, sequence = rest / row_tiles * N;
      T sum[R * N] = {};
      for (int line = slice * kWarp + lane; line < g.depth / kPerLine<S>; line += g.slices * kWarp) {
        T w[R][kPerLine<S>];
        RNN_EXT_UNROLL
        for (int r = 0; r < R; ++r) unpack<S>(line_of(weights, smaller(row + r, rows - 1), line), w[r]);
        RNN_EXT_UNROLL
        for (int n = 0; n < N; ++n) {
          T v[kPerLine<S>];
          unpack<S>(line_of(staged, smaller(sequence + n, sequences - 1), line), v);
          RNN_EXT_UNROLL
          for (int r = 0; r < R; ++r) {
            RNN_EXT_UNROLL
            for (int i = 0; i < kPerLine<S>; ++i) sum[r * N + n] = fma(w[r][i], v[i], sum[r * N + n]);
          }
        }
      }
      constexpr int kAtOnce = R * N < kWarp ? R * N : kWarp;
      RNN_EXT_UNROLL
      for (int done = 0; done < R * N; done += kAtOnce) {
        const T total = sum_over_lanes<kAtOnce>(sum + done);
        const int mine = done + lane * kAtOnce / kWarp, r = row + mine / N, n = sequence + mine % N;
        if (lane % (kWarp / kAtOnce) == 0 && r < rows && n < sequences) put(slice, n, r, total, first);
      }
    }
  }

  // 16 rows and N tiles of 8 sequences at once, 16 of k at a time.
  template <int N>
  RNN_EXT_DEVICE void by_fragments(bool first) const {
    const int row_tiles = (rows + 15) / 16, sequence_tiles = (sequences + 8 * N - 1) / (8 * N);
    const int jobs = row_tiles * sequence_tiles * g.slices;
    const int group = thread() % kWarp / 4, pair = thread() % 4;
    for (int job = thread() / kWarp; job < jobs; job += threads() / kWarp) {
      const int slice = job % g.slices, rest = job / g.slices;
      const int row = rest % row_tiles * 16, sequence = rest / row_tiles * 8 * N;
      const S* upper = weights + smaller(row + group, rows - 1) * g.stride + 4 * pair;
      const S* lower = weights + smaller(row + group + 8, rows - 1) * g.stride + 4 * pair;
      const S* v[N];
      vectors<N>(v, sequence);
      float sum[N][4] = {};
      for (int k = slice * 16; k < g.depth; k += g.slices * 16) {
        const S* at[N];
        RNN_EXT_UNROLL
        for (int n = 0; n < N; ++n) at[n] = v[n] + k;
        const Four<S> w[2] = {four(upper + k), four(lower + k)};
        multiply_run<N>(sum, w, at);
      }
      put_fragments<N>(sum, slice, row, sequence, first);
    }
  }

  template <int N>
  RNN_EXT_DEVICE void by_held(HeldWeights<S>& held) const {
    for (int sequence = 0; sequence < sequences; sequence += 8 * N) {
      const S* v[N];
      vectors<N>(v, sequence);
      held.template multiply<N>(g, v, [&](const float (&sum)[N][4], int row, int slice) {
        put_fragments<N>(sum, slice, row, sequence, true);
      });
    }
  }

  // A lane's pointers to the sequences of N tiles.
  template <int N>
  RNN_EXT_DEVICE void vectors(const S* (&v)[N], int sequence) const {
    const int group = thread() % kWarp / 4, pair = thread() % 4;
    RNN_EXT_UNROLL
    for (int n = 0; n < N; ++n)
      v[n] = staged + smaller(sequence + 8 * n + group, sequences - 1) * g.stride + 4 * pair;
  }

  template <int N>
  RNN_EXT_DEVICE void put_fragments(const float (&sum)[N][4], int slice, int row, int sequence, bool first) const {
    const int group = thread() % kWarp / 4, pair = thread() % 4;
    RNN_EXT_UNROLL
    for (int n = 0; n < N; ++n) {
      RNN_EXT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int r = row + group + i / 2 * 8, s = sequence + 8 * n + 2 * pair + i % 2;
        if (r < rows && s < sequences) put(slice, s, r, sum[n][i], first);
      }
    }
  }

  RNN_EXT_DEVICE void put(int slice, int sequence, int row, T sum, bool first) const {
    T* to = part(slice, sequence, row);
    *to = first ? sum : *to + sum;
  }
  RNN_EXT_DEVICE const Line& line_of(const S* matrix, int row, int line) const {
    return reinterpret_cast<const Line*>(matrix + row * g.stride)[line];
  }
};

}  // namespace rnn_ext::cuda
