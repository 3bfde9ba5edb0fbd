// The Python module rnn_ext._C: how the binary was built and what it runs with. Loading it registers the operators
// (ops.cpp), which Python then reaches through torch.ops.rnn_ext.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "build_info.h"
#include "cpu/peaks.h"
#include "cells/names.h"
#include "cpu/isa.h"
#include "cpu/plan.h"
#include "cpu/team.h"
#include "direct.h"
#include "large_memory.h"

namespace py = pybind11;

namespace rnn_ext {
namespace {

py::dict build_info() {
  py::dict isa_flags;
  for (const auto& entry : build::isa_flags) isa_flags[entry.isa] = entry.flags;
  py::dict info;
  info["version"] = build::version;
  info["compiler"] = build::compiler;
  info["flags"] = build::flags;
  info["isa_flags"] = isa_flags;
  info["torch"] = build::torch_version;
  info["torch_abi_target"] = build::torch_abi_target;
  info["sanitizers"] = build::sanitizers;
  info["emulated"] = build::emulated;
  return info;
}

py::list available_isas() {
  py::list names;
  for (Isa isa : all_isas)
    if (isa <= detect()) names.append(name(isa));
  return names;
}

template <auto kRate, class... Sizes>
double checked_rate(double seconds, int threads, Sizes... bytes) {
  if (!(seconds > 0) || threads < 1)
    throw std::invalid_argument("expected seconds > 0 and threads >= 1, got seconds=" + std::to_string(seconds) +
                                ", threads=" + std::to_string(threads));
  py::gil_scoped_release unlocked;
  return kRate(seconds, threads, bytes...);
}

int checked_cell(const std::string& mode) {
  const int cell = cell_of(mode);
  if (cell < 0) throw std::invalid_argument("rnn_ext: no cell of mode " + mode);
  return cell;
}

DType checked_dtype(const std::string& name) {
  if (name == "float32") return DType::float32;
  if (name == "float64") return DType::float64;
  if (name == "bfloat16") return DType::bfloat16;
  if (name == "float16") return DType::float16;
  throw std::invalid_argument("rnn_ext: no kernel for dtype " + name);
}

constexpr const char* float32_products[] = {"auto", "fma", "amx"};

void choose_float32_product(const std::string& name) {
  for (int i = 0; i < 3; ++i)
    if (name == float32_products[i]) return set_float32_product(Float32Product(i));
  throw std::invalid_argument("rnn_ext: float32 product must be one of auto, fma, amx, got " + name);
}

py::tuple plan(const std::string& mode, int64_t T, int64_t B, const std::vector<int64_t>& batch_sizes, int64_t I, int64_t H,
               int64_t proj_size, int64_t L, int64_t D, const std::string& dtype, int threads, bool batch_invariant,
               bool frozen) {
  const int cell = checked_cell(mode);
  Sequences seq;
  seq.T = T;
  seq.B = B;
  seq.R = T * B;
  if (!batch_sizes.empty()) {
    seq.T = int64_t(batch_sizes.size());
    seq.R = std::accumulate(batch_sizes.begin(), batch_sizes.end(), int64_t(0));
    seq.batch_sizes = batch_sizes.data();
  }
  const Shape shape{I, H, proj_size > 0 ? proj_size : H, L, D, true, proj_size > 0};
  const Plan p = make_plan(seq, shape, cell_facts[cell].gates, checked_dtype(dtype), threads, batch_invariant, frozen);
  return py::make_tuple(name(p), p.threads, name(p.multiply));
}

std::vector<double> next_shares(const std::vector<double>& shares, const std::vector<long>& busy, long rounds) {
  if (shares.empty() || shares.size() != busy.size())
    throw std::invalid_argument("expected as many shares as times, and one at least, got " +
                                std::to_string(shares.size()) + " and " + std::to_string(busy.size()));
  std::vector<Pace> paces;
  for (size_t i = 0; i < shares.size(); ++i) paces.push_back({0, shares[i], busy[i], 0});
  paces.push_back({1, 0, rounds, 0});
  share_by_pace(paces.data(), int(shares.size()));
  std::vector<double> next;
  for (size_t i = 0; i < shares.size(); ++i) next.push_back(paces[i].share);
  return next;
}

}  // namespace
}  // namespace rnn_ext

PYBIND11_MODULE(_C, m) {
  using namespace rnn_ext;
  if (const char* error = cap_error()) throw py::import_error(error);
  m.doc() = "Operators and build facts of rnn_ext.";
  if (PyModule_AddFunctions(m.ptr(), direct_methods()) != 0) throw py::error_already_set();
  m.def("build_info", &build_info,
        "How the binary was built: version, compiler, flags, isa_flags (of the kernels, by instruction set), "
        "torch (built against), torch_abi_target (oldest torch it runs on), sanitizers (empty if none), "
        "emulated (for tests on machines without: tiles, or avx512, which has them too; empty if nothing is).");
  m.def("isa", [] { return name(active()); }, "Instruction set in use: the machine's best, capped by RNN_EXT_ISA.");
  m.def("available_isas", &available_isas, "Instruction sets that this machine can run, worst first.");
  m.def("multiplies_bfloat16", &multiplies_bfloat16,
        "Whether bfloat16 is multiplied by AVX512_BF16: the set in use is avx512 and the processor has it, and quickly.");
  py::dict cells;
  for (const NamedCell& facts : cell_facts) cells[facts.mode] = py::make_tuple(facts.gates, facts.states, facts.tape);
  m.attr("cells") = cells;  // by mode: weight rows per hidden unit, states, numbers per unit that backward needs
  m.def("plan", &plan, py::arg("mode"), py::arg("T"), py::arg("B"), py::arg("batch_sizes"), py::arg("I"),
        py::arg("H"), py::arg("proj_size"), py::arg("L"), py::arg("D"), py::arg("dtype"), py::arg("threads"),
        py::arg("batch_invariant"), py::arg("frozen"),
        "(name, threads, product) of the plan that a call of this shape takes; batch_sizes is empty unless it is packed, "
        "dtype is float32, float64, bfloat16 or float16, proj_size 0 without a projection. Raises ValueError for an unknown "
        "mode or dtype.");
  m.def("next_shares", &next_shares, py::arg("shares"), py::arg("busy"), py::arg("rounds") = 2,
        "The shares of a batch, which add up to 1, that workers have next who took `busy` ticks of a clock for these, `rounds` "
        "rounds after shares last changed. Raises ValueError unless there is one of each for every worker.");
  m.def("release_memory", [] { return large_memory().release(); }, py::call_guard<py::gil_scoped_release>(),
        "See rnn_ext.release_memory.");
  m.def("set_float32_product", &choose_float32_product, py::arg("product"), "See rnn_ext.set_float32_product.");
  m.def("float32_product", [] { return float32_products[int(float32_product())]; }, "What set_float32_product has set.");
  m.def("fma_peak", &checked_rate<fma_peak>, py::arg("seconds"), py::arg("threads"),
        "Float32 multiply-add rate of the machine in GFLOP/s, summed over `threads` threads running for `seconds`. "
        "Raises ValueError unless seconds > 0 and threads >= 1.");
  m.def("read_rate", &checked_rate<read_rate, size_t>, py::arg("seconds"), py::arg("threads"), py::arg("bytes"),
        "Rate in GB/s, summed likewise, at which threads read `bytes` bytes of memory each, over and over: that of the "
        "cache in which it stays. Raises as fma_peak does.");
  m.def("barrier_seconds", &checked_rate<barrier_seconds>, py::arg("seconds"), py::arg("threads"),
        "Seconds that the barrier of a time loop takes among `threads` threads, the mean over about `seconds`: it tells "
        "whether their cores share a cache. Raises as fma_peak does.");
  m.def("amx_rate", &checked_rate<amx_rate>, py::arg("seconds"), py::arg("threads"),
        "The first for float32 products of ours on AMX tiles, 32 x 256 by 256 x 256; 0 on a machine without AMX. Raises "
        "as fma_peak does.");
}
