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

// Makes a device current for as long as it lives.
class Guard {
 public:
  explicit Guard([[maybe_unused]] int32_t device) {
#if !defined(RNN_EXT_CUDA_EMULATOR)
    TORCH_ERROR_CODE_CHECK(aoti_torch_create_device_guard(device, &handle));
#endif
  }
  Guard(const Guard&) = delete;
  ~Guard() {
    if (handle) aoti_torch_delete_device_guard(handle);
  }

 private:
  DeviceGuardHandle handle = nullptr;
};

// The tensors' device, current for as long as it lives, and the stream that torch works on there.
struct OnDevice {
  explicit OnDevice(const Tensor& x) : device(x.get_device_index()), guard(device) {
#if !defined(RNN_EXT_CUDA_EMULATOR)
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
#endif
    check(use_device(device, limits));
    STD_TORCH_CHECK(limits.has_code, "rnn_ext: the CUDA library was not built for this GPU");
  }

  const int32_t device;
  const Guard guard;
  void* stream = nullptr;
  DeviceLimits limits;
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

// Rows of a matrix, the distance of two in elements.
struct Rows {
  const void* data;
  int64_t stride;
};

// One call: the memory that it needs beside its results, and the steps that forward and backward share.
struct Run {
  const Call& call;
  const OnDevice on;
  const Shape& shape;
  const ScalarType storage, compute;
  const Wish wish;
  const int64_t G, D, H, P;
  Sequences seq;  // with the tables on the device
  Tensors owned;

  Run(const Call& c, bool batch_invariant)
      : call(c), on(c.x), shape(c.shape), storage(c.x.scalar_type()), compute(compute_type(c.x)),
        wish(wish_of_environment(batch_invariant)), G(c.facts().gates), D(c.shape.D), H(c.shape.H), P(c.shape.P),
        seq(c.seq) {
    STD_TORCH_CHECK(wish.error.empty(), "rnn_ext CUDA kernels: ", wish.error);
    constexpr int64_t most = (int64_t(1) << 31) - 64;  // of an int, with room for a tile behind it
    for (const int64_t n : {H * G, seq.T * D, seq.B, shape.I, D * P})
      STD_TORCH_CHECK(n < most, "rnn_ext: too large for the CUDA kernels");
    if (seq.batch_sizes) write_sequence_tables();
  }

  void* memory(const Sizes& sizes, ScalarType dtype) {
    owned.push_back(empty(sizes, dtype, call.x));
    void* p = owned.back().mutable_data_ptr();
#if defined(RNN_EXT_CUDA_EMULATOR)
    std::memset(p, 0xff, size_t(owned.back().numel()) * bytes_of(dtype));  // NaN until it is written
#endif
    return p;
  }
  template <class P>
  static P* offset(P* p, int64_t elements, ScalarType dtype) {
    using Char = std::conditional_t<std::is_const_v<P>, const char, char>;
    return p ? reinterpret_cast<Char*>(p) + elements * int64_t(bytes_of(dtype)) : nullptr;
  }

  int64_t inputs(int64_t l) const { return l == 0 ? shape.I : D * P; }
  const LayerWeights& weights(int64_t l, int64_t d) const { return call.layer_weights[l * D + d]; }
  // Of layer l and direction d in states [L*D, B, width].
  template <class Pointer>
  Pointer* state(Pointer* states, int64_t l, int64_t d, int64_t width, ScalarType dtype) const {
    return offset(states, (l * D + d) * seq.B * width, dtype);
  }
  // Of layer l and direction d in a tape [L*D, R, columns, H].
  template <class Pointer>
  Pointer* tape_of(Pointer* tape, int64_t l, int64_t d) const {
    return offset(tape, (l * D + d) * seq.R * call.tape() * H, storage);
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

  // The input of layer l; `below` is the output of the layer under it.
  Rows input(int64_t l, const void* below) {
    if (l == 0) {
      Tensor x = call.x;
      int64_t stride = call.seq.batch_sizes || seq.B > 1 ? call.x_row : call.x_step;
      const bool even = call.seq.batch_sizes || seq.B == 1 || seq.T == 1 || call.x_step == seq.B * call.x_row;
      const bool apart = stride >= shape.I || seq.R == 1;  // not so in an expanded tensor, or one of windows
      if (!even || !apart) {
        x = dense(x);
        stride = shape.I;
      }
      owned.push_back(x);
      return {x.const_data_ptr(), std::max(stride, shape.I)};
    }
    if (call.masks.empty()) return {below, D * P};
    const auto rows = [&](const void* p) { return matrix(p, seq.R, D * P, D * P, 1, storage, call.x); };
    owned.push_back(times(rows(below), rows(call.mask_pointers[l - 1])));
    return {owned.back().const_data_ptr(), D * P};
  }
  // The transpose of a weight [rows, columns].
  const void* transposed_weight(const void* W, int64_t rows, int64_t columns) {
    owned.push_back(dense(transposed(matrix(W, rows, columns, columns, 1, storage, call.x))));
    return owned.back().const_data_ptr();
  }

  // The steps s of direction d as rows of the host's tables.
  int64_t active(int64_t d, int64_t s) const { return call.seq.active(d, s); }
  int64_t first_row(int64_t d, int64_t s) const { return call.seq.first_row(d, s); }
  struct Window {
    int64_t first, count, first_time, times;
  };
  Window window(int64_t d, int64_t begin, int64_t end) const {
    const int64_t from = d == 0 ? begin : seq.T - end, last = from + end - begin - 1;
    const int64_t first = call.seq.first_row_at(from);
    return {first, call.seq.first_row_at(last) + call.seq.active_at(last) - first, from, end - begin};
  }
  // How many steps there are in a chunk, if a row of what is kept of it has that many bytes.
  int64_t chunk_steps(int64_t row_bytes) const {
    return std::clamp<int64_t>(on.limits.workspace_bytes / (row_bytes * seq.B), 1, seq.T);
  }
  int64_t chunk_rows(int64_t steps) const { return std::min(steps * seq.B, seq.R); }

  // fill(out), or out += what that gives; `out` has no gaps then.
  template <class Fill>
  void assign_or_add(const Tensor& out, bool adds, Fill fill) {
    if (!adds) return fill(out);
    const Tensor part = empty(Sizes(out), out.scalar_type(), out);
    fill(part);
    const Add p{part.const_data_ptr(), out.mutable_data_ptr(), int64_t(out.numel())};
    check(with_storage(call.dtype, [&](auto kernels) { return kernels.run(p, on.stream); }));
  }
  // out [M, N] = a [M, K] b^T, b [N, K] without gaps, both of the storage type; or that is added to it. By torch, or by a
  // kernel of ours whose sums do not depend on M.
  void multiply(void* out, int64_t out_stride, ScalarType type, Rows a, const void* b, int64_t M, int64_t N, int64_t K,
                bool add, bool ours) {
    if (M == 0) return;
    if (!ours) {
      const Tensor left = matrix(a.data, M, K, a.stride, 1, storage, call.x), right = matrix(b, K, N, 1, K, storage, call.x);
      return assign_or_add(matrix(out, M, N, out_stride, 1, type, call.x), add,
                           [&](const Tensor& to) { product(to, left, right); });
    }
    MultiplyRows p{multiply_geometry(M, N, K, types, on.limits, wish), a.data, b, out, a.stride, K, out_stride, M, N, K,
                   type == storage && type != compute, add};
    check(with_storage(call.dtype, [&](auto kernels) { return kernels.run(p, on.stream); }));
  }

  // What the arguments of both time loops have in common, and the plan.
  template <class Args>
  void prepare(Args& a, const LoopShape& loop_shape) {
    types = loop_shape;
    a.seq = seq;
    a.H = H;
    a.P = P;
    a.D = D;
    a.projected = shape.projected;
    choose(a, wish);
    if (a.g.persistent && !a.g.cluster)
      a.flags = static_cast<uint32_t*>(memory({D * a.g.groups * a.g.unit_blocks}, ScalarType::Int));
  }

  // Steps [begin, end): all in one launch, or one launch each. before(s), after(s): what goes around the launch of a step
  // whose products are apart.
  template <class Args, class Before, class After>
  void steps(Args& a, int64_t begin, int64_t end, Before before, After after) {
    for (int64_t s = begin; s < end; s = a.end) {
      a.begin = s;
      a.end = a.g.persistent ? end : s + 1;
      if (a.g.persistent && a.flags)
        check(set_to_zero(a.flags, size_t(D * a.g.groups * a.g.unit_blocks) * sizeof(uint32_t), on.stream));
      if (a.g.apart) before(s);
      const auto launch = [&](auto kernels) { return kernels.run(call.cell, a, on.stream); };
      const char* error = with_storage(call.dtype, launch);
      if (error && a.g.persistent && wish.kind == Kind::automatic) {  // nothing has begun, and a smaller launch will do
        step_by_step(a);
        a.end = s;
        continue;
      }
      check(error);
      if (a.g.apart) after(s);
    }
  }

 private:
  LoopShape types;  // and sizes of the time loop

  // The plan, or the next one where the device says that not all of its blocks can be there at once.
  template <class Args>
  void choose(Args& a, Wish by) {
    DeviceLimits limits = on.limits;
    for (bool fits = false; !fits;) {
      a.g = make_geometry(types, limits, by);
      STD_TORCH_CHECK(a.g.units > 0, "rnn_ext CUDA kernels: the plan that RNN_EXT_CUDA_PLAN asks for does not fit this call");
      check(with_storage(call.dtype, [&](auto kernels) { return kernels.prepare(call.cell, a, fits); }));
      fits = fits || !a.g.persistent;
      STD_TORCH_CHECK(fits || by.kind == Kind::automatic, "rnn_ext CUDA kernels: the device cannot run the plan that ",
                      "RNN_EXT_CUDA_PLAN asks for");
      if (a.g.cluster) limits.cluster_blocks = 0;
      else by.kind = Kind::stepwise;
    }
  }
  template <class Args>
  void step_by_step(Args& a) {
    Wish by = wish;
    by.kind = Kind::stepwise;
    choose(a, by);
  }
};

}  // namespace rnn_ext::cuda
