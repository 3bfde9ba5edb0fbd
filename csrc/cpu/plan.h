// How a call is carried out: a function of shape and thread count alone.
#pragma once
#include "../params.h"

namespace rnn_ext {

// `gates` and `element_bytes` (of the compute type) as the cell and dtype have them. With `batch_invariant` the
// plan's arithmetic does not depend on the batch size: a sequence gives the same bits in any company.
Plan make_plan(const Sequences& seq, const Shape& shape, int gates, int element_bytes, int threads,
               bool batch_invariant);

const char* name(const Plan& plan);

}  // namespace rnn_ext
