// The Elman cell: h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), f = tanh or ReLU.
// J. L. Elman, "Finding Structure in Time", Cognitive Science 14 (1990); PyTorch's nn.RNN documentation.
// Both derivatives need the output alone, so that nothing else is kept for backward.

struct RnnTanhCell {
  static constexpr int gates = 1;

  template <class V>
  static V forward(const V (&a)[gates]) {
    return tanh(a[0]);
  }

  template <class V>
  static void backward(V h, V dh, V (&da)[gates]) {
    da[0] = dh * (V{} + 1 - h * h);
  }
};

struct RnnReluCell {
  static constexpr int gates = 1;

  template <class V>
  static V forward(const V (&a)[gates]) {
    return a[0] < V{} ? V{} : a[0];  // NaN stays NaN
  }

  template <class V>
  static void backward(V h, V dh, V (&da)[gates]) {
    da[0] = h <= V{} ? V{} : dh;
  }
};
