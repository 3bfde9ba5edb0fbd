// A fiber: a stack and a place to go on from. Switching costs a few nanoseconds on x86-64 and a system call elsewhere.
#pragma once
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_emulator {

#if defined(__x86_64__)
// Saves the callee-saved registers on this stack and goes on where the other one left off.
extern "C" void cuda_emulator_switch(void** save, void* load);
asm(R"(
.text
.hidden cuda_emulator_switch
.globl cuda_emulator_switch
.type cuda_emulator_switch, @function
cuda_emulator_switch:
  endbr64
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_emulator_switch, .-cuda_emulator_switch
)");
#endif

inline constexpr size_t kStack = 128 * 1024;

// Stacks of all fibers that a launch needs at once, kept for the next launch.
class Stacks {
 public:
  char* at(size_t i) {
    while (i >= stacks.size()) {
      void* memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) throw std::bad_alloc();
      stacks.push_back(static_cast<char*>(memory));
    }
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stacks[i], kStack);  // a fiber that never returned leaves its frames marked
#endif
    return stacks[i];
  }

 private:
  std::vector<char*> stacks;
};

class Fiber {
 public:
  void start(char* stack_memory, void (*entry)()) {
    stack = stack_memory;
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>(stack + kStack - 64);
    *--top = nullptr;  // where entry() would return to; it never does
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    place = top;
#else
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
#endif
  }

  // From the scheduler into the fiber; returns when the fiber leaves.
  void enter() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&scheduler_fake, stack, kStack);
#endif
#if defined(__x86_64__)
    cuda_emulator_switch(&scheduler_place, place);
#else
    swapcontext(&scheduler_context, &context);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
#endif
  }

  // First thing that a fiber does.
  static void entered() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
  }

  // From the fiber back to the scheduler; returns when it is entered again.
  void leave(bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake, scheduler_stack, scheduler_size);
#else
    (void)for_good;
#endif
#if defined(__x86_64__)
    cuda_emulator_switch(&place, scheduler_place);
#else
    swapcontext(&context, &scheduler_context);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, &scheduler_stack, &scheduler_size);
#endif
  }

 private:
  char* stack = nullptr;
#if defined(__x86_64__)
  void* place = nullptr;
  static inline thread_local void* scheduler_place = nullptr;
#else
  ucontext_t context;
  static inline thread_local ucontext_t scheduler_context;
#endif
#if defined(__SANITIZE_ADDRESS__)
  static inline thread_local void* scheduler_fake = nullptr;
  static inline thread_local const void* scheduler_stack = nullptr;
  static inline thread_local size_t scheduler_size = 0;
#endif
};

}  // namespace cuda_emulator
