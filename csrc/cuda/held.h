// W of a block on the tensor cores for a whole launch: what a warp multiplies with first stays in its registers, the rest
// in shared memory (division.h). A lane reads what it wrote itself, so that no barrier is needed.
#pragma once
#include "division.h"
#include "fragments.h"

namespace rnn_ext::cuda {

template <class S>
class HeldWeights {
 public:
  // memory: g.weight_bytes;  weight_row(r): row r of W, of K elements, without gaps between rows.
  template <class Row>
  RNN_EXT_DEVICE void load(const Geometry& g, int rows, int K, void* memory, Row weight_row) {
    const Division division(g, rows, threads() / kWarp, sizeof(S));
    jobs = division.jobs;
    runs = division.runs;
    first = static_cast<Four<S>*>(memory) + division.shared_runs_before(thread() / kWarp) * kRun + thread() % kWarp;
    const bool aligned = K % 4 == 0 && reinterpret_cast<uintptr_t>(weight_row(0)) % sizeof(Four<S>) == 0;
    if (aligned) load_rows<true>(g, rows, K, weight_row);
    else load_rows<false>(g, rows, K, weight_row);
    copies_done();
  }

  // Products with N tiles of 8 sequences, v the lane's pointers (fragments.h): end(sums, row, slice) of each job.
  template <int N, class End>
  RNN_EXT_DEVICE void multiply(const Geometry& g, const S* const (&v)[N], End end) {
    float sum[N][4] = {};
    const auto add = [&](const Four<S>(&w)[2], int k) {
      const S* at[N];
      RNN_EXT_UNROLL
      for (int n = 0; n < N; ++n) at[n] = v[n] + k;
      multiply_run<N>(sum, w, at);
    };
    each_run(
        g,
        [&](const Four<S>(&w)[2], int, int k) {
          if (k < g.depth) add(w, k);
        },
        [&](const Four<S>* of_lane, int, int k) {
          const Four<S> w[2] = {of_lane[0], of_lane[kWarp]};
          add(w, k);
        },
        [&](int row, int slice) {
          end(sum, row, slice);
          RNN_EXT_UNROLL
          for (int i = 0; i < 4 * N; ++i) sum[i / 4][i % 4] = 0;
        });
  }

 private:
  static constexpr int kRun = 2 * kWarp;  // a run in shared memory: the upper four of every lane, then the lower
  static constexpr int kChunk = Division::runs_of_chunk(sizeof(S));

  int jobs, runs;  // as in Division
  Four<S>* first;  // in shared memory, of this lane
  Four<S> kept[kHeldChunks * kChunk][2];

  // This warp's runs in order: kept_run(w, row, k), where k may be past the end, and shared_run(of_lane, row, k);
  // end(row, slice) behind each job.
  template <class Kept, class Shared, class End>
  RNN_EXT_DEVICE void each_run(const Geometry& g, Kept kept_run, Shared shared_run, End end) {
    int job = thread() / kWarp, run = 0;
    int row = job / g.slices * 16, slice = job % g.slices;
    const auto k_of = [&](int run) { return (run * g.slices + slice) * 16; };
    const auto end_job = [&] {
      end(row, slice);
      job += threads() / kWarp, run = 0;
      row = job / g.slices * 16, slice = job % g.slices;
    };
    RNN_EXT_UNROLL
    for (int c = 0; c < kHeldChunks; ++c) {
      if (job >= jobs) continue;
      RNN_EXT_UNROLL
      for (int i = 0; i < kChunk; ++i) kept_run(kept[c * kChunk + i], row, k_of(run + i));
      run += kChunk;
      if (run >= runs) end_job();
    }
    Four<S>* of_lane = first;
    for (; job < jobs; end_job())
      for (; k_of(run) < g.depth; ++run, of_lane += kRun) shared_run(of_lane, row, k_of(run));
  }

  template <bool kAligned, class Row>
  RNN_EXT_DEVICE void load_rows(const Geometry& g, int rows, int K, Row weight_row) {
    const int group = thread() % kWarp / 4, pair = thread() % 4;
    const auto row_of = [&](int row) { return weight_row(row + group < rows ? row + group : rows - 1); };
    each_run(
        g,
        [&](Four<S>(&w)[2], int row, int k) {
          RNN_EXT_UNROLL
          for (int i = 0; i < 2; ++i) w[i] = four_of_row<kAligned>(row_of(row + 8 * i), k + 4 * pair, K);
        },
        [&](Four<S>* of_lane, int row, int k) {
          RNN_EXT_UNROLL
          for (int i = 0; i < 2; ++i) {
            const S* from = row_of(row + 8 * i);
            if (kAligned && k + 4 * pair < K) copy_async<sizeof(Four<S>)>(of_lane + i * kWarp, from + k + 4 * pair);
            else of_lane[i * kWarp] = four_of_row<kAligned>(from, k + 4 * pair, K);
          }
        },
        [](int, int) {});
  }

  // Zeros past the end of the row. kAligned: and four elements are either all inside or all behind it.
  template <bool kAligned>
  RNN_EXT_DEVICE static Four<S> four_of_row(const S* row, int k, int K) {
    if constexpr (kAligned) {
      return k < K ? four(row + k) : Four<S>{};
    } else {
      alignas(Four<S>) S elements[4];
      RNN_EXT_UNROLL
      for (int i = 0; i < 4; ++i) elements[i] = k + i < K ? row[k + i] : S{};
      return four(elements);
    }
  }
};

}  // namespace rnn_ext::cuda
