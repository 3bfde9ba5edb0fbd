// The kernels of every instruction set and storage type, each of which is a file of its own (kernels.cpp).
#pragma once
#include "../cells/cell.h"
#include "../params.h"
#include "isa.h"

namespace rnn_ext {

struct KernelTable {
  const Kernel* of_cells[int(DType::count)];  // [cells], by storage type
};

// Tiles do nothing for double: there the set amx has the kernels of avx512.
#define RNN_EXT_TABLE(isa, isa_of_double)                                                   \
  namespace isa {                                                                           \
  const Kernel* kernels_of_float();                                                         \
  const Kernel* kernels_of_double();                                                        \
  const Kernel* kernels_of_bfloat16();                                                      \
  const Kernel* kernels_of_float16();                                                       \
  inline KernelTable table() {                                                              \
    return {{kernels_of_float(), isa_of_double::kernels_of_double(), kernels_of_bfloat16(), \
             kernels_of_float16()}};                                                        \
  }                                                                                         \
  }
RNN_EXT_TABLE(isa_baseline, isa_baseline)
RNN_EXT_TABLE(isa_avx2, isa_avx2)
RNN_EXT_TABLE(isa_avx512, isa_avx512)
RNN_EXT_TABLE(isa_amx, isa_avx512)
#undef RNN_EXT_TABLE

}  // namespace rnn_ext
