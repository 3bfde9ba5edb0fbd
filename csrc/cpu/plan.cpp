#include "plan.h"

#include <algorithm>
#include <atomic>

#include "isa.h"

namespace rnn_ext {
namespace {

// Thresholds, tried out on a 2-core AVX-512 machine where the comment says so, and in the size of a chunk; the others are
// estimates that the speed grid has not contradicted.
constexpr double kFlopsForThreads = 2e6;      // whole call: less is done before a second worker has started
// One step of a worker: what it saves must exceed the barrier. With one sequence it saves more than multiplications, for
// then it waits for weights from its core's cache. Tried out at H 64 to 256, I 1 and H, B 1, 2 and 4, two threads; with
// less, a split gains at most a tenth where the cores share a cache, and takes half as long again where they do not.
constexpr double kFlopsForHiddenSplit = 7.5e4, kFlopsForHiddenSplitOfOne = 2.25e4;
constexpr int64_t kSequencesPerWorker = 4, kUnitsPerWorker = 32;  // fewer make the products inefficient
constexpr int64_t kUnpackedRows = 4;
// W_hh that does not fit into a core's cache: better half of it a core, as long as half of the sequences a core would
// not be many. Tried out at H 256 to 1024, B 4 to 64, two threads, all cells.
constexpr int64_t kCacheBytes = 1536 * 1024, kManySequencesPerWorker = 16;
// A call of one step, tried out on two AVX-512 cores at H 64 to 512, B 1 to 128: to how many rows dot products with the
// weights as they lie are faster than packing, and what is worth a second thread. Weights come from a cache that is
// slower than a core, so that many of them are worth it even with one row. On AVX2 packing is quick for its vectors: there no
// more than so many rows in float32 (tried out on two cores at H 192 to 512, B 6 to 40).
constexpr int64_t kTermsPerRow = 12, kRowsOnAvx2 = 10;
constexpr double kFlopsOfStepForThreads = 1e6, kWeightsForThreads = 1e5;
// Tiles: tried out at H 32 to 1024, B 1 to 256, one and two threads, all cells. With less, they are not filled, or what it
// takes to split numbers into parts is not won back: three parts of float32 take most of that, bfloat16 nothing. A single
// step in float32 uses what is split of the weights once.
constexpr int64_t kTileSequences = 16, kTileUnits = 128, kTileStates = 4096;
constexpr int64_t kTileSequencesOfBfloat16 = 4, kTileUnitsOfBfloat16 = 64, kTileStatesOfBfloat16 = 1024;
constexpr int64_t kTileUnitsOfFloat32 = 224, kTileSumsOfFloat32 = 8192, kTileRowsOfOneStep = 128;
constexpr double kFullTiles = 0.9;  // of sequences and units of a step: an empty part takes as long as a full one
// One step, where a worker would have less than one tile of sequences, and less than two: then twice as much of a weight
// must be read for as many products. Tried out at H 128 to 512, B 4 to 48, two threads, all cells.
constexpr double kFlopsForHiddenSplitOfTiles = 1e6, kFlopsForHiddenSplitOfTwoTiles = 1e7;
constexpr int64_t kChunkBytes = 2 * 1024 * 1024;
// By sequence: where it takes fewer vectors, or not more in layers of few weights. Tried out at H 3 to 200, I 1 to 128, B 4
// to 256, all cells, one and two threads. Inputs must be one block of a sum, and not so many that turning rows into columns
// is most of the work; a block has one thread, so that long calls need many blocks. Threads are worth it from fewer
// operations on, since none waits for another; beside its products a gate of a unit takes some.
constexpr double kFewerVectors = 1.15;
constexpr int64_t kFewColumns = 32, kBytesBySequence = 256 * 1024, kInputsBySequence = 128, kInputsPerGate = 8;
constexpr int64_t kManyBlocks = 8;
constexpr double kFlopsOfOneBlock = kFlopsForThreads, kFlopsOfFewBlocks = 3e7;
constexpr double kFlopsForThreadsBySequence = 7e5, kFlopsOfGate = 40;
// Layer wavefront: tried out at L 2 to 4, H 64 to 256, B 1 and 4, T 100, two threads, all cells. Shorter sequences are
// over before all layers are at work; more of them (with a projection four are too many, and two not tried) are better
// off otherwise, and so are layers with more weights than this in W_hh where the units can be split.
constexpr int64_t kWavefrontTime = 64, kWavefrontSequences = 4, kWavefrontSequencesProjected = 2;
constexpr int64_t kWavefrontBytes = 256 * 1024;

constexpr int64_t kInputsPerState = 4, kRowsBeforeLoop = 1024;
// Of a pipeline's chunk, at least: tried out at B 1 to 7, T 30 to 1000, two threads.
constexpr int64_t kStepsOfPipeline = 8, kRowsOfPipeline = 16;

// Steps that make up about `rows` rows.
int64_t steps_for(const Sequences& seq, int64_t rows) {
  return std::clamp<int64_t>((rows + seq.B - 1) / std::max<int64_t>(seq.B, 1), 1, std::max<int64_t>(seq.T, 1));
}

int64_t blocks(int64_t numbers, int64_t block) { return (numbers + block - 1) / block; }
double filled(int64_t numbers, int64_t block) { return double(numbers) / double(blocks(numbers, block) * block); }

std::atomic<Float32Product> chosen_product = Float32Product::automatic;

Multiply multiply_for(const Sequences& seq, const Shape& shape, int gates, DType dtype, bool batch_invariant) {
  // Faster at every shape tried, H 32 to 1024, B 1 to 128, all cells.
  if (dtype == DType::bfloat16 && multiplies_bfloat16() && float32_product() == Float32Product::automatic)
    return Multiply::bf16;
  if (active() < Isa::amx || dtype == DType::float64) return Multiply::fma;
  if (float32_product() != Float32Product::automatic)
    return float32_product() == Float32Product::amx ? Multiply::amx : Multiply::fma;
  // A packed batch shrinks as it goes: what counts is its mean.
  const int64_t H = shape.H, states = seq.R * H, T = seq.T;
  const auto worth_it = [&] {
    if (dtype == DType::bfloat16)
      return seq.R >= kTileSequencesOfBfloat16 * T && H >= kTileUnitsOfBfloat16 &&
             states >= (H < kTileUnits ? 2 : 1) * kTileStatesOfBfloat16 * T;
    if (seq.R < kTileSequences * T) return false;
    if (dtype == DType::float16) return H >= kTileUnits && states >= kTileStates * T;
    // What a packed batch fills changes from step to step.
    const bool full = seq.batch_sizes || filled(seq.B, 16) * filled(H, 32) >= kFullTiles;
    return full && H >= kTileUnitsOfFloat32 && gates * states >= kTileSumsOfFloat32 * T &&
           (T > 1 || seq.R >= kTileRowsOfOneStep);
  };
  return !batch_invariant && worth_it() ? Multiply::amx : Multiply::fma;
}

bool is_half(DType dtype) { return dtype == DType::bfloat16 || dtype == DType::float16; }
int64_t computed_bytes(DType dtype) { return dtype == DType::float64 ? 8 : 4; }  // of a number

int64_t lanes(DType dtype) {
  return (active() >= Isa::avx512 ? 64 : active() == Isa::avx2 ? 32 : 16) / computed_bytes(dtype);
}

// Must not depend on the threads: it decides the order of sums in the gradients of the weights.
bool goes_by_sequence(const Sequences& seq, const Shape& shape, int gates, DType dtype, double flops) {
  if (is_half(dtype) || shape.projected) return false;
  const int64_t inputs = std::max(shape.I, shape.L > 1 ? shape.D * shape.H : 0), columns = inputs + shape.H;
  const int64_t bytes = gates * shape.H * columns * computed_bytes(dtype);
  if (inputs > std::min(kInputsBySequence, kInputsPerGate * gates * shape.H) || bytes > kBytesBySequence) return false;
  const int64_t count = blocks(seq.B, lanes(dtype));
  if (count < kManyBlocks && flops > (count > 1 ? kFlopsOfFewBlocks : kFlopsOfOneBlock)) return false;
  double vectors = double(seq.T * count);  // that hold a number of each sequence at each step
  if (seq.batch_sizes) {
    vectors = 0;
    for (int64_t t = 0; t < seq.T; ++t) vectors += double(blocks(seq.batch_sizes[t], lanes(dtype)));
  }
  const double by_unit = double(seq.R * blocks(shape.H, lanes(dtype))), by_sequence = vectors * double(shape.H);
  return by_unit >= kFewerVectors * by_sequence || (by_unit >= by_sequence && columns <= kFewColumns);
}

}  // namespace

void set_float32_product(Float32Product product) { chosen_product = product; }
Float32Product float32_product() { return chosen_product; }

Plan make_plan(const Sequences& seq, const Shape& shape, int gates, DType dtype, int threads, bool batch_invariant,
               bool frozen) {
  Plan plan;
  plan.multiply = multiply_for(seq, shape, gates, dtype, batch_invariant);
  // Chunks come before threads: their borders decide the order of sums in the gradients of the weights. Forward, a
  // chunk should be long enough that swapping W_ih for W_hh in the caches pays, and there should be several for the
  // pipeline. Backward, the gradients of the weights, read and written once per chunk, want a chunk no shorter than
  // they are wide; but operands of tiles, three times six bytes for each number of da, should not outgrow what torch takes.
  const int64_t row_bytes = std::max<int64_t>(gates * shape.H * computed_bytes(dtype), 1);
  const int64_t forward_rows = std::clamp<int64_t>(kChunkBytes / row_bytes, 64, 1024);
  plan.forward_steps = steps_for(seq, std::min(forward_rows, std::max<int64_t>(seq.R / 8, 64)));
  const int64_t most_rows = plan.multiply == Multiply::amx ? 512 : 1024;
  int64_t backward_rows = std::clamp<int64_t>(shape.H, 256, most_rows);
  if (shape.H < 64) backward_rows = std::clamp<int64_t>(seq.R / 4, 64, backward_rows);  // little memory
  plan.backward_steps = steps_for(seq, backward_rows);
  const bool one_step = seq.T == 1;
  const int64_t terms = seq.R * kTermsPerRow * (is_half(dtype) ? 4 : 1);  // widened again for every four rows
  const bool pairs = plan.multiply == Multiply::bf16;  // whose weights are packed in no time
  const bool few_rows =
      seq.R <= kUnpackedRows ||
      (one_step && !frozen && !pairs && terms <= std::min(shape.I, shape.P) &&
       (active() != Isa::avx2 || dtype != DType::float32 || seq.R <= kRowsOnAvx2));
  const double step_flops = 2.0 * (gates + shape.projected) * shape.H * shape.P;  // of one sequence and direction
  const double flops = double(seq.R) * shape.L * shape.D * (step_flops + 2.0 * gates * shape.H * shape.I);
  if (plan.multiply == Multiply::fma && (batch_invariant || !few_rows) &&
      goes_by_sequence(seq, shape, gates, dtype, flops)) {
    plan.by_sequence = true;
    plan.weights = Weights::as_they_lie;
    const double of_gates = kFlopsOfGate * double(seq.R * shape.L * shape.D * gates * shape.H);
    if (flops + of_gates >= kFlopsForThreadsBySequence)
      plan.threads = int(std::min<int64_t>(threads, blocks(seq.B, lanes(dtype))));
    if (plan.threads > 1) plan.split = Split::batch;
    return plan;
  }
  if (!batch_invariant && plan.multiply != Multiply::amx && few_rows) {
    plan.multiply = Multiply::fma;
    plan.weights = Weights::as_they_lie;
  } else if (one_step && !frozen) {
    plan.weights = Weights::in_pieces;
  }

  const double numbers = flops / (2.0 * double(seq.R));  // in the weights
  const bool worth_threads = one_step ? flops >= kFlopsOfStepForThreads || numbers >= kWeightsForThreads
                                      : flops >= kFlopsForThreads;
  if (threads < 2 || !worth_threads) return plan;
  plan.threads = threads;
  plan.split_directions = shape.D == 2;
  const int64_t workers = plan.split_directions ? (threads + 1) / 2 : threads;  // on one time loop
  if (workers == 1) return plan;
  const bool tiles = plan.multiply == Multiply::amx;
  const int64_t weight_bytes = row_bytes * shape.P / (pairs ? 2 : 1);
  const bool streams = !tiles && weight_bytes > kCacheBytes;
  const bool few = seq.B < (tiles ? 2 * kTileSequences : kSequencesPerWorker) * workers ||
                   (streams && seq.B <= kManySequencesPerWorker * workers);
  const bool one_tile = seq.B < kTileSequences * workers;
  const double enough = tiles ? (one_tile ? kFlopsForHiddenSplitOfTiles : kFlopsForHiddenSplitOfTwoTiles)
                              : (seq.B == 1 ? kFlopsForHiddenSplitOfOne : kFlopsForHiddenSplit) * workers;
  const bool layers = shape.L > 1 && shape.D == 1 && plan.weights == Weights::packed && seq.T >= kWavefrontTime &&
                      seq.B <= (shape.projected ? kWavefrontSequencesProjected : kWavefrontSequences);
  const bool layers_beat_units = layers && shape.L >= workers && row_bytes * shape.P <= kWavefrontBytes;
  // A projection needs every unit of a step: a split of the units would cost a second barrier. One step uses each
  // weight once: the workers share the weights rather than the sequences.
  // Weights that are kept packed are shared out by panels, twice as wide on AVX-512 as what a worker needs.
  const int64_t units_per_worker = (frozen ? 2 : 1) * kUnitsPerWorker;
  if (!shape.projected && !layers_beat_units && shape.H >= units_per_worker * workers &&
      (one_step || (few && seq.B * step_flops >= enough)))
    plan.split = Split::hidden;
  else if (seq.B >= kSequencesPerWorker * workers)
    plan.split = Split::batch;
  else if (layers)
    plan.split = Split::layer;
  // No sum depends on these steps. Where one worker has the loop, it waits for the products of the first chunk. But where
  // it has hardly anything to do in the loop, all of them share these products: the longer, the better.
  if (plan.split == Split::none && shape.I >= kInputsPerState * shape.P)
    plan.forward_steps = steps_for(seq, std::max(forward_rows, kRowsBeforeLoop));
  else if (plan.split == Split::none && plan.multiply == Multiply::fma)
    plan.forward_steps = std::min(
        steps_for(seq, forward_rows), std::max({seq.T / 16, kStepsOfPipeline, steps_for(seq, kRowsOfPipeline)}));
  if (plan.split == Split::layer) plan.forward_steps = plan.wavefront_steps = std::clamp<int64_t>(seq.T / 16, 8, 16);
  return plan;
}

const char* name(Multiply multiply) {
  return multiply == Multiply::amx ? "amx" : multiply == Multiply::bf16 ? "bf16" : "fma";
}

const char* name(const Plan& plan) {
  if (plan.by_sequence) return "by sequence";
  if (plan.weights == Weights::as_they_lie) return "unpacked";
  if (plan.weights == Weights::in_pieces) return "one step";
  if (plan.threads == 1) return "serial";
  if (plan.split == Split::batch) return plan.split_directions ? "direction and batch split" : "batch split";
  if (plan.split == Split::layer) return "layer wavefront";
  if (plan.split == Split::hidden) return plan.split_directions ? "direction and hidden split" : "hidden split";
  return plan.split_directions ? "direction split" : "pipeline";
}

}  // namespace rnn_ext
