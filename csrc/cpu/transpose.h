// Transposes of matrices, by squares that fit into registers.

#if defined(RNN_EXT_AVX512)
// 16 x 16 lanes of 32 bits.
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// Squares of 16 x 16 in columns of floats; those that are not whole are worth it from 5 columns on.
template <class S>
constexpr int64_t kSquare = sizeof(Compute<S>) == 4 ? 16 : 0;
constexpr int64_t kLeastOfSquare = 5;

// out[c, r] = in[r, c] of a square, or of the rows and columns that there are; lanes without a row get anything.
template <bool kWhole, class S>
inline void transpose_square(float* out, int64_t ldo, const S* in, int64_t ldi, int64_t rows, int64_t columns) {
  __m512i square[16] = {};
  const int64_t in_rows = kWhole ? 16 : smaller(16, rows), out_rows = kWhole ? 16 : smaller(16, columns);
  for (int64_t r = 0; r < in_rows; ++r) square[r] = (__m512i)(kWhole ? load(in + r * ldi) : load(in + r * ldi, columns));
  transpose(square);
  for (int64_t c = 0; c < out_rows; ++c) store(out + c * ldo, (VecF)square[c]);
}
#else
// Squares of 4 x 4 floats, in 128 bits each: shuffles across more are slow on the machines that have no AVX-512.
template <class S>
constexpr int64_t kSquare = sizeof(S) == 4 ? 4 : 0;
constexpr int64_t kLeastOfSquare = 4;

typedef float Quad __attribute__((vector_size(16)));
inline Quad load_quad(const float* p) {
  Quad v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <bool kWhole>
inline void transpose_square(float* out, int64_t ldo, const float* in, int64_t ldi, int64_t rows, int64_t) {
  const auto row = [&](int64_t i) { return kWhole || i < rows ? load_quad(in + i * ldi) : Quad{}; };
  const Quad r0 = row(0), r1 = row(1), r2 = row(2), r3 = row(3);
  const Quad a = __builtin_shufflevector(r0, r1, 0, 4, 1, 5), b = __builtin_shufflevector(r0, r1, 2, 6, 3, 7);
  const Quad c = __builtin_shufflevector(r2, r3, 0, 4, 1, 5), d = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
  const Quad columns[] = {__builtin_shufflevector(a, c, 0, 1, 4, 5), __builtin_shufflevector(a, c, 2, 3, 6, 7),
                          __builtin_shufflevector(b, d, 0, 1, 4, 5), __builtin_shufflevector(b, d, 2, 3, 6, 7)};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) __builtin_memcpy(out + i * ldo, &columns[i], sizeof(Quad));
}
#endif

// out[c * ldo + r] = in[r * ldi + c] for some rows and columns of `in`; behind its rows come zeros, up to whole vectors
// and one at least.
template <class T, class S>
inline void store_transposed(T* out, int64_t ldo, const S* in, int64_t ldi, int64_t rows, int64_t columns) {
  constexpr int64_t kBand = 64 / sizeof(T), kSide = kSquare<S>;  // a band of rows becomes whole cache lines
  for (int64_t band = 0; band < rows; band += kBand) {
    const int64_t band_end = smaller(band + kBand, rows);
    int64_t c = 0;
    if constexpr (kSide > 0) {
      if (band_end - band == kBand)
        for (; columns - c >= kSide; c += kSide)
#pragma GCC unroll 4
          for (int64_t r = band; r < band + kBand; r += kSide)
            transpose_square<true>(out + c * ldo + r, ldo, in + r * ldi + c, ldi, kSide, kSide);
      for (; columns - c >= kLeastOfSquare; c += kSide)
        for (int64_t r = band; r < band_end; r += kSide)
          transpose_square<false>(out + c * ldo + r, ldo, in + r * ldi + c, ldi, rows - r, columns - c);
    }
    for (; c < columns; ++c)
      for (int64_t r = band; r < band_end; ++r) out[c * ldo + r] = widen(in[r * ldi + c]);
  }
  const int64_t end = larger(round_up(rows, kLanes<T>), kLanes<T>);
  if (rows < end)
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t r = rows; r < end; ++r) out[c * ldo + r] = 0;
}
