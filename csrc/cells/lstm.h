// The LSTM cell:  i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o);  g = tanh(a_g);
//                 c_t = f c_{t-1} + i g;   h_t = o tanh(c_t).
// S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", Neural Computation 9 (1997), with the forget gate of
// F. Gers et al. (2000); PyTorch's nn.LSTM documentation.

struct LstmCell {
  static constexpr int gates = 4, columns = 4, tape = 5;  // tape: i, f, g, o, c_{t-1}
  static constexpr Carry carry = Carry::cell;
  static constexpr int hidden_column(int gate) { return gate; }

  template <class V>
  static constexpr V forward(const V* a, V /*h*/, V& c, V* tape) {
    const V i = sigmoid(a[0]), f = sigmoid(a[1]), g = tanh(a[2]), o = sigmoid(a[3]);
    tape[0] = i, tape[1] = f, tape[2] = g, tape[3] = o, tape[4] = c;
    c = fma(f, c, i * g);
    return o * tanh(c);
  }

  template <class V>
  static constexpr void backward(const V* tape, V /*h*/, V dh, V& dc, V* da) {
    const V i = tape[0], f = tape[1], g = tape[2], o = tape[3], c_before = tape[4];
    const V tanh_c = tanh(fma(f, c_before, i * g));
    dc = fma(dh * o, 1 - tanh_c * tanh_c, dc);
    da[0] = dc * g * i * (1 - i);
    da[1] = dc * c_before * f * (1 - f);
    da[2] = dc * i * (1 - g * g);
    da[3] = dh * tanh_c * o * (1 - o);
    dc = dc * f;
  }
};
