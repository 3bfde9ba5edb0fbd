// How the warps of a block divide a W that they hold for a whole launch.
//
// A run is 16 rows by 16 of k, a job all runs of one row tile and one slice. The warps take the jobs in turn. The first
// runs of a warp lie in its registers, in chunks: a job begins with a chunk, so that only few places of the code can be
// the end of a job. Its other runs lie in shared memory, behind those of the warps before it.
#pragma once
#include "steps.h"

namespace rnn_ext::cuda {

inline constexpr int kHeldWords = 128;  // registers of a thread for W
inline constexpr int kHeldChunks = 4;

struct Division {
  int warps, jobs;
  int runs;   // of a job
  int chunk;  // runs of a chunk

  static constexpr int runs_of_chunk(size_t storage) { return kHeldWords / kHeldChunks / int(2 * storage); }

  RNN_EXT_INLINE Division(const Geometry& g, int rows, int warps, size_t storage)
      : warps(warps), jobs((rows + 15) / 16 * g.slices), runs((g.depth / 16 + g.slices - 1) / g.slices),
        chunk(runs_of_chunk(storage)) {}

  // Runs in shared memory of the warps before this one.
  RNN_EXT_INLINE int shared_runs_before(int warp) const {
    const int turns = jobs / warps, more = jobs % warps < warp ? jobs % warps : warp;  // those with a job more
    return more * shared_runs(turns + 1) + (warp - more) * shared_runs(turns);
  }

 private:
  // Of a warp with so many jobs.
  RNN_EXT_INLINE int shared_runs(int jobs_of_warp) const {
    const int chunks = (runs + chunk - 1) / chunk, whole = kHeldChunks / chunks;  // jobs with all runs in registers
    return jobs_of_warp <= whole ? 0 : (jobs_of_warp - whole) * runs - (kHeldChunks - whole * chunks) * chunk;
  }
};

}  // namespace rnn_ext::cuda
