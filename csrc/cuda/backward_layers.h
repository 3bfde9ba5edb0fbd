// Backward of a whole stack: layer by layer, chunk by chunk the time loop, and then  dx = da W_ih,  dW = da^T x  and so on
// as one product each for the steps of the chunk.
#pragma once
#include "run.h"

namespace rnn_ext::cuda {

class BackwardLayers {
 public:
  BackwardLayers(const Call& call, const BackwardArgs& args, bool batch_invariant)
      : run(call, batch_invariant), args(args), G(run.G), D(run.D), H(run.H), P(run.P), B(run.seq.B), R(run.seq.R) {
    run.prepare(a, backward_shape(run.seq, run.shape, call.cell, call.dtype));
    // The gate gradients of x and of h differ, as a GRU's do.
    const bool apart = call.facts().columns > call.facts().gates;
    each = run.chunk_steps(D * ((apart ? 2 : 1) * G * H + P) * int64_t(bytes_of(run.storage)));
    const int64_t rows = run.chunk_rows(each), with_later = run.chunk_rows(each + 1);
    for (int64_t d = 0; d < D; ++d) {
      a.da_x[d] = run.memory({with_later, G * H}, run.storage);
      a.da_h[d] = apart ? run.memory({with_later, G * H}, run.storage) : a.da_x[d];
      a.carry[d] = run.memory({B, H}, run.compute);
      if (a.g.apart) a.product[d] = step_product[d] = run.memory({B, H}, run.compute);
      if (run.shape.projected) dh[d] = run.memory({with_later, P}, run.storage);
      if (run.shape.projected) state_product[d] = run.memory({B, P}, run.compute);
    }
    if (args.gradients) previous = run.memory({rows, P}, run.storage);
    for (int64_t l = std::min<int64_t>(run.shape.L - 2, 1); l >= 0; --l)
      dx_below[l] = run.memory({R, D * P}, run.compute);
  }

  void layer(int64_t l) {
    const bool last = l == run.shape.L - 1;
    const int64_t I = run.inputs(l), T = run.seq.T;
    dx = l > 0 ? dx_below[(l - 1) % 2] : args.dx;
    given = {};
    given.dy = last ? args.dy : nullptr;
    given.dy_above = last ? nullptr : dx_below[l % 2];
    given.mask = last || run.call.masks.empty() ? nullptr : run.call.mask_pointers[l];
    for (int64_t d = 0; d < D; ++d) {
      const LayerWeights& w = run.weights(l, d);
      a.W[d] = run.transposed_weight(w.W_hh, G * H, P);
      if (dx) W_ih[d] = run.transposed_weight(w.W_ih, G * H, I);
      if (w.W_hr) W_hr[d] = run.transposed_weight(w.W_hr, P, H);
      a.tape[d] = run.tape_of(args.tape, l, d);
      given.dh_n[d] = run.state(args.dh_n, l, d, P, run.storage);
      a.dc_n[d] = run.state(args.dc_n, l, d, H, run.storage);
      dh_0[d] = run.state(args.dh_0, l, d, P, run.compute);
      a.dh_0[d] = run.shape.projected ? nullptr : dh_0[d];
      a.dc_0[d] = run.state(args.dc_0, l, d, H, run.compute);
    }
    a.y = output(l);
    if (!run.shape.projected) a.given = given;
    x = args.gradients ? run.input(l, l > 0 ? output(l - 1) : nullptr) : Rows{};
    // Chunk by chunk the directions come to a row of dx in either order.
    from_zero = D > 1 && (each < T || run.wish.invariant);
    if (dx && from_zero) check(set_to_zero(dx, size_t(R * I) * bytes_of(run.compute), run.on.stream));

    // Steps of the loop count from the last one.
    for (int64_t begin = 0; begin < T; begin += each) {
      const int64_t end = std::min(begin + each, T);
      for (int64_t d = 0; d < D; ++d) move_later(d, T - end, T - begin);
      const bool initial = end == T && (args.dh_0 || args.dc_0);
      run.steps(a, begin, end + initial, [&](int64_t step) { before(T - 1 - step); }, [](int64_t) {});
      for (int64_t d = 0; d < D; ++d) gradients(l, d, begin == 0, run.window(d, T - end, T - begin));
    }
  }

 private:
  const void* output(int64_t l) const {  // [R, D*P]
    return l == run.shape.L - 1 ? args.y : Run::offset(args.hidden, l * R * D * P, run.storage);
  }
  Tensor rows_of(const void* data, int64_t rows, int64_t columns) const {
    return matrix(data, rows, columns, columns, 1, run.storage, run.call.x);
  }
  void* gate_rows(void* const (&da)[2], int64_t d, int64_t row) const {
    return Run::offset(da[d], (row - a.chunk_row[d]) * G * H, run.storage);
  }

  // The arrays of gate gradients are from now on for the steps [begin, end) of direction d and for the one behind them,
  // which the chunk before has left there.
  void move_later(int64_t d, int64_t begin, int64_t end) {
    const Run::Window all = run.window(d, begin, std::min(end + 1, run.seq.T));
    if (end < run.seq.T) {
      const Run::Window later = run.window(d, end, end + 1);
      void* from = gate_rows(a.da_h, d, later.first);
      void* to = Run::offset(a.da_h[d], (later.first - all.first) * G * H, run.storage);
      Tensor target = rows_of(to, later.count, G * H);
      if (from != to) torch::stable::copy_(target, rows_of(from, later.count, G * H));
    }
    a.chunk_row[d] = all.first;
  }

  // W_hh^T da_{t+1}; with a projection the gradients of h_t from it, and those of the cell's output.
  void before(int64_t s) {
    const bool projected = run.shape.projected;
    for (int64_t d = 0; d < D; ++d) {
      const int64_t active = run.active(d, s), later = run.active(d, s + 1);
      void* of_state = projected ? state_product[d] : step_product[d];
      if (later > 0)
        run.multiply(of_state, P, run.compute, {gate_rows(a.da_h, d, run.first_row(d, s + 1)), G * H}, a.W[d], later, P,
                     G * H, false, !a.g.library);
      if (!projected) continue;
      StateGradients p{run.seq, given, P, D, d, s, a.chunk_row[d], state_product[d], dh[d], dh_0[d]};
      check(with_storage(run.call.dtype, [&](auto kernels) { return kernels.run(p, run.on.stream); }));
      if (active > 0)
        run.multiply(step_product[d], H, run.compute,
                     {Run::offset(dh[d], (run.first_row(d, s) - a.chunk_row[d]) * P, run.storage), P}, W_hr[d], active, H,
                     P, false, !a.g.library);
    }
  }

  // Of the input and the weights, from the rows of a chunk.
  void gradients(int64_t l, int64_t d, bool first, const Run::Window& rows) {
    const int64_t I = run.inputs(l), n = rows.count;
    void *of_x = gate_rows(a.da_x, d, rows.first), *of_h = gate_rows(a.da_h, d, rows.first);
    if (dx)
      run.multiply(Run::offset(dx, rows.first * I, run.compute), I, run.compute, {of_x, G * H}, W_ih[d], n, I, G * H,
                   from_zero || d > 0, run.wish.invariant);
    if (!args.gradients) return;
    const LayerGradients& out = args.gradients[l * D + d];
    const Tensor da_x = rows_of(of_x, n, G * H), da_h = rows_of(of_h, n, G * H);
    const auto of_weight = [&](void* dW, int64_t M, int64_t N, const Tensor& da, const Tensor& v) {
      run.assign_or_add(matrix(dW, M, N, N, 1, run.compute, run.call.x), !first,
                        [&](const Tensor& to) { product(to, transposed(da), v); });
    };
    const void* input = Run::offset(x.data, rows.first * x.stride, run.storage);
    of_weight(out.dW_ih, G * H, I, da_x, matrix(input, n, I, x.stride, 1, run.storage, run.call.x));
    const PreviousStates p{run.seq, P, D, d, rows.first_time, rows.times, rows.first, 8, output(l),
                           run.state(args.h_0, l, d, P, run.storage), previous};
    check(with_storage(run.call.dtype, [&](auto kernels) { return kernels.run(p, run.on.stream); }));
    of_weight(out.dW_hh, G * H, P, da_h, rows_of(previous, n, P));
    if (run.shape.projected) {
      const int64_t stride = run.call.tape() * H;
      const void* unprojected = Run::offset(a.tape[d], rows.first * stride + run.call.facts().tape * H, run.storage);
      const Tensor dh_t = rows_of(Run::offset(dh[d], (rows.first - a.chunk_row[d]) * P, run.storage), n, P);
      of_weight(out.dW_hr, P, H, dh_t, matrix(unprojected, n, H, stride, 1, run.storage, run.call.x));
    }
    if (!run.shape.bias) return;
    const auto of_bias = [&](void* db, const Tensor& da) {
      run.assign_or_add(vector(db, G * H, run.compute, run.call.x), !first, [&](const Tensor& to) { sum_of_rows(to, da); });
    };
    of_bias(out.db_ih, da_x);
    of_bias(out.db_hh, da_h);
  }

  Run run;
  const BackwardArgs& args;
  const int64_t G, D, H, P, B, R;
  int64_t each;  // steps of a chunk
  BackwardSteps a;
  OutputGradients given;
  Rows x;    // of this layer, as is all that follows
  void* dx;  // compute type [R, inputs] or null
  bool from_zero;  // whether both directions add to it
  const void *W_ih[2] = {}, *W_hr[2] = {};  // transposed
  void *step_product[2] = {}, *state_product[2] = {}, *dh[2] = {}, *dh_0[2] = {}, *previous = nullptr;
  void* dx_below[2] = {};
};

}  // namespace rnn_ext::cuda
