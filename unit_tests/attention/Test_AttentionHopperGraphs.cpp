#include "CapturedGraph.hpp"
#include "KokkosEvents.hpp"
#include "attention/AttentionHopper.hpp"

// The Hopper level on the caller's instance alone, with the caller's workspace, and captured in CUDA graphs.

namespace TributaryTest {
namespace {

#if defined(TRIBUTARY_ENABLE_SM90)

/// Views of a forward call and its workspace.
template <class Element>
struct ForwardViews {
  AttentionCall<Element> call;
  View<Element, 4>       out;
  View<float, 3>         lse;
  View<std::byte, 1>     workspace;

  ForwardViews(const Space& exec, const AttentionCase<Element>& in)
      : call(AttentionHopper::level, in),
        out(in_space(call.empty_result().out)),
        lse(in_space(call.empty_result().lse)),
        workspace("workspace",
                  Tributary::attention_forward_workspace_size(exec, call.query, call.key, call.value, out, lse, call.options)) {}

  void run(const Space& exec) const {
    Tributary::attention_forward(exec, call.query, call.key, call.value, out, lse, call.options, workspace);
  }
  void change_inputs(const AttentionCase<Element>& in) const {
    Kokkos::deep_copy(call.query, in_space(in.query));
    Kokkos::deep_copy(call.key, in_space(in.key));
    Kokkos::deep_copy(call.value, in_space(in.value));
  }
  AttentionResult<Element> result() const { return {from_space<4>(out), from_space<3>(lse)}; }
};

/// The same with a backward call and every gradient there is.
template <class Element>
struct BackwardViews : ForwardViews<Element> {
  using Base = ForwardViews<Element>;
  View<Element, 4>   grad_out, grad_query, grad_key, grad_value;
  View<float, 3>     grad_lse;
  View<float, 4>     additive_mask;
  View<float, 2>     alibi_slopes, relative_bias;
  View<float, 1>     sink;
  AttentionGradients gradients;
  View<std::byte, 1> backward_workspace;

  BackwardViews(const Space& exec, const AttentionCase<Element>& in)
      : Base(exec, in),
        grad_out(in_space(this->call.empty_result().out)),
        grad_query(in_space(in.query)),
        grad_key(in_space(in.key)),
        grad_value(in_space(in.value)),
        grad_lse(in_space(this->call.empty_result().lse)),
        additive_mask(in_space(in.additive_mask.value_or(Array<float, 4>{}))),
        alibi_slopes(in_space(in.alibi_slopes.value_or(Array<float, 2>{}))),
        relative_bias(in_space(in.relative_bias.value_or(Array<float, 2>{}))),
        sink(in_space(in.sink.value_or(Array<float, 1>{}))) {
    gradients.lse = grad_lse;
    if (in.additive_mask) gradients.additive_mask = additive_mask;
    if (in.alibi_slopes) gradients.alibi_slopes = alibi_slopes;
    if (in.relative_bias) gradients.relative_bias = relative_bias;
    if (in.sink) gradients.sink = sink;
    const auto& c      = this->call;
    backward_workspace = View<std::byte, 1>(
        "workspace", Tributary::attention_backward_workspace_size(exec, c.query, c.key, c.value, this->out, this->lse, grad_out, grad_query,
                                                                  grad_key, grad_value, c.options, gradients));
  }

  void run_backward(const Space& exec) const {
    const auto& c = this->call;
    Tributary::attention_backward(exec, c.query, c.key, c.value, this->out, this->lse, grad_out, grad_query, grad_key, grad_value,
                                  c.options, gradients, backward_workspace);
  }
  void change_upstream(const AttentionUpstream<Element>& upstream) const {
    Kokkos::deep_copy(this->out, in_space(upstream.forward.out));
    Kokkos::deep_copy(this->lse, in_space(upstream.forward.lse));
    Kokkos::deep_copy(grad_out, in_space(upstream.grad_out));
    Kokkos::deep_copy(grad_lse, in_space(*upstream.grad_lse));
  }
  AttentionGradientArrays<Element> gradient_arrays() const {
    return {from_space<4>(grad_query),   from_space<4>(grad_key),      from_space<4>(grad_value), from_space<4>(additive_mask),
            from_space<2>(alibi_slopes), from_space<2>(relative_bias), from_space<1>(sink)};
  }
};

/// What is added to scores, each with a gradient, or that queries and keys are turned, or neither.
enum class With { nothing, biases, rotary };

AttentionCase<bfloat16_t> graph_case(Random& random, const AttentionShape& shape, With with) {
  AttentionCase<bfloat16_t> in(shape, random);
  if (with == With::rotary) in.options.rotary = {.dims = 32};
  if (with != With::biases) return in;
  in.additive_mask = Array<float, 4>({1, shape.heads, shape.queries, shape.keys}, 0.5f);
  in.alibi_slopes  = Array<float, 2>({1, shape.heads}, 0.02f);
  in.relative_bias = Array<float, 2>({32, shape.heads}, 0.5f);
  in.sink          = Array<float, 1>({shape.heads}, 0.5f);
  return in;
}

std::string name_of(const AttentionShape& shape, With with) {
  return text(shape) + (with == With::biases ? ", biases" : (with == With::rotary ? ", rotary" : ""));
}

TEST_F(AttentionHopper, ACapturedCallReadsTheInputsOfItsReplay) {
  Random      random(107);
  const Space exec = another_instance();
  for (const std::int64_t dim : {64, 128, 256, 512})
    for (const With with : {With::nothing, With::biases, With::rotary}) {
      const AttentionShape shape{1, 140, 130, 2, 1, dim, dim};
      SCOPED_TRACE(name_of(shape, with));
      auto                           in = graph_case(random, shape, with);
      const ForwardViews<bfloat16_t> views(exec, in);
      const CapturedGraph            graph(exec, [&] { views.run(exec); });
      for (int i = 0; i < (with == With::nothing ? 2 : 1); ++i) {
        for (auto* const rows : {&in.query, &in.key, &in.value}) random.fill_with_normals(*rows);
        views.change_inputs(in);
        graph.launch();
        expect_close(views.result(), exact_formula(in).forward(), naive_formula(in).forward());
      }
    }
}

TEST_F(AttentionHopper, ACapturedBackwardCallReadsTheInputsOfItsReplay) {
  Random      random(320);
  const Space exec = another_instance();
  for (const std::int64_t dim : {64, 128, 256, 512})
    for (const With with : {With::nothing, With::biases, With::rotary}) {
      const AttentionShape shape{1, 140, 130, 2, 1, dim, dim};
      SCOPED_TRACE(name_of(shape, with));
      auto                            in = graph_case(random, shape, with);
      const BackwardViews<bfloat16_t> views(exec, in);
      const CapturedGraph             graph(exec, [&] { views.run_backward(exec); });
      for (int i = 0; i < (with == With::nothing ? 2 : 1); ++i) {
        for (auto* const rows : {&in.query, &in.key, &in.value}) random.fill_with_normals(*rows);
        const auto upstream = random_upstream(random, AttentionCall<bfloat16_t>(Level::portable, in).forward(), true);
        views.change_inputs(in);
        views.change_upstream(upstream);
        graph.launch();
        const auto given = views.gradient_arrays();
        expect_close(given, exact_formula(in).backward(upstream), naive_formula(in).backward(upstream));
        EXPECT_TRUE(AttentionHopper::same_gradients(given, AttentionHopper::backward(in, upstream)));
      }
    }
}

TEST_F(AttentionHopper, StaysOnItsInstance) {
  Random      random(108);
  const Space exec = another_instance();
  for (const std::int64_t dim : {128, 256, 512})
    for (const With with : {With::nothing, With::biases, With::rotary}) {
      const AttentionShape shape{1, 140, 130, 2, 1, dim, dim};
      SCOPED_TRACE(name_of(shape, with));
      const auto                      in = graph_case(random, shape, with);
      const BackwardViews<bfloat16_t> views(exec, in);
      expect_stays_on_instance(exec, [&] { views.run(exec); });
      expect_stays_on_instance(exec, [&] { views.run_backward(exec); });
    }
}

#endif

}  // namespace
}  // namespace TributaryTest
