// Who of a team has which sequences, units and panels.

// Where sequences are split among workers. A packed batch is dealt out in turn: its sequences end at different steps, the
// longest first, and at every step each worker should have as many as the others.
template <class Product>
Part sequences_of(const Team& team, const Sequences& seq) {
  if (seq.batch_sizes && Product::kAnyRows) return {team.rank, team.size, seq.B};
  const Range part = team.part(seq.B);
  return {part.begin, 1, part.end};
}

template <class Product>
constexpr int64_t panel_count(int64_t columns) {
  return (columns + Product::kWidth - 1) / Product::kWidth;
}

// The columns, of N, that a worker packs of gate g where it will multiply with all of them: an equal share of the panels
// of G gates.
template <class Product>
Range share_of_panels(const Team& team, int g, int G, int64_t N) {
  const int64_t count = panel_count<Product>(N);
  const Range all = team.part(G * count);
  return {all.begin > g * count ? (all.begin - g * count) * Product::kWidth : 0,
          smaller((all.end - g * count) * Product::kWidth, N)};
}

// The units that a worker has, in groups of so many panels side by side.
template <class Product>
struct Groups {
  Range units;
  int64_t panels;

  int64_t count() const { return (panel_count<Product>(units.size()) + panels - 1) / panels; }
  Range operator[](int64_t i) const {
    const int64_t begin = units.begin + i * panels * Product::kWidth;
    return {begin, smaller(begin + panels * Product::kWidth, units.end)};
  }
};

// The units, of H, that one of all workers has in the time loop of direction d where they are split among the workers,
// who keep them as panels of their own. A worker alone has all, whatever was planned.
inline Range units_in_loop(const Plan& plan, const Team& all, int64_t d, int64_t H, int64_t unit) {
  if (!plan.split_directions || all.size == 1) return all.part(H, unit);
  return all.half_of() == d ? Range(all.half().part(H, unit)) : Range{0, 0};
}
