// The list of cells, their names and constants, for what lies above the kernels.
#pragma once
#include <string>

#include "facts.h"

namespace rnn_ext {

// The functions of the cells are templates that nobody calls here.
namespace constants_of {
#include "all.h"
}

struct NamedCell : CellFacts {
  const char* mode;  // PyTorch's RNNBase.mode
  int states;        // h, and c where there is one
};

inline constexpr NamedCell cell_facts[] = {
#define RNN_EXT_FACTS(name, type) \
  {facts_of<constants_of::type>(), #name, constants_of::type::carry == Carry::cell ? 2 : 1},
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
