#include <cstring>

#include "EmulatedAttention.hpp"
#include "sm90/attention/attention.hpp"

// attention_forward's Hopper kernel under the emulator.

namespace TributaryTest::Emulator {
namespace {

namespace SM90 = Tributary::Impl::SM90;

class ForwardRun {
 public:
  ForwardRun(const EmulatedOptions& options, std::uint64_t stream)
      : random_(stream),
        in_(options, random_),
        o_(in_.o),
        strides_(o_.layout == Layout::heads_outside ? Layout::dense : o_.layout, o_.batch, o_.queries, o_.heads, o_.value_dim),
        out_(strides_.size * (o_.float_output ? 2 : 1)),
        lse_(o_.batch * o_.heads * o_.queries),
        previous_out_(o_.previous ? strides_.size : 0),
        previous_lse_(o_.previous ? o_.batch * o_.heads * o_.queries : 0) {
    for (float& number : previous_out_) number = random_.normal();
    for (float& number : previous_lse_) number = random_.one_in(4) ? -std::numeric_limits<float>::infinity() : 3 + 4 * random_.normal();
  }

  void run(const Settings& settings) { run_without_failure(*this, settings); }

  /// Throws what the emulator refuses.
  void launch(Settings settings) {
    settings.races = true;
    set(settings);
    std::fill(out_.begin(), out_.end(), untouched);
    std::fill(lse_.begin(), lse_.end(), std::numeric_limits<float>::quiet_NaN());
    Tributary::Impl::AttentionForwardArguments arguments{};
    arguments.out_type   = o_.out_type();
    arguments.out.data   = out_.data();
    const int extents[4] = {o_.batch, o_.queries, o_.heads, o_.value_dim};
    for (std::size_t d = 0; d < 4; ++d) {
      arguments.out.extents[d] = extents[d];
      arguments.out.strides[d] = d < 3 ? strides_.of[d] : 1;
    }
    const Kokkos::Cuda exec;
    ASSERT_EQ(SM90::no_attention_forward(exec, in_.problem, {}, arguments), "");
    Tributary::Impl::AttentionForwardOutput to{};
    to.out            = out_.data();
    to.lse            = lse_.data();
    to.out_type       = o_.out_type();
    to.lse_strides[0] = std::int64_t{o_.heads} * o_.queries;
    to.lse_strides[1] = o_.queries;
    std::copy_n(strides_.of, 3, to.out_strides);
    if (o_.previous) {
      to.previous_out = previous_out_.data();
      to.previous_lse = previous_lse_.data();
      std::copy_n(strides_.of, 3, to.previous_out_strides);
      std::copy_n(to.lse_strides, 2, to.previous_lse_strides);
    }
    Tributary::Impl::WorkspaceLayout counted;
    SM90::plan_attention_forward(exec, in_.problem, counted);
    const GuardedArray<std::byte> workspace(static_cast<std::int64_t>(Tributary::Impl::WorkspaceLayout::round_up(counted.size())));
    std::fill(workspace.begin(), workspace.end(), std::byte{0xff});
    Tributary::Impl::WorkspaceLayout layout(Tributary::Impl::workspace_base("forward", {workspace.data(), counted.size()}, counted.size()));
    auto                             plan = SM90::plan_attention_forward(exec, in_.problem, layout);
    if (o_.section > 0) plan.section = o_.section;
    SM90::attention_forward(exec, in_.problem, {in_.bucket.data()}, plan, to);
  }

  void check() const {
    for (int b = 0; b < o_.batch; ++b)
      for (int i = 0; i < o_.queries; ++i)
        for (int h = 0; h < o_.heads; ++h) {
          check_row(b, i, h);
          if (testing::Test::HasFailure()) return;
        }
    check_padding();
  }

  std::vector<std::uint16_t> bits() const {
    std::vector<std::uint16_t> all(out_.begin(), out_.end());
    for (const float number : lse_)
      all.insert(all.end(), reinterpret_cast<const std::uint16_t*>(&number), reinterpret_cast<const std::uint16_t*>(&number + 1));
    return all;
  }

 private:
  static constexpr std::uint16_t untouched = 0x7fff;

  void check_row(int b, int i, int h) const {
    const auto row = in_.row_of(b, i, h);
    // Weights of this call's values and of the state that it goes on from.
    double lse = row.log_sum_exp, here = row.some() ? 1 : 0, before = 0;
    if (o_.previous && previous_lse_[in_.statistic(b, i, h)] != -std::numeric_limits<float>::infinity()) {
      const double previous = previous_lse_[in_.statistic(b, i, h)], most = std::max(previous, lse);
      const double both = most + std::log(std::exp(previous - most) + std::exp(lse - most));
      here              = row.some() ? std::exp(lse - both) : 0;
      before            = std::exp(previous - both);
      lse               = both;
    }
    const double got_lse = lse_[in_.statistic(b, i, h)];
    if (std::isinf(lse))
      ASSERT_EQ(got_lse, lse) << "batch " << b << " query " << i << " head " << h;
    else
      ASSERT_NEAR(got_lse, lse, 3e-5 * (1 + std::fabs(lse))) << "batch " << b << " query " << i << " head " << h;
    if (o_.sink && !std::isinf(lse)) {
      const double kept = 1 / (1 + std::exp(in_.sink[h] - lse));
      here *= kept;
      before *= kept;
    }
    std::vector<double> sum(static_cast<std::size_t>(o_.value_dim)), squares(sum), absolute(sum);
    for (std::size_t j = 0; j < row.score.size(); ++j) {
      const double weight = std::isinf(row.score[j]) ? 0 : std::exp(row.score[j] - row.log_sum_exp) * row.factor[j];
      if (weight == 0) continue;
      const auto values = in_.value_row(b, row.sequence.first_key + static_cast<int>(j), in_.key_head(h));
      for (std::size_t d = 0; d < sum.size(); ++d) {
        const double term = weight * values[d];
        sum[d] += term;
        squares[d] += term * term;
        absolute[d] += std::fabs(term);
      }
    }
    for (int d = 0; d < o_.value_dim; ++d) {
      const auto         column = static_cast<std::size_t>(d);
      const std::int64_t at     = strides_.at(b, i, h, d);
      const double       old = before == 0 ? 0 : before * previous_out_[at], want = sum[column] * here + old;
      // Weights are rounded to the element type, independently of each other; below its normal numbers by steps.
      const double steps = in_.tiny() * 20 * std::max(1.0f, in_.problem.dropout_scale) * std::sqrt(static_cast<double>(row.score.size()));
      const double tolerance = 5 * in_.unit() * std::sqrt(squares[column]) * here +
                               (o_.float_output ? 0 : in_.unit_of(o_.out_type()) * std::fabs(want)) +
                               3e-5 * (absolute[column] * here + std::fabs(old)) + 1e-6 + steps * here;
      ASSERT_NEAR(in_.stored(out_.data(), o_.out_type(), at), want, tolerance)
          << "batch " << b << " query " << i << " head " << h << " column " << d;
    }
  }

  void check_padding() const {
    if (o_.layout != Layout::padded) return;
    const std::int64_t pitch = strides_.of[2];
    for (std::int64_t at = 0; at < strides_.size; ++at) {
      if (at % pitch < o_.value_dim) continue;
      const bool kept = o_.float_output ? out_[2 * at] == untouched && out_[2 * at + 1] == untouched : out_[at] == untouched;
      ASSERT_TRUE(kept) << "padding was written";
    }
  }

  Random                      random_;
  AttentionData               in_;
  const EmulatedOptions&      o_;
  Strides                     strides_;
  GuardedArray<std::uint16_t> out_;
  GuardedArray<float>         lse_, previous_out_, previous_lse_;
};

void run_and_check(const EmulatedOptions& options, std::uint64_t stream) {
  SCOPED_TRACE("TRIBUTARY_TEST_SEED=" + std::to_string(test_seed()) + " case " + std::to_string(stream) + ": " +
               testing::PrintToString(options));
  ForwardRun run(options, stream);
  run.run(Settings::of(stream, options.processors));
  if (!testing::Test::HasFailure()) run.check();
}

/// Right, and the same on schedules of seeds below `end`.
void expect_same_bits(const EmulatedOptions& options, std::uint64_t stream, std::uint64_t end = 90) {
  ForwardRun run(options, stream);
  run.run(Settings::of(0, 1));
  ASSERT_FALSE(testing::Test::HasFailure());
  run.check();
  const auto first = run.bits();
  for (std::uint64_t seed = 1; seed < end; seed += 7) {
    run.run(Settings::of(seed, 1 + static_cast<int>(seed % 4)));
    ASSERT_FALSE(testing::Test::HasFailure());
    ASSERT_TRUE(run.bits() == first) << "TRIBUTARY_TEST_SEED=" << test_seed() << ", schedule of seed " << seed;
  }
}

TEST(AttentionForwardEmulated, EveryTile) {
  std::uint64_t stream = 0;
  for (const auto& [head_dim, value_dim] : {std::pair{64, 64}, {128, 128}, {192, 192}, {192, 128}, {256, 256}})
    for (const ElementType type : {ElementType::float16, ElementType::bfloat16})
      for (const int kind : {0, 1, 2}) {  // plain, causal, biased
        EmulatedOptions options{.type = type, .queries = 130, .keys = 200, .heads = 2, .head_dim = head_dim, .value_dim = value_dim};
        options.right      = kind == 1 ? 0 : -1;
        options.alibi      = kind == 2;
        options.processors = 1 + static_cast<int>(stream % 3);
        run_and_check(options, ++stream);
        if (HasFailure()) return;
      }
}

TEST(AttentionForwardEmulated, RandomOptions) {
  const std::vector<std::pair<int, int>> dims    = {{64, 64},   {128, 128}, {40, 40}, {96, 40}, {136, 72},
                                                    {192, 128}, {64, 7},    {5, 3},   {256, 64}};
  const std::vector<int>                 lengths = {1, 2, 17, 63, 64, 65, 80, 111, 113, 127, 128, 129, 177, 193, 256, 300};
  for (std::uint64_t stream = 1000; stream < 1000 + 160; ++stream) {
    Random random(stream);
    run_and_check(EmulatedOptions::any(random, dims, lengths), stream);
    if (HasFailure()) return;
  }
}

/// e4m3: rows of whole 16 bytes.
EmulatedOptions e4m3(EmulatedOptions options, Random& random) {
  options.type         = ElementType::float8_e4m3;
  options.short_output = random.one_in(2) ? ElementType::bfloat16 : ElementType::float16;
  if (options.head_dim % 16 != 0 || options.value_dim % 16 != 0) options.layout = Layout::padded;
  return options;
}

TEST(AttentionForwardEmulated, RandomOptionsOfE4m3) {
  const std::vector<std::pair<int, int>> dims    = {{128, 128}, {128, 128}, {64, 64}, {40, 40}, {96, 80}, {128, 7}, {5, 3}, {16, 128}};
  const std::vector<int>                 lengths = {1, 2, 17, 63, 64, 65, 111, 127, 128, 129, 193, 255, 256, 257, 300, 600};
  for (std::uint64_t stream = 4000; stream < 4000 + 160; ++stream) {
    Random random(stream);
    run_and_check(e4m3(EmulatedOptions::any(random, dims, lengths), random), stream);
    if (HasFailure()) return;
  }
}

// With equal weights, which e4m3 holds exactly, outputs are means of whole numbers: no key's value may come from another place or block.
TEST(AttentionForwardEmulated, MeansOfE4m3AreExact) {
  for (std::uint64_t stream = 5000; stream < 5000 + 40; ++stream) {
    Random          random(stream);
    EmulatedOptions options{
        .queries = 1 + random.below(200), .keys = 1 + random.below(500), .heads = 4, .key_heads = 2, .head_dim = 128, .value_dim = 128};
    options.batch      = 1 + random.below(2);
    options.value_dim  = random.any_of<int>({128, 128, 48, 100});
    options.right      = random.one_in(3) ? -1 : random.below(100);
    options.left       = random.one_in(3) ? -1 : random.below(100);
    options.key_keep   = random.one_in(3);
    options.keep       = random.one_in(3);
    options.processors = 1 + random.below(3);
    options.sequences  = random.one_in(3) ? 1 + random.below(6) : 0;
    if (options.sequences > 0) options.batch = 1;
    options.float_output = options.exact = true;
    options.sharpness                    = 0;
    run_and_check(e4m3(options, random), stream);
    if (HasFailure()) return;
  }
}

// Hardly more than one key has weight: it must be the right one, with its own scale.
TEST(AttentionForwardEmulated, SharpWeightsOfE4m3) {
  for (std::uint64_t stream = 5500; stream < 5500 + 20; ++stream) {
    Random          random(stream);
    EmulatedOptions options{.queries = 140, .keys = 400, .heads = 2, .head_dim = 128, .value_dim = 128, .sharpness = 40};
    options.right = random.one_in(2) ? 0 : -1;
    run_and_check(e4m3(options, random), stream);
    if (HasFailure()) return;
  }
}

TEST(AttentionForwardEmulated, E4m3HasTheSameBitsOnEverySchedule) {
  Random          random(6000);
  EmulatedOptions options{.queries = 300, .keys = 700, .heads = 3, .head_dim = 128, .value_dim = 128, .right = 0};
  expect_same_bits(e4m3(options, random), 6000, 60);
  options.sequences = 4;
  options.queries   = 200;
  expect_same_bits(e4m3(options, random), 6001, 30);
}

TEST(AttentionForwardEmulated, PackedSequencesAndHiddenKeysWithoutNumbers) {
  for (std::uint64_t stream = 2000; stream < 2000 + 20; ++stream) {
    EmulatedOptions options{.queries = 150, .keys = 260, .heads = 4, .key_heads = 2};
    options.sequences = stream % 2 == 0 ? 5 : 0;
    options.key_keep  = stream % 3 != 0;
    options.right     = stream % 5 == 0 ? 0 : -1;
    options.head_dim = options.value_dim = stream % 4 == 0 ? 128 : 64;
    run_and_check(options, stream);
    if (HasFailure()) return;
  }
}

// Head dimensions beyond 256, whose kernel packs the heads of a group.
EmulatedOptions wide_options(std::uint64_t stream) {
  Random                                 random(stream);
  const std::vector<std::pair<int, int>> dims    = {{512, 512}, {512, 512}, {320, 320}, {264, 512},
                                                    {512, 40},  {64, 300},  {500, 260}, {257, 263}};
  const std::vector<int>                 lengths = {1, 2, 3, 5, 17, 40, 63, 64, 65, 127, 129, 150, 200, 260};
  EmulatedOptions                        options = EmulatedOptions::any(random, dims, lengths);
  options.heads                                  = options.key_heads * random.any_of<int>({1, 2, 3, 5, 8, 24, 33, 64, 65, 70, 96, 128});
  options.queries                                = std::min(options.queries, std::max(1 + random.below(4), 300 / options.heads));
  options.shared_values                          = random.one_in(2) && options.value_dim <= options.head_dim;
  return options;
}
TEST(AttentionForwardEmulated, WideRandomOptions) {
  for (std::uint64_t stream = 4000; stream < 4000 + 120; ++stream) {
    run_and_check(wide_options(stream), stream);
    if (HasFailure()) return;
  }
}

TEST(AttentionForwardEmulated, WideHeadsOfOneKeyHeadInASlidingWindow) {
  for (std::uint64_t stream = 5000; stream < 5000 + 12; ++stream) {
    EmulatedOptions options{.queries = 9, .keys = 300, .heads = 64, .head_dim = 512, .value_dim = 512, .left = 127, .right = 0};
    options.type          = stream % 2 == 0 ? ElementType::bfloat16 : ElementType::float16;
    options.heads         = stream % 3 == 0 ? 128 : 64;
    options.keys          = stream % 4 == 0 ? 20 : 300;
    options.sink          = stream % 5 == 0;
    options.shared_values = stream % 3 != 1;
    run_and_check(options, stream);
    if (HasFailure()) return;
  }
}

TEST(AttentionForwardEmulated, WidePackedSequencesAndHiddenKeysWithoutNumbers) {
  for (std::uint64_t stream = 6000; stream < 6000 + 24; ++stream) {
    EmulatedOptions options{.queries = 60, .keys = 260, .heads = 10, .key_heads = 2, .head_dim = 512, .value_dim = 384};
    options.sequences     = stream % 2 == 0 ? 5 : 0;
    options.key_keep      = stream % 3 != 0;
    options.right         = stream % 5 == 0 ? 0 : -1;
    options.left          = stream % 7 == 0 ? 100 : -1;
    options.shared_values = stream % 4 < 2;
    run_and_check(options, stream);
    if (HasFailure()) return;
  }
}

TEST(AttentionForwardEmulated, WideBitsAreTheSameOnEverySchedule) {
  for (const bool shared_values : {false, true}) {
    EmulatedOptions options{.queries = 40, .keys = 200, .heads = 20, .key_heads = 2, .head_dim = 512, .value_dim = 512, .sequences = 3};
    options.key_keep      = true;
    options.shared_values = shared_values;
    expect_same_bits(options, 7000);
    if (HasFailure()) return;
  }
}

/// Of all 24 mbarriers of the kernel: queries; both stages' halves, as they come, without what is no value, used; handovers; pieces.
TEST(AttentionForwardEmulated, WideCatchesTheOmissionOfEveryWait) {
  EmulatedOptions options{.batch = 2, .queries = 12, .keys = 200, .heads = 33, .head_dim = 512, .value_dim = 512, .right = 0};
  options.key_keep = options.shared_values = true;
  EmulatedOptions short_pieces             = options;  // whose loads say little of how far the pieces before are
  short_pieces.left                        = 40;
  ForwardRun run_of_many(options, 8000), run_of_one(short_pieces, 8000);
  for (int barrier = 0; barrier < 24; ++barrier) {
    ForwardRun& run = barrier < 6 ? run_of_one : run_of_many;
    run.run(Settings::of(0, 1));
    ASSERT_FALSE(HasFailure());
    const auto right  = run.bits();
    bool       caught = false;
    for (std::uint64_t seed = 0; seed < 40 && !caught; ++seed) caught = notices(run, right, {Omission::Of::mbarrier_wait, barrier}, seed);
    EXPECT_TRUE(caught) << "mbarrier " << barrier << ", counted from the last one";
  }
}

TEST(AttentionForwardEmulated, SameBitsOnEverySchedule) {
  EmulatedOptions options{.queries = 200, .keys = 300, .heads = 2, .sequences = 3, .key_keep = true};
  expect_same_bits(options, 3000);
}

}  // namespace
}  // namespace TributaryTest::Emulator
