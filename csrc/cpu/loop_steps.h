// The weight gradients of calls of one step, many calls at once: rnn_ext/loops.py.
#pragma once
#include <array>
#include <cstring>
#include <utility>

#include "device.h"

namespace rnn_ext {

// Takes calls of one step of one layer and direction, and keeps the rows that their weights' gradients are made of. When
// it has as many as it may keep, they are to the kernels one step of so many sequences, whose gradients it adds up. The
// weights themselves are not read: after their last step their memory may be given back, as FSDP does.
class LoopSteps {
  enum Part { kX, kY, kH0, kDy, kDh, kDc, kTape, kParts };

 public:
  explicit LoopSteps(int64_t rows) : capacity_(rows) {}

  // Takes all of a call or, if it throws, nothing.
  void add(const BackwardInputs& in) {
    const CallInputs& call = in.call;
    const Tensor& x = call.x;
    const int64_t B = x.size(-2);
    const bool same_cell = rows_ == 0 || (call.mode == mode_ && call.weights.size() == weights_.size());
    STD_TORCH_CHECK(same_cell && B <= capacity_ && x.numel() == B * x.size(-1) && call.weights.size() % 2 == 0,
                    "rnn_ext: not one step without a projection, or too many sequences, or another cell");
    if (rows_ + B > capacity_) multiply();
    const Maybe tape = in.saved.empty() ? Maybe() : Maybe(in.saved.front());
    std::array<Maybe, kParts> part = {x, in.y, call.h_0, in.dy, in.dh_n, in.dc_n, tape};
    for (int i = 0; i < kParts; ++i) {
      if (!part[i]) continue;
      part[i] = dense(*part[i]);
      const int64_t width = part[i]->numel() / B;
      if (!kept_[i]) {
        kept_[i] = empty({capacity_, width}, x.scalar_type(), x);
        std::memset(row(i, 0), 0, rows_ * row_bytes(i));
      }
      STD_TORCH_CHECK(kept_[i]->size(1) == width && kept_[i]->scalar_type() == part[i]->scalar_type(),
                      "rnn_ext: the steps of a loop have different sizes or dtypes");
      (void)memory_of(*part[i]);
    }
    for (int i = 0; i < kParts; ++i)  // where there is nothing, as in the gradient of a state that nobody used, zeros
      if (part[i]) std::memcpy(row(i, rows_), part[i]->const_data_ptr(), B * row_bytes(i));
      else if (kept_[i]) std::memset(row(i, rows_), 0, B * row_bytes(i));
    rows_ += B;
    weights_ = call.weights;
    mode_ = call.mode;
    batch_invariant_ = call.batch_invariant;
  }

  // Of all weights, over all the calls, in the compute type; nothing if there were none. Keeps nothing: autograd adds to a
  // gradient in its place, or takes it over, only where nobody else has it.
  Tensors gradients() {
    if (rows_ > 0) multiply();
    kept_ = {};
    weights_.clear();
    return std::exchange(sum_, {});
  }

 private:
  size_t row_bytes(int i) const { return size_t(kept_[i]->size(1)) * bytes_of(kept_[i]->scalar_type()); }
  char* row(int i, int64_t r) { return static_cast<char*>(kept_[i]->mutable_data_ptr()) + r * row_bytes(i); }

  void multiply() {
    const auto rows = [&](int i) -> Maybe {
      if (!kept_[i]) return std::nullopt;
      const int64_t sizes[] = {rows_, kept_[i]->size(1)}, strides[] = {sizes[1], 1};
      return view(*kept_[i], 2, sizes, strides);
    };
    const Maybe tape = rows(kTape);
    const CallInputs call{.x = *rows(kX), .h_0 = rows(kH0), .c_0 = {}, .weights = weights_, .batch_sizes = {}, .masks = {},
                          .mode = mode_, .num_layers = 1, .bidirectional = false, .batch_invariant = batch_invariant_};
    sum_ = backward_on(Cpu{},
                       {.call = call, .y = *rows(kY), .saved = tape ? Tensors{*tape} : Tensors(), .dy = rows(kDy),
                        .dh_n = rows(kDh), .dc_n = rows(kDc)},
                       Needs{.dw = true}, sum_, false);
    rows_ = 0;
  }

  const int64_t capacity_;
  int64_t rows_ = 0;
  std::array<Maybe, kParts> kept_;  // [capacity, width], of the parts that any step had
  Tensors weights_, sum_;
  std::string mode_;
  bool batch_invariant_ = false;
};

}  // namespace rnn_ext
