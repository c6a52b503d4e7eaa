#pragma once
#include <Kokkos_Core.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <vector>

// The Kokkos execution spaces this program was built with, by the names of --backend.

namespace Tributary::Program {

template <class Exec>
struct Backend {
  using execution_space = Exec;
  std::string_view name;
};

inline const auto backends = std::tuple_cat(std::tuple<>{}
#ifdef KOKKOS_ENABLE_SERIAL
                                            ,
                                            std::tuple{Backend<Kokkos::Serial>{"serial"}}
#endif
#ifdef KOKKOS_ENABLE_OPENMP
                                            ,
                                            std::tuple{Backend<Kokkos::OpenMP>{"openmp"}}
#endif
#ifdef KOKKOS_ENABLE_THREADS
                                            ,
                                            std::tuple{Backend<Kokkos::Threads>{"threads"}}
#endif
#ifdef KOKKOS_ENABLE_CUDA
                                            ,
                                            std::tuple{Backend<Kokkos::Cuda>{"cuda"}}
#endif
#ifdef KOKKOS_ENABLE_HIP
                                            ,
                                            std::tuple{Backend<Kokkos::HIP>{"hip"}}
#endif
);

inline std::vector<std::string> backend_names() {
  return std::apply([](const auto&... backend) { return std::vector<std::string>{std::string(backend.name)...}; }, backends);
}

inline std::string default_backend() {
  std::string name;
  std::apply(
      [&](const auto&... backend) {
        ((std::is_same_v<typename std::remove_cvref_t<decltype(backend)>::execution_space, Kokkos::DefaultExecutionSpace>
              ? void(name = backend.name)
              : void()),
         ...);
      },
      backends);
  return name;
}

/// Calls function(execution space instance) for the backend of that name.
template <class Function>
void visit_backend(std::string_view name, const Function& function) {
  const auto call_if_named = [&](const auto& backend) {
    if (backend.name == name) function(typename std::remove_cvref_t<decltype(backend)>::execution_space{});
  };
  std::apply([&](const auto&... backend) { (call_if_named(backend), ...); }, backends);
}

}  // namespace Tributary::Program
