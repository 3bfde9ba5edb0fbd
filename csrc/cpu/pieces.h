// Products with weights that are used once, so that packing all of them beforehand would not pay: a panel is packed into
// a buffer that stays in a core's cache, and multiplied at once. The sums are those of the packed product, bit for bit.

// Bytes of the buffer for weights of up to K rows, as an operand.
template <class Product>
constexpr int64_t piece_bytes(int64_t K) {
  return round_up(Product::Right::bytes(K, Product::kWidth), 64);
}

// C[M, units of the panels] = or += A[M, K] W[N, K]^T.
template <class Product, class Left, class S>
void product_in_pieces(Compute<S>* C, int64_t ldc, const Left& A, int64_t M, const S* W, int64_t K, int64_t N,
                       Range panels, Into into, char* buffer) {
  for (int64_t p = panels.begin; p < panels.end; ++p) {
    const int64_t n = p * Product::kWidth;
    const auto piece = Product::Right::of(buffer, K, smaller(Product::kWidth, N - n));
    pack_transposed(piece, W + n * K, K, Range{0, 1});
    product(C + n, ldc, A, M, piece, Range{0, 1}, into);
  }
}

// C[M, columns of the panels] = or += A[M, K] W[K, N].
template <class Product, class Left, class S>
void product_of_rows_in_pieces(Compute<S>* C, int64_t ldc, const Left& A, int64_t M, const S* W, int64_t K, int64_t N,
                               Range panels, Into into, char* buffer) {
  if constexpr (Product::kOnFloats && sizeof(S) == sizeof(Compute<S>)) {
    // Whole panels are used as they lie where there are no more rows than a tile has: each is read once.
    const int64_t whole = smaller(panels.end, N / Product::kWidth);
    if (M <= Product::kRowUnit && panels.begin < whole) {
      product(C, ldc, A, M, Panels<S>{const_cast<S*>(W), K, N, false}, Range{panels.begin, whole}, into);
      panels.begin = whole;
    }
  }
  for (int64_t p = panels.begin; p < panels.end; ++p) {
    const int64_t n = p * Product::kWidth;
    const auto piece = Product::Right::of(buffer, K, smaller(Product::kWidth, N - n));
    const auto row = [&](int64_t k, int64_t m, int64_t count) { return load(W + k * N + n + m, count); };
    pack_rows(piece, row, Range{0, 1});
    product(C + n, ldc, A, M, piece, Range{0, 1}, into);
  }
}
