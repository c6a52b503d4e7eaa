#include "common/check.hpp"
#include "common/workers.hpp"
#include "quantize/quantize.hpp"

namespace Tributary::Impl {
namespace {

/// A team a block of a head's rows: the largest finite magnitude, then every value divided by the scale it gives.
template <class Exec, class Element>
struct QuantizeFunctor {
  using Member = typename RowPolicy<Exec>::member_type;

  const Element* values;
  float8_e4m3_t* quantized;
  float*         scales;
  std::int64_t   extents[4], value_strides[3], quantized_strides[3];
  std::int64_t   block_rows, blocks, scale_strides[3];  // strides of batch, block and head

  KOKKOS_FUNCTION void operator()(const Member& team) const {
    const std::int64_t rank = team.league_rank(), heads = extents[2];
    const std::int64_t batch = rank / (blocks * heads), block = rank / heads % blocks, head = rank % heads;
    const std::int64_t first = block * block_rows, end = first + block_rows < extents[1] ? first + block_rows : extents[1];

    float largest = 0.0f;
    for (std::int64_t row = first; row < end; ++row) {
      const Element* const from = values + batch * value_strides[0] + row * value_strides[1] + head * value_strides[2];
      float                of_row;
      Kokkos::parallel_reduce(
          Kokkos::TeamVectorRange(team, extents[3]),
          [&](const std::int64_t d, float& so_far) {
            const float magnitude = Kokkos::abs(static_cast<float>(from[d]));
            if (magnitude > so_far && magnitude <= Kokkos::Experimental::finite_max_v<float>) so_far = magnitude;
          },
          Kokkos::Max<float>(of_row));
      largest = Kokkos::max(largest, of_row);  // without a finite value the reduction leaves the lowest float
    }
    float scale = largest / float8_e4m3_t::largest;
    if (scale == 0.0f) scale = 1.0f;
    Kokkos::single(Kokkos::PerTeam(team),
                   [&] { scales[batch * scale_strides[0] + block * scale_strides[1] + head * scale_strides[2]] = scale; });
    for (std::int64_t row = first; row < end; ++row) {
      const Element* const from = values + batch * value_strides[0] + row * value_strides[1] + head * value_strides[2];
      float8_e4m3_t* const to   = quantized + batch * quantized_strides[0] + row * quantized_strides[1] + head * quantized_strides[2];
      Kokkos::parallel_for(Kokkos::TeamVectorRange(team, extents[3]),
                           [&](const std::int64_t d) { to[d] = float8_e4m3_t(static_cast<float>(from[d]) / scale); });
    }
  }
};

/// \param scale_strides  of batch, block of rows and head
template <class Exec>
void quantize(const char* label, const Exec& exec, const QuantizeArguments& arguments, std::int64_t block_rows, std::int64_t blocks,
              const std::int64_t (&scale_strides)[3]) {
  const auto& [type, values, quantized, scales] = arguments;
  const std::int64_t teams                      = values.extents[0] * blocks * values.extents[2];
  if (teams == 0) return;
  visit_element_type(type, [&, v = values, q = quantized, s = scales]<class Element>(std::type_identity<Element>) {
    const QuantizeFunctor<Exec, Element> functor{.values            = static_cast<const Element*>(v.data),
                                                 .quantized         = q.data,
                                                 .scales            = s.data,
                                                 .extents           = {v.extents[0], v.extents[1], v.extents[2], v.extents[3]},
                                                 .value_strides     = {v.strides[0], v.strides[1], v.strides[2]},
                                                 .quantized_strides = {q.strides[0], q.strides[1], q.strides[2]},
                                                 .block_rows        = block_rows,
                                                 .blocks            = blocks,
                                                 .scale_strides     = {scale_strides[0], scale_strides[1], scale_strides[2]}};
    Kokkos::parallel_for(label, RowPolicy<Exec>(exec, static_cast<int>(teams), row_team_size<Exec>), functor);
  });
}

}  // namespace

template <class Exec>
void quantize_e4m3(const Exec& exec, const QuantizeArguments& arguments, const QuantizeOptions& options) {
  check_quantize(arguments);
  if (choose_level("quantize_e4m3", options.level, host_memory<Exec>) == Level::reference) {
    exec.fence("Tributary::quantize_e4m3: reference level");
    return reference_quantize_e4m3(arguments);
  }
  const auto& strides = arguments.scales.strides;
  quantize("Tributary::quantize_e4m3::portable", exec, arguments, 1, arguments.values.extents[1], strides);
}

template <class Exec>
void quantize_e4m3_heads(const Exec& exec, const QuantizeArguments& arguments, const QuantizeOptions& options) {
  check_quantize_heads(arguments);
  if (choose_level("quantize_e4m3_heads", options.level, host_memory<Exec>) == Level::reference) {
    exec.fence("Tributary::quantize_e4m3_heads: reference level");
    return reference_quantize_e4m3_heads(arguments);
  }
  const auto& strides = arguments.scales.strides;
  quantize("Tributary::quantize_e4m3_heads::portable", exec, arguments, attention_scale_rows, arguments.scales.extents[2],
           {strides[0], strides[2], strides[1]});
}

using Space = TRIBUTARY_EXECUTION_SPACE;
template void quantize_e4m3(const Space&, const QuantizeArguments&, const QuantizeOptions&);
template void quantize_e4m3_heads(const Space&, const QuantizeArguments&, const QuantizeOptions&);

}  // namespace Tributary::Impl
