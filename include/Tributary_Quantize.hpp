#pragma once
#include <cstdint>

#include "Tributary_Level.hpp"
#include "Tributary_Types.hpp"
#include "impl/Tributary_Operator.hpp"
#include "impl/Tributary_Tensor.hpp"

namespace Tributary {

/// Rows of a head that share a scale in attention over float8_e4m3_t.
inline constexpr std::int64_t attention_scale_rows = 128;

struct QuantizeOptions {
  Level level = Level::automatic;
};

namespace Impl {

struct QuantizeArguments {
  ElementType              type;
  Tensor<const void, 4>    values;
  Tensor<float8_e4m3_t, 4> quantized;
  Tensor<float, 3>         scales;
};

// Compiled in the library, once for each enabled execution space.
template <class Exec>
void quantize_e4m3(const Exec&, const QuantizeArguments&, const QuantizeOptions&);
template <class Exec>
void quantize_e4m3_heads(const Exec&, const QuantizeArguments&, const QuantizeOptions&);

}  // namespace Impl

/// FP8 e4m3 with one scale a row: scale = (largest finite magnitude of the row) / 448, or 1 where that is zero;
/// quantized = values / scale, rounded to nearest even.  Infinities saturate at +-448, NaN stays NaN, so a scale is always finite
/// and positive and a stored value times its scale is the value, to within rounding.
///
/// \param exec       execution-space instance; all work is queued on it, nothing is allocated or fenced
/// \param values     [..., D] of 2 to 4 dimensions, float, bfloat16_t or half_t
/// \param quantized  the same extents, float8_e4m3_t, out
/// \param scales     [...], the same extents without the last, float, out
/// \throws std::invalid_argument on mismatched extents or overlapping arrays
template <ExecutionSpace Exec, Impl::AnyView Values, Impl::AnyView Quantized, Impl::AnyView Scales>
void quantize_e4m3(const Exec& exec, const Values& values, const Quantized& quantized, const Scales& scales,
                   const QuantizeOptions& options = {}) {
  Impl::check_views<Exec, Values, Quantized, Scales>();
  using Value = typename Values::non_const_value_type;
  static_assert(Element<Value> && !std::is_same_v<Value, float8_e4m3_t>,
                "Tributary::quantize_e4m3: values must be float, bfloat16_t or half_t");
  static_assert(Values::rank() == Quantized::rank() && Values::rank() == Scales::rank() + 1,
                "Tributary::quantize_e4m3: quantized has the dimensions of values, scales those but the last");
  Impl::quantize_e4m3(exec,
                      {.type      = element_type<Value>(),
                       .values    = Impl::as<const void>(Impl::tensor<4, 2>("quantize_e4m3", "values", values)),
                       .quantized = Impl::output_tensor<float8_e4m3_t, 4, 2>("quantize_e4m3", "quantized", quantized),
                       .scales    = Impl::output_tensor<float, 3, 1>("quantize_e4m3", "scales", scales)},
                      options);
}

/// On the default instance of the values' execution space.
template <Impl::AnyView Values, Impl::AnyView Quantized, Impl::AnyView Scales>
void quantize_e4m3(const Values& values, const Quantized& quantized, const Scales& scales, const QuantizeOptions& options = {}) {
  quantize_e4m3(typename Values::execution_space{}, values, quantized, scales, options);
}

/// The same with one scale for each attention_scale_rows (128) rows of a head, as attention_forward takes queries, keys and values.
///
/// \param values     [B, S, H, D] or [S, H, D], float, bfloat16_t or half_t
/// \param quantized  the same extents, float8_e4m3_t, out
/// \param scales     [B, H, ceil(S/128)] or [H, ceil(S/128)], float, out
/// \throws std::invalid_argument on mismatched extents or overlapping arrays
template <ExecutionSpace Exec, Impl::AnyView Values, Impl::AnyView Quantized, Impl::AnyView Scales>
void quantize_e4m3_heads(const Exec& exec, const Values& values, const Quantized& quantized, const Scales& scales,
                         const QuantizeOptions& options = {}) {
  constexpr std::string_view f = "quantize_e4m3_heads";
  Impl::check_views<Exec, Values, Quantized, Scales>();
  using Value = typename Values::non_const_value_type;
  static_assert(Element<Value> && !std::is_same_v<Value, float8_e4m3_t>,
                "Tributary::quantize_e4m3_heads: values must be float, bfloat16_t or half_t");
  static_assert(Values::rank() == Quantized::rank() && Values::rank() == Scales::rank() + 1,
                "Tributary::quantize_e4m3_heads: quantized has the dimensions of values, scales one less");
  Impl::quantize_e4m3_heads(exec,
                            {.type      = element_type<Value>(),
                             .values    = Impl::as<const void>(Impl::tensor<4>(f, "values", values)),
                             .quantized = Impl::output_tensor<float8_e4m3_t, 4>(f, "quantized", quantized),
                             .scales    = Impl::output_tensor<float, 3>(f, "scales", scales)},
                            options);
}

/// On the default instance of the values' execution space.
template <Impl::AnyView Values, Impl::AnyView Quantized, Impl::AnyView Scales>
void quantize_e4m3_heads(const Values& values, const Quantized& quantized, const Scales& scales, const QuantizeOptions& options = {}) {
  quantize_e4m3_heads(typename Values::execution_space{}, values, quantized, scales, options);
}

}  // namespace Tributary
