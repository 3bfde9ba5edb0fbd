// Small kernels that are wrong on purpose, each in one way that the emulator has to notice. The argument names the kernel;
// prints what the emulator says, or the result. Compiled with AddressSanitizer.
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "emulator.cpp"
#include "twins.h"

namespace rnn_ext::cuda {
namespace {

struct Data {
  float* memory;
  uint32_t* flags;
};

float* words() { return reinterpret_cast<float*>(shared()); }

void divergent_barrier(const Data) {
  if (thread() != 3) sync();
}
void barriers_in_different_places(const Data) {
  if (thread() < 32) sync();
  else sync();
}
void divergent_shuffle(const Data) {
  if (thread() != 5) shuffle_xor(1.f, 1);
  sync();
}
void deadlock(const Data d) { wait_until_at_least(d.flags, 1); }
void waits_for_a_later_block(const Data d) {
  if (thread() == 0 && block() == 1) publish(d.flags, 1);
  if (block() == 0) wait_until_at_least(d.flags, 1);
}
void shared_read_past_the_end(const Data d) { d.memory[thread()] = words()[64 + thread()]; }
void shared_write_past_the_end(const Data) { words()[64] = 1; }
void global_read_past_the_end(const Data d) { words()[0] = d.memory[1000]; }
void reads_what_nobody_wrote(const Data d) { d.memory[thread()] = words()[thread()]; }
// Thread i reads what its neighbour wrote, with no barrier between them: right only for those that run later.
void missing_barrier(const Data d) {
  words()[thread()] = 1;
  d.memory[thread()] = words()[(thread() + 32) % 64];
}
void peer_that_has_ended(const Data d) {
  if (cluster_rank() == 0) return;
  d.memory[0] = *reinterpret_cast<float*>(shared_of_peer(shared(), 0));
}
void right(const Data d) {
  words()[thread()] = 1;
  sync();
  d.memory[thread()] = words()[(thread() + 32) % 64];
}

int run(int argc, char** argv) {
  struct Case {
    void (*kernel)(Data);
    Launch launch;
  };
  const Launch one{1, 256}, cooperative{2, 256, 1, true}, two{2, 256}, cluster{2, 256, 2};
  const std::map<std::string, Case> cases = {
      {"divergent_barrier", {divergent_barrier, one}},
      {"barriers_in_different_places", {barriers_in_different_places, one}},
      {"divergent_shuffle", {divergent_shuffle, one}},
      {"deadlock", {deadlock, cooperative}},
      {"waits_for_a_later_block", {waits_for_a_later_block, two}},
      {"a_cooperative_launch_may_wait", {waits_for_a_later_block, cooperative}},
      {"shared_read_past_the_end", {shared_read_past_the_end, one}},
      {"shared_write_past_the_end", {shared_write_past_the_end, one}},
      {"global_read_past_the_end", {global_read_past_the_end, one}},
      {"reads_what_nobody_wrote", {reads_what_nobody_wrote, one}},
      {"missing_barrier", {missing_barrier, one}},
      {"peer_that_has_ended", {peer_that_has_ended, cluster}},
      {"too_much_shared_memory", {right, {1, 1 << 20}}},
      {"too_many_blocks", {right, {1000, 256, 1, true}}},
      {"right", {right, one}},
  };
  if (argc != 2 || !cases.count(argv[1])) return 2;
  const Case& c = cases.at(argv[1]);
  std::vector<float> memory(64, 0.f);
  std::vector<uint32_t> flags(1, 0);
  if (const char* error = launch(c.kernel, c.launch, Data{memory.data(), flags.data()})) {
    std::printf("%s\n", error);
    return 0;
  }
  float sum = 0;
  for (const float x : memory) sum += x;
  std::printf("%g\n", sum);
  return 0;
}

}  // namespace
}  // namespace rnn_ext::cuda

int main(int argc, char** argv) { return rnn_ext::cuda::run(argc, argv); }
