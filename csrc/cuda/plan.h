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
};

// One layer's time loop, forward or backward.
struct LoopShape {
  int64_t T = 0, B = 0, H = 0, D = 0;
  int64_t K = 0;          // length of the product's sums: H, backward G*H
  int rows_per_unit = 1;  // G, backward 1
  int columns = 1;        // sums kept for each unit: those of the cell, backward 1
  int storage = 4, compute = 4;  // bytes of the storage and compute type
};
LoopShape forward_shape(const Sequences& seq, const Shape& shape, int cell, int dtype);
LoopShape backward_shape(const Sequences& seq, const Shape& shape, int cell, int dtype);

// Kinds of plan. `automatic` takes the one with the least estimated time.
enum class Kind { automatic, stepwise, grid, cluster, library };

// What the environment asks for, for tests and measurements: RNN_EXT_CUDA_PLAN=stepwise|grid|cluster|library,
// RNN_EXT_CUDA_PRODUCT=fma|fragments|held. An unknown word is an error.
struct Wish {
  Kind kind = Kind::automatic;
  bool fma = false;        // no tensor cores
  bool fragments = false;  // tensor cores, with W in shared memory
  std::string error;
};
Wish wish_of_environment();

// units == 0 where the wished kind does not fit.
Geometry make_geometry(const LoopShape& shape, const DeviceLimits& device, const Wish& wish);
std::string describe(const Geometry& g);

}  // namespace rnn_ext::cuda
