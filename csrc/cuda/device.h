// All that is particular to a GPU, behind functions of plain C++: what a kernel calls, and how it is launched.
// gpu.h has them for nvcc; the tests bring twins of the same names that run on the CPU (tests/cuda_emulator).
#pragma once
#if defined(__CUDACC__)
#include "gpu.h"
#else
#include "twins.h"
#endif
