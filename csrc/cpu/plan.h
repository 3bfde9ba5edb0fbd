// How a call is carried out: a function of its sizes, lengths and dtype, of the number of threads, the instruction set
// and the switches, never of the numbers.
#pragma once
#include "../params.h"

namespace rnn_ext {

// How products of float32, float16 and bfloat16 calls are computed: by multiply-add, on AMX tiles where the machine has
// them, or as the plan finds better. For the whole process; starts as `automatic`.
enum class Float32Product : int { automatic, fma, amx };
void set_float32_product(Float32Product product);
Float32Product float32_product();

// With `batch_invariant` the plan's arithmetic does not depend on the batch size: a sequence gives the same bits in any
// company. With `frozen` packed weights are there already.
Plan make_plan(const Sequences& seq, const Shape& shape, int gates, DType dtype, int threads, bool batch_invariant,
               bool frozen);

const char* name(const Plan& plan);
const char* name(Multiply multiply);

}  // namespace rnn_ext
