#include "common/check.hpp"
#include "common/workers.hpp"
#include "quantize/quantize.hpp"

namespace Tributary::Impl {
namespace {

/// A team a row: the largest finite magnitude, then every value divided by the scale it gives.
template <class Exec, class Element>
struct QuantizeFunctor {
  using Member = typename RowPolicy<Exec>::member_type;

  const Element* values;
  float8_e4m3_t* quantized;
  float*         scales;
  std::int64_t   extents[4], value_strides[3], quantized_strides[3], scale_strides[3];

  KOKKOS_FUNCTION void operator()(const Member& team) const {
    const std::int64_t row   = team.league_rank();
    const std::int64_t at[3] = {row / (extents[1] * extents[2]), row / extents[2] % extents[1], row % extents[2]};
    const auto offset = [&](const std::int64_t(&strides)[3]) { return at[0] * strides[0] + at[1] * strides[1] + at[2] * strides[2]; };
    const Element* const from = values + offset(value_strides);
    float8_e4m3_t* const to   = quantized + offset(quantized_strides);

    float largest = 0.0f;
    Kokkos::parallel_reduce(
        Kokkos::TeamVectorRange(team, extents[3]),
        [&](const std::int64_t d, float& so_far) {
          const float magnitude = Kokkos::abs(static_cast<float>(from[d]));
          if (magnitude > so_far && magnitude <= Kokkos::Experimental::finite_max_v<float>) so_far = magnitude;
        },
        Kokkos::Max<float>(largest));
    float scale = Kokkos::max(largest, 0.0f) / float8_e4m3_t::largest;  // a row without a finite value leaves the reduction's lowest float
    if (scale == 0.0f) scale = 1.0f;
    Kokkos::single(Kokkos::PerTeam(team), [&] { scales[offset(scale_strides)] = scale; });
    Kokkos::parallel_for(Kokkos::TeamVectorRange(team, extents[3]),
                         [&](const std::int64_t d) { to[d] = float8_e4m3_t(static_cast<float>(from[d]) / scale); });
  }
};

}  // namespace

template <class Exec>
void quantize_e4m3(const Exec& exec, const QuantizeArguments& arguments, const QuantizeOptions& options) {
  check_quantize(arguments);
  if (choose_level("quantize_e4m3", options.level, host_memory<Exec>) == Level::reference) {
    exec.fence("Tributary::quantize_e4m3: reference level");
    return reference_quantize_e4m3(arguments);
  }
  const auto& [type, values, quantized, scales] = arguments;
  const std::int64_t rows                       = values.extents[0] * values.extents[1] * values.extents[2];
  if (rows == 0) return;
  visit_element_type(type, [&, v = values, q = quantized, s = scales]<class Element>(std::type_identity<Element>) {
    const QuantizeFunctor<Exec, Element> functor{.values            = static_cast<const Element*>(v.data),
                                                 .quantized         = q.data,
                                                 .scales            = s.data,
                                                 .extents           = {v.extents[0], v.extents[1], v.extents[2], v.extents[3]},
                                                 .value_strides     = {v.strides[0], v.strides[1], v.strides[2]},
                                                 .quantized_strides = {q.strides[0], q.strides[1], q.strides[2]},
                                                 .scale_strides     = {s.strides[0], s.strides[1], s.strides[2]}};
    Kokkos::parallel_for("Tributary::quantize_e4m3::portable", RowPolicy<Exec>(exec, static_cast<int>(rows), row_team_size<Exec>), functor);
  });
}

using Space = TRIBUTARY_EXECUTION_SPACE;
template void quantize_e4m3(const Space&, const QuantizeArguments&, const QuantizeOptions&);

}  // namespace Tributary::Impl
