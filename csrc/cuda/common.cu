// What does not depend on the storage type.
#include "kernels.h"
#include "device.h"

namespace rnn_ext::cuda {

RNN_EXT_KERNEL(kThreads) write_tables(RNN_EXT_PARAM SequenceTables p) {
  for (int t = thread(); t < p.steps + int(p.last); t += threads()) {
    int64_t row = p.first_row;
    for (int i = 0; i < t; ++i) row += p.sizes[i];
    p.first_rows[t] = row;
    if (t < p.steps) p.batch_sizes[t] = p.sizes[t];
  }
}

const char* use_device(int device, DeviceLimits& limits) {
  limits.threads = kThreads;
  const char* error = read_limits(device, &limits.multiprocessors, &limits.shared_bytes, &limits.cluster_blocks,
                                  &limits.workspace_bytes);
  if (error == nullptr) limits.has_code = has_code(write_tables);
  return error;
}

const char* set_to_zero(void* memory, size_t bytes, void* stream) { return clear(memory, bytes, stream); }

const char* write_tables_of(const SequenceTables& args, void* stream) {
  Launch l;
  l.stream = stream;
  return launch(write_tables, l, args);
}

}  // namespace rnn_ext::cuda
