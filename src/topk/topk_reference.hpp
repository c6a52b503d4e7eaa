#pragma once
#include <cstdint>
#include <vector>

#include "Tributary_Topk.hpp"

namespace Tributary::Impl {

struct Scored {
  float        score;
  std::int32_t index;
};

/// The k best of a row by the definition of the order, in the wanted order, padded at the end.
void reference_select(std::vector<Scored> row, const TopkOutput& output, std::int64_t batch, std::int64_t output_row);

void reference_topk(const TopkArguments&, const TopkOutput&);
void reference_topk_merge(const TopkMergeArguments&, const TopkOutput&);

/// Element `offset` of an array whose type is known at run time.
inline float element(ElementType type, const void* data, std::int64_t offset) {
  return visit_element_type(type, [&]<class T>(std::type_identity<T>) { return static_cast<float>(static_cast<const T*>(data)[offset]); });
}

}  // namespace Tributary::Impl
