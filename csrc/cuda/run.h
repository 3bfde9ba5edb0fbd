// One call on a GPU: its device and stream, the memory that it needs beside its results, its inputs as matrices.
#pragma once
#include <cstring>
#include <memory>

#include "../call.h"
#include "kernels.h"
#include "library.h"

namespace rnn_ext::cuda {

// Not "rnn_ext:", which in Python means arguments that torch's own operator may take.
inline void check(const char* error) { STD_TORCH_CHECK(error == nullptr, "rnn_ext CUDA kernels: ", error); }

// Makes the tensors' device current for as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& x) : device(x.get_device_index()) {
#if !defined(RNN_EXT_CUDA_EMULATOR)
    TORCH_ERROR_CODE_CHECK(aoti_torch_create_device_guard(device, &guard));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
#endif
    check(limits_of(device, limits));
  }
  OnDevice(const OnDevice&) = delete;
  ~OnDevice() {
    if (guard) aoti_torch_delete_device_guard(guard);
  }

  int32_t device;
  void* stream = nullptr;
  DeviceLimits limits;

 private:
  DeviceGuardHandle guard = nullptr;
};

template <class Do>
const char* with_storage(int dtype, Do act) {
  switch (DType(dtype)) {
    case DType::float32: return act(Kernels<float>());
    case DType::float64: return act(Kernels<double>());
    case DType::bfloat16: return act(Kernels<bfloat16>());
    case DType::float16: return act(Kernels<float16>());
  }
  return "no such dtype";
}

// One call: the memory that it needs beside its results, and the steps that forward and backward share.
struct Run {
  const Call& call;
  const OnDevice on;
  const Shape& shape;
  const ScalarType storage, compute;
  const int64_t G, D, H;
  Sequences seq;  // with the tables on the device
  Tensors owned;

  explicit Run(const Call& c)
      : call(c), on(c.x), shape(c.shape), storage(c.x.scalar_type()), compute(compute_type(c.x)), G(c.facts().gates),
        D(c.shape.D), H(c.shape.H), seq(c.seq) {
    STD_TORCH_CHECK(H * G < (int64_t(1) << 31) && seq.T * D < (int64_t(1) << 31), "rnn_ext: too large for the CUDA kernels");
    if (seq.batch_sizes) write_sequence_tables();
  }

  void* memory(const std::vector<int64_t>& sizes, ScalarType dtype) {
    owned.push_back(empty(sizes, dtype, call.x));
    void* p = owned.back().mutable_data_ptr();
#if defined(RNN_EXT_CUDA_EMULATOR)
    std::memset(p, 0xff, size_t(owned.back().numel()) * bytes_of(dtype));  // NaN until it is written
#endif
    return p;
  }
  static size_t bytes_of(ScalarType t) {
    return t == ScalarType::Double || t == ScalarType::Long ? 8 : t == ScalarType::Float || t == ScalarType::Int ? 4 : 2;
  }
  template <class P>
  static P* offset(P* p, int64_t elements, ScalarType dtype) {
    using Char = std::conditional_t<std::is_const_v<P>, const char, char>;
    return p ? reinterpret_cast<Char*>(p) + elements * int64_t(bytes_of(dtype)) : nullptr;
  }

  int64_t inputs(int64_t l) const { return l == 0 ? shape.I : D * H; }
  const LayerWeights& weights(int64_t l, int64_t d) const { return call.layer_weights[l * D + d]; }
  // Of layer l and direction d in states [L*D, B, H].
  template <class P>
  P* state(P* states, int64_t l, int64_t d, ScalarType dtype) const {
    return offset(states, (l * D + d) * seq.B * H, dtype);
  }

  void write_sequence_tables() {
    int64_t* sizes = static_cast<int64_t*>(memory({seq.T}, ScalarType::Long));
    int64_t* rows = static_cast<int64_t*>(memory({seq.T + 1}, ScalarType::Long));
    auto piece = std::make_unique<SequenceTables>();
    for (int64_t t = 0; t < seq.T; t += SequenceTables::kSteps) {
      piece->batch_sizes = sizes + t;
      piece->first_rows = rows + t;
      piece->first_row = seq.first_rows[t];
      piece->steps = int(std::min<int64_t>(SequenceTables::kSteps, seq.T - t));
      piece->last = t + piece->steps == seq.T;
      for (int i = 0; i < piece->steps; ++i) piece->sizes[i] = int(seq.batch_sizes[t + i]);
      check(write_tables_of(*piece, on.stream));
    }
    seq.batch_sizes = sizes;
    seq.first_rows = rows;
  }

  // The input of layer l as a matrix [R, inputs]; `below` is the output of the layer under it.
  Tensor input(int64_t l, const void* below) {
    if (l == 0) {
      Tensor x = call.x;
      const bool even = call.seq.batch_sizes || call.seq.B == 1 || call.seq.T == 1 || call.x_step == seq.B * call.x_row;
      if (!even) x = dense(x);
      owned.push_back(x);
      const int64_t stride = !even ? shape.I : call.seq.batch_sizes || seq.B > 1 ? call.x_row : call.x_step;
      return matrix(x.const_data_ptr(), seq.R, shape.I, std::max(stride, shape.I), 1, storage, call.x);
    }
    const Tensor y = matrix(below, seq.R, D * H, D * H, 1, storage, call.x);
    if (call.masks.empty()) return y;
    return times(y, matrix(call.mask_pointers[l - 1], seq.R, D * H, D * H, 1, storage, call.x));
  }

  // The step that direction d runs as its s-th, as rows of the host's tables: the first one, and how many there are.
  int64_t time(int64_t d, int64_t s) const { return d == 0 ? s : seq.T - 1 - s; }
  int64_t active(int64_t d, int64_t s) const { return s < 0 || s >= seq.T ? 0 : call.seq.active(time(d, s)); }
  int64_t first_row(int64_t d, int64_t s) const { return call.seq.first_row(time(d, s)); }

  // What the arguments of both time loops have in common.
  void prepare(StepsArgs& a, const LoopShape& loop) {
    const Wish wish = wish_of_environment();
    STD_TORCH_CHECK(wish.error.empty(), "rnn_ext CUDA kernels: ", wish.error);
    a.g = make_geometry(loop, on.limits, wish);
    STD_TORCH_CHECK(a.g.units > 0, "rnn_ext CUDA kernels: the plan that RNN_EXT_CUDA_PLAN asks for does not fit this call");
    a.seq = seq;
    a.H = H;
    a.D = D;
    if (a.g.persistent && !a.g.cluster)
      a.flags = static_cast<uint32_t*>(memory({D * a.g.groups * a.g.unit_blocks}, ScalarType::Int));
  }

  // Steps [0, steps): all in one launch, or one launch each. before(s): what has to go ahead of the launch of a step.
  template <class Args, class Before, class Launch>
  void steps(Args& a, int64_t steps, Before before, Launch launch) {
    if (a.flags) check(set_to_zero(a.flags, size_t(D * a.g.groups * a.g.unit_blocks) * sizeof(uint32_t), on.stream));
    const int64_t each = a.g.persistent ? steps : 1;
    for (int64_t s = 0; s < steps; s += each) {
      a.begin = s;
      a.end = s + each;
      if (a.g.library) before(s);
      check(launch(a));
    }
  }
};

}  // namespace rnn_ext::cuda
