// The GRU cell, reset after the product:  r, z = sigmoid(a_r), sigmoid(a_z);
//     n = tanh(W_in x + b_in + r (W_hn h + b_hn));   h_t = (1 - z) n + z h_{t-1}.
// K. Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder" (2014), in the variant of PyTorch's
// nn.GRU documentation. The recurrent part of n is multiplied by r, so that it has a column of its own.

struct GruCell {
  static constexpr int gates = 3, columns = 4, tape = 4;  // columns: r, z, n (input), n (recurrent); tape: r, z, n, a_hn
  static constexpr Carry carry = Carry::hidden;
  static constexpr int hidden_column(int gate) { return gate < 2 ? gate : 3; }

  template <class V>
  static constexpr V forward(const V* a, V h, V& /*c*/, V* tape) {
    const V r = sigmoid(a[0]), z = sigmoid(a[1]), n = tanh(fma(r, a[3], a[2]));
    tape[0] = r, tape[1] = z, tape[2] = n, tape[3] = a[3];
    return fma(z, h - n, n);
  }

  // z (h_{t-1} - n) = h_t - n, so that h_{t-1} itself is not needed.
  template <class V>
  static constexpr void backward(const V* tape, V h, V dh, V& carry, V* da) {
    const V r = tape[0], z = tape[1], n = tape[2], a_hn = tape[3];
    const V dn = dh * (1 - z) * (1 - n * n);
    da[0] = dn * a_hn * r * (1 - r);
    da[1] = dh * (h - n) * (1 - z);
    da[2] = dn;
    da[3] = dn * r;
    carry = dh * z;
  }
};
