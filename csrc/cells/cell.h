// What a cell is, and the list of all cells.
//
// A cell is a few constants and two pure functions of one step, pointwise in the hidden unit; the time loops
// never name a cell. V is a vector of hidden units on the CPU and a scalar on the GPU.
//
//   gates     number of pre-activations per unit, in PyTorch's gate order
//   forward   a[gates] = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh            -> h_t
//   backward  h_t and dh_t (gradient of the loss with respect to h_t)     -> da[gates]
#pragma once

// X(name in PyTorch's RNNBase.mode, struct, gates)
#define RNN_EXT_CELLS(X)         \
  X(RNN_TANH, RnnTanhCell, 1)    \
  X(RNN_RELU, RnnReluCell, 1)

namespace rnn_ext {

enum class CellKind : int {
#define RNN_EXT_NAME(name, type, gates) name,
  RNN_EXT_CELLS(RNN_EXT_NAME)
#undef RNN_EXT_NAME
      count
};

}  // namespace rnn_ext
