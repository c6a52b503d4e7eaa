#pragma once
#include <Kokkos_Core.hpp>
#include <concepts>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include "Tributary_Require.hpp"

namespace Tributary {

namespace Impl {

/// What is left of a View behind the public templates: a pointer, extents and strides (in elements, slowest first).
template <class T, int Rank>
struct Tensor {
  T*           data = nullptr;
  std::int64_t extents[Rank]{};
  std::int64_t strides[Rank]{};

  explicit operator bool() const { return data != nullptr; }
  bool     empty() const {
        for (auto extent : extents)
      if (extent == 0) return true;
    return false;
  }
};

template <class V>
concept AnyView = Kokkos::is_view_v<std::remove_cvref_t<V>>;

template <class View>
inline constexpr bool has_contiguous_rows = !std::is_same_v<typename View::array_layout, Kokkos::LayoutLeft> || View::rank() == 1;

/// Pointer, extents and strides of a View of `Rank` dimensions, its last stride not checked yet.  One of fewer dimensions (not under
/// `LeastRank`) gets leading extents of 1: a View without the batch dimension stands for a batch of one.
template <int Rank, int LeastRank = Rank - 1, AnyView View>
auto unchecked_tensor(const View& view) {
  constexpr int rank = static_cast<int>(View::rank()), shift = Rank - rank;
  static_assert(LeastRank <= rank && rank <= Rank, "Tributary: this argument has the wrong number of dimensions");
  static_assert(has_contiguous_rows<View>,
                "Tributary: the last dimension of a View must be contiguous; declare it with Kokkos::LayoutRight (or Kokkos::LayoutStride "
                "with a last stride of 1), not with Kokkos::LayoutLeft, the default of device Views");
  Tensor<typename View::value_type, Rank> result;
  result.data = view.data();
  for (int d = Rank - 1; d >= 0; --d) {
    result.extents[d] = d < shift ? 1 : static_cast<std::int64_t>(view.extent(static_cast<std::size_t>(d - shift)));
    result.strides[d] = d < shift ? result.extents[d + 1] * result.strides[d + 1] : static_cast<std::int64_t>(view.stride(d - shift));
  }
  return result;
}

template <class T, int Rank>
void require_contiguous(std::string_view function, std::string_view name, const Tensor<T, Rank>& tensor) {
  require(tensor.strides[Rank - 1] == 1 || tensor.extents[Rank - 1] <= 1, "{}: the last dimension of {} has stride {}, expected 1",
          function, name, tensor.strides[Rank - 1]);
}

/// The tensor of a View argument.
template <int Rank, int LeastRank = Rank - 1, AnyView View>
auto tensor(std::string_view function, std::string_view name, const View& view) {
  const auto result = unchecked_tensor<Rank, LeastRank>(view);
  require_contiguous(function, name, result);
  return result;
}

/// The same tensor seen as one of another element type: const T to read only, const void to forget the type.
template <class To, class From, int Rank>
Tensor<To, Rank> as(const Tensor<From, Rank>& from) {
  Tensor<To, Rank> to;
  to.data = from.data;
  for (int d = 0; d < Rank; ++d) {
    to.extents[d] = from.extents[d];
    to.strides[d] = from.strides[d];
  }
  return to;
}

/// Where the elements of a tensor lie; of one without elements nowhere.
struct Footprint {
  static constexpr int most_dimensions = 4;

  const char*  begin         = nullptr;
  std::int64_t element_bytes = 0;
  int          rank          = 0;                                   // of what steps over bytes
  std::int64_t extents[most_dimensions], strides[most_dimensions];  // strides in bytes
};

template <class T, int Rank>
Footprint footprint(const Tensor<T, Rank>& tensor, std::int64_t element_size) {
  static_assert(Rank <= Footprint::most_dimensions);
  Footprint result;
  if (!tensor || tensor.empty()) return result;
  result.begin         = static_cast<const char*>(static_cast<const void*>(tensor.data));
  result.element_bytes = element_size;
  for (int d = 0; d < Rank; ++d) {
    if (tensor.extents[d] == 1 || tensor.strides[d] == 0) continue;
    result.extents[result.rank] = tensor.extents[d];
    result.strides[result.rank] = tensor.strides[d] * element_size;
    ++result.rank;
  }
  return result;
}

/// May work on this execution space touch that memory space?  Checked where the View is in sight.
template <class Exec, class... Views>
inline constexpr bool accessible_from = (Kokkos::SpaceAccessibility<Exec, typename Views::memory_space>::accessible && ...);

}  // namespace Impl

/// A View handed over inside an options struct.  Like the View arguments it must stay alive until the work is done; it does
/// not own its memory.  A default-constructed one means «not given».  A View of one dimension less stands for a batch of one.
/// T is const for an input.
template <class T, int Rank>
class ArrayReference {
 public:
  ArrayReference() = default;

  template <Impl::AnyView View>
  requires std::convertible_to<typename View::value_type*, T*> ArrayReference(const View& view)
      : given_(true),
        on_host_(Impl::accessible_from<Kokkos::DefaultHostExecutionSpace, View>),
        on_device_(Impl::accessible_from<Kokkos::DefaultExecutionSpace, View>),
        tensor_(Impl::as<T>(Impl::unchecked_tensor<Rank>(view))) {}

  bool given() const { return given_; }
  /// The tensor, after a check that `Exec` can reach it and that its rows are contiguous.
  template <class Exec>
  const Impl::Tensor<T, Rank>& on(std::string_view function, std::string_view name) const {
    constexpr bool host = Impl::accessible_from<Exec, Kokkos::View<int, Kokkos::HostSpace>>;
    Impl::require(!given_ || (host ? on_host_ : on_device_), "{}: {} lies in memory that {} cannot reach", function, name, Exec::name());
    Impl::require_contiguous(function, name, tensor_);
    return tensor_;
  }

 private:
  bool                  given_ = false, on_host_ = false, on_device_ = false;
  Impl::Tensor<T, Rank> tensor_;
};

/// An optional input.
template <class T, int Rank>
using ArrayOption = ArrayReference<const T, Rank>;

/// An optional output.
template <class T, int Rank>
using OutputOption = ArrayReference<T, Rank>;

}  // namespace Tributary
