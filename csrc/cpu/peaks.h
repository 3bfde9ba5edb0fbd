// How fast the machine multiplies and adds: the ceiling that benchmarks measure kernels against.
#pragma once

namespace rnn_ext {

// Float32 multiply-add rate, in GFLOP/s summed over `threads` threads that run for about `seconds` (> 0) at the same
// time, with the best instruction set the machine has (RNN_EXT_ISA does not cap it).
double fma_peak(double seconds, int threads);

// The same for float32 products on AMX tiles (amx.h), 32 x 256 by 256 x 256; 0 on a machine without them.
double amx_rate(double seconds, int threads);

}  // namespace rnn_ext
