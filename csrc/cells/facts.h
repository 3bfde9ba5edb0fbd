// The constants of a cell as numbers, for code that serves all of them.
#pragma once
#include "cell.h"

namespace rnn_ext {

struct CellFacts {
  int gates, columns, tape;
  Carry carry;
  int hidden_columns[kMostGates];  // of each gate
};

template <class Cell>
consteval CellFacts facts_of() {
  static_assert(Cell::gates <= kMostGates, "kMostGates is in cell.h");
  CellFacts facts{Cell::gates, Cell::columns, Cell::tape, Cell::carry, {}};
  for (int g = 0; g < Cell::gates; ++g) facts.hidden_columns[g] = Cell::hidden_column(g);
  return facts;
}

}  // namespace rnn_ext
