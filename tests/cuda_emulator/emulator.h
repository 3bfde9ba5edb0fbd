// A small CUDA runtime on the CPU: runs kernels with every thread of every block as a fiber of one host thread.
//
// What it finds, and reports as std::runtime_error: a barrier that not all threads of a block (warp, cluster) reach, or
// reach in different places; a launch in which everybody waits (deadlock); writes past the end of shared memory (under
// AddressSanitizer every access past it). Shared memory starts as NaN, so that reads before writes show in the results.
// Between two waits a fiber runs undisturbed, and in one of three orders: an algorithm that needs a barrier which is
// not there gives different results in different orders. What it cannot find: the order in which a GPU makes writes
// visible to others, since here every write is visible at once.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>

namespace cuda_emulator {

struct Limits {
  int multiprocessors = 6;
  int shared_bytes = 64 * 1024;  // of a block
  int cluster_blocks = 4;        // 0 where there are no clusters
  int64_t workspace_bytes = int64_t(1) << 30;
  int at_once = 1 << 20;         // what the device says of how many blocks can be alive
  bool refuses = false;          // launches of blocks that wait for each other
  int threads = 64;              // of a block: two warps are enough for whatever can go wrong between warps
  bool has_code = true;          // whether the kernels were built for the device
};
Limits& limits();

enum class Order { ascending, descending, shuffled };
Order& order();

struct Launch {
  int blocks = 1, threads = 32;
  size_t shared_bytes = 0;
  int cluster = 1;           // blocks of a cluster
  bool cooperative = false;  // all blocks alive at once; else one cluster after the other, so that none may wait for another
};

// Runs kernel() once for every thread. Throws std::runtime_error with a description of what went wrong.
void run(const Launch& launch, const std::function<void()>& kernel);

int64_t launches();  // how many kernels have run, for tests of plans

// Of the thread that calls.
struct Position {
  int thread, block, blocks, threads, cluster_rank, cluster_blocks;
};
const Position& position();
char* shared();                 // 128-byte aligned
char* shared_of_peer(int rank);  // that of another block of the cluster
[[noreturn]] void fail(const char* what);  // ends the launch
void sync_block(std::source_location at);
void sync_cluster(std::source_location at);
void wait_until_at_least(const uint32_t* flag, uint32_t value, std::source_location at);

// All lanes of a warp give `bytes` (at most 64) and see what each lane gave: pointer to the slot of a lane.
const char* exchange_in_warp(const void* mine, size_t bytes, std::source_location at);
inline constexpr size_t kSlot = 64;

}  // namespace cuda_emulator
