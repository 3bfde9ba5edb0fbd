// N vectors of hidden units side by side: what a cell computes on. A cell is one long chain of operations; those of
// several vectors, operation by operation in turn, fill the time in which one would wait for its own results.

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

// The first n numbers at p; the last vector may be a part of one, the others are whole.
template <int N, class S>
inline Pack<Compute<S>, N> load_pack(const S* p, int64_t n) {
  constexpr int kLane = kLanes<Compute<S>>;
  return pack_of<Compute<S>, N>([&](int i) { return i < N - 1 ? load(p + i * kLane) : load(p + i * kLane, n - i * kLane); });
}
template <int N, class S>
inline Pack<Compute<S>, N> load_pack(const S* p) {
  return pack_of<Compute<S>, N>([&](int i) { return load(p + i * kLanes<Compute<S>>); });
}

// Calls act(i, j, n) for each vector of a pack of which n numbers are wanted: it begins at j, and n are left there.
template <class T, int N, class Act>
inline void for_vectors_of(int64_t j, int64_t n, Act act) {
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) act(i, j + i * kLanes<T>, n - i * kLanes<T>);
}

// Calls act(Size<n>, j) for the units [begin, end), n vectors of them at a time: N while there are so many, then fewer.
template <int N>
struct Size {
  static constexpr int value = N;
};
template <class T, int N, class Act>
inline void in_packs(int64_t begin, int64_t end, Act act) {
  for (; begin + (N - 1) * kLanes<T> < end; begin += N * kLanes<T>) act(Size<N>{}, begin);
  if constexpr (N > 1) in_packs<T, N / 2>(begin, end, act);
}
