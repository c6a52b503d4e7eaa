#pragma once
#include <cstdint>
#include <span>
#include <string>

namespace Tributary::Program {

/// Which keys each query chose.
struct Choices {
  std::int64_t                  queries, keys, top_k;
  std::int64_t                  ratio;    ///< key s is legal for query t iff s < (t + 1) / ratio
  std::span<const std::int32_t> indices;  ///< [queries, top_k], -1 = none
};

/// An SVG picture: queries downwards, keys to the right, both binned, and below how often each key was chosen.
std::string picture_of(const Choices&, const std::string& subtitle);

}  // namespace Tributary::Program
