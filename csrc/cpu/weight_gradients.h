// Gradients of weights and biases from the da of a chunk, for all its steps as one product each:
//   dW_ih += da^T x,   dW_hh += da^T h_{t-1},   dW_hr += dh^T out,   db += sum of da.
// They are split among the workers by output, never by sequence: no sum depends on how many workers there are.
// Mostly by columns, so that a worker packs its part of x and h, and reads all of da. Where a number of da meets few columns,
// it takes longer to fetch it from the cache of the worker that wrote it: then by rows.

template <class S, class Product>
class WeightGradients {
  using T = Compute<S>;
  using Gradients = typename Product::Gradients;
  using Right = typename Product::Right;
  using Transposed = typename Product::Transposed;
  using L = Layer<S, BackwardArgs>;
  static constexpr int64_t kLane = kLanes<T>;
  static constexpr int64_t kFewRows = 4, kFewColumns = 256;

 public:
  WeightGradients(const BackwardArgs& args, const CellFacts& cell)
      : args(args), cell(cell), H(args.shape.H), P(args.shape.P), Hk(Gradients::width(H)) {}

  // Takes its part of the workspace, one for all layers: for chunks of that many rows, da of `row_width` numbers each.
  void take(Workspace& w, int64_t rows_of_chunk, int64_t row_width) {
    if (!args.gradients) return;
    chunk_rows = rows_of_chunk;
    width = row_width;
    da_T = w.take_shared<char>(Product::transposed_bytes(width, chunk_rows));
    panel = w.take_shared<char>(args.plan.threads * panel_bytes());
    sources = w.take_shared<const S*>(args.plan.threads * chunk_rows);
  }

  // Adds what the steps of chunk c, or for the last one writes; `below` and `own` are the outputs of the layer below
  // and of this one. Between two calls the team must wait.
  void add(const L& layer, int64_t d, Chunk c, const Gradients& da, const S* below, const S* own, const Team& team) {
    const Range rows = layer.rows(d, c);
    enum Weight { ih, hh, hr };
    const LayerGradients& out = args.gradients[layer.l * args.shape.D + d];
    void* const dW[] = {out.dW_ih, out.dW_hh, out.dW_hr};
    const int64_t columns[] = {layer.inputs(), P, args.shape.projected ? H : 0};
    int64_t all = 0;
    for (const int64_t N : columns) all += round_up(N, Product::kUnit);
    const bool by_row = splits_rows(columns[ih]);
    const Range units = by_row ? Range(team.part(H, kFewRows)) : Range{0, H};
    const Range mine = by_row ? Range{0, all} : team.part(all, Product::kUnit);  // columns, those of all weights in a row
    const bool first = c.end == args.seq.T && !args.add_to_gradients;  // chunks come in reverse
    const Transposed left = transposed(da, rows.size(), by_row, units, team);
    char* mine_packed = panel + team.rank * panel_bytes();
    const S** from = sources + team.rank * chunk_rows;
    for (int64_t w = ih, begin_of_weight = 0; w <= hr; begin_of_weight += round_up(columns[w++], Product::kUnit)) {
      const int64_t N = columns[w], begin = larger(mine.begin - begin_of_weight, 0);
      const int64_t end = smaller(mine.end - begin_of_weight, N);
      if (begin >= end) continue;
      if (w == ih) layer.input_rows(below, rows, from);
      if (w == hh) layer.previous_rows(own, d, c, from);
      if (w == hr) layer.unprojected_rows(cell.tape, d, rows, from);
      const S* mask = w == ih ? layer.mask() : nullptr;
      for (int64_t column = begin, count; column < end; column += count) {
        count = smaller(columns_at_once(), end - column);
        const int64_t M = w == hr ? P : H;  // rows of a gate
        const Range some = w == hr ? Range{0, P} : units;
        const Right B = Right::of(mine_packed, rows.size(), count);
        const auto row = [&](int64_t k, int64_t n, int64_t count) {
          if (!from[k]) return Vec<T>{};
          const Vec<T> v = load(from[k] + column + n, count);
          return mask ? as_stored<S>(v * load(mask + (rows.begin + k) * N + column + n, count)) : v;
        };
        pack_rows(B, row, Range{0, count});
        for (int g = 0; g < (w == hr ? 1 : cell.gates); ++g) {
          const int column_of_da = w == hr ? cell.columns : w == hh ? cell.hidden_columns[g] : g;
          for (int64_t m = some.begin; m < some.end; m += Product::kLeftRows)
            product(static_cast<T*>(dW[w]) + (g * M + m) * N + column, N, left.at(column_of_da * Hk + m),
                    smaller(Product::kLeftRows, some.end - m), B, Range{0, count}, first ? Into::assign : Into::add);
        }
      }
    }
    if (args.shape.bias) bias_gradients(out, first, rows.size(), da, team);
  }

 private:
  // Where there are many columns, or more than da has, packing all of them takes longer; and with narrow panels, unless
  // da has to be copied, for which workers need not wait then.
  bool splits_rows(int64_t inputs) const {
    const int64_t all = inputs + P;
    return Product::kOnFloats && !args.shape.projected && all <= kFewColumns && all <= cell.columns * H &&
           (!kNarrowPanels || Product::copies(width, chunk_rows));
  }

  // da of a chunk as the left side of the products, of which this worker needs these units of every column if it has its
  // share by rows, and else all.
  Transposed transposed(const Gradients& da, int64_t rows, bool by_row, Range units, const Team& team) const {
    const Transposed left = Product::transposed(da_T, da, width, chunk_rows);
    if (!Product::copies(width, chunk_rows)) return left;
    for (int i = 0; by_row && i < cell.columns; ++i)
      Product::transpose(left, da, rows, {i * Hk + units.begin, i * Hk + units.end});
    if (!by_row) {
      Product::transpose(left, da, rows, team.part(width, 32));
      team.wait();
    }
    return left;
  }

  // Columns that are packed at once for the gradients of weights: panels that a core's cache holds, so that da, the larger
  // of the two, is read once for many of them; where there are few rows, all, so that the gradient is written row by row.
  int64_t columns_at_once() const {
    const Shape& s = args.shape;
    const int64_t widest = larger(larger(s.I, s.D * P), H);
    if (args.plan.weights != Weights::packed) return widest;
    const int64_t fit = Product::kRightBytes / Right::bytes(chunk_rows, Product::kWidth);
    return smaller(widest, larger(fit, 1) * Product::kWidth);
  }
  int64_t panel_bytes() const { return round_up(Right::bytes(chunk_rows, columns_at_once()), 64); }

  void bias_gradients(const LayerGradients& out, bool first, int64_t rows, const Gradients& da, const Team& team) {
    const Range mine = team.part(H, kLane);
    for (int g = 0; g < cell.gates; ++g)
      // Several vectors at once: whole cache lines of da, and sums that need not wait for each other.
      in_groups<4>((mine.size() + kLane - 1) / kLane, [&](auto vectors, int64_t n) {
        constexpr int N = vectors.value;
        const int64_t j = mine.begin + n * kLane;
        void* const both[] = {out.db_ih, out.db_hh};
        const int column[] = {g, cell.hidden_columns[g]};
        Pack<T, N> sum{};
        for (int i = 0; i < 2; ++i) {
          if (i == 0 || column[1] != column[0]) {
            sum = {};
            for (int64_t r = 0; r < rows; ++r)
              for_vectors_of<N>([&](int v) { sum.v[v] += da.read(r, column[i] * Hk + j + v * kLane); });
          }
          for_vectors_of<N>([&](int v) {
            const int64_t unit = j + v * kLane;
            T* p = static_cast<T*>(both[i]) + g * H + unit;
            store(p, first ? sum.v[v] : load(p, H - unit) + sum.v[v], H - unit);
          });
        }
      });
  }

  const BackwardArgs& args;
  const CellFacts& cell;
  const int64_t H, P, Hk;  // Hk: units as a product's operand
  int64_t chunk_rows = 0, width = 0;
  char* da_T = nullptr;   // da of a chunk as the left side of a product, where that differs
  char* panel = nullptr;  // [workers, panel_bytes()]: its right side
  const S** sources = nullptr;  // [workers, rows of a chunk]: where the rows of that side lie
};
