// The CUDA operators on the emulator, as torch.ops.rnn_ext_emulated for CPU tensors: one file, for one compiler run.
#include "cuda/ops.cpp"
#include "cuda/plan.cpp"
#include "emulator.cpp"
#define RNN_EXT_STORAGE float
#include "cuda/kernels.cu"

namespace rnn_ext::cuda {
template struct Kernels<double>;
template struct Kernels<bfloat16>;
template struct Kernels<float16>;
}  // namespace rnn_ext::cuda

#include "cuda/common.cu"

// For the tests, through ctypes.
extern "C" {
__attribute__((visibility("default"))) void emulator_limits(int multiprocessors, int shared_bytes, int cluster_blocks,
                                                            int64_t workspace_bytes, int at_once, bool refuses,
                                                            int threads, bool has_code) {
  cuda_emulator::limits() = {multiprocessors, shared_bytes, cluster_blocks, workspace_bytes,
                             at_once,         refuses,      threads,        has_code};
}
__attribute__((visibility("default"))) void emulator_order(int order) {
  cuda_emulator::order() = cuda_emulator::Order(order);
}
__attribute__((visibility("default"))) int64_t emulator_launches() { return cuda_emulator::launches(); }
}
