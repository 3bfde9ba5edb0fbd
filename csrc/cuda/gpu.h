// What kernels ask of the device, for nvcc. Every function here has a twin of the same name that runs on the CPU
// (tests/cuda_emulator/twins.h).
#pragma once
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define RNN_EXT_DEVICE __device__ __forceinline__
#define RNN_EXT_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
#define RNN_EXT_PARAM const __grid_constant__
#define RNN_EXT_UNROLL _Pragma("unroll")

namespace rnn_ext::cuda {

inline constexpr int kThreads = 256;  // of a block
inline constexpr int kWarp = 32;

RNN_EXT_DEVICE int thread() { return int(threadIdx.x); }
RNN_EXT_DEVICE int threads() { return int(blockDim.x); }
RNN_EXT_DEVICE int block() { return int(blockIdx.x); }
RNN_EXT_DEVICE int blocks() { return int(gridDim.x); }
RNN_EXT_DEVICE void sync() { __syncthreads(); }

// Shared memory of the block, as much as the launch asked for.
RNN_EXT_DEVICE char* shared() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

template <class T>
RNN_EXT_DEVICE T shuffle_xor(T x, int lanes) {
  return __shfl_xor_sync(0xffffffffu, x, lanes);
}

// 16 bytes, which a thread moves at once.
using Line = uint4;

// Reads memory that other blocks wrote since this kernel began: not from this multiprocessor's own cache.
template <class T>
RNN_EXT_DEVICE T load_fresh(const T* p) {
  return __ldcg(p);
}
RNN_EXT_DEVICE uint16_t load_fresh(const uint16_t* p) { return __ldcg(reinterpret_cast<const unsigned short*>(p)); }

// Global to shared memory, 16 bytes past the multiprocessor's own cache, or 8 through it; there after copies_done().
template <int bytes>
RNN_EXT_DEVICE void copy_async(void* to_shared, const void* from) {
  const uint32_t to = uint32_t(__cvta_generic_to_shared(to_shared));
  if constexpr (bytes == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from) : "memory");
}
RNN_EXT_DEVICE void copies_done() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// A block tells the others how far it is: whoever sees the value also sees what the block's threads wrote before the
// sync() that precedes it. One thread calls each.
RNN_EXT_DEVICE void publish(uint32_t* flag, uint32_t value) {
  __threadfence();
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
RNN_EXT_DEVICE void wait_until_at_least(const uint32_t* flag, uint32_t value) {
  uint32_t seen;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
  } while (seen < value);
}

// Clusters. Where there are none, no kernel that uses them is launched.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
RNN_EXT_DEVICE void sync_cluster() { cooperative_groups::this_cluster().sync(); }
RNN_EXT_DEVICE char* shared_of_peer(char* mine, int rank) {
  return cooperative_groups::this_cluster().map_shared_rank(mine, rank);
}
#else
RNN_EXT_DEVICE void sync_cluster() { __trap(); }
RNN_EXT_DEVICE char* shared_of_peer(char* mine, int) { return mine; }
#endif

RNN_EXT_DEVICE float half_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
RNN_EXT_DEVICE uint16_t float_to_half(float x) { return __half_as_ushort(__float2half_rn(x)); }
RNN_EXT_DEVICE uint16_t float_to_bfloat16(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }

// d += a b on a warp: a [16, 16], b [16, 8], d [16, 8]. With group = lane / 4 and pair = lane % 4, a register holds two
// neighbours in k:  a[0], a[1]: rows group, group + 8 at k = 2 pair;  a[2], a[3]: the same rows at k = 2 pair + 8;
// b[0], b[1]: column group at k = 2 pair and 2 pair + 8;  d[0], d[1]: row group, columns 2 pair, 2 pair + 1;
// d[2], d[3]: row group + 8.  PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
RNN_EXT_DEVICE void multiply_fragments_bfloat16(float* d, const uint32_t* a, const uint32_t* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
RNN_EXT_DEVICE void multiply_fragments_float16(float* d, const uint32_t* a, const uint32_t* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// A float to the nearest number of 11 significant bits. Volatile, lest it be done once for all steps: a held W in two
// parts would take twice the registers.
RNN_EXT_DEVICE float round_to_tf32(float x) {
  uint32_t bits;
  asm volatile("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits & 0xffffe000u);
}
// d += a b on a warp: a [16, 8], b [8, 8], d [16, 8], of such numbers.  a[0], a[1]: rows group, group + 8 at k = pair;
// a[2], a[3]: the same rows at k = pair + 4;  b[0], b[1]: column group at k = pair and pair + 4;  d as above.
// PTX ISA, "Matrix Fragments for mma.m16n8k8".
RNN_EXT_DEVICE void multiply_fragments_tf32(float* d, const float* a, const float* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

// What went wrong, or null. The error of a call that was refused does not stay behind for the next one to find.
inline const char* text_of(cudaError_t code) {
  if (code == cudaSuccess) return nullptr;
  (void)cudaGetLastError();
  return cudaGetErrorString(code);
}

// Makes the device current, for the CUDA runtime that this library has of its own too. Of the device: multiprocessors,
// shared memory that a block can have, blocks of the largest cluster, memory for a chunk of steps. Null, or what went wrong.
inline const char* read_limits(int device, int* multiprocessors, int* shared_bytes, int* cluster_blocks,
                               int64_t* workspace_bytes) {
  *workspace_bytes = int64_t(256) << 20;
  int major = 0;
  const auto read = [&](int* value, cudaDeviceAttr attribute) { return cudaDeviceGetAttribute(value, attribute, device); };
  cudaError_t code = cudaSetDevice(device);
  if (code == cudaSuccess) code = read(multiprocessors, cudaDevAttrMultiProcessorCount);
  if (code == cudaSuccess) code = read(shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (code == cudaSuccess) code = read(&major, cudaDevAttrComputeCapabilityMajor);
  *cluster_blocks = major == 9 || major == 10 ? 16 : major > 10 ? 8 : 0;
  return text_of(code);
}

inline const char* clear(void* memory, size_t bytes, void* stream) {
  return text_of(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)));
}

// Whether the library has a kernel's code for the current device. What else goes wrong is the launch's to tell.
template <class Args>
bool has_code(void (*kernel)(Args)) {
  cudaFuncAttributes attributes;
  const cudaError_t code = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel));
  (void)text_of(code);
  return code != cudaErrorNoKernelImageForDevice && code != cudaErrorInvalidDeviceFunction;
}

// How a kernel is launched.
struct Launch {
  int blocks = 1;
  size_t shared_bytes = 0;
  int cluster = 1;
  bool cooperative = false;
  void* stream = nullptr;
};

class LaunchConfig {
 public:
  explicit LaunchConfig(const Launch& l) {
    config.gridDim = dim3(unsigned(l.blocks));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = l.shared_bytes;
    config.stream = static_cast<cudaStream_t>(l.stream);
    config.attrs = attributes;
    if (l.cooperative) {
      attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
      attributes[config.numAttrs++].val.cooperative = 1;
    }
    if (l.cluster > 1) {
      attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[config.numAttrs].val.clusterDim.x = unsigned(l.cluster);
      attributes[config.numAttrs].val.clusterDim.y = 1;
      attributes[config.numAttrs++].val.clusterDim.z = 1;
    }
  }
  LaunchConfig(const LaunchConfig&) = delete;
  cudaLaunchConfig_t config = {};

 private:
  cudaLaunchAttribute attributes[2];
};

// Allows the kernel what the launch needs, on the current device; the same for every launch of it, so that threads which
// launch it at the same time do not take it from each other. at_once: how many of its blocks can be there at once, were
// the device idle. A launch that the device would refuse has none, and is no error.
template <class Args>
const char* prepare_launch(void (*kernel)(Args), const Launch& l, int* at_once) {
  const void* function = reinterpret_cast<const void*>(kernel);
  int device = 0, shared_bytes = 0, multiprocessors = 0;
  cudaError_t code = cudaGetDevice(&device);
  if (code == cudaSuccess) code = cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (code == cudaSuccess) code = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (code == cudaSuccess)
    code = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (code == cudaSuccess && l.cluster > 8)
    code = cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  *at_once = 0;
  if (const char* error = text_of(code)) return error;
  int count = 0;
  if (l.cluster > 1) {
    const LaunchConfig launch(l);
    if (!text_of(cudaOccupancyMaxActiveClusters(&count, function, &launch.config))) *at_once = count * l.cluster;
  } else if (!text_of(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, function, kThreads, l.shared_bytes))) {
    *at_once = count * multiprocessors;
  }
  return nullptr;
}

// Null, or why it could not be launched.
template <class Args>
const char* launch(void (*kernel)(Args), const Launch& l, const Args& args) {
  const LaunchConfig with(l);
  return text_of(cudaLaunchKernelEx(&with.config, kernel, args));
}

}  // namespace rnn_ext::cuda
