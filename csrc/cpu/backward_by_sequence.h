// Backward of small layers on many sequences, block by block (by_sequence.h). Layer by layer, step by step in reverse
//   dh_t = dy_t + W_hh^T da_{t+1},   da_t = cell.backward(h_t, dh_t),   dx_t = W_ih^T da_t
// and, for some steps at once, the gradients of the weights.

template <class T>
class BySequence<T, BackwardArgs> {
  static constexpr int64_t kLane = kLanes<T>;
  // Steps whose da are kept for one product each with x and h; and how many sums the gradients of the weights begin as,
  // each over some of the blocks: no more workers than that have something to do.
  static constexpr int64_t kSteps = 16, kPartialSums = 16;
  using L = Layer<T, BackwardArgs>;

 public:
  // What the loop knows of a cell: its constants, and what it does of a step.
  struct CellOf : CellFacts {
    void (BySequence::*update)(int64_t, int64_t) const;
  };
  template <class Cell>
  static consteval CellOf cell_of() {
    return {facts_of<Cell>(), &BySequence::template update<Cell>};
  }

  BySequence(const BackwardArgs& args, const CellOf& cell, int64_t worker)
      : args(args), cell(cell), G(cell.gates), C(cell.columns), blocks{args}, H(args.shape.H),
        steps(smaller(kSteps, args.seq.T)), ld((steps + 1) * kLane),
        partial_sums(smaller(blocks.count(), kPartialSums)) {
    const Shape& s = args.shape;
    Workspace w{static_cast<char*>(args.workspace), worker, args.plan.threads};
    const int64_t widest = widest_input(s);
    da = w.take<T>(C * H * ld);
    x = w.take<T>(widest * ld);
    h = w.take<T>(H * ld);
    dh = w.take<T>(H * kLane);
    carry = w.take<T>(H * kLane);
    tape = w.take<T>(cell.tape * H * kLane);
    dx = w.take<T>(widest * kLane);
    spare = w.take<T>(larger(widest, H) * kLane);
    da_sum = w.take<T>(round_up(C * H, kLane) * kLane);
    for (T*& below : dx_below) below = w.take_shared<T>(s.L > 1 ? args.seq.R * s.D * H : 0);
    partial_size = round_up(G * H * (widest + H) + C * H, kLane);
    partial = w.take_shared<T>(args.gradients ? partial_sums * partial_size : 0);
    bytes = w.used;
  }

  size_t workspace_bytes() const { return bytes; }

  void run(const Team& team) {
    const Part mine = blocks.part(team, partial_sums);
    for (int64_t l = args.shape.L - 1; l >= 0; --l)
      for (int64_t d = 0; d < args.shape.D; ++d) {
        const L layer{args, l};
        for (int64_t i = mine.first; i < mine.end; i += mine.step) {
          const int64_t first = blocks.count() * i / partial_sums, end = blocks.count() * (i + 1) / partial_sums;
          if (args.gradients) sum = Partial(partial + i * partial_size, G * H, layer.inputs(), H);
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
    Partial(T* p, int64_t rows, int64_t I, int64_t H) : dW_ih(p), dW_hh(p + rows * I), db(dW_hh + rows * H) {}
  };

  // Gradient of layer l's input, [R, inputs]; null where nobody wants it.
  T* dx_of(int64_t l) const { return l == 0 ? static_cast<T*>(args.dx) : dx_below[l % 2]; }

  void run_block(const L& layer, int64_t d, int64_t b, bool first_block) {
    const Range all = blocks.steps(d, b);
    const EqualChunks chunks{all.size(), steps};
    blocks.load_state(carry, kLane, layer, args.dc_n, d, b, blocks.size(b));
    for (int64_t i = chunks.count() - 1; i >= 0; --i) {
      const Chunk chunk = chunks[i];
      load_h(layer, d, all.begin + chunk.end, b, chunk.size());
      for (int64_t at = chunk.size() - 1; at >= 0; --at) {
        const int64_t s = all.begin + chunk.begin + at;
        load_h(layer, d, s, b, at);
        step(layer, d, s, b, at, da + (at + 1 < chunk.size() ? at + 1 : 0) * kLane);
      }
      if (!args.gradients) continue;
      for (int64_t at = 0; at < chunk.size(); ++at) forget_ended(d, all.begin + chunk.begin + at, b, at);
      weight_gradients(layer, chunk.size(), first_block && i == chunks.count() - 1);
    }
    if (args.dh_0) {
      recurrent_gradient(layer, d, da, nullptr, dh, kLane);
      store_dh_0(layer, d, b, blocks.size(d, all.begin, b));
    }
    if (cell.carry == Carry::cell && args.dc_0) blocks.store_state(layer, args.dc_0, d, b, blocks.size(b), carry);
  }

  // The state before step s, as that of place `at` of the chunk: where a sequence takes part in the step before it, what
  // that left behind, and where it begins here, the initial one.
  void load_h(const L& layer, int64_t d, int64_t s, int64_t b, int64_t at) {
    const int64_t before = blocks.size(d, s - 1, b), now = blocks.size(d, s, b);
    if (now > before) blocks.load_state(h + at * kLane, ld, layer, args.h_0, d, b, now);
    if (before == 0) return;
    const int64_t ldy = layer.outputs();
    const T* y = output<T>(args, layer.l) + blocks.row(d, s - 1, b) * ldy + d * H;
    if (now <= before) return load_columns(h + at * kLane, ld, y, ldy, before, H);
    load_columns(spare, kLane, y, ldy, before, H);
    for (int64_t j = 0; j < H; ++j) store(h + j * ld + at * kLane, load(spare + j * kLane), before);
  }

  // Takes the states of sequences that end before step s out of place `at`: infinity times their da, zero, is not a number.
  void forget_ended(int64_t d, int64_t s, int64_t b, int64_t at) const {
    const int64_t n = blocks.size(d, s, b);
    if (n >= blocks.size(d, s - 1, b)) return;
    for (int64_t j = 0; j < H; ++j) {
      T* const lanes = h + j * ld + at * kLane;
      store(lanes, load(lanes, n));
    }
  }

  // to = from + W_hh^T da, in the first n lanes.
  void recurrent_gradient(const L& layer, int64_t d, const T* da, const T* from, T* to, int64_t n) const {
    const T* const W_hh = static_cast<const T*>(layer.weights(d).W_hh);
    in_groups<kSums>(H, [&](auto count, int64_t j) {
      constexpr int M = count.value;
      const auto of_gate = [&](int g) {
        return sums<true, M>(H, W_hh + g * H * H + j, H, da + cell.hidden_columns[g] * H * ld, ld);
      };
      Pack<T, M> sum = of_gate(0);
      if (from) sum = load_columns<T, M>(from + j * kLane, kLane) + sum;
      for (int g = 1; g < G; ++g) sum = sum + of_gate(g);
      store_columns(to + j * kLane, kLane, sum, n);
    });
  }

  // dh as the gradient of the initial states of the first n sequences of a block.
  void store_dh_0(const L& layer, int64_t d, int64_t b, int64_t n) const {
    for (int64_t j = 0; j < H * kLane; ++j) spare[j] = cell.carry == Carry::hidden ? dh[j] + carry[j] : dh[j];
    blocks.store_state(layer, args.dh_0, d, b, n, spare);
  }

  // Step s, at its place in the chunk; da_next is that of the step after it.
  void step(const L& layer, int64_t d, int64_t s, int64_t b, int64_t at, const T* da_next) {
    const int64_t n = blocks.size(d, s, b), after = blocks.size(d, s + 1, b);  // sequences at this step, and the next one
    const int64_t row = blocks.row(d, s, b), ldy = layer.outputs();
    const bool last_layer = layer.l == args.shape.L - 1;
    const T* dy = last_layer ? static_cast<const T*>(args.dy) : dx_of(layer.l + 1);
    load_columns(dh, kLane, dy ? dy + row * ldy + d * H : nullptr, ldy, dy ? n : 0, H);
    const T* mask = last_layer ? nullptr : L{args, layer.l + 1}.mask();
    if (mask) blocks.mask(dh, kLane, mask + row * ldy + d * H, ldy, n, H, spare);
    if (n > after && args.dh_n) {  // of those that end here
      blocks.load_state(spare, kLane, layer, args.dh_n, d, b, n);
      for (int64_t j = 0; j < H * kLane; ++j) spare[j] += dh[j];
      if (after > 0) recurrent_gradient(layer, d, da_next, dh, spare, after);
      for (int64_t j = 0; j < H * kLane; ++j) dh[j] = spare[j];
    } else if (after > 0) {
      recurrent_gradient(layer, d, da_next, dh, dh, n > after ? after : kLane);
      if (n < after && args.dh_0) store_dh_0(layer, d, b, after);  // final for those that began with the next step
    }
    if (cell.tape > 0)
      load_columns(tape, kLane, layer.tape(static_cast<const T*>(args.tape), d, row, cell.tape), cell.tape * H, n,
                   cell.tape * H);
    (this->*cell.update)(n, at);
    if (args.gradients)
      blocks.load_input(x + at * kLane, ld, layer, layer.l > 0 ? output<T>(args, layer.l - 1) : nullptr, d, s, b, spare);
    if (dx_of(layer.l)) input_gradient(layer, d, row, n, at);
  }

  // The cell. A lane without a sequence gets zeros, whatever the weights are.
  template <class Cell>
  void update(int64_t n, int64_t at) const {
    constexpr int C = Cell::columns;
    in_groups<kTogether<Cell>>(H, [&](auto count, int64_t j) {
      constexpr int N = count.value;
      using V = Pack<T, N>;
      V tape_t[Cell::tape + 1 /* never none */], da_t[C], dh_t = load_columns<T, N>(dh + j * kLane, kLane), carried{};
      for (int i = 0; i < Cell::tape; ++i) tape_t[i] = load_columns<T, N>(tape + (i * H + j) * kLane, kLane);
      if (Cell::carry != Carry::none) carried = load_columns<T, N>(carry + j * kLane, kLane);
      if (Cell::carry == Carry::hidden) dh_t = dh_t + carried;
      Cell::backward(tape_t, load_columns<T, N>(h + (at + 1) * kLane + j * ld, ld), dh_t, carried, da_t);
      if (Cell::carry != Carry::none) store_columns(carry + j * kLane, kLane, carried, n);
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
      const auto of_gate = [&](int g) {
        return sums<true, M>(H, W_ih + g * H * I + i, I, da + g * H * ld + at * kLane, ld);
      };
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
    const int together = gates_in_one_column(cell);
    dot_product(sum.dW_hh, H, da, ld, together * H, h, ld, K, {0, H}, into);
    for (int g = together; g < G; ++g)
      dot_product(sum.dW_hh + g * H * H, H, da + cell.hidden_columns[g] * H * ld, ld, H, h, ld, K, {0, H}, into);
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
    const Partial first(partial, G * H, I, H);
    const auto add = [&](void* gradient, const T* from, int64_t count) {
      const Range mine = team.part(count, kLane);
      for (int64_t j = mine.begin; j < mine.end; j += kLane) {
        Vec<T> v = load(from + j, count - j);
        for (int64_t i = 1; i < partial_sums; ++i) v += load(from + i * partial_size + j, count - j);
        T* const to = static_cast<T*>(gradient) + j;
        store(to, args.add_to_gradients ? load(to, count - j) + v : v, count - j);
      }
    };
    add(out.dW_ih, first.dW_ih, G * H * I);
    add(out.dW_hh, first.dW_hh, G * H * H);
    for (int g = 0; g < G && args.shape.bias; ++g) {
      add(static_cast<T*>(out.db_ih) + g * H, first.db + g * H, H);
      add(static_cast<T*>(out.db_hh) + g * H, first.db + cell.hidden_columns[g] * H, H);
    }
  }

  const BackwardArgs& args;
  const CellOf& cell;
  const int G, C;  // gates and columns
  const Blocks<T, BackwardArgs> blocks;
  const int64_t H, steps, ld, partial_sums;  // ld: of a chunk's columns, one place more than it has steps
  T *da, *x, *h;                             // [C*H, ld], [I, ld], [H, ld]: of the steps of a chunk; h is that before each
  T *dh, *carry, *tape, *dx, *spare;         // [H], [H], [tape*H], [I] and the larger of H and I, of a step
  T* da_sum;                                 // [C*H]: over all steps
  T* dx_below[2];
  T* partial;  // [partial_sums, partial_size]
  int64_t partial_size;
  Partial sum;
  size_t bytes;
};
