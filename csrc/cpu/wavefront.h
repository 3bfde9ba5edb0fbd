// Layer wavefront: a layer takes up a piece of the steps as soon as the layer before it has done with that piece, so
// that several layers run at once, each on one worker. No step waits for another worker.

// How many pieces a layer has done, for the workers that wait for it; in a cache line of its own.
struct alignas(64) Progress {
  int64_t pieces;
};

// A worker's view of it.
struct Wavefront {
  const Team& team;
  Progress* progress;  // [layers], zeros at first
  int64_t layers;
  int64_t before = 0;  // pieces of earlier runs

  // Calls act(n, i) for the n-th layer in the order in which they depend on each other, and its i-th piece, once
  // (n, i - 1) and (n - 1, i) are done. The pieces that may run at once make up a stage; stage by stage they are dealt
  // out to the workers in turn. So nobody waits for long: a piece comes at least as many places behind those that it
  // depends on as there are layers, once all are at work. A layer stays with one worker, and its weights in that core's
  // cache, where the layers are a multiple of the workers; where they are not, all workers have as much to do.
  template <class Act>
  void run(int64_t pieces, Act act) {
    const int64_t workers = smaller(team.size, layers);
    int64_t turn = 0;
    for (int64_t stage = 0; stage < pieces + layers - 1; ++stage)
      for (int64_t n = 0; n < layers; ++n) {
        const int64_t i = stage - n;
        if (i < 0 || i >= pieces || turn++ % workers != team.rank) continue;
        await(n, i);
        if (n > 0) await(n - 1, i + 1);
        act(n, i);
        __atomic_store_n(&progress[n].pieces, before + i + 1, __ATOMIC_RELEASE);
      }
    before += pieces;
  }

 private:
  void await(int64_t n, int64_t pieces) const {
    spin_until([&] { return __atomic_load_n(&progress[n].pieces, __ATOMIC_ACQUIRE) >= before + pieces; });
  }
};
