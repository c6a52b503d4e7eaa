#pragma once
#include <Kokkos_Core.hpp>
#include <cstddef>
#include <optional>
#include <string_view>
#include <vector>

#include "Tributary_Tensor.hpp"

// What every public operator template shares: the constraints on its arguments and the workspace.

namespace Tributary {

template <class T>
concept ExecutionSpace = Kokkos::is_execution_space_v<T>;

namespace Impl {

template <class T>
inline constexpr bool is_view = AnyView<T>;

/// A View, or std::nullopt for a result that is not wanted.
template <class T>
concept OptionalView = AnyView<T> || std::same_as<std::remove_cvref_t<T>, std::nullopt_t>;

template <class T>
concept WorkspaceView = AnyView<T> && std::same_as<typename std::remove_cvref_t<T>::value_type, std::byte> &&
    (std::remove_cvref_t<T>::rank() == 1);

template <class Exec, class View>
constexpr void check_view() {
  if constexpr (is_view<View>) {
    static_assert(accessible_from<Exec, View>, "Tributary: the execution space cannot reach this View's memory space");
    static_assert(
        has_contiguous_rows<View>,
        "Tributary: the last dimension of a View must be contiguous; declare it with Kokkos::LayoutRight (or Kokkos::LayoutStride "
        "with a last stride of 1), not with Kokkos::LayoutLeft, the default of device Views");
  }
}

template <class Exec, class... Views>
constexpr void check_views() {
  (check_view<Exec, Views>(), ...);
}

/// The tensor of an output View; an empty one for std::nullopt.
template <class T, int Rank, int LeastRank = Rank - 1, OptionalView Output>
Tensor<T, Rank> output_tensor(std::string_view function, std::string_view name, const Output& output) {
  if constexpr (is_view<Output>) {
    static_assert(std::same_as<typename Output::value_type, T>, "Tributary: this output has the wrong element type, or is const");
    return tensor<Rank, LeastRank>(function, name, output);
  } else {
    return {};
  }
}

struct WorkspaceSpan {
  std::byte*  data = nullptr;
  std::size_t size = 0;
};

template <class Exec, WorkspaceView Workspace>
WorkspaceSpan workspace_span(const Workspace& workspace) {
  check_views<Exec, Workspace>();
  return {workspace.data(), workspace.size()};
}

/// Of no bytes: no allocation.
template <class Exec>
auto allocate_workspace(const Exec& exec, std::size_t bytes) {
  using Workspace = Kokkos::View<std::byte*, typename Exec::memory_space>;
  return bytes == 0 ? Workspace() : Workspace(Kokkos::view_alloc(exec, Kokkos::WithoutInitializing, "Tributary::workspace"), bytes);
}

}  // namespace Impl
}  // namespace Tributary
