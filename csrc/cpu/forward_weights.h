// The weights of a layer as forward uses them: packed for this call, packed once and kept for many (args.kept), packed
// piece by piece (pieces.h), or as they lie (dot.h).

template <class S, class Product>
class ForwardWeights {
  using T = Compute<S>;
  using Right = typename Product::Right;
  using W = Weight<Product, S>;
  using L = Layer<S, ForwardArgs>;
  static constexpr int64_t kLane = kLanes<T>;

  struct Packed {  // of one direction
    char* W_ih;    // panels of W_ih^T, gate by gate
    char* W_hh;    // panels of W_hh^T, gate by gate
    char* W_hr;    // panels of W_hr^T
    T* bias;       // [C, Hp]
  };

 public:
  // Takes room in the workspace for what is packed, for each of `workers` where that is piece by piece; or else takes
  // layer l's part of what is kept.
  ForwardWeights(const ForwardArgs& args, const CellFacts& cell, Workspace& w, int64_t workers, int64_t l)
      : args(args), cell(cell), H(args.shape.H), P(args.shape.P), Hp(round_up(H, kLane)),
        widest(widest_input(args.shape)),
        piece_size(args.plan.weights == Weights::in_pieces ? W::piece_bytes(larger(widest, larger(H, P))) : 0) {
    if (args.kept)
      use_kept(l);
    else
      place(w, directions);
    for (int64_t d = 0; d < args.shape.D; ++d) pieces[d] = w.take<char>(workers * piece_size);
  }

  bool packed() const { return args.plan.weights == Weights::packed; }
  const T* bias(int64_t d, int column) const { return directions[d].bias + column * Hp; }

  // What is kept of all layers: its size, and packing it.
  size_t kept_bytes() const { return size_t(args.shape.L) * layer_bytes(); }
  void keep(const Team& team) {
    for (int64_t l = 0; l < args.shape.L; ++l) {
      use_kept(l);
      for (int64_t d = 0; d < args.shape.D; ++d) pack({args, l}, d, team);
    }
  }

  // What the units that a worker has are a multiple of: they are panels of their own, but for what is kept from calls of
  // other plans.
  int64_t unit() const { return args.kept ? Product::kWidth : Product::kUnit; }

  void prepare(const L& layer, const Team& team) {
    if (args.kept) return use_kept(layer.l);
    for (int64_t d = 0; d < args.shape.D; ++d) pack(layer, d, team);
  }

  W W_ih(const L& layer, int64_t d, int g) const {
    return W::gate(g, layer.weights(d).W_ih, directions[d].W_ih, layer.inputs(), H, packed());
  }
  W W_hh(const L& layer, int64_t d, int g) const {
    return W::gate(g, layer.weights(d).W_hh, directions[d].W_hh, P, H, packed());
  }
  W W_hr(const L& layer, int64_t d) const {
    return W::gate(0, layer.weights(d).W_hr, directions[d].W_hr, H, P, packed());
  }

  // C = bias + A W^T, or += A W^T, for some units, W of direction d. Weights that are not packed take no bias.
  template <class Left>
  void multiply(T* out, int64_t ldo, const Left& A, int64_t M, const W& w, Range units, Into into, int64_t d,
                const Team& team, const T* bias = nullptr) const {
    if (w.is_packed) {
      Right whole_vectors = w.packed();
      whole_vectors.N = round_up(w.N, kLane);  // behind the last unit come zeros
      return product(out, ldo, A, M, whole_vectors, Range{units.begin, round_up(units.end, kLane)}, into, bias);
    }
    if constexpr (Product::kOnFloats)
      if (args.plan.weights == Weights::as_they_lie)
        return dot_product(out, ldo, A.data, A.ld, M, w.rows, w.K, w.K, units, into);
    product_in_pieces(out, ldo, A, M, w, units, into, pieces[d] + team.rank * piece_size);
  }

 private:
  // Gives what is packed of a layer its places.
  void place(Workspace& w, Packed* of) const {
    const auto right = [&](int64_t count, int64_t K, int64_t N) {
      return w.take<char>(packed() ? count * Right::bytes(K, N) : 0);
    };
    for (int64_t d = 0; d < args.shape.D; ++d) {
      of[d].W_ih = right(cell.gates, widest, H);
      of[d].W_hh = right(cell.gates, P, H);
      of[d].W_hr = right(args.shape.projected ? 1 : 0, H, P);
      of[d].bias = w.template take<T>(cell.columns * Hp);
    }
  }
  size_t layer_bytes() const {
    Workspace w{nullptr};
    Packed nowhere[2];
    place(w, nowhere);
    return w.used;
  }
  void use_kept(int64_t l) {
    Workspace w{static_cast<char*>(args.kept) + l * layer_bytes()};
    place(w, directions);
  }

  void pack(const L& layer, int64_t d, const Team& team) const {
    if (team.rank == 0) sum_biases<S>(cell, directions[d].bias, Hp, args.shape, layer.weights(d));
    if (!packed()) return;
    for (int g = 0; g < cell.gates; ++g) {
      const bool by_unit = args.plan.split == Split::hidden && !args.kept;
      const Range share = by_unit ? Roles(team, args.plan, args.shape.D).units(d, H, unit())
                                  : share_of_panels<Product>(team, g, cell.gates, H);
      pack_transposed(W_ih(layer, d, g), share);
      pack_transposed(W_hh(layer, d, g), share);
    }
    if (args.shape.projected) pack_transposed(W_hr(layer, d), share_of_panels<Product>(team, 0, 1, P));
  }

  const ForwardArgs& args;
  const CellFacts& cell;
  const int64_t H, P, Hp, widest, piece_size;
  Packed directions[2];
  char* pieces[2];  // [workers, piece_size]: a panel of a weight that is packed where it is used
};
