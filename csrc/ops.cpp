// The operators' schemas, and the operators on the CPU.
#include "operators.h"

#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kernel_table.h"
#include "cpu/plan.h"
#include "cpu/run_team.h"

namespace rnn_ext {
namespace {

const KernelTable& table() {
#if defined(__x86_64__)
  static const KernelTable& best = active() == Isa::amx      ? isa_amx::table()
                                   : active() == Isa::avx512 ? isa_avx512::table()
                                   : active() == Isa::avx2 ? isa_avx2::table()
                                                           : isa_baseline::table();
  return best;
#else
  return isa_baseline::table();
#endif
}

const Kernel& kernel(const Call& call) {
  STD_TORCH_CHECK(call.dtype < kDTypes, "rnn_ext: dtype must be float32, float64 or bfloat16 on the CPU");
  return table().kernel[call.cell][call.dtype];
}

Plan plan(const Call& call, bool batch_invariant) {
  return make_plan(call.seq, call.shape, call.facts().gates, DType(call.dtype),
                   int(torch::stable::get_num_threads()), batch_invariant);
}

template <class Args>
void run(Args& args, const Tensor& like, size_t (*bytes)(const Args&), void (*kernel)(const Args&, const Team&)) {
  const Tensor workspace = empty({int64_t(bytes(args))}, ScalarType::Byte, like);
  args.workspace = workspace.mutable_data_ptr();
  run_team(args.plan.threads, [&](const Team& team) { kernel(args, team); });
}

struct Cpu {
  static void forward(const Call& call, ForwardArgs& args, bool batch_invariant) {
    args.plan = plan(call, batch_invariant);
    run(args, call.x, kernel(call).forward_bytes, kernel(call).forward);
  }
  static void backward(const Call& call, BackwardArgs& args, bool batch_invariant) {
    args.plan = plan(call, batch_invariant);
    run(args, call.x, kernel(call).backward_bytes, kernel(call).backward);
  }
};

}  // namespace
}  // namespace rnn_ext

STABLE_TORCH_LIBRARY(rnn_ext, m) {
  m.def(rnn_ext::rnn_forward_schema);
  m.def(rnn_ext::rnn_backward_schema);
}

STABLE_TORCH_LIBRARY_IMPL(rnn_ext, CPU, m) {
  m.impl("rnn_forward", TORCH_BOX(&rnn_ext::rnn_forward<rnn_ext::Cpu>));
  m.impl("rnn_backward", TORCH_BOX(&rnn_ext::rnn_backward<rnn_ext::Cpu>));
}
