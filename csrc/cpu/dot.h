// Products with the transpose of a weight as it lies, by dot products: for few rows, where packing would cost as much
// as it saves.
//
// Lanes run over k, so the bits differ from those of product(). But they too depend on an element's own row of A and
// row of W alone: one chain of fma a lane, in the order of k, and one tree over the lanes, whatever the tile.

#if defined(RNN_EXT_AVX512) || defined(__aarch64__)
constexpr int kDotSums = 16;  // of 32 registers
#else
constexpr int kDotSums = 8;  // of 16 registers
#endif

// Of the blocks of `w` lanes of x and then y, each two neighbours become one, their sum.
template <int... lane>
struct Lanes {
  template <int w, class V>
  static V fold(V x, V y) {
    return __builtin_shufflevector(x, y, (lane / w * 2 * w + lane % w)...) +
           __builtin_shufflevector(x, y, (lane / w * 2 * w + lane % w + w)...);
  }
};
inline auto lanes_of(VecF) {
  if constexpr (kLanes<float> == 16)
    return Lanes<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>{};
  else if constexpr (kLanes<float> == 8)
    return Lanes<0, 1, 2, 3, 4, 5, 6, 7>{};
  else
    return Lanes<0, 1, 2, 3>{};
}
inline auto lanes_of(VecD) {
  if constexpr (kLanes<double> == 8)
    return Lanes<0, 1, 2, 3, 4, 5, 6, 7>{};
  else if constexpr (kLanes<double> == 4)
    return Lanes<0, 1, 2, 3>{};
  else
    return Lanes<0, 1>{};
}

// Lane i of the result is the sum of the lanes of v[i], of `count` vectors; the sum of l and l + count / 2 comes first.
template <int count, class V>
inline V sums_of_lanes(const V* v) {
  if constexpr (count == 1) {
    return *v;
  } else {
    V half[count / 2];
#pragma GCC unroll 8
    for (int i = 0; i < count / 2; ++i)
      half[i] = decltype(lanes_of(V{}))::template fold<count / 2>(v[2 * i], v[2 * i + 1]);
    return sums_of_lanes<count / 2>(half);
  }
}

// C[M, n] = or += A[M, K] W[n, K]^T for n <= kDotSums / M (of 3 rows as of 4).
template <class T, int M, class S>
inline void dot_tile(T* C, int64_t ldc, const T* A, int64_t lda, const S* W, int64_t ldw, int64_t K, int64_t n,
                     Into into) {
  constexpr int N = kDotSums / (M == 3 ? 4 : M), L = kLanes<T>;
  Vec<T> sum[kDotSums] = {};
  const S* w[N];
  for (int i = 0; i < N; ++i) w[i] = W + (i < n ? i : n - 1) * ldw;
  const auto add = [&](auto load_a, auto load_w) __attribute__((always_inline)) {
    Vec<T> b[N];
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      b[i] = load_w(w[i]);
      if constexpr (M > 1) stay_in_register(b[i]);
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const Vec<T> a = load_a(A + m * lda);
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) sum[m * N + i] = fma(a, b[i], sum[m * N + i]);
    }
  };
  int64_t k = 0;
  for (; k + L <= K; k += L)
    add([&](const T* a) { return load(a + k); }, [&](const S* b) { return load(b + k); });
  if (k < K) add([&](const T* a) { return load(a + k, K - k); }, [&](const S* b) { return load(b + k, K - k); });
  T result[kDotSums];
#pragma GCC unroll 8
  for (int i = 0; i < kDotSums; i += L) store(result + i, sums_of_lanes<L>(sum + i));
  for (int m = 0; m < M; ++m, C += ldc) {
    if (n == N) {
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) C[i] = into == Into::add ? C[i] + result[m * N + i] : result[m * N + i];
    } else {
      for (int64_t i = 0; i < n; ++i) C[i] = into == Into::add ? C[i] + result[m * N + i] : result[m * N + i];
    }
  }
}

template <int M, class T, class S>
void dot_product_of_rows(T* C, int64_t ldc, const T* A, int64_t lda, int64_t rows, const S* W, int64_t ldw, int64_t K,
                         Range units, Into into) {
  constexpr int N = kDotSums / (M == 3 ? 4 : M);
  for (int64_t n = units.begin; n < units.end; n += N)
    for (int64_t m = 0; m < rows; m += M)
      dot_tile<T, M>(C + m * ldc + n, ldc, A + m * lda, lda, W + n * ldw, ldw, K, smaller(N, units.end - n), into);
}

// C[M, units] = or += A[M, K] W[units, K]^T.
template <class T, class S>
void dot_product(T* C, int64_t ldc, const T* A, int64_t lda, int64_t M, const S* W, int64_t ldw, int64_t K, Range units,
                 Into into) {
  constexpr int64_t kRows = 4;
  const int64_t whole = M / kRows * kRows;
  if (whole > 0) dot_product_of_rows<kRows>(C, ldc, A, lda, whole, W, ldw, K, units, into);
  C += whole * ldc, A += whole * lda, M -= whole;
  if (M == 1) dot_product_of_rows<1>(C, ldc, A, lda, 1, W, ldw, K, units, into);
  if (M == 2) dot_product_of_rows<2>(C, ldc, A, lda, 2, W, ldw, K, units, into);
  if (M == 3) dot_product_of_rows<3>(C, ldc, A, lda, 3, W, ldw, K, units, into);
}
