#include "isa.h"

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace rnn_ext {
namespace {

#if defined(__x86_64__)
// XCR0: the registers that the operating system saves on a task switch. A processor may have AVX-512 while the
// system (or the hypervisor) does not save its registers: using them then is an illegal instruction.
unsigned saved_registers() {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

bool has(unsigned word, unsigned bits) { return (word & bits) == bits; }

// AMX with bfloat16. Linux gives a process the tile registers on request.
bool has_tiles([[maybe_unused]] unsigned saved) {
#if defined(RNN_EXT_EMULATE_TILES)
  return true;
#elif defined(__linux__)
  constexpr unsigned tiles_saved = 0x60000;
  constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a, b, c, d;
  if (!has(saved, tiles_saved)) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !has(d, amx_bf16 | amx_tile)) return false;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

bool has_avx512_bf16() {
  constexpr unsigned avx512_bf16 = 1u << 5;
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && has(a, avx512_bf16);
}

// Whether vdpbf16ps, of twice as many terms, can start as often as a multiply-add. On AMD's processors it does; Intel's
// with AMX start one where they start four multiply-adds, so that these are quicker.
bool has_quick_avx512_bf16() {
  unsigned a, b, c, d;
  return has_avx512_bf16() && __get_cpuid(0, &a, &b, &c, &d) && b == signature_AMD_ebx && c == signature_AMD_ecx &&
         d == signature_AMD_edx;
}

Isa probe() {
  constexpr unsigned ymm_saved = 0x06;   // SSE and AVX state
  constexpr unsigned zmm_saved = 0xe6;   // and opmask, upper ZMM halves, ZMM16 to ZMM31
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C)) return Isa::baseline;
  const unsigned saved = saved_registers();
  if (!has(saved, ymm_saved)) return Isa::baseline;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !has(b, bit_AVX2 | bit_BMI2)) return Isa::baseline;
#if defined(RNN_EXT_EMULATE_AVX512)
  return Isa::amx;  // AVX2 and its companions are all that the other sets are made of
#endif
  if (!has(saved, zmm_saved)) return Isa::avx2;
  if (!has(b, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL)) return Isa::avx2;
  // Beside the tiles, AVX-512's conversions are used.
  return has_avx512_bf16() && has_tiles(saved) ? Isa::amx : Isa::avx512;
}
#else
bool has_quick_avx512_bf16() { return false; }
Isa probe() { return Isa::baseline; }
#endif

std::string_view cap_text() {
  const char* text = std::getenv("RNN_EXT_ISA");
  return text == nullptr ? "" : text;
}

std::optional<Isa> cap() {
  for (Isa isa : all_isas)
    if (cap_text() == name(isa)) return isa;
  return std::nullopt;
}

}  // namespace

const char* name(Isa isa) {
  switch (isa) {
    case Isa::baseline: return "baseline";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::amx: return "amx";
  }
  return "unknown";
}

Isa detect() {
  static const Isa isa = probe();
  return isa;
}

Isa active() {
  static const Isa isa = std::min(detect(), cap().value_or(detect()));
  return isa;
}

bool multiplies_bfloat16() {
#if defined(RNN_EXT_EMULATE_TILES)
  return active() == Isa::avx512;
#else
  static const bool found = active() == Isa::avx512 && has_quick_avx512_bf16();
  return found;
#endif
}

const char* cap_error() {
  if (cap_text().empty() || cap()) return nullptr;
  static const std::string text = [] {
    std::string known;
    for (Isa isa : all_isas) known += (known.empty() ? "" : ", ") + std::string(name(isa));
    return "RNN_EXT_ISA=" + std::string(cap_text()) + " names no instruction set: it must be one of " + known +
           " (a cap: the best set up to it that the machine has is used), or be left unset";
  }();
  return text.c_str();
}

}  // namespace rnn_ext
