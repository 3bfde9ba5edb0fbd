// What does not depend on the storage type.
#include "kernels.h"
#include "pieces.h"

namespace rnn_ext::cuda {

const char* limits_of(int device, DeviceLimits& limits) {
  limits.threads = kThreads;
  return read_limits(device, &limits.multiprocessors, &limits.shared_bytes, &limits.cluster_blocks);
}

const char* set_to_zero(void* memory, size_t bytes, void* stream) { return clear(memory, bytes, stream); }

const char* write_tables_of(const SequenceTables& args, void* stream) {
  Launch l;
  l.stream = stream;
  return launch(write_tables, l, args);
}

}  // namespace rnn_ext::cuda
