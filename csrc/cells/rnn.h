// The Elman cell: h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), f = tanh or ReLU.
// J. L. Elman, "Finding Structure in Time", Cognitive Science 14 (1990); PyTorch's nn.RNN documentation.
// Both derivatives need the output alone, so that nothing else is kept for backward.

struct RnnCell {
  static constexpr int gates = 1, columns = 1, tape = 0;
  static constexpr Carry carry = Carry::none;
  static constexpr int hidden_column(int gate) { return gate; }
};

struct RnnTanhCell : RnnCell {
  template <class V>
  static constexpr V forward(const V* a, V /*h*/, V& /*c*/, V* /*tape*/) {
    return tanh(a[0]);
  }

  template <class V>
  static constexpr void backward(const V* /*tape*/, V h, V dh, V& /*carry*/, V* da) {
    da[0] = dh * (1 - h * h);
  }
};

struct RnnReluCell : RnnCell {
  template <class V>
  static constexpr V forward(const V* a, V /*h*/, V& /*c*/, V* /*tape*/) {
    return relu(a[0]);
  }

  template <class V>
  static constexpr void backward(const V* /*tape*/, V h, V dh, V& /*carry*/, V* da) {
    da[0] = relu_gradient(h, dh);
  }
};
