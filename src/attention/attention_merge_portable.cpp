#include "attention/attention_tile.hpp"
#include "common/check.hpp"
#include "common/log.hpp"

namespace Tributary::Impl {
namespace {

/// A team a query row: every head's states, weighted by exp(lse - the largest lse).
template <class Exec, class Element>
struct AttentionMergeFunctor {
  using Member = typename RowPolicy<Exec>::member_type;

  static constexpr int most = 8;  // states of a call, to keep the closure small

  struct State {
    const float *out, *lse;
    std::int64_t out_strides[3], lse_strides[2];
  };
  State        states[most];
  int          count;
  const float* sink;
  void*        out;
  float*       lse;
  std::int64_t out_strides[3], lse_strides[2];
  std::int32_t queries, heads, value_dim;

  KOKKOS_FUNCTION void operator()(const Member& team) const {
    constexpr float    nothing = -Kokkos::Experimental::infinity_v<float>;
    const std::int64_t batch = team.league_rank() / queries, row = team.league_rank() % queries;
    for (std::int32_t h = 0; h < heads; ++h) {
      float weights[most], top = nothing, sum = 0.0f;
      for (int s = 0; s < count; ++s) {
        weights[s] = states[s].lse[batch * states[s].lse_strides[0] + h * states[s].lse_strides[1] + row];
        top        = weights[s] > top ? weights[s] : top;
      }
      for (int s = 0; s < count; ++s) {
        weights[s] = weights[s] == nothing ? 0.0f : Kokkos::exp(weights[s] - top);
        sum += weights[s];
      }
      const float merged = sum == 0.0f ? nothing : top + Kokkos::log(sum);
      const float kept   = sink == nullptr || merged == nothing ? 1.0f : 1.0f / (1.0f + Kokkos::exp(sink[h] - merged));
      team.team_barrier();  // all have read the states' lse, which may be the output
      Kokkos::single(Kokkos::PerTeam(team), [&] {
        if (lse != nullptr) lse[batch * lse_strides[0] + h * lse_strides[1] + row] = merged;
      });
      Kokkos::parallel_for(Kokkos::TeamThreadRange(team, value_dim), [&](const std::int32_t d) {
        float value = 0.0f;
        for (int s = 0; s < count; ++s)
          if (weights[s] != 0.0f)
            value += weights[s] / sum *
                     states[s].out[batch * states[s].out_strides[0] + row * states[s].out_strides[1] + h * states[s].out_strides[2] + d];
        static_cast<Element*>(out)[batch * out_strides[0] + row * out_strides[1] + h * out_strides[2] + d] =
            static_cast<Element>(value * kept);
      });
    }
  }
};

}  // namespace

template <class Exec>
void attention_merge(const Exec& exec, const AttentionMergeArguments& a, Level level) {
  check_attention_merge(a);
  if (choose_level("attention_merge", level, host_memory<Exec>) == Level::reference) {
    exec.fence("Tributary::attention_merge: reference level");
    return reference_attention_merge(a);
  }
  if (log_enabled()) log("attention_merge: portable level, " + std::to_string(a.states.size()) + " states");
  const std::int64_t rows = a.out.extents[0] * a.out.extents[1];
  if (rows == 0) return;
  visit_element_type(a.out_type, [&]<class Element>(std::type_identity<Element>) {
    AttentionMergeFunctor<Exec, Element> functor{.states      = {},
                                                 .count       = 0,
                                                 .sink        = a.has_sink ? a.sink.data : nullptr,
                                                 .out         = a.out.data,
                                                 .lse         = a.has_lse ? a.lse.data : nullptr,
                                                 .out_strides = {a.out.strides[0], a.out.strides[1], a.out.strides[2]},
                                                 .lse_strides = {a.lse.strides[0], a.lse.strides[1]},
                                                 .queries     = static_cast<std::int32_t>(a.out.extents[1]),
                                                 .heads       = static_cast<std::int32_t>(a.out.extents[2]),
                                                 .value_dim   = static_cast<std::int32_t>(a.out.extents[3])};
    for (const auto& state : a.states)
      functor.states[functor.count++] = {.out         = state.out.data,
                                         .lse         = state.lse.data,
                                         .out_strides = {state.out.strides[0], state.out.strides[1], state.out.strides[2]},
                                         .lse_strides = {state.lse.strides[0], state.lse.strides[1]}};
    Kokkos::parallel_for("Tributary::attention_merge::portable", RowPolicy<Exec>(exec, static_cast<int>(rows), row_team_size<Exec>),
                         functor);
  });
}

template void attention_merge(const TRIBUTARY_EXECUTION_SPACE&, const AttentionMergeArguments&, Level);

}  // namespace Tributary::Impl
