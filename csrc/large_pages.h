// Large pages for large results.
#pragma once
#include <cstddef>
#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace rnn_ext {

// From here on the C library takes memory from the system afresh for every tensor and gives it back with it (the largest
// threshold that glibc's malloc adapts to). The system hands it out page by page as it is written, each with a fault:
// with pages of 4 KB that is a quarter of the time of a training step whose results are that large.
constexpr size_t kLargeResult = 32 * 1024 * 1024;

// Asks for them behind memory that nobody has written yet. Costs nothing where the system has none, or always does it.
inline void use_large_pages([[maybe_unused]] void* data, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 2 * 1024 * 1024;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  if (bytes >= kLargeResult) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace rnn_ext
