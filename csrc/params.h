// Plain structs of pointers, sizes and strides: all that a kernel ever sees of a call.
//
// Letters: T steps, B sequences, R rows (a row is one sequence at one step), I input size, H hidden size, P size of h
// (that of its projection where there is one, else H), L layers, D directions, G gates of the cell. Rows are
// time-major: row = first_row_at(t) + b, which is also the layout of a PackedSequence. Pointers to void have the storage
// type of the call (float, double, bfloat16, float16) unless a comment says "compute type" (float for the halves, else
// the storage type). Nothing here owns memory.
#pragma once
#include <cstddef>
#include <cstdint>

namespace rnn_ext {

// Functions shared by files that are compiled for different instruction sets must be inlined: of several copies
// the linker keeps one, and it may be the one that the machine cannot run.
#if defined(__CUDACC__)
#define RNN_EXT_INLINE __host__ __device__ __forceinline__
#else
#define RNN_EXT_INLINE inline __attribute__((always_inline))
#endif

// Bytes from which on the C library takes memory from the system afresh for every tensor and gives it back with it (the
// largest threshold that glibc's malloc adapts to). The system hands it out page by page as it is written, each with a
// fault: with pages of 4 KB that is a quarter of the time of a training step whose results are that large.
constexpr int64_t kLargeResult = 32 * 1024 * 1024;
constexpr int64_t kLargePage = 2 * 1024 * 1024;

enum class DType : int { float32, float64, bfloat16, float16, count };

// Which steps each sequence takes part in: all of them (padded), or the first batch_sizes[t] at step t (packed).
struct Sequences {
  int64_t T = 0, B = 0, R = 0;
  const int64_t* batch_sizes = nullptr;  // [T], non-increasing; null when every sequence has T steps
  const int64_t* first_rows = nullptr;   // [T + 1], running sum of batch_sizes; null as above

  RNN_EXT_INLINE int64_t active_at(int64_t t) const { return batch_sizes ? batch_sizes[t] : B; }
  RNN_EXT_INLINE int64_t first_row_at(int64_t t) const { return first_rows ? first_rows[t] : t * B; }

  // The same of the s-th step that direction d runs; no sequence takes part before the first and after the last.
  RNN_EXT_INLINE int64_t time(int64_t d, int64_t s) const { return d == 0 ? s : T - 1 - s; }
  RNN_EXT_INLINE int64_t active(int64_t d, int64_t s) const { return s < 0 || s >= T ? 0 : active_at(time(d, s)); }
  RNN_EXT_INLINE int64_t first_row(int64_t d, int64_t s) const { return first_row_at(time(d, s)); }
};

struct Shape {
  int64_t I = 0, H = 0, P = 0, L = 0, D = 0;
  bool bias = false;
  bool projected = false;  // h_t is W_hr times the cell's output
};

struct LayerWeights {        // of one layer and direction, contiguous, in PyTorch's layout
  const void* W_ih = nullptr;  // [G*H, I of the layer]
  const void* W_hh = nullptr;  // [G*H, P]
  const void* b_ih = nullptr;  // [G*H] or null
  const void* b_hh = nullptr;  // [G*H] or null
  const void* W_hr = nullptr;  // [P, H] or null
};

struct LayerGradients {  // compute type, overwritten
  void* dW_ih = nullptr;  // [G*H, I of the layer]
  void* dW_hh = nullptr;  // [G*H, P]
  void* db_ih = nullptr;  // [G*H] or null
  void* db_hh = nullptr;  // [G*H] or null
  void* dW_hr = nullptr;  // [P, H] or null
};

// How a call is carried out; chosen by plan.cpp, never from the numbers.
enum class Split : int { none, batch, hidden, layer };  // what the threads divide inside the time loop, or of a stack
enum class Multiply : int { fma, amx, bf16, count };  // vectors, tiles of bfloat16 parts (amx.h), pairs (bf16.h)
enum class Weights : int {                     // how they become operands
  packed,      // all of them before the time loop
  in_pieces,   // piece by piece where a single step uses them: a piece stays in a core's cache until it is multiplied
  as_they_lie  // not at all in forward, where packing would not pay for few rows; in backward as in_pieces
};
struct Plan {
  Multiply multiply = Multiply::fma;
  Split split = Split::none;
  bool by_sequence = false;  // a vector is a unit of many sequences (by_sequence.h), not many units of a sequence
  bool split_directions = false;  // half of the threads for each direction
  Weights weights = Weights::packed;
  int threads = 1;
  // Of all sequences; of a packed batch as many rows (Chunks in cpu/layer.h).
  int64_t forward_steps = 1;   // steps for which the input projection is computed at once
  int64_t backward_steps = 1;  // steps whose gate gradients are kept for one product each of dx and dW
  int64_t wavefront_steps = 1;  // where the layers are split: steps that a layer runs before the next one takes them up
};

struct CallArgs {
  Sequences seq;
  Shape shape;
  Plan plan;
  const void* x = nullptr;            // row (t, b) at x + t*x_step + b*x_row, or x + row*x_row when packed
  int64_t x_step = 0, x_row = 0;      // in elements; the features of a row are contiguous
  const void* h_0 = nullptr;          // [L*D, B, P] or null for zeros
  const LayerWeights* weights = nullptr;  // [L*D]
  const void* const* masks = nullptr;     // [L-1] dropout masks, each [R, D*P]; or null
  void* workspace = nullptr;          // 64-byte aligned, workspace_bytes() of it
};

struct ForwardArgs : CallArgs {
  const void* c_0 = nullptr;          // [L*D, B, H] or null for zeros, for cells that have a cell state
  void* y = nullptr;                  // [R, D*P], output of the last layer
  void* h_n = nullptr;                // [L*D, B, P]
  void* c_n = nullptr;                // [L*D, B, H] for cells that have a cell state
  void* tape = nullptr;               // [L*D, R, tape, H], or null when nothing is kept for backward; tape is the
                                      // cell's and, with a projection, the cell's output behind it
  void* hidden = nullptr;             // [hidden_slots, R, D*P], outputs of the layers below the last
  int64_t hidden_slots = 0;           // L-1 when they are saved for backward, else at most 2
  void* kept = nullptr;               // weights that stay packed, or null: 64-byte aligned, kept_bytes() of it
};

struct BackwardArgs : CallArgs {
  const void* y = nullptr;             // as forward left them
  const void* hidden = nullptr;        // [L-1, R, D*P]
  const void* tape = nullptr;          // [L*D, R, tape, H]
  const void* dy = nullptr;            // [R, D*P] or null for zeros
  const void* dh_n = nullptr;          // [L*D, B, P] or null for zeros
  const void* dc_n = nullptr;          // [L*D, B, H] or null for zeros
  void* dx = nullptr;                  // [R, I], compute type, or null when not wanted
  void* dh_0 = nullptr;                // [L*D, B, P], compute type, or null when not wanted
  void* dc_0 = nullptr;                // [L*D, B, H], likewise
  const LayerGradients* gradients = nullptr;  // [L*D], or null when not wanted
  bool add_to_gradients = false;       // to those of the weights, not into them; on the CPU
};

struct Team;

// The entry points of one instruction set, for one cell and storage type.
struct Kernel {
  size_t (*kept_bytes)(const ForwardArgs&);
  void (*keep)(const ForwardArgs&, const Team&);  // packs the weights into args.kept
  size_t (*forward_bytes)(const ForwardArgs&);
  void (*forward)(const ForwardArgs&, const Team&);
  size_t (*backward_bytes)(const BackwardArgs&);
  void (*backward)(const BackwardArgs&, const Team&);
};

}  // namespace rnn_ext
