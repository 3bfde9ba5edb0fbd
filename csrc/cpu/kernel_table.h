// The kernels of every instruction set.
#pragma once
#include "../cells/cell.h"
#include "../params.h"
#include "isa.h"

namespace rnn_ext {

struct KernelTable {
  Kernel kernel[int(CellKind::count)][int(DType::count)];
};

namespace isa_baseline {
const KernelTable& table();
}
namespace isa_avx2 {
const KernelTable& table();
}
namespace isa_avx512 {
const KernelTable& table();
}
namespace isa_amx {
const KernelTable& table();
}

}  // namespace rnn_ext
