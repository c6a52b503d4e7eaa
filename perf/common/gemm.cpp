#include "common/gemm.hpp"

#include <cublasLt.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "common/device.hpp"
#include "common/random.hpp"

namespace Tributary::Benchmark {

namespace {

constexpr std::int64_t size            = 8192;
constexpr std::size_t  workspace_bytes = std::size_t{64} << 20;

void require_success(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) throw std::runtime_error(std::string(call) + ": " + cublasLtGetStatusString(status));
}

/// An object of cuBLASLt, which the library hands out as a pointer.
template <class Object>
using Handle = std::unique_ptr<std::remove_pointer_t<Object>, cublasStatus_t (*)(Object)>;

Handle<cublasLtHandle_t> library() {
  cublasLtHandle_t handle;
  require_success(cublasLtCreate(&handle), "cublasLtCreate");
  return {handle, cublasLtDestroy};
}

Handle<cublasLtMatrixLayout_t> square(cudaDataType type) {
  cublasLtMatrixLayout_t layout;
  require_success(cublasLtMatrixLayoutCreate(&layout, type, size, size, size), "cublasLtMatrixLayoutCreate");
  return {layout, cublasLtMatrixLayoutDestroy};
}

/// Transposed times not transposed: all that there is for e4m3.
Handle<cublasLtMatmulDesc_t> operation(bool e4m3) {
  cublasLtMatmulDesc_t description;
  require_success(cublasLtMatmulDescCreate(&description, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  Handle<cublasLtMatmulDesc_t> owned{description, cublasLtMatmulDescDestroy};
  const auto                   set = [&](cublasLtMatmulDescAttributes_t attribute, auto value) {
    require_success(cublasLtMatmulDescSetAttribute(description, attribute, &value, sizeof(value)), "cublasLtMatmulDescSetAttribute");
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  set(CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
  if (e4m3) set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, std::int8_t{1});
  return owned;
}

using Bytes = Kokkos::View<std::byte*, Kokkos::CudaSpace>;

/// Memory as cuBLASLt takes it: from a multiple of 256 bytes on.  That of a View begins behind a record of 128.
Bytes aligned_bytes(const std::string& label, std::size_t count) {
  constexpr std::uintptr_t alignment = 256;
  const Bytes              bytes(Kokkos::view_alloc(label, Kokkos::WithoutInitializing), count + alignment);
  const std::size_t        begin = -reinterpret_cast<std::uintptr_t>(bytes.data()) % alignment;
  return Kokkos::subview(bytes, std::pair{begin, begin + count});
}

Bytes random_matrix(const Kokkos::Cuda& exec, ElementType type, std::uint64_t stream) {
  return visit_element_type(type, [&]<class Element>(std::type_identity<Element>) {
    const Bytes bytes = aligned_bytes("matrix", size * size * sizeof(Element));
    Kokkos::parallel_for("fill", Kokkos::RangePolicy<Kokkos::Cuda, Kokkos::IndexType<std::int64_t>>(exec, 0, size * size),
                         Fill<Element, RandomValue>{reinterpret_cast<Element*>(bytes.data()), {stream}});
    return bytes;
  });
}

}  // namespace

struct Gemm::Product {
  Kokkos::Cuda                   exec;
  Handle<cublasLtHandle_t>       handle = library();
  Handle<cublasLtMatmulDesc_t>   description;
  Handle<cublasLtMatrixLayout_t> in, out = square(CUDA_R_16BF);
  Bytes                          a, b, c, workspace;
  cublasLtMatmulAlgo_t           algorithm{};

  Product(const Kokkos::Cuda& exec_, ElementType type)
      : exec(exec_),
        description(operation(type == ElementType::float8_e4m3)),
        in(square(type == ElementType::float8_e4m3 ? CUDA_R_8F_E4M3 : CUDA_R_16BF)),
        a(random_matrix(exec, type, 1)),
        b(random_matrix(exec, type, 2)),
        c(aligned_bytes("product", static_cast<std::size_t>(size * size * 2))),
        workspace(aligned_bytes("workspace", workspace_bytes)) {
    static std::map<ElementType, cublasLtMatmulAlgo_t> chosen;  // once a process
    if (chosen.count(type) == 0) chosen[type] = fastest_algorithm();
    algorithm = chosen[type];
  }

  void run(const cublasLtMatmulAlgo_t& with) const {
    const float one = 1, zero = 0;
    require_success(cublasLtMatmul(handle.get(), description.get(), &one, a.data(), in.get(), b.data(), in.get(), &zero, c.data(),
                                   out.get(), c.data(), out.get(), &with, workspace.data(), workspace_bytes, exec.cuda_stream()),
                    "cublasLtMatmul");
  }

  cublasLtMatmulAlgo_t fastest_algorithm() const {
    cublasLtMatmulPreference_t preference;
    require_success(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
    const Handle<cublasLtMatmulPreference_t> owned{preference, cublasLtMatmulPreferenceDestroy};
    require_success(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes,
                                                         sizeof(workspace_bytes)),
                    "cublasLtMatmulPreferenceSetAttribute");
    std::array<cublasLtMatmulHeuristicResult_t, 8> proposals;
    int                                            found = 0;
    require_success(cublasLtMatmulAlgoGetHeuristic(handle.get(), description.get(), in.get(), in.get(), out.get(), out.get(), preference,
                                                   static_cast<int>(proposals.size()), proposals.data(), &found),
                    "cublasLtMatmulAlgoGetHeuristic");
    double                      least = 0;
    const cublasLtMatmulAlgo_t* best  = nullptr;
    for (int i = 0; i < found; ++i) {
      if (proposals[static_cast<std::size_t>(i)].state != CUBLAS_STATUS_SUCCESS) continue;
      const auto& proposed = proposals[static_cast<std::size_t>(i)].algo;
      run(proposed);  // loads its kernel
      const double seconds = CallsOnDevice(exec, 8, [&] { run(proposed); }).run();
      if (best == nullptr || seconds < least) least = seconds, best = &proposed;
    }
    if (best == nullptr) throw std::runtime_error("cuBLASLt has no algorithm for the product of this type");
    return *best;
  }
};

Gemm::Gemm(const Kokkos::Cuda& exec, ElementType type) : product_(std::make_shared<const Product>(exec, type)) {}

void Gemm::operator()() const { product_->run(product_->algorithm); }

}  // namespace Tributary::Benchmark
