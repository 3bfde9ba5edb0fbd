// How a call is carried out on a GPU: a function of shape, dtype and the device's limits alone.
#pragma once
#include <string>

#include "steps.h"

namespace rnn_ext::cuda {

struct DeviceLimits {
  int multiprocessors = 0;
  int shared_bytes = 0;    // that a block can have
  int cluster_blocks = 0;  // of the largest cluster; 0 where there are none
  int threads = 256;       // of a block
  int64_t workspace_bytes = 0;  // for what is kept of a chunk of steps
  bool has_code = true;         // whether the library was built for it
};

// One layer's time loop, forward or backward.
struct LoopShape {
  int64_t T = 0, B = 0, H = 0, D = 0;
  int64_t K = 0;          // length of the product's sums: H, backward G*H
  int rows_per_unit = 1;  // G, backward 1
  int columns = 1;        // sums kept for each unit: those of the cell, backward 1
  int storage = 4, compute = 4;  // bytes of the storage and compute type
  bool projected = false;
};
LoopShape forward_shape(const Sequences& seq, const Shape& shape, int cell, int dtype);
LoopShape backward_shape(const Sequences& seq, const Shape& shape, int cell, int dtype);

// Kinds of plan. `automatic` takes the one with the least estimated time. Where h is projected, there are stepwise and
// library alone, both with the products apart: ours, or torch's.
enum class Kind { automatic, stepwise, grid, cluster, library };

// What the environment asks for, for tests and measurements: RNN_EXT_CUDA_PLAN=stepwise|grid|cluster|library,
// RNN_EXT_CUDA_PRODUCT=fma|fragments|held. An unknown word is an error. RNN_EXT_FLOAT32_PRODUCT=fma keeps float32 off the
// tensor cores.
struct Wish {
  Kind kind = Kind::automatic;
  bool fma = false;        // no tensor cores
  bool fragments = false;  // tensor cores; for float32 too, however few the sequences are
  bool in_shared = false;  // W in shared memory alone, row by row
  bool float_fma = false;  // no tensor cores for float32
  bool invariant = false;  // the order of every sum must not depend on B
  std::string error;
};
Wish wish_of_environment(bool batch_invariant);

// units == 0 where the wished kind does not fit.
Geometry make_geometry(const LoopShape& shape, const DeviceLimits& device, const Wish& wish);
std::string describe(const Geometry& g);

// A product of M rows with a weight [N, K] (multiply.h): depth, slices and kind do not depend on M.
Geometry multiply_geometry(int64_t M, int64_t N, int64_t K, const LoopShape& types, const DeviceLimits& device,
                           const Wish& wish);

}  // namespace rnn_ext::cuda
