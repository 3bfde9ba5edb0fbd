// What both directions of differentiation know of a call, on every device: its tensors, checked, and the plain structs
// made from them. LibTorch stable ABI alone.
//
// The checks here keep a wrong call from reading or writing memory that is not there. For a plain call they are all
// there is, but for the sizes that its module has (plain_call.cpp). Where one fails, base.py and cells.py check the
// call in torch's words, or call.py lets torch judge it.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "cells/names.h"
#include "large_memory.h"
#include "params.h"

// A tensor of memory that is not torch's, which says when it is no longer needed. From torch 2.11 on; null before.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset, int32_t dtype,
    int32_t device_type, int32_t device_index, AtenTensorHandle* result, int32_t layout, const uint8_t* opaque_metadata,
    int64_t opaque_metadata_size, void (*deleter)(void* data, void* context), void* context);

namespace rnn_ext {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using Maybe = std::optional<Tensor>;

inline int dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return int(DType::float32);
    case ScalarType::Double: return int(DType::float64);
    case ScalarType::BFloat16: return int(DType::bfloat16);
    case ScalarType::Half: return int(DType::float16);
    default: STD_TORCH_CHECK(false, "rnn_ext: dtype must be float32, float64, bfloat16 or float16");
  }
}

inline ScalarType compute_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline size_t bytes_of(ScalarType type) {
  switch (type) {
    case ScalarType::Byte: return 1;
    case ScalarType::Double:
    case ScalarType::Long: return 8;
    case ScalarType::Float:
    case ScalarType::Int: return 4;
    default: return 2;
  }
}

inline int32_t device_type(const Tensor& t) {
  int32_t type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  return type;
}
inline bool same_device(const Tensor& a, const Tensor& b) {
  return device_type(a) == device_type(b) && a.get_device_index() == b.get_device_index();
}

// The sizes of a tensor of ours: a vector would ask for memory, dozens of times a call.
struct Sizes {
  static constexpr int kMost = 4;
  int64_t dims[kMost] = {};
  int count = 0;

  Sizes(std::initializer_list<int64_t> sizes) {
    for (const int64_t size : sizes) dims[count++] = size;
  }
  explicit Sizes(const Tensor& t) : count(int(t.dim())) {
    STD_TORCH_CHECK(count <= kMost, "rnn_ext: no tensor has more than 4 dimensions");
    for (int i = 0; i < count; ++i) dims[i] = t.size(i);
  }
  const int64_t* begin() const { return dims; }
  const int64_t* end() const { return dims + count; }
};

// The strides of a contiguous tensor; how many numbers it has.
inline int64_t dense_strides(const Sizes& sizes, int64_t* strides) {
  int64_t stride = 1;
  for (int i = sizes.count; i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(sizes.dims[i], 1);
  }
  return stride;
}

// An uninitialised contiguous tensor where `like` is. The shim, since a call through the dispatcher costs 4 us.
inline Tensor empty(const Sizes& sizes, ScalarType dtype, const Tensor& like) {
  int64_t strides[Sizes::kMost];
  const int64_t stride = dense_strides(sizes, strides);
  AtenTensorHandle handle = nullptr;
  const auto code = aoti_torch_empty_strided(sizes.count, sizes.dims, strides, static_cast<int32_t>(dtype),
                                             device_type(like), like.get_device_index(), &handle);
  if (code != AOTI_TORCH_SUCCESS) {
    double bytes = double(bytes_of(dtype));
    for (const int64_t size : sizes) bytes *= double(size);
    STD_TORCH_CHECK(false, "rnn_ext: can't allocate ", bytes, " bytes on device ", like.get_device_index());
  }
  Tensor result(handle);
  const size_t bytes = size_t(stride) * bytes_of(dtype);
  if (bytes >= kLargeResult && device_type(like) == aoti_torch_device_type_cpu())
    use_large_pages(result.mutable_data_ptr(), bytes);
  return result;
}

// Such a tensor, of which only the kernels know the meaning: where it is large its memory stays with the library.
inline Tensor empty_inside(const Sizes& sizes, ScalarType dtype, const Tensor& like) {
  int64_t strides[Sizes::kMost];
  const size_t bytes = size_t(dense_strides(sizes, strides)) * bytes_of(dtype);
  const bool large = bytes >= kLargeResult && device_type(like) == aoti_torch_device_type_cpu();
  LargeMemory::Piece* const piece = large && torch_from_blob ? large_memory().take(bytes) : nullptr;
  if (!piece) return empty(sizes, dtype, like);
  const auto give_back = [](void*, void* piece) { large_memory().give_back(static_cast<LargeMemory::Piece*>(piece)); };
  AtenTensorHandle handle = nullptr;
  const auto code = torch_from_blob(piece->memory, sizes.count, sizes.dims, strides, 0, static_cast<int32_t>(dtype),
                                    device_type(like), like.get_device_index(), &handle, aoti_torch_layout_strided(),
                                    nullptr, 0, give_back, piece);
  if (code == AOTI_TORCH_SUCCESS) return Tensor(handle);
  large_memory().give_back(piece);
  return empty(sizes, dtype, like);
}

// Another tensor of the same memory, from its first number on. Autograd knows nothing of it.
inline Tensor view(const Tensor& t, int64_t dim, const int64_t* sizes, const int64_t* strides) {
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(t.get(), dim, sizes, strides, 0, &handle));
  return Tensor(handle);
}

// Where its numbers are. Its storage may have been given back: torch's operators crash on some such tensors, so that this
// is no refusal.
inline const void* memory_of(const Tensor& t) {
  const void* memory = t.const_data_ptr();
  STD_TORCH_CHECK(memory != nullptr || t.numel() == 0,
                  "The tensor has a non-zero number of elements, but its data is not allocated.");
  return memory;
}

inline Tensor dense(const Tensor& t) {
  if (t.is_contiguous()) return t;
  (void)memory_of(t);
  Tensor copy = empty(Sizes(t), t.scalar_type(), t);
  torch::stable::copy_(copy, t);
  return copy;
}

inline void check_shape(const Tensor& t, const Sizes& sizes, const Tensor& like, const char* what) {
  STD_TORCH_CHECK(same_device(t, like) && t.scalar_type() == like.scalar_type(), "rnn_ext: ", what,
                  " must have the input's device and dtype");
  bool same = t.dim() == sizes.count;
  for (int i = 0; same && i < sizes.count; ++i) same = t.size(i) == sizes.dims[i];
  STD_TORCH_CHECK(same, "rnn_ext: ", what, " has the wrong shape");
}

// A call as it is made, with the arguments of the operators (operators.h).
struct CallInputs {
  Tensor x;
  Maybe h_0, c_0;
  Tensors weights;
  Maybe batch_sizes;
  Tensors masks;
  std::string mode;
  int64_t num_layers;
  bool bidirectional, batch_invariant;
};

// What both directions of differentiation know of a call. Owns the tensors that the pointers point into.
struct Call {
  Sequences seq;
  Shape shape;
  int cell, dtype;
  Tensor x;
  Maybe h_0, c_0;
  Tensors weights, masks;
  std::vector<LayerWeights> layer_weights;
  std::vector<const void*> mask_pointers;
  std::vector<int64_t> first_rows;
  int64_t x_step = 0, x_row = 0, per_pair = 0;  // per_pair: weights per layer and direction
  bool single = false;  // one step of one layer and direction: x is [B, I], states are [B, P] and [B, H]

  // Without `reads_weights`, of which nobody then needs more than the sizes: their memory may have been given back.
  explicit Call(const CallInputs& in, bool reads_weights = true) : cell(cell_of(in.mode)), dtype(dtype_of(in.x)), x(in.x) {
    STD_TORCH_CHECK(cell >= 0, "rnn_ext: no cell of mode ", in.mode);
    const Tensors& params = in.weights;
    const int64_t pairs = in.num_layers * (in.bidirectional ? 2 : 1);
    per_pair = in.num_layers > 0 ? params.size() / pairs : 0;
    STD_TORCH_CHECK(per_pair >= 2 && per_pair <= 5 && int64_t(params.size()) == per_pair * pairs,
                    "rnn_ext: expected 2 to 5 weights per layer and direction, got ", params.size());
    const bool bias = per_pair >= 4, projected = per_pair % 2 == 1;
    STD_TORCH_CHECK(!projected || facts().states > 1, "rnn_ext: only a cell with a cell state has a projection");
    const Tensor &W_hh = params[1], &last = projected ? params[per_pair - 1] : W_hh;  // [P, H] or [G*H, H]
    STD_TORCH_CHECK(W_hh.dim() == 2 && last.dim() == 2, "rnn_ext: weight_hh and weight_hr must have 2 dimensions");
    shape = {x.size(-1), last.size(1), W_hh.size(1), in.num_layers, in.bidirectional ? 2 : 1, bias, projected};
    single = x.dim() == 2 && !in.batch_sizes;
    STD_TORCH_CHECK(!single || pairs == 1, "rnn_ext: input of one step is for one layer and direction");
    find_rows(in.batch_sizes);
    if (in.h_0) h_0 = state(*in.h_0, h_sizes(), "h_0");
    if (in.c_0 && facts().states > 1) c_0 = state(*in.c_0, c_sizes(), "c_0");
    const int64_t gate_rows = facts().gates * shape.H;
    weights.reserve(params.size());
    layer_weights.reserve(pairs);
    for (int64_t i = 0; i < pairs; ++i) {
      const int64_t inputs = i < shape.D ? shape.I : shape.D * shape.P;
      const auto weight = [&](int64_t j, const Sizes& sizes) {
        const Tensor& w = params[i * per_pair + j];
        check_shape(w, sizes, x, sizes.count == 2 ? "weight" : "bias");
        weights.push_back(reads_weights ? dense(w) : w);
        return reads_weights ? memory_of(weights.back()) : nullptr;
      };
      LayerWeights w;
      w.W_ih = weight(0, {gate_rows, inputs});
      w.W_hh = weight(1, {gate_rows, shape.P});
      if (shape.bias) {
        w.b_ih = weight(2, {gate_rows});
        w.b_hh = weight(3, {gate_rows});
      }
      if (shape.projected) w.W_hr = weight(per_pair - 1, {shape.P, shape.H});
      layer_weights.push_back(w);
    }
    STD_TORCH_CHECK(in.masks.empty() || int64_t(in.masks.size()) == in.num_layers - 1,
                    "rnn_ext: expected a dropout mask for every layer but the last");
    for (const Tensor& mask : in.masks) {
      STD_TORCH_CHECK(mask.numel() == seq.R * shape.D * shape.P && mask.scalar_type() == x.scalar_type() &&
                          same_device(mask, x),
                      "rnn_ext: dropout mask has the wrong shape, dtype or device");
      masks.push_back(dense(mask));
      mask_pointers.push_back(memory_of(masks.back()));
    }
  }

  const NamedCell& facts() const { return cell_facts[cell]; }

  int64_t tape() const { return facts().tape + shape.projected; }
  Sizes h_sizes() const { return state_sizes(shape.P); }
  Sizes c_sizes() const { return state_sizes(shape.H); }
  Sizes y_sizes() const {
    const int64_t outputs = shape.D * shape.P;
    return single ? Sizes{seq.B, outputs} : seq.batch_sizes ? Sizes{seq.R, outputs} : Sizes{seq.T, seq.B, outputs};
  }
  Tensor state(const Tensor& given, const Sizes& sizes, const char* what) const {
    check_shape(given, sizes, x, what);
    return dense(given);
  }
  CallArgs args() const {
    CallArgs a;
    a.seq = seq;
    a.shape = shape;
    a.x = memory_of(x);
    a.x_step = x_step;
    a.x_row = x_row;
    a.h_0 = h_0 ? memory_of(*h_0) : nullptr;
    a.weights = layer_weights.data();
    a.masks = masks.empty() ? nullptr : mask_pointers.data();
    return a;
  }

 private:
  Sizes state_sizes(int64_t size) const {
    return single ? Sizes{seq.B, size} : Sizes{shape.L * shape.D, seq.B, size};
  }

  // Padded [T, B, I], one step [B, I], or packed [R, I] with batch_sizes [T].
  void find_rows(const Maybe& batch_sizes) {
    STD_TORCH_CHECK(single || x.dim() == (batch_sizes ? 2 : 3), "rnn_ext: input has the wrong number of dimensions");
    if (x.size(-1) > 1 && x.stride(-1) != 1) x = dense(x);
    if (!batch_sizes) {
      seq.T = single ? 1 : x.size(0);
      seq.B = x.size(-2);
      seq.R = seq.T * seq.B;
      x_row = x.stride(-2);
      x_step = seq.T > 1 ? x.stride(0) : seq.B * x_row;
    } else {
      const Tensor& n = *batch_sizes;
      STD_TORCH_CHECK(n.is_cpu() && n.scalar_type() == ScalarType::Long && n.dim() == 1 && n.is_contiguous() &&
                          n.numel() > 0,
                      "rnn_ext: batch_sizes must be a contiguous int64 CPU tensor of one dimension");
      seq.batch_sizes = static_cast<const int64_t*>(memory_of(n));
      seq.T = n.numel();
      seq.B = seq.batch_sizes[0];
      first_rows.reserve(seq.T + 1);
      first_rows.push_back(0);
      for (int64_t t = 0; t < seq.T; ++t) {
        STD_TORCH_CHECK(seq.batch_sizes[t] > 0 && (t == 0 || seq.batch_sizes[t] <= seq.batch_sizes[t - 1]),
                        "rnn_ext: batch_sizes must be positive and must not increase");
        first_rows.push_back(first_rows.back() + seq.batch_sizes[t]);
      }
      seq.first_rows = first_rows.data();
      seq.R = first_rows.back();
      STD_TORCH_CHECK(seq.R == x.size(0), "rnn_ext: batch_sizes do not add up to the rows of the input");
      x_row = x.stride(0);
    }
    STD_TORCH_CHECK(seq.T > 0 && seq.B > 0 && shape.I > 0 && shape.H > 0 && shape.P > 0,
                    "rnn_ext: input and states must not be empty");
  }
};

}  // namespace rnn_ext
