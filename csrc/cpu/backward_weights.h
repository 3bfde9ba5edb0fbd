// The weights of a layer as backward uses them: packed for this call, or packed piece by piece or used as they lie
// (pieces.h).

template <class S, class Product>
class BackwardWeights {
  using T = Compute<S>;
  using Right = typename Product::Right;
  using W = Weight<Product, S>;
  using L = Layer<S, BackwardArgs>;

  struct Packed {  // of one direction
    char* W_ih;    // panels of W_ih, gate by gate
    char* W_hh;    // panels of W_hh, gate by gate
    char* W_hr;    // panels of W_hr
  };

 public:
  // Takes room in the workspace for what is packed, for each of `workers` where that is piece by piece.
  BackwardWeights(const BackwardArgs& args, const CellFacts& cell, Workspace& w, int64_t workers)
      : args(args), cell(cell), H(args.shape.H), P(args.shape.P), packed(args.plan.weights == Weights::packed),
        packs_ih(packed && !(kStoredAsOperand<Product, S> && W_ih_serves_as_it_lies())),
        packs_hh(packed && (args.seq.T > 1 || args.dh_0) && !W_hh_serves_as_it_lies()) {
    const Shape& s = args.shape;
    const bool ih_lies = (!args.dx || whole_panels(s.I)) && (s.L == 1 || whole_panels(s.D * P));
    const bool hh_lies = whole_panels(P) && (!s.projected || whole_panels(H));
    piece_size = (packs_ih || ih_lies) && (packed || hh_lies) ? 0 : W::piece_bytes(larger(H, P));
    const auto right = [&](bool packs, int64_t count, int64_t K, int64_t N) {
      return w.take<char>(packs ? count * Right::bytes(K, N) : 0);
    };
    for (int64_t d = 0; d < s.D; ++d) {
      directions[d].W_ih = right(packs_ih && (args.dx || s.L > 1), cell.gates, H, widest_input(s));
      directions[d].W_hh = right(packs_hh, cell.gates, H, P);
      directions[d].W_hr = right(packed && s.projected, 1, P, H);
      pieces[d] = w.take<char>(workers * piece_size);
    }
  }

  // Packs what a direction of a layer needs; with_dx: whether anybody wants the gradient of its input.
  void pack(const L& layer, int64_t d, bool with_dx, const Team& team) const {
    const int64_t I = layer.inputs();
    for (int g = 0; g < cell.gates; ++g) {
      if (with_dx && packs_ih)
        pack_rows(W_ih(layer, d, g), shares_columns(I, team) ? team.part(I, Product::kUnit)
                                                             : share_of_panels<Product>(team, g, cell.gates, I));
      if (packs_hh)
        pack_rows(W_hh(layer, d, g), args.plan.split == Split::hidden
                                         ? Roles(team, args.plan, args.shape.D).units(d, P, Product::kUnit)
                                         : share_of_panels<Product>(team, g, cell.gates, P));
    }
    if (packed && args.shape.projected) pack_rows(W_hr(layer, d), share_of_panels<Product>(team, 0, 1, H));
  }

  // Whether workers divide the N columns of an input gradient rather than its rows.
  bool shares_columns(int64_t N, const Team& team) const {
    return args.plan.split == Split::hidden && panel_count<Product>(N) >= team.size;
  }

  W W_ih(const L& layer, int64_t d, int g) const {
    return W::gate(g, layer.weights(d).W_ih, directions[d].W_ih, H, layer.inputs(), packs_ih);
  }
  W W_hh(const L& layer, int64_t d, int g) const {
    return W::gate(g, layer.weights(d).W_hh, directions[d].W_hh, H, P, packs_hh);
  }
  W W_hr(const L& layer, int64_t d) const {
    return W::gate(0, layer.weights(d).W_hr, directions[d].W_hr, P, H, packed);
  }

  // C = or += A W for some columns, W of direction d.
  template <class Left>
  void multiply(T* out, int64_t ldo, const Left& A, int64_t M, const W& w, Range columns, Into into, int64_t d,
                const Team& team) const {
    if (w.is_packed) return product(out, ldo, A, M, w.packed(), columns, into);
    product_of_rows_in_pieces(out, ldo, A, M, w, columns, into, pieces[d] + team.rank * piece_size);
  }

 private:
  // Rows of weights may be the right side of a product where they lie, whole panels of them at least.
  static bool whole_panels(int64_t columns) { return kStoredAsOperand<Product, S> && columns % Product::kWidth == 0; }
  // As fast, since a panel serves many rows, unless narrow panels lie far apart; or packing it would take more memory than
  // the input's gradient does.
  bool W_ih_serves_as_it_lies() const {
    return widest_input(args.shape) * int64_t(sizeof(S)) <= kLyingRowBytes || args.seq.R < cell.gates * H;
  }
  // As fast if it stays in a core's cache.
  bool W_hh_serves_as_it_lies() const {
    return whole_panels(P) && cell.gates * H * P * int64_t(sizeof(S)) <= kCachedWeights;
  }
  static constexpr int64_t kCachedWeights = 768 * 1024;

  const BackwardArgs& args;
  const CellFacts& cell;
  const int64_t H, P;
  const bool packed, packs_ih, packs_hh;
  int64_t piece_size;
  Packed directions[2];
  char* pieces[2];  // [workers, piece_size]: a panel of a weight that is packed where it is used
};
