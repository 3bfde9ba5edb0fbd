#include "plan.h"

#include <algorithm>
#include <cstdlib>

#include "../cells/names.h"
#include "division.h"

namespace rnn_ext::cuda {
namespace {

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_divide(a, b) * b; }

// Estimates for one step in cycles of a Hopper chip, from data sheets and papers; none is measured yet.
constexpr double kGridExchange = 2200, kClusterExchange = 500, kLaunch = 5000, kLibraryCall = 20000;
constexpr double kFmaRate = 64;         // multiply-adds a cycle of one multiprocessor, half of its peak
constexpr double kFragmentRate = 512;   // the same on the tensor cores, where operands come from shared memory
constexpr double kSplitRate = 160;      // the same for float32 in three products of TF32
constexpr double kDoubleRate = 32;
constexpr double kSharedBytes = 128;    // a cycle
constexpr double kGlobalBytes = 32;     // a cycle and multiprocessor, out of the second-level cache

// From how many sequences on float32 goes to the tensor cores: their tile has 8.
constexpr int64_t kSplitFrom = 8;
// Under batch_invariant a plan is made for this many sequences, whatever the batch, and repeated for all of them.
constexpr int64_t kInvariantSequences = 16;

double rate_of(bool fragments, const LoopShape& s) {
  return s.compute == 8 ? kDoubleRate : !fragments ? kFmaRate : s.storage == 2 ? kFragmentRate : kSplitRate;
}
bool takes_fragments(const LoopShape& s, const Wish& wish) {
  if (s.storage == 2) return !wish.fma;
  return s.storage == 4 && !wish.fma && !wish.float_fma && (wish.fragments || s.B >= kSplitFrom);
}

// Everything that follows from units, sequences, tile and depth.
Geometry complete(Geometry g, const LoopShape& s, const DeviceLimits& device) {
  const int rows = g.units * s.rows_per_unit, line = 16 / s.storage;
  // Rows as far apart, modulo the 32 banks, as four lanes load of one: those that load a fragment then meet no conflict.
  g.stride = g.fragments ? int(round_up(g.depth, 128 / s.storage) + 16) : g.depth;
  const bool large = large_tiles(rows, g.tile, size_t(s.storage));
  const int row_tile = g.fragments ? 16 : large ? 8 : 4;
  const int sequence_tile = g.fragments ? (g.tile > 8 ? 16 : 8) : large ? 8 : g.tile > 1 ? 4 : 1;
  // Who holds W takes all sequences.
  const int64_t jobs = ceil_divide(rows, row_tile) * (g.held ? 1 : ceil_divide(g.tile, sequence_tile));
  const int64_t runs = ceil_divide(g.depth, g.fragments ? 16 : 32 * line);  // into which a sum can be cut
  // Few slices, but all warps busy in every round; each slice is one more number to add for every sum.
  const int64_t warps = device.threads / 32;
  double least = 0;
  for (int64_t slices = 1; slices <= std::clamp<int64_t>(runs, 1, warps); ++slices) {
    const double cost = double(ceil_divide(jobs * slices, warps)) / double(slices) + 0.015 * double(slices);
    if (slices == 1 || cost < least) g.slices = int(slices), least = cost;
  }
  const Division division(g, rows, int(warps), size_t(s.storage));
  g.weight_bytes = size_t(g.held ? division.shared_runs_before(int(warps)) * 16 * 16 : rows * g.stride) * size_t(s.storage);
  g.shared_bytes = Layout(g, rows, s.columns, size_t(s.storage), size_t(s.compute)).end;
  return g;
}

double cycles_of(const Geometry& g, const LoopShape& s, const DeviceLimits& device) {
  const double rows = double(g.units) * s.rows_per_unit, sequences = g.sequences, K = double(s.K);
  const double padded_rows = g.fragments ? double(round_up(int64_t(rows), 16)) : rows;
  const double tiles = double(ceil_divide(g.sequences, g.tile));
  const double padded_sequences = g.fragments ? tiles * double(round_up(g.tile, 8)) : sequences;
  const double rate = rate_of(g.fragments, s), weights = g.held ? double(g.weight_bytes) : rows * K * s.storage;
  const double product = std::max(padded_rows * padded_sequences * K / rate,
                                  weights * tiles * double(ceil_divide(g.tile, g.fragments ? 16 : 4)) / kSharedBytes);
  double staging = sequences * K * s.storage / kGlobalBytes;
  if (!g.resident) staging += rows * K * s.storage / kGlobalBytes;
  if (g.cluster) staging = sequences * rows / s.rows_per_unit * (s.K / s.H) * s.storage * g.unit_blocks / kGlobalBytes;
  const double blocks = double(s.D) * g.groups * g.unit_blocks;
  const double waves = double(ceil_divide(int64_t(blocks), device.multiprocessors));
  const double exchange = g.cluster ? kClusterExchange : g.persistent ? kGridExchange : kLaunch;
  return waves * (product + staging) + exchange;
}

// The largest tile with which the block fits into shared memory; 0 units if none does.
Geometry fit_tile(Geometry g, const LoopShape& s, const DeviceLimits& device) {
  for (int tile = g.sequences; tile >= 1; tile = tile > 1 ? int(ceil_divide(tile, 2)) : 0) {
    if (g.cluster && tile < g.sequences) break;
    g.tile = tile;
    g = complete(g, s, device);
    if (g.shared_bytes <= size_t(device.shared_bytes)) return g;
  }
  g.units = 0;
  return g;
}

// W_hh stays in shared memory, all blocks run at once, one exchange through global memory a step.
Geometry grid(const LoopShape& s, const DeviceLimits& device, int64_t groups, bool fragments, bool held) {
  Geometry g;
  g.held = held;
  const int64_t unit_blocks = device.multiprocessors / (s.D * groups);
  g.units = 0;
  if (unit_blocks == 0) return g;
  g.fragments = fragments;
  g.units = int(ceil_divide(s.H, unit_blocks));
  g.unit_blocks = int(ceil_divide(s.H, g.units));
  g.sequences = int(ceil_divide(s.B, groups));
  g.groups = int(ceil_divide(s.B, g.sequences));
  g.depth = int(round_up(s.K, 16));
  g.resident = g.persistent = true;
  return fit_tile(g, s, device);
}

// The same with the blocks of a group as a cluster: clusters do not wait for each other, so there may be any number.
Geometry cluster(const LoopShape& s, const DeviceLimits& device, int64_t groups, bool fragments, bool held) {
  Geometry g;
  g.held = held;
  g.units = 0;
  const int64_t line = 16 / s.storage;
  if (device.cluster_blocks < 2 || s.H % line != 0) return g;
  g.fragments = fragments;
  g.units = int(round_up(ceil_divide(s.H, device.cluster_blocks), line));  // peers copy whole lines
  g.unit_blocks = int(ceil_divide(s.H, g.units));
  if (g.unit_blocks < 2) {
    g.units = 0;
    return g;
  }
  g.sequences = int(ceil_divide(s.B, groups));
  g.groups = int(ceil_divide(s.B, g.sequences));
  g.depth = int(round_up(s.K, 16));
  g.resident = g.persistent = g.cluster = true;
  return fit_tile(g, s, device);
}

// One launch a step, weights staged piece by piece: fits always.
Geometry stepwise(const LoopShape& s, const DeviceLimits& device, bool fragments) {
  Geometry g;
  g.fragments = fragments;
  const int64_t sequences = std::min<int64_t>(s.B, 32);
  g.sequences = g.tile = int(sequences);
  g.groups = int(ceil_divide(s.B, sequences));
  const int64_t share = ceil_divide(s.H * s.D * g.groups, device.multiprocessors);
  g.units = int(std::clamp<int64_t>(share, 1, std::max(1, 64 / s.rows_per_unit)));
  g.unit_blocks = int(ceil_divide(s.H, g.units));
  for (g.depth = int(round_up(s.K, 16)); g.depth > 16; g.depth = int(round_up(ceil_divide(g.depth, 2), 16))) {
    g = complete(g, s, device);
    if (g.shared_bytes <= size_t(device.shared_bytes)) return g;
  }
  while (g.units > 1 || g.sequences > 1) {
    g = complete(g, s, device);
    if (g.shared_bytes <= size_t(device.shared_bytes)) return g;
    g.units = int(ceil_divide(g.units, 2));
    g.sequences = g.tile = int(ceil_divide(g.sequences, 2));
    g.unit_blocks = int(ceil_divide(s.H, g.units));
    g.groups = int(ceil_divide(s.B, g.sequences));
  }
  return complete(g, s, device);
}

// The products of a step as launches of their own and one that is pointwise: for large weights, where the library's
// product is the better one, and for a projection.
Geometry apart(const LoopShape& s, bool library) {
  Geometry g;
  g.apart = true;
  g.library = library;
  g.units = int(std::min<int64_t>(s.H, 64));
  g.unit_blocks = int(ceil_divide(s.H, g.units));
  g.sequences = g.tile = int(std::min<int64_t>(s.B, 4));
  g.groups = int(ceil_divide(s.B, g.sequences));
  g.depth = g.stride = g.slices = 0;
  g.shared_bytes = Layout(g, g.units * s.rows_per_unit, s.columns, size_t(s.storage), size_t(s.compute)).end;
  return g;
}
double library_cycles(const LoopShape& s, const DeviceLimits& device) {
  const double work = double(s.H) * s.rows_per_unit * double(s.K) * double(s.D), all = device.multiprocessors;
  const double rate = rate_of(s.storage == 2, s);
  return std::max(work * double(s.B) / rate / all, work * s.storage / kGlobalBytes / all) + kLibraryCall * double(s.D);
}

LoopShape shape_of(const Sequences& seq, const Shape& shape, int dtype) {
  LoopShape s;
  s.T = seq.T, s.B = seq.B, s.H = shape.H, s.D = shape.D;
  s.storage = dtype == int(DType::float64) ? 8 : dtype == int(DType::float32) ? 4 : 2;
  s.compute = dtype == int(DType::float64) ? 8 : 4;
  s.projected = shape.projected;
  return s;
}

}  // namespace

LoopShape forward_shape(const Sequences& seq, const Shape& shape, int cell, int dtype) {
  LoopShape s = shape_of(seq, shape, dtype);
  s.K = s.H;
  s.rows_per_unit = cell_facts[cell].gates;
  s.columns = cell_facts[cell].columns;
  return s;
}

LoopShape backward_shape(const Sequences& seq, const Shape& shape, int cell, int dtype) {
  LoopShape s = shape_of(seq, shape, dtype);
  s.K = s.H * cell_facts[cell].gates;
  return s;
}

Wish wish_of_environment(bool batch_invariant) {
  Wish wish;
  wish.invariant = batch_invariant;
  const char* plan = std::getenv("RNN_EXT_CUDA_PLAN");
  const std::string kind = plan ? plan : "";
  if (kind == "stepwise") wish.kind = Kind::stepwise;
  else if (kind == "grid") wish.kind = Kind::grid;
  else if (kind == "cluster") wish.kind = Kind::cluster;
  else if (kind == "library") wish.kind = Kind::library;
  else if (!kind.empty()) wish.error = "RNN_EXT_CUDA_PLAN must be stepwise, grid, cluster or library, and is " + kind;
  const char* product = std::getenv("RNN_EXT_CUDA_PRODUCT");
  const std::string how = product ? product : "";
  wish.fma = how == "fma";
  wish.fragments = how == "fragments" || how == "held";
  wish.in_shared = how == "fragments";
  if (!how.empty() && how != "fma" && how != "fragments" && how != "held")
    wish.error = "RNN_EXT_CUDA_PRODUCT must be fma, fragments or held, and is " + how;
  const char* of_float32 = std::getenv("RNN_EXT_FLOAT32_PRODUCT");
  wish.float_fma = of_float32 && std::string(of_float32) == "fma";
  return wish;
}

Geometry make_geometry(const LoopShape& call, const DeviceLimits& device, const Wish& wish) {
  LoopShape s = call;
  if (wish.invariant) s.B = kInvariantSequences;
  Geometry best;
  best.units = 0;
  double least = 0;
  const bool any = wish.kind == Kind::automatic;
  const auto consider = [&](Kind kind, auto make) {
    if (s.projected || !(any || wish.kind == kind)) return;
    const Geometry g = make();
    if (g.units == 0) return;
    const double cycles = cycles_of(g, s, device);
    if (best.units == 0 || cycles < least) best = g, least = cycles;
  };
  // Of the types that can go to the tensor cores, float32 has the choice.
  const bool can = takes_fragments(s, wish), must = can && (s.storage == 2 || wish.fragments);
  for (const bool fragments : {false, true}) {
    if (fragments ? !can : must) continue;
    const bool held = fragments && !wish.in_shared;
    consider(Kind::stepwise, [&] { return stepwise(s, device, fragments); });
    for (int64_t groups = 1; groups <= s.B; groups *= 2) {
      if (!wish.invariant) consider(Kind::grid, [&] { return grid(s, device, groups, fragments, held); });
      consider(Kind::cluster, [&] { return cluster(s, device, groups, fragments, held); });
    }
  }
  const bool steps_of_ours = wish.kind == Kind::stepwise || (any && wish.invariant);
  if (s.projected && (any || steps_of_ours || wish.kind == Kind::library))
    return apart(call, !wish.invariant && !steps_of_ours);
  if (wish.kind == Kind::library || (any && !wish.invariant && library_cycles(s, device) < least))
    return apart(call, !wish.invariant);
  if (wish.invariant && best.units > 0) best.groups = int(ceil_divide(call.B, best.sequences));
  return best;
}

Geometry multiply_geometry(int64_t M, int64_t N, int64_t K, const LoopShape& types, const DeviceLimits& device,
                           const Wish& wish) {
  LoopShape s = types;
  s.B = kInvariantSequences, s.K = K, s.rows_per_unit = 1, s.columns = 0;
  Geometry g;
  g.fragments = takes_fragments(s, wish);
  g.sequences = 0;  // no states
  g.tile = g.units = 32;
  g.depth = int(std::min<int64_t>(round_up(K, 16), 512 / s.storage));
  const size_t shared_bytes = size_t(std::min(device.shared_bytes, 48 * 1024));  // what a launch has without asking
  for (g = complete(g, s, device); g.shared_bytes > shared_bytes; g = complete(g, s, device)) {
    int& largest = g.depth > 16 ? g.depth : g.units > 1 ? g.units : g.tile;
    if (largest == 1) break;
    largest = g.depth > 16 ? int(round_up(g.depth / 2, 16)) : largest / 2;
  }
  g.unit_blocks = int(ceil_divide(N, g.units));
  g.groups = int(ceil_divide(M, g.tile));
  return g;
}

std::string describe(const Geometry& g) {
  const std::string kind = g.cluster ? "clusters" : g.persistent ? "persistent grid" : "step by step";
  if (g.apart) return std::string("step by step: ") + (g.library ? "torch's" : "our") + " products and pointwise kernels";
  const auto count = [](int n, const char* what) { return std::to_string(n) + " " + what; };
  return kind + ": " + count(g.groups, "groups of ") + count(g.sequences, "sequences, ") +
         count(g.unit_blocks, "blocks of ") + count(g.units, "hidden units, ") +
         (g.held ? "tensor cores, weights in registers" : g.fragments ? "tensor cores" : "multiply-add units") +
         (g.held && g.weight_bytes > 0 ? " and " + count(int(g.weight_bytes / 1024), "KiB of shared memory") : "");
}

}  // namespace rnn_ext::cuda
