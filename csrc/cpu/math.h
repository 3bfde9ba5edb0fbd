// Functions of packs. Largest errors seen over a million numbers from 1e-30 to 100, in float32 and float64, on AVX-512,
// AVX2 and baseline x86: tanh 2.5 units in the last place, sigmoid 2.5 (for x >= -exp_range; 0 below).

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr int exponent_bits = 23;      // where the exponent begins
  static constexpr float magic = 12582912.f + 127;  // 1.5 * 2^23, which rounds to an integer, and the exponent's bias
  static constexpr float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  // Of (exp(r) - 1 - r) / r^2 for |r| <= ln(2)/2, highest power first: least squares, weighted until the largest error
  // relative to exp(r) - 1 is least, 2^-26 here and 2^-55 below.
  static constexpr float series[] = {1.388229165e-3f, 8.36653243e-3f, 4.16672032e-2f, 0.166665435f, 0.5f};
  static constexpr float tanh_is_one = 9.1f;  // beyond it tanh rounds to 1
  static constexpr float exp_range = 87.f;
};
template <>
struct ExpConstants<double> {
  static constexpr int exponent_bits = 52;
  static constexpr double magic = 6755399441055744. + 1023;
  static constexpr double log2e = 1.4426950408889634, ln2_high = 6.93147180369123816490e-01,
                          ln2_low = 1.90821492927058770002e-10;
  static constexpr double series[] = {
      2.5060160014280935e-8,  2.7626211733628812e-7, 2.7557387714298277e-6, 2.4801504758983828e-5,
      1.9841269740690440e-4,  1.3888888932093053e-3, 8.3333333333798659e-3, 4.1666666666574599e-2,
      0.16666666666666603679, 0.50000000000000054584};
  static constexpr double tanh_is_one = 19.1;
  static constexpr double exp_range = 708.;
};

// exp(x) = scale (1 + r + q r^2) for |x| <= exp_range: x = n ln 2 + r, scale = 2^n. Made in place: GCC copies three packs
// that a function returns by way of general registers.
template <class T, int N>
struct ExpParts {
  Pack<T, N> scale, r, q;

  explicit ExpParts(const Pack<T, N>& x) {
    using K = ExpConstants<T>;
    const Pack<T, N> shifted = fma(x, K::log2e, K::magic);  // n and the bias in its low bits
    const Pack<T, N> n = shifted - K::magic;
    r = fma(n, -K::ln2_low, fma(n, -K::ln2_high, x));
    q = fma(r, K::series[0], K::series[1]);
#pragma GCC unroll 16
    for (size_t k = 2; k < sizeof(K::series) / sizeof(T); ++k) q = fma(q, r, K::series[k]);
    scale = pack_of<T, N>([&](int i) { return (Vec<T>)((IntVec<T>)shifted.v[i] << K::exponent_bits); });
  }
};

// tanh(x) = sign(x) e / (e + 2), e = exp(2|x|) - 1, so that small x keep all their digits. NaN stays NaN.
template <class T, int N>
inline Pack<T, N> tanh(const Pack<T, N>& x) {
  const IntVec<T> sign = (IntVec<T>)splat<T>(T(-0.0));
  const ExpParts<T, N> exp(pack_of<T, N>([&](int i) {
    const Vec<T> size = lesser(splat<T>(ExpConstants<T>::tanh_is_one), (Vec<T>)((IntVec<T>)x.v[i] & ~sign));
    return size + size;
  }));
  const Pack<T, N> e = fma(exp.scale, fma(exp.q * exp.r, exp.r, exp.r), exp.scale - 1);
  return pack_of<T, N>([&](int i) {
    const Vec<T> y = e.v[i] / (e.v[i] + 2);
    return (Vec<T>)((IntVec<T>)y | ((IntVec<T>)x.v[i] & sign));
  });
}

// sigmoid(x) = 1 / (1 + exp(-x)). NaN stays NaN.
template <class T, int N>
inline Pack<T, N> sigmoid(const Pack<T, N>& x) {
  constexpr T range = ExpConstants<T>::exp_range;
  const ExpParts<T, N> exp(pack_of<T, N>([&](int i) { return -lesser(splat<T>(range), x.v[i]); }));
  const Pack<T, N> e = exp.scale * fma(fma(exp.q, exp.r, 1), exp.r, 1);
  return pack_of<T, N>([&](int i) {
    const Vec<T> y = reciprocal(e.v[i] + 1);
    return x.v[i] < -range ? Vec<T>{} : y;
  });
}

// NaN stays NaN.
template <class T, int N>
inline Pack<T, N> relu(const Pack<T, N>& x) {
  return pack_of<T, N>([&](int i) { return x.v[i] < Vec<T>{} ? Vec<T>{} : x.v[i]; });
}
// dy where y = relu(x) is above zero, or NaN.
template <class T, int N>
inline Pack<T, N> relu_gradient(const Pack<T, N>& y, const Pack<T, N>& dy) {
  return pack_of<T, N>([&](int i) { return y.v[i] <= Vec<T>{} ? Vec<T>{} : dy.v[i]; });
}
