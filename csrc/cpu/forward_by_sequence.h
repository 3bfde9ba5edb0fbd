// Forward of small layers on many sequences, block by block (by_sequence.h). Layer by layer, step by step
//   a = W_ih x_t + b + W_hh h_{t-1},   h_t = cell.forward(a).

template <class T>
class BySequence<T, ForwardArgs> {
  static constexpr int64_t kLane = kLanes<T>;
  using L = Layer<T, ForwardArgs>;

 public:
  // What the loop knows of a cell: its constants, and what it does of a step.
  struct CellOf : CellFacts {
    void (BySequence::*update)(int64_t) const;
  };
  template <class Cell>
  static consteval CellOf cell_of() {
    return {facts_of<Cell>(), &BySequence::template update<Cell>};
  }

  BySequence(const ForwardArgs& args, const CellOf& cell, int64_t worker)
      : args(args), cell(cell), blocks{args}, H(args.shape.H), has_c(cell.carry == Carry::cell) {
    Workspace w{static_cast<char*>(args.workspace), worker, args.plan.threads};
    const int64_t widest = widest_input(args.shape) * kLane;
    x = w.take<T>(widest);
    spare = w.take<T>(args.masks ? widest : 0);
    a = w.take<T>(cell.columns * H * kLane);
    h = w.take<T>(H * kLane);
    c = w.take<T>(H * kLane);
    tape = w.take<T>(args.tape ? cell.tape * H * kLane : 0);
    bias = w.take<T>(cell.columns * H);
    bytes = w.used;
  }

  size_t workspace_bytes() const { return bytes; }

  void run(const Team& team) {
    const Part mine = blocks.part(team, blocks.count());
    for (int64_t l = 0; l < args.shape.L; ++l)
      for (int64_t d = 0; d < args.shape.D; ++d) {
        const L layer{args, l};
        sum_biases<T>(cell, bias, H, args.shape, layer.weights(d));
        for (int64_t i = mine.first; i < mine.end; i += mine.step) run_block(layer, d, i * kLane);
      }
  }

 private:
  void run_block(const L& layer, int64_t d, int64_t b) {
    const int64_t all = blocks.size(b), ldy = layer.outputs();
    const Range steps = blocks.steps(d, b);
    const T* const below = layer.l > 0 ? output<T>(args, layer.l - 1) : nullptr;
    blocks.load_state(h, kLane, layer, args.h_0, d, b, all);
    if (has_c) blocks.load_state(c, kLane, layer, args.c_0, d, b, all);
    for (int64_t s = steps.begin; s < steps.end; ++s) {
      const int64_t n = blocks.size(d, s, b), row = blocks.row(d, s, b);
      blocks.load_input(x, kLane, layer, below, d, s, b, spare);
      pre_activations(layer.weights(d), layer.inputs());
      (this->*cell.update)(n < all ? n : kLane);
      store_columns(output<T>(args, layer.l) + row * ldy + d * H, ldy, n, H, h);
      if (cell.tape > 0 && args.tape)
        store_columns(layer.tape(static_cast<T*>(args.tape), d, row, cell.tape), cell.tape * H, n, cell.tape * H, tape);
    }
    blocks.store_state(layer, args.h_n, d, b, all, h);
    if (has_c) blocks.store_state(layer, args.c_n, d, b, all, c);
  }

  // a = W_ih x + b, and W_hh h added to it or, where it stays apart, in a column of its own. The first gates, whose column
  // is one, run on into each other, so that a group of sums is full.
  void pre_activations(const LayerWeights& weights, int64_t I) {
    const T* const W_ih = static_cast<const T*>(weights.W_ih);
    const T* const W_hh = static_cast<const T*>(weights.W_hh);
    const int together = gates_in_one_column(cell);
    in_groups<kSums>(together * H, [&](auto count, int64_t m) {
      constexpr int M = count.value;
      const auto of_input = sums<false, M>(I, W_ih + m * I, I, x, kLane) + biases<M>(m);
      store_columns(a + m * kLane, kLane, of_input + sums<false, M>(H, W_hh + m * H, H, h, kLane));
    });
    for (int g = together; g < cell.gates; ++g)
      in_groups<kSums>(H, [&](auto count, int64_t j) {
        constexpr int M = count.value;
        const int64_t m = g * H + j, apart = cell.hidden_columns[g] * H + j;
        const auto of_input = sums<false, M>(I, W_ih + m * I, I, x, kLane) + biases<M>(m);
        const auto of_hidden = sums<false, M>(H, W_hh + m * H, H, h, kLane);
        store_columns(a + m * kLane, kLane, apart == m ? of_input + of_hidden : of_input);
        if (apart != m) store_columns(a + apart * kLane, kLane, of_hidden + biases<M>(apart));
      });
  }
  template <int M>
  Pack<T, M> biases(int64_t m) const {
    return pack_of<T, M>([&](int i) { return splat(bias[m + i]); });
  }

  // The cell. Beyond n lanes the states stay: of sequences that are over, or in reverse have not begun.
  template <class Cell>
  void update(int64_t n) const {
    constexpr int C = Cell::columns;
    in_groups<kTogether<Cell>>(H, [&](auto count, int64_t j) {
      constexpr int N = count.value;
      using V = Pack<T, N>;
      V in[C], tape_t[Cell::tape + 1 /* never none */], before = load_columns<T, N>(h + j * kLane, kLane), c_t{};
      for (int i = 0; i < C; ++i) in[i] = load_columns<T, N>(a + (i * H + j) * kLane, kLane);
      if (Cell::carry == Carry::cell) c_t = load_columns<T, N>(c + j * kLane, kLane);
      store_columns(h + j * kLane, kLane, Cell::forward(in, before, c_t, tape_t), n);
      if (Cell::carry == Carry::cell) store_columns(c + j * kLane, kLane, c_t, n);
      if (!args.tape) return;
      for (int i = 0; i < Cell::tape; ++i) store_columns(tape + (i * H + j) * kLane, kLane, tape_t[i]);
    });
  }

  const ForwardArgs& args;
  const CellOf& cell;
  const Blocks<T, ForwardArgs> blocks;
  const int64_t H;
  const bool has_c;
  T *x, *spare, *a, *h, *c, *tape, *bias;
  size_t bytes;
};
