#pragma once
#include <cstdint>

#include "attention/attention_tile.hpp"

// Which pairs dropout keeps.  A Philox block has the words of four neighbouring keys, which different threads hold: a thread looks up
// sixteen keys in a row, for itself and for those that need them, and they exchange bits.

namespace Tributary::Impl::SM90 {

/// A bit for each of sixteen neighbouring keys: whether the query's pair with it is kept.
///
/// \param query, first_key  numbers as Philox counts them; bits of keys below 0 mean nothing
__device__ inline std::uint32_t kept_pairs(const AttentionProblem& p, std::int64_t sequence, std::int32_t head, std::int64_t query,
                                           std::int64_t first_key) {
  const std::int64_t block  = first_key >> 2;
  const int          before = static_cast<int>(first_key & 3);  // keys of the first block
  std::uint32_t      kept   = 0;
#pragma unroll
  for (int b = 0; b < 5; ++b) {
    if (b == 4 && before == 0) break;
    const PhiloxBlock words = dropout_words(p, sequence, head, query, block + b);
#pragma unroll
    for (int k = 0; k < 4; ++k) kept |= words.word[k] >= p.dropout_threshold ? 1u << (4 * b + k) : 0u;
  }
  return kept >> before & 0xffffu;
}

}  // namespace Tributary::Impl::SM90
