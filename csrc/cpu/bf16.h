// Matrix products of bfloat16 numbers by AVX512_BF16's vdpbf16ps: each lane of a sum takes two products at once, which
// is twice the rate of FmaProduct where isa.cpp finds it quick. The instruction is reached in this file alone, and only
// where the processor has it.
//
// The order of every sum is fixed, as in product.h: one chain over pairs of k from zero for each element, then added to
// C. Numbers below 2^-126 count as zero: so does the instruction. Infinity and NaN keep their meaning.

constexpr int kPairRows = 12;   // by two vectors: 24 accumulators of 32 registers
constexpr int kPairSingle = 4;  // panels side by side where one row alone has too few chains

// sum += the two products of each pair of a and b. The plain twin, for tests on processors without the instruction,
// keeps denormal numbers.
#if defined(RNN_EXT_EMULATE_TILES)
#define RNN_EXT_BF16
inline __m512 add_pairs(__m512 sum, __m512i a, __m512i b) {
  const VecF odd = fma((VecF)upper_halves(a), (VecF)upper_halves(b), (VecF)sum);
  return (__m512)fma((VecF)_mm512_slli_epi32(a, 16), (VecF)_mm512_slli_epi32(b, 16), odd);
}
#else
#define RNN_EXT_BF16 __attribute__((target("avx512bf16")))
RNN_EXT_BF16 inline __m512 add_pairs(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}
#endif

// sum[M, NV vectors] += A[M, k and k + 1] B[k and k + 1, NV vectors]; `keep` masks pairs of A.
template <int M, int NV>
RNN_EXT_BF16 RNN_EXT_INLINE void add_pair_of_terms(__m512 (&sum)[M][NV], const uint16_t* const* rows, int64_t lda,
                                                   const uint16_t* b, int64_t panel_stride, int keep) {
  __m512i right[NV];
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) right[v] = _mm512_loadu_si512(b + v / 2 * panel_stride + v % 2 * kTile * kTileDepth);
  if constexpr (M > 1)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) stay_in_register(right[v]);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    int pair;
    __builtin_memcpy(&pair, rows[m / 3] + m % 3 * lda, sizeof pair);
    const __m512i left = _mm512_set1_epi32(pair & keep);
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) sum[m][v] = add_pairs(sum[m][v], left, right[v]);
  }
}

// C[M, N] = from + A[M, K] B[K, N] for M rows and NV vectors of columns, two a panel; `from` as in product.h's tile.
template <int M, int NV>
RNN_EXT_BF16 void pair_tile(int64_t K, const uint16_t* A, int64_t lda, const uint16_t* b, int64_t panel_stride,
                            float* C, int64_t ldc, int64_t columns, const float* from, int64_t ldf) {
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)  // on its way while the sums are formed
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) __builtin_prefetch(C + m * ldc + v * 16, 1);
  __m512 sum[M][NV];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) sum[m][v] = _mm512_setzero_ps();
  constexpr int kAddresses = (M + 2) / 3;  // one reaches three rows
  const uint16_t* rows[kAddresses];
#pragma GCC unroll 4
  for (int i = 0; i < kAddresses; ++i) rows[i] = A + 3 * i * lda;
  for (int64_t k = 0; k + 1 < K; k += 2) {
#pragma GCC unroll 8  // of the next block of k: the weights come from slower caches, and in two streams a panel
    for (int v = 0; v < NV; ++v) __builtin_prefetch(b + v / 2 * panel_stride + (2 + v % 2) * kTile * kTileDepth);
    add_pair_of_terms<M, NV>(sum, rows, lda, b, panel_stride, -1);
#pragma GCC unroll 4
    for (int i = 0; i < kAddresses; ++i) rows[i] += 2;
    b += kTileDepth;
    if (k % kTileDepth == kTileDepth - 2) b += kTile * kTileDepth;  // past the panel's other tile
  }
  if (K % 2 == 1) add_pair_of_terms<M, NV>(sum, rows, lda, b, panel_stride, 0xffff);  // behind K there may be anything
  constexpr int last = (NV - 1) * 16;
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    if (from) {
#pragma GCC unroll 8
      for (int v = 0; v < NV - 1; ++v) sum[m][v] += (__m512)load(from + v * 16);
      sum[m][NV - 1] += (__m512)load(from + last, columns - last);
      from += ldf;
    }
#pragma GCC unroll 8
    for (int v = 0; v < NV - 1; ++v) store(C + v * 16, (VecF)sum[m][v]);
    store(C + last, (VecF)sum[m][NV - 1], columns - last);
    C += ldc;
    asm("" : "+r"(C));  // as in product.h's tile
  }
}

template <int NV, int M = kPairRows>
inline void pair_tile_of_rows(int64_t rows, auto... args) {
  if constexpr (M > 1)
    if (rows < M) return pair_tile_of_rows<NV, M - 1>(rows, args...);
  pair_tile<M, NV>(args...);
}

// C[M, some columns] = bias + A[M, K] B, or += A B, as in product.h; columns of whole panels.
inline void product(float* C, int64_t ldc, const SplitRows<1>& A, int64_t M, const TilePanels<1>& B, Range some,
                    Into into, const float* bias = nullptr) {
  if (M <= 0) return;
  const int64_t tiles = (M + kPairRows - 1) / kPairRows;  // of nearly equal height
  const int64_t stride = B.panel_elements(B.K);
  const Range panels = B.panels(some);
  for (int64_t p = panels.begin; p < panels.end;) {
    const bool side_by_side = M == 1 && p + kPairSingle <= panels.end && B.columns(p + kPairSingle - 1) > kTile;
    const int64_t last = side_by_side ? p + kPairSingle - 1 : p;
    const int64_t columns = (last - p) * B.kWidth + B.columns(last);
    const uint16_t* b = B.tile(p, 0, 0, 0);
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t m = M * i / tiles, rows = M * (i + 1) / tiles - m;
      float* c = C + m * ldc + p * B.kWidth;
      const float* from = into == Into::add ? c : bias ? bias + p * B.kWidth : nullptr;
      const int64_t ldf = into == Into::add ? ldc : 0;
      const uint16_t* a = A.at(m).data;
      if (side_by_side)
        pair_tile<1, 2 * kPairSingle>(B.K, a, A.ld, b, stride, c, ldc, columns, from, ldf);
      else if (columns > kTile)
        pair_tile_of_rows<2>(rows, B.K, a, A.ld, b, stride, c, ldc, columns, from, ldf);
      else
        pair_tile_of_rows<1>(rows, B.K, a, A.ld, b, stride, c, ldc, columns, from, ldf);
    }
    p = last + 1;
  }
}

// See FmaProduct. States and weights are as they are stored; gradients beside them are rounded, as torch's are.
struct Bf16Product : PartsProduct<1, 1> {
  struct Use {};
  static constexpr int64_t kSingle = kPairSingle, kRowUnit = kPairRows, kSequenceUnit = 1;
  static constexpr int64_t kRightBytes = 512 * 1024, kLeftRows = kPairRows;
};
