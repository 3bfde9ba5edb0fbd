// How fast the machine multiplies, adds, reads and meets: the ceilings that benchmarks measure kernels against.
#pragma once
#include <cstddef>

namespace rnn_ext {

// Float32 multiply-add rate, in GFLOP/s summed over `threads` threads that run for about `seconds` (> 0) at the same
// time, with the best instruction set the machine has (RNN_EXT_ISA does not cap it).
double fma_peak(double seconds, int threads);

// Rate in GB/s, summed likewise, at which threads read `bytes` bytes of memory each, over and over, rounded down to four
// vectors but no fewer: that of the cache in which they stay.
double read_rate(double seconds, int threads, size_t bytes);

// Seconds that the barrier of a time loop takes among `threads` threads, the mean over about `seconds` (> 0): it tells
// whether their cores share a cache.
double barrier_seconds(double seconds, int threads);

// The first for float32 products on AMX tiles (amx.h), 32 x 256 by 256 x 256; 0 on a machine without them.
double amx_rate(double seconds, int threads);

}  // namespace rnn_ext
