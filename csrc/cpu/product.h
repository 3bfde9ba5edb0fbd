// Matrix products on packed panels by multiply-add, and struct FmaProduct: what the time loops must know of a way to
// multiply. amx.h and bf16.h have the other ways.
//
// The order of every sum is fixed: k runs in equal blocks of about kBlock; inside a block one chain of fma from zero, in
// the order of k; the blocks are added to C one after the other. So an element of C depends on its own row of A and
// column of B alone: not on the size of the batch, its place in it, the panel width or the number of threads.

constexpr int64_t kBlock = 256;
constexpr int64_t kFewTerms = 16;             // so few that reading and writing C is most of a product
constexpr int64_t kNearBytes = 32 * 1024;     // what stays in a core's first cache anyway
constexpr int64_t kBytesToCopy = 512 * 1024;  // of da, from which its transpose is worth a copy
template <class T>
constexpr int64_t kPanelWidth = kPanelVectors * kLanes<T>;
constexpr int kSinglePanels = 8 / kPanelVectors;  // panels side by side where one row alone has too few chains

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

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
  Rows every(int64_t step) const { return {data, ld * step}; }
  Vec<T> read(int64_t row, int64_t k) const { return load(data + row * ld + k); }
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

// out[m, k] = rows[k, m] for K rows and the columns `units`.
template <class T>
void transpose_rows(const Rows<T>& out, const Rows<T>& rows, int64_t K, Range units) {
  for (int64_t m0 = units.begin; m0 < units.end; m0 += 16)
    for (int64_t k0 = 0; k0 < K; k0 += 16) {
      const int64_t m1 = smaller(m0 + 16, units.end), k1 = smaller(k0 + 16, K);
#if defined(__AVX512F__)
      if constexpr (sizeof(T) == 4)
        if (m1 - m0 == 16 && k1 - k0 == 16) {
          __m512i square[16];
          for (int64_t k = 0; k < 16; ++k) square[k] = (__m512i)load(rows.data + (k0 + k) * rows.ld + m0);
          transpose(square);
          for (int64_t m = 0; m < 16; ++m) store(out.data + (m0 + m) * out.ld + k0, (Vec<T>)square[m]);
          continue;
        }
#endif
      for (int64_t m = m0; m < m1; ++m)
        for (int64_t k = k0; k < k1; ++k) out.data[m * out.ld + k] = rows.data[k * rows.ld + m];
    }
}

// B[K, N] as a row of panels, kPanelWidth columns each. Packed, a panel is contiguous, the last one only as wide as
// its vectors and filled up with zeros. The whole panels of a matrix can also be used as they lie.
template <class T>
struct Panels {
  T* data;
  int64_t K, N;
  bool packed = true;

  int64_t count() const { return (N + kPanelWidth<T> - 1) / kPanelWidth<T>; }
  int64_t stride() const { return packed ? K * kPanelWidth<T> : kPanelWidth<T>; }
  T* panel(int64_t p) const { return data + p * stride(); }
  int64_t columns(int64_t p) const { return smaller(kPanelWidth<T>, N - p * kPanelWidth<T>); }
  int64_t width(int64_t p) const { return round_up(columns(p), kLanes<T>); }
  int64_t row_stride(int64_t p) const { return packed ? width(p) : N; }
  static int64_t bytes(int64_t K, int64_t N) { return K * round_up(N, kLanes<T>) * int64_t(sizeof(T)); }
  static Panels of(void* memory, int64_t K, int64_t N) { return {static_cast<T*>(memory), K, N}; }
};

// B[k, n] = W[n, k]: the panels of a product with the transpose of W [N, K].
template <class T, class S>
void pack_transposed(const Panels<T>& B, const S* W, int64_t ldw, Range panels) {
  for (int64_t p = panels.begin; p < panels.end; ++p) {
    const int64_t width = B.width(p), columns = B.columns(p);
    T* out = B.panel(p);
    const S* rows = W + p * kPanelWidth<T> * ldw;
    int64_t k0 = 0;
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      for (int64_t n0 = 0; n0 < width; n0 += 16)
        for (k0 = 0; k0 + 16 <= B.K; k0 += 16) {
          __m512i square[16] = {};
          for (int64_t n = 0; n < smaller(16, columns - n0); ++n) square[n] = (__m512i)load(rows + (n0 + n) * ldw + k0);
          transpose(square);
          for (int64_t k = 0; k < 16; ++k) store(out + (k0 + k) * width + n0, (Vec<T>)square[k]);
        }
#endif
    for (; k0 < B.K; k0 += 16) {
      const int64_t k1 = smaller(k0 + 16, B.K);
      for (int64_t n = 0; n < columns; ++n)
        for (int64_t k = k0; k < k1; ++k) out[k * width + n] = widen(rows[n * ldw + k]);
      for (int64_t n = columns; n < width; ++n)
        for (int64_t k = k0; k < k1; ++k) out[k * width + n] = 0;
    }
  }
}

// B[k, n] = row(k)[n]; a null row is zeros.
template <class T, class Row>
void pack_rows(const Panels<T>& B, Row row, Range panels) {
  for (int64_t p = panels.begin; p < panels.end; ++p) {
    const int64_t width = B.width(p), columns = B.columns(p);
    for (int64_t k = 0; k < B.K; ++k) {
      T* out = B.panel(p) + k * width;
      for (int64_t n = 0; n < width; n += kLanes<T>) store(out + n, row(k, p * kPanelWidth<T> + n, columns - n));
    }
  }
}

// What a product does with its result.
enum class Into { assign, add };

// C[M, N] = from + A[M, K] B[K, N] for M rows and N = NP panels of NV vectors, one block of k; row m of the first term
// lies at from + m*ldf, and null is zeros. A[m, k] lies at A[m*lda + k], or at A[k*lda + m] where A is the transpose of
// what is stored.
template <class T, int M, int NV, int NP, bool kTransposedA>
void tile(int64_t K, const T* A, int64_t lda, const T* B, int64_t ldb, int64_t panel_stride, T* C, int64_t ldc,
          int64_t columns, const T* from, int64_t ldf) {
  constexpr int kVectors = NV * NP;
  if (K > kFewTerms)
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)  // on its way while the sums are formed
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) __builtin_prefetch(C + m * ldc + v * kLanes<T>, 1);
  Vec<T> sum[M][kVectors];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) sum[m][v] = Vec<T>{};
  for (int64_t k = 0; k < K; ++k) {
    Vec<T> b[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v)
      b[v] = load(B + (v / NV) * panel_stride + k * ldb + v % NV * kLanes<T>);
    if constexpr (M > 1)
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) stay_in_register(b[v]);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Vec<T> a = splat<T>(kTransposedA ? A[k * lda + m] : A[m * lda + k]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sum[m][v] = fma(a, b[v], sum[m][v]);
    }
  }
  constexpr int last = (kVectors - 1) * kLanes<T>;
  T* row = C;
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    if (from) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors - 1; ++v) sum[m][v] += load(from + v * kLanes<T>);
      sum[m][kVectors - 1] += load(from + last, columns - last);
      from += ldf;
    }
#pragma GCC unroll 16
    for (int v = 0; v < kVectors - 1; ++v) store(row + v * kLanes<T>, sum[m][v]);
    store(row + last, sum[m][kVectors - 1], columns - last);
    row += ldc;
    asm("" : "+r"(row));  // one address at a time: GCC would compute all of them first, and spill
  }
}

template <class T, int NV, bool kTransposedA, class... Args>
inline void tile_of_rows(int64_t M, Args... args) {
  switch (M) {
    case 1: return tile<T, 1, NV, 1, kTransposedA>(args...);
    case 2: return tile<T, 2, NV, 1, kTransposedA>(args...);
    case 3: return tile<T, 3, NV, 1, kTransposedA>(args...);
    case 4: return tile<T, 4, NV, 1, kTransposedA>(args...);
    case 5: return tile<T, 5, NV, 1, kTransposedA>(args...);
    default: return tile<T, kTileRows, NV, 1, kTransposedA>(args...);
  }
}

template <class T, bool kTransposedA, class... Args>
inline void tile_of_size(int64_t M, int64_t vectors, Args... args) {
  static_assert(kPanelVectors == 2 || kPanelVectors == 4);
  if (vectors == 1) return tile_of_rows<T, 1, kTransposedA>(M, args...);
  if (vectors == 2) return tile_of_rows<T, 2, kTransposedA>(M, args...);
  if constexpr (kPanelVectors == 4) {
    if (vectors == 3) return tile_of_rows<T, 3, kTransposedA>(M, args...);
    return tile_of_rows<T, 4, kTransposedA>(M, args...);
  }
}

template <bool kTransposedA, class T>
void panel_product(T* C, int64_t ldc, const T* A, int64_t lda, int64_t M, const Panels<T>& B, Range panels, Into into,
                   const T* bias) {
  if (M <= 0) return;
  const int64_t tiles = (M + kTileRows - 1) / kTileRows;  // of nearly equal height
  // C is most of the traffic: row by row.
  if (B.K <= kFewTerms && tiles > 1 && M * B.N * int64_t(sizeof(T)) >= kNearBytes) {
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t m = M * i / tiles;
      panel_product<kTransposedA>(C + m * ldc, ldc, kTransposedA ? A + m : A + m * lda, lda, M * (i + 1) / tiles - m, B,
                                  panels, into, bias);
    }
    return;
  }
  const int64_t blocks = B.K < kBlock ? 1 : (B.K + kBlock / 2) / kBlock;
  for (int64_t p = panels.begin; p < panels.end;) {
    const bool side_by_side = M == 1 && p + kSinglePanels <= panels.end &&
                              B.width(p + kSinglePanels - 1) == kPanelWidth<T>;
    const int64_t last = side_by_side ? p + kSinglePanels - 1 : p;
    const int64_t columns = (last - p) * kPanelWidth<T> + B.columns(last);
    const int64_t ldb = B.row_stride(p);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t k0 = B.K * block / blocks, K = B.K * (block + 1) / blocks - k0;
      const T* b = B.panel(p) + k0 * ldb;
      const bool onto_C = k0 > 0 || into == Into::add;
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t m = M * i / tiles, rows = M * (i + 1) / tiles - m;
        const T* a = kTransposedA ? A + k0 * lda + m : A + m * lda + k0;
        T* c = C + m * ldc + p * kPanelWidth<T>;
        const T* from = onto_C ? c : bias ? bias + p * kPanelWidth<T> : nullptr;
        const int64_t ldf = onto_C ? ldc : 0;
        if (side_by_side)
          tile<T, 1, kPanelVectors, kSinglePanels, kTransposedA>(K, a, lda, b, ldb, B.stride(), c, ldc, columns, from,
                                                              ldf);
        else
          tile_of_size<T, kTransposedA>(rows, B.width(p) / kLanes<T>, K, a, lda, b, ldb, B.stride(), c, ldc, columns,
                                        from, ldf);
      }
    }
    p = last + 1;
  }
}

// C[M, columns of the panels] = bias + A[M, K] B, or += A B. C and bias [1, columns], which may be null, point at
// column 0 of B.
template <class T>
void product(T* C, int64_t ldc, Rows<T> A, int64_t M, const Panels<T>& B, Range panels, Into into,
             const T* bias = nullptr) {
  panel_product<false>(C, ldc, A.data, A.ld, M, B, panels, into, bias);
}
template <class T>
void product(T* C, int64_t ldc, TransposedRows<T> A, int64_t M, const Panels<T>& B, Range panels, Into into) {
  if (A.copied)
    panel_product<false, T>(C, ldc, A.data, A.ld, M, B, panels, into, nullptr);
  else
    panel_product<true, T>(C, ldc, A.data, A.ld, M, B, panels, into, nullptr);
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
  static constexpr bool kAnyRows = true;   // rows of a left operand may be any distance apart
  static constexpr int64_t kWidth = kPanelWidth<T>, kRowUnit = kTileRows, kSingle = kSinglePanels;
  static constexpr int64_t kInputRows = int64_t(1) << 40;  // rows of an input that are made an operand at once
  // Of a weight gradient: bytes of its right side that are packed at once, and rows of its left side at a time.
  static constexpr int64_t kRightBytes = 0, kLeftRows = int64_t(1) << 40;

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
    transpose_rows(Rows<T>{out.data, out.ld}, da, rows, units);
  }
};
