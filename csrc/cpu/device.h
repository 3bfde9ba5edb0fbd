// The CPU as a device of the operators (operators.h): picks kernel, plan and team for a call.
#pragma once
#include "../operators.h"
#include "isa.h"
#include "kernel_table.h"
#include "plan.h"
#include "run_team.h"

namespace rnn_ext {

inline const KernelTable& kernel_table() {
#if defined(__x86_64__)
  static const KernelTable& best = active() == Isa::amx      ? isa_amx::table()
                                   : active() == Isa::avx512 ? isa_avx512::table()
                                   : active() == Isa::avx2   ? isa_avx2::table()
                                                             : isa_baseline::table();
  return best;
#else
  return isa_baseline::table();
#endif
}

struct Cpu {
  static void forward(const Call& call, ForwardArgs& args, bool batch_invariant) {
    run(call, args, batch_invariant, kernel(call).forward_bytes, kernel(call).forward);
  }
  static void backward(const Call& call, BackwardArgs& args, bool batch_invariant) {
    run(call, args, batch_invariant, kernel(call).backward_bytes, kernel(call).backward);
  }

 private:
  static constexpr size_t kSmallWorkspace = 64 * 1024;

  static const Kernel& kernel(const Call& call) {
    STD_TORCH_CHECK(call.dtype < kDTypes, "rnn_ext: dtype must be float32, float64 or bfloat16 on the CPU");
    return kernel_table().kernel[call.cell][call.dtype];
  }

  template <class Args>
  static void run(const Call& call, Args& args, bool batch_invariant, size_t (*bytes)(const Args&),
                  void (*kernel)(const Args&, const Team&)) {
    args.plan = make_plan(call.seq, call.shape, call.facts().gates, DType(call.dtype),
                          int(torch::stable::get_num_threads()), batch_invariant);
    alignas(64) char small[kSmallWorkspace];  // allocating would cost more than a toy's products
    const size_t needed = bytes(args);
    Tensor large;
    if (needed > sizeof small) large = empty({int64_t(needed)}, ScalarType::Byte, call.x);
    args.workspace = needed > sizeof small ? large.mutable_data_ptr() : small;
    run_team(args.plan.threads, [&](const Team& team) { kernel(args, team); });
  }
};

}  // namespace rnn_ext
