#pragma once
#include "sm90/topk/group.cuh"

// Sorting in registers, whatever the keys: a bitonic network whose runs are mirrored before they are merged, so that every step has the
// larger key first.

namespace Tributary::Impl::SM90 {

template <class Key>
__device__ __forceinline__ void larger_first(Key& first, Key& second) {
  const bool swap = first < second;
  const Key  old  = first;
  first           = swap ? second : first;
  second          = swap ? old : second;
}

/// Merges the two halves of runs of 2 * Stride keys of a thread, each in bitonic order, and what is in them.
template <int Stride, int Each, class Key>
__device__ __forceinline__ void merge_in_thread(Key (&keys)[Each]) {
  if constexpr (Stride > 0) {
#pragma unroll
    for (int i = 0; i < Each; ++i)
      if ((i & Stride) == 0) larger_first(keys[i], keys[i + Stride]);
    merge_in_thread<Stride / 2>(keys);
  }
}

/// Sorts runs of Run keys of a thread.
template <int Run, int Each, class Key>
__device__ __forceinline__ void sort_in_thread(Key (&keys)[Each]) {
  if constexpr (Run > 1) {
    sort_in_thread<Run / 2>(keys);
#pragma unroll
    for (int i = 0; i < Each; ++i)
      if ((i & (Run / 2)) == 0) larger_first(keys[i], keys[i ^ (Run - 1)]);
    merge_in_thread<Run / 4>(keys);
  }
}

/// Merges the two halves of runs of 2 * lanes * Each keys, each in bitonic order, and what is in them.
template <int Each, class Key>
__device__ __forceinline__ void merge_in_warp(Key (&keys)[Each], int lanes) {
#pragma unroll 1
  for (; lanes > 0; lanes /= 2) {
    const bool keeps_larger = (Group<32>::lane() & lanes) == 0;
#pragma unroll
    for (int i = 0; i < Each; ++i) {
      const Key other = __shfl_xor_sync(full_warp, keys[i], lanes);
      keys[i]         = (keys[i] < other) == keeps_larger ? other : keys[i];
    }
  }
  merge_in_thread<Each / 2>(keys);
}

/// Sorts the keys of a warp, or of each `Lanes` of its threads, largest first: key number lane * Each + i is keys[i] of a lane.
template <int Lanes = 32, int Each, class Key>
__device__ __forceinline__ void sort_in_warp(Key (&keys)[Each]) {
  sort_in_thread<Each>(keys);
#pragma unroll 1
  for (int lanes = 2; lanes <= Lanes; lanes *= 2) {
    const bool keeps_larger = (Group<32>::lane() & (lanes / 2)) == 0;
#pragma unroll
    for (int i = 0; i < (Each + 1) / 2; ++i) {
      Key &     key = keys[i], &mirrored = keys[Each - 1 - i];
      const Key first = __shfl_xor_sync(full_warp, mirrored, lanes - 1), second = __shfl_xor_sync(full_warp, key, lanes - 1);
      key = (key < first) == keeps_larger ? first : key;
      if (Each > 1) mirrored = (mirrored < second) == keeps_larger ? second : mirrored;
    }
    merge_in_warp(keys, lanes / 4);
  }
}

}  // namespace Tributary::Impl::SM90
