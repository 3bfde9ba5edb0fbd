// Forward and backward of small layers on many sequences: a vector holds one unit of as many sequences as it has lanes, a
// block of them. No lane is lost where units do not fill a vector, weights are used as they lie, and each block goes through
// all steps on its own, so that no worker waits for another. Output, states and input gradients have the bits that the
// loops by unit give them (forward.h, backward.h); gradients of the weights are summed in another order.
//
// What is computed of a block lies in columns: the number of unit k and lane i at [k * ld + i].

// From how many columns on a transpose in registers is faster than number by number.
constexpr int64_t kColumnsToTranspose = 5;

// columns[k, lane] = rows[lane, k] for n rows of K numbers, `stride` apart; zeros in the lanes that have no row.
template <class T>
void load_columns(T* columns, int64_t ld, const T* rows, int64_t stride, int64_t n, int64_t K) {
  int64_t k = 0;
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    for (; K - k >= kColumnsToTranspose; k += 16) {
      __m512i square[16] = {};
      for (int64_t lane = 0; lane < n; ++lane) square[lane] = (__m512i)load(rows + lane * stride + k, K - k);
      transpose(square);
      for (int64_t i = 0; i < smaller(16, K - k); ++i) store(columns + (k + i) * ld, (Vec<T>)square[i]);
    }
#endif
  for (; k < K; ++k)
    for (int64_t lane = 0; lane < kLanes<T>; ++lane)
      columns[k * ld + lane] = lane < n ? rows[lane * stride + k] : T(0);
}

// rows[lane, k] = or += columns[k, lane], whose ld is one vector.
template <class T>
void store_columns(T* rows, int64_t stride, int64_t n, int64_t K, const T* columns, Into into = Into::assign) {
  int64_t k = 0;
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    for (; K - k >= kColumnsToTranspose; k += 16) {
      __m512i square[16] = {};
      for (int64_t i = 0; i < smaller(16, K - k); ++i) square[i] = (__m512i)load(columns + (k + i) * 16);
      transpose(square);
      for (int64_t lane = 0; lane < n; ++lane) {
        T* const row = rows + lane * stride + k;
        const Vec<T> v = (Vec<T>)square[lane];
        store(row, into == Into::add ? load(row, K - k) + v : v, K - k);
      }
    }
#endif
  for (; k < K; ++k)
    for (int64_t lane = 0; lane < n; ++lane) {
      const T v = columns[k * kLanes<T> + lane];
      T& number = rows[lane * stride + k];
      number = into == Into::add ? number + v : v;
    }
}

template <int N>
struct Count {
  static constexpr int value = N;
};
// Calls act(Count, m) for `count` numbers m from 0 on: N of them at once while there are so many, then fewer.
template <int N, class Act>
inline void in_groups(int64_t count, Act act, int64_t m = 0) {
  for (; m + N <= count; m += N) act(Count<N>{}, m);
  if constexpr (N > 1)
    if (m < count) in_groups<N / 2>(count, act, m);
}
constexpr int kSums = 8;  // at once: enough to hide how long a multiply-add takes

// M columns of A B: A[m, k] at A[m * lda + k], or at A[k * lda + m] of what is stored transposed; B in columns.
template <bool kTransposedA, int M, class T>
inline Pack<T, M> sums(int64_t K, const T* A, int64_t lda, const T* B, int64_t ldb) {
  Pack<T, M> sum{};
  for (int64_t k = 0; k < K; ++k) {
    Vec<T> b = load(B + k * ldb);
    stay_in_register(b);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sum.v[m] = fma(splat(A[kTransposedA ? k * lda + m : m * lda + k]), b, sum.v[m]);
  }
  return sum;
}

template <class T, int N>
inline Pack<T, N> load_columns(const T* columns, int64_t ld) {
  return pack_of<T, N>([&](int i) { return load(columns + i * ld); });
}
template <class T, int N>
inline void store_columns(T* columns, int64_t ld, const Pack<T, N>& pack) {
  for_vectors_of<N>([&](int i) { store(columns + i * ld, pack.v[i]); });
}

// Of how many gates, from the first on, both parts are summed in the column of that gate.
template <class Cell>
constexpr int gates_in_one_column() {
  int g = 0;
  while (g < Cell::gates && Cell::hidden_column(g) == g) ++g;
  return g;
}

// What both passes know of a call. Args is ForwardArgs or BackwardArgs.
template <class T, class Args>
struct Blocks {
  using L = Layer<T, Args>;
  static constexpr int64_t kLane = kLanes<T>;
  const Args& args;

  int64_t count() const { return (args.seq.B + kLane - 1) / kLane; }
  int64_t size(int64_t b) const { return smaller(kLane, args.seq.B - b); }  // of the block that begins with sequence b
  int64_t row(int64_t t, int64_t b) const { return t * args.seq.B + b; }

  // The layer's input at step t; `spare` has room for as much.
  void load_input(T* columns, int64_t ld, const L& layer, const T* below, int64_t t, int64_t b, T* spare) const {
    const int64_t K = layer.inputs();
    if (layer.l == 0)
      load_columns(columns, ld, static_cast<const T*>(args.x) + t * args.x_step + b * args.x_row, args.x_row, size(b), K);
    else
      load_columns(columns, ld, below + row(t, b) * K, K, size(b), K);
    if (layer.mask()) mask(columns, ld, layer.mask() + row(t, b) * K, K, size(b), K, spare);
  }
  // Multiplies by a dropout mask, whose rows lie `stride` apart.
  void mask(T* columns, int64_t ld, const T* rows, int64_t stride, int64_t n, int64_t K, T* spare) const {
    load_columns(spare, kLane, rows, stride, n, K);
    for (int64_t k = 0; k < K; ++k) store(columns + k * ld, load(columns + k * ld) * load(spare + k * kLane));
  }
  // A state [L*D, B, H]; zeros where there is none.
  void load_state(T* columns, int64_t ld, const L& layer, const void* states, int64_t d, int64_t b) const {
    const T* rows = layer.state(static_cast<const T*>(states), d, b, args.shape.H);
    load_columns(columns, ld, rows, args.shape.H, rows ? size(b) : 0, args.shape.H);
  }
  void store_state(const L& layer, void* states, int64_t d, int64_t b, const T* columns) const {
    store_columns(layer.state(static_cast<T*>(states), d, b, args.shape.H), args.shape.H, size(b), args.shape.H, columns);
  }
};

template <class Cell, class T, class Args>
class BySequence;

template <class Cell, class T>
class BySequence<Cell, T, ForwardArgs> {
  static constexpr int G = Cell::gates, C = Cell::columns;
  static constexpr int64_t kLane = kLanes<T>;
  using L = Layer<T, ForwardArgs>;

 public:
  BySequence(const ForwardArgs& args, int64_t worker) : args(args), blocks{args}, H(args.shape.H) {
    Workspace w{static_cast<char*>(args.workspace), worker, args.plan.threads};
    const int64_t widest = widest_input(args.shape) * kLane;
    x = w.take<T>(widest);
    spare = w.take<T>(args.masks ? widest : 0);
    a = w.take<T>(C * H * kLane);
    h = w.take<T>(H * kLane);
    c = w.take<T>(H * kLane);
    kept = w.take<T>(args.tape ? Cell::tape * H * kLane : 0);
    bias = w.take<T>(C * H);
    bytes = w.used;
  }

  size_t workspace_bytes() const { return bytes; }

  void run(const Team& team) {
    const Range mine = team.part(args.seq.B, kLane);
    for (int64_t l = 0; l < args.shape.L; ++l)
      for (int64_t d = 0; d < args.shape.D; ++d) {
        const L layer{args, l};
        sum_biases(layer.weights(d));
        for (int64_t b = mine.begin; b < mine.end; b += kLane) run_block(layer, d, b);
      }
  }

 private:
  void sum_biases(const LayerWeights& w) {
    for (int64_t i = 0; i < C * H; ++i) bias[i] = 0;
    if (args.shape.bias)
      for (int g = 0; g < G; ++g)
        for (int64_t j = 0; j < H; ++j) {
          bias[g * H + j] += static_cast<const T*>(w.b_ih)[g * H + j];
          bias[Cell::hidden_column(g) * H + j] += static_cast<const T*>(w.b_hh)[g * H + j];
        }
  }

  T* output(int64_t l) const {  // [R, D*H]
    if (l == args.shape.L - 1) return static_cast<T*>(args.y);
    return static_cast<T*>(args.hidden) + l % args.hidden_slots * args.seq.R * args.shape.D * H;
  }

  void run_block(const L& layer, int64_t d, int64_t b) {
    const int64_t n = blocks.size(b), ldy = layer.outputs();
    const T* const below = layer.l > 0 ? output(layer.l - 1) : nullptr;
    blocks.load_state(h, kLane, layer, args.h_0, d, b);
    if (Cell::carry == Carry::cell) blocks.load_state(c, kLane, layer, args.c_0, d, b);
    for (int64_t s = 0; s < args.seq.T; ++s) {
      const int64_t t = args.seq.time(d, s), row = blocks.row(t, b);
      blocks.load_input(x, kLane, layer, below, t, b, spare);
      pre_activations(layer.weights(d), layer.inputs());
      update();
      store_columns(output(layer.l) + row * ldy + d * H, ldy, n, H, h);
      if (Cell::tape > 0 && args.tape)
        store_columns(layer.tape(static_cast<T*>(args.tape), d, row, Cell::tape), Cell::tape * H, n, Cell::tape * H, kept);
    }
    blocks.store_state(layer, args.h_n, d, b, h);
    if (Cell::carry == Carry::cell) blocks.store_state(layer, args.c_n, d, b, c);
  }

  // a = W_ih x + b, and W_hh h added to it or, where it stays apart, in a column of its own.
  void pre_activations(const LayerWeights& weights, int64_t I) {
    const T* const W_ih = static_cast<const T*>(weights.W_ih);
    const T* const W_hh = static_cast<const T*>(weights.W_hh);
    constexpr int together = gates_in_one_column<Cell>();
    in_groups<kSums>(together * H, [&](auto count, int64_t m) {
      constexpr int M = count.value;
      const auto of_input = sums<false, M>(I, W_ih + m * I, I, x, kLane) + biases<M>(m);
      store_columns(a + m * kLane, kLane, of_input + sums<false, M>(H, W_hh + m * H, H, h, kLane));
    });
    for (int g = together; g < G; ++g)
      in_groups<kSums>(H, [&](auto count, int64_t j) {
        constexpr int M = count.value;
        const int64_t m = g * H + j, apart = Cell::hidden_column(g) * H + j;
        store_columns(a + m * kLane, kLane, sums<false, M>(I, W_ih + m * I, I, x, kLane) + biases<M>(m));
        store_columns(a + apart * kLane, kLane, sums<false, M>(H, W_hh + m * H, H, h, kLane) + biases<M>(apart));
      });
  }
  template <int M>
  Pack<T, M> biases(int64_t m) const {
    return pack_of<T, M>([&](int i) { return splat(bias[m + i]); });
  }

  // The cell.
  void update() {
    in_groups<kTogether<Cell>>(H, [&](auto count, int64_t j) {
      constexpr int N = count.value;
      using V = Pack<T, N>;
      V in[C], tape[Cell::tape + 1 /* never none */], before = load_columns<T, N>(h + j * kLane, kLane), cell{};
      for (int i = 0; i < C; ++i) in[i] = load_columns<T, N>(a + (i * H + j) * kLane, kLane);
      if (Cell::carry == Carry::cell) cell = load_columns<T, N>(c + j * kLane, kLane);
      store_columns(h + j * kLane, kLane, Cell::forward(in, before, cell, tape));
      if (Cell::carry == Carry::cell) store_columns(c + j * kLane, kLane, cell);
      if (!args.tape) return;
      for (int i = 0; i < Cell::tape; ++i) store_columns(kept + (i * H + j) * kLane, kLane, tape[i]);
    });
  }

  const ForwardArgs& args;
  const Blocks<T, ForwardArgs> blocks;
  const int64_t H;
  T *x, *spare, *a, *h, *c, *kept, *bias;
  size_t bytes;
};

template <class Cell, class T>
class BySequence<Cell, T, BackwardArgs> {
  static constexpr int G = Cell::gates, C = Cell::columns;
  static constexpr int64_t kLane = kLanes<T>;
  // Steps whose gradients are kept for one product each with x and h; and into how many sums the blocks of a batch are
  // summed, as many workers can have something to do.
  static constexpr int64_t kSteps = 16, kPartialSums = 16;
  using L = Layer<T, BackwardArgs>;

 public:
  BySequence(const BackwardArgs& args, int64_t worker)
      : args(args), blocks{args}, H(args.shape.H), steps(smaller(kSteps, args.seq.T)), ld((steps + 1) * kLane),
        partial_sums(smaller(blocks.count(), kPartialSums)) {
    const Shape& s = args.shape;
    Workspace w{static_cast<char*>(args.workspace), worker, args.plan.threads};
    const int64_t widest = widest_input(s);
    da = w.take<T>(C * H * ld);
    x = w.take<T>(widest * ld);
    h = w.take<T>(H * ld);
    dh = w.take<T>(H * kLane);
    carry = w.take<T>(H * kLane);
    kept = w.take<T>(Cell::tape * H * kLane);
    dx = w.take<T>(widest * kLane);
    spare = w.take<T>((widest > H ? widest : H) * kLane);
    da_sum = w.take<T>(round_up(C * H, kLane) * kLane);
    for (T*& below : dx_below) below = w.take_shared<T>(s.L > 1 ? args.seq.R * s.D * H : 0);
    partial_size = round_up(G * H * (widest + H) + C * H, kLane);
    partial = w.take_shared<T>(args.gradients ? partial_sums * partial_size : 0);
    bytes = w.used;
  }

  size_t workspace_bytes() const { return bytes; }

  void run(const Team& team) {
    const Range mine = team.part(partial_sums);
    for (int64_t l = args.shape.L - 1; l >= 0; --l)
      for (int64_t d = 0; d < args.shape.D; ++d) {
        const L layer{args, l};
        for (int64_t i = mine.begin; i < mine.end; ++i) {
          const int64_t first = blocks.count() * i / partial_sums, end = blocks.count() * (i + 1) / partial_sums;
          if (args.gradients) sum = Partial(partial + i * partial_size, layer.inputs(), H);
          for (int64_t j = 0; j < C * H * kLane; ++j) da_sum[j] = 0;
          for (int64_t block = first; block < end; ++block) run_block(layer, d, block * kLane, block == first);
          if (args.gradients) sum_lanes(sum.db);
        }
        if (!args.gradients) continue;
        team.wait();
        add_up(layer, d, team);
        team.wait();
      }
  }

 private:
  // Gradients of the weights of a layer and direction, summed over some of the blocks.
  struct Partial {
    T *dW_ih, *dW_hh, *db;  // [G*H, I], [G*H, H], [C*H]
    Partial() = default;
    Partial(T* p, int64_t I, int64_t H) : dW_ih(p), dW_hh(p + G * H * I), db(dW_hh + G * H * H) {}
  };

  const T* output(int64_t l) const {
    if (l == args.shape.L - 1) return static_cast<const T*>(args.y);
    return static_cast<const T*>(args.hidden) + l * args.seq.R * args.shape.D * H;
  }
  // Gradient of layer l's input, [R, inputs]; null where nobody wants it.
  T* dx_of(int64_t l) const { return l == 0 ? static_cast<T*>(args.dx) : dx_below[l % 2]; }

  void run_block(const L& layer, int64_t d, int64_t b, bool first_block) {
    const Chunks chunks{args.seq.T, steps};
    blocks.load_state(carry, kLane, layer, args.dc_n, d, b);
    for (int64_t i = chunks.count() - 1; i >= 0; --i) {
      const Chunk chunk = chunks[i];
      load_h(layer, d, chunk.end, b, chunk.size());
      for (int64_t s = chunk.end - 1; s >= chunk.begin; --s) {
        const int64_t at = s - chunk.begin;
        load_h(layer, d, s, b, at);
        step(layer, d, s, b, at, da + (at + 1 < chunk.size() ? at + 1 : 0) * kLane);
      }
      if (args.gradients) weight_gradients(layer, chunk.size(), first_block && chunk.end == args.seq.T);
    }
    if (args.dh_0) {
      recurrent_gradient(layer, d, da, nullptr);
      if (Cell::carry == Carry::hidden)
        for (int64_t j = 0; j < H * kLane; ++j) dh[j] += carry[j];
      blocks.store_state(layer, args.dh_0, d, b, dh);
    }
    if (Cell::carry == Carry::cell && args.dc_0) blocks.store_state(layer, args.dc_0, d, b, carry);
  }

  // The state before step s, as that of place `at` of the chunk.
  void load_h(const L& layer, int64_t d, int64_t s, int64_t b, int64_t at) {
    if (s == 0) return blocks.load_state(h + at * kLane, ld, layer, args.h_0, d, b);
    const int64_t ldy = layer.outputs();
    const T* y = output(layer.l) + blocks.row(args.seq.time(d, s - 1), b) * ldy + d * H;
    load_columns(h + at * kLane, ld, y, ldy, blocks.size(b), H);
  }

  // dh = from + W_hh^T da.
  void recurrent_gradient(const L& layer, int64_t d, const T* da, const T* from) {
    const T* const W_hh = static_cast<const T*>(layer.weights(d).W_hh);
    in_groups<kSums>(H, [&](auto count, int64_t j) {
      constexpr int M = count.value;
      const auto of_gate = [&](int g) {
        return sums<true, M>(H, W_hh + g * H * H + j, H, da + Cell::hidden_column(g) * H * ld, ld);
      };
      Pack<T, M> sum = of_gate(0);
      if (from) sum = load_columns<T, M>(from + j * kLane, kLane) + sum;
      for (int g = 1; g < G; ++g) sum = sum + of_gate(g);
      store_columns(dh + j * kLane, kLane, sum);
    });
  }

  // Step s, at its place in the chunk; da_next is that of the step after it.
  void step(const L& layer, int64_t d, int64_t s, int64_t b, int64_t at, const T* da_next) {
    const int64_t n = blocks.size(b), t = args.seq.time(d, s), row = blocks.row(t, b), ldy = layer.outputs();
    const bool last_layer = layer.l == args.shape.L - 1;
    const T* dy = last_layer ? static_cast<const T*>(args.dy) : dx_of(layer.l + 1);
    load_columns(dh, kLane, dy ? dy + row * ldy + d * H : nullptr, ldy, dy ? n : 0, H);
    const T* mask = last_layer ? nullptr : L{args, layer.l + 1}.mask();
    if (mask) blocks.mask(dh, kLane, mask + row * ldy + d * H, ldy, n, H, spare);
    if (s + 1 < args.seq.T) {
      recurrent_gradient(layer, d, da_next, dh);
    } else if (args.dh_n) {
      blocks.load_state(spare, kLane, layer, args.dh_n, d, b);
      for (int64_t j = 0; j < H * kLane; ++j) dh[j] += spare[j];
    }
    if (Cell::tape > 0)
      load_columns(kept, kLane, layer.tape(static_cast<const T*>(args.tape), d, row, Cell::tape), Cell::tape * H, n,
                   Cell::tape * H);
    update(n, at);
    if (args.gradients)
      blocks.load_input(x + at * kLane, ld, layer, layer.l > 0 ? output(layer.l - 1) : nullptr, t, b, spare);
    if (dx_of(layer.l)) input_gradient(layer, d, row, n, at);
  }

  // The cell. A lane without a sequence gets zeros, whatever the weights are.
  void update(int64_t n, int64_t at) {
    in_groups<kTogether<Cell>>(H, [&](auto count, int64_t j) {
      constexpr int N = count.value;
      using V = Pack<T, N>;
      V tape[Cell::tape + 1 /* never none */], da_t[C], dh_t = load_columns<T, N>(dh + j * kLane, kLane), carried{};
      for (int i = 0; i < Cell::tape; ++i) tape[i] = load_columns<T, N>(kept + (i * H + j) * kLane, kLane);
      if (Cell::carry != Carry::none) carried = load_columns<T, N>(carry + j * kLane, kLane);
      if (Cell::carry == Carry::hidden) dh_t = dh_t + carried;
      Cell::backward(tape, load_columns<T, N>(h + (at + 1) * kLane + j * ld, ld), dh_t, carried, da_t);
      if (Cell::carry != Carry::none) store_columns(carry + j * kLane, kLane, carried);
      for (int i = 0; i < C; ++i)
        for_vectors_of<N>([&](int v) {
          const int64_t column = i * H + j + v;
          const Vec<T> out = n < kLane ? first_lanes_of(da_t[i].v[v], n) : da_t[i].v[v];
          store(da + column * ld + at * kLane, out);
          store(da_sum + column * kLane, load(da_sum + column * kLane) + out);
        });
    });
  }
  static Vec<T> first_lanes_of(Vec<T> v, int64_t n) {
    T lanes[kLane] = {};
    store(lanes, v, n);
    return load(lanes);
  }

  void input_gradient(const L& layer, int64_t d, int64_t row, int64_t n, int64_t at) {
    const int64_t I = layer.inputs();
    const T* const W_ih = static_cast<const T*>(layer.weights(d).W_ih);
    in_groups<kSums>(I, [&](auto count, int64_t i) {
      constexpr int M = count.value;
      const auto of_gate = [&](int g) { return sums<true, M>(H, W_ih + g * H * I + i, I, da + g * H * ld + at * kLane, ld); };
      Pack<T, M> sum = of_gate(0);
      for (int g = 1; g < G; ++g) sum = sum + of_gate(g);
      store_columns(dx + i * kLane, kLane, sum);
    });
    store_columns(dx_of(layer.l) + row * I, I, n, I, dx, d > 0 ? Into::add : Into::assign);
  }

  // dW_ih += da x^T, dW_hh += da h^T, or = for the first chunk that is summed.
  void weight_gradients(const L& layer, int64_t size, bool first) {
    const int64_t I = layer.inputs(), K = size * kLane;
    const Into into = first ? Into::assign : Into::add;
    if (I == 1)  // one column: as the row that it is in memory, which has more sums at once
      dot_product(sum.dW_ih, G * H, x, ld, 1, da, ld, K, {0, G * H}, into);
    else
      dot_product(sum.dW_ih, I, da, ld, G * H, x, ld, K, {0, I}, into);
    constexpr int together = gates_in_one_column<Cell>();
    dot_product(sum.dW_hh, H, da, ld, together * H, h, ld, K, {0, H}, into);
    for (int g = together; g < G; ++g)
      dot_product(sum.dW_hh + g * H * H, H, da + Cell::hidden_column(g) * H * ld, ld, H, h, ld, K, {0, H}, into);
  }

  void sum_lanes(T* db) const {
    for (int64_t j = 0; j < C * H; j += kLane) {
      Vec<T> columns[kLane];
      for (int64_t i = 0; i < kLane; ++i) columns[i] = load(da_sum + (j + i) * kLane);
      store(db + j, sums_of_lanes<int(kLane)>(columns), C * H - j);
    }
  }

  // The gradients from the partial sums, in their order.
  void add_up(const L& layer, int64_t d, const Team& team) const {
    const int64_t I = layer.inputs();
    const LayerGradients& out = args.gradients[layer.l * args.shape.D + d];
    const Partial first(partial, I, H);
    const auto add = [&](void* gradient, const T* from, int64_t count) {
      const Range mine = team.part(count, kLane);
      for (int64_t j = mine.begin; j < mine.end; j += kLane) {
        Vec<T> v = load(from + j, count - j);
        for (int64_t i = 1; i < partial_sums; ++i) v += load(from + i * partial_size + j, count - j);
        store(static_cast<T*>(gradient) + j, v, count - j);
      }
    };
    add(out.dW_ih, first.dW_ih, G * H * I);
    add(out.dW_hh, first.dW_hh, G * H * H);
    for (int g = 0; g < G && args.shape.bias; ++g) {
      add(static_cast<T*>(out.db_ih) + g * H, first.db + g * H, H);
      add(static_cast<T*>(out.db_hh) + g * H, first.db + Cell::hidden_column(g) * H, H);
    }
  }

  const BackwardArgs& args;
  const Blocks<T, BackwardArgs> blocks;
  const int64_t H, steps, ld, partial_sums;  // ld: of a chunk's columns, one place more than it has steps
  T *da, *x, *h;                             // [C*H, ld], [I, ld], [H, ld]: of the steps of a chunk; h is that before each
  T *dh, *carry, *kept, *dx, *spare;         // [H], [H], [tape*H], [I] and the larger of H and I, of a step
  T* da_sum;                                 // [C*H]: over all steps
  T* dx_below[2];
  T* partial;  // [partial_sums, partial_size]
  int64_t partial_size;
  Partial sum;
  size_t bytes;
};
