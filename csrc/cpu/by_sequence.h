// Forward and backward of small layers on many sequences: a vector holds one unit of as many sequences as it has lanes, a
// block of them. No lane is lost where units do not fill a vector, weights are used as they lie, and each block goes through
// all steps on its own, so that no worker waits for another. Output, states and input gradients have the bits that the
// loops by unit give them (forward.h, backward.h); gradients of the weights are summed in another order.
// Here is what both passes, forward_by_sequence.h and backward_by_sequence.h, are made of.
//
// What is computed of a block lies in columns: the number of unit k and lane i at [k * ld + i].

// columns[k, lane] = rows[lane, k] for n rows of K numbers, `stride` apart; zeros in the lanes that have no row.
template <class T>
void load_columns(T* columns, int64_t ld, const T* rows, int64_t stride, int64_t n, int64_t K) {
  store_transposed(columns, ld, rows, stride, n, K);
}

// rows[lane, k] = or += columns[k, lane], whose ld is one vector.
template <class T>
void store_columns(T* rows, int64_t stride, int64_t n, int64_t K, const T* columns, Into into = Into::assign) {
  int64_t k = 0;
#if defined(RNN_EXT_AVX512)
  if constexpr (sizeof(T) == 4)
    for (; K - k >= kLeastOfSquare; k += 16) {
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
// Of each column the first n lanes, or all.
template <class T, int N>
inline void store_columns(T* columns, int64_t ld, const Pack<T, N>& pack, int64_t n = kLanes<T>) {
  if (n >= kLanes<T>)
    for_vectors_of<N>([&](int i) { store(columns + i * ld, pack.v[i]); });
  else
    for_vectors_of<N>([&](int i) { store(columns + i * ld, pack.v[i], n); });
}

// Of how many gates, from the first on, both parts are summed in the column of that gate.
inline int gates_in_one_column(const CellFacts& cell) {
  int g = 0;
  while (g < cell.gates && cell.hidden_columns[g] == g) ++g;
  return g;
}

// Every `step`-th block from `first` to before `end`.
struct Part {
  int64_t first, step, end;
};

// What both passes know of a call. Of a packed batch a block may have fewer sequences at a step than lanes: the longest come
// first, so that those that take part are its first ones. Args is ForwardArgs or BackwardArgs.
template <class T, class Args>
struct Blocks {
  using L = Layer<T, Args>;
  static constexpr int64_t kLane = kLanes<T>;
  const Args& args;

  int64_t count() const { return (args.seq.B + kLane - 1) / kLane; }
  int64_t size(int64_t b) const { return smaller(kLane, args.seq.B - b); }  // of the block that begins with sequence b
  // How many of its sequences take part in step s of direction d, the row of the first one, and in which steps there are any.
  int64_t size(int64_t d, int64_t s, int64_t b) const {
    if (!args.seq.batch_sizes) return s < 0 || s >= args.seq.T ? 0 : size(b);
    const int64_t left = args.seq.active(d, s) - b;
    return left < 0 ? 0 : smaller(kLane, left);
  }
  int64_t row(int64_t d, int64_t s, int64_t b) const { return args.seq.first_row(d, s) + b; }
  Range steps(int64_t d, int64_t b) const {
    int64_t length = args.seq.T;
    while (args.seq.active_at(length - 1) <= b) --length;
    return d == 0 ? Range{0, length} : Range{args.seq.T - length, args.seq.T};
  }
  // Which blocks a worker has, of `count` or as many sums of them: neighbours, but of a packed batch, whose first ones have
  // most to do, in turn.
  Part part(const Team& team, int64_t count) const {
    if (args.seq.batch_sizes) return {team.rank, team.size, count};
    const Range mine = team.part(count);
    return {mine.begin, 1, mine.end};
  }

  // The layer's input at step s of direction d; `spare` has room for as much.
  void load_input(T* columns, int64_t ld, const L& layer, const T* below, int64_t d, int64_t s, int64_t b, T* spare) const {
    const int64_t K = layer.inputs(), n = size(d, s, b), first = row(d, s, b);
    if (layer.l > 0)
      load_columns(columns, ld, below + first * K, K, n, K);
    else if (args.seq.batch_sizes)
      load_columns(columns, ld, static_cast<const T*>(args.x) + first * args.x_row, args.x_row, n, K);
    else
      load_columns(columns, ld, static_cast<const T*>(args.x) + args.seq.time(d, s) * args.x_step + b * args.x_row,
                   args.x_row, n, K);
    if (layer.mask()) mask(columns, ld, layer.mask() + first * K, K, n, K, spare);
  }
  // Multiplies by a dropout mask, whose rows lie `stride` apart.
  void mask(T* columns, int64_t ld, const T* rows, int64_t stride, int64_t n, int64_t K, T* spare) const {
    load_columns(spare, kLane, rows, stride, n, K);
    for (int64_t k = 0; k < K; ++k) store(columns + k * ld, load(columns + k * ld) * load(spare + k * kLane));
  }
  // A state [L*D, B, H] of the first n sequences of a block; zeros where there is none.
  void load_state(T* columns, int64_t ld, const L& layer, const void* states, int64_t d, int64_t b, int64_t n) const {
    const T* rows = layer.state(static_cast<const T*>(states), d, b, args.shape.H);
    load_columns(columns, ld, rows, args.shape.H, rows ? n : 0, args.shape.H);
  }
  void store_state(const L& layer, void* states, int64_t d, int64_t b, int64_t n, const T* columns) const {
    store_columns(layer.state(static_cast<T*>(states), d, b, args.shape.H), args.shape.H, n, args.shape.H, columns);
  }
};

// A pass: its workspace, and what a worker does. Args is ForwardArgs or BackwardArgs.
template <class T, class Args>
class BySequence;
