// The cells of csrc/cells with a scalar for V: the functions that they are made of, and the cells themselves.
#pragma once
#include <cmath>

#include "../cells/cell.h"
#include "device.h"

namespace rnn_ext::cuda {

RNN_EXT_DEVICE float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
RNN_EXT_DEVICE double fma(double a, double b, double c) { return ::fma(a, b, c); }
RNN_EXT_DEVICE float tanh(float x) { return ::tanhf(x); }
RNN_EXT_DEVICE double tanh(double x) { return ::tanh(x); }
// exp(-x) overflows to infinity far below zero, where the quotient is 0 as it should be.
RNN_EXT_DEVICE float sigmoid(float x) { return 1 / (1 + ::expf(-x)); }
RNN_EXT_DEVICE double sigmoid(double x) { return 1 / (1 + ::exp(-x)); }
// NaN stays NaN; the gradient is dy where y = relu(x) is above zero, or NaN.
template <class T>
RNN_EXT_DEVICE T relu(T x) {
  return x < 0 ? 0 : x;
}
template <class T>
RNN_EXT_DEVICE T relu_gradient(T y, T dy) {
  return y <= 0 ? 0 : dy;
}

#include "../cells/all.h"

}  // namespace rnn_ext::cuda
