#include "quantize/quantize.hpp"

#include <algorithm>
#include <limits>

#include "common/check.hpp"

namespace Tributary::Impl {

namespace {

void check(std::string_view function, const QuantizeArguments& arguments, const std::int64_t (&scale_extents)[3]) {
  const auto& [type, values, quantized, scales] = arguments;
  require(std::equal(values.extents, values.extents + 4, quantized.extents), "{}: quantized is {}, values is {}", function,
          extents_text(quantized), extents_text(values));
  require(std::equal(scale_extents, scale_extents + 3, scales.extents), "{}: scales is {}, values is {}, expected scales {}", function,
          extents_text(scales), extents_text(values), extents_text(scale_extents, 3));
  require(values.extents[0] * values.extents[1] * values.extents[2] <= std::numeric_limits<std::int32_t>::max(),
          "{}: values has {} rows, expected fewer than 2^31", function, values.extents[0] * values.extents[1] * values.extents[2]);
  require_distinct_elements(function, "quantized", quantized);
  require_distinct_elements(function, "scales", scales);
  require_disjoint(function, "quantized", footprint(quantized, 1), "values", footprint(values, element_size(type)));
  require_disjoint(function, "scales", footprint(scales, sizeof(float)), "values", footprint(values, element_size(type)));
  require_disjoint(function, "scales", footprint(scales, sizeof(float)), "quantized", footprint(quantized, 1));
}

}  // namespace

void check_quantize(const QuantizeArguments& arguments) {
  const auto& extents = arguments.values.extents;
  check("quantize_e4m3", arguments, {extents[0], extents[1], extents[2]});
}

void check_quantize_heads(const QuantizeArguments& arguments) {
  const auto& extents = arguments.values.extents;
  check("quantize_e4m3_heads", arguments, {extents[0], extents[2], (extents[1] + attention_scale_rows - 1) / attention_scale_rows});
}

}  // namespace Tributary::Impl
