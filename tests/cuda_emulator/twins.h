// Twins of csrc/cuda/gpu.h: the same functions for kernels that run in the emulator. What they cannot prove is that
// the hardware does the same: the layout of matrix fragments, and the order in which writes become visible.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <exception>
#include <string>

#include "emulator.h"

#define RNN_EXT_DEVICE inline
#define RNN_EXT_KERNEL(threads) void
#define RNN_EXT_PARAM const
#define RNN_EXT_UNROLL

namespace rnn_ext::cuda {

using At = std::source_location;

inline const int& kThreads = cuda_emulator::limits().threads;  // of a block
inline constexpr int kWarp = 32;

inline int thread() { return cuda_emulator::position().thread; }
inline int threads() { return cuda_emulator::position().threads; }
inline int block() { return cuda_emulator::position().block; }
inline int blocks() { return cuda_emulator::position().blocks; }
inline void sync(At at = At::current()) { cuda_emulator::sync_block(at); }
inline char* shared() { return cuda_emulator::shared(); }

template <class T>
T shuffle_xor(T x, int lanes, At at = At::current()) {
  const char* slots = cuda_emulator::exchange_in_warp(&x, sizeof x, at);
  std::memcpy(&x, slots + ((thread() % kWarp) ^ lanes) * cuda_emulator::kSlot, sizeof x);
  return x;
}

struct alignas(16) Line {
  uint32_t x, y, z, w;
};

template <class T>
T load_fresh(const T* p) {
  return *p;
}
template <int bytes>
void copy_async(void* to_shared, const void* from) {
  if (reinterpret_cast<uintptr_t>(to_shared) % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0)
    cuda_emulator::fail("copy_async of misaligned memory");
  std::memcpy(to_shared, from, bytes);
}
inline void copies_done() {}

inline void publish(uint32_t* flag, uint32_t value) { *flag = value; }
inline void wait_until_at_least(const uint32_t* flag, uint32_t value, At at = At::current()) {
  cuda_emulator::wait_until_at_least(flag, value, at);
}

inline int cluster_rank() { return cuda_emulator::position().cluster_rank; }
inline void sync_cluster(At at = At::current()) { cuda_emulator::sync_cluster(at); }
inline char* shared_of_peer(char* mine, int rank) {
  return cuda_emulator::shared_of_peer(rank) + (mine - cuda_emulator::shared());
}

inline float half_to_float(uint16_t bits) { return float(__builtin_bit_cast(_Float16, bits)); }
inline uint16_t float_to_half(float x) { return __builtin_bit_cast(uint16_t, _Float16(x)); }
inline float bfloat16_to_float(uint16_t bits) { return __builtin_bit_cast(float, uint32_t(bits) << 16); }
inline uint16_t float_to_bfloat16(float x) {  // to nearest even
  const uint32_t u = __builtin_bit_cast(uint32_t, x);
  return x != x ? uint16_t(0x7fff) : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// The layout is the one that gpu.h states; only a GPU can show that it is also the hardware's.
template <class ToFloat>
void multiply_fragments(float* d, const uint32_t* a, const uint32_t* b, ToFloat to_float, At at) {
  struct Registers {
    uint32_t a[4], b[2];
  } mine;
  std::memcpy(mine.a, a, sizeof mine.a);
  std::memcpy(mine.b, b, sizeof mine.b);
  const char* slots = cuda_emulator::exchange_in_warp(&mine, sizeof mine, at);
  const auto of_lane = [&](int lane) {
    Registers r;
    std::memcpy(&r, slots + lane * cuda_emulator::kSlot, sizeof r);
    return r;
  };
  const auto half = [&](uint32_t pair, int which) { return to_float(uint16_t(which ? pair >> 16 : pair)); };
  const int group = thread() % kWarp / 4, column = thread() % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    const int upper = i / 2, n = column + i % 2;  // row group + 8 * upper
    for (int k = 0; k < 16; ++k) {
      const Registers left = of_lane(group * 4 + k % 8 / 2), right = of_lane(n * 4 + k % 8 / 2);
      d[i] += half(left.a[upper + k / 8 * 2], k % 2) * half(right.b[k / 8], k % 2);
    }
  }
}
inline void multiply_fragments_bfloat16(float* d, const uint32_t* a, const uint32_t* b, At at = At::current()) {
  multiply_fragments(d, a, b, bfloat16_to_float, at);
}
inline void multiply_fragments_float16(float* d, const uint32_t* a, const uint32_t* b, At at = At::current()) {
  multiply_fragments(d, a, b, half_to_float, at);
}

inline float round_to_tf32(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  return x != x ? x : __builtin_bit_cast(float, (bits + 0x1000) & 0xffffe000);
}
// A number of float's exponents and 24 bits, what is behind them cut off.
inline float cut_off(double x) {
  const float nearest = float(x);
  return std::abs(double(nearest)) > std::abs(x) ? std::nextafter(nearest, 0.f) : nearest;
}
// At its worst: what a tensor core's sum has no room for is cut off, not rounded.
inline void multiply_fragments_tf32(float* d, const float* a, const float* b, At at = At::current()) {
  struct Registers {
    float a[4], b[2];
  } mine;
  std::memcpy(mine.a, a, sizeof mine.a);
  std::memcpy(mine.b, b, sizeof mine.b);
  for (const float x : {a[0], a[1], a[2], a[3], b[0], b[1]})
    if (x == x && round_to_tf32(x) != x) cuda_emulator::fail("a number with more bits than TF32 has");
  const char* slots = cuda_emulator::exchange_in_warp(&mine, sizeof mine, at);
  const auto of_lane = [&](int lane) {
    Registers r;
    std::memcpy(&r, slots + lane * cuda_emulator::kSlot, sizeof r);
    return r;
  };
  const int group = thread() % kWarp / 4, column = thread() % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    const int upper = i / 2, n = column + i % 2;
    double sum = d[i];
    for (int k = 0; k < 8; ++k)
      sum += double(of_lane(group * 4 + k % 4).a[upper + k / 4 * 2]) * of_lane(n * 4 + k % 4).b[k / 4];
    d[i] = cut_off(sum);
  }
}

inline const char* read_limits(int, int* multiprocessors, int* shared_bytes, int* cluster_blocks,
                               int64_t* workspace_bytes) {
  const cuda_emulator::Limits& limits = cuda_emulator::limits();
  *multiprocessors = limits.multiprocessors;
  *shared_bytes = limits.shared_bytes;
  *cluster_blocks = limits.cluster_blocks;
  *workspace_bytes = limits.workspace_bytes;
  return nullptr;
}

inline const char* clear(void* memory, size_t bytes, void*) {
  std::memset(memory, 0, bytes);
  return nullptr;
}

template <class Args>
bool has_code(void (*)(Args)) {
  return cuda_emulator::limits().has_code;
}

struct Launch {
  int blocks = 1;
  size_t shared_bytes = 0;
  int cluster = 1;
  bool cooperative = false;
  void* stream = nullptr;
};

template <class Args>
const char* prepare_launch(void (*)(Args), const Launch&, int* at_once) {
  *at_once = cuda_emulator::limits().at_once;
  return nullptr;
}

template <class Args>
const char* launch(void (*kernel)(Args), const Launch& l, const Args& args) {
  static thread_local std::string error;
  try {
    cuda_emulator::run({l.blocks, kThreads, l.shared_bytes, l.cluster, l.cooperative}, [&] { kernel(args); });
  } catch (const std::exception& e) {
    error = e.what();
    return error.c_str();
  }
  return nullptr;
}

}  // namespace rnn_ext::cuda
