// A run of 16 of k on the tensor cores: 16 rows by N tiles of 8 sequences.  With group = lane / 4 and pair = lane % 4, a
// lane's pointers are at its row's (sequence's) element 4 pair, and it takes four elements from there: any order of k will
// do that is the same for both operands.
#pragma once
#include "storage.h"

namespace rnn_ext::cuda {

// Four neighbours in a row, which a lane loads at once.
template <class S>
struct alignas(4 * sizeof(S)) Four {
  uint32_t words[sizeof(S)];
};
template <class S>
RNN_EXT_DEVICE Four<S> four(const S* p) {
  return *reinterpret_cast<const Four<S>*>(p);
}

template <class S>
RNN_EXT_DEVICE void multiply_pieces(float* d, const uint32_t* a, const uint32_t* b) {
  if constexpr (kIsBfloat16<S>) multiply_fragments_bfloat16(d, a, b);
  else multiply_fragments_float16(d, a, b);
}

// sum += w v, for the 16-bit types; w of the lane's rows group and group + 8.
template <int N, class S>
RNN_EXT_DEVICE void multiply_run(float (&sum)[N][4], const Four<S> (&w)[2], const S* const (&v)[N]) {
  const uint32_t a[4] = {w[0].words[0], w[1].words[0], w[0].words[1], w[1].words[1]};
  RNN_EXT_UNROLL
  for (int n = 0; n < N; ++n) multiply_pieces<S>(sum[n], a, four(v[n]).words);
}

// A float as two TF32 numbers of 11 bits each: what their sum lacks is below 2^-22 of it.
struct Split {
  float big, small;
  RNN_EXT_DEVICE explicit Split(float x) : big(round_to_tf32(x)), small(round_to_tf32(x - big)) {}
};

// The same for float: small b + a small' + big big', the product of the small parts left out. A tensor core may cut off
// what does not fit its sum, so that each run begins at zero and is added in float.
template <int N>
RNN_EXT_DEVICE void multiply_run(float (&sum)[N][4], const Four<float> (&w)[2], const float* const (&v)[N]) {
  float run[N][4] = {}, row[2][4], x[N][4];
  __builtin_memcpy(row, w, sizeof row);
  RNN_EXT_UNROLL
  for (int n = 0; n < N; ++n) {
    const Four<float> of = four(v[n]);
    __builtin_memcpy(x[n], &of, sizeof of);
  }
  RNN_EXT_UNROLL
  for (int k = 0; k < 4; k += 2) {
    const Split a[4] = {Split(row[0][k]), Split(row[1][k]), Split(row[0][k + 1]), Split(row[1][k + 1])};
    const float big[4] = {a[0].big, a[1].big, a[2].big, a[3].big};
    const float small[4] = {a[0].small, a[1].small, a[2].small, a[3].small};
    RNN_EXT_UNROLL
    for (int n = 0; n < N; ++n) {
      const Split b[2] = {Split(x[n][k]), Split(x[n][k + 1])};
      const float big_b[2] = {b[0].big, b[1].big}, small_b[2] = {b[0].small, b[1].small};
      multiply_fragments_tf32(run[n], small, big_b);
      multiply_fragments_tf32(run[n], big, small_b);
      multiply_fragments_tf32(run[n], big, big_b);
    }
  }
  RNN_EXT_UNROLL
  for (int n = 0; n < N; ++n) {
    RNN_EXT_UNROLL
    for (int i = 0; i < 4; ++i) sum[n][i] += run[n][i];
  }
}

}  // namespace rnn_ext::cuda
