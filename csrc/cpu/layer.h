// What forward and backward of one layer share: where its rows lie in memory, in which order the steps run, and the
// workspace.

// Hands out aligned pieces of the workspace; with no memory behind it, it only counts. Layers or workers that run at the same
// time have a set of buffers each: a piece is there once for every set, kApart from the next, unless all of them share it.
struct Workspace {
  char* base;
  int64_t set = 0, sets = 1;  // whose pieces are handed out, and of how many
  size_t used = 0;

  template <class T>
  T* take(int64_t count) {
    const size_t size = bytes<T>(count) + (sets > 1 && count > 0 ? kApart : 0);
    return piece<T>(used + set * size, sets * size);
  }
  template <class T>
  T* take_shared(int64_t count) {
    return piece<T>(used, bytes<T>(count));
  }

  // What comes next may be another worker's.
  void apart() { used += kApart; }

 private:
  template <class T>
  static size_t bytes(int64_t count) {
    return round_up(count * int64_t(sizeof(T)), 64);
  }
  template <class T>
  T* piece(size_t at, size_t size) {
    used += size;
    return base ? reinterpret_cast<T*>(base + at) : nullptr;
  }
};

// Takes the memory of a large result from the system, each worker an equal part. Otherwise it comes as the time loop first
// writes to it, and most of that by way of the worker with the last sequences (five sixths on two threads), while the
// others wait.
inline void take_pages(void* memory, int64_t bytes, const Team& team) {
  constexpr int64_t kPage = 4096;
  if (!memory || team.size == 1 || bytes < kLargeResult) return;
  const Range mine = team.part(bytes, kLargePage);
  for (int64_t i = mine.begin; i < mine.end; i += kPage) static_cast<volatile char*>(memory)[i] = 0;
}

// Rounds to the storage type, as if stored and loaded again.
template <class S>
inline Vec<Compute<S>> as_stored(Vec<Compute<S>> v) {
  if constexpr (sizeof(S) == sizeof(Compute<S>)) {
    return v;
  } else {
    S lanes[kLanes<Compute<S>>];
    store(lanes, v);
    return load(lanes);
  }
}

// Steps [begin, end) in the order in which a direction runs them; a chunk of the sequence.
struct Chunk {
  int64_t index, begin, end;
  int64_t size() const { return end - begin; }
};

// T steps in chunks of equally many; the last one may be shorter.
struct EqualChunks {
  int64_t T, steps;
  int64_t count() const { return (T + steps - 1) / steps; }
  Chunk operator[](int64_t index) const { return {index, index * steps, smaller((index + 1) * steps, T)}; }
};

// The chunks of a layer, in the order of each direction. Of a padded batch they have so many steps. Of a packed one they all
// take about as long as so many steps of all sequences: fewer rows would make small products, and two directions, one of
// which begins with many rows a step and the other one with few, would wait for each other.
class Chunks {
 public:
  Chunks(const Sequences& seq, int64_t steps) : seq(seq), steps(steps), each(steps * longest_step()) {
    if (seq.batch_sizes) each = larger(longest_step(), (time_before(0, seq.T) + count() - 1) / count());
  }

  int64_t count() const { return (time_before(0, seq.T) + each - 1) / each; }
  Chunk at(int64_t d, int64_t index) const { return {index, begin(d, index), begin(d, index + 1)}; }
  // As many rows as a chunk may have, or a few more: one that begins as early as it can, all of its steps with all sequences.
  int64_t most_rows() const {
    if (!seq.batch_sizes) return smaller(steps, seq.T) * seq.B;
    return smaller(seq.R, (each + longest_step() - 1) * seq.B / longest_step());
  }

 private:
  // A step takes the time of its rows, and to go through the weights that of some more (tried out: 0 to 16).
  static constexpr int64_t kRowsOfStep = 4;
  int64_t longest_step() const { return seq.B + kRowsOfStep; }
  int64_t time_before(int64_t d, int64_t s) const {
    return s * kRowsOfStep + (d == 0 ? seq.first_row_at(s) : seq.R - seq.first_row_at(seq.T - s));
  }

  int64_t begin(int64_t d, int64_t index) const {
    if (!seq.batch_sizes) return smaller(index * steps, seq.T);
    if (index == count()) return seq.T;
    Range some{0, seq.T};  // where the last step is that has no more before it
    while (some.size() > 0) {
      const int64_t middle = (some.begin + some.end + 1) / 2;
      if (time_before(d, middle) <= index * each) some.begin = middle;
      else some.end = middle - 1;
    }
    return some.begin;
  }

  const Sequences& seq;
  int64_t steps, each;
};

// Features of the widest input of a layer.
inline int64_t widest_input(const Shape& s) { return s.L > 1 ? larger(s.D * s.P, s.I) : s.I; }

// Output of layer l, [R, D*P].
template <class S>
S* output(const ForwardArgs& args, int64_t l) {
  if (l == args.shape.L - 1) return static_cast<S*>(args.y);
  return static_cast<S*>(args.hidden) + l % args.hidden_slots * args.seq.R * args.shape.D * args.shape.P;
}
template <class S>
const S* output(const BackwardArgs& args, int64_t l) {
  if (l == args.shape.L - 1) return static_cast<const S*>(args.y);
  return static_cast<const S*>(args.hidden) + l * args.seq.R * args.shape.D * args.shape.P;
}

// The terms that each column of the pre-activations begins with, [columns, ld].
template <class S, class T>
void sum_biases(const CellFacts& cell, T* bias, int64_t ld, const Shape& shape, const LayerWeights& w) {
  for (int64_t i = 0; i < cell.columns * ld; ++i) bias[i] = 0;
  if (!shape.bias) return;
  for (int g = 0; g < cell.gates; ++g)
    for (int64_t j = 0; j < shape.H; ++j) {
      bias[g * ld + j] += widen(static_cast<const S*>(w.b_ih)[g * shape.H + j]);
      bias[cell.hidden_columns[g] * ld + j] += widen(static_cast<const S*>(w.b_hh)[g * shape.H + j]);
    }
}

// What mostly_products asks for; tried out at 2 to 18 inputs of each, one to five sequences, two threads.
constexpr int64_t kManyInputsForward = 8, kManyInputsBackward = 4;

// Args is ForwardArgs or BackwardArgs.
template <class S, class Args>
struct Layer {
  using T = Compute<S>;
  const Args& args;
  int64_t l;  // layer

  int64_t outputs() const { return args.shape.D * args.shape.P; }
  int64_t inputs() const { return l == 0 ? args.shape.I : outputs(); }
  // Whether the products of the chunk behind chunk c take longer, by far, than the loop of c: so many inputs are there for
  // each number of h.
  bool mostly_products(const Chunks& chunks, int64_t c, int64_t inputs_of_each) const {
    if (c + 1 >= chunks.count()) return false;
    return inputs() * chunks.at(0, c + 1).size() >= inputs_of_each * args.shape.P * chunks.at(0, c).size();
  }
  const LayerWeights& weights(int64_t d) const { return args.weights[l * args.shape.D + d]; }

  int64_t active(int64_t d, int64_t s) const { return args.seq.active(d, s); }
  int64_t first_row(int64_t d, int64_t s) const { return args.seq.first_row(d, s); }

  // When the steps of a chunk are, and their rows: neighbours in both directions.
  Range times(int64_t d, Chunk c) const {
    return d == 0 ? Range{c.begin, c.end} : Range{args.seq.T - c.end, args.seq.T - c.begin};
  }
  Range rows(int64_t d, Chunk c) const {
    const Range t = times(d, c);
    return {args.seq.first_row_at(t.begin), args.seq.first_row_at(t.end)};
  }

  // How many rows some sequences have at some times.
  int64_t count_rows(Range sequences, Range times) const {
    int64_t rows = 0;
    for (int64_t t = times.begin; t < times.end; ++t) rows += sequences.below(args.seq.active_at(t)).size();
    return rows;
  }

  // State of sequence b in `states` [L*D, B, width], width P for h and H for c; null where there are none.
  template <class Number>
  Number* state(Number* states, int64_t d, int64_t b, int64_t width) const {
    return states ? states + ((l * args.shape.D + d) * args.seq.B + b) * width : nullptr;
  }
  const S* h_0(int64_t d, int64_t b) const { return state(static_cast<const S*>(args.h_0), d, b, args.shape.P); }

  // What forward kept of row r for backward: `width` times H numbers; null where nothing is kept.
  template <class Number>
  Number* tape(Number* all, int64_t d, int64_t r, int64_t width) const {
    return all ? all + ((l * args.shape.D + d) * args.seq.R + r) * width * args.shape.H : nullptr;
  }

  // Dropout mask of this layer's input, row by row; null for none.
  const S* mask() const { return l == 0 || !args.masks ? nullptr : static_cast<const S*>(args.masks[l - 1]); }

  // Where the rows [rows.begin, rows.end) of the layer's input lie; `below` is the output of the layer below.
  void input_rows(const S* below, Range rows, const S** out) const {
    if (l > 0) {
      for (int64_t r = rows.begin; r < rows.end; ++r) *out++ = below + r * outputs();
    } else {
      const S* x = static_cast<const S*>(args.x);
      if (args.seq.batch_sizes) {
        for (int64_t r = rows.begin; r < rows.end; ++r) *out++ = x + r * args.x_row;
      } else {
        int64_t t = rows.begin / args.seq.B, b = rows.begin % args.seq.B;
        for (int64_t r = rows.begin; r < rows.end; ++r) {
          *out++ = x + t * args.x_step + b * args.x_row;
          if (++b == args.seq.B) b = 0, ++t;
        }
      }
    }
  }

  // Where those of some sequences at some times lie.
  void input_rows(const S* below, Range sequences, Range times, const S** out) const {
    for (int64_t t = times.begin; t < times.end; ++t) {
      const Range now = sequences.below(args.seq.active_at(t));
      const int64_t first = args.seq.first_row_at(t);
      input_rows(below, {first + now.begin, first + now.end}, out);
      out += now.size();
    }
  }

  // The common distance of all of them in elements if they lie at equal ones, else 0.
  int64_t input_stride() const {
    if (l > 0) return outputs();
    const bool equal = args.seq.batch_sizes || args.seq.B == 1 || args.x_step == args.seq.B * args.x_row;
    return !equal ? 0 : args.seq.batch_sizes || args.seq.B > 1 ? args.x_row : args.x_step;
  }

  // h_{t-1} of every row of a chunk; null where it is a zero initial state. `own` is this layer's output.
  void previous_rows(const S* own, int64_t d, Chunk c, const S** out) const {
    const int64_t ld = outputs(), first = rows(d, c).begin;
    for (int64_t s = c.begin; s < c.end; ++s) {
      const int64_t before = active(d, s - 1), now = active(d, s);
      const S** row = out + first_row(d, s) - first;
      const S* y = before > 0 ? own + first_row(d, s - 1) * ld + d * args.shape.P : nullptr;
      for (int64_t b = 0; b < now; ++b) row[b] = b < before ? y + b * ld : h_0(d, b);
    }
  }

  // Where a projection follows, the cell's output for the rows, behind the cell's own tape.
  void unprojected_rows(int64_t cell_tape, int64_t d, Range rows, const S** out) const {
    for (int64_t r = rows.begin; r < rows.end; ++r)
      *out++ = tape(static_cast<const S*>(args.tape), d, r, cell_tape + 1) + cell_tape * args.shape.H;
  }
};
