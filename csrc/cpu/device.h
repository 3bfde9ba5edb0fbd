// The CPU as a device of the operators (operators.h): picks kernel, plan and team for a call.
#pragma once
#include <algorithm>
#include <mutex>

#include "../operators.h"
#include "isa.h"
#include "kernel_table.h"
#include "plan.h"
#include "run_team.h"

namespace rnn_ext {

inline const KernelTable& kernel_table() {
#if defined(__x86_64__)
  static const KernelTable best = active() == Isa::amx      ? isa_amx::table()
                                  : active() == Isa::avx512 ? isa_avx512::table()
                                  : active() == Isa::avx2   ? isa_avx2::table()
                                                            : isa_baseline::table();
#else
  static const KernelTable best = isa_baseline::table();
#endif
  return best;
}

// Packed weights that outlive a call, of one layer or cell: rnn_ext/frozen.py. Calls of several threads share them.
class KeptWeights {
 public:
  // Packed as the plan's product wants them; packs them first unless they are there, of these very weights. The result
  // owns what args.kept points to.
  Tensor provide(const Call& call, ForwardArgs& args, const Kernel& kernel) {
    const std::lock_guard lock(mutex_);
    if (!same(call.weights)) {
      weights_.clear();
      for (const Tensor& w : call.weights) weights_.push_back(alias(w));
      for (Maybe& packed : packed_) packed.reset();
    }
    Maybe& packed = packed_[int(args.plan.multiply)];
    if (!packed) {
      Tensor memory = empty({int64_t(kernel.kept_bytes(args))}, ScalarType::Byte, call.x);
      args.kept = memory.mutable_data_ptr();
      run_team(args.plan.threads, [&](const Team& team) { kernel.keep(args, team); });
      packed = memory;
    }
    args.kept = packed->mutable_data_ptr();
    return *packed;
  }

 private:
  // Another tensor of the same memory: `t.data = ...` gives `t` itself other memory, of another type perhaps.
  static Tensor alias(const Tensor& t) {
    const int64_t size = t.numel(), stride = 1;
    return view(t, 1, &size, &stride);
  }

  // By address, which nothing else can have while this owns the memory.
  bool same(const Tensors& weights) const {
    const auto equal = [](const Tensor& a, const Tensor& b) {
      return a.const_data_ptr() == b.const_data_ptr() && a.scalar_type() == b.scalar_type() && a.numel() == b.numel();
    };
    return std::equal(weights.begin(), weights.end(), weights_.begin(), weights_.end(), equal);
  }

  std::mutex mutex_;
  Tensors weights_;
  Maybe packed_[int(Multiply::count)];
};

struct Cpu {
  KeptWeights* kept = nullptr;  // of the layer that is called, if it is frozen

  void forward(const Call& call, ForwardArgs& args, bool batch_invariant) const {
    args.plan = plan(call, batch_invariant, kept != nullptr);
    Tensor owner;
    if (kept && args.plan.weights == Weights::packed) owner = kept->provide(call, args, kernel(call));
    run(call, args, kernel(call).forward_bytes, kernel(call).forward);
  }
  void backward(const Call& call, BackwardArgs& args, bool batch_invariant) const {
    args.plan = plan(call, batch_invariant, false);
    run(call, args, kernel(call).backward_bytes, kernel(call).backward);
  }

 private:
  static constexpr size_t kSmallWorkspace = 64 * 1024;

  static const Kernel& kernel(const Call& call) {
    return kernel_table().of_cells[call.dtype][call.cell];
  }
  static Plan plan(const Call& call, bool batch_invariant, bool frozen) {
    return make_plan(call.seq, call.shape, call.facts().gates, DType(call.dtype),
                     int(torch::stable::get_num_threads()), batch_invariant, frozen);
  }

  template <class Args>
  static void run(const Call& call, Args& args, size_t (*bytes)(const Args&),
                  void (*kernel)(const Args&, const Team&)) {
    alignas(64) char small[kSmallWorkspace];  // allocating would cost more than a toy's products
    const size_t needed = bytes(args);
    Tensor large;
    if (needed > sizeof small) large = empty_inside({int64_t(needed)}, ScalarType::Byte, call.x);
    args.workspace = needed > sizeof small ? large.mutable_data_ptr() : small;
    run_team(args.plan.threads, [&](const Team& team) { kernel(args, team); });
  }
};

}  // namespace rnn_ext
