// The operators' schemas, and the operators on the CPU.
#include "cpu/device.h"

STABLE_TORCH_LIBRARY(rnn_ext, m) {
  m.def(rnn_ext::rnn_forward_schema);
  m.def(rnn_ext::rnn_backward_schema);
}

STABLE_TORCH_LIBRARY_IMPL(rnn_ext, CPU, m) {
  m.impl("rnn_forward", TORCH_BOX(&rnn_ext::rnn_forward<rnn_ext::Cpu>));
  m.impl("rnn_backward", TORCH_BOX(&rnn_ext::rnn_backward<rnn_ext::Cpu>));
}
