// The tile instructions in plain vector code, under their intrinsics' names: for tests of amx.h on machines without
// AMX, and under sanitizers, which do not see what a tile instruction reads and writes. RNN_EXT_EMULATE=tiles builds it,
// and RNN_EXT_EMULATE=avx512 does so on emulated_avx512.h.
//
// As in Intel's Software Developer's Manual, volume 2, at TDPBF16PS: the even and the odd numbers along k are summed
// apart, by multiply-adds that count denormal numbers as zero, and both sums are then added to the tile.

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) emulated::configure(config)
#define _tile_release() emulated::configure(nullptr)
#define _tile_zero(t) emulated::zero(t)
#define _tile_loadd(t, base, stride) emulated::load_tile(t, base, stride)
#define _tile_stored(t, base, stride) emulated::store_tile(t, base, stride)
#define _tile_dpbf16ps(c, a, b) emulated::multiply(c, a, b)

namespace emulated {

struct Tile {
  alignas(64) uint32_t row[16][16];
};
thread_local bool configured = false;
thread_local Tile tiles[8];

// Without a configuration the processor refuses every other tile instruction.
inline Tile& tile(int t) {
  if (!configured) __builtin_trap();
  return tiles[t];
}

inline void configure(const void* config) { configured = config != nullptr; }

inline void zero(int t) {
  for (auto& row : tile(t).row)
    for (uint32_t& number : row) number = 0;
}

inline void load_tile(int t, const void* base, int64_t stride) {
  for (int r = 0; r < 16; ++r)
    _mm512_store_si512(tile(t).row[r], _mm512_loadu_si512(static_cast<const char*>(base) + r * stride));
}

inline void store_tile(int t, void* base, int64_t stride) {
  for (int r = 0; r < 16; ++r)
    _mm512_storeu_si512(static_cast<char*>(base) + r * stride, _mm512_load_si512(tile(t).row[r]));
}

inline void multiply(int c, int a, int b) {
  const unsigned control = _mm_getcsr();
  _mm_setcsr(control | 0x8040);  // denormal numbers are zero, as operands and as results
  for (int m = 0; m < 16; ++m) {
    __m512 even = _mm512_setzero_ps(), odd = even;
    for (int k = 0; k < 16; ++k) {
      const uint32_t pair = tile(a).row[m][k];
      const __m512i pairs = _mm512_load_si512(tile(b).row[k]);
      even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_set1_epi32(int(pair << 16))),
                             _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)), even);
      odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_set1_epi32(int(pair & 0xffff0000))),
                            _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(int(0xffff0000)))), odd);
    }
    float* sum = reinterpret_cast<float*>(tile(c).row[m]);
    _mm512_store_ps(sum, _mm512_add_ps(_mm512_load_ps(sum), _mm512_add_ps(even, odd)));
  }
  _mm_setcsr(control);
}

}  // namespace emulated
