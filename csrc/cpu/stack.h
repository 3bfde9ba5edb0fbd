// In which order the layers of a stack and their chunks run, and who does what. Every worker of a team calls it.

// One layer after the other.
template <class Pass>
void run_layers(const ForwardArgs& args, const typename Pass::CellOf& cell, const Team& all) {
  Pass pass(args, cell);
  Balance balance(all, args.plan, pass.paces_of_workers());
  const Chunks chunks(args.seq, args.plan.forward_steps);
  const bool own_input = projects_own_input(args.plan, all.size);
  const bool alone = own_input && args.plan.split != Split::batch;  // no worker needs anything of another one
  for (int64_t l = 0; l < args.shape.L; ++l) {
    const typename Pass::L layer{args, l};
    const auto project_input = [&](int64_t c, const Team& team) {
      for (int64_t d = 0; d < args.shape.D; ++d) pass.project_input(layer, d, chunks.at(d, c), team);
    };
    pass.prepare(layer, all);
    balance.start();
    if (!own_input) {
      project_input(0, balance.team);
      balance.wait();
    }
    for (int64_t c = 0; c < chunks.count(); ++c) {
      const Roles roles(balance.team, args.plan, args.shape.D, layer.mostly_products(chunks, c, kManyInputsForward));
      if (roles.loop.size > 0)
        for (int64_t i = 0; i < roles.directions; ++i) {
          const int64_t d = roles.first_direction + i;
          const Chunk chunk = chunks.at(d, c);
          if (own_input) pass.project_input(layer, d, chunk, roles.loop);
          pass.loop(layer, d, chunk, roles.loop);
        }
      const bool last = c + 1 == chunks.count();
      if (!own_input && !last && roles.products.size > 0) project_input(c + 1, roles.products);
      if (last || !alone) balance.wait();
    }
  }
}

template <class Pass>
void run_layers(const BackwardArgs& args, const typename Pass::CellOf& cell, const Team& all) {
  Pass pass(args, cell);
  Balance balance(all, args.plan, pass.paces_of_workers());
  const Chunks chunks(args.seq, args.plan.backward_steps);
  const auto products = [&](const typename Pass::L& layer, int64_t c, const Team& team) {
    for (int64_t d = 0; d < args.shape.D; ++d) {
      const Chunk chunk = chunks.at(d, c);
      pass.input_gradient(layer, d, chunk, {chunk.begin, chunk.end}, team);
      pass.add_weight_gradients(layer, d, chunk, team);
      if (args.shape.D > 1) team.wait();  // both directions add to the same rows of dx
    }
  };
  for (int64_t l = args.shape.L - 1; l >= 0; --l) {
    const typename Pass::L layer{args, l};
    pass.prepare(layer, all);
    balance.start();
    for (int64_t c = chunks.count() - 1; c >= 0; --c) {
      const Roles roles(balance.team, args.plan, args.shape.D, layer.mostly_products(chunks, c, kManyInputsBackward));
      if (roles.loop.size > 0)
        for (int64_t i = 0; i < roles.directions; ++i) {
          const int64_t d = roles.first_direction + i;
          const Chunk chunk = chunks.at(d, c);
          pass.loop(layer, d, chunk, {chunk.begin, chunk.end}, roles.loop);
        }
      if (c + 1 < chunks.count() && roles.products.size > 0) products(layer, c + 1, roles.products);
      balance.wait();
    }
    products(layer, 0, balance.team);
    balance.wait();
  }
}

// Makes every layer ready to run beside the others, each with its own set of buffers.
template <class Pass, class Args>
Wavefront start_wavefront(const Args& args, const typename Pass::CellOf& cell, const Team& team) {
  const int64_t layers = args.shape.L;
  for (int64_t l = 0; l < layers; ++l) Pass(args, cell, l).prepare({args, l}, team);
  const Wavefront wavefront{team, Pass(args, cell).progress_of_layers(), layers};
  if (team.rank == 0)
    for (int64_t l = 0; l < layers; ++l) wavefront.progress[l].pieces = 0;
  team.wait();
  return wavefront;
}

// All layers at once, the later ones some steps behind. Two layers that are two apart may have the same rows of memory
// for what they hand on: before the second writes to the rows of a piece, the layer between them has read them.
template <class Pass>
void run_wavefront(const ForwardArgs& args, const typename Pass::CellOf& cell, const Team& team) {
  const Team alone;
  const Chunks chunks(args.seq, args.plan.forward_steps);
  start_wavefront<Pass>(args, cell, team).run(chunks.count(), [&](int64_t l, int64_t c) {
    Pass pass(args, cell, l);
    pass.project_input({args, l}, 0, chunks.at(0, c), alone);
    pass.loop({args, l}, 0, chunks.at(0, c), alone);
  });
}

// As there are two buffers of da, the layers run through two chunks; then all workers share the products of these.
template <class Pass>
void run_wavefront(const BackwardArgs& args, const typename Pass::CellOf& cell, const Team& team) {
  const Team alone;
  const Chunks chunks(args.seq, args.plan.backward_steps);
  Wavefront wavefront = start_wavefront<Pass>(args, cell, team);
  for (int64_t c = chunks.count() - 1; c >= 0; c -= 2) {
    const Chunk both[] = {chunks.at(0, c), c > 0 ? chunks.at(0, c - 1) : Chunk{}};
    const auto pieces = [&](int which) { return EqualChunks{both[which].size(), args.plan.wavefront_steps}; };
    const int64_t of_first = pieces(0).count(), of_second = pieces(1).count();
    wavefront.run(of_first + of_second, [&](int64_t n, int64_t i) {
      const int which = i < of_first ? 0 : 1;
      const Chunk all = both[which], piece = pieces(which)[(which == 0 ? of_first : of_first + of_second) - 1 - i];
      const Range steps{all.begin + piece.begin, all.begin + piece.end};
      const typename Pass::L layer{args, args.shape.L - 1 - n};
      Pass pass(args, cell, layer.l);
      pass.loop(layer, 0, all, steps, alone);
      pass.input_gradient(layer, 0, all, steps, alone);
    });
    team.wait();
    for (int64_t l = 0; l < args.shape.L; ++l)
      for (const Chunk& all : both) {
        if (all.size() == 0) continue;
        Pass(args, cell, l).add_weight_gradients({args, l}, 0, all, team);
        team.wait();
      }
  }
}

// Pass is Forward or Backward, Args what it takes. Never inlined: it is there once for all cells.
template <class Pass, class Args>
__attribute__((noinline)) void run_stack(const Args& args, const typename Pass::CellOf& cell, const Team& team) {
  [[maybe_unused]] const typename Pass::Use use;
  if (args.plan.split == Split::layer)
    run_wavefront<Pass>(args, cell, team);
  else
    run_layers<Pass>(args, cell, team);
}
