// Storage types of a call and the type in which each is computed: float for the 16-bit ones, else itself.
#pragma once
#include <cstdint>

#include "device.h"

namespace rnn_ext::cuda {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <class S>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class S>
using Compute = typename ComputeType<S>::type;

RNN_EXT_DEVICE float widen(float x) { return x; }
RNN_EXT_DEVICE double widen(double x) { return x; }
RNN_EXT_DEVICE float widen(float16 x) { return half_to_float(x.bits); }
RNN_EXT_DEVICE float widen(bfloat16 x) {
  union {
    uint32_t bits;
    float value;
  } u;
  u.bits = uint32_t(x.bits) << 16;
  return u.value;
}

template <class S>
RNN_EXT_DEVICE S narrow(Compute<S> x) {
  return x;
}
template <>
RNN_EXT_DEVICE float16 narrow<float16>(float x) {
  return {float_to_half(x)};
}
template <>
RNN_EXT_DEVICE bfloat16 narrow<bfloat16>(float x) {
  return {float_to_bfloat16(x)};
}

// Rounds as if stored and loaded again.
template <class S>
RNN_EXT_DEVICE Compute<S> as_stored(Compute<S> x) {
  return widen(narrow<S>(x));
}

// What another block may have written since this kernel began.
RNN_EXT_DEVICE float fresh(const float* p) { return load_fresh(p); }
RNN_EXT_DEVICE double fresh(const double* p) { return load_fresh(p); }
RNN_EXT_DEVICE float16 fresh(const float16* p) { return {load_fresh(&p->bits)}; }
RNN_EXT_DEVICE bfloat16 fresh(const bfloat16* p) { return {load_fresh(&p->bits)}; }

template <class S>
inline constexpr int kPerLine = 16 / int(sizeof(S));  // elements of 16 bytes

template <class S>
inline constexpr bool kIsBfloat16 = false;
template <>
inline constexpr bool kIsBfloat16<bfloat16> = true;

}  // namespace rnn_ext::cuda
