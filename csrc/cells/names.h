// The list of cells, for what lies above the kernels.
#pragma once
#include <string>

#include "cell.h"

namespace rnn_ext {

struct CellFacts {
  const char* mode;  // PyTorch's RNNBase.mode
  int gates, states, tape;
};

inline constexpr CellFacts cell_facts[] = {
#define RNN_EXT_FACTS(name, type, gates, states, tape) {#name, gates, states, tape},
    RNN_EXT_CELLS(RNN_EXT_FACTS)
#undef RNN_EXT_FACTS
};

// The cell of that name (a CellKind), or -1.
inline int cell_of(const std::string& mode) {
  for (int cell = 0; cell < int(CellKind::count); ++cell)
    if (mode == cell_facts[cell].mode) return cell;
  return -1;
}

}  // namespace rnn_ext
