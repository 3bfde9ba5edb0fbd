// The two operators, whatever the device: schemas, allocation of results, and the plain structs for the kernels.
// A device has  forward(const Call&, ForwardArgs&, bool batch_invariant)  and the same  backward  for BackwardArgs.
#pragma once
#include "call.h"

namespace rnn_ext {

inline constexpr const char* rnn_forward_schema =
    "rnn_forward(Tensor x, Tensor? h_0, Tensor? c_0, Tensor[] weights, Tensor? batch_sizes, Tensor[]? masks, str mode, "
    "int num_layers, bool bidirectional, bool save, bool batch_invariant) -> Tensor[]";
inline constexpr const char* rnn_backward_schema =
    "rnn_backward(Tensor x, Tensor? h_0, Tensor[] weights, Tensor? batch_sizes, Tensor[]? masks, Tensor y, "
    "Tensor[] saved, Tensor? dy, Tensor? dh_n, Tensor? dc_n, str mode, int num_layers, bool bidirectional, "
    "bool need_dx, bool need_dh_0, bool need_dc_0, bool need_dw, bool batch_invariant) -> Tensor[]";

// y, h_n, c_n (if the cell has one) and, if `save`, what backward needs: the outputs of the layers below the last (if
// any) and the tape (if there is one). With `states_only`, y is left out of one step: it is h_n. Where backward needs it
// beside a tape it is there, since then h_n may be changed in place, as torch's may.
template <class Device>
Tensors forward_on(const Device& device, const CallInputs& in, bool save, bool states_only = false) {
  const Call call(in);
  const Tensor& x = call.x;
  const Shape& s = call.shape;
  ForwardArgs args{call.args()};
  args.c_0 = call.c_0 ? memory_of(*call.c_0) : nullptr;
  Tensors out;
  out.reserve(5);
  const auto output = [&](const Sizes& sizes) {
    out.push_back(empty(sizes, x.scalar_type(), x));
    return out.back().mutable_data_ptr();
  };
  const int64_t outputs = s.D * s.P;
  const bool no_y = states_only && call.single && (!save || call.tape() == 0);
  if (!no_y) args.y = output(call.y_sizes());
  args.h_n = output(call.h_sizes());
  if (no_y) args.y = args.h_n;
  if (call.facts().states > 1) args.c_n = output(call.c_sizes());
  Tensor below;
  if (s.L > 1) {
    args.hidden_slots = save ? s.L - 1 : std::min<int64_t>(s.L - 1, 2);
    below = empty_inside({args.hidden_slots, call.seq.R, outputs}, x.scalar_type(), x);
    args.hidden = below.mutable_data_ptr();
    if (save) out.push_back(below);
  }
  if (save && call.tape() > 0) {
    out.push_back(empty_inside({s.L * s.D, call.seq.R, call.tape(), s.H}, x.scalar_type(), x));
    args.tape = out.back().mutable_data_ptr();
  }
  device.forward(call, args, in.batch_invariant);
  return out;
}

// masks: None where nothing is dropped, for an AOTInductor package turns an empty list into None.
template <class Device>
Tensors rnn_forward(Tensor x, Maybe h_0, Maybe c_0, Tensors weights, Maybe batch_sizes, std::optional<Tensors> masks,
                    std::string mode, int64_t num_layers, bool bidirectional, bool save, bool batch_invariant) {
  return forward_on(Device{},
                    {.x = std::move(x), .h_0 = std::move(h_0), .c_0 = std::move(c_0), .weights = std::move(weights),
                     .batch_sizes = std::move(batch_sizes), .masks = std::move(masks).value_or(Tensors{}),
                     .mode = std::move(mode), .num_layers = num_layers, .bidirectional = bidirectional,
                     .batch_invariant = batch_invariant},
                    save);
}

// What backward needs: the call without c_0, what forward returned (`saved` is what stands behind the final states), and
// the gradients of that, where anybody has used it.
struct BackwardInputs {
  CallInputs call;
  Tensor y;
  Tensors saved;
  Maybe dy, dh_n, dc_n;
};

struct Needs {
  bool dx = false, dh_0 = false, dc_0 = false, dw = false;
};

// The wanted gradients in this order: dx, dh_0, dc_0 (each if needed), one for each weight (if needed); in the compute
// type. `sum`, if not empty, is what those of the weights are added to, on the CPU. One step whose weights' gradients alone
// are wanted may go without `reads_weights` there.
template <class Device>
Tensors backward_on(const Device& device, const BackwardInputs& in, Needs need, const Tensors& sum = {},
                    bool reads_weights = true) {
  const Call call(in.call, reads_weights);
  const Tensor &x = call.x, &y = in.y;
  const Tensors& saved = in.saved;
  const Shape& s = call.shape;
  const ScalarType type = compute_type(x);
  BackwardArgs args{call.args()};
  const int64_t outputs = s.D * s.P, tape = call.tape();
  Tensors kept_rows;  // contiguous, whatever a hook on saved tensors has made of them
  const auto kept = [&](const Tensor& t, int64_t elements) {
    STD_TORCH_CHECK(t.numel() == elements && t.scalar_type() == x.scalar_type() && same_device(t, x),
                    "rnn_ext: y and saved must be what forward returned");
    kept_rows.push_back(dense(t));
    return memory_of(kept_rows.back());
  };
  STD_TORCH_CHECK(saved.size() == size_t(s.L > 1) + size_t(tape > 0), "rnn_ext: saved must be what forward returned");
  args.y = kept(y, call.seq.R * outputs);
  if (s.L > 1) args.hidden = kept(saved.front(), (s.L - 1) * call.seq.R * outputs);
  if (tape > 0) args.tape = kept(saved.back(), s.L * s.D * call.seq.R * tape * s.H);
  Tensor dy_rows, dh_n_rows, dc_n_rows;
  if (in.dy) {
    STD_TORCH_CHECK(in.dy->numel() == y.numel() && in.dy->scalar_type() == x.scalar_type() && same_device(*in.dy, x),
                    "rnn_ext: dy must be like y");
    dy_rows = dense(*in.dy);
    args.dy = memory_of(dy_rows);
  }
  if (in.dh_n) {
    dh_n_rows = call.state(*in.dh_n, call.h_sizes(), "dh_n");
    args.dh_n = memory_of(dh_n_rows);
  }
  STD_TORCH_CHECK(call.facts().states > 1 || (!in.dc_n && !need.dc_0), "rnn_ext: a cell without a cell state has no dc");
  STD_TORCH_CHECK(sum.empty() || sum.size() == call.weights.size(), "rnn_ext: expected a sum for each weight");
  if (in.dc_n) {
    dc_n_rows = call.state(*in.dc_n, call.c_sizes(), "dc_n");
    args.dc_n = memory_of(dc_n_rows);
  }
  Tensors gradients;
  gradients.reserve(3 + call.weights.size());
  if (need.dx) {
    gradients.push_back(empty(Sizes(x), type, x));
    args.dx = gradients.back().mutable_data_ptr();
  }
  if (need.dh_0) {
    gradients.push_back(empty(call.h_sizes(), type, x));
    args.dh_0 = gradients.back().mutable_data_ptr();
  }
  if (need.dc_0) {
    gradients.push_back(empty(call.c_sizes(), type, x));
    args.dc_0 = gradients.back().mutable_data_ptr();
  }
  std::vector<LayerGradients> layer_gradients;
  if (need.dw) {
    size_t next = 0;
    const auto gradient = [&](const Tensor& w) {
      gradients.push_back(sum.empty() ? empty(Sizes(w), type, x) : sum[next++]);
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
    args.add_to_gradients = !sum.empty();
  }
  device.backward(call, args, in.call.batch_invariant);
  return gradients;
}

template <class Device>
Tensors rnn_backward(Tensor x, Maybe h_0, Tensors weights, Maybe batch_sizes, std::optional<Tensors> masks, Tensor y,
                     Tensors saved, Maybe dy, Maybe dh_n, Maybe dc_n, std::string mode, int64_t num_layers,
                     bool bidirectional, bool need_dx, bool need_dh_0, bool need_dc_0, bool need_dw,
                     bool batch_invariant) {
  return backward_on(Device{},
                     {.call = {.x = std::move(x), .h_0 = std::move(h_0), .c_0 = {}, .weights = std::move(weights),
                               .batch_sizes = std::move(batch_sizes), .masks = std::move(masks).value_or(Tensors{}),
                               .mode = std::move(mode), .num_layers = num_layers, .bidirectional = bidirectional,
                               .batch_invariant = batch_invariant},
                      .y = std::move(y), .saved = std::move(saved), .dy = std::move(dy), .dh_n = std::move(dh_n),
                      .dc_n = std::move(dc_n)},
                     {need_dx, need_dh_0, need_dc_0, need_dw});
}

}  // namespace rnn_ext
