// Backward of a layer (backpropagation through time): its parts, which stack.h puts in order. Every worker of a team
// calls them at once.
//
// Chunk by chunk in reverse; step by step in reverse
//   dh_t = dy_t + W_hh^T da_{t+1},   da_t = cell.backward(h_t, dh_t)
// where a projection puts  out_t  and  dout_t = W_hr^T dh_t  in the place of h_t and dh_t before the cell; and, for all
// steps of a chunk as one product each,
//   dx = da W_ih,   dW_ih += da^T x,   dW_hh += da^T h_{t-1},   dW_hr += dh^T out,   db += sum of da.
// The last four are in weight_gradients.h.

template <class S, class Product>
class Backward {
  using T = Compute<S>;
  using Gradients = typename Product::Gradients;
  static constexpr int64_t kLane = kLanes<T>;

  struct Direction {
    Gradients da[2];  // [rows of a chunk, C, Hk]: gradients of the pre-activations, of this chunk and of the one before;
                      // where h_t is projected, dh_t [P] ends each row
    T* dh;        // [B, Hp]: gradient of the cell's output (Own)
    T* dh_t;      // [B, Pp]: and of its projection
    T* carry;     // [B, Hp]: what the cell hands from step to step beside da (Own)
  };

 public:
  using L = Layer<S, BackwardArgs>;
  using Use = typename Product::Use;

  // What the loops know of a cell: its constants, and what it does of a step.
  struct CellOf : CellFacts {
    void (Backward::*update)(const L&, int64_t, int64_t, Gradients, Own<T>, Own<T>, Range, int64_t, int64_t,
                             int64_t) const;
  };
  template <class Cell>
  static consteval CellOf cell_of() {
    return {facts_of<Cell>(), &Backward::template update<Cell>};
  }

  // With set `set` of the buffers; layers that run one after the other take the same.
  Backward(const BackwardArgs& args, const CellOf& cell, int64_t set = 0)
      : args(args), cell(cell), chunks(args.seq, args.plan.backward_steps), G(cell.gates), C(cell.columns), H(args.shape.H),
        P(args.shape.P), Hp(round_up(H, kLane)), Hk(Gradients::width(H)), by_layer(args.plan.split == Split::layer),
        workspace{static_cast<char*>(args.workspace), set, by_layer ? args.shape.L : 1},
        weights(args, cell, workspace, by_layer ? 1 : args.plan.threads), weight_gradients(args, cell) {
    const Shape& s = args.shape;
    chunk_rows = chunks.most_rows();
    width = C * Hk + (args.shape.projected ? Gradients::width(P) : 0);
    ldp = padded_stride<T>(round_up(P, kLane));
    Workspace& w = workspace;
    for (int64_t d = 0; d < s.D; ++d) {
      Direction& z = direction[d];
      if (d > 0) w.apart();
      const auto rows = [&] { return Gradients::of(w.take<char>(Gradients::bytes(chunk_rows, width)), width); };
      z.da[0] = rows();
      z.da[1] = chunks.count() > 1 ? rows() : z.da[0];
      const int64_t own_size = Own<T>::size(args.seq.B, 1, Hp, args.plan);
      z.dh = w.take<T>(own_size);
      z.dh_t = w.take<T>(s.projected ? args.seq.B * ldp : 0);
      z.carry = w.take<T>(cell.carry != Carry::none ? own_size : 0);
    }
    weight_gradients.take(w, chunk_rows, width);
    sums = w.take_shared<T>(s.D > 1 ? args.plan.threads * chunk_rows * Product::kWidth : 0);
    for (T*& dx : dx_below) dx = w.take_shared<T>(s.L > 1 ? args.seq.R * s.D * P : 0);
    progress = w.take_shared<Progress>(by_layer ? s.L : 0);
    paces = w.take_shared<Pace>(Balance::paces(args.plan));
  }

  size_t workspace_bytes() const { return workspace.used; }
  Progress* progress_of_layers() const { return progress; }
  Pace* paces_of_workers() const { return paces; }

  // What must be done before the last chunk.
  void prepare(const L& layer, const Team& team) {
    if (layer.l == 0 && args.shape.D == 1) take_pages(args.dx, args.seq.R * args.shape.I * int64_t(sizeof(T)), team);
    for (int64_t d = 0; d < args.shape.D; ++d) {
      for (const Gradients& da : direction[d].da) clear_behind(da, team);
      weights.pack(layer, d, dx(layer.l) != nullptr, team);
    }
    if (args.shape.D > 1 && dx(layer.l)) clear(dx(layer.l), args.seq.R * layer.inputs(), team);
  }

  // The steps [steps.begin, steps.end) of chunk c.
  void loop(const L& layer, int64_t d, Chunk c, Range steps, const Team& team) {
    const Direction& z = direction[d];
    const bool by_unit = args.plan.split == Split::hidden;
    const Range all{0, args.seq.B};
    const Range sequences = by_unit ? all : sequences_of<Product>(team, args.seq, layer.times(d, c));
    const Range mine = by_unit ? team.part(H, Product::kUnit) : Range{0, H};
    const Own<T> dh(z.dh, args.seq.B, 1, mine, team), carry(z.carry, args.seq.B, 1, mine, team);
    const Gradients here = z.da[c.index % 2];
    const int64_t first = layer.rows(d, c).begin;
    for (int64_t s = steps.end - 1; s >= steps.begin; --s) {
      step(layer, d, s, here.at(layer.first_row(d, s) - first), da_of(layer, d, s + 1, c), dh, carry, sequences, mine,
           team);
      if (by_unit) team.wait();
    }
    if (steps.begin == 0)
      initial_gradients(layer, d, da_of(layer, d, 0, c), {0, layer.active(d, 0)}, carry, sequences, mine, team);
  }

  // Gradient of the layer's input from the da of some steps of chunk c. Of two directions each adds its whole sum at
  // once: which one comes to a row first depends on the chunks, and must not change the result.
  void input_gradient(const L& layer, int64_t d, Chunk c, Range steps, const Team& team) {
    if (!dx(layer.l)) return;
    const int64_t N = layer.inputs();
    const Range rows = layer.rows(d, {c.index, steps.begin, steps.end});
    const Gradients da = direction[d].da[c.index % 2].at(rows.begin - layer.rows(d, c).begin);
    const auto product_of = [&](T* to, int64_t ldo, const Gradients& some, int64_t count, Range columns) {
      for (int g = 0; g < G; ++g)
        weights.multiply(to, ldo, some.at(0, g * Hk), count, weights.W_ih(layer, d, g), columns,
                         g > 0 ? Into::add : Into::assign, d, team);
    };
    if (keeps_sequences(layer, team)) {
      const Range sequences = sequences_of<Product>(team, args.seq, layer.times(d, c));
      for (int64_t s = steps.begin; s < steps.end; ++s) {
        const int64_t row = layer.first_row(d, s) + sequences.begin;
        product_of(dx(layer.l) + row * N, N, da.at(row - rows.begin), sequences.below(layer.active(d, s)).size(), {0, N});
      }
      return;
    }
    // A worker keeps its part of W_ih in its own cache, or else all of it.
    const bool by_column = weights.shares_columns(N, team);
    const Range mine = by_column ? Range{0, rows.size()} : team.part(rows.size(), Product::kRowUnit);
    const Range columns = by_column ? team.part(N, Product::kUnit) : Range{0, N};
    T* const out = dx(layer.l) + (rows.begin + mine.begin) * N;
    if (args.shape.D == 1) return product_of(out, N, da.at(mine.begin), mine.size(), columns);
    constexpr int64_t kWidth = Product::kWidth;
    T* const sum = sums + team.rank * chunk_rows * kWidth;
    const Groups<Product> groups{columns, 1};
    for (int64_t i = 0; i < groups.count(); ++i) {
      const Range group = groups[i];
      product_of(sum - group.begin, kWidth, da.at(mine.begin), mine.size(), group);
      for (int64_t r = 0; r < mine.size(); ++r)
        for (int64_t j = group.begin; j < group.end; j += kLane) {
          T* const to = out + r * N + j;
          store(to, load(to, N - j) + load(sum + r * kWidth + j - group.begin), N - j);
        }
    }
  }

  // Gradients of the weights from the da of a chunk. Between two calls the team must wait.
  void add_weight_gradients(const L& layer, int64_t d, Chunk c, const Team& team) {
    if (args.gradients)
      weight_gradients.add(layer, d, c, direction[d].da[c.index % 2], layer.l > 0 ? output<S>(args, layer.l - 1) : nullptr,
                           output<S>(args, layer.l), team);
  }

 private:
  // Gradient of layer l's input, [R, inputs]; null where nobody wants it.
  T* dx(int64_t l) const { return l == 0 ? static_cast<T*>(args.dx) : dx_below[l % 2]; }

  // Whether a worker computes the input gradients of its own sequences, whose da is in its cache, step by step. Then W_ih
  // should be there as panels, which else would be packed for each step, and a step have many rows, in the mean of a packed
  // batch; panels that are narrow are read too often. Of two directions a worker may have other sequences in each.
  bool keeps_sequences(const L& layer, const Team& team) const {
    const bool panels = weights.W_ih(layer, 0, 0).is_packed || layer.inputs() % Product::kWidth == 0;
    const bool full = Product::kSequenceUnit == 1;  // are products of any number of rows, which tiles are not
    return full && !kNarrowPanels && panels && args.plan.split == Split::batch && args.shape.D == 1 &&
           args.seq.R >= 2 * Product::kRowUnit * team.size * args.seq.T;
  }

  static void clear(T* p, int64_t n, const Team& team) {
    const Range mine = team.part(n, 64);
    for (int64_t i = mine.begin; i < mine.end; ++i) p[i] = 0;
  }

  // The numbers behind the units of each column, which a product reads and no step writes.
  void clear_behind(const Gradients& da, const Team& team) const {
    const Range mine = team.part(chunk_rows);
    for (int64_t r = mine.begin; r < mine.end; ++r) {
      for (int i = 0; i < C; ++i)
        for (int64_t k = Hp; k < Hk; k += kLane) da.write(r, i * Hk + k, Vec<T>{});
      for (int64_t k = C * Hk + round_up(P, kLane); k < width; k += kLane) da.write(r, k, Vec<T>{});
    }
  }

  // da of step s, which is in chunk c or the first step of the chunk after it; nothing past the end.
  Gradients da_of(const L& layer, int64_t d, int64_t s, Chunk c) const {
    if (s >= args.seq.T) return {};
    const Chunk home = s < c.end ? c : chunks.at(d, c.index + 1);
    return direction[d].da[home.index % 2].at(layer.first_row(d, s) - layer.rows(d, home).begin);
  }

  void step(const L& layer, int64_t d, int64_t s, const Gradients& da, const Gradients& da_next, const Own<T>& dh,
            const Own<T>& carry, Range sequences, Range units, const Team& team) {
    const Direction& z = direction[d];
    const int64_t active = layer.active(d, s), next = layer.active(d, s + 1);
    const int64_t row = layer.first_row(d, s), ld = layer.outputs();
    const Range now = sequences.below(active);
    const int64_t b = now.begin, going_on = now.below(next).size();  // those that have a later step
    // Sequences that began at step s + 1 have nothing before it but h_0.
    if (next > active) initial_gradients(layer, d, da_next, {active, next}, carry, sequences, units, team);
    if (now.size() == 0) return;

    const bool last_layer = layer.l == args.shape.L - 1;
    const S* dy = last_layer && args.dy ? static_cast<const S*>(args.dy) + row * ld + d * P : nullptr;
    const T* dy_above = last_layer ? nullptr : dx(layer.l + 1) + row * ld + d * P;
    const S* mask = last_layer ? nullptr : L{args, layer.l + 1}.mask();
    if (mask) mask += row * ld + d * P;
    // dy_t and what comes back through W_hh, for a group of units.
    const auto output_gradient = [&](T* out, int64_t ldo, Range group) {
      for (int64_t b = now.begin; b < now.end; ++b) {
        const S* dh_n = b >= next ? layer.state(static_cast<const S*>(args.dh_n), d, b, P) : nullptr;
        for (int64_t j = group.begin; j < group.end; j += kLane) {
          Vec<T> dh{};
          if (dy) dh = load(dy + b * ld + j, P - j);
          if (dy_above) {
            dh = load(dy_above + b * ld + j, P - j);
            if (mask) dh *= load(mask + b * ld + j, P - j);
          }
          if (dh_n) dh += load(dh_n + j, P - j);
          store(out + b * ldo + j, dh);
        }
      }
      for (int g = 0; g < G && going_on > 0; ++g)
        weights.multiply(out + b * ldo, ldo, da_next.at(b, cell.hidden_columns[g] * Hk), going_on,
                         weights.W_hh(layer, d, g), group, Into::add, d, team);
    };
    const bool projected = args.shape.projected;
    if (projected) {
      output_gradient(z.dh_t, ldp, {0, P});
      for (int64_t b = now.begin; b < now.end; ++b)
        for (int64_t j = 0; j < P; j += kLane) da.write(b, C * Hk + j, load(z.dh_t + b * ldp + j, P - j));
      weights.multiply(dh.at + b * dh.row, dh.row, da.at(b, C * Hk), now.size(), weights.W_hr(layer, d), units,
                       Into::assign, d, team);
    }
    const Groups<Product> groups{units, going_on == 1 ? Product::kSingle : 1};
    for (int64_t i = 0, count = groups.count(); i < count; ++i) {
      // To and fro: what the last step used last of W_hh is still in the cache.
      const Range group = groups[s % 2 == 1 ? count - 1 - i : i];
      if (!projected) output_gradient(dh.at, dh.row, group);
      (this->*cell.update)(layer, d, row, da, dh, carry, now, next, group.begin, group.end);
    }
  }

  // The cell: da of some sequences and units from dh. The sequences before `next` have a later step. All that it needs is
  // in variables of its own, or else it would be read again after every store.
  template <class Cell>
  __attribute__((flatten)) void update(const L& layer, int64_t d, int64_t row, Gradients da, Own<T> dh_t, Own<T> carries,
                                       Range sequences, int64_t next, int64_t begin, int64_t end) const {
    constexpr int C = Cell::columns;
    const bool projected = args.shape.projected;
    const int64_t H = this->H, Hk = this->Hk, ldt = (Cell::tape + projected) * H;
    const S* const tape = layer.tape(static_cast<const S*>(args.tape), d, row, Cell::tape + projected);
    const S* const out = projected ? tape + Cell::tape * H : output<S>(args, layer.l) + row * layer.outputs() + d * P;
    const int64_t ld_out = projected ? ldt : layer.outputs();
    const S* const dc_n = layer.state(static_cast<const S*>(args.dc_n), d, 0, H);
    in_packs<T, kTogether<Cell>>(sequences, begin, end, [&](auto at) {
      constexpr int N = at.vectors;
      using V = Pack<T, N>;
      V tape_t[Cell::tape + 1 /* never none */], da_t[C], dh = load_pack(at, dh_t.at, dh_t.row), carry{};
      for (int i = 0; i < Cell::tape; ++i) tape_t[i] = load_pack(at, tape + i * H, ldt);
      if constexpr (Cell::carry != Carry::none)
        carry = pack_of<T, N>([&](int v) {
          const int64_t b = at.row(v), j = at.unit(v);
          return b < next ? load(carries.at + b * carries.row + j) : dc_n ? load(dc_n + b * H + j, at.left(v)) : Vec<T>{};
        });
      if constexpr (Cell::carry == Carry::hidden) dh = dh + carry;
      Cell::backward(tape_t, load_pack(at, out, ld_out), dh, carry, da_t);
      for_vectors_of<N>([&](int v) {
        const int64_t b = at.row(v), j = at.unit(v);
        if constexpr (Cell::carry != Carry::none) store(carries.at + b * carries.row + j, carry.v[v]);
        for (int i = 0; i < C; ++i) da.write(b, i * Hk + j, da_t[i].v[v]);
      });
    });
  }

  // Gradients of the initial states of the sequences in `which` that are this worker's; da is that of their first step.
  void initial_gradients(const L& layer, int64_t d, const Gradients& da, Range which, const Own<T>& carries,
                         Range sequences, Range units, const Team& team) {
    const Range both = sequences.from(which.begin).below(which.end);
    const int64_t first = both.begin, count = both.size();
    if (count == 0) return;
    T* dh_0 = layer.state(static_cast<T*>(args.dh_0), d, first, P);
    for (int g = 0; g < G && dh_0; ++g)
      weights.multiply(dh_0, P, da.at(first, cell.hidden_columns[g] * Hk), count, weights.W_hh(layer, d, g),
                       args.shape.projected ? Range{0, P} : units, g > 0 ? Into::add : Into::assign, d, team);
    T* target = cell.carry == Carry::cell ? layer.state(static_cast<T*>(args.dc_0), d, first, H) : dh_0;
    if (cell.carry == Carry::none || !target) return;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = units.begin; j < units.end; j += kLane) {
        const Vec<T> carry = load(carries.at + (first + i) * carries.row + j);
        T* p = target + i * H + j;
        store(p, cell.carry == Carry::cell ? carry : load(p, H - j) + carry, H - j);
      }
  }

  const BackwardArgs& args;
  const CellOf& cell;
  const Chunks chunks;
  const int G, C;  // gates and columns
  const int64_t H, P, Hp, Hk;  // Hp, Hk: units in vectors, and as a product's operand
  const bool by_layer;  // one worker is on a layer, a chunk at a time
  Workspace workspace;
  BackwardWeights<S, Product> weights;
  WeightGradients<S, Product> weight_gradients;
  int64_t width, ldp, chunk_rows;
  Direction direction[2];
  T* sums;  // [workers, rows of a chunk, width of a panel]: of one direction, for dx
  T* dx_below[2];
  Progress* progress;
  Pace* paces;
};
