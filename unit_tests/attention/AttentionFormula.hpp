#pragma once
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "AttentionCase.hpp"

// The unfused formula and its gradients, whole matrices at a time: in double as what is right, and in float with every intermediate
// rounded to the input type as what is usual.  Nothing of the library's own attention is used.

namespace TributaryTest {

/// The differentiable inputs in a type of the formula's own.
template <class Real>
struct FormulaInputs {
  Array<Real, 4> query, key, value, additive_mask;
  Array<Real, 2> alibi_slopes, relative_bias;
  Array<Real, 1> sink;

  template <class Element>
  explicit FormulaInputs(const AttentionCase<Element>& in)
      : query(converted(in.query, in.query_scale)),
        key(converted(in.key, in.key_scale)),
        value(converted(in.value, in.value_scale)),
        additive_mask(converted(in.additive_mask.value_or(Array<float, 4>{}))),
        alibi_slopes(converted(in.alibi_slopes.value_or(Array<float, 2>{}))),
        relative_bias(converted(in.relative_bias.value_or(Array<float, 2>{}))),
        sink(converted(in.sink.value_or(Array<float, 1>{}))) {}

 private:
  template <class T, int Rank>
  static Array<Real, Rank> converted(const Array<T, Rank>& from) {
    Array<Real, Rank> to(from.extents);
    for (std::size_t n = 0; n < from.values.size(); ++n) to.values[n] = static_cast<Real>(static_cast<float>(from.values[n]));
    return to;
  }
  /// [batch, row, head, component] times [batch, head, row / 128], where there are scales.
  template <class T>
  static Array<Real, 4> converted(const Array<T, 4>& from, const std::optional<Array<float, 3>>& scale) {
    auto to                              = converted(from);
    const auto [batch, rows, heads, dim] = to.extents;
    for (std::int64_t b = 0; b < batch && scale; ++b)
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t h = 0; h < heads; ++h)
          for (std::int64_t d = 0; d < dim; ++d) to(b, r, h, d) *= static_cast<Real>((*scale)(b, h, r / 128));
    return to;
  }
};

template <class Real>
struct FormulaResult {
  Array<Real, 4> out;
  Array<Real, 3> lse;
};

template <class Real>
struct FormulaGradients {
  Array<Real, 4> query, key, value, additive_mask;
  Array<Real, 2> alibi_slopes, relative_bias;
  Array<Real, 1> sink;
};

/// Word `word` of Philox4x32-10, from the paper's round function.
inline std::uint32_t philox_word(std::uint64_t seed, std::array<std::uint32_t, 4> counter, std::size_t word) {
  std::array<std::uint32_t, 2> key = {static_cast<std::uint32_t>(seed & 0xffffffffu), static_cast<std::uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const auto high = [](std::uint64_t a, std::uint64_t b) { return static_cast<std::uint32_t>(a * b / 0x100000000u); };
    counter         = {high(0xCD9E8D57u, counter[2]) ^ counter[1] ^ key[0], 0xCD9E8D57u * counter[2],
                       high(0xD2511F53u, counter[0]) ^ counter[3] ^ key[1], 0xD2511F53u * counter[0]};
    key             = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
  }
  return counter[word];
}

/// T5's bucket of a relative position (key minus query).
inline std::int64_t t5_bucket(std::int64_t relative, std::int64_t buckets, std::int64_t max_distance, bool bidirectional) {
  std::int64_t bucket = 0;
  if (bidirectional) {
    buckets /= 2;
    bucket += relative > 0 ? buckets : 0;
    relative = std::abs(relative);
  } else {
    relative = -std::min<std::int64_t>(relative, 0);
  }
  const std::int64_t single = buckets / 2;
  if (relative < single || buckets == 1) return bucket + std::min(relative, single);
  const double share = std::log(static_cast<double>(relative) / static_cast<double>(single)) /
                       std::log(static_cast<double>(max_distance) / static_cast<double>(single)) * static_cast<double>(buckets - single);
  return bucket + std::min(single + static_cast<std::int64_t>(share + 1e-9), buckets - 1);
}

/// Real is the type of all sums, Element the one that rotated values are rounded to, Weight the one of the forward pass's weights, Stored
/// the one of every other intermediate; double: not rounded.
template <class Real, class Element, class Stored, class Weight = Stored>
class Formula {
 public:
  template <class InputElement>
  Formula(const AttentionCase<InputElement>& in, FormulaInputs<Real> inputs)
      : shape_(in.shape()), a_(arrays(in)), n_(std::move(inputs)), query_(n_.query), key_(n_.key) {
    rotate(query_, key_, false);
    for (auto* const rows : {&query_, &key_})
      for (Real& value : rows->values) value = rounded_to<Element>(value);
  }

  FormulaResult<Real> forward() const {
    FormulaResult<Real> result{Array<Real, 4>({shape_.batch, shape_.queries, shape_.heads, shape_.value_dim}),
                               Array<Real, 3>({shape_.batch, shape_.heads, shape_.queries}, -infinity)};
    for_each_head([&](const Sequence& s, std::int64_t h) {
      for (std::int64_t i = 0; i < s.queries; ++i) {
        std::vector<Real> x;
        for (std::int64_t j = 0; j < s.keys; ++j) x.push_back(score(s, h, i, j).x);
        const Real most = x.empty() ? -infinity : *std::max_element(x.begin(), x.end());
        if (most == -infinity) continue;
        Real sum = 0;
        for (const Real value : x) sum += std::exp(value - most);
        const Real lse                            = most + std::log(sum);
        result.lse(s.batch, h, s.first_query + i) = lse;
        for (std::int64_t j = 0; j < s.keys; ++j) {
          if (x[static_cast<std::size_t>(j)] == -infinity) continue;
          const Real p = weight(x[static_cast<std::size_t>(j)], most, with_sink(lse, h)) * kept(s, h, i, j);
          for (std::int64_t d = 0; d < shape_.value_dim; ++d)
            result.out(s.batch, s.first_query + i, h, d) += p * n_.value(s.batch, s.first_key + j, key_head(h), d);
        }
      }
    });
    for (Real& out : result.out.values) out = stored(out);
    return result;
  }

  template <class Out>
  FormulaGradients<Real> backward(const AttentionUpstream<Out>& up) const {
    FormulaGradients<Real> g{zeros(n_.query),        zeros(n_.key),           zeros(n_.value), zeros(n_.additive_mask),
                             zeros(n_.alibi_slopes), zeros(n_.relative_bias), zeros(n_.sink)};
    for_each_head([&](const Sequence& s, std::int64_t h) {
      for (std::int64_t i = 0; i < s.queries; ++i) add_gradients(up, s, h, i, g);
    });
    rotate(g.query, g.key, true);
    for (auto* const gradient : {&g.query, &g.key, &g.value})
      for (Real& value : gradient->values) value = stored(value);
    return g;
  }

 private:
  static constexpr Real infinity = std::numeric_limits<Real>::infinity();

  struct Sequence {
    std::int64_t batch, number, first_query, queries, first_key, keys;
    // In the whole sequence: what the first query's number and position are, and the first key's number.
    std::int64_t query_number = 0, query_position = keys - queries, key_number = 0;

    /// The query's position among the keys, and the key's: i' and j.
    std::int64_t place(std::int64_t i) const { return query_position + i; }
    std::int64_t key_place(std::int64_t j) const { return key_number + j; }
    std::int64_t relative(std::int64_t i, std::int64_t j) const { return key_place(j) - place(i); }
  };
  /// The case without its element type.
  using Arrays = AttentionCase<float>;

  AttentionShape      shape_;
  Arrays              a_;
  FormulaInputs<Real> n_;
  Array<Real, 4>      query_, key_;  // rotated

  template <class InputElement>
  static Arrays arrays(const AttentionCase<InputElement>& in) {
    Arrays a(AttentionShape{});
    a.options         = in.options;
    a.key_keep        = in.key_keep;
    a.keep            = in.keep;
    a.additive_mask   = in.additive_mask;
    a.alibi_slopes    = in.alibi_slopes;
    a.relative_bias   = in.relative_bias;
    a.cosine          = in.cosine;
    a.sine            = in.sine;
    a.sink            = in.sink;
    a.query_positions = in.query_positions;
    a.key_positions   = in.key_positions;
    a.cu_seqlens_q    = in.cu_seqlens_q;
    a.cu_seqlens_k    = in.cu_seqlens_k;
    return a;
  }

  template <int Rank>
  static Array<Real, Rank> zeros(const Array<Real, Rank>& like) {
    return Array<Real, Rank>(like.extents);
  }
  template <class To>
  static Real rounded_to(Real value) {
    if constexpr (std::is_same_v<To, double>)
      return value;
    else
      return static_cast<Real>(static_cast<float>(To(static_cast<float>(value))));
  }
  static Real stored(Real value) { return rounded_to<Stored>(value); }

  /// e^(x - lse); in e4m3, whose numbers end at 2^-9, before the division by the sum, the greatest one as 2^8.
  static Real weight(Real x, Real most, Real lse) {
    if constexpr (std::is_same_v<Weight, float8_e4m3_t>)
      return rounded_to<Weight>(256 * std::exp(x - most)) / 256 * std::exp(most - lse);
    else
      return rounded_to<Weight>(std::exp(x - lse));
  }

  std::int64_t key_head(std::int64_t h) const { return h / (shape_.heads / shape_.key_heads); }

  /// An element of an array whose extents of 1 stand for any index.
  template <class T>
  static auto& broadcast(T& array, std::int64_t b, std::int64_t h, std::int64_t row, std::int64_t j) {
    return array(std::min(b, array.extents[0] - 1), std::min(h, array.extents[1] - 1), std::min(row, array.extents[2] - 1), j);
  }

  std::vector<Sequence> sequences() const {
    std::vector<Sequence> all;
    if (a_.cu_seqlens_q.empty())
      for (std::int64_t b = 0; b < shape_.batch; ++b) all.push_back({b, b, 0, shape_.queries, 0, shape_.keys});
    for (std::size_t s = 0; s + 1 < a_.cu_seqlens_q.size(); ++s)
      all.push_back({0, static_cast<std::int64_t>(s), a_.cu_seqlens_q[s], a_.cu_seqlens_q[s + 1] - a_.cu_seqlens_q[s], a_.cu_seqlens_k[s],
                     a_.cu_seqlens_k[s + 1] - a_.cu_seqlens_k[s]});
    if (a_.options.query_offset)
      for (Sequence& s : all) {
        s.query_number = s.query_position = *a_.options.query_offset;
        s.key_number                      = a_.options.key_offset;
      }
    return all;
  }
  template <class Function>
  void for_each_head(const Function& function) const {
    for (const Sequence& s : sequences())
      for (std::int64_t h = 0; h < shape_.heads; ++h) function(s, h);
  }

  void rotate(Array<Real, 4>& query, Array<Real, 4>& key, bool back) const {
    for (const Sequence& s : sequences()) {
      for (std::int64_t i = 0; i < s.queries; ++i) {
        const std::int64_t row   = s.first_query + i;
        const auto&        given = a_.query_positions;
        for (std::int64_t h = 0; h < shape_.heads; ++h)
          rotate_row(&query(s.batch, row, h, 0), given ? (*given)(std::min(s.batch, given->extents[0] - 1), row) : s.place(i), back);
      }
      for (std::int64_t j = 0; j < s.keys; ++j) {
        const std::int64_t row   = s.first_key + j;
        const auto&        given = a_.key_positions;
        for (std::int64_t h = 0; h < shape_.key_heads; ++h)
          rotate_row(&key(s.batch, row, h, 0), given ? (*given)(std::min(s.batch, given->extents[0] - 1), row) : s.key_place(j), back);
      }
    }
  }
  void rotate_row(Real* row, std::int64_t position, bool back) const {
    const auto& rotary = a_.options.rotary;
    row += rotary.last ? shape_.head_dim - rotary.dims : 0;
    for (std::int64_t r = 0; r < rotary.dims / 2; ++r) {
      double angle = static_cast<double>(position) / std::pow(rotary.base, 2 * static_cast<double>(r) / rotary.dims);
      double c = std::cos(angle), s = std::sin(angle);
      if (a_.cosine) {
        const std::int64_t place = std::clamp<std::int64_t>(position, 0, a_.cosine->extents[0] - 1);
        c                        = static_cast<double>((*a_.cosine)(place, r));
        s                        = static_cast<double>((*a_.sine)(place, r));
      }
      if (back) s = -s;
      Real&      a      = rotary.style == RotaryStyle::interleaved ? row[2 * r] : row[r];
      Real&      b      = rotary.style == RotaryStyle::interleaved ? row[2 * r + 1] : row[r + rotary.dims / 2];
      const Real turned = static_cast<Real>(c) * a - static_cast<Real>(s) * b;
      b                 = static_cast<Real>(s) * a + static_cast<Real>(c) * b;
      a                 = turned;
    }
  }

  bool hidden(const Sequence& s, std::int64_t h, std::int64_t i, std::int64_t j) const {
    const auto&        o     = a_.options;
    const std::int64_t ahead = s.relative(i, j), row = s.first_query + i;
    return (o.causal && ahead > 0) || (o.window_left >= 0 && ahead < -o.window_left) || (o.window_right >= 0 && ahead > o.window_right) ||
           (a_.key_keep && (*a_.key_keep)(s.batch, s.first_key + j) == 0) ||
           (a_.keep && (j >= a_.keep->extents[3] || broadcast(*a_.keep, s.batch, h, row, j) == 0));
  }

  struct Score {
    Real x, slope;  // slope: derivative by q . k
  };
  Score score(const Sequence& s, std::int64_t h, std::int64_t i, std::int64_t j) const {
    if (hidden(s, h, i, j)) return {-infinity, 0};
    const Real* const q   = &query_(s.batch, s.first_query + i, h, 0);
    const Real* const k   = &key_(s.batch, s.first_key + j, key_head(h), 0);
    Real              dot = 0;
    for (std::int64_t d = 0; d < shape_.head_dim; ++d) dot += q[d] * k[d];
    const Real scale =
        static_cast<Real>(a_.options.scale.value_or(static_cast<float>(1 / std::sqrt(static_cast<double>(shape_.head_dim)))));
    Real x = stored(stored(dot) * scale), slope = scale;
    if (const Real cap = static_cast<Real>(a_.options.softcap); cap > 0) {
      const Real capped = std::tanh(x / cap);
      slope *= 1 - capped * capped;
      x = stored(cap * capped);
    }
    const std::int64_t distance = std::abs(s.relative(i, j));
    if (a_.alibi_slopes) x -= n_.alibi_slopes(std::min(s.number, n_.alibi_slopes.extents[0] - 1), h) * static_cast<Real>(distance);
    if (a_.relative_bias) x += n_.relative_bias(bucket(s, i, j), h);
    if (a_.additive_mask && j < n_.additive_mask.extents[3]) x += broadcast(n_.additive_mask, s.batch, h, s.first_query + i, j);
    return {stored(x), slope};
  }
  std::int64_t bucket(const Sequence& s, std::int64_t i, std::int64_t j) const {
    const auto& bias = a_.options.relative_bias;
    return t5_bucket(s.relative(i, j), n_.relative_bias.extents[0], bias.max_distance, bias.bidirectional);
  }
  Real with_sink(Real lse, std::int64_t h) const {
    if (!a_.sink) return lse;
    const Real most = std::max(lse, n_.sink(h));
    return most + std::log(std::exp(lse - most) + std::exp(n_.sink(h) - most));
  }
  Real kept(const Sequence& s, std::int64_t h, std::int64_t i, std::int64_t j) const {
    const auto& dropout = a_.options.dropout;
    const auto  key     = s.key_place(j);
    const auto  word    = philox_word(dropout.seed,
                                      {static_cast<std::uint32_t>(key / 4), static_cast<std::uint32_t>(s.query_number + i),
                                       static_cast<std::uint32_t>(s.number * shape_.heads + h), dropout.offset},
                                      static_cast<std::size_t>(key % 4));
    if (dropout.probability == 1 || word < dropout.probability * 0x1p32 - 1e-3) return 0;
    return static_cast<Real>(1 / (1 - dropout.probability));
  }

  template <class Out>
  void add_gradients(const AttentionUpstream<Out>& up, const Sequence& s, std::int64_t h, std::int64_t i, FormulaGradients<Real>& g) const {
    const std::int64_t row = s.first_query + i, kh = key_head(h);
    const Real         lse = static_cast<Real>(up.forward.lse(s.batch, h, row));
    if (lse == -infinity) return;
    const Real        full     = with_sink(lse, h);
    const Real        grad_lse = up.grad_lse ? static_cast<Real>((*up.grad_lse)(s.batch, h, row)) : Real(0);
    std::vector<Real> grad_out;
    Real              delta = 0;
    for (std::int64_t d = 0; d < shape_.value_dim; ++d) {
      grad_out.push_back(static_cast<Real>(static_cast<float>(up.grad_out(s.batch, row, h, d))));
      delta += grad_out.back() * static_cast<Real>(static_cast<float>(up.forward.out(s.batch, row, h, d)));
    }
    for (std::int64_t j = 0; j < s.keys; ++j) {
      const auto [x, slope] = score(s, h, i, j);
      if (x == -infinity) continue;
      const std::int64_t key = s.first_key + j;
      const Real         p = stored(std::exp(x - full)), keep = kept(s, h, i, j);
      Real               dp = 0;
      for (std::int64_t d = 0; d < shape_.value_dim; ++d) {
        dp += grad_out[static_cast<std::size_t>(d)] * n_.value(s.batch, key, kh, d);
        g.value(s.batch, key, kh, d) += p * keep * grad_out[static_cast<std::size_t>(d)];
      }
      const Real dx = stored(p * (stored(keep * dp) - delta) + stored(std::exp(x - lse)) * grad_lse), ds = stored(dx * slope);
      for (std::int64_t d = 0; d < shape_.head_dim; ++d) {
        g.query(s.batch, row, h, d) += ds * key_(s.batch, key, kh, d);
        g.key(s.batch, key, kh, d) += ds * query_(s.batch, row, h, d);
      }
      if (a_.additive_mask && j < g.additive_mask.extents[3]) broadcast(g.additive_mask, s.batch, h, row, j) += dx;
      if (a_.alibi_slopes)
        g.alibi_slopes(std::min(s.number, g.alibi_slopes.extents[0] - 1), h) -= dx * static_cast<Real>(std::abs(s.relative(i, j)));
      if (a_.relative_bias) g.relative_bias(bucket(s, i, j), h) += dx;
    }
    if (a_.sink) g.sink(h) -= std::exp(n_.sink(h) - full) * delta;
  }
};

/// What is right for these inputs.
template <class Element>
Formula<double, Element, double> exact_formula(const AttentionCase<Element>& in) {
  return {in, FormulaInputs<double>(in)};
}
/// The usual way to get there: sums in float, every intermediate in the input type.
template <class Element>
Formula<float, Element, Element> naive_formula(const AttentionCase<Element>& in) {
  return {in, FormulaInputs<float>(in)};
}

/// Puts a part into an array, from these places on.
template <class T>
void embed(Array<T, 4>& whole, const Array<T, 4>& part, const std::array<std::int64_t, 4>& at) {
  for (std::int64_t b = 0; b < part.extents[0]; ++b)
    for (std::int64_t r = 0; r < part.extents[1]; ++r)
      for (std::int64_t h = 0; h < part.extents[2]; ++h)
        for (std::int64_t d = 0; d < part.extents[3]; ++d) whole(b + at[0], r + at[1], h + at[2], d + at[3]) = part(b, r, h, d);
}

/// max |a - b|; equal infinities do not differ, a NaN differs infinitely.
template <class A, class B, int Rank>
double largest_difference(const Array<A, Rank>& a, const Array<B, Rank>& b) {
  if (a.extents != b.extents) return HUGE_VAL;
  double most = 0;
  for (std::size_t n = 0; n < a.values.size(); ++n) {
    const double x = static_cast<double>(a.values[n]), y = static_cast<double>(b.values[n]);
    if (x != y) most = std::isnan(x - y) ? HUGE_VAL : std::max(most, std::abs(x - y));
  }
  return most;
}

template <int Rank>
double largest(const Array<double, Rank>& a) {
  double most = 0;
  for (const double x : a.values)
    if (std::isfinite(x)) most = std::max(most, std::abs(x));
  return most;
}

/// The bound of every test of inexact results: max |given - exact| <= 2 max |naive - exact| + relative * max(1, max |exact|).
template <class T, int Rank>
void expect_close(const char* name, const Array<T, Rank>& given, const Array<double, Rank>& exact, const Array<float, Rank>& naive,
                  double relative) {
  const double bound = 2 * largest_difference(naive, exact) + relative * std::max(1.0, largest(exact));
  EXPECT_TRUE(std::isfinite(bound)) << "(" << name << ")";
  EXPECT_LE(largest_difference(given, exact), bound) << "(" << name << ")";
}

template <class Out>
void expect_close(const AttentionResult<Out>& given, const FormulaResult<double>& exact, const FormulaResult<float>& naive) {
  expect_close("out", given.out, exact.out, naive.out, 1e-6);
  expect_close("lse", given.lse, exact.lse, naive.lse, 1e-6);
}
template <class Element>
void expect_close(const AttentionGradientArrays<Element>& given, const FormulaGradients<double>& exact,
                  const FormulaGradients<float>& naive) {
  // What is summed over rows, and over distances, also sums what float leaves of dP - delta where that should be zero.
  const double summed = 2e-5, distances = summed * static_cast<double>(std::max(given.query.extents[1], given.key.extents[1]));
  expect_close("gradient of query", given.query, exact.query, naive.query, 4e-6);
  expect_close("gradient of key", given.key, exact.key, naive.key, 4e-6);
  expect_close("gradient of value", given.value, exact.value, naive.value, 4e-6);
  expect_close("gradient of additive_mask", given.additive_mask, exact.additive_mask, naive.additive_mask, summed);
  expect_close("gradient of alibi_slopes", given.alibi_slopes, exact.alibi_slopes, naive.alibi_slopes, distances);
  expect_close("gradient of relative_bias", given.relative_bias, exact.relative_bias, naive.relative_bias, summed);
  expect_close("gradient of sink", given.sink, exact.sink, naive.sink, summed);
}

/// Forward and backward of one case against the formula.  Backward starts from the given results, so that each is tested alone.
template <class Out, class Element>
void expect_formula(Level level, const AttentionCase<Element>& in, Random& random) {
  SCOPED_TRACE(text(in.shape()));
  const AttentionCall<Element, Out> call(level, in);
  const auto                        exact = exact_formula(in);
  const auto                        naive = naive_formula(in);
  const auto                        given = call.forward();
  expect_close(given, exact.forward(), naive.forward());
  const auto upstream = random_upstream(random, given, random.coin());
  expect_close(call.backward(upstream), exact.backward(upstream), naive.backward(upstream));
}

}  // namespace TributaryTest
