#pragma once
#include <cstdint>

#include "impl/Tributary_Tensor.hpp"

namespace Tributary {

/// Sequences of different lengths, one behind another.  Sequence b's queries are rows cu_seqlens_q[b] ... cu_seqlens_q[b+1]-1, its
/// keys rows cu_seqlens_k[b] ... cu_seqlens_k[b+1]-1; masks and returned indices count from the sequence's first.  Values outside the
/// arrays are clipped; a query outside every sequence has no legal key.  From values that do not ascend nothing is read or written outside
/// the arrays, but what comes out depends on the level.
struct PackedSequences {
  ArrayOption<std::int32_t, 1> cu_seqlens_q = {};  ///< [sequences + 1]
  ArrayOption<std::int32_t, 1> cu_seqlens_k = {};  ///< [sequences + 1]
};

}  // namespace Tributary
