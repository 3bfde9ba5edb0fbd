// Operands of products that multiply bfloat16, on AMX tiles (amx.h) and on vectors (bf16.h): numbers in one or more
// parts of 8 bits, neighbours along k together as pairs.

constexpr int64_t kTile = 16;       // rows of a tile
constexpr int64_t kTileDepth = 32;  // numbers per row of a tile, along k

inline __m512i upper_halves(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi32(int(0xffff0000))); }
inline __m512i bits_of(VecF v) { return (__m512i)v; }
inline __m512i widened(__m256i halves) { return (__m512i)(__builtin_convertvector((VecU16)halves, VecU32) << 16); }

// The parts of 16 numbers, each in the upper half of its lane. High is cut off, so that nothing rounds up to infinity;
// the middle part is rounded, so that what is left has either sign.
template <int kParts>
inline void split(VecF v, __m512i (&part)[kParts]) {
  part[0] = upper_halves(bits_of(v));
  if constexpr (kParts > 1) {
    const VecF rest = v - (VecF)part[0];
    part[1] = widened((__m256i)_mm512_cvtneps_pbh((__m512)rest));
    if constexpr (kParts > 2) part[2] = bits_of(rest - (VecF)part[1]);
  }
}

template <int kParts>
inline VecF joined(const __m512i (&part)[kParts]) {
  VecF rest{};
  for (int i = kParts - 1; i > 0; --i) rest = (VecF)part[i] + rest;
  const __mmask16 finite = _mm512_cmpneq_epi32_mask(
      _mm512_and_si512(part[0], _mm512_set1_epi32(0x7f800000)), _mm512_set1_epi32(0x7f800000));
  return (VecF)_mm512_mask_add_ps((__m512)part[0], finite, (__m512)part[0], (__m512)rest);
}

// A left operand A[M, K] in parts, row by row; a single part is the number rounded to bfloat16. K is filled up with
// zeros to whole tiles by whoever fills the rows. A tile may start at any row, so that any rows can be multiplied; up
// to kTile - 1 rows behind the last are read.
template <int kParts>
struct SplitRows {
  uint16_t* data;
  int64_t ld, part;  // distances of rows and of parts

  static constexpr int64_t width(int64_t K) { return round_up(K, kTileDepth); }
  // An odd number of cache lines, so that rows do not compete for the same sets of the cache.
  static constexpr int64_t stride(int64_t K) { return (kParts * width(K) / 32 | 1) * 32; }
  static constexpr int64_t bytes(int64_t rows, int64_t K) {
    return (rows + kTile - 1) * stride(K) * int64_t(sizeof(uint16_t));
  }
  static SplitRows of(void* memory, int64_t K) { return {static_cast<uint16_t*>(memory), stride(K), width(K)}; }

  SplitRows at(int64_t row, int64_t k = 0) const { return {data + row * ld + k, ld, part}; }
  void copy(int64_t row, const SplitRows& from) const {
    __builtin_memcpy(data + row * ld, from.data + row * ld, ld * sizeof(uint16_t));
  }
  VecF read(int64_t row, int64_t k) const {
    __m512i parts[kParts];
    for (int i = 0; i < kParts; ++i)
      parts[i] = widened(_mm256_loadu_si256((const __m256i*)(data + row * ld + i * part + k)));
    return joined<kParts>(parts);
  }
  void write(int64_t row, int64_t k, VecF v) const {
    uint16_t* p = data + row * ld + k;
    if constexpr (kParts == 1) return store(reinterpret_cast<bfloat16*>(p), v);
    __m512i parts[kParts];
    split<kParts>(v, parts);
    for (int i = 0; i < kParts; ++i)
      _mm256_storeu_si256((__m256i*)(p + i * part), _mm512_cvtepi32_epi16(_mm512_srli_epi32(parts[i], 16)));
  }
};

// A right operand B[K, N] in tiles: for each panel of 32 columns and each 32 rows, part by part, two tiles. A tile has
// a row for each pair of k, in which the pair of every column lies together.
template <int kParts>
struct TilePanels {
  static constexpr int64_t kWidth = 2 * kTile, kTileSize = kTile * kTileDepth;
  uint16_t* data;
  int64_t K, N;

  static constexpr int64_t depth(int64_t K) { return (K + kTileDepth - 1) / kTileDepth; }
  static constexpr int64_t panel_elements(int64_t K) { return depth(K) * kParts * 2 * kTileSize; }
  static constexpr int64_t bytes(int64_t K, int64_t N) {
    return (N + kWidth - 1) / kWidth * panel_elements(K) * int64_t(sizeof(uint16_t));
  }
  static TilePanels of(void* memory, int64_t K, int64_t N) { return {static_cast<uint16_t*>(memory), K, N}; }
  int64_t columns(int64_t p) const { return smaller(kWidth, N - p * kWidth); }
  static Range panels(Range columns) { return {columns.begin / kWidth, (columns.end + kWidth - 1) / kWidth}; }
  uint16_t* tile(int64_t p, int64_t block, int part, int64_t side) const {
    return data + p * panel_elements(K) + ((block * kParts + part) * 2 + side) * kTileSize;
  }
};

// Pairs of numbers: the parts of `even` in the lower halves of the lanes, those of `odd` in the upper ones.
template <int kParts>
inline void split_pairs(VecF even, VecF odd, __m512i (&pairs)[kParts]) {
  __m512i low[kParts], high[kParts];
  split<kParts>(even, low);
  split<kParts>(odd, high);
  for (int i = 0; i < kParts; ++i) pairs[i] = _mm512_or_si512(_mm512_srli_epi32(low[i], 16), upper_halves(high[i]));
}

// B[k, n] = row(k)[n] for some columns n, whole panels of them.
template <int kParts, class Row>
void pack_rows(const TilePanels<kParts>& B, Row row, Range some) {
  const Range panels = B.panels(some);
  for (int64_t p = panels.begin; p < panels.end; ++p)
    for (int64_t block = 0; block < B.depth(B.K); ++block)
      for (int64_t side = 0; side < 2; ++side) {
        const int64_t columns = B.columns(p) - side * kTile, n = p * B.kWidth + side * kTile;
        for (int64_t r = 0; r < kTile; ++r) {
          const int64_t k = block * kTileDepth + 2 * r;
          const VecF even = columns > 0 && k < B.K ? row(k, n, columns) : VecF{};
          const VecF odd = columns > 0 && k + 1 < B.K ? row(k + 1, n, columns) : VecF{};
          __m512i pairs[kParts];
          split_pairs<kParts>(even, odd, pairs);
          for (int i = 0; i < kParts; ++i)
            _mm512_storeu_si512(B.tile(p, block, i, side) + r * kTileDepth, pairs[i]);
        }
      }
}

// B[k, n] = W[n, k] for some columns n, whole panels of them.
template <int kParts, class S>
void pack_transposed(const TilePanels<kParts>& B, const S* W, int64_t ldw, Range some) {
  const Range panels = B.panels(some);
  const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
  for (int64_t p = panels.begin; p < panels.end; ++p)
    for (int64_t block = 0; block < B.depth(B.K); ++block)
      for (int64_t side = 0; side < 2; ++side) {
        const int64_t columns = B.columns(p) - side * kTile, k = block * kTileDepth;
        __m512i lines[kParts][16];
        for (int64_t r = 0; r < kTile; ++r) {
          VecF first{}, second{};
          const S* w = W + (p * B.kWidth + side * kTile + r) * ldw + k;
          if constexpr (kParts == 1 && kIsBfloat16<S>) {  // pairs already
            const __mmask32 inside = B.K - k >= kTileDepth ? ~0u : (1u << (B.K - k)) - 1;
            lines[0][r] = _mm512_maskz_loadu_epi16(r < columns ? inside : 0, w);
            continue;
          }
          if (r < columns) {
            first = load(w, B.K - k);
            if (k + 16 < B.K) second = load(w + 16, B.K - k - 16);
          }
          __m512i pairs[kParts];
          split_pairs<kParts>((VecF)_mm512_permutex2var_ps((__m512)first, evens, (__m512)second),
                              (VecF)_mm512_permutex2var_ps((__m512)first, odds, (__m512)second), pairs);
          for (int i = 0; i < kParts; ++i) lines[i][r] = pairs[i];
        }
        for (int i = 0; i < kParts; ++i) {
          transpose(lines[i]);
          for (int r = 0; r < kTile; ++r)
            _mm512_storeu_si512(B.tile(p, block, i, side) + r * kTileDepth, lines[i][r]);
        }
      }
}

// out[m, k] = rows[k, m] for K rows and the columns `units`, in whole tiles; the rows behind K count as zeros.
template <int kParts>
void transpose_rows(const SplitRows<kParts>& out, const SplitRows<kParts>& rows, int64_t K, Range units) {
  const __m512i interleave = _mm512_setr_epi32(0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006,
                                               0x170007, 0x180008, 0x190009, 0x1a000a, 0x1b000b, 0x1c000c, 0x1d000d,
                                               0x1e000e, 0x1f000f);
  for (int64_t m = units.begin; m < units.end; m += kTile)
    for (int64_t k = 0; k < K; k += kTileDepth)
      for (int i = 0; i < kParts; ++i) {
        __m512i lines[16];
        for (int64_t r = 0; r < kTile; ++r) {
          const auto half = [&](int64_t row) {
            const uint16_t* p = rows.data + row * rows.ld + i * rows.part + m;
            return row < K ? _mm256_loadu_si256((const __m256i*)p) : _mm256_setzero_si256();
          };
          const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(half(k + 2 * r)), half(k + 2 * r + 1), 1);
          lines[r] = _mm512_permutexvar_epi16(interleave, both);
        }
        transpose(lines);
        for (int64_t r = 0; r < kTile; ++r)
          _mm512_storeu_si512(out.data + (m + r) * out.ld + i * out.part + k, lines[r]);
      }
}

// What the ways to multiply such operands have in common (see FmaProduct): states and weights in kParts, gradients beside
// them in kGradientParts.
template <int kParts, int kGradientParts>
struct PartsProduct {
  using T = float;
  using States = SplitRows<kParts>;
  using Gradients = SplitRows<kGradientParts>;
  using Right = TilePanels<kParts>;
  using Transposed = Gradients;
  static constexpr bool kOnFloats = false;
  static constexpr int64_t kWidth = Right::kWidth, kUnit = kWidth;
  static constexpr int64_t kInputRows = 128;  // few enough to stay in a core's cache beside the weights

  static constexpr bool copies(int64_t, int64_t) { return true; }
  static int64_t transposed_bytes(int64_t units, int64_t rows) { return Transposed::bytes(units, rows); }
  static Transposed transposed(void* memory, Gradients, int64_t, int64_t rows) { return Transposed::of(memory, rows); }
  static void transpose(Transposed out, Gradients da, int64_t rows, Range units) {
    transpose_rows(out, da, rows, units);
  }
};
