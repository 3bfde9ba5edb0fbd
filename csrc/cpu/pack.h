// N vectors, of hidden units or (by_sequence.h) of sequences: what a cell computes on. A cell is one long chain of
// operations; those of several vectors, operation by operation in turn, fill the time in which one would wait for its own
// results.

// As many as leave enough registers: four of the cell of RNN, two of those with several gates (benchmarks/NOTES.md).
template <class Cell>
constexpr int kTogether = Cell::columns == 1 ? 4 : 2;

struct True {
  constexpr operator bool() const { return true; }
};
struct False {
  constexpr operator bool() const { return false; }
};

template <class T, int N>
struct Pack {
  Vec<T> v[N];
};

template <class T, int N, class Act>
inline Pack<T, N> pack_of(Act act) {
  Pack<T, N> pack;
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) pack.v[i] = act(i);
  return pack;
}

template <int N>
struct Count {
  static constexpr int value = N;
};
// Calls act(Count, m) for `count` numbers m from 0 on: N of them at once while there are so many, then fewer.
template <int N, class Act>
inline void in_groups(int64_t count, Act act, int64_t m = 0) {
  for (; m + N <= count; m += N) act(Count<N>{}, m);
  if constexpr (N > 1)
    if (m < count) in_groups<N / 2>(count, act, m);
}

#define RNN_EXT_OPERATOR(op)                                              \
  template <class T, int N>                                               \
  inline Pack<T, N> operator op(const Pack<T, N>& a, const Pack<T, N>& b) { \
    return pack_of<T, N>([&](int i) { return a.v[i] op b.v[i]; });        \
  }                                                                       \
  template <class T, int N>                                               \
  inline Pack<T, N> operator op(const Pack<T, N>& a, double b) {          \
    return pack_of<T, N>([&](int i) { return a.v[i] op T(b); });          \
  }                                                                       \
  template <class T, int N>                                               \
  inline Pack<T, N> operator op(double a, const Pack<T, N>& b) {          \
    return pack_of<T, N>([&](int i) { return T(a) op b.v[i]; });          \
  }
RNN_EXT_OPERATOR(+)
RNN_EXT_OPERATOR(-)
RNN_EXT_OPERATOR(*)
#undef RNN_EXT_OPERATOR

template <class T>
inline Vec<T> nth(double x, int) {
  return splat<T>(T(x));
}
template <class T, int N>
inline Vec<T> nth(const Pack<T, N>& x, int i) {
  return x.v[i];
}
// a*b + c, where b and c are packs or numbers.
template <class T, int N, class B, class C>
inline Pack<T, N> fma(const Pack<T, N>& a, const B& b, const C& c) {
  return pack_of<T, N>([&](int i) { return fma(a.v[i], nth<T>(b, i), nth<T>(c, i)); });
}

// Where the vectors of a pack lie in rows of units: W side by side in each of N / W rows, the first at row b and unit j.
// Unless they are whole vectors, the units end at `end`.
template <class T, int N, int W, bool kWhole>
struct Place {
  static constexpr int vectors = N;
  int64_t b, j, end;
  int64_t row(int i) const { return b + i / W; }
  int64_t unit(int i) const { return j + i % W * kLanes<T>; }
  int64_t left(int i) const { return kWhole ? kLanes<T> : end - unit(i); }
};

// Calls act(i) for the vectors of a pack.
template <int N, class Act>
inline void for_vectors_of(Act act) {
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) act(i);
}

// p[rows, units]: its rows are ld numbers apart.
template <class T, int N, int W, bool kWhole, class S>
inline Pack<T, N> load_pack(const Place<T, N, W, kWhole>& at, const S* p, int64_t ld) {
  return pack_of<T, N>([&](int i) { return load(p + at.row(i) * ld + at.unit(i), at.left(i)); });
}

// Calls act(Place) until all rows and every unit of [begin, end) have been in a pack: N vectors of a row while there are so
// many, and of what is left of the units one vector of each of N rows.
template <class T, int N, class Act>
inline void in_packs(Range rows, int64_t begin, int64_t end, Act act) {
  constexpr int64_t kLane = kLanes<T>;
  const int64_t packs_end = begin + (end - begin) / (N * kLane) * (N * kLane);
  for (int64_t r = rows.begin; r < rows.end; ++r)
    for (int64_t j = begin; j < packs_end; j += N * kLane) act(Place<T, N, N, true>{r, j, end});
  for (int64_t j = packs_end; j < end; j += kLane) {
    const auto vectors_of_rows = [&](auto whole) {
      int64_t r = rows.begin;
      for (; r + N <= rows.end; r += N) act(Place<T, N, 1, whole>{r, j, end});
      for (; r < rows.end; ++r) act(Place<T, 1, 1, whole>{r, j, end});
    };
    if (j + kLane <= end)
      vectors_of_rows(True{});
    else
      vectors_of_rows(False{});
  }
}
