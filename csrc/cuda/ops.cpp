// The operators on CUDA tensors: layer by layer, large products by torch, the time loop by our kernels. Everything goes
// to torch's current stream, and nothing waits for the device.

#include "../operators.h"
#include "run.h"

namespace rnn_ext::cuda {
namespace {

struct Cuda {
  static void forward(const Call& call, ForwardArgs& args, bool) {
    STD_TORCH_CHECK(!call.shape.projected, "rnn_ext: no CUDA kernel for a projection");
    Run run(call);
    const int64_t G = run.G, D = run.D, H = run.H, R = run.seq.R;
    ForwardSteps a;
    run.prepare(a, forward_shape(run.seq, run.shape, call.cell, call.dtype));
    void* projection = run.memory({R, D * G * H}, run.compute);
    void* c = call.facts().states > 1 ? run.memory({D, run.seq.B, H}, run.compute) : nullptr;
    void* zeros = nullptr;
    for (int64_t d = 0; d < D && a.g.library; ++d) a.product[d] = run.memory({run.seq.B, G * H}, run.compute);
    if (a.g.library && !args.h_0) {
      zeros = run.memory({run.seq.B, H}, run.storage);
      check(set_to_zero(zeros, size_t(run.seq.B * H) * Run::bytes_of(run.storage), run.on.stream));
    }
    for (int64_t l = 0; l < run.shape.L; ++l) {
      const auto output = [&](int64_t layer) -> void* {
        if (layer == run.shape.L - 1) return args.y;
        return Run::offset(args.hidden, layer % args.hidden_slots * R * D * H, run.storage);
      };
      const Tensor x = run.input(l, l > 0 ? output(l - 1) : nullptr);
      for (int64_t d = 0; d < D; ++d) {
        const LayerWeights& w = run.weights(l, d);
        const int64_t I = run.inputs(l);
        product(matrix(Run::offset(projection, d * G * H, run.compute), R, G * H, D * G * H, 1, run.compute, call.x), x,
                matrix(w.W_ih, I, G * H, 1, I, run.storage, call.x));
        a.W[d] = w.W_hh;
        a.b_ih[d] = w.b_ih;
        a.b_hh[d] = w.b_hh;
        a.h_0[d] = run.state(args.h_0, l, d, run.storage);
        a.c_0[d] = run.state(args.c_0, l, d, run.storage);
        a.h_n[d] = run.state(args.h_n, l, d, run.storage);
        a.c_n[d] = run.state(args.c_n, l, d, run.storage);
        a.tape[d] = Run::offset(args.tape, (l * D + d) * R * call.facts().tape * H, run.storage);
        a.c[d] = Run::offset(c, d * run.seq.B * H, run.compute);
      }
      a.projection = projection;
      a.y = output(l);
      const auto before = [&](int64_t s) {
        for (int64_t d = 0; d < D; ++d) step_product(run, args, a, l, d, s, zeros);
      };
      run.steps(a, run.seq.T, before, [&](const ForwardSteps& s) {
        return with_storage(call.dtype, [&](auto kernels) { return kernels.forward(call.cell, s, run.on.stream); });
      });
    }
  }

  static void backward(const Call& call, BackwardArgs& args, bool) {
    STD_TORCH_CHECK(!call.shape.projected, "rnn_ext: no CUDA kernel for a projection");
    Run run(call);
    const int64_t G = run.G, D = run.D, H = run.H, R = run.seq.R;
    BackwardSteps a;
    run.prepare(a, backward_shape(run.seq, run.shape, call.cell, call.dtype));
    for (int64_t d = 0; d < D && a.g.library; ++d) a.product[d] = run.memory({run.seq.B, H}, run.compute);
    const bool apart = G == 3;  // a GRU's gate gradients of x and of h differ
    a.da_x = run.memory({R, D * G * H}, run.storage);
    a.da_h = apart ? run.memory({R, D * G * H}, run.storage) : a.da_x;
    void* carry = run.memory({D, run.seq.B, H}, run.compute);
    void* previous = args.gradients ? run.memory({R, H}, run.storage) : nullptr;
    void* dx_below[2] = {};
    for (int64_t l = std::min<int64_t>(run.shape.L - 2, 1); l >= 0; --l)
      dx_below[l] = run.memory({R, D * H}, run.compute);
    const auto output = [&](int64_t l) {
      return l == run.shape.L - 1 ? args.y : Run::offset(args.hidden, l * R * D * H, run.storage);
    };

    for (int64_t l = run.shape.L - 1; l >= 0; --l) {
      const bool last = l == run.shape.L - 1;
      const int64_t I = run.inputs(l);
      Tensors transposed_weights;
      for (int64_t d = 0; d < D; ++d) {
        const Tensor W = matrix(run.weights(l, d).W_hh, G * H, H, H, 1, run.storage, call.x);
        transposed_weights.push_back(dense(transposed(W)));
        a.W[d] = transposed_weights.back().const_data_ptr();
        a.tape[d] = Run::offset(args.tape, (l * D + d) * R * call.facts().tape * H, run.storage);
        a.dh_n[d] = run.state(args.dh_n, l, d, run.storage);
        a.dc_n[d] = run.state(args.dc_n, l, d, run.storage);
        a.dh_0[d] = run.state(args.dh_0, l, d, run.compute);
        a.dc_0[d] = run.state(args.dc_0, l, d, run.compute);
        a.carry[d] = Run::offset(carry, d * run.seq.B * H, run.compute);
      }
      a.y = output(l);
      a.dy = last ? args.dy : nullptr;
      a.dy_above = last ? nullptr : dx_below[l % 2];
      a.mask = last || call.masks.empty() ? nullptr : call.mask_pointers[l];
      const auto before = [&](int64_t step) {
        const int64_t s = run.seq.T - 1 - step;
        for (int64_t d = 0; d < D; ++d) {
          const int64_t later = run.active(d, s + 1);
          if (later == 0) continue;
          const void* da = Run::offset(a.da_h, (run.first_row(d, s + 1) * D + d) * G * H, run.storage);
          product(matrix(a.product[d], later, H, H, 1, run.compute, call.x),
                  matrix(da, later, G * H, D * G * H, 1, run.storage, call.x),
                  matrix(run.weights(l, d).W_hh, G * H, H, H, 1, run.storage, call.x));
        }
      };
      run.steps(a, run.seq.T + (args.dh_0 || args.dc_0 ? 1 : 0), before, [&](const BackwardSteps& s) {
        return with_storage(call.dtype, [&](auto kernels) { return kernels.backward(call.cell, s, run.on.stream); });
      });
      if (void* dx = l > 0 ? dx_below[(l - 1) % 2] : args.dx) input_gradient(run, l, I, a.da_x, dx);
      if (args.gradients) weight_gradients(run, args, l, I, a, output, previous);
    }
  }

 private:
  // W_hh h_{t-1} of all sequences of a step: those that go on, and those that begin with their initial state.
  static void step_product(Run& run, const ForwardArgs& args, const ForwardSteps& a, int64_t l, int64_t d, int64_t s,
                           const void* zeros) {
    const int64_t G = run.G, D = run.D, H = run.H, active = run.active(d, s);
    const int64_t going = std::min(run.active(d, s - 1), active);
    const Tensor& like = run.call.x;
    const Tensor W = matrix(run.weights(l, d).W_hh, H, G * H, 1, H, run.storage, like);
    const auto rows = [&](int64_t begin, int64_t count, const void* states, int64_t stride) {
      if (count <= 0) return;
      product(matrix(Run::offset(a.product[d], begin * G * H, run.compute), count, G * H, G * H, 1, run.compute, like),
              matrix(states, count, H, stride, 1, run.storage, like), W);
    };
    if (going > 0)
      rows(0, going, Run::offset(a.y, (run.first_row(d, s - 1) * D + d) * H, run.storage), D * H);
    const void* h_0 = args.h_0 ? run.state(args.h_0, l, d, run.storage) : zeros;
    rows(going, active - going, Run::offset(h_0, going * H, run.storage), H);
  }

  // dx = da W_ih, for both directions as one product: their gate gradients are neighbours in a row.
  static void input_gradient(Run& run, int64_t l, int64_t I, const void* da, void* dx) {
    const int64_t rows = run.G * run.H, all = run.D * rows;
    const Tensor& like = run.call.x;
    Tensor W = matrix(run.weights(l, 0).W_ih, rows, I, I, 1, run.storage, like);
    if (run.D > 1) {
      void* both = run.memory({all, I}, run.storage);
      for (int64_t d = 0; d < run.D; ++d) {
        Tensor half = matrix(Run::offset(both, d * rows * I, run.storage), rows, I, I, 1, run.storage, like);
        torch::stable::copy_(half, matrix(run.weights(l, d).W_ih, rows, I, I, 1, run.storage, like));
      }
      W = matrix(both, all, I, I, 1, run.storage, like);
    }
    product(matrix(dx, run.seq.R, I, I, 1, run.compute, like), matrix(da, run.seq.R, all, all, 1, run.storage, like), W);
  }

  // dW_ih = da^T x,  dW_hh = da^T h_{t-1},  db = sums of da.
  template <class Output>
  static void weight_gradients(Run& run, const BackwardArgs& args, int64_t l, int64_t I, const BackwardSteps& a,
                               Output output, void* previous) {
    const int64_t G = run.G, D = run.D, H = run.H, R = run.seq.R;
    const Tensor& like = run.call.x;
    const Tensor x = run.input(l, l > 0 ? output(l - 1) : nullptr);
    for (int64_t d = 0; d < D; ++d) {
      const LayerGradients& out = args.gradients[l * D + d];
      const auto da = [&](const void* all) {
        return matrix(Run::offset(all, d * G * H, run.storage), R, G * H, D * G * H, 1, run.storage, like);
      };
      PreviousStates p{run.seq, H, D, d, 8, output(l), run.state(args.h_0, l, d, run.storage), previous};
      check(with_storage(run.call.dtype, [&](auto kernels) { return kernels.previous(p, run.on.stream); }));
      product(matrix(out.dW_ih, G * H, I, I, 1, run.compute, like), transposed(da(a.da_x)), x);
      product(matrix(out.dW_hh, G * H, H, H, 1, run.compute, like), transposed(da(a.da_h)),
              matrix(previous, R, H, H, 1, run.storage, like));
      const auto sums = [&](void* to, const void* of) {
        const int64_t size = G * H, stride = 1;
        AtenTensorHandle handle = nullptr;
        TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(to, 1, &size, &stride, 0,
                                                                  static_cast<int32_t>(run.compute), device_type(like),
                                                                  like.get_device_index(), &handle));
        sum_of_rows(Tensor(handle), da(of));
      };
      if (!run.shape.bias) continue;
      sums(out.db_ih, a.da_x);
      sums(out.db_hh, a.da_h);
    }
  }
};

// "forward ..., backward ..." for people: how a call of these sizes is carried out on a device.
std::string plan_of(std::string mode, int64_t T, int64_t B, int64_t H, int64_t D, int64_t storage_bytes, int64_t device) {
  const int cell = cell_of(mode);
  STD_TORCH_CHECK(cell >= 0, "rnn_ext: no cell of mode ", mode);
  DeviceLimits limits;
  check(limits_of(int(device), limits));
  Sequences seq;
  seq.T = T, seq.B = B, seq.R = T * B;
  const Shape shape{1, H, H, 1, D, true, false};
  const DType dtype = storage_bytes == 8 ? DType::float64 : storage_bytes == 4 ? DType::float32 : DType::bfloat16;
  const Wish wish = wish_of_environment();
  STD_TORCH_CHECK(wish.error.empty(), "rnn_ext CUDA kernels: ", wish.error);
  const auto text = [&](const LoopShape& s) {
    const Geometry g = make_geometry(s, limits, wish);
    return g.units > 0 ? describe(g) : std::string("none");
  };
  return "forward " + text(forward_shape(seq, shape, cell, int(dtype))) + "; backward " +
         text(backward_shape(seq, shape, cell, int(dtype)));
}

}  // namespace
}  // namespace rnn_ext::cuda

// The emulator runs on the CPU, where rnn_ext has operators of its own.
#if defined(RNN_EXT_CUDA_EMULATOR)
#define RNN_EXT_LIBRARY rnn_ext_emulated
#define RNN_EXT_BACKEND CPU
STABLE_TORCH_LIBRARY(rnn_ext_emulated, m) {
  m.def(rnn_ext::rnn_forward_schema);
  m.def(rnn_ext::rnn_backward_schema);
  m.def("cuda_plan(str mode, int T, int B, int H, int D, int storage_bytes, int device) -> str");
}
#else
#define RNN_EXT_LIBRARY rnn_ext
#define RNN_EXT_BACKEND CUDA
STABLE_TORCH_LIBRARY_FRAGMENT(rnn_ext, m) {
  m.def("cuda_plan(str mode, int T, int B, int H, int D, int storage_bytes, int device) -> str");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(RNN_EXT_LIBRARY, RNN_EXT_BACKEND, m) {
  m.impl("rnn_forward", TORCH_BOX((&rnn_ext::rnn_forward<rnn_ext::cuda::Cuda>)));
  m.impl("rnn_backward", TORCH_BOX((&rnn_ext::rnn_backward<rnn_ext::cuda::Cuda>)));
}

STABLE_TORCH_LIBRARY_IMPL(RNN_EXT_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("cuda_plan", TORCH_BOX(&rnn_ext::cuda::plan_of));
}
