// Vectors of the instruction set that this file is compiled for: GCC/Clang vector extensions, which bring
// + - * / comparisons and ?:, and the few operations that these lack. Included inside the namespace of the
// instruction set. `Vec<float>` has kLanes<float> lanes. CMake defines RNN_EXT_AVX512 for the sets that have it.

#if defined(RNN_EXT_AVX512) && defined(RNN_EXT_EMULATE_AVX512)
#include "emulated_avx512.h"
#endif

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

#if defined(RNN_EXT_AVX512)
constexpr int kVectorBytes = 64;
constexpr int kPanelVectors = 4, kTileRows = 6;  // 24 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kPanelVectors = 2, kTileRows = 6;  // 12 accumulators of 16 registers
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kPanelVectors = 4, kTileRows = 6;  // 24 accumulators of 32 registers
#else
constexpr int kVectorBytes = 16;
constexpr int kPanelVectors = 2, kTileRows = 5;  // 10 accumulators of 16 registers, and room for the product
#endif

template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

template <class T>
struct VecType;
template <>
struct VecType<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t int_type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VecType<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t int_type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VecType<T>::type;
template <class T>
using IntVec = typename VecType<T>::int_type;
using VecF = Vec<float>;
using VecD = Vec<double>;

template <class T>
inline Vec<T> splat(T x) {
  return x - Vec<T>{};  // x + 0 would lose the sign of -0
}

// Makes the compiler load v once: it would read from memory again for every use, if there are not many.
template <class V>
RNN_EXT_INLINE void stay_in_register(V& v) {
#if defined(RNN_EXT_EMULATE_AVX512) && defined(RNN_EXT_AVX512)
  (void)v;  // no register holds it
#elif defined(RNN_EXT_AVX512)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}

// a*b + c, rounded once where the hardware can.
#if defined(RNN_EXT_AVX512)
inline VecF fma(VecF a, VecF b, VecF c) { return (VecF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
inline VecD fma(VecD a, VecD b, VecD c) { return (VecD)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
#elif defined(__AVX2__)
inline VecF fma(VecF a, VecF b, VecF c) { return (VecF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
inline VecD fma(VecD a, VecD b, VecD c) { return (VecD)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
#elif defined(__aarch64__)
inline VecF fma(VecF a, VecF b, VecF c) { return (VecF)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
inline VecD fma(VecD a, VecD b, VecD c) { return (VecD)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
#else
inline VecF fma(VecF a, VecF b, VecF c) { return a * b + c; }
inline VecD fma(VecD a, VecD b, VecD c) { return a * b + c; }
#endif

// 1 / b for finite b that is neither tiny nor huge. A division of 16 lanes is slow: better an estimate, corrected.
#if defined(RNN_EXT_AVX512)
inline VecF reciprocal(VecF b) {
  const VecF estimate = (VecF)_mm512_maskz_rcp14_ps(0xffff, (__m512)b);
  return fma(estimate, fma(-b, estimate, splat(1.f)), estimate);
}
inline VecD reciprocal(VecD b) { return 1 / b; }
#else
template <class V>
inline V reciprocal(V b) {
  return 1 / b;
}
#endif

// The lesser of two, the second where one is NaN.
#if defined(RNN_EXT_AVX512)
inline VecF lesser(VecF a, VecF b) { return (VecF)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b); }
inline VecD lesser(VecD a, VecD b) { return (VecD)_mm512_maskz_min_pd(0xff, (__m512d)a, (__m512d)b); }
#elif defined(__AVX2__)
inline VecF lesser(VecF a, VecF b) { return (VecF)_mm256_min_ps((__m256)a, (__m256)b); }
inline VecD lesser(VecD a, VecD b) { return (VecD)_mm256_min_pd((__m256d)a, (__m256d)b); }
#elif defined(__x86_64__)
inline VecF lesser(VecF a, VecF b) { return (VecF)_mm_min_ps((__m128)a, (__m128)b); }
inline VecD lesser(VecD a, VecD b) { return (VecD)_mm_min_pd((__m128d)a, (__m128d)b); }
#else
template <class V>
inline V lesser(V a, V b) {
  return a < b ? a : b;
}
#endif

// bfloat16 and float16 are storage only: they become float when loaded.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};
template <class S>
concept Half = sizeof(S) == 2;
template <class S>
constexpr bool kIsBfloat16 = false;
template <>
constexpr bool kIsBfloat16<bfloat16> = true;

template <class S>
struct ComputeType {
  using type = S;
};
template <Half S>
struct ComputeType<S> {
  using type = float;
};
template <class S>
using Compute = typename ComputeType<S>::type;

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(bfloat16 x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }
#if defined(__F16C__)
inline float widen(float16 x) { return _cvtsh_ss(x.bits); }
#else
// The float of the float16 in the lower half of each lane, and back, rounded to nearest even. F and U are numbers or
// vectors of them. What has no exponent, below 2^-14, is a multiple of 2^-24, the unit in the last place of one half.
template <class F, class U>
inline F float_of_half(U bits) {
  const U size = bits & 0x7fff, half = U{} + 0x3f000000;
  const U tiny = __builtin_bit_cast(U, __builtin_bit_cast(F, half + size) - __builtin_bit_cast(F, half));
  const U finite = size < 0x400 ? tiny : (size << 13) + 0x38000000;
  return __builtin_bit_cast(F, (size < 0x7c00 ? finite : size << 13 | 0x7f800000) | (bits & 0x8000) << 16);
}
template <class F, class U>
inline U half_of_float(F x) {
  const U bits = __builtin_bit_cast(U, x), size = bits & 0x7fffffff, half = U{} + 0x3f000000;
  const U tiny = __builtin_bit_cast(U, __builtin_bit_cast(F, size) + __builtin_bit_cast(F, half)) - half;
  const U finite = size < 0x38800000 ? tiny : (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
  const U infinity = U{} + 0x7c00, nan = U{} + 0x7e00;
  return (size < 0x47800000 ? finite : size > 0x7f800000 ? nan : infinity) | (bits >> 16 & 0x8000);
}
inline float widen(float16 x) { return float_of_half<float>(uint32_t(x.bits)); }
#endif

// A vector from or to memory that may be unaligned. The second form touches only the first n lanes (0 < n) and
// loads zeros into the others, so that a tail takes the same arithmetic as a full vector.
template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
inline void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

#if defined(RNN_EXT_AVX512)
inline __mmask16 first_lanes(int64_t n) { return (__mmask16)((1u << n) - 1); }
inline VecF load(const float* p, int64_t n) {
  return n >= 16 ? load(p) : (VecF)_mm512_maskz_loadu_ps(first_lanes(n), p);
}
inline VecD load(const double* p, int64_t n) {
  return n >= 8 ? load(p) : (VecD)_mm512_maskz_loadu_pd((__mmask8)first_lanes(n), p);
}
inline void store(float* p, VecF v, int64_t n) {
  if (n >= 16)
    store(p, v);
  else
    _mm512_mask_storeu_ps(p, first_lanes(n), (__m512)v);
}
inline void store(double* p, VecD v, int64_t n) {
  if (n >= 8)
    store(p, v);
  else
    _mm512_mask_storeu_pd(p, (__mmask8)first_lanes(n), (__m512d)v);
}
#elif defined(__AVX2__)
inline __m256i first_lanes(int64_t n) {  // of 32 bits each
  static constexpr int32_t ones[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256((const __m256i*)(ones + 8 - n));
}
inline VecF load(const float* p, int64_t n) {
  return n >= 8 ? load(p) : (VecF)_mm256_maskload_ps(p, first_lanes(n));
}
inline VecD load(const double* p, int64_t n) {
  return n >= 4 ? load(p) : (VecD)_mm256_maskload_pd(p, first_lanes(2 * n));
}
// In pieces, each half of the one before: a masked store is slow on AMD.
inline void store(float* p, VecF v, int64_t n) {
  if (n >= 8) return store(p, v);
  __m128 four = _mm256_castps256_ps128((__m256)v);
  if (n & 4) {
    _mm_storeu_ps(p, four);
    four = _mm256_extractf128_ps((__m256)v, 1);
    p += 4;
  }
  if (n & 2) {
    _mm_storel_pi((__m64*)p, four);
    four = _mm_movehl_ps(four, four);
    p += 2;
  }
  if (n & 1) _mm_store_ss(p, four);
}
inline void store(double* p, VecD v, int64_t n) { store(reinterpret_cast<float*>(p), (VecF)v, 2 * n); }
#else
template <class T>
inline Vec<T> load(const T* p, int64_t n) {
  if (n >= kLanes<T>) return load(p);
  T lanes[kLanes<T>] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
template <class T>
inline void store(T* p, Vec<T> v, int64_t n) {
  if (n >= kLanes<T>) return store(p, v);
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}
#endif

typedef uint16_t VecU16 __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t VecU32 __attribute__((vector_size(kVectorBytes)));

inline VecF load(const bfloat16* p) {
  VecU16 bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return (VecF)(__builtin_convertvector(bits, VecU32) << 16);
}
inline void store(bfloat16* p, VecF v) {  // round to nearest even; NaN keeps a quiet NaN
  const VecU32 u = (VecU32)v;
  const VecU32 rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  const VecU32 nan = VecU32{} + 0x7fc0;
  const VecU16 bits = __builtin_convertvector(v == v ? rounded : nan, VecU16);
  __builtin_memcpy(p, &bits, sizeof bits);
}
#if defined(RNN_EXT_AVX512)
inline VecF load(const float16* p) { return (VecF)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline void store(float16* p, VecF v) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
inline VecF load(const float16* p) { return (VecF)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
inline void store(float16* p, VecF v) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#else
inline VecF load(const float16* p) {
  VecU16 bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return float_of_half<VecF>(__builtin_convertvector(bits, VecU32));
}
inline void store(float16* p, VecF v) {
  const VecU16 bits = __builtin_convertvector(half_of_float<VecF, VecU32>(v), VecU16);
  __builtin_memcpy(p, &bits, sizeof bits);
}
#endif
template <Half S>
inline VecF load(const S* p, int64_t n) {
  if (n >= kLanes<float>) return load(p);
  S lanes[kLanes<float>] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
template <Half S>
inline void store(S* p, VecF v, int64_t n) {
  if (n >= kLanes<float>) return store(p, v);
  S lanes[kLanes<float>];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// Stores past the caches where that is possible: a whole aligned vector. For results too large for a cache, whose
// lines an ordinary store would fetch first. flush_streams() must come before anyone else reads them.
template <class T>
inline void stream(T* p, Vec<T> v, int64_t n) {
  if (n < kLanes<T> || reinterpret_cast<uintptr_t>(p) % kVectorBytes != 0) return store(p, v, n);
#if defined(RNN_EXT_AVX512)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#elif defined(__x86_64__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)v);
#else
  store(p, v);
#endif
}
template <Half S>
inline void stream(S* p, VecF v, int64_t n) {
  store(p, v, n);
}
inline void flush_streams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}
