// What the kernels are told, and how a block lays out its shared memory.
//
// A launch is a grid of  directions x groups of sequences x blocks of hidden units.  Only the blocks of one group and
// direction need each other's results: of every step, the states (backward: the gate gradients) of all units.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../params.h"

namespace rnn_ext::cuda {

// How the work of one step is divided, and for how many steps a launch runs. Made by plan.cpp.
struct Geometry {
  int units = 1;        // hidden units of a block, with all their gates
  int unit_blocks = 1;  // blocks that share a group of sequences
  int sequences = 1;    // of a group
  int groups = 1;
  int tile = 1;         // sequences whose rows are staged in shared memory at once
  int depth = 1;        // elements of a weight row that are staged at once; a whole number of 16-byte lines
  int stride = 1;       // distance of staged rows in elements
  int slices = 1;       // parts of a sum that different warps add up
  bool resident = false;    // depth is the whole row: the weights are loaded once a launch
  bool persistent = false;  // all steps in one launch, all blocks alive at once
  bool cluster = false;     // the unit_blocks are a cluster and write into each other's shared memory
  bool fragments = false;   // products on the tensor cores
  bool held = false;        // and W stays in registers, what does not fit there in shared memory (held.h)
  bool apart = false;       // the products of a step are launches of their own; the kernel does what is pointwise
  bool library = false;     // and they are torch's
  size_t weight_bytes = 0;  // of W in shared memory
  size_t shared_bytes = 0;
};

// Whether the multiply-adds of a block's product take 8 rows and 8 sequences at once. Other types than float would not
// fit into registers.
RNN_EXT_INLINE bool large_tiles(int rows, int tile, size_t storage) { return storage == 4 && rows >= 32 && tile >= 8; }

// Offsets in the shared memory of a block, in bytes; `end` is what it needs in all.
struct Layout {
  size_t weights, staged, parts, sums, h, carry, end;

  // rows: of W that a block of `units` units multiplies with; columns: pre-activations of a unit.
  RNN_EXT_INLINE Layout(const Geometry& g, int rows, int columns, size_t storage, size_t compute) {
    size_t used = 0;
    const auto take = [&](size_t bytes) {
      const size_t at = used;
      used += (bytes + 15) / 16 * 16;
      return at;
    };
    const size_t pairs = size_t(g.sequences) * g.units;
    weights = take(g.weight_bytes);
    // A cluster's blocks write the next step's rows while this step's are being read.
    staged = take((g.cluster ? 2 * size_t(g.sequences) : size_t(g.tile)) * g.stride * storage);
    parts = take(size_t(g.slices) * g.tile * rows * compute);
    sums = take(pairs * columns * compute);
    h = take(pairs * compute);
    carry = take(pairs * compute);
    end = used;
  }
};

// Both directions of one layer; the index of an array is the direction. Steps are numbered in the order in which a
// direction runs them; the tables of `seq` lie in device memory. S is the storage type of the call, T its compute type.
// What is needed of all steps but not of all at once is there for a chunk of steps; "rows" are then those of the chunk.
struct StepsArgs {
  Sequences seq;
  Geometry g;
  int64_t H = 0, P = 0, D = 0;  // P: size of h; only where the products are apart may it differ from H
  bool projected = false;       // h is W_hr times the cell's output
  int64_t chunk_row[2] = {};    // row of the layer with which the chunk's arrays begin
  int64_t begin = 0, end = 0;   // steps of this launch; backward counts them from the last one, and one more at its
                                // end in which the gradients of the initial states are made
  uint32_t* flags = nullptr;    // [D, groups, unit_blocks], zero before a persistent launch
  const void* W[2] = {};        // S; forward: W_hh [G*H, P]; backward: its transpose [P, G*H]
  const void* product[2] = {};  // T [B, G*H], backward [B, H]: the step's product, where it is apart
};

struct ForwardSteps : StepsArgs {
  const void* projection[2] = {};    // T [rows, G*H]: W_ih x
  const void* b_ih[2] = {};          // S [G*H] or null
  const void* b_hh[2] = {};
  const void* h_0[2] = {};           // S [B, P] or null for zeros
  const void* c_0[2] = {};
  void* y = nullptr;                 // S [R, D*P]
  void* out[2] = {};                 // S [sequences, out_stride]: the cell's outputs at this step, where h is projected
  int64_t out_stride = 0;
  void* h_n[2] = {};                 // S [B, P]
  void* c_n[2] = {};
  void* tape[2] = {};                // S [R, tape, H] or null; with a projection one more, the cell's output
  void* c[2] = {};                   // T [B, H]: cell state between launches
};

// What reaches h_t from outside the time loop.
struct OutputGradients {
  const void* dy = nullptr;        // S [R, D*P] or null; of the last layer
  const void* dy_above = nullptr;  // T [R, D*P] or null; of the layers below it, before the mask
  const void* mask = nullptr;      // S [R, D*P] or null, that of the layer above
  const void* dh_n[2] = {};        // S [B, P] or null
};

struct BackwardSteps : StepsArgs {
  const void* y = nullptr;   // S [R, D*P]
  const void* tape[2] = {};  // S [R, tape, H], as above
  OutputGradients given;     // of h; where it is projected, `product` has it all: the gradient of the cell's output
  const void* dc_n[2] = {};  // S [B, H] or null
  void* da_x[2] = {};        // S [rows, G*H]: gradients of the columns that the input enters; the rows are those of the
                             // chunk and of the step that runs before it
  void* da_h[2] = {};        // S [rows, G*H]: of those that h enters; the same array if they are the same columns
  void* dh_0[2] = {};        // T [B, P] or null, as where h is projected
  void* dc_0[2] = {};        // T [B, H] or null
  void* carry[2] = {};       // T [B, H]: between launches
};

// dh_t of one step and direction, where h is projected: the given gradient plus W_hh^T da_{t+1}.
struct StateGradients {
  Sequences seq;
  OutputGradients given;
  int64_t P, D, direction, step, chunk_row;
  const void* product;  // T [B, P]
  void* dh;             // S [rows, P]
  void* dh_0;           // T [B, P] or null: of the sequences that begin at the step after this one
};

// out [M, N] = a [M, K] b^T,  b [N, K]; or that is added to it. Distances of rows in elements.
struct MultiplyRows {
  Geometry g;
  const void *a, *b;  // S
  void* out;          // T, or S
  int64_t a_stride, b_stride, out_stride, M, N, K;
  bool stored, add;  // `stored` where S is not T
};

// Writes the tables of a packed batch to device memory, a piece at a time. The numbers travel as arguments of the
// launch: there is no host memory that would have to outlive it, and a CUDA graph keeps them.
struct SequenceTables {
  static constexpr int kSteps = 900;
  int64_t* batch_sizes;  // of this piece's first step
  int64_t* first_rows;
  int64_t first_row;
  int steps;
  bool last;  // first_rows has one more entry, behind the last step
  int sizes[kSteps];
};

// to += from, both of the compute type.
struct Add {
  const void* from;
  void* to;
  int64_t count;
};

// h_{t-1} of the rows of some steps of one layer and direction, as one matrix.
struct PreviousStates {
  Sequences seq;
  int64_t P, D, direction;
  int64_t first_time, times, first_row;
  int blocks_per_step;
  const void* y;    // [R, D*P]
  const void* h_0;  // [B, P] or null for zeros
  void* previous;   // [rows, P]
};

}  // namespace rnn_ext::cuda
