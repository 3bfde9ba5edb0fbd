// Which instruction set the kernels run with: what the machine has, capped by the environment variable RNN_EXT_ISA.
// Free of standard headers: the kernels' own files see this one.
#pragma once

namespace rnn_ext {

// Worst first, so that a cap is a minimum.
enum class Isa { baseline, avx2, avx512, amx };
constexpr Isa all_isas[] = {Isa::baseline, Isa::avx2, Isa::avx512, Isa::amx};

const char* name(Isa isa);

// The best set that both the processor and the operating system support.
Isa detect();

// detect(), capped by RNN_EXT_ISA as it stood at the first call. A value that names no set leaves it uncapped:
// cap_error() says so, and the module refuses to load.
Isa active();

// Whether the set in use is avx512 and the processor has AVX512_BF16 beside it, which bf16.h needs, at a rate that pays.
bool multiplies_bfloat16();

// Null if RNN_EXT_ISA is unset, empty or names an instruction set; else what is wrong with it and what would be right.
const char* cap_error();

}  // namespace rnn_ext
