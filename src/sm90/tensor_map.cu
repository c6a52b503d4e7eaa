#include "sm90/tensor_map.hpp"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <stdexcept>
#include <string>

namespace Tributary::Impl::SM90 {
namespace {

/// Asked of the runtime, so that the library needs no driver library to link or to start.
PFN_cuTensorMapEncodeTiled_v12000 encode_tiled() {
  static const auto function = [] {
    void*                           entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    if (status != cudaSuccess || found != cudaDriverEntryPointSuccess)
      throw std::runtime_error("Tributary: the CUDA driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry);
  }();
  return function;
}

}  // namespace

template <int Rank>
CUtensorMap tensor_map(ElementType type, const void* base, const TensorShape<Rank>& shape) {
  const bool         bytes        = type == ElementType::float8_e4m3;
  const std::int64_t element_size = bytes ? 1 : 2;
  const auto         data_type    = bytes                           ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                    : type == ElementType::bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                                    : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  cuuint64_t         extents[Rank], strides[Rank - 1];
  cuuint32_t         box[Rank], steps[Rank];
  const bool         empty = std::any_of(shape.extents.begin(), shape.extents.end(), [](std::int64_t extent) { return extent == 0; });
  for (int d = 0; d < Rank; ++d) {
    extents[d] = empty && d > 0 ? 1 : static_cast<cuuint64_t>(shape.extents[static_cast<std::size_t>(d)]);
    box[d]     = static_cast<cuuint32_t>(shape.box[static_cast<std::size_t>(d)]);
    steps[d]   = 1;
  }
  // A dimension of one element may have any stride, also one that the driver would refuse.
  for (int d = 1; d < Rank; ++d)
    strides[d - 1] = extents[d] == 1 ? 16 : static_cast<cuuint64_t>(shape.strides[static_cast<std::size_t>(d - 1)] * element_size);
  CUtensorMap    map;
  const CUresult status =
      encode_tiled()(&map, data_type, Rank, const_cast<void*>(base), extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                     box[0] * element_size == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
                     CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) throw std::runtime_error("Tributary: cuTensorMapEncodeTiled: error " + std::to_string(status));
  return map;
}

template CUtensorMap tensor_map(ElementType, const void*, const TensorShape<3>&);
template CUtensorMap tensor_map(ElementType, const void*, const TensorShape<4>&);

}  // namespace Tributary::Impl::SM90
