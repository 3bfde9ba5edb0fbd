// The loops behind fma_peak and read_rate; compiled once per instruction set, without standard headers.

namespace rnn_ext::RNN_EXT_ISA_NAMESPACE {

#if defined(RNN_EXT_AVX512)
inline constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
inline constexpr int vector_bytes = 32;
#else
inline constexpr int vector_bytes = 16;
#endif
typedef float Vector __attribute__((vector_size(vector_bytes)));

// Does `rounds` rounds of 12 independent multiply-adds on whole vectors: enough to hide their latency, few enough
// for 16 registers. Returns the floating-point operations done.
double fma_loop(long rounds) {
  constexpr int chains = 12;
  constexpr int lanes = vector_bytes / sizeof(float);
  // Volatile, so that the compiler cannot work out the result beforehand.
  volatile float scale = 0.999f, shift = 0.001f;
  const Vector b = Vector{} + scale, c = Vector{} + shift;
  Vector a[chains];
  for (int i = 0; i < chains; ++i) a[i] = c * static_cast<float>(i);
  for (long round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < chains; ++i) a[i] = a[i] * b + c;
  }
  Vector sum{};
  for (int i = 0; i < chains; ++i) sum += a[i];
  volatile float sink = sum[0];
  (void)sink;
  return 2.0 * lanes * chains * static_cast<double>(rounds);
}

// Reads `count` vectors `rounds` times, in order. Returns the bytes read. Four sums: one would wait for itself.
double read_loop(const void* memory, long count, long rounds) {
  constexpr int sums = 4;
  const Vector* const vectors = static_cast<const Vector*>(memory);
  Vector sum[sums] = {};
  for (long round = 0; round < rounds; ++round)
    for (long i = 0; i + sums <= count; i += sums) {
#pragma GCC unroll 4
      for (int k = 0; k < sums; ++k) sum[k] += vectors[i + k];
    }
  Vector all{};
  for (int k = 0; k < sums; ++k) all += sum[k];
  volatile float sink = all[0];
  (void)sink;
  return static_cast<double>(count / sums * sums) * vector_bytes * static_cast<double>(rounds);
}

}  // namespace rnn_ext::RNN_EXT_ISA_NAMESPACE
