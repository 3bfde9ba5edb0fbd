// Memory of large tensors: large pages for all of them; and for those that no user sees, memory that stays with the library.
//
// What the C library takes from the system for a large tensor goes back with it, so that the system clears it anew for
// every call, and a virtual machine may have to ask its host for it. LargeMemory marks it free instead: the system takes
// it where it is short, and else the next call has it as it is.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "params.h"

namespace rnn_ext {

// Asks for large pages behind memory that nobody has written yet. Costs nothing where the system has none, or always does it.
inline void use_large_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(MADV_HUGEPAGE)
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kLargePage * kLargePage;
  if (bytes >= kLargeResult) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Pieces of memory from the system, never more of it than was in use at once. Any thread may call. Nobody waits for the
// lock but `release`: in a forked process it may be held for ever, by a thread that is not there.
class LargeMemory {
 public:
  struct Piece {
    char* memory;
    size_t bytes;
  };

  // A piece of so many bytes, whatever is in it; null where the library keeps none.
  Piece* take([[maybe_unused]] size_t bytes) {
#if defined(MADV_FREE)
    const size_t size = (bytes + kLargePage - 1) / kLargePage * kLargePage;
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    Piece* piece = fitting(size);
    if (!piece) {
      most_ = std::max<size_t>(most_, used_ + size);
      while (!free_.empty() && used_ + free_bytes() + size > most_) unmap(remove(0));
      piece = map(size);
      if (!piece && release_free() > 0) piece = map(size);
    }
    if (piece) used_ += piece->bytes;
    return piece;
#else
    return nullptr;
#endif
  }

  void give_back([[maybe_unused]] Piece* piece) {
#if defined(MADV_FREE)
    used_ -= piece->bytes;
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock && madvise(piece->memory, piece->bytes, MADV_FREE) == 0)
      free_.push_back(piece);
    else
      unmap(piece);
#endif
  }

  // Gives what nobody uses to the system, and forgets how much was once in use; how many bytes that were.
  size_t release() {
#if defined(MADV_FREE)
    const std::lock_guard lock(mutex_);
    most_ = used_;
    return release_free();
#else
    return 0;
#endif
  }

 private:
#if defined(MADV_FREE)
  // The smallest free piece of that size, or little more.
  Piece* fitting(size_t size) {
    size_t best = free_.size();
    for (size_t i = 0; i < free_.size(); ++i)
      if (free_[i]->bytes >= size && free_[i]->bytes <= size + size / 4 &&
          (best == free_.size() || free_[i]->bytes < free_[best]->bytes))
        best = i;
    return best < free_.size() ? remove(best) : nullptr;
  }
  Piece* remove(size_t i) {
    Piece* const piece = free_[i];
    free_.erase(free_.begin() + i);
    return piece;
  }
  size_t release_free() {
    const size_t bytes = free_bytes();
    while (!free_.empty()) unmap(remove(0));
    return bytes;
  }
  size_t free_bytes() const {
    size_t bytes = 0;
    for (const Piece* piece : free_) bytes += piece->bytes;
    return bytes;
  }

  static Piece* map(size_t size) {
    const size_t more = size + kLargePage;
    void* const all = mmap(nullptr, more, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) return nullptr;
    const size_t before = (kLargePage - reinterpret_cast<uintptr_t>(all) % kLargePage) % kLargePage;
    char* const memory = static_cast<char*>(all) + before;
    if (before > 0) munmap(all, before);
    munmap(memory + size, more - before - size);
    use_large_pages(memory, size);
    return new Piece{memory, size};
  }
  static void unmap(Piece* piece) {
    munmap(piece->memory, piece->bytes);
    delete piece;
  }

  std::mutex mutex_;
  std::vector<Piece*> free_;  // the longest free first
  size_t most_ = 0;           // bytes in use at once
  std::atomic<size_t> used_ = 0;
#endif
};

// That of the process. Tensors may outlive what ends with it.
inline LargeMemory& large_memory() {
  static LargeMemory* const memory = new LargeMemory;
  return *memory;
}

}  // namespace rnn_ext
