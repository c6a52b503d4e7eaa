#include "quantize/quantize.hpp"

#include <algorithm>
#include <limits>

#include "common/check.hpp"

namespace Tributary::Impl {

void check_quantize(const QuantizeArguments& arguments) {
  const auto& [type, values, quantized, scales] = arguments;
  require(std::equal(values.extents, values.extents + 4, quantized.extents), "quantize_e4m3: quantized is {}, values is {}",
          extents_text(quantized), extents_text(values));
  require(std::equal(values.extents, values.extents + 3, scales.extents), "quantize_e4m3: scales is {}, values is {}", extents_text(scales),
          extents_text(values));
  require(values.extents[0] * values.extents[1] * values.extents[2] <= std::numeric_limits<std::int32_t>::max(),
          "quantize_e4m3: values has {} rows, expected fewer than 2^31", values.extents[0] * values.extents[1] * values.extents[2]);
  require_distinct_elements("quantize_e4m3", "quantized", quantized);
  require_distinct_elements("quantize_e4m3", "scales", scales);
  require_disjoint("quantize_e4m3", "quantized", byte_span(quantized, 1), "values", byte_span(values, element_size(type)));
  require_disjoint("quantize_e4m3", "scales", byte_span(scales, sizeof(float)), "values", byte_span(values, element_size(type)));
  require_disjoint("quantize_e4m3", "scales", byte_span(scales, sizeof(float)), "quantized", byte_span(quantized, 1));
}

}  // namespace Tributary::Impl
