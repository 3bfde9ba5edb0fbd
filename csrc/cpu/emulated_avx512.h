// AVX-512's instructions in plain vector code and AVX2's, under their intrinsics' names: for tests of the sets avx512 and
// amx on machines without. RNN_EXT_EMULATE=avx512 builds it. What an instruction faults at ends the program, what it
// leaves undefined is filled with ones, and an estimate has the error that it may have, so that nobody comes to rely on
// more than there is. Only what the kernels use is here. Beside a processor with AMX, layers of all cells and types, on
// multiply-adds, bfloat16 vectors and tiles, had the same bits but where they use that estimate, in the sigmoid of float32.

namespace emulated {

typedef int32_t Int32 __attribute__((vector_size(64)));
typedef uint32_t Uint32 __attribute__((vector_size(64)));
typedef uint16_t Uint16 __attribute__((vector_size(64)));
typedef uint16_t HalfUint16 __attribute__((vector_size(32)));

// The two halves, on which AVX2 works as AVX-512 does on the whole.
template <class H>
struct Halves {
  H low, high;
};
template <class H, class V>
inline Halves<H> halves(V v) {
  return __builtin_bit_cast(Halves<H>, v);
}
template <class V, class H>
inline V whole(H low, H high) {
  return __builtin_bit_cast(V, (Halves<H>{low, high}));
}
template <class H, class V, class Act, class... More>
inline V by_halves(Act act, V v, More... more) {
  return whole<V>(act(halves<H>(v).low, halves<H>(more).low...), act(halves<H>(v).high, halves<H>(more).high...));
}

// Memory. An address that is not that of a cache line is a fault.
inline void check_aligned(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 64 != 0) __builtin_trap();
}
inline __m512i loadu_si512(const void* p) {
  __m512i v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void storeu_si512(void* p, __m512i v) { __builtin_memcpy(p, &v, sizeof v); }
inline __m512i load_si512(const void* p) { return check_aligned(p), loadu_si512(p); }
inline __m512 load_ps(const void* p) { return (__m512)load_si512(p); }
inline void store_si512(void* p, __m512i v) { check_aligned(p), storeu_si512(p, v); }
inline void store_ps(void* p, __m512 v) { store_si512(p, (__m512i)v); }
inline void stream_si512(void* p, __m512i v) {
  check_aligned(p);
  const auto h = halves<__m256i>(v);
  _mm256_stream_si256(static_cast<__m256i*>(p), h.low);
  _mm256_stream_si256(static_cast<__m256i*>(p) + 1, h.high);
}

// A lane whose bit is not set is neither read nor written.
template <class V, class T, class Mask>
inline V masked_load(Mask mask, const void* p) {
  T lanes[64 / sizeof(T)] = {};
  for (size_t i = 0; i < 64 / sizeof(T); ++i)
    if (mask >> i & 1) lanes[i] = static_cast<const T*>(p)[i];
  return __builtin_bit_cast(V, lanes);
}
template <class T, class V, class Mask>
inline void masked_store(void* p, Mask mask, V v) {
  for (size_t i = 0; i < 64 / sizeof(T); ++i)
    if (mask >> i & 1) static_cast<T*>(p)[i] = v[i];
}
inline __m512 maskz_loadu_ps(__mmask16 mask, const void* p) { return masked_load<__m512, float>(mask, p); }
inline __m512d maskz_loadu_pd(__mmask8 mask, const void* p) { return masked_load<__m512d, double>(mask, p); }
inline __m512i maskz_loadu_epi16(__mmask32 mask, const void* p) { return masked_load<__m512i, uint16_t>(mask, p); }
inline void mask_storeu_ps(void* p, __mmask16 mask, __m512 v) { masked_store<float>(p, mask, v); }
inline void mask_storeu_pd(void* p, __mmask8 mask, __m512d v) { masked_store<double>(p, mask, v); }

// Numbers.
inline __m512 setzero_ps() { return __m512{}; }
inline __m512i set1_epi32(int x) { return (__m512i)(Int32{} + x); }
template <class... Lane>
inline __m512i setr_epi32(Lane... lanes) {
  static_assert(sizeof...(lanes) == 16);
  return (__m512i)Int32{lanes...};
}
inline __m512 castsi512_ps(__m512i v) { return (__m512)v; }
inline __m512i castsi256_si512(__m256i low) { return whole<__m512i>(low, _mm256_set1_epi8(-1)); }
template <int at>
inline __m512i inserti64x4(__m512i v, __m256i half) {
  const auto h = halves<__m256i>(v);
  return at ? whole<__m512i>(h.low, half) : whole<__m512i>(half, h.high);
}

// Arithmetic.
inline __m512 add_ps(__m512 a, __m512 b) { return a + b; }
inline __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
  return by_halves<__m256>([](auto x, auto y, auto z) { return _mm256_fmadd_ps(x, y, z); }, a, b, c);
}
inline __m512d fmadd_pd(__m512d a, __m512d b, __m512d c) {
  return by_halves<__m256d>([](auto x, auto y, auto z) { return _mm256_fmadd_pd(x, y, z); }, a, b, c);
}
inline __m512i add_epi32(__m512i a, __m512i b) { return (__m512i)((Uint32)a + (Uint32)b); }
inline __m512i and_si512(__m512i a, __m512i b) { return a & b; }
inline __m512i or_si512(__m512i a, __m512i b) { return a | b; }
inline __m512i slli_epi32(__m512i v, unsigned count) { return (__m512i)((Uint32)v << count); }
inline __m512i srli_epi32(__m512i v, unsigned count) { return (__m512i)((Uint32)v >> count); }

// Lanes whose bit is not set keep `from`, or become zero.
template <class V, class Mask>
inline V masked(V from, Mask mask, V v) {
  for (size_t i = 0; i < sizeof v / sizeof v[0]; ++i)
    if (!(mask >> i & 1)) v[i] = from[i];
  return v;
}
inline __m512 mask_add_ps(__m512 from, __mmask16 mask, __m512 a, __m512 b) { return masked(from, mask, a + b); }
inline __m512 maskz_min_ps(__mmask16 mask, __m512 a, __m512 b) {
  return masked(__m512{}, mask, by_halves<__m256>([](auto x, auto y) { return _mm256_min_ps(x, y); }, a, b));
}
inline __m512d maskz_min_pd(__mmask8 mask, __m512d a, __m512d b) {
  return masked(__m512d{}, mask, by_halves<__m256d>([](auto x, auto y) { return _mm256_min_pd(x, y); }, a, b));
}
// Wrong by less than 2^-14 of the result: the last 9 of its 23 bits are cut off.
inline __m512 maskz_rcp14_ps(__mmask16 mask, __m512 v) {
  return masked(__m512{}, mask, (__m512)((Int32)(1 / v) & ~0x1ff));
}

// Comparisons.
template <class V>
inline __mmask16 mask_of(V lanes) {
  unsigned mask = 0;
  for (int i = 0; i < 16; ++i) mask |= unsigned(lanes[i] != 0) << i;
  return __mmask16(mask);
}
template <int how>
inline __mmask16 cmp_ps_mask(__m512 a, __m512 b) {
  static_assert(how == _CMP_UNORD_Q);
  return mask_of((a != a) | (b != b));
}
inline __mmask16 cmpneq_epi32_mask(__m512i a, __m512i b) { return mask_of((Int32)a != (Int32)b); }

// Conversions.
inline __m512 cvtph_ps(__m256i v) {
  const auto h = halves<__m128i>(v);
  return whole<__m512>(_mm256_cvtph_ps(h.low), _mm256_cvtph_ps(h.high));
}
template <int rounding>
inline __m256i cvtps_ph(__m512 v) {
  const auto h = halves<__m256>(v);
  return whole<__m256i>(_mm256_cvtps_ph(h.low, rounding), _mm256_cvtps_ph(h.high, rounding));
}
inline __m256i cvtepi32_epi16(__m512i v) { return (__m256i)__builtin_convertvector((Uint32)v, HalfUint16); }
// To bfloat16, to nearest even; a denormal number becomes zero, NaN a quiet NaN with the same upper bits.
inline __m256i cvtneps_pbh(__m512 v) {
  const Uint32 bits = (Uint32)v, sign = bits & 0x80000000, exponent = bits & 0x7f800000;
  const Uint32 rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const Uint32 number = exponent == 0 ? sign >> 16 : rounded;
  const Uint32 result = v != v ? bits >> 16 | 0x40 : number;
  return (__m256i)__builtin_convertvector(result, HalfUint16);
}

// Places of lanes. The unpacking instructions work on each 128 bits alone, as AVX2's.
inline __m512i unpacklo_epi32(__m512i a, __m512i b) {
  return by_halves<__m256i>([](auto x, auto y) { return _mm256_unpacklo_epi32(x, y); }, a, b);
}
inline __m512i unpackhi_epi32(__m512i a, __m512i b) {
  return by_halves<__m256i>([](auto x, auto y) { return _mm256_unpackhi_epi32(x, y); }, a, b);
}
inline __m512i unpacklo_epi64(__m512i a, __m512i b) {
  return by_halves<__m256i>([](auto x, auto y) { return _mm256_unpacklo_epi64(x, y); }, a, b);
}
inline __m512i unpackhi_epi64(__m512i a, __m512i b) {
  return by_halves<__m256i>([](auto x, auto y) { return _mm256_unpackhi_epi64(x, y); }, a, b);
}
// Two of the four quarters of a, then two of b.
template <int which>
inline __m512i shuffle_i32x4(__m512i a, __m512i b) {
  constexpr int i = which % 4 * 2, j = which / 4 % 4 * 2, k = which / 16 % 4 * 2, l = which / 64 * 2;
  return __m512i{a[i], a[i + 1], a[j], a[j + 1], b[k], b[k + 1], b[l], b[l + 1]};
}
// A lane of a, or with the next bit of its index set one of b.
inline __m512 permutex2var_ps(__m512 a, __m512i index, __m512 b) {
  const Int32 at = (Int32)index;
  __m512 out;
  for (int i = 0; i < 16; ++i) out[i] = at[i] & 16 ? b[at[i] & 15] : a[at[i] & 15];
  return out;
}
inline __m512i permutexvar_epi16(__m512i index, __m512i v) {
  const Uint16 at = (Uint16)index, from = (Uint16)v;
  Uint16 out;
  for (int i = 0; i < 32; ++i) out[i] = from[at[i] & 31];
  return (__m512i)out;
}

}  // namespace emulated

#undef _mm512_add_epi32
#undef _mm512_add_ps
#undef _mm512_and_si512
#undef _mm512_castsi256_si512
#undef _mm512_castsi512_ps
#undef _mm512_cmp_ps_mask
#undef _mm512_cmpneq_epi32_mask
#undef _mm512_cvtepi32_epi16
#undef _mm512_cvtneps_pbh
#undef _mm512_cvtph_ps
#undef _mm512_cvtps_ph
#undef _mm512_fmadd_pd
#undef _mm512_fmadd_ps
#undef _mm512_inserti64x4
#undef _mm512_load_ps
#undef _mm512_load_si512
#undef _mm512_loadu_si512
#undef _mm512_mask_add_ps
#undef _mm512_mask_storeu_pd
#undef _mm512_mask_storeu_ps
#undef _mm512_maskz_loadu_epi16
#undef _mm512_maskz_loadu_pd
#undef _mm512_maskz_loadu_ps
#undef _mm512_maskz_min_pd
#undef _mm512_maskz_min_ps
#undef _mm512_maskz_rcp14_ps
#undef _mm512_or_si512
#undef _mm512_permutex2var_ps
#undef _mm512_permutexvar_epi16
#undef _mm512_set1_epi32
#undef _mm512_setr_epi32
#undef _mm512_setzero_ps
#undef _mm512_shuffle_i32x4
#undef _mm512_slli_epi32
#undef _mm512_srli_epi32
#undef _mm512_store_ps
#undef _mm512_store_si512
#undef _mm512_storeu_si512
#undef _mm512_stream_si512
#undef _mm512_unpackhi_epi32
#undef _mm512_unpackhi_epi64
#undef _mm512_unpacklo_epi32
#undef _mm512_unpacklo_epi64
#define _mm512_add_epi32 emulated::add_epi32
#define _mm512_add_ps emulated::add_ps
#define _mm512_and_si512 emulated::and_si512
#define _mm512_castsi256_si512 emulated::castsi256_si512
#define _mm512_castsi512_ps emulated::castsi512_ps
#define _mm512_cmp_ps_mask(a, b, how) emulated::cmp_ps_mask<how>(a, b)
#define _mm512_cmpneq_epi32_mask emulated::cmpneq_epi32_mask
#define _mm512_cvtepi32_epi16 emulated::cvtepi32_epi16
#define _mm512_cvtneps_pbh emulated::cvtneps_pbh
#define _mm512_cvtph_ps emulated::cvtph_ps
#define _mm512_cvtps_ph(v, rounding) emulated::cvtps_ph<rounding>(v)
#define _mm512_fmadd_pd emulated::fmadd_pd
#define _mm512_fmadd_ps emulated::fmadd_ps
#define _mm512_inserti64x4(v, half, at) emulated::inserti64x4<at>(v, half)
#define _mm512_load_ps emulated::load_ps
#define _mm512_load_si512 emulated::load_si512
#define _mm512_loadu_si512 emulated::loadu_si512
#define _mm512_mask_add_ps emulated::mask_add_ps
#define _mm512_mask_storeu_pd emulated::mask_storeu_pd
#define _mm512_mask_storeu_ps emulated::mask_storeu_ps
#define _mm512_maskz_loadu_epi16 emulated::maskz_loadu_epi16
#define _mm512_maskz_loadu_pd emulated::maskz_loadu_pd
#define _mm512_maskz_loadu_ps emulated::maskz_loadu_ps
#define _mm512_maskz_min_pd emulated::maskz_min_pd
#define _mm512_maskz_min_ps emulated::maskz_min_ps
#define _mm512_maskz_rcp14_ps emulated::maskz_rcp14_ps
#define _mm512_or_si512 emulated::or_si512
#define _mm512_permutex2var_ps emulated::permutex2var_ps
#define _mm512_permutexvar_epi16 emulated::permutexvar_epi16
#define _mm512_set1_epi32 emulated::set1_epi32
#define _mm512_setr_epi32 emulated::setr_epi32
#define _mm512_setzero_ps emulated::setzero_ps
#define _mm512_shuffle_i32x4(a, b, which) emulated::shuffle_i32x4<which>(a, b)
#define _mm512_slli_epi32 emulated::slli_epi32
#define _mm512_srli_epi32 emulated::srli_epi32
#define _mm512_store_ps emulated::store_ps
#define _mm512_store_si512 emulated::store_si512
#define _mm512_storeu_si512 emulated::storeu_si512
#define _mm512_stream_si512 emulated::stream_si512
#define _mm512_unpackhi_epi32 emulated::unpackhi_epi32
#define _mm512_unpackhi_epi64 emulated::unpackhi_epi64
#define _mm512_unpacklo_epi32 emulated::unpacklo_epi32
#define _mm512_unpacklo_epi64 emulated::unpacklo_epi64
