// Matrix products on AMX tiles, which multiply bfloat16 and accumulate in float32.
//
// A float32 number is exactly the sum of three bfloat16 numbers (8 bits each of its 24): high + middle + low. Of the
// nine products of parts the six larger ones are summed, so that what is left out is below half a unit in the last
// place of the largest term. A number that is stored as bfloat16 is its own high part, and a gradient beside such
// numbers is kept in two parts. A number stored as float16 is the sum of two, and what is left out of a product is the
// middle part times the middle part: below 2^-16 of a term, where a result is rounded to 2^-11.
//
// The order of every sum is fixed, as in product.h: one chain over k from zero for each element, then added to C.
// Numbers below 2^-126, and parts of numbers below 2^-110, count as zero: so do the tiles. Where a result is not
// finite, it is computed again number by number: a sum of parts cannot tell infinity from infinity minus infinity.

// Tile registers 0 to 3 hold results, 4 and 5 rows of A, 6 and 7 columns of B; each 16 rows of 64 bytes.
struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
struct TileUse {
  TileUse() {
    alignas(64) static constexpr TileConfig config;
    _tile_loadconfig(&config);
  }
  ~TileUse() { _tile_release(); }
};

// Blocks of k from which on B comes from a slow cache.
template <int PB>
constexpr int64_t kFarDepth = PB == 1 ? 16 : 8;

// sum[32, 32] = A B for one panel and up to 32 rows, two tiles by two (or one by two). Where B is large, its next block is
// asked for while this one is multiplied: a tile that waits for a slower cache keeps the others waiting.
template <int PA, int PB, bool kTwo>
inline void tile_product(const SplitRows<PA>& A, const uint16_t* b, int64_t depth, float* sum) {
  constexpr int64_t kTileSize = kTile * kTileDepth;
  const int64_t stride = A.ld * 2;
  const uint16_t *a0 = A.data, *a1 = A.data + kTile * A.ld;
  const auto rows = [&](int part) {
    _tile_loadd(4, a0 + part * A.part, stride);
    if constexpr (kTwo) _tile_loadd(5, a1 + part * A.part, stride);
  };
  const auto columns = [&](int part) {
    _tile_loadd(6, b + (2 * part) * kTileSize, 64);
    _tile_loadd(7, b + (2 * part + 1) * kTileSize, 64);
  };
  constexpr int kProducts = PA == 3 && PB == 3 ? 6 : PA == 2 && PB == 2 ? 3 : PA;  // of parts
  const bool asks = depth >= kFarDepth<PB>;
  const uint16_t* ahead = nullptr;
  const auto ask = [&] {
    if (!asks) return;
    constexpr int kLines = (PB * kTile + kProducts - 1) / kProducts;  // twice for each product
#pragma GCC unroll 16
    for (int i = 0; i < kLines; ++i) __builtin_prefetch(ahead + i * kTileDepth);
    ahead += kLines * kTileDepth;
  };
  const auto multiply = [&] {
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kTwo) _tile_dpbf16ps(2, 5, 6);
    ask();
    if constexpr (kTwo) _tile_dpbf16ps(3, 5, 7);
    _tile_dpbf16ps(1, 4, 7);
    ask();
  };
  asm volatile("" ::: "memory");  // GCC does not know that the tile loads read memory
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t block = 0; block < depth; ++block) {
    ahead = b + PB * 2 * kTileSize;
    if constexpr (PA == 3 && PB == 3) {  // an order in which most tiles that a product needs are already there
      rows(2), columns(0), multiply();
      rows(1), multiply();
      columns(1), multiply();
      rows(0), multiply();
      columns(0), multiply();
      columns(2), multiply();
    } else if constexpr (PA == 2 && PB == 2) {
      rows(1), columns(0), multiply();
      rows(0), multiply();
      columns(1), multiply();
    } else {
      static_assert(PB == 1);
      columns(0);
      for (int i = PA - 1; i >= 0; --i) rows(i), multiply();
    }
    a0 += kTileDepth, a1 += kTileDepth, b += PB * 2 * kTileSize;
  }
  _tile_stored(0, sum, 128);
  _tile_stored(1, sum + kTile, 128);
  if constexpr (kTwo) {
    _tile_stored(2, sum + kTile * 32, 128);
    _tile_stored(3, sum + kTile * 33, 128);
  }
}

// The same for one row, number by number.
template <int PA, int PB>
__attribute__((noinline)) void row_product(const SplitRows<PA>& A, const TilePanels<PB>& B, int64_t p, float* sum) {
  for (int64_t side = 0; side < 2; ++side) {
    VecF s{};
    for (int64_t k = 0; k < B.K; k += 16) {
      float a[16];
      store(a, A.read(0, k));
      for (int64_t i = 0; i < smaller(16, B.K - k); ++i) {
        const int64_t block = (k + i) / kTileDepth, r = (k + i) % kTileDepth;
        __m512i parts[PB];
        for (int part = 0; part < PB; ++part) {
          const __m512i pairs = _mm512_loadu_si512(B.tile(p, block, part, side) + r / 2 * kTileDepth);
          parts[part] = r % 2 ? upper_halves(pairs) : _mm512_slli_epi32(pairs, 16);
        }
        s = fma(splat<float>(a[i]), joined<PB>(parts), s);
      }
    }
    store(sum + side * kTile, s);
  }
}

// C[M, some columns] = bias + A[M, K] B, or += A B, as in product.h; columns of whole panels.
template <int PA, int PB>
void product(float* C, int64_t ldc, const SplitRows<PA>& A, int64_t M, const TilePanels<PB>& B, Range some, Into into,
             const float* bias = nullptr) {
  alignas(64) float sum[32 * 32];
  const Range panels = B.panels(some);
  for (int64_t p = panels.begin; p < panels.end; ++p) {
    const int64_t columns = B.columns(p);
    for (int64_t m = 0; m < M; m += 32) {
      const int64_t rows = smaller(32, M - m);
      if (rows > kTile)
        tile_product<PA, PB, true>(A.at(m), B.tile(p, 0, 0, 0), B.depth(B.K), sum);
      else
        tile_product<PA, PB, false>(A.at(m), B.tile(p, 0, 0, 0), B.depth(B.K), sum);
      float* c = C + m * ldc + p * B.kWidth;
      for (int64_t r = 0; r < rows; ++r, c += ldc) {
        VecF first = load(sum + r * 32), second = load(sum + r * 32 + 16);
        const VecF check = (first - first) + (second - second);
        if (_mm512_cmp_ps_mask((__m512)check, (__m512)check, _CMP_UNORD_Q)) {
          row_product(A.at(m + r), B, p, sum + r * 32);
          first = load(sum + r * 32), second = load(sum + r * 32 + 16);
        }
        const float* from = into == Into::add ? c : bias ? bias + p * B.kWidth : nullptr;
        if (columns == 32 && from) {
          store(c, load(from) + first);
          store(c + 16, load(from + 16) + second);
        } else {
          store(c, from ? load(from, columns) + first : first, columns);
          if (columns > 16) store(c + 16, from ? load(from + 16, columns - 16) + second : second, columns - 16);
        }
      }
    }
  }
}

template <class S>
constexpr int kAmxParts = kIsBfloat16<S> ? 1 : Half<S> ? 2 : 3;

// See FmaProduct. bfloat16 states and weights are their own high parts, float16 ones are exactly two; gradients beside
// them keep 16 bits.
template <class S>
struct AmxProduct : PartsProduct<kAmxParts<S>, kAmxParts<S> == 3 ? 3 : 2> {
  using Use = TileUse;
  static constexpr int64_t kSingle = 1, kRowUnit = 2 * kTile, kSequenceUnit = kTile;
  static constexpr int64_t kRightBytes = 1024 * 1024, kLeftRows = 2 * kTile;
};
