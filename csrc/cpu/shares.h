// Who of a team does what, and has which sequences, units and panels.

// Loops and large products run at the same time: while a chunk is in its time loop, the products of a neighbouring
// one are computed, but for forward where each worker has them for itself (projects_own_input). Where the loop cannot use
// all workers, one takes the loop and the others the products; that one its share of them, too, behind its loop, where they
// take much longer (mostly_products in layer.h).
struct Roles {
  Team loop;       // divides the time loop as the plan says; size 0 for a worker that has no part in it
  Team products;   // size 0 likewise
  int64_t first_direction, directions;  // those whose loop this worker takes part in

  Roles(const Team& all, const Plan& plan, int64_t D, bool mostly_products = false)
      : loop(all), products(all), first_direction(0), directions(D) {
    if (all.size == 1) return;
    if (plan.split_directions) {
      loop = all.half();
      first_direction = all.half_of();
      directions = 1;
    }
    if (plan.split == Split::none && loop.size > 1) {
      if (loop.rank > 0) loop.size = 0;
      else loop.size = 1;
      if (!plan.split_directions && !mostly_products) {
        if (all.rank == 0) products.size = 0;
        else products = Team{all.rank - 1, all.size - 1, all.barrier + 3};
      }
    }
  }

  // The units, of H, that this worker has in the time loop of direction d where they are split among the workers, who
  // keep them as panels of their own.
  Range units(int64_t d, int64_t H, int64_t unit) const {
    const bool mine = d >= first_direction && d < first_direction + directions;
    return mine ? Range(loop.part(H, unit)) : Range{0, 0};
  }
};

// The sequences of a worker at some steps, where they are split among workers. Those of a packed batch end at different
// steps, the longest first: there each worker has as many rows of these steps as the others. Where there are tiles to fill,
// unequal shares are whole ones, and of less than two a worker equal.
template <class Product>
Range sequences_of(const Team& team, const Sequences& seq, Range times) {
  const bool equal = !team.paces || seq.B < 2 * Product::kSequenceUnit * team.size;
  const int64_t unit = equal ? 1 : Product::kSequenceUnit;
  const Team shares{team.rank, team.size, nullptr, equal ? nullptr : team.paces};
  if (!seq.batch_sizes || team.size == 1) return shares.part(seq.B, unit);
  // The least number of sequences that have so many rows, in whole units.
  const auto with_rows = [&](int64_t wanted) {
    Range among{0, seq.B};
    while (among.size() > 0) {
      const int64_t middle = (among.begin + among.end) / 2;
      int64_t rows = 0;
      for (int64_t t = times.begin; t < times.end; ++t) rows += smaller(middle, seq.batch_sizes[t]);
      if (rows < wanted) among.begin = middle + 1;
      else among.end = middle;
    }
    return smaller((among.begin + unit / 2) / unit * unit, seq.B);
  };
  const Range rows = shares.part(seq.first_rows[times.end] - seq.first_rows[times.begin]);
  return {with_rows(rows.begin), team.rank + 1 == team.size ? seq.B : with_rows(rows.end)};
}

// Shares of a batch split that follow how long each worker took for its last one: cores differ, and others may be at work
// on them. A worker then has other sequences than before; no result depends on who computes it.
struct Balance {
  Team team;  // shares work out so

  Balance(const Team& all, const Plan& plan, Pace* paces) : team(all) {
    if (!follows(plan) || all.size == 1) return;
    const double equal = 1.0 / all.size;
    team.paces = paces;
    paces[team.rank] = {team.rank * equal, equal, 0, 0};
    if (team.rank == 0) paces[team.size] = {1, 0, 0, 0};
    since = ticks();
  }

  static bool follows(const Plan& plan) { return plan.split == Split::batch && !plan.split_directions; }
  static int64_t paces(const Plan& plan) { return follows(plan) ? plan.threads + 1 : 0; }

  // Waits until all are done with what was shared out equally, and so tells nothing of their pace.
  void start() {
    if (!team.paces) return team.wait();
    team.barrier->wait(team.size);
    since = ticks();
  }

  // Waits until all have done their shares; from then on these may be others.
  void wait() {
    if (!team.paces) return team.wait();
    Pace& mine = team.paces[team.rank];
    mine.busy = ticks() - since - mine.idle;
    team.barrier->wait(team.size, [this] { share_by_pace(team.paces, team.size); });
    mine.idle = 0;
    since = ticks();
  }

 private:
  int64_t since = 0;
};

// Whether each worker projects the input that its own time loop reads, just before it: where it has a loop to itself.
inline bool projects_own_input(const Plan& plan, int workers) {
  return workers == 1 || plan.split == Split::batch || (plan.split_directions && workers == 2);
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

// How far apart lies what workers write in every step, where that pays, in bytes: a core that reads one cache line after the
// other fetches some ahead, and so would take away what another one works on.
constexpr int64_t kApart = 2048;

// Numbers [rows, columns, Hp] that the time loop works on: that of unit j at at[row * of the row + column * of the column +
// j]. Where units are split, each worker's part lies in one piece; where sequences are, its rows do.
template <class T>
struct Own {
  static constexpr int64_t kBetween = kApart / int64_t(sizeof(T));  // the rows of two workers

  T* at;
  int64_t row, column;

  Own(T* all, int64_t rows, int64_t columns, Range units, const Team& loop)
      : row(padded_stride<T>(columns * round_up(units.size(), kLanes<T>))), column(round_up(units.size(), kLanes<T>)) {
    const int64_t before = units.begin > 0 ? columns * units.begin + loop.rank * kPadding : 0;
    at = all + rows * before - units.begin;
  }
  // From row r on, behind the rows of so many workers.
  Own from(int64_t r, int64_t workers = 0) const {
    Own later = *this;
    later.at += r * row + workers * kBetween;
    return later;
  }
  void copy(int64_t r, const Own& from) const { __builtin_memcpy(at + r * row, from.at + r * row, row * sizeof(T)); }

  // How many numbers it takes for all workers.
  static int64_t size(int64_t rows, int64_t columns, int64_t Hp, const Plan& plan) {
    if (plan.split == Split::hidden) return rows * (columns * Hp + plan.threads * kPadding);
    return rows * padded_stride<T>(columns * Hp) + (plan.split == Split::batch ? plan.threads * kBetween : 0);
  }

 private:
  static constexpr int64_t kPadding = 64 / int64_t(sizeof(T));  // at least what padded_stride adds
};

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
