#pragma once
#include <Kokkos_Core.hpp>
#include <cstdint>

// The order of top-k as one unsigned comparison: score in the high half, index in the low half, larger is better.

namespace Tributary::Impl {

using Entry = std::uint64_t;

/// Less than every entry.
inline constexpr Entry no_entry = 0;

/// Unsigned image of a score: ascending with it, -0 like +0, NaN below -infinity.
KOKKOS_INLINE_FUNCTION std::uint32_t sortable(float score) {
  auto bits = Kokkos::bit_cast<std::uint32_t>(score);
  bits      = bits == 0x80000000u ? 0u : bits;
  // positive: above all negative ones; negative: larger magnitude is smaller
  const std::uint32_t image = bits ^ (0x80000000u | (0u - (bits >> 31)));
  return (bits & 0x7fffffffu) > 0x7f800000u ? 0u : image;
}

/// The inverted index is at least 2^31, so that even a NaN's entry is not no_entry.
KOKKOS_INLINE_FUNCTION Entry make_entry(std::uint32_t sortable_score, std::uint32_t index) {
  return (static_cast<Entry>(sortable_score) << 32) | (0xffffffffu - index);
}

KOKKOS_INLINE_FUNCTION std::int32_t index_of(Entry entry) {
  return static_cast<std::int32_t>(0xffffffffu - static_cast<std::uint32_t>(entry));
}

KOKKOS_INLINE_FUNCTION float score_of(Entry entry) {
  const auto image = static_cast<std::uint32_t>(entry >> 32);
  if (image == 0u) return Kokkos::bit_cast<float>(0x7fc00000u);
  return Kokkos::bit_cast<float>(image & 0x80000000u ? image ^ 0x80000000u : ~image);
}

}  // namespace Tributary::Impl
