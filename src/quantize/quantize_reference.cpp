#include <algorithm>
#include <cmath>

#include "quantize/quantize.hpp"
#include "topk/topk_reference.hpp"

namespace Tributary::Impl {

namespace {

/// Some rows of a head, from one to one before another.
void quantize_rows(const QuantizeArguments& arguments, std::int64_t a, std::int64_t from, std::int64_t to, std::int64_t c, float& scale) {
  const auto& values    = arguments.values;
  const auto& quantized = arguments.quantized;
  const auto  value     = [&](std::int64_t b, std::int64_t d) {
    return element(arguments.type, values.data, a * values.strides[0] + b * values.strides[1] + c * values.strides[2] + d);
  };
  float largest = 0;
  for (std::int64_t b = from; b < to; ++b)
    for (std::int64_t d = 0; d < values.extents[3]; ++d)
      if (std::isfinite(value(b, d))) largest = std::max(largest, std::abs(value(b, d)));
  scale = largest / float8_e4m3_t::largest;
  if (scale == 0) scale = 1;
  for (std::int64_t b = from; b < to; ++b)
    for (std::int64_t d = 0; d < values.extents[3]; ++d)
      quantized.data[a * quantized.strides[0] + b * quantized.strides[1] + c * quantized.strides[2] + d] =
          float8_e4m3_t(value(b, d) / scale);
}

}  // namespace

void reference_quantize_e4m3(const QuantizeArguments& arguments) {
  const auto&             extents = arguments.values.extents;
  const Tensor<float, 3>& scales  = arguments.scales;
  for (std::int64_t a = 0; a < extents[0]; ++a)
    for (std::int64_t b = 0; b < extents[1]; ++b)
      for (std::int64_t c = 0; c < extents[2]; ++c)
        quantize_rows(arguments, a, b, b + 1, c, scales.data[a * scales.strides[0] + b * scales.strides[1] + c * scales.strides[2]]);
}

void reference_quantize_e4m3_heads(const QuantizeArguments& arguments) {
  const auto&             extents = arguments.values.extents;
  const Tensor<float, 3>& scales  = arguments.scales;
  for (std::int64_t a = 0; a < extents[0]; ++a)
    for (std::int64_t c = 0; c < extents[2]; ++c)
      for (std::int64_t block = 0; block < scales.extents[2]; ++block) {
        const std::int64_t from = block * attention_scale_rows, to = std::min(from + attention_scale_rows, extents[1]);
        quantize_rows(arguments, a, from, to, c, scales.data[a * scales.strides[0] + c * scales.strides[1] + block * scales.strides[2]]);
      }
}

}  // namespace Tributary::Impl
