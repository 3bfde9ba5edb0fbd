// Weights as operands. Those that are used once are not packed beforehand: they are used as they lie where they can be,
// else as many columns as a panel has are packed into a buffer that stays in a core's cache, and multiplied at once. The
// sums are those of the packed product, bit for bit.

// Whether numbers are operands as they are stored.
template <class Product, class S>
constexpr bool kStoredAsOperand = Product::kOnFloats && sizeof(S) == sizeof(Compute<S>);

// One gate of a weight. As it lies it is [K, N], or [N, K] where a product is to take its transpose.
template <class Product, class S>
struct Weight {
  using Right = typename Product::Right;
  const S* rows;
  int64_t K, N;
  char* panels;  // where it is packed, if it is
  bool is_packed;

  static Weight gate(int g, const void* all, char* panels, int64_t K, int64_t N, bool is_packed) {
    return {static_cast<const S*>(all) + g * K * N, K, N, panels + g * Right::bytes(K, N), is_packed};
  }
  Right packed() const { return Right::of(panels, K, N); }
  // Bytes of a buffer for a piece of it.
  static constexpr int64_t piece_bytes(int64_t K) { return round_up(Right::bytes(K, Product::kWidth), 64); }
};

template <class Product, class S>
void pack_transposed(const Weight<Product, S>& W, Range some) {
  pack_transposed(W.packed(), W.rows, W.K, some);
}

template <class Product, class S>
void pack_rows(const Weight<Product, S>& W, Range some) {
  pack_rows(W.packed(), [&](int64_t k, int64_t n, int64_t count) { return load(W.rows + k * W.N + n, count); }, some);
}

// C[M, columns] = or += A[M, K] B[K, N], where fill(piece, n) makes the piece of B that begins with column n.
template <class Product, class Left, class Fill>
void multiply_in_pieces(typename Product::T* C, int64_t ldc, const Left& A, int64_t M, int64_t K, Range columns, Into into,
               char* buffer, Fill fill) {
  for (int64_t n = columns.begin; n < columns.end; n += Product::kWidth) {
    const auto piece = Product::Right::of(buffer, K, smaller(Product::kWidth, columns.end - n));
    fill(piece, n);
    product(C + n, ldc, A, M, piece, Range{0, piece.N}, into);
  }
}

// C[M, units] = or += A[M, K] W[N, K]^T.
template <class Left, class Product, class S>
void product_in_pieces(Compute<S>* C, int64_t ldc, const Left& A, int64_t M, const Weight<Product, S>& W, Range units,
                       Into into, char* buffer) {
  multiply_in_pieces<Product>(C, ldc, A, M, W.K, units, into, buffer, [&](const auto& piece, int64_t n) {
    pack_transposed(piece, W.rows + n * W.K, W.K, Range{0, piece.N});
  });
}

// C[M, columns] = or += A[M, K] W[K, N].
template <class Left, class Product, class S>
void product_of_rows_in_pieces(Compute<S>* C, int64_t ldc, const Left& A, int64_t M, const Weight<Product, S>& W,
                               Range columns, Into into, char* buffer) {
  if constexpr (kStoredAsOperand<Product, S>) {
    const int64_t whole = smaller(columns.end, W.N / Product::kWidth * Product::kWidth);
    if (columns.begin < whole) {
      product(C, ldc, A, M, Panels<S>{const_cast<S*>(W.rows), W.K, W.N, false}, Range{columns.begin, whole}, into);
      columns.begin = whole;
    }
  }
  multiply_in_pieces<Product>(C, ldc, A, M, W.K, columns, into, buffer, [&](const auto& piece, int64_t n) {
    const auto row = [&](int64_t k, int64_t m, int64_t count) { return load(W.rows + k * W.N + n + m, count); };
    pack_rows(piece, row, Range{0, piece.N});
  });
}
