// Torch's own operators, called through the stable dispatcher on memory of ours: large products and sums.
#pragma once
#include <array>

#include "../call.h"

namespace rnn_ext::cuda {

// A tensor on memory that somebody else owns, [rows, columns] with the given distances in elements.
inline Tensor matrix(const void* memory, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride,
                     ScalarType dtype, const Tensor& like) {
  const int64_t sizes[] = {rows, columns}, strides[] = {row_stride, column_stride};
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(const_cast<void*>(memory), 2, sizes, strides, 0,
                                                            static_cast<int32_t>(dtype), device_type(like),
                                                            like.get_device_index(), &handle));
  return Tensor(handle);
}

inline Tensor vector(void* memory, int64_t size, ScalarType dtype, const Tensor& like) {
  const int64_t stride = 1;
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(memory, 1, &size, &stride, 0, static_cast<int32_t>(dtype),
                                                            device_type(like), like.get_device_index(), &handle));
  return Tensor(handle);
}

inline Tensor transposed(const Tensor& t) { return torch::stable::transpose(t, 0, 1); }

// out = a b; out has the storage or compute type of a and b. float32 products follow torch's own switch for TF32.
inline void product(Tensor out, const Tensor& a, const Tensor& b) {
  const bool widens = out.scalar_type() != a.scalar_type();
#if defined(RNN_EXT_CUDA_EMULATOR)  // torch has this product with its own type of result on CUDA only
  if (widens) return product(out, torch::stable::to(a, out.scalar_type()), torch::stable::to(b, out.scalar_type()));
#endif
  using torch::stable::detail::from;
  if (widens) {
    std::array<StableIValue, 4> stack{from(a), from(b), from(out.scalar_type()), from(out)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "dtype_out", stack.data(), TORCH_ABI_VERSION));
    (void)torch::stable::detail::to<Tensor>(stack[0]);
  } else {
    std::array<StableIValue, 3> stack{from(a), from(b), from(out)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
    (void)torch::stable::detail::to<Tensor>(stack[0]);
  }
}

// out [N] = sums over the rows of a [R, N].
inline void sum_of_rows(Tensor out, const Tensor& a) {
  const int64_t rows = 0;
  torch::stable::sum_out(out, a, torch::headeronly::IntHeaderOnlyArrayRef(&rows, 1), false, out.scalar_type());
}

inline Tensor times(const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  std::array<StableIValue, 2> stack{from(a), from(b)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mul", "Tensor", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace rnn_ext::cuda
