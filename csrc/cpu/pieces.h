// Weights as operands. Those that are used once are not packed beforehand: they are used as they lie where they can be,
// else a panel is packed into a buffer that stays in a core's cache, and multiplied at once. The sums are those of the
// packed product, bit for bit.

// One gate of a weight. As it lies it is [K, N], or [N, K] where a product is to take its transpose.
template <class Product, class S>
struct Weight {
  using Right = typename Product::Right;
  const S* rows;
  int64_t K, N;
  char* panels;  // where it is packed, if it is

  static Weight gate(int g, const void* all, char* panels, int64_t K, int64_t N) {
    return {static_cast<const S*>(all) + g * K * N, K, N, panels + g * Right::bytes(K, N)};
  }
  Right packed() const { return Right::of(panels, K, N); }
  Right piece(int64_t p, char* buffer) const {
    return Right::of(buffer, K, smaller(Product::kWidth, N - p * Product::kWidth));
  }
  // Bytes of such a buffer.
  static constexpr int64_t piece_bytes(int64_t K) { return round_up(Right::bytes(K, Product::kWidth), 64); }
};

template <class Product, class S>
void pack_transposed(const Weight<Product, S>& W, Range panels) {
  pack_transposed(W.packed(), W.rows, W.K, panels);
}

template <class Product, class S>
void pack_rows(const Weight<Product, S>& W, Range panels) {
  pack_rows(W.packed(), [&](int64_t k, int64_t n, int64_t count) { return load(W.rows + k * W.N + n, count); }, panels);
}

// The panels of gate g that a worker packs, where each of G gates has `count`. With a split of the units, those of every
// gate that it will use; else an equal share of all.
inline Range panels_to_pack(const Plan& plan, const Team& team, int g, int G, int64_t count) {
  if (plan.split == Split::hidden) return team.part(count);
  const Range all = team.part(G * count);
  return {all.begin > g * count ? all.begin - g * count : 0, smaller(all.end - g * count, count)};
}

// C[M, units of the panels] = or += A[M, K] W[N, K]^T.
template <class Left, class Product, class S>
void product_in_pieces(Compute<S>* C, int64_t ldc, const Left& A, int64_t M, const Weight<Product, S>& W, Range panels,
                       Into into, char* buffer) {
  for (int64_t p = panels.begin; p < panels.end; ++p) {
    const int64_t n = p * Product::kWidth;
    const auto piece = W.piece(p, buffer);
    pack_transposed(piece, W.rows + n * W.K, W.K, Range{0, 1});
    product(C + n, ldc, A, M, piece, Range{0, 1}, into);
  }
}

// C[M, columns of the panels] = or += A[M, K] W[K, N].
template <class Left, class Product, class S>
void product_of_rows_in_pieces(Compute<S>* C, int64_t ldc, const Left& A, int64_t M, const Weight<Product, S>& W,
                               Range panels, Into into, char* buffer) {
  if constexpr (Product::kOnFloats && sizeof(S) == sizeof(Compute<S>)) {
    const int64_t whole = smaller(panels.end, W.N / Product::kWidth);
    if (panels.begin < whole) {
      product(C, ldc, A, M, Panels<S>{const_cast<S*>(W.rows), W.K, W.N, false}, Range{panels.begin, whole}, into);
      panels.begin = whole;
    }
  }
  for (int64_t p = panels.begin; p < panels.end; ++p) {
    const int64_t n = p * Product::kWidth;
    const auto piece = W.piece(p, buffer);
    const auto row = [&](int64_t k, int64_t m, int64_t count) { return load(W.rows + k * W.N + n + m, count); };
    pack_rows(piece, row, Range{0, 1});
    product(C + n, ldc, A, M, piece, Range{0, 1}, into);
  }
}
