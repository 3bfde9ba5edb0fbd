// A run of 16 of k on the tensor cores: 16 rows by N tiles of 8 sequences.  With group = lane / 4 and pair = lane % 4, a
// lane's pointers are at its row's (sequence's) element 2 pair, and it takes elements 2 pair, 2 pair + 1 and those 8 on.
#pragma once
#include "storage.h"

namespace rnn_ext::cuda {

template <class S>
RNN_EXT_DEVICE uint32_t two(const S* p) {
  uint32_t word;
  __builtin_memcpy(&word, p, sizeof word);
  return word;
}

template <class S>
RNN_EXT_DEVICE void multiply_pieces(float* d, const uint32_t* a, const uint32_t* b) {
  if constexpr (kIsBfloat16<S>) multiply_fragments_bfloat16(d, a, b);
  else multiply_fragments_float16(d, a, b);
}

// sum += a b, for the 16-bit types.
template <int N, class S>
RNN_EXT_DEVICE void multiply_run(float (&sum)[N][4], const S* upper, const S* lower, const S* const (&v)[N]) {
  const uint32_t a[4] = {two(upper), two(lower), two(upper + 8), two(lower + 8)};
  RNN_EXT_UNROLL
  for (int n = 0; n < N; ++n) {
    const uint32_t b[2] = {two(v[n]), two(v[n] + 8)};
    multiply_pieces<S>(sum[n], a, b);
  }
}

// A float as two TF32 numbers of 11 bits each: what their sum lacks is below 2^-22 of it.
struct Split {
  float big, small;
  RNN_EXT_DEVICE explicit Split(float x) : big(round_to_tf32(x)), small(round_to_tf32(x - big)) {}
};

// The same for float: small b + a small' + big big', the product of the small parts left out. A tensor core may cut off
// what does not fit its sum, so that each run begins at zero and is added in float. Slot `pair` of k is element 2 pair,
// slot pair + 4 the one behind it: any order of k will do that is the same for both operands.
template <int N>
RNN_EXT_DEVICE void multiply_run(float (&sum)[N][4], const float* upper, const float* lower, const float* const (&v)[N]) {
  float run[N][4] = {};
  RNN_EXT_UNROLL
  for (int k = 0; k < 16; k += 8) {
    const Split w[4] = {Split(upper[k]), Split(lower[k]), Split(upper[k + 1]), Split(lower[k + 1])};
    const float big[4] = {w[0].big, w[1].big, w[2].big, w[3].big};
    const float small[4] = {w[0].small, w[1].small, w[2].small, w[3].small};
    RNN_EXT_UNROLL
    for (int n = 0; n < N; ++n) {
      const Split x[2] = {Split(v[n][k]), Split(v[n][k + 1])};
      const float big_x[2] = {x[0].big, x[1].big}, small_x[2] = {x[0].small, x[1].small};
      multiply_fragments_tf32(run[n], small, big_x);
      multiply_fragments_tf32(run[n], big, small_x);
      multiply_fragments_tf32(run[n], big, big_x);
    }
  }
  RNN_EXT_UNROLL
  for (int n = 0; n < N; ++n) {
    RNN_EXT_UNROLL
    for (int i = 0; i < 4; ++i) sum[n][i] += run[n][i];
  }
}

}  // namespace rnn_ext::cuda
