// Cells by name, for what lies above the kernels.
#pragma once
#include <string>

#include "cell.h"

namespace rnn_ext {

// The cell of that name, or -1.
inline int cell_of(const std::string& mode) {
#define RNN_EXT_MATCH(name, type, gates) \
  if (mode == #name) return int(CellKind::name);
  RNN_EXT_CELLS(RNN_EXT_MATCH)
#undef RNN_EXT_MATCH
  return -1;
}

inline int gates_of(int cell) {
#define RNN_EXT_GATES(name, type, gates) gates,
  constexpr int all[] = {RNN_EXT_CELLS(RNN_EXT_GATES)};
#undef RNN_EXT_GATES
  return all[cell];
}

}  // namespace rnn_ext
