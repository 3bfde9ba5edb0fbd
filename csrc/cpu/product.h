// Matrix products on packed panels by multiply-add, and struct FmaProduct: what the time loops must know of a way to
// multiply. amx.h and bf16.h have the other ways.
//
// The order of every sum is fixed: k runs in equal blocks of about kBlock; inside a block one chain of fma from zero, in
// the order of k; the blocks are added to C one after the other. So an element of C depends on its own row of A and
// column of B alone: not on the size of the batch, its place in it, the panel width or the number of threads.

constexpr int64_t kBlock = 256;
constexpr int64_t kCacheLine = 64;            // bytes
constexpr int64_t kFewTerms = 16;             // so few that reading and writing C is most of a product
constexpr int64_t kNearBytes = 32 * 1024;     // what stays in a core's first cache anyway
constexpr int64_t kCachedBytes = 1024 * 1024;  // and in its second one
constexpr int64_t kTermsAhead = 12;           // of B, that are asked for where it is not in that cache
constexpr int64_t kBytesToCopy = 512 * 1024;  // of da, from which its transpose is worth a copy
// A panel of less than four cache lines uses A so little that its rows should come from a near cache: a group of them
// meets all panels before the next one does. And rows of B as they lie, this far apart, are too many for its sets.
constexpr bool kNarrowPanels = kPanelVectors * kVectorBytes < 256;
constexpr int64_t kWithoutLimit = int64_t(1) << 40;
constexpr int64_t kManyGroups = 4;  // with fewer, B would be read more than once for little
constexpr int64_t kGroupBytes = kNarrowPanels ? 256 * 1024 : kWithoutLimit;
constexpr int64_t kLyingRowBytes = kNarrowPanels ? 1024 : kWithoutLimit;
template <class T>
constexpr int64_t kPanelWidth = kPanelVectors * kLanes<T>;
constexpr int kSinglePanels = 8 / kPanelVectors;  // panels side by side where one row alone has too few chains

// Row stride for n elements: whole vectors, and one cache line more where rows would otherwise compete for the
// same sets of the cache.
template <class T>
constexpr int64_t padded_stride(int64_t n) {
  const int64_t stride = round_up(n, kLanes<T>);
  return stride * sizeof(T) % 1024 == 0 ? stride + 64 / int64_t(sizeof(T)) : stride;
}

// A left operand A[M, K], row by row. The time loops write it, and read it back, vector by vector.
template <class T>
struct Rows {
  T* data;
  int64_t ld;

  static constexpr int64_t width(int64_t K) { return round_up(K, kLanes<T>); }
  static int64_t bytes(int64_t rows, int64_t K) { return rows * padded_stride<T>(K) * int64_t(sizeof(T)); }
  static Rows of(void* memory, int64_t K) { return {static_cast<T*>(memory), padded_stride<T>(K)}; }

  Rows at(int64_t row, int64_t k = 0) const { return {data + row * ld + k, ld}; }
  Vec<T> read(int64_t row, int64_t k) const { return load(data + row * ld + k); }
  void copy(int64_t row, const Rows& from) const {  // as it is, from rows of the same width
    __builtin_memcpy(data + row * ld, from.data + row * ld, ld * sizeof(T));
  }
  void write(int64_t row, int64_t k, Vec<T> v) const { store(data + row * ld + k, v); }
};

// The transpose of da as a left operand: as da lies, A[m, k] at data[k * ld + m], or copied, at data[m * ld + k].
template <class T>
struct TransposedRows {
  T* data;
  int64_t ld;
  bool copied;
  TransposedRows at(int64_t row) const { return {data + (copied ? row * ld : row), ld, copied}; }
};

// B[K, N] as a row of panels, kPanelWidth columns each. Packed, a panel is contiguous, its rows whole vectors, filled up
// with zeros where columns end; the one that begins with column n lies behind the K * n numbers before it. So some of the
// columns may be packed as panels of their own, from a whole vector on to a whole vector or the end. The columns of a
// matrix of whole panels can also be used as they lie.
template <class T>
struct Panels {
  T* data;
  int64_t K, N;
  bool packed = true;

  T* panel(int64_t n) const { return data + n * (packed ? K : 1); }  // that begins with column n
  int64_t row_stride(int64_t columns) const {  // of a panel with so many
    return packed ? round_up(smaller(columns, kPanelWidth<T>), kLanes<T>) : N;
  }
  static int64_t bytes(int64_t K, int64_t N) { return K * round_up(N, kLanes<T>) * int64_t(sizeof(T)); }
  static Panels of(void* memory, int64_t K, int64_t N) { return {static_cast<T*>(memory), K, N}; }
};

// B[k, n] = W[n, k] for some columns n: the panels of a product with the transpose of W [N, K].
template <class T, class S>
void pack_transposed(const Panels<T>& B, const S* W, int64_t ldw, Range some) {
  for (int64_t begin = some.begin; begin < some.end; begin += kPanelWidth<T>) {
    const int64_t columns = smaller(kPanelWidth<T>, some.end - begin);
    store_transposed(B.panel(begin), B.row_stride(columns), W + begin * ldw, ldw, columns, B.K);
  }
}

// B[k, n] = row(k)[n] for some columns n; a null row is zeros.
template <class T, class Row>
void pack_rows(const Panels<T>& B, Row row, Range some) {
  for (int64_t begin = some.begin; begin < some.end; begin += kPanelWidth<T>) {
    const int64_t columns = smaller(kPanelWidth<T>, some.end - begin), width = B.row_stride(columns);
    for (int64_t k = 0; k < B.K; ++k) {
      T* out = B.panel(begin) + k * width;
      for (int64_t n = 0; n < width; n += kLanes<T>) store(out + n, row(k, begin + n, columns - n));
    }
  }
}

// What a product does with its result.
enum class Into { assign, add };

// Where the right side of a tile lies: one block of k of a panel, or of several side by side.
template <class T>
struct TileColumns {
  const T* first;
  int64_t ld, panel_stride;  // of all panels but the last
  const T* last;
  int64_t ld_last;
};

// What a tile asks for while its sums are formed: A's rows of the next tile, and some cache lines of the next block of B.
struct Ahead {
  bool rows = false;
  const char* lines = nullptr;
  int64_t count = 0;
};

// C[M, columns] = from + A[M, K] B[K, columns] for M rows and V vectors of columns, one block of k; row m of the first
// term lies at from + m*ldf, and null is zeros. A[m, k] lies at A[m*lda + k], or at A[k*lda + m] where A is the transpose
// of what is stored. Never inlined: one row is slower by 5% where it is.
template <class T, int M, int V, bool kTransposedA>
__attribute__((noinline)) void tile(int64_t K, const T* A, int64_t lda, Ahead ahead, TileColumns<T> B, T* C, int64_t ldc,
                                    int64_t columns, const T* from, int64_t ldf) {
  if (K > kFewTerms)
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)  // on its way while the sums are formed
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) __builtin_prefetch(C + m * ldc + v * kLanes<T>, 1);
  Vec<T> sum[M][V];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sum[m][v] = Vec<T>{};
  const bool far_B = K * V * kVectorBytes >= 2 * kNearBytes;
  for (int64_t k = 0; k < K; ++k) {
    if constexpr (M == kTileRows && !kTransposedA)
      if (ahead.rows && k % (kCacheLine / sizeof(T)) == 0)
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) __builtin_prefetch(A + (M + m) * lda + k, 0, 2);  // of the next tile
    if constexpr (!kNarrowPanels && M > 1 && V == kPanelVectors && !kTransposedA)
      if (far_B) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) __builtin_prefetch(B.last + (k + kTermsAhead) * B.ld_last + v * kLanes<T>);
        if (k < ahead.count) __builtin_prefetch(ahead.lines + k * kCacheLine, 0, 2);
      }
    Vec<T> b[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      constexpr int last = (V - 1) / kPanelVectors;
      const int panel = v / kPanelVectors;
      b[v] = load((panel == last ? B.last + k * B.ld_last : B.first + panel * B.panel_stride + k * B.ld) +
                  v % kPanelVectors * kLanes<T>);
    }
    if constexpr (M > 1)
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) stay_in_register(b[v]);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Vec<T> a = splat<T>(kTransposedA ? A[k * lda + m] : A[m * lda + k]);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[m][v] = fma(a, b[v], sum[m][v]);
    }
  }
  constexpr int last = (V - 1) * kLanes<T>;
  T* row = C;
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    if (from) {
#pragma GCC unroll 16
      for (int v = 0; v < V - 1; ++v) sum[m][v] += load(from + v * kLanes<T>);
      sum[m][V - 1] += load(from + last, columns - last);
      from += ldf;
    }
#pragma GCC unroll 16
    for (int v = 0; v < V - 1; ++v) store(row + v * kLanes<T>, sum[m][v]);
    store(row + last, sum[m][V - 1], columns - last);
    row += ldc;
    asm("" : "+r"(row));  // one address at a time: GCC would compute all of them first, and spill
  }
}

template <class T, bool kTransposedA, int V, int M = kTileRows, class... Args>
inline void tile_of_rows(int64_t rows, Args... args) {
  if constexpr (M > 2)  // one row: below
    if (rows < M) return tile_of_rows<T, kTransposedA, V, M - 1>(rows, args...);
  tile<T, M, V, kTransposedA>(args...);
}

template <class T, bool kTransposedA, int V = kPanelVectors, class... Args>
inline void tile_of_size(int64_t rows, int64_t vectors, Args... args) {
  if constexpr (V > 1)
    if (vectors < V) return tile_of_size<T, kTransposedA, V - 1>(rows, vectors, args...);
  tile_of_rows<T, kTransposedA, V>(rows, args...);
}

// One row alone has too few chains of sums in one panel.
template <class T, bool kTransposedA, int V = kSinglePanels * kPanelVectors, class... Args>
inline void tile_of_one_row(int64_t vectors, Args... args) {
  if constexpr (V > 1)
    if (vectors < V) return tile_of_one_row<T, kTransposedA, V - 1>(vectors, args...);
  tile<T, 1, V, kTransposedA>(args...);
}

// Where part i of `count` equal ones of n begins. Mostly there is but one, and a division takes as long as a small tile.
inline int64_t part_begin(int64_t n, int64_t i, int64_t count) { return i == 0 ? 0 : i == count ? n : n * i / count; }

// In how many groups the rows of A meet all panels before the next ones do.
template <class T>
inline int64_t groups_of_rows(int64_t M, const Panels<T>& B, Range some) {
  const int64_t tiles = (M + kTileRows - 1) / kTileRows;
  // C is most of the traffic: row by row.
  if (B.K <= kFewTerms && M * B.N * int64_t(sizeof(T)) >= kNearBytes) return tiles;
  // A tile at least in each, or else a long row would never be small enough.
  const int64_t groups = smaller(tiles, M * B.K * int64_t(sizeof(T)) / kGroupBytes);
  return groups >= kManyGroups && some.size() > kPanelWidth<T> ? groups : 1;
}

// How many lines of the next block of B each tile asks for, so that all together bring it from a slow cache to the second;
// none where there are so few tiles that there is hardly time.
template <class T>
inline int64_t lines_ahead(const Panels<T>& B, int64_t K, int64_t tiles) {
  constexpr int64_t kTerm = kPanelWidth<T> * int64_t(sizeof(T)) / kCacheLine;  // lines of a term
  const bool near = B.K * B.N * int64_t(sizeof(T)) <= kCachedBytes;
  return kNarrowPanels || near || !B.packed || tiles < kTerm ? 0 : (K * kTerm + tiles - 1) / tiles;
}

// All in one function: what is handed on in memory would have to wait there behind the stores to C.
template <bool kTransposedA, class T>
void panel_product(T* C, int64_t ldc, const T* A, int64_t lda, bool far, int64_t M, const Panels<T>& B, Range some,
                   Into into, const T* bias) {
  const int64_t blocks = B.K < kBlock ? 1 : (B.K + kBlock / 2) / kBlock;
  const int64_t groups = groups_of_rows(M, B, some);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = part_begin(M, g, groups), height = part_begin(M, g + 1, groups) - first;
    const int64_t tiles = (height + kTileRows - 1) / kTileRows;  // of nearly equal height
    const int64_t width = (height == 1 ? kSinglePanels : 1) * kPanelWidth<T>;
    for (int64_t n = some.begin; n < some.end; n += width) {
      const int64_t columns = smaller(width, some.end - n), vectors = (columns + kLanes<T> - 1) / kLanes<T>;
      const int64_t last = (vectors - 1) / kPanelVectors * kPanelWidth<T>;
      const int64_t ld = B.row_stride(kPanelWidth<T>), ld_last = B.row_stride(columns - last);
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t k0 = part_begin(B.K, block, blocks), K = part_begin(B.K, block + 1, blocks) - k0;
        const TileColumns<T> b{B.panel(n) + k0 * ld, ld, B.panel(kPanelWidth<T>) - B.data,
                               B.panel(n + last) + k0 * ld_last, ld_last};
        const bool onto_C = k0 > 0 || into == Into::add;
        const int64_t lines = lines_ahead(B, K, tiles);
        for (int64_t i = 0; i < tiles; ++i) {
          const int64_t m = first + part_begin(height, i, tiles), rows = first + part_begin(height, i + 1, tiles) - m;
          const T* a = kTransposedA ? A + k0 * lda + m : A + m * lda + k0;
          T* c = C + m * ldc + n;
          const T* from = onto_C ? c : bias ? bias + n : nullptr;
          const int64_t ldf = onto_C ? ldc : 0;
          const Ahead ahead{far, reinterpret_cast<const char*>(b.first + K * ld) + i * lines * kCacheLine, lines};
          if (rows == 1)
            tile_of_one_row<T, kTransposedA>(vectors, K, a, lda, ahead, b, c, ldc, columns, from, ldf);
          else
            tile_of_size<T, kTransposedA>(rows, vectors, K, a, lda, ahead, b, c, ldc, columns, from, ldf);
        }
      }
    }
  }
}

// C[M, some columns] = bias + A[M, K] B, or += A B, for columns that are panels of their own. C and bias [1, N], which may
// be null, point at column 0 of B.
template <class T>
void product(T* C, int64_t ldc, Rows<T> A, int64_t M, const Panels<T>& B, Range some, Into into,
             const T* bias = nullptr) {
  panel_product<false>(C, ldc, A.data, A.ld, false, M, B, some, into, bias);
}
template <class T>
void product(T* C, int64_t ldc, TransposedRows<T> A, int64_t M, const Panels<T>& B, Range some, Into into) {
  if (A.copied)
    panel_product<false, T>(C, ldc, A.data, A.ld, true, M, B, some, into, nullptr);
  else
    panel_product<true, T>(C, ldc, A.data, A.ld, false, M, B, some, into, nullptr);
}

// A way to multiply, for storage type S: how states, gradients of gates and weights are kept as operands.
template <class S>
struct FmaProduct {
  using T = Compute<S>;
  using States = Rows<T>;             // h, and the input of a layer where it can't be used as it lies
  using Gradients = Rows<T>;          // da
  using Right = Panels<T>;            // weights; and input or states, as the right side of a weight gradient
  using Transposed = TransposedRows<T>;  // da as the left side of a weight gradient
  static constexpr bool kOnFloats = true;  // operands are plain numbers: they may be used where and as they lie
  static constexpr int64_t kWidth = kPanelWidth<T>, kSingle = kSinglePanels;
  static constexpr int64_t kRowUnit = kTileRows, kUnit = kLanes<T>;  // rows and columns that workers share out
  static constexpr int64_t kSequenceUnit = 1;  // and sequences, where shares are unequal
  static constexpr int64_t kInputRows = kWithoutLimit;  // rows of an input that are made an operand at once
  // Of a weight gradient: bytes of its right side that are packed at once, and rows of its left side at a time.
  static constexpr int64_t kRightBytes = kNarrowPanels ? kGroupBytes : 0, kLeftRows = kWithoutLimit;

  struct Use {};  // lives as long as a worker multiplies
  // As da lies, a product uses only a few numbers of each cache line that it reads: too few once da is large.
  static bool copies(int64_t units, int64_t rows) { return units * rows * int64_t(sizeof(T)) >= kBytesToCopy; }
  static int64_t transposed_bytes(int64_t units, int64_t rows) {
    return copies(units, rows) ? Gradients::bytes(units, rows) : 0;
  }
  static Transposed transposed(void* memory, Gradients da, int64_t units, int64_t rows) {
    const Rows<T> copy = Gradients::of(memory, rows);
    return copies(units, rows) ? Transposed{copy.data, copy.ld, true} : Transposed{da.data, da.ld, false};
  }
  static void transpose(Transposed out, Gradients da, int64_t rows, Range units) {
    store_transposed(out.data + units.begin * out.ld, out.ld, da.data + units.begin, da.ld, rows, units.size());
  }
};
