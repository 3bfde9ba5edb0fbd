// Forward of a whole stack: layer by layer, W_ih x for a chunk of steps as one product, and the time loop.
#pragma once
#include "run.h"

namespace rnn_ext::cuda {

class ForwardLayers {
 public:
  ForwardLayers(const Call& call, const ForwardArgs& args, bool batch_invariant)
      : run(call, batch_invariant), args(args), G(run.G), D(run.D), H(run.H), P(run.P), B(run.seq.B), R(run.seq.R) {
    run.prepare(a, forward_shape(run.seq, run.shape, call.cell, call.dtype));
    each = run.chunk_steps(D * G * H * int64_t(bytes_of(run.compute)));
    const bool has_cell = call.facts().states > 1;
    for (int64_t d = 0; d < D; ++d) {
      projection[d] = run.memory({run.chunk_rows(each), G * H}, run.compute);
      a.projection[d] = projection[d];
      if (has_cell) a.c[d] = run.memory({B, H}, run.compute);
      if (a.g.apart) a.product[d] = step_product[d] = run.memory({B, G * H}, run.compute);
      if (run.shape.projected && !args.tape) out[d] = run.memory({B, H}, run.storage);
    }
    a.out_stride = args.tape ? call.tape() * H : H;
    if (!a.g.apart || args.h_0) return;
    zeros = run.memory({B, P}, run.storage);
    check(set_to_zero(zeros, size_t(B * P) * bytes_of(run.storage), run.on.stream));
  }

  void layer(int64_t l) {
    const Rows x = run.input(l, l > 0 ? output(l - 1) : nullptr);
    for (int64_t d = 0; d < D; ++d) {
      const LayerWeights& w = run.weights(l, d);
      a.W[d] = w.W_hh;
      a.b_ih[d] = w.b_ih;
      a.b_hh[d] = w.b_hh;
      a.h_0[d] = run.state(args.h_0, l, d, P, run.storage);
      a.c_0[d] = run.state(args.c_0, l, d, H, run.storage);
      a.h_n[d] = run.state(args.h_n, l, d, P, run.storage);
      a.c_n[d] = run.state(args.c_n, l, d, H, run.storage);
      a.tape[d] = run.tape_of(args.tape, l, d);
    }
    a.y = output(l);
    for (int64_t begin = 0; begin < run.seq.T; begin += each) {
      const int64_t end = std::min(begin + each, run.seq.T);
      for (int64_t d = 0; d < D; ++d) {
        const Run::Window rows = run.window(d, begin, end);
        a.chunk_row[d] = rows.first;
        run.multiply(projection[d], G * H, run.compute, {Run::offset(x.data, rows.first * x.stride, run.storage), x.stride},
                     run.weights(l, d).W_ih, rows.count, G * H, run.inputs(l), false, run.wish.invariant);
      }
      run.steps(a, begin, end, [&](int64_t s) { before(l, s); }, [&](int64_t s) { after(l, s); });
    }
  }

 private:
  void* output(int64_t l) const {  // [R, D*P]
    if (l == run.shape.L - 1) return args.y;
    return Run::offset(args.hidden, l % args.hidden_slots * R * D * P, run.storage);
  }
  void* output_rows(int64_t d, int64_t s) const {
    return Run::offset(a.y, (run.first_row(d, s) * D + d) * P, run.storage);
  }

  // W_hh h_{t-1} of all sequences of a step: those that go on, and those that begin with their initial state.
  void before(int64_t l, int64_t s) {
    for (int64_t d = 0; d < D; ++d) {
      const int64_t active = run.active(d, s), going = std::min(run.active(d, s - 1), active);
      const auto states = [&](int64_t first, int64_t count, Rows h) {
        run.multiply(Run::offset(step_product[d], first * G * H, run.compute), G * H, run.compute, h, run.weights(l, d).W_hh,
                     count, G * H, P, false, !a.g.library);
      };
      if (going > 0) states(0, going, {output_rows(d, s - 1), D * P});
      const void* h_0 = args.h_0 ? a.h_0[d] : zeros;
      states(going, active - going, {Run::offset(h_0, going * P, run.storage), P});
      if (!run.shape.projected) continue;
      const int64_t in_tape = (run.first_row(d, s) * run.call.tape() + run.call.facts().tape) * H;
      a.out[d] = args.tape ? Run::offset(a.tape[d], in_tape, run.storage) : out[d];
    }
  }

  // h_t = W_hr times the cell's output; it is the final state of the sequences that end here.
  void after(int64_t l, int64_t s) {
    for (int64_t d = 0; d < D && run.shape.projected; ++d) {
      const int64_t active = run.active(d, s), next = std::min(run.active(d, s + 1), active);
      run.multiply(output_rows(d, s), D * P, run.storage, {a.out[d], a.out_stride}, run.weights(l, d).W_hr, active, P, H,
                   false, !a.g.library);
      if (next == active) continue;
      const auto ending = [&](const void* rows, int64_t stride) {
        return matrix(Run::offset(rows, next * stride, run.storage), active - next, P, stride, 1, run.storage, run.call.x);
      };
      Tensor final = ending(a.h_n[d], P);
      torch::stable::copy_(final, ending(output_rows(d, s), D * P));
    }
  }

  Run run;
  const ForwardArgs& args;
  const int64_t G, D, H, P, B, R;
  int64_t each;  // steps of a chunk
  ForwardSteps a;
  void *projection[2] = {}, *step_product[2] = {}, *out[2] = {}, *zeros = nullptr;
};

}  // namespace rnn_ext::cuda
