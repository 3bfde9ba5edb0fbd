// Forward of a layer: its parts, which stack.h puts in order. Every worker of a team calls them at the same time.
//
// Pack the weights (forward_weights.h); then chunk by chunk
//   a = W_ih x_t + b_ih + b_hh  for all steps of the chunk as one product, and step by step
//   a += W_hh h_{t-1},  h_t = cell(a),  with a projection  h_t = W_hr cell(a).
//
// Product says how to multiply (product.h, amx.h, bf16.h) and what operands look like: States, left sides that the loop
// writes row by row. Team is a worker among the others, Range the sequences or units that it has (team.h); Own tells
// where its numbers lie (shares.h). Layer and Chunk: rows, steps and weights of one layer (layer.h).
// in_packs hands the cell a few vectors of units at a time (pack.h).

template <class S, class Product>
class Forward {
  using T = Compute<S>;
  using States = typename Product::States;
  using Unrounded = typename Product::Gradients;  // keeps more of a number than is stored
  static constexpr int64_t kLane = kLanes<T>;
  // What is larger than this is stored past the caches: a result that may be read at once, and one that waits for
  // backward.
  static constexpr int64_t kStreamedOutput = 4 * 1024 * 1024, kStreamedTape = 6 * 1024 * 1024;

  struct Direction {
    T* a[2];      // [rows of a chunk, C, Hp]: pre-activations, of this chunk and the one that is projected ahead (Own)
    States h[2];  // [B, P]: states before and after a step
    T* c;         // [B, Hp]: cell state (Own)
    States kept_h;  // where sequences are split, both between two chunks
    T* kept_c;
    Unrounded out;  // [B, H]: output of the cell before the projection
    T* projected;  // [B, Pp]: and behind it
    char* input;  // [workers, input_rows, I]: the input where a worker's rows do not lie as the product needs them
    const S** rows;  // [workers, rows of a chunk]
  };

 public:
  using L = Layer<S, ForwardArgs>;
  using Use = typename Product::Use;

  // What the loops know of a cell: its constants, and what it does of a step.
  struct CellOf : CellFacts {
    void (Forward::*update)(const L&, int64_t, int64_t, Own<T>, Own<T>, States, States, Range, int64_t, int64_t) const;
  };
  template <class Cell>
  static consteval CellOf cell_of() {
    return {facts_of<Cell>(), &Forward::template update<Cell>};
  }

  // With set `set` of the buffers; layers that run one after the other take the same.
  Forward(const ForwardArgs& args, const CellOf& cell, int64_t set = 0)
      : args(args), cell(cell), chunks(args.seq, args.plan.forward_steps), G(cell.gates), C(cell.columns),
        has_c(cell.carry == Carry::cell), H(args.shape.H), P(args.shape.P), Hp(round_up(H, kLane)),
        by_layer(args.plan.split == Split::layer),
        by_batch(args.plan.split == Split::batch), by_unit(args.plan.split == Split::hidden),
        workspace{static_cast<char*>(args.workspace), set, by_layer ? args.shape.L : 1},
        weights(args, cell, workspace, workers(), set) {
    const Shape& s = args.shape;
    chunk_rows = chunks.most_rows();
    ldh = padded_stride<T>(round_up(P, kLane));
    input_rows = smaller(round_up(rows_of_a_worker(), Product::kRowUnit), Product::kInputRows);
    for (int64_t l = 0; l < (copies_inputs() ? s.L : 0); ++l)  // wider rows may take less where they need no padding
      input_bytes = larger(input_bytes, round_up(States::bytes(input_rows, L{args, l}.inputs()), 64));
    const int64_t row_bytes = args.seq.R * s.D * int64_t(sizeof(S));
    streams_y = row_bytes * P > kStreamedOutput;
    streams_tape = row_bytes * s.L * (cell.tape + s.projected) * H > kStreamedTape;
    const bool shared = !by_layer && !projects_own_input(args.plan, args.plan.threads);
    const bool ahead = shared && chunks.count() > 1;
    Workspace& w = workspace;
    for (int64_t d = 0; d < s.D; ++d) {
      Direction& z = direction[d];
      if (d > 0) w.apart();
      z.a[0] = w.take<T>(Own<T>::size(chunk_rows, C, Hp, args.plan));
      z.a[1] = ahead ? w.take<T>(Own<T>::size(chunk_rows, C, Hp, args.plan)) : z.a[0];
      for (States& h : z.h) h = States::of(w.take<char>(States::bytes(state_rows(), P)), P);
      z.c = w.take<T>(has_c ? Own<T>::size(args.seq.B, 1, Hp, args.plan) : 0);
      z.kept_h = States::of(w.take<char>(States::bytes(by_batch ? args.seq.B : 0, P)), P);
      z.kept_c = w.take<T>(has_c && by_batch ? Own<T>::size(args.seq.B, 1, Hp, args.plan) : 0);
      z.out = Unrounded::of(w.take<char>(s.projected ? Unrounded::bytes(args.seq.B, H) : 0), H);
      z.projected = w.take<T>(s.projected ? args.seq.B * ldh : 0);
      z.input = w.take<char>(workers() * input_bytes);
      z.rows = w.take<const S*>(workers() * chunk_rows);
    }
    progress = w.take_shared<Progress>(by_layer ? s.L : 0);
    paces = w.take_shared<Pace>(Balance::paces(args.plan));
  }

  size_t workspace_bytes() const { return workspace.used; }
  Progress* progress_of_layers() const { return progress; }
  Pace* paces_of_workers() const { return paces; }

  // The packed weights of all layers, for args.kept.
  size_t kept_bytes() const { return weights.kept_bytes(); }
  void keep(const Team& team) { weights.keep(team); }

  // What must be done before the first chunk.
  void prepare(const L& layer, const Team& team) {
    if (layer.l == 0) take_results(team);
    weights.prepare(layer, team);
    for (int64_t d = 0; d < args.shape.D; ++d) {
      const Direction& z = direction[d];
      for (const States& h : z.h) clear_behind(h, P, state_rows(), team);
      if (args.shape.projected) clear_behind(z.out, H, args.seq.B, team);
    }
  }

  // a = W_ih x + b for a worker's part of the rows of a chunk: where sequences are split those of its loop; where units are,
  // all rows for its units, so that its part of W_ih stays in its own cache.
  void project_input(const L& layer, int64_t d, Chunk c, const Team& team) {
    const S** const rows = direction[d].rows + team.rank * chunk_rows;
    if (by_batch) {
      const Range times = layer.times(d, c), sequences = sequences_of<Product>(team, args.seq, times);
      layer.input_rows(output_below(layer), sequences, times, rows);
      const Own<T> a = a_of(layer, d, c, sequences, {0, H}, team);
      return project_rows(layer, d, rows, layer.count_rows(sequences, times), a, {0, H}, team);
    }
    const Roles roles(team, args.plan, args.shape.D);
    const Range units = by_unit ? roles.units(d, H, weights.unit()) : Range{0, H};
    if (units.size() == 0) return;
    const Range all = layer.rows(d, c);
    const Range mine = by_unit ? Range{0, all.size()} : team.part(all.size(), Product::kRowUnit);
    layer.input_rows(output_below(layer), {all.begin + mine.begin, all.begin + mine.end}, rows);
    const Own<T> a = a_of(layer, d, c, {0, args.seq.B}, units, roles.loop).from(mine.begin);
    project_rows(layer, d, rows, mine.size(), a, units, team);
  }

  // The steps of a chunk.
  void loop(const L& layer, int64_t d, Chunk c, const Team& team) {
    const Direction& z = direction[d];
    const Range times = layer.times(d, c), all{0, args.seq.B};
    const Range sequences = by_unit ? all : sequences_of<Product>(team, args.seq, times);
    const Range mine = by_unit ? team.part(H, weights.unit()) : Range{0, H};
    const Own<T> a = a_of(layer, d, c, sequences, mine, team), kept_c(z.kept_c, args.seq.B, 1, mine, team);
    const int64_t rank = by_batch ? team.rank : 0;  // among workers with states of their own
    const Own<T> cell_states = Own<T>(z.c, args.seq.B, 1, mine, team).from(0, rank);
    const States h[] = {z.h[0].at(rank * rows_between()), z.h[1].at(rank * rows_between())};
    if (c.begin == 0) {
      begin(layer, d, {0, layer.active(d, 0)}, h[0], cell_states, sequences, mine);
      if (by_unit) team.wait();
    } else if (by_batch) {
      copy_states(sequences.below(layer.active(d, c.begin)), h[c.begin % 2], cell_states, z.kept_h, kept_c);
    }
    int64_t first = d == 0 ? 0 : layer.count_rows(sequences, times);  // of the rows of `a`, which lie in the order of time
    for (int64_t s = c.begin; s < c.end; ++s) {
      const int64_t active = layer.active(d, s), next = layer.active(d, s + 1);
      const Range now = sequences.below(active);
      if (d == 1) first -= now.size();
      step(layer, d, layer.first_row(d, s), a.from(first - now.begin), cell_states, h[s % 2], h[(s + 1) % 2], now, mine,
           s % 2 == 1, team);
      if (d == 0) first += now.size();
      if (args.shape.projected) step_projection(layer, d, layer.first_row(d, s), h[(s + 1) % 2], now, team);
      finish(layer, d, {next, active}, h[(s + 1) % 2], cell_states, sequences, mine);
      begin(layer, d, {active, next}, h[(s + 1) % 2], cell_states, sequences, mine);
      if (by_unit) team.wait();
    }
    if (by_batch) copy_states(sequences.below(layer.active(d, c.end)), z.kept_h, kept_c, h[c.end % 2], cell_states);
    flush_streams();
  }

 private:
  int64_t workers() const { return by_layer ? 1 : args.plan.threads; }  // that use a set of buffers

  // How many rows of a chunk's input a worker makes an operand at most: where sequences are split an equal share, and a
  // quarter more, for shares follow the pace of workers.
  int64_t rows_of_a_worker() const {
    if (!by_batch) return chunk_rows;
    const int64_t count = args.plan.threads / (args.plan.split_directions ? 2 : 1);
    const int64_t rows = (chunk_rows + count - 1) / count;
    return smaller(rows + rows / 4, chunk_rows);
  }

  // How many rows of states there are, and lie between those of two workers. A tile reads whole ones.
  int64_t state_rows() const { return args.seq.B + (by_batch ? args.plan.threads * rows_between() : 0); }
  int64_t rows_between() const {
    constexpr int64_t kMany = 64;  // rows, of which those that States adds for tiles are few
    const int64_t row_bytes = States::bytes(kMany, P) / kMany;
    return (kApart + row_bytes - 1) / row_bytes + Product::kSequenceUnit - 1;
  }

  // The pre-activations of a chunk, or where sequences are split of a worker's, one behind the other.
  Own<T> a_of(const L& layer, int64_t d, Chunk c, Range sequences, Range units, const Team& loop) const {
    const Own<T> all(direction[d].a[c.index % 2], chunk_rows, C, units, loop);
    return by_batch ? all.from(layer.count_rows({0, sequences.begin}, layer.times(d, c)), loop.rank) : all;
  }

  // From chunk to chunk a worker may have other sequences.
  void copy_states(Range sequences, const States& h, const Own<T>& c, const States& from_h, const Own<T>& from_c) const {
    for (int64_t b = sequences.begin; b < sequences.end; ++b) {
      h.copy(b, from_h);
      if (has_c) c.copy(b, from_c);
    }
  }

  void take_results(const Team& team) const {
    const Shape& s = args.shape;
    const int64_t numbers = args.seq.R * s.D * int64_t(sizeof(S));
    take_pages(args.y, numbers * P, team);
    take_pages(args.hidden, numbers * P * args.hidden_slots, team);
    take_pages(args.tape, numbers * s.L * (cell.tape + s.projected) * H, team);
  }

  // The numbers behind the K of each row, which a product reads and no step writes.
  template <class Left>
  void clear_behind(const Left& rows, int64_t K, int64_t count, const Team& team) const {
    const Range mine = team.part(count);
    for (int64_t b = mine.begin; b < mine.end; ++b)
      for (int64_t k = round_up(K, kLane); k < Left::width(K); k += kLane) rows.write(b, k, Vec<T>{});
  }

  const S* output_below(const L& layer) const { return layer.l > 0 ? output<S>(args, layer.l - 1) : nullptr; }

  // Whether the rows of an input, where a worker has all of some steps, are an operand as they lie; else they are copied.
  bool lies_as_operand(const L& layer) const {
    return kStoredAsOperand<Product, S> && !by_batch && !layer.mask() && layer.input_stride() > 0;
  }
  bool copies_inputs() const {
    for (int64_t l = 0; l < args.shape.L; ++l)
      if (!lies_as_operand({args, l})) return true;
    return false;
  }

  // a = W_ih x + b for so many rows of x.
  void project_rows(const L& layer, int64_t d, const S* const* rows, int64_t count, Own<T> a, Range units, const Team& team) {
    const int64_t at_once = lies_as_operand(layer) ? Product::kInputRows : input_rows;
    for (int64_t begin = 0; begin < count; begin += at_once) {
      const int64_t some = smaller(at_once, count - begin);
      const Own<T> out = a.from(begin);
      for (int64_t r = 0; r < some; ++r)
        for (int i = weights.packed() ? G : 0; i < C; ++i)  // the columns that the products do not begin
          for (int64_t j = units.begin; j < units.end; j += kLane)
            store(out.at + r * out.row + i * out.column + j, load(weights.bias(d, i) + j));
      const States x = operand(layer, d, rows + begin, some, team);
      for (int g = 0; g < G; ++g)
        weights.multiply(out.at + g * out.column, out.row, x, some, weights.W_ih(layer, d, g), units,
                         weights.packed() ? Into::assign : Into::add, d, team, weights.bias(d, g));
    }
  }
  States operand(const L& layer, int64_t d, const S* const* rows, int64_t count, const Team& team) const {
    if constexpr (kStoredAsOperand<Product, S>)
      if (lies_as_operand(layer)) return {const_cast<S*>(rows[0]), layer.input_stride()};
    const int64_t K = layer.inputs();
    const States x = States::of(direction[d].input + team.rank * input_bytes, K);
    const S* const mask = layer.mask();  // its rows are as wide as those of the output below
    for (int64_t r = 0; r < count; ++r)
      for (int64_t k = 0; k < States::width(K); k += kLane) {
        Vec<T> v = k < K ? load(rows[r] + k, K - k) : Vec<T>{};
        if (mask && k < K) v = as_stored<S>(v * load(mask + (rows[r] - output_below(layer)) + k, K - k));
        x.write(r, k, v);
      }
    return x;
  }

  // Step of a worker's active sequences and some units; `row` is that of sequence 0.
  void step(const L& layer, int64_t d, int64_t row, const Own<T>& a, const Own<T>& cell_states, const States& h,
            const States& h_next, Range sequences, Range units, bool last_first, const Team& team) {
    const int64_t rows = sequences.size();
    if (rows == 0) return;
    const Groups<Product> groups{units, rows == 1 ? Product::kSingle : 1};
    for (int64_t i = 0, count = groups.count(); i < count; ++i) {
      // To and fro: what the last step used last of W_hh is still in the cache.
      const Range group = groups[last_first ? count - 1 - i : i];
      for (int turn = 0; turn < G; ++turn) {
        const int g = last_first ? G - 1 - turn : turn;
        T* sum = a.at + sequences.begin * a.row + cell.hidden_columns[g] * a.column;
        weights.multiply(sum, a.row, h.at(sequences.begin), rows, weights.W_hh(layer, d, g), group, Into::add, d, team);
      }
      (this->*cell.update)(layer, d, row, a, cell_states, h, h_next, sequences, group.begin, group.end);
    }
  }

  // The cell: h_t of some sequences and units from their pre-activations. All that it needs is in variables of its own, or
  // else it would be read again after every store.
  template <class Cell>
  __attribute__((flatten)) void update(const L& layer, int64_t d, int64_t row, Own<T> a, Own<T> cell_states, States h,
                                       States h_next, Range sequences, int64_t begin, int64_t end) const {
    constexpr int C = Cell::columns;
    const bool projected = args.shape.projected, streams_y = this->streams_y, streams_tape = this->streams_tape;
    const int64_t H = this->H, ldy = layer.outputs();
    const int64_t ldt = (Cell::tape + projected) * H;
    S* const y = output<S>(args, layer.l) + row * ldy + d * P;
    S* const tape = layer.tape(static_cast<S*>(args.tape), d, row, Cell::tape + projected);
    const Unrounded out_t = direction[d].out;
    in_packs<T, kTogether<Cell>>(sequences, begin, end, [&](auto at) {
      constexpr int N = at.vectors;
      using V = Pack<T, N>;
      V in[C], tape_t[Cell::tape + 1 /* never none */], h_before{}, c{};
      for (int i = 0; i < C; ++i) in[i] = load_pack(at, a.at + i * a.column, a.row);
      if constexpr (Cell::carry == Carry::cell) c = load_pack(at, cell_states.at, cell_states.row);
      if constexpr (Cell::carry == Carry::hidden)
        h_before = pack_of<T, N>([&](int v) { return h.read(at.row(v), at.unit(v)); });
      const V out = Cell::forward(in, h_before, c, tape_t);
      for_vectors_of<N>([&](int v) {
        const int64_t b = at.row(v), j = at.unit(v), left = at.left(v);
        if constexpr (Cell::carry == Carry::cell) store(cell_states.at + b * cell_states.row + j, c.v[v]);
        if (projected) {
          out_t.write(b, j, out.v[v]);
        } else {
          const Vec<T> stored = as_stored<S>(out.v[v]);
          h_next.write(b, j, stored);
          put(y + b * ldy + j, stored, left, streams_y);
        }
        if (!tape) return;
        S* const t = tape + b * ldt + j;
        for (int i = 0; i < Cell::tape; ++i) put(t + i * H, tape_t[i].v[v], left, streams_tape);
        if (projected) put(t + Cell::tape * H, out.v[v], left, streams_tape);
      });
    });
  }

  // h_t = W_hr out of the same sequences.
  void step_projection(const L& layer, int64_t d, int64_t row, const States& h, Range sequences, const Team& team) {
    const Direction& z = direction[d];
    weights.multiply(z.projected + sequences.begin * ldh, ldh, z.out.at(sequences.begin), sequences.size(),
                     weights.W_hr(layer, d), {0, P}, Into::assign, d, team);
    const int64_t ldy = layer.outputs();
    S* y = output<S>(args, layer.l) + row * ldy + d * P;
    for (int64_t b = sequences.begin; b < sequences.end; ++b)
      for (int64_t j = 0; j < P; j += kLane) {
        // Beside a product's results there may be anything.
        const Vec<T> v = as_stored<S>(load(z.projected + b * ldh + j, P - j));
        h.write(b, j, v);
        put(y + b * ldy + j, v, P - j, streams_y);
      }
  }

  // Up to a vector of a result.
  static void put(S* p, Vec<T> v, int64_t count, bool past_caches) {
    if (past_caches)
      stream(p, v, count);
    else
      store(p, v, count);
  }

  // The initial state of the sequences in `which` that are this worker's.
  void begin(const L& layer, int64_t d, Range which, const States& h, const Own<T>& cell_states, Range sequences,
             Range units) {
    for_vectors(which, sequences, units, P, [&](int64_t b, int64_t j) {
      const S* h_0 = layer.h_0(d, b);
      h.write(b, j, h_0 ? load(h_0 + j, P - j) : Vec<T>{});
    });
    if (has_c)
      for_vectors(which, sequences, units, H, [&](int64_t b, int64_t j) {
        const S* c_0 = layer.state(static_cast<const S*>(args.c_0), d, b, H);
        store(cell_states.at + b * cell_states.row + j, c_0 ? load(c_0 + j, H - j) : Vec<T>{});
      });
  }

  // The sequences in `which` have had their last step: their state is the final one.
  void finish(const L& layer, int64_t d, Range which, const States& h, const Own<T>& cell_states, Range sequences,
              Range units) {
    for_vectors(which, sequences, units, P, [&](int64_t b, int64_t j) {
      store(layer.state(static_cast<S*>(args.h_n), d, b, P) + j, h.read(b, j), P - j);
    });
    if (has_c)
      for_vectors(which, sequences, units, H, [&](int64_t b, int64_t j) {
        store(layer.state(static_cast<S*>(args.c_n), d, b, H) + j, load(cell_states.at + b * cell_states.row + j), H - j);
      });
  }

  template <class Do>
  void for_vectors(Range which, Range sequences, Range units, int64_t width, Do act) {
    const Range both = sequences.from(which.begin).below(which.end);
    // A projection may be wider than the cell; then the units are not split.
    const int64_t last = args.shape.projected ? width : units.end;
    for (int64_t b = both.begin; b < both.end; ++b)
      for (int64_t j = units.begin; j < last; j += kLane) act(b, j);
  }

  const ForwardArgs& args;
  const CellOf& cell;
  const Chunks chunks;
  const int G, C;  // gates and columns
  const bool has_c;
  const int64_t H, P, Hp;
  const bool by_layer;  // one worker is on a layer, a chunk at a time
  const bool by_batch, by_unit;  // or on some sequences of it, or on some units
  Workspace workspace;
  ForwardWeights<S, Product> weights;
  int64_t ldh, chunk_rows, input_rows, input_bytes = 0;
  bool streams_y, streams_tape;
  Direction direction[2];
  Progress* progress;
  Pace* paces;
};
