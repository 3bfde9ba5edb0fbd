// The operators: schemas, argument checks, allocation, and the call of the kernel. LibTorch stable ABI alone.
//
// They are private: the autograd Function in rnn_ext/ops.py is the door, and checks there what a user can get wrong.
// The checks here keep a wrong call from reading or writing memory that is not there.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "cells/names.h"
#include "cpu/isa.h"
#include "cpu/kernel_table.h"
#include "cpu/plan.h"
#include "cpu/run_team.h"

namespace rnn_ext {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using Maybe = std::optional<Tensor>;

const KernelTable& table() {
#if defined(__x86_64__)
  static const KernelTable& best = active() == Isa::amx      ? isa_amx::table()
                                   : active() == Isa::avx512 ? isa_avx512::table()
                                   : active() == Isa::avx2 ? isa_avx2::table()
                                                           : isa_baseline::table();
  return best;
#else
  return isa_baseline::table();
#endif
}

int dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return int(DType::float32);
    case ScalarType::Double: return int(DType::float64);
    case ScalarType::BFloat16: return int(DType::bfloat16);
    default: STD_TORCH_CHECK(false, "rnn_ext: dtype must be float32, float64 or bfloat16");
  }
}

ScalarType compute_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// An uninitialised contiguous CPU tensor. The shim, since a call through the dispatcher costs 4 us.
Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
  AtenTensorHandle handle = nullptr;
  const auto code = aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), static_cast<int32_t>(dtype),
                                             aoti_torch_device_type_cpu(), 0, &handle);
  if (code != AOTI_TORCH_SUCCESS) {
    double bytes = dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : dtype == ScalarType::Byte ? 1 : 2;
    for (const int64_t size : sizes) bytes *= double(size);
    STD_TORCH_CHECK(false, "rnn_ext: can't allocate ", bytes, " bytes");
  }
  return Tensor(handle);
}

Tensor dense(const Tensor& t) {
  if (t.is_contiguous()) return t;
  Tensor copy = empty({t.sizes().begin(), t.sizes().end()}, t.scalar_type());
  torch::stable::copy_(copy, t);
  return copy;
}

void check_shape(const Tensor& t, const std::vector<int64_t>& sizes, const Tensor& like, const char* what) {
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == like.scalar_type(), "rnn_ext: ", what,
                  " must be a CPU tensor of the input's dtype");
  bool same = t.dim() == int64_t(sizes.size());
  for (size_t i = 0; same && i < sizes.size(); ++i) same = t.size(i) == sizes[i];
  STD_TORCH_CHECK(same, "rnn_ext: ", what, " has the wrong shape");
}

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

  Call(const Tensor& input, const Maybe& h_initial, const Maybe& c_initial, const Tensors& params, const Maybe& batch_sizes,
       const Tensors& dropout, const std::string& mode, int64_t num_layers, bool bidirectional)
      : cell(cell_of(mode)), dtype(dtype_of(input)), x(input) {
    STD_TORCH_CHECK(cell >= 0, "rnn_ext: no cell of mode ", mode);
    const int64_t pairs = num_layers * (bidirectional ? 2 : 1);
    per_pair = num_layers > 0 ? params.size() / pairs : 0;
    STD_TORCH_CHECK(per_pair >= 2 && per_pair <= 5 && int64_t(params.size()) == per_pair * pairs,
                    "rnn_ext: expected 2 to 5 weights per layer and direction, got ", params.size());
    const bool bias = per_pair >= 4, projected = per_pair % 2 == 1;
    STD_TORCH_CHECK(!projected || facts().states > 1, "rnn_ext: only an LSTM has a projection");
    const Tensor &W_hh = params[1], &last = projected ? params[per_pair - 1] : W_hh;  // [P, H] or [G*H, H]
    STD_TORCH_CHECK(W_hh.dim() == 2 && last.dim() == 2, "rnn_ext: weight_hh and weight_hr must have 2 dimensions");
    shape = {x.size(-1), last.size(1), W_hh.size(1), num_layers, bidirectional ? 2 : 1, bias, projected};
    STD_TORCH_CHECK(x.is_cpu(), "rnn_ext: input must be a CPU tensor");
    find_rows(batch_sizes);
    if (h_initial) h_0 = state(*h_initial, h_sizes(), "h_0");
    if (c_initial && facts().states > 1) c_0 = state(*c_initial, c_sizes(), "c_0");
    const int64_t gate_rows = facts().gates * shape.H;
    for (int64_t i = 0; i < pairs; ++i) {
      const int64_t inputs = i < shape.D ? shape.I : shape.D * shape.P;
      const auto weight = [&](int64_t j, const std::vector<int64_t>& sizes) {
        const Tensor& w = params[i * per_pair + j];
        check_shape(w, sizes, x, sizes.size() == 2 ? "weight" : "bias");
        weights.push_back(dense(w));
        return weights.back().const_data_ptr();
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
    STD_TORCH_CHECK(dropout.empty() || int64_t(dropout.size()) == num_layers - 1,
                    "rnn_ext: expected a dropout mask for every layer but the last");
    for (const Tensor& mask : dropout) {
      STD_TORCH_CHECK(mask.numel() == seq.R * shape.D * shape.P && mask.scalar_type() == x.scalar_type(),
                      "rnn_ext: dropout mask has the wrong shape or dtype");
      masks.push_back(dense(mask));
      mask_pointers.push_back(masks.back().const_data_ptr());
    }
  }

  const Kernel& kernel() const { return table().kernel[cell][dtype]; }
  const CellFacts& facts() const { return cell_facts[cell]; }

  int64_t tape() const { return facts().tape + shape.projected; }
  std::vector<int64_t> h_sizes() const { return {shape.L * shape.D, seq.B, shape.P}; }
  std::vector<int64_t> c_sizes() const { return {shape.L * shape.D, seq.B, shape.H}; }
  Tensor state(const Tensor& given, const std::vector<int64_t>& sizes, const char* what) const {
    check_shape(given, sizes, x, what);
    return dense(given);
  }
  Plan plan(bool batch_invariant) const {
    return make_plan(seq, shape, facts().gates, DType(dtype),
                     int(torch::stable::get_num_threads()), batch_invariant);
  }

  template <class Args>
  Args args() const {
    Args a;
    a.seq = seq;
    a.shape = shape;
    a.x = x.const_data_ptr();
    a.x_step = x_step;
    a.x_row = x_row;
    a.h_0 = h_0 ? h_0->const_data_ptr() : nullptr;
    a.c_0 = c_0 ? c_0->const_data_ptr() : nullptr;
    a.weights = layer_weights.data();
    a.masks = masks.empty() ? nullptr : mask_pointers.data();
    return a;
  }

 private:
  // Padded [T, B, I] or packed [R, I] with batch_sizes [T].
  void find_rows(const Maybe& batch_sizes) {
    STD_TORCH_CHECK(x.dim() == (batch_sizes ? 2 : 3), "rnn_ext: input has the wrong number of dimensions");
    if (x.size(-1) > 1 && x.stride(-1) != 1) x = dense(x);
    if (!batch_sizes) {
      seq.T = x.size(0);
      seq.B = x.size(1);
      seq.R = seq.T * seq.B;
      x_row = x.stride(1);
      x_step = seq.T > 1 ? x.stride(0) : seq.B * x_row;
    } else {
      const Tensor& n = *batch_sizes;
      STD_TORCH_CHECK(n.is_cpu() && n.scalar_type() == ScalarType::Long && n.dim() == 1 && n.is_contiguous() &&
                          n.numel() > 0,
                      "rnn_ext: batch_sizes must be a contiguous int64 CPU tensor of one dimension");
      seq.batch_sizes = n.const_data_ptr<int64_t>();
      seq.T = n.numel();
      seq.B = seq.batch_sizes[0];
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
    STD_TORCH_CHECK(seq.T > 0 && seq.B > 0, "rnn_ext: input has no steps or no sequences");
  }
};

template <class Args>
void run(Args& args, size_t (*bytes)(const Args&), void (*kernel)(const Args&, const Team&)) {
  const Tensor workspace = empty({int64_t(bytes(args))}, ScalarType::Byte);
  args.workspace = workspace.mutable_data_ptr();
  run_team(args.plan.threads, [&](const Team& team) { kernel(args, team); });
}

// y, h_n, c_n (if the cell has one) and, if `save`, what backward needs: the outputs of the layers below the last (if
// any) and the tape (if there is one).
Tensors rnn_forward(Tensor x, Maybe h_0, Maybe c_0, Tensors weights, Maybe batch_sizes, Tensors masks,
                    std::string mode, int64_t num_layers, bool bidirectional, bool save, bool batch_invariant) {
  const Call call(x, h_0, c_0, weights, batch_sizes, masks, mode, num_layers, bidirectional);
  const Shape& s = call.shape;
  ForwardArgs args = call.args<ForwardArgs>();
  args.plan = call.plan(batch_invariant);
  Tensors out;
  const auto output = [&](const std::vector<int64_t>& sizes) {
    out.push_back(empty(sizes, x.scalar_type()));
    return out.back().mutable_data_ptr();
  };
  const int64_t outputs = s.D * s.P;
  args.y = batch_sizes ? output({call.seq.R, outputs}) : output({call.seq.T, call.seq.B, outputs});
  args.h_n = output(call.h_sizes());
  if (call.facts().states > 1) args.c_n = output(call.c_sizes());
  Tensor below;
  if (s.L > 1) {
    args.hidden_slots = save ? s.L - 1 : std::min<int64_t>(s.L - 1, 2);
    below = empty({args.hidden_slots, call.seq.R, outputs}, x.scalar_type());
    args.hidden = below.mutable_data_ptr();
    if (save) out.push_back(below);
  }
  if (save && call.tape() > 0) args.tape = output({s.L * s.D, call.seq.R, call.tape(), s.H});
  run(args, call.kernel().forward_bytes, call.kernel().forward);
  return out;
}

// The wanted gradients in this order: dx, dh_0, dc_0 (each if needed), one for each weight (if need_dw); in the compute
// type. `saved` is what forward returned behind the final states.
Tensors rnn_backward(Tensor x, Maybe h_0, Tensors weights, Maybe batch_sizes, Tensors masks, Tensor y, Tensors saved,
                     Maybe dy, Maybe dh_n, Maybe dc_n, std::string mode, int64_t num_layers, bool bidirectional,
                     bool need_dx, bool need_dh_0, bool need_dc_0, bool need_dw, bool batch_invariant) {
  const Call call(x, h_0, std::nullopt, weights, batch_sizes, masks, mode, num_layers, bidirectional);
  const Shape& s = call.shape;
  const ScalarType type = compute_type(x);
  BackwardArgs args = call.args<BackwardArgs>();
  args.plan = call.plan(batch_invariant);
  const int64_t outputs = s.D * s.P, tape = call.tape();
  const auto kept = [&](const Tensor& t, int64_t elements) {
    STD_TORCH_CHECK(t.numel() == elements && t.scalar_type() == x.scalar_type() && t.is_contiguous(),
                    "rnn_ext: y and saved must be what forward returned");
    return t.const_data_ptr();
  };
  STD_TORCH_CHECK(saved.size() == size_t(s.L > 1) + size_t(tape > 0), "rnn_ext: saved must be what forward returned");
  args.y = kept(y, call.seq.R * outputs);
  if (s.L > 1) args.hidden = kept(saved.front(), (s.L - 1) * call.seq.R * outputs);
  if (tape > 0) args.tape = kept(saved.back(), s.L * s.D * call.seq.R * tape * s.H);
  Tensor dy_rows, dh_n_rows, dc_n_rows;
  if (dy) {
    STD_TORCH_CHECK(dy->numel() == y.numel() && dy->scalar_type() == x.scalar_type(), "rnn_ext: dy must be like y");
    dy_rows = dense(*dy);
    args.dy = dy_rows.const_data_ptr();
  }
  if (dh_n) {
    dh_n_rows = call.state(*dh_n, call.h_sizes(), "dh_n");
    args.dh_n = dh_n_rows.const_data_ptr();
  }
  if (dc_n) {
    dc_n_rows = call.state(*dc_n, call.c_sizes(), "dc_n");
    args.dc_n = dc_n_rows.const_data_ptr();
  }
  Tensors gradients;
  if (need_dx) {
    gradients.push_back(empty({x.sizes().begin(), x.sizes().end()}, type));
    args.dx = gradients.back().mutable_data_ptr();
  }
  if (need_dh_0) {
    gradients.push_back(empty(call.h_sizes(), type));
    args.dh_0 = gradients.back().mutable_data_ptr();
  }
  if (need_dc_0) {
    gradients.push_back(empty(call.c_sizes(), type));
    args.dc_0 = gradients.back().mutable_data_ptr();
  }
  std::vector<LayerGradients> layer_gradients;
  if (need_dw) {
    const auto gradient = [&](const Tensor& w) {
      gradients.push_back(empty({w.sizes().begin(), w.sizes().end()}, type));
      return gradients.back().mutable_data_ptr();
    };
    for (size_t i = 0; i < call.weights.size(); i += call.per_pair) {
      LayerGradients g;
      g.dW_ih = gradient(call.weights[i]);
      g.dW_hh = gradient(call.weights[i + 1]);
      if (s.bias) {
        g.db_ih = gradient(call.weights[i + 2]);
        g.db_hh = gradient(call.weights[i + 3]);
      }
      if (s.projected) g.dW_hr = gradient(call.weights[i + call.per_pair - 1]);
      layer_gradients.push_back(g);
    }
    args.gradients = layer_gradients.data();
  }
  run(args, call.kernel().backward_bytes, call.kernel().backward);
  return gradients;
}

}  // namespace
}  // namespace rnn_ext

STABLE_TORCH_LIBRARY(rnn_ext, m) {
  m.def(
      "rnn_forward(Tensor x, Tensor? h_0, Tensor? c_0, Tensor[] weights, Tensor? batch_sizes, Tensor[] masks, str mode, "
      "int num_layers, bool bidirectional, bool save, bool batch_invariant) -> Tensor[]");
  m.def(
      "rnn_backward(Tensor x, Tensor? h_0, Tensor[] weights, Tensor? batch_sizes, Tensor[] masks, Tensor y, "
      "Tensor[] saved, Tensor? dy, Tensor? dh_n, Tensor? dc_n, str mode, int num_layers, bool bidirectional, "
      "bool need_dx, bool need_dh_0, bool need_dc_0, bool need_dw, bool batch_invariant) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(rnn_ext, CPU, m) {
  m.impl("rnn_forward", TORCH_BOX(&rnn_ext::rnn_forward));
  m.impl("rnn_backward", TORCH_BOX(&rnn_ext::rnn_backward));
}
