// The kernels of every instruction set and storage type, each of which is a file of its own (kernels.cpp).
#pragma once
#include "../cells/cell.h"
#include "../params.h"
#include "isa.h"

namespace rnn_ext {

struct KernelTable {
  const Kernel* of_cells[int(DType::count)];  // [cells], by storage type
};

#define RNN_EXT_TABLE(isa)                                                                          \
  namespace isa {                                                                                   \
  const Kernel* kernels_of_float();                                                                 \
  const Kernel* kernels_of_double();                                                                \
  const Kernel* kernels_of_bfloat16();                                                              \
  const Kernel* kernels_of_float16();                                                               \
  inline KernelTable table() {                                                                      \
    return {{kernels_of_float(), kernels_of_double(), kernels_of_bfloat16(), kernels_of_float16()}}; \
  }                                                                                                 \
  }
RNN_EXT_TABLE(isa_baseline)
RNN_EXT_TABLE(isa_avx2)
RNN_EXT_TABLE(isa_avx512)
RNN_EXT_TABLE(isa_amx)
#undef RNN_EXT_TABLE

}  // namespace rnn_ext
