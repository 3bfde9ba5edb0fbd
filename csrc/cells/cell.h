// What a cell is, and the list of all cells.
//
// A cell is a few constants and two pure functions of one step, pointwise in the hidden unit; the time loops
// never name a cell. V is a pack of vectors on the CPU (of hidden units, or of sequences: by_sequence.h) and a scalar on
// the GPU.
//
//   gates     weight rows per unit, in PyTorch's gate order; at most kMostGates
//   columns   pre-activations per unit: one a gate, and one more for each gate whose recurrent part stays apart
//   hidden_column(g)  the column of gate g's recurrent part; that of its input part is g
//   carry     what runs beside h from step to step: nothing; the cell state c, and dc in backward; or, in backward
//             alone, the part of dh that bypasses the product with W_hh
//   tape      numbers per unit that forward keeps for backward
//
//   forward   a[columns], h_{t-1}, c (in: of t-1, out: of t)                  -> h_t, tape
//   backward  tape, h_t, dh_t, carry (in: from step t+1, out: for step t-1)   -> da[columns]
//             a carry `hidden` is in dh_t already: backward only sets it
// where column g of a is W_ih x_t + b_ih plus, unless they stay apart, W_hh h_{t-1} + b_hh. Where h is projected, the
// cell's h_t and dh_t are those before the projection, and it must not use h_{t-1} but through a. Only a cell that
// carries `hidden` is given h_{t-1}. W_hh multiplies h_{t-1} as it is: what gates it, gates the product.
// Both are constexpr, which is what lets nvcc call them on the GPU. A V has +, - and * with another one and with numbers,
// and, found where it is defined, fma, tanh, sigmoid, relu and relu_gradient: no more (pack.h, cuda/cells.h).
#pragma once

// X(name in PyTorch's RNNBase.mode, struct); all.h has their headers.
#define RNN_EXT_CELLS(X)   \
  X(RNN_TANH, RnnTanhCell) \
  X(RNN_RELU, RnnReluCell) \
  X(LSTM, LstmCell)        \
  X(GRU, GruCell)

namespace rnn_ext {

enum class CellKind : int {
#define RNN_EXT_NAME(name, type) name,
  RNN_EXT_CELLS(RNN_EXT_NAME)
#undef RNN_EXT_NAME
      count
};

constexpr int kMostGates = 4;

enum class Carry { none, cell, hidden };

}  // namespace rnn_ext
