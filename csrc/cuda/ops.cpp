// The operators on CUDA tensors. Everything goes to torch's current stream, and nothing waits for the device.

#include "../operators.h"
#include "backward_layers.h"
#include "forward_layers.h"

namespace rnn_ext::cuda {
namespace {

struct Cuda {
  static void forward(const Call& call, ForwardArgs& args, bool batch_invariant) {
    ForwardLayers layers(call, args, batch_invariant);
    for (int64_t l = 0; l < call.shape.L; ++l) layers.layer(l);
  }
  static void backward(const Call& call, BackwardArgs& args, bool batch_invariant) {
    BackwardLayers layers(call, args, batch_invariant);
    for (int64_t l = call.shape.L - 1; l >= 0; --l) layers.layer(l);
  }
};

// "forward ..., backward ..." for people: how a call of these sizes is carried out on a device.
// proj_size: 0 where h is not projected.
std::string plan_of(std::string mode, int64_t T, int64_t B, int64_t H, int64_t proj_size, int64_t D, int64_t storage_bytes,
                    int64_t device, bool batch_invariant) {
  const int cell = cell_of(mode);
  STD_TORCH_CHECK(cell >= 0, "rnn_ext: no cell of mode ", mode);
  const Guard guard{int32_t(device)};
  DeviceLimits limits;
  check(use_device(int(device), limits));
  STD_TORCH_CHECK(limits.has_code, "rnn_ext: the CUDA library was not built for this GPU");
  Sequences seq;
  seq.T = T, seq.B = B, seq.R = T * B;
  const Shape shape{1, H, proj_size > 0 ? proj_size : H, 1, D, true, proj_size > 0};
  const DType dtype = storage_bytes == 8 ? DType::float64 : storage_bytes == 4 ? DType::float32 : DType::bfloat16;
  const Wish wish = wish_of_environment(batch_invariant);
  STD_TORCH_CHECK(wish.error.empty(), "rnn_ext CUDA kernels: ", wish.error);
  const auto text = [&](const LoopShape& s) {
    const Geometry g = make_geometry(s, limits, wish);
    return g.units > 0 ? describe(g) : std::string("none");
  };
  return "forward " + text(forward_shape(seq, shape, cell, int(dtype))) + "; backward " +
         text(backward_shape(seq, shape, cell, int(dtype)));
}

constexpr const char* plan_schema =
    "cuda_plan(str mode, int T, int B, int H, int proj_size, int D, int storage_bytes, int device, bool batch_invariant) "
    "-> str";

}  // namespace
}  // namespace rnn_ext::cuda

// The emulator runs on the CPU, where rnn_ext has operators of its own.
#if defined(RNN_EXT_CUDA_EMULATOR)
#define RNN_EXT_LIBRARY rnn_ext_emulated
#define RNN_EXT_BACKEND CPU
STABLE_TORCH_LIBRARY(rnn_ext_emulated, m) {
  m.def(rnn_ext::rnn_forward_schema);
  m.def(rnn_ext::rnn_backward_schema);
  m.def(rnn_ext::cuda::plan_schema);
}
#else
#define RNN_EXT_LIBRARY rnn_ext
#define RNN_EXT_BACKEND CUDA
STABLE_TORCH_LIBRARY_FRAGMENT(rnn_ext, m) {
  m.def(rnn_ext::cuda::plan_schema);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(RNN_EXT_LIBRARY, RNN_EXT_BACKEND, m) {
  m.impl("rnn_forward", TORCH_BOX((&rnn_ext::rnn_forward<rnn_ext::cuda::Cuda>)));
  m.impl("rnn_backward", TORCH_BOX((&rnn_ext::rnn_backward<rnn_ext::cuda::Cuda>)));
}

STABLE_TORCH_LIBRARY_IMPL(RNN_EXT_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("cuda_plan", TORCH_BOX(&rnn_ext::cuda::plan_of));
}
