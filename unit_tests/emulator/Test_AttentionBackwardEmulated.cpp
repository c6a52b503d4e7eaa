#include <cstring>

#include "EmulatedAttention.hpp"
#include "sm90/attention/attention.hpp"

// attention_backward's Hopper kernels under the emulator, from the statistics of the rows on; of biases up to the sums that the caller adds
// up.

namespace TributaryTest::Emulator {
namespace {

namespace SM90 = Tributary::Impl::SM90;

/// A gradient in double: sums, and what bounds the error of theirs.
struct Expected {
  std::vector<double> sum, squares, error;

  explicit Expected(std::int64_t size) : sum(static_cast<std::size_t>(size)), squares(sum), error(sum) {}

  /// Adds factor * numbers; the factor is rounded to the element type, and off by at most `off` before.
  void add(std::int64_t at, double factor, double off, const std::vector<double>& numbers) {
    auto to = static_cast<std::size_t>(at);
    for (const double number : numbers) {
      sum[to] += factor * number;
      squares[to] += factor * number * factor * number;
      error[to++] += off * std::fabs(number);
    }
  }
};

/// One of the gradients that the kernel writes.
struct Gradient {
  int                         rows, heads, columns;
  Strides                     strides;
  GuardedArray<std::uint16_t> bits;
  Expected                    expected;

  Gradient(const EmulatedOptions& o, int of_rows, int of_heads, int of_columns)
      : rows(of_rows),
        heads(of_heads),
        columns(of_columns),
        strides(o.layout, o.batch, rows, heads, columns),
        bits(strides.size * (o.float_output ? 2 : 1)),
        expected(std::int64_t{o.batch} * rows * heads * columns) {}

  std::int64_t place(int b, int row, int h) const { return ((std::int64_t{b} * rows + row) * heads + h) * columns; }
};

/// A gradient of what was added to scores, or sums that it is made of: floats.
struct BiasGradient {
  std::vector<double> sum, error;
  std::vector<float>  given;

  explicit BiasGradient(std::int64_t size = 0) : sum(static_cast<std::size_t>(size)), error(sum), given(sum.size()) {}

  /// \param off  bounds the term's error
  void add(std::int64_t at, double term, double off) {
    sum[static_cast<std::size_t>(at)] += term;
    error[static_cast<std::size_t>(at)] += off + 4e-6 * std::fabs(term);
  }
  void take(const float* from) { std::copy_n(from, given.size(), given.begin()); }
  void check(const char* name) const {
    for (std::size_t n = 0; n < sum.size(); ++n) ASSERT_NEAR(given[n], sum[n], error[n] + 1e-30) << name << " " << n;
  }
};

class BackwardRun {
 public:
  BackwardRun(const EmulatedOptions& options, std::uint64_t stream)
      : random_(stream),
        in_(options, random_),
        o_(in_.o),
        up_strides_(o_.layout == Layout::heads_outside ? Layout::dense : o_.layout, o_.batch, o_.queries, o_.heads, o_.value_dim),
        grad_out_(false, up_strides_.size),
        lse_(std::int64_t{o_.batch} * o_.heads * o_.queries),
        shift_(std::int64_t{o_.batch} * o_.heads * o_.queries),
        share_(std::int64_t{o_.batch} * o_.heads * o_.queries),
        query_(o_, o_.queries, o_.heads, o_.head_dim),
        key_(o_, o_.keys, o_.key_heads, o_.head_dim),
        value_(o_, o_.keys, o_.key_heads, o_.value_dim),
        mask_(o_.bias_gradients && o_.additive_mask ? in_.additive_mask.end() - in_.additive_mask.begin() : 0),
        slopes_(o_.bias_gradients && o_.alibi ? std::int64_t{o_.batch} * o_.heads * o_.keys : 0),
        table_(o_.bias_gradients && o_.relative_bias ? std::int64_t{o_.heads} * o_.buckets : 0),
        grad_mask_(o_.mask_of_queries ? in_.mask_extent(0) * in_.mask_extent(1) * in_.mask_extent(2) * mask_pitch() : 0) {
    in_.fill(grad_out_, up_strides_, o_.queries, o_.heads, o_.value_dim, 1, 0, random_);
    for (int i = 0; i < o_.queries && o_.sequences > 0; ++i)
      for (int h = 0; h < o_.heads && in_.sequence_of(i).queries == 0; ++h)
        in_.spoil(grad_out_, up_strides_.at(0, i, h), o_.value_dim, random_);
    for (int b = 0; b < o_.batch; ++b)
      for (int i = 0; i < o_.queries; ++i)
        for (int h = 0; h < o_.heads; ++h) expect_row(b, i, h);
  }

  void run(const Settings& settings) { run_without_failure(*this, settings); }

  /// Throws where the kernels do what they must not.
  void launch(Settings settings) {
    settings.races = settings.loads_need_fences = true;
    if (const int dim = std::max(o_.head_dim, o_.value_dim); dim > 128)  // room for a crew or for two
      settings.processors += (dim > 256 ? 10 : 5) * (1 + settings.processors % 2) - 1;
    set(settings);
    for (const Gradient* const gradient : {&query_, &key_, &value_}) std::fill(gradient->bits.begin(), gradient->bits.end(), untouched);
    Tributary::AttentionGradients               wanted{};
    Tributary::Impl::AttentionBackwardArguments arguments{};
    arguments.gradients = &wanted;
    arguments.out_type  = o_.type;
    describe(arguments.grad_out, grad_out_.data(), up_strides_, o_.queries, o_.heads, o_.value_dim);
    describe(arguments.grad_key, key_.bits.data(), key_.strides, o_.keys, o_.key_heads, o_.head_dim);
    describe(arguments.grad_value, value_.bits.data(), value_.strides, o_.keys, o_.key_heads, o_.value_dim);
    const Kokkos::Cuda exec;
    ASSERT_EQ(SM90::no_attention_backward(exec, in_.problem, {}, arguments), "");
    Tributary::Impl::WorkspaceLayout counted;
    const SM90::WantedBiasGradients  biases = wanted_biases();
    SM90::plan_attention_backward(exec, in_.problem, counted);
    SM90::plan_bias_gradients(exec, in_.problem, biases, counted);
    const GuardedArray<std::byte> workspace(static_cast<std::int64_t>(Tributary::Impl::WorkspaceLayout::round_up(counted.size())));
    std::fill(workspace.begin(), workspace.end(), std::byte{0xff});
    Tributary::Impl::WorkspaceLayout layout(
        Tributary::Impl::workspace_base("backward", {workspace.data(), counted.size()}, counted.size()));
    auto plan = SM90::plan_attention_backward(exec, in_.problem, layout);
    if (o_.section > 0) plan.section = o_.section;
    const auto                           of_biases = SM90::plan_bias_gradients(exec, in_.problem, biases, layout);
    const Tributary::Impl::RowStatistics statistics{lse_.data(), shift_.data(), o_.sink ? share_.data() : nullptr, nullptr};
    SM90::attention_backward(exec, in_.problem, {in_.bucket.data()}, statistics, grad_out_.data(), up_strides_.of, plan, output(query_),
                             output(key_), output(value_));
    if (!biases.any()) return;
    settings.watched = {{grad_mask_.data(), (grad_mask_.end() - grad_mask_.begin()) * 4l}};
    set(settings);
    SM90::bias_gradients(exec, in_.problem, {in_.bucket.data()}, statistics, grad_out_.data(), up_strides_.of, plan, biases, of_biases);
    take(biases, of_biases);
  }

  void check() const {
    check("query", query_, in_.problem.scale);
    check("key", key_, in_.problem.scale);
    check("value", value_, 1);
    mask_.check("gradient of the additive mask");
    slopes_.check("keys' shares of the gradients of slopes");
    table_.check("gradient of the table");
  }

  std::vector<std::uint16_t> bits() const {
    std::vector<std::uint16_t> all;
    for (const Gradient* const gradient : {&query_, &key_, &value_}) all.insert(all.end(), gradient->bits.begin(), gradient->bits.end());
    for (const BiasGradient* const gradient : {&mask_, &slopes_, &table_})
      for (const float number : gradient->given) {
        all.push_back(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(number)));
        all.push_back(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(number) >> 16));
      }
    return all;
  }

 private:
  static constexpr std::uint16_t untouched = 0x7fff;

  template <class Tensor>
  static void describe(Tensor& tensor, void* data, const Strides& strides, int rows, int heads, int columns) {
    tensor.data = data;
    std::copy_n(std::initializer_list<std::int64_t>{1, rows, heads, columns}.begin(), 4, &tensor.extents[0]);
    std::copy_n(strides.of, 3, &tensor.strides[0]);
    tensor.strides[3] = 1;
  }
  Tributary::Impl::GradientOutput output(const Gradient& gradient) const {
    const auto& strides = gradient.strides.of;
    return {gradient.bits.data(), o_.float_output, {strides[0], strides[1], strides[2]}};
  }

  std::int64_t mask_pitch() const { return in_.mask_columns() + 3; }

  SM90::WantedBiasGradients wanted_biases() const {
    SM90::WantedBiasGradients wanted{
        o_.bias_gradients && o_.additive_mask, o_.bias_gradients && o_.alibi, o_.bias_gradients && o_.relative_bias, {}};
    wanted.mask.data = grad_mask_.data();
    for (int d = 4; d-- > 0;) {
      wanted.mask.extents[d] = in_.mask_extent(d);
      wanted.mask.strides[d] = d == 3 ? 1 : d == 2 ? mask_pitch() : wanted.mask.extents[d + 1] * wanted.mask.strides[d + 1];
    }
    std::fill(grad_mask_.begin(), grad_mask_.end(), 7.0f);
    return wanted;
  }

  /// What the kernel left; sums over queries are joined as the caller would.
  void take(const SM90::WantedBiasGradients& wanted, const SM90::BiasGradientPlan& plan) {
    const std::int64_t rows = in_.mask_extent(0) * in_.mask_extent(1) * in_.mask_extent(2);
    if (wanted.mask_of_all_queries()) {
      std::vector<double> sums(mask_.given.size());
      for (int b = 0; b < o_.batch; ++b)
        for (int h = 0; h < o_.heads; ++h)
          for (int row = 0; row < o_.keys; ++row) {
            const auto   s    = in_.sequence_of(row, true);
            const int    j    = row - s.first_key;
            const double term = plan.mask_keys[(std::int64_t{b} * o_.heads + h) * o_.keys + row];
            if (s.queries > 0 && j < in_.mask_columns())
              sums[static_cast<std::size_t>(in_.mask_row(b, 0, h) * in_.mask_columns() + j)] += term;
            else
              ASSERT_TRUE(term == 0 || s.queries > 0) << "key row " << row;
          }
      std::copy(sums.begin(), sums.end(), mask_.given.begin());
    } else if (wanted.additive_mask) {
      for (std::int64_t row = 0; row < rows; ++row)
        for (std::int64_t j = 0; j < mask_pitch(); ++j) {
          const float given = grad_mask_[row * mask_pitch() + j];
          if (j < in_.mask_columns())
            mask_.given[static_cast<std::size_t>(row * in_.mask_columns() + j)] = given;
          else
            ASSERT_EQ(given, 7.0f) << "beyond the mask's row " << row;
        }
    }
    if (wanted.alibi_slopes) slopes_.take(plan.alibi_keys);
    if (!wanted.relative_bias) return;
    std::vector<double> sums(table_.given.size());
    for (std::int64_t block = 0; block < o_.batch * plan.blocks; ++block)
      for (std::size_t n = 0; n < sums.size(); ++n)
        sums[n] += plan.bucket_sums[block * static_cast<std::int64_t>(sums.size()) + static_cast<std::int64_t>(n)];
    std::copy(sums.begin(), sums.end(), table_.given.begin());
  }

  /// The row's statistics, as the kernel gets them, and its part of the gradients.
  void expect_row(int b, int i, int h) {
    const auto         row = in_.row_of(b, i, h);
    const std::int64_t at  = in_.statistic(b, i, h);
    const int          kh  = in_.key_head(h);
    lse_[at]               = row.some() ? static_cast<float>(row.log_sum_exp) : std::numeric_limits<float>::infinity();
    share_[at]             = !row.some() ? 0 : o_.sink ? static_cast<float>(1 / (1 + std::exp(in_.sink[h] - double{lse_[at]}))) : 1;
    shift_[at]             = 0;
    if (!row.some()) return;
    const auto          upstream = in_.row(grad_out_, up_strides_.at(b, i, h), o_.value_dim, 1);
    const auto          query    = in_.query_row(b, i, h);
    const double        share    = share_[at];
    std::vector<double> weight, product, absolute;  // product = gradient of the output . value
    double              delta = 0;
    for (std::size_t j = 0; j < row.score.size(); ++j) {
      weight.push_back(std::exp(row.score[j] - lse_[at]));
      product.push_back(0);
      absolute.push_back(0);
      if (weight[j] == 0) continue;
      const auto value = in_.value_row(b, row.sequence.first_key + static_cast<int>(j), kh);
      for (std::size_t d = 0; d < value.size(); ++d) {
        product[j] += upstream[d] * value[d];
        absolute[j] += std::fabs(upstream[d] * value[d]);
      }
      delta += weight[j] * share * row.factor[j] * product[j];
    }
    shift_[at]         = static_cast<float>(share * delta - random_.normal());  // the last one: gradient of lse
    const double shift = shift_[at];
    for (std::size_t j = 0; j < row.score.size(); ++j) {
      if (std::isinf(row.score[j])) continue;
      const int    key_row = row.sequence.first_key + static_cast<int>(j);
      const double kept = share * row.factor[j], inner = kept * product[j] - shift;
      const double of_score = weight[j] * inner * row.slope[j];
      const double exponent = 3e-5 + 2e-7 * std::fabs(row.score[j]);  // error of the score
      const double off      = weight[j] * (kept * absolute[j] + std::fabs(shift)) * 6e-6 + std::fabs(of_score) * exponent +
                         (o_.softcap > 0 ? weight[j] * std::fabs(inner) * 3e-6 : 0) + in_.tiny() +
                         (std::max(o_.head_dim, o_.value_dim) > 128 ? in_.unit() * std::fabs(of_score) + in_.tiny() * std::fabs(inner)
                                                                    : 0);  // from weights of the element type
      expect_biases(b, i, h, static_cast<int>(j), row.sequence, weight[j] * inner,
                    weight[j] * ((kept * absolute[j] + std::fabs(shift)) * 6e-6 + std::fabs(inner) * exponent) + 1e-30);
      const double of_weight = weight[j] * kept;
      query_.expected.add(query_.place(b, i, h), of_score, off, in_.key_row(b, key_row, kh));
      key_.expected.add(key_.place(b, key_row, kh), of_score, off, query);
      value_.expected.add(value_.place(b, key_row, kh), of_weight, of_weight * exponent + in_.tiny() * row.factor[j], upstream);
    }
  }

  /// A pair's part of the gradients of biases.
  void expect_biases(int b, int i, int h, int j, const AttentionData::Sequence& s, double gradient, double off) {
    const auto   relative = in_.relative(s, i, j);
    const double distance = std::fabs(static_cast<double>(relative));
    if (!mask_.sum.empty() && j < in_.mask_columns()) mask_.add(in_.mask_row(b, i, h) * in_.mask_columns() + j, gradient, off);
    if (!slopes_.sum.empty())
      slopes_.add((std::int64_t{b} * o_.heads + h) * o_.keys + s.first_key + j, -gradient * distance, off * distance);
    if (!table_.sum.empty()) table_.add(std::int64_t{h} * o_.buckets + in_.bucket_of(relative), gradient, off);
  }

  void check(const char* name, const Gradient& gradient, double factor) const {
    const double    largest  = o_.type == ElementType::bfloat16 ? 3e38 : 65504;
    const Expected& expected = gradient.expected;
    for (int b = 0; b < o_.batch; ++b)
      for (int row = 0; row < gradient.rows; ++row)
        for (int h = 0; h < gradient.heads; ++h)
          for (int d = 0; d < gradient.columns; ++d) {
            const auto   n    = static_cast<std::size_t>(gradient.place(b, row, h) + d);
            const double want = expected.sum[n] * factor;
            if (!o_.float_output && std::fabs(want) > largest) continue;
            // Factors are rounded to the element type, independently of each other.
            const double tolerance = std::fabs(factor) * (4 * in_.unit() * std::sqrt(expected.squares[n]) + expected.error[n]) +
                                     (o_.float_output ? 0 : in_.unit() * std::fabs(want) + in_.tiny()) + 1e-30;
            ASSERT_NEAR(
                in_.stored(gradient.bits.data(), o_.float_output ? ElementType::float32 : o_.type, gradient.strides.at(b, row, h, d)), want,
                tolerance)
                << "gradient of " << name << ", batch " << b << " row " << row << " head " << h << " column " << d;
          }
  }

  Random                 random_;
  AttentionData          in_;
  const EmulatedOptions& o_;
  Strides                up_strides_;
  ElementArray           grad_out_;
  GuardedArray<float>    lse_, shift_, share_;
  Gradient               query_, key_, value_;
  BiasGradient           mask_, slopes_, table_;  // of slopes: [B, Hq, Sk], before the sum over keys
  GuardedArray<float>    grad_mask_;              // with some floats behind every row
};

void run_and_check(const EmulatedOptions& options, std::uint64_t stream) {
  SCOPED_TRACE("TRIBUTARY_TEST_SEED=" + std::to_string(test_seed()) + " case " + std::to_string(stream) + ": " +
               testing::PrintToString(options));
  BackwardRun run(options, stream);
  run.run(Settings::of(stream, options.processors));
  if (!testing::Test::HasFailure()) run.check();
}

TEST(AttentionBackwardEmulated, EveryTile) {
  std::uint64_t stream = 0;
  for (const auto& [head_dim, value_dim] : {std::pair{64, 64}, {128, 128}, {64, 128}, {256, 256}, {192, 128}, {512, 512}, {264, 64}})
    for (const ElementType type : {ElementType::float16, ElementType::bfloat16})
      for (const int kind : {0, 1, 2}) {  // plain, causal, biased
        EmulatedOptions options{.type = type, .queries = 130, .keys = 200, .heads = 2, .head_dim = head_dim, .value_dim = value_dim};
        options.right        = kind == 1 ? 0 : -1;
        options.alibi        = kind == 2;
        options.float_output = true;
        options.processors   = 1 + static_cast<int>(stream % 4);
        run_and_check(options, ++stream);
        if (HasFailure()) return;
      }
}

TEST(AttentionBackwardEmulated, RandomOptions) {
  const std::vector<std::pair<int, int>> dims    = {{64, 64},   {128, 128}, {40, 40},   {96, 40},   {8, 120},  {64, 7},
                                                    {5, 3},     {127, 127}, {256, 256}, {192, 192}, {40, 200}, {136, 64},
                                                    {255, 129}, {512, 512}, {320, 512}, {40, 257}};
  const std::vector<int>                 lengths = {1, 2, 15, 63, 64, 65, 100, 127, 128, 129, 191, 193, 256, 257};
  for (std::uint64_t stream = 1000; stream < 1000 + 120; ++stream) {
    Random          random(stream);
    EmulatedOptions options = EmulatedOptions::any(random, dims, lengths);
    options.deterministic   = !random.one_in(5);
    run_and_check(options, stream);
    if (HasFailure()) return;
  }
}

TEST(AttentionBackwardEmulated, PackedSequencesAndHiddenKeysWithoutNumbers) {
  for (std::uint64_t stream = 2000; stream < 2000 + 12; ++stream) {
    EmulatedOptions options{.queries = 150, .keys = 260, .heads = 4, .key_heads = 2};
    options.sequences = stream % 2 == 0 ? 5 : 0;
    options.key_keep  = stream % 3 != 0;
    options.right     = stream % 5 == 0 ? 0 : -1;
    options.head_dim = options.value_dim = stream % 4 == 0 ? 128 : stream % 4 == 1 ? 256 : stream % 4 == 2 ? 512 : 64;
    options.processors                   = 3;
    run_and_check(options, stream);
    if (HasFailure()) return;
  }
}

TEST(AttentionBackwardEmulated, CausalBlocksInBothOrders) {
  // Pairs of all sections but the last one go upwards from the diagonal.
  for (std::uint64_t stream = 2500; stream < 2500 + 12; ++stream) {
    EmulatedOptions options{.queries = 320, .keys = 260, .heads = 6, .key_heads = stream % 2 == 0 ? 6 : 3};
    options.right    = stream % 3 == 0 ? 70 : 0;
    options.section  = 1 + static_cast<int>(stream % 2);
    options.head_dim = options.value_dim = stream % 4 == 0 ? 64 : stream % 4 == 1 ? 128 : stream % 4 == 2 ? 256 : 512;
    options.sequences                    = stream % 5 == 0 ? 3 : 0;
    options.processors                   = 1 + static_cast<int>(stream % 4);
    run_and_check(options, stream);
    if (HasFailure()) return;
  }
}

TEST(AttentionBackwardEmulated, BiasesOfRandomOptions) {
  const std::vector<std::pair<int, int>> dims    = {{64, 64},   {128, 128}, {40, 40},   {8, 120},   {5, 3},
                                                    {127, 127}, {256, 256}, {192, 128}, {512, 512}, {64, 300}};
  const std::vector<int>                 lengths = {1, 2, 15, 63, 64, 65, 100, 127, 128, 129, 191, 193, 257};
  for (std::uint64_t stream = 4000; stream < 4000 + 50; ++stream) {
    Random          random(stream);
    EmulatedOptions options = EmulatedOptions::any(random, dims, lengths);
    const int       wanted  = 1 + random.below(7);
    options.bias_gradients  = true;
    options.additive_mask   = (wanted & 1) != 0;
    options.alibi           = (wanted & 2) != 0;
    options.relative_bias   = (wanted & 4) != 0;
    options.mask_of_batch   = random.one_in(2);
    options.mask_of_heads   = random.one_in(2);
    options.mask_of_queries = !random.one_in(3);
    if (options.sequences > 0 && random.one_in(2)) options.mask_columns = random.below(options.keys + 10);
    options.buckets = random.any_of<int>({2, 16, 33, 64, 70, 150});
    run_and_check(options, stream);
    if (HasFailure()) return;
  }
}

TEST(AttentionBackwardEmulated, BiasesOfMasksBroadcastAlongAnything) {
  std::uint64_t stream = 5000;
  for (const bool of_batch : {false, true})
    for (const bool of_heads : {false, true})
      for (const bool of_queries : {false, true}) {
        EmulatedOptions options{.batch = 2, .queries = 70, .keys = 150, .heads = 4, .key_heads = 2, .additive_mask = true};
        options.bias_gradients  = true;
        options.mask_of_batch   = of_batch;
        options.mask_of_heads   = of_heads;
        options.mask_of_queries = of_queries;
        options.right           = stream % 3 == 0 ? 0 : -1;
        options.processors      = 1 + static_cast<int>(stream % 3);
        run_and_check(options, ++stream);
        if (HasFailure()) return;
      }
}

TEST(AttentionBackwardEmulated, SameBitsOfBiasesOnEverySchedule) {
  for (const bool of_queries : {false, true})
    for (const int dim : {64, 256, 512}) {
      EmulatedOptions options{.queries = 200, .keys = 300, .heads = 2, .sequences = 3, .additive_mask = true, .float_output = true};
      options.head_dim = options.value_dim = dim;
      options.alibi = options.relative_bias = options.bias_gradients = true;
      options.mask_of_heads                                          = false;
      options.mask_of_queries                                        = of_queries;
      options.buckets                                                = 70;
      BackwardRun run(options, 6000);
      run.run(Settings::of(0, 3));
      ASSERT_FALSE(HasFailure());
      run.check();
      const auto first = run.bits();
      for (std::uint64_t seed = 1; seed < 36; seed += 7) {
        run.run(Settings::of(seed, 3));
        ASSERT_FALSE(HasFailure());
        ASSERT_TRUE(run.bits() == first) << "TRIBUTARY_TEST_SEED=" << test_seed() << ", dim " << dim << ", schedule of seed " << seed;
      }
    }
}

/// On one of 40 schedules.
bool is_noticed(BackwardRun& run, const std::vector<std::uint16_t>& right, int barriers, int barrier) {
  for (std::uint64_t seed = 0; seed < 40; ++seed)
    if (notices(run, right, {Omission::Of::mbarrier_wait, barrier, barriers}, seed)) return true;
  return false;
}

/// Beyond 256 components: of the mbarriers of the makers, and of those that the teams that gather use.  Other waits imply those that are
/// not here: whoever has clean rows has clean keys, and an adder gives all places of sums back at the same time.
TEST(AttentionBackwardEmulated, LongCatchesTheOmissionOfEveryWait) {
  EmulatedOptions options{.queries = 150, .keys = 200, .heads = 2, .head_dim = 512, .value_dim = 512, .sequences = 3, .float_output = true};
  BackwardRun     run(options, 7000);
  run.run(Settings::of(0, 1));
  ASSERT_FALSE(HasFailure());
  const auto right = run.bits();
  for (int barrier = 0; barrier < 25; ++barrier) {
    if (barrier == 23) continue;
    EXPECT_TRUE(is_noticed(run, right, 25, barrier)) << "mbarrier " << barrier << " of a maker, counted from the last one";
  }
  for (const int barrier : {0, 1, 2, 3, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 20, 21, 24, 25, 28, 29, 38, 39, 40})
    EXPECT_TRUE(is_noticed(run, right, 41, barrier)) << "mbarrier " << barrier << " of a team that gathers, counted from the last one";
}

TEST(AttentionBackwardEmulated, TakesDevicesWithRoomForACrew) {
  for (const auto& [dim, teams] : {std::pair{256, 5}, {512, 10}}) {
    Random                                      random(7100);
    const EmulatedOptions                       options{.queries = 3, .keys = 3, .head_dim = dim, .value_dim = dim};
    const AttentionData                         in(options, random);
    Tributary::AttentionGradients               wanted{};
    Tributary::Impl::AttentionBackwardArguments arguments{};
    arguments.gradients = &wanted;
    arguments.out_type  = options.type;
    for (const int processors : {teams - 1, teams}) {
      set(Settings::of(0, processors));
      const std::string reason = SM90::no_attention_backward(Kokkos::Cuda(), in.problem, {}, arguments);
      EXPECT_EQ(reason.find(std::to_string(teams) + " multiprocessors") != std::string::npos, processors < teams) << reason;
    }
  }
}

TEST(AttentionBackwardEmulated, SameBitsOnEverySchedule) {
  for (const int dim : {64, 128, 256, 512}) {
    EmulatedOptions options{.queries = 150, .keys = 400, .heads = 2, .sequences = 3, .float_output = true};
    options.head_dim = options.value_dim = dim;
    if (dim == 128) options.right = 0, options.section = 1;
    BackwardRun run(options, 3000);
    run.run(Settings::of(0, 1));
    ASSERT_FALSE(HasFailure());
    const auto first = run.bits();
    for (std::uint64_t seed = 1; seed < 90; seed += 7) {
      run.run(Settings::of(seed, 1 + static_cast<int>(seed % 6)));
      ASSERT_FALSE(HasFailure());
      ASSERT_TRUE(run.bits() == first) << "TRIBUTARY_TEST_SEED=" << test_seed() << ", dim " << dim << ", schedule of seed " << seed;
    }
  }
}

}  // namespace
}  // namespace TributaryTest::Emulator
