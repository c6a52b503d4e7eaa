#pragma once
#include <Kokkos_Core.hpp>
#include <cstddef>
#include <string>

#include "Tributary_Topk.hpp"

// The Hopper level of topk and topk_merge, behind their checks, as the dispatch sees it.  Templates, so that the dispatch compiles where
// there is no CUDA; they exist for Kokkos::Cuda.

namespace Tributary::Impl::SM90 {

/// Why the level cannot take a call; empty if it can.
template <class Exec>
std::string no_topk(const Exec& exec, const TopkArguments& arguments);
template <class Exec>
std::string no_topk(const Exec& exec, const TopkMergeArguments& arguments);

template <class Exec>
std::size_t topk_workspace_size(const Exec& exec, const TopkArguments& arguments, const TopkOptions& options);

/// \param workspace  aligned base of topk_workspace_size bytes
template <class Exec>
void topk(const Exec& exec, const TopkArguments& arguments, const TopkOptions& options, const TopkOutput& output, std::byte* workspace);

/// Needs no workspace.
template <class Exec>
void topk_merge(const Exec& exec, const TopkMergeArguments& arguments, const TopkOutput& output);

}  // namespace Tributary::Impl::SM90
