#include <algorithm>
#include <cmath>

#include "quantize/quantize.hpp"
#include "topk/topk_reference.hpp"

namespace Tributary::Impl {

void reference_quantize_e4m3(const QuantizeArguments& arguments) {
  const auto& [type, values, quantized, scales] = arguments;
  for (std::int64_t a = 0; a < values.extents[0]; ++a)
    for (std::int64_t b = 0; b < values.extents[1]; ++b)
      for (std::int64_t c = 0; c < values.extents[2]; ++c) {
        const auto value = [&, v = values](std::int64_t d) {
          return element(type, v.data, a * v.strides[0] + b * v.strides[1] + c * v.strides[2] + d);
        };
        float largest = 0;
        for (std::int64_t d = 0; d < values.extents[3]; ++d)
          if (std::isfinite(value(d))) largest = std::max(largest, std::abs(value(d)));
        float scale = largest / float8_e4m3_t::largest;
        if (scale == 0) scale = 1;
        scales.data[a * scales.strides[0] + b * scales.strides[1] + c * scales.strides[2]] = scale;
        for (std::int64_t d = 0; d < values.extents[3]; ++d)
          quantized.data[a * quantized.strides[0] + b * quantized.strides[1] + c * quantized.strides[2] + d] =
              float8_e4m3_t(value(d) / scale);
      }
}

}  // namespace Tributary::Impl
