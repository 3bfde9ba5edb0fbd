#include "emulator.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"

namespace cuda_emulator {
namespace {

constexpr int kWarp = 32;
constexpr unsigned char kPoison = 0xff, kCanary = 0xa5;  // eight bytes of 0xff are NaN in every floating point type
constexpr size_t kCanaryBytes = 256;

enum class State { ready, at_block, at_warp, at_cluster, at_flag, done };
const char* const kWaitsFor[] = {"", "the barrier of its block", "its warp", "the barrier of its cluster", "a flag", ""};

struct Thread {
  Fiber fiber;
  Position position;
  State state = State::ready;
  std::source_location at;
  const uint32_t* flag = nullptr;
  uint32_t value = 0;
};

// Those who wait for each other: the threads of a warp, a block or a cluster.
struct Party {
  int size = 0, arrived = 0;
};

struct Warp : Party {
  alignas(16) char slots[2][kWarp * kSlot];  // in turns, so that a fast lane cannot overwrite what a slow one reads
  int turn = 0;
};

struct SharedMemory {
  char* base = nullptr;
  size_t size;

  explicit SharedMemory(size_t bytes) : size(bytes) {
#if defined(__SANITIZE_ADDRESS__)
    const size_t canary = 0;  // its own red zone ends exactly where the block's memory does
#else
    const size_t canary = kCanaryBytes;
#endif
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, std::max<size_t>(size + canary, 1)) != 0) throw std::bad_alloc();
    base = static_cast<char*>(memory);
    std::memset(base, kPoison, size);
    std::memset(base + size, kCanary, canary);
  }
  SharedMemory(const SharedMemory&) = delete;
  ~SharedMemory() { std::free(base); }

  bool overrun() const {
#if !defined(__SANITIZE_ADDRESS__)
    for (size_t i = size; i < size + kCanaryBytes; ++i)
      if (static_cast<unsigned char>(base[i]) != kCanary) return true;
#endif
    return false;
  }
};

struct Block {
  SharedMemory shared;
  Party party;
  std::vector<Warp> warps;
  std::vector<Thread> threads;
  int cluster = 0;
  Block(size_t bytes, int count) : shared(bytes), warps((count + kWarp - 1) / kWarp), threads(count) {}
};

// The blocks that are alive at the same time.
struct Wave {
  const std::function<void()>& kernel;
  int cluster_blocks;
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<Party> clusters;
  std::string error;
};

thread_local Wave* wave = nullptr;
thread_local Thread* current = nullptr;
thread_local int64_t launch_count = 0;
thread_local Stacks stacks;

Block& block_of(const Thread& t) { return *wave->blocks[t.position.block - wave->blocks.front()->threads[0].position.block]; }

std::string where(const std::source_location& at) {
  const std::string file = at.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(at.line());
}

// What every thread waits for, block by block.
std::string situation() {
  std::ostringstream text;
  int listed = 0;
  for (const auto& block : wave->blocks) {
    std::map<std::string, int> counts;
    for (const Thread& t : block->threads) {
      if (t.state == State::done) ++counts["ended"];
      else if (t.state != State::ready) ++counts[std::string("wait for ") + kWaitsFor[int(t.state)] + " at " + where(t.at)];
    }
    if (++listed > 4) continue;
    text << "; block " << block->threads[0].position.block << ":";
    for (const auto& [what, count] : counts) text << " " << count << " " << what << ",";
  }
  return text.str();
}

bool differently_placed() {
  for (const auto& block : wave->blocks) {
    const Thread* first = nullptr;
    bool flag = false;
    for (const Thread& t : block->threads) flag |= t.state == State::at_flag;
    if (flag) continue;
    for (const Thread& t : block->threads) {
      if (t.state == State::ready) continue;
      if (!first) first = &t;
      if (t.state != first->state || (t.state != State::done && t.at.line() != first->at.line())) return true;
    }
  }
  return false;
}

[[noreturn]] void give_up(const std::string& what) {
  wave->error = what + situation();
  current->fiber.leave(true);
  std::abort();
}

void entry() {
  Fiber::entered();
  wave->kernel();
  current->state = State::done;
  current->fiber.leave(true);
  std::abort();
}

template <class Visit>
void each_of(State kind, const Thread& t, Visit visit) {
  if (kind == State::at_cluster) {
    for (const auto& block : wave->blocks)
      if (block->cluster == block_of(t).cluster)
        for (Thread& other : block->threads) visit(other);
    return;
  }
  Block& block = block_of(t);
  const size_t first = kind == State::at_warp ? t.position.thread / kWarp * kWarp : 0;
  const size_t count = kind == State::at_warp ? kWarp : block.threads.size();
  for (size_t i = first; i < std::min(first + count, block.threads.size()); ++i) visit(block.threads[i]);
}

// Waits until all of the party are at the same place.
void meet(Party& party, State kind, std::source_location at) {
  Thread& me = *current;
  me.state = kind;
  me.at = at;
  if (++party.arrived == party.size) {
    bool same = true;
    each_of(kind, me, [&](Thread& t) { same &= t.at.line() == at.line(); });
    if (!same) give_up(std::string("divergent barrier: threads meet at different places of ") + kWaitsFor[int(kind)]);
    party.arrived = 0;
    each_of(kind, me, [](Thread& t) { t.state = State::ready; });
    return;
  }
  me.fiber.leave(false);
}

void fill(Wave& w, const Launch& launch, int first, int count) {
  size_t stack = 0;
  w.clusters.assign((count + launch.cluster - 1) / launch.cluster, {launch.cluster * launch.threads, 0});
  for (int b = first; b < first + count; ++b) {
    auto block = std::make_unique<Block>(launch.shared_bytes, launch.threads);
    block->cluster = (b - first) / launch.cluster;
    block->party.size = launch.threads;
    for (int t = 0; t < launch.threads; ++t) {
      Thread& thread = block->threads[t];
      thread.position = {t, b, launch.blocks, launch.threads, b % launch.cluster, launch.cluster};
      thread.fiber.start(stacks.at(stack++), entry);
      ++block->warps[t / kWarp].size;
    }
    w.blocks.push_back(std::move(block));
  }
}

void schedule(Wave& w) {
  std::vector<Thread*> turn;
  for (const auto& block : w.blocks)
    for (Thread& t : block->threads) turn.push_back(&t);
  if (order() == Order::descending) std::reverse(turn.begin(), turn.end());
  std::mt19937 random(7);
  for (size_t left = turn.size(); left > 0;) {
    if (order() == Order::shuffled) std::shuffle(turn.begin(), turn.end(), random);
    bool moved = false;
    for (Thread* t : turn) {
      if (t->state == State::at_flag && *t->flag >= t->value) t->state = State::ready;
      if (t->state != State::ready) continue;
      moved = true;
      current = t;
      t->fiber.enter();
      if (!w.error.empty()) throw std::runtime_error("cuda_emulator: " + w.error);
      left -= t->state == State::done;
    }
    if (!moved && left > 0)
      throw std::runtime_error(std::string("cuda_emulator: ") +
                               (differently_placed() ? "divergent barrier: not every thread reaches it"
                                                     : "deadlock: every thread waits") +
                               situation());
  }
  for (const auto& block : w.blocks)
    if (block->shared.overrun()) throw std::runtime_error("cuda_emulator: a write past the end of shared memory");
}

}  // namespace

Limits& limits() {
  static Limits values;
  return values;
}

Order& order() {
  static Order value = Order::ascending;
  return value;
}

int64_t launches() { return launch_count; }

void run(const Launch& launch, const std::function<void()>& kernel) {
  if (launch.blocks < 1 || launch.threads < 1 || launch.threads > 1024 || launch.blocks % launch.cluster != 0)
    throw std::runtime_error("cuda_emulator: no such launch");
  if (launch.shared_bytes > size_t(limits().shared_bytes))
    throw std::runtime_error("cuda_emulator: a block asks for " + std::to_string(launch.shared_bytes) +
                             " bytes of shared memory and can have " + std::to_string(limits().shared_bytes));
  if (launch.cluster > std::max(limits().cluster_blocks, 1))
    throw std::runtime_error("cuda_emulator: too many blocks in a cluster");
  if (launch.cooperative && launch.blocks > limits().multiprocessors)
    throw std::runtime_error("cuda_emulator: more blocks than can be alive at once in a cooperative launch");
  if (limits().refuses && (launch.cooperative || launch.cluster > 1))
    throw std::runtime_error("cuda_emulator: launch refused");
  ++launch_count;
  const int together = launch.cooperative ? launch.blocks : launch.cluster;
  struct Reset {
    ~Reset() { wave = nullptr, current = nullptr; }
  } reset;
  for (int first = 0; first < launch.blocks; first += together) {
    Wave w{kernel, launch.cluster, {}, {}, {}};
    wave = &w;
    fill(w, launch, first, together);
    schedule(w);
  }
}

void fail(const char* what) { give_up(what); }
const Position& position() { return current->position; }
char* shared() { return block_of(*current).shared.base; }
char* shared_of_peer(int rank) {
  const Position& p = current->position;
  if (rank < 0 || rank >= p.cluster_blocks) give_up("no such block in the cluster");
  const int first = wave->blocks.front()->threads[0].position.block;
  Block& peer = *wave->blocks[p.block - p.cluster_rank + rank - first];
  for (const Thread& t : peer.threads)
    if (t.state == State::done) give_up("the block whose shared memory is asked for has ended");
  return peer.shared.base;
}

void sync_block(std::source_location at) { meet(block_of(*current).party, State::at_block, at); }
void sync_cluster(std::source_location at) {
  meet(wave->clusters[block_of(*current).cluster], State::at_cluster, at);
}

void wait_until_at_least(const uint32_t* flag, uint32_t value, std::source_location at) {
  if (*flag >= value) return;
  current->state = State::at_flag;
  current->at = at;
  current->flag = flag;
  current->value = value;
  current->fiber.leave(false);
}

const char* exchange_in_warp(const void* mine, size_t bytes, std::source_location at) {
  Warp& warp = block_of(*current).warps[current->position.thread / kWarp];
  const int lane = current->position.thread % kWarp;
  if (bytes > kSlot) give_up("too much to exchange in a warp");
  // All lanes have left the last exchange but one when anybody arrives here.
  char* slots = warp.slots[warp.turn];
  std::memcpy(slots + lane * kSlot, mine, bytes);
  const bool last = warp.arrived + 1 == warp.size;
  if (last) warp.turn ^= 1;
  meet(warp, State::at_warp, at);
  return slots;
}

}  // namespace cuda_emulator
