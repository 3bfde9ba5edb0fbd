// The kernels as plain functions, so that what launches them needs no nvcc. Each returns null, or what went wrong.
#pragma once
#include "plan.h"
#include "steps.h"

namespace rnn_ext::cuda {

struct bfloat16;
struct float16;

// Of one storage type; compiled once for each (kernels.cu).
template <class S>
struct Kernels {
  static const char* run(int cell, const ForwardSteps& args, void* stream);
  static const char* run(int cell, const BackwardSteps& args, void* stream);
  // Once before run(): asks the device for what the launch needs. fits: whether all blocks of a persistent launch that
  // wait for each other can be there at once.
  static const char* prepare(int cell, const ForwardSteps& args, bool& fits);
  static const char* prepare(int cell, const BackwardSteps& args, bool& fits);
  static const char* run(const PreviousStates& args, void* stream);
  static const char* run(const StateGradients& args, void* stream);
  static const char* run(const MultiplyRows& args, void* stream);
  static const char* run(const Add& args, void* stream);
};
extern template struct Kernels<float>;
extern template struct Kernels<double>;
extern template struct Kernels<bfloat16>;
extern template struct Kernels<float16>;

// Makes the device current and reads what it can do.
const char* use_device(int device, DeviceLimits& limits);
const char* set_to_zero(void* memory, size_t bytes, void* stream);
const char* write_tables_of(const SequenceTables& args, void* stream);

}  // namespace rnn_ext::cuda
