#pragma once
#include <optional>

#include "ExpectedTopk.hpp"

// Calls of indexer_score and indexer_topk on host arrays, and a brute force over the formula and the definition of legal keys.

namespace TributaryTest {

using Tributary::IndexerOptions;

struct IndexerShape {
  std::int64_t batch, queries, keys, heads, head_dim;
};

inline std::string text(const IndexerShape& shape) {
  return "B " + std::to_string(shape.batch) + ", S " + std::to_string(shape.queries) + ", T " + std::to_string(shape.keys) + ", H " +
         std::to_string(shape.heads) + ", D " + std::to_string(shape.head_dim);
}

template <class Element>
struct IndexerInputs {
  Array<Element, 4> query;
  Array<Element, 3> key;
  Array<float, 3>   weights;
  // float8_e4m3_t only
  Array<float, 3> query_scale;
  Array<float, 2> key_scale;

  static constexpr bool scaled = std::is_same_v<Element, float8_e4m3_t>;

  explicit IndexerInputs(const IndexerShape& shape)
      : query({shape.batch, shape.queries, shape.heads, shape.head_dim}),
        key({shape.batch, shape.keys, shape.head_dim}),
        weights({shape.batch, shape.queries, shape.heads}) {
    if (scaled) {
      query_scale = Array<float, 3>({shape.batch, shape.queries, shape.heads}, 1.0f);
      key_scale   = Array<float, 2>({shape.batch, shape.keys}, 1.0f);
    }
  }
  IndexerShape shape() const { return {query.extents[0], query.extents[1], key.extents[1], query.extents[2], query.extents[3]}; }
};

/// Small integers, scales powers of two: every order of summation is exact (at D = 128, H = 64 scores stay below 2^18 in units of
/// 2^-2, far from float's 2^24).
template <class Element>
IndexerInputs<Element> integer_inputs(Random& random, const IndexerShape& shape) {
  IndexerInputs<Element> inputs(shape);
  random.fill_with_integers(inputs.query, -2, 2);
  random.fill_with_integers(inputs.key, -2, 2);
  random.fill_with_integers(inputs.weights, -2, 2);
  for (auto* const scales : {&inputs.query_scale.values, &inputs.key_scale.values})
    for (float& scale : *scales) scale = random.any_of(std::vector<float>{0.5f, 1.0f, 2.0f});
  return inputs;
}

template <class Element>
IndexerInputs<Element> normal_inputs(Random& random, const IndexerShape& shape) {
  IndexerInputs<Element> inputs(shape);
  random.fill_with_normals(inputs.query);
  random.fill_with_normals(inputs.key);
  random.fill_with_normals(inputs.weights);
  for (auto* const scales : {&inputs.query_scale.values, &inputs.key_scale.values})
    for (float& scale : *scales) scale = 0.25f + std::abs(random.normal());
  return inputs;
}

/// Which keys are legal, with the arrays on the host.
struct Mask {
  std::int32_t                          ratio = 0, query_offset = 0;  // ratio 0: full, or the range's
  std::vector<std::int32_t>             query_offsets = {};
  std::optional<Array<std::int32_t, 3>> range         = {};
  std::vector<std::int32_t>             cu_seqlens_q = {}, cu_seqlens_k = {};

  bool packed() const { return !cu_seqlens_q.empty(); }
};

/// Bounds of every kind: whole, inner, clipped, empty, reversed.
inline Array<std::int32_t, 3> random_range(Random& random, const IndexerShape& shape) {
  Array<std::int32_t, 3> range({shape.batch, shape.queries, 2});
  const auto             keys = static_cast<std::int32_t>(shape.keys);
  for (std::int64_t b = 0; b < shape.batch; ++b)
    for (std::int64_t t = 0; t < shape.queries; ++t) {
      auto &begin = range(b, t, 0), &end = range(b, t, 1);
      switch (random.integer(0, 6)) {
        case 0: begin = 0, end = keys; break;
        case 1: begin = -2147483647, end = random.integer<std::int32_t>(-2, keys); break;
        case 2: begin = random.integer<std::int32_t>(0, keys + 2), end = 2147483647; break;
        case 3: begin = end = random.integer<std::int32_t>(0, keys); break;
        case 4: begin = keys, end = 0; break;
        default: begin = random.integer<std::int32_t>(0, keys), end = begin + random.integer<std::int32_t>(1, 40);
      }
    }
  return range;
}

/// The keys of row t's sequence that are legal for it: rows first_key + [begin, end) of the key array.
struct LegalInterval {
  std::int64_t first_key, begin, end;
  bool         has(std::int64_t s) const { return begin <= s && s < end; }
};

inline LegalInterval legal_interval(const Mask& mask, std::int64_t batch, std::int64_t row, std::int64_t all_keys) {
  std::int64_t first_key = 0, keys = all_keys, position = row, sequence = batch;
  if (mask.packed()) {
    keys = 0;
    for (std::size_t b = 0; b + 1 < mask.cu_seqlens_q.size(); ++b)
      if (mask.cu_seqlens_q[b] <= row && row < mask.cu_seqlens_q[b + 1]) {
        first_key = mask.cu_seqlens_k[b];
        keys      = mask.cu_seqlens_k[b + 1] - first_key;
        position  = row - mask.cu_seqlens_q[b];
        sequence  = static_cast<std::int64_t>(b);
      }
  }
  std::int64_t begin = 0, end = keys;
  if (mask.range) {
    begin = std::max<std::int64_t>(0, (*mask.range)(batch, row, 0));
    end   = std::min<std::int64_t>(keys, (*mask.range)(batch, row, 1));
  } else if (mask.ratio > 0) {
    const std::int64_t offset = mask.query_offsets.empty() ? mask.query_offset : mask.query_offsets[static_cast<std::size_t>(sequence)];
    end                       = std::min<std::int64_t>(keys, (offset + position + 1) / mask.ratio);
  }
  return {first_key, begin, std::max(begin, end)};
}

/// I(t,s) of rows t and s, with double accumulators; relu(NaN) = NaN.  The numbers of query and key are given, as this type or converted.
template <class Element, class Number>
double indexer_formula(const IndexerInputs<Element>& in, const std::vector<Number>& query_numbers, const std::vector<Number>& key_numbers,
                       std::int64_t b, std::int64_t t, std::int64_t s) {
  const auto [batch, queries, keys, heads, head_dim] = in.shape();
  double sum                                         = 0;
  for (std::int64_t h = 0; h < heads; ++h) {
    const Number* const query = &query_numbers[static_cast<std::size_t>(((b * queries + t) * heads + h) * head_dim)];
    const Number* const key   = &key_numbers[static_cast<std::size_t>((b * keys + s) * head_dim)];
    double              dot   = 0;
    for (std::int64_t d = 0; d < head_dim; ++d)
      dot += static_cast<double>(static_cast<float>(query[d])) * static_cast<double>(static_cast<float>(key[d]));
    if (in.scaled) dot *= static_cast<double>(in.query_scale(b, t, h)) * static_cast<double>(in.key_scale(b, s));
    sum += static_cast<double>(in.weights(b, t, h)) * (dot < 0 ? 0.0 : dot);
  }
  return sum;
}
template <class Element>
double indexer_formula(const IndexerInputs<Element>& in, std::int64_t b, std::int64_t t, std::int64_t s) {
  return indexer_formula(in, in.query.values, in.key.values, b, t, s);
}

/// Scores of every legal key, [B, S, columns]; -infinity elsewhere.
template <class Element>
Array<float, 3> expected_scores(const IndexerInputs<Element>& in, const Mask& mask, std::int64_t columns) {
  const auto      shape     = in.shape();
  const auto      as_floats = [](const auto& values) { return std::vector<float>(values.begin(), values.end()); };
  const auto      query = as_floats(in.query.values), key = as_floats(in.key.values);
  Array<float, 3> scores({shape.batch, shape.queries, columns}, -infinity);
  for (std::int64_t b = 0; b < shape.batch; ++b)
    for (std::int64_t t = 0; t < shape.queries; ++t) {
      const auto legal = legal_interval(mask, b, t, shape.keys);
      for (std::int64_t s = legal.begin; s < std::min(legal.end, columns); ++s)
        scores(b, t, s) = static_cast<float>(indexer_formula(in, query, key, b, t, legal.first_key + s));
    }
  return scores;
}

/// The top k of given scores under a mask.
inline Rows expected_indexer_topk(const Array<float, 3>& scores, const Mask& mask, std::int64_t all_keys, std::int64_t top_k,
                                  TopkOrder order = TopkOrder::by_score) {
  Rows rows(scores.extents[0], scores.extents[1], top_k);
  for (std::int64_t b = 0; b < scores.extents[0]; ++b)
    for (std::int64_t t = 0; t < scores.extents[1]; ++t) {
      std::vector<ScoredIndex> entries;
      const auto               legal = legal_interval(mask, b, t, all_keys);
      for (std::int64_t s = legal.begin; s < legal.end; ++s) entries.push_back({scores(b, t, s), static_cast<std::int32_t>(s)});
      expect_row(rows, b, t, entries, order);
    }
  return rows;
}

/// The inputs and options in the tested space, alive as long as the call needs them.
template <class Element>
struct IndexerCall {
  View<Element, 4> query;
  View<Element, 3> key;
  View<float, 3>   weights, query_scale;
  View<float, 2>   key_scale;
  // of the options
  std::vector<View<std::int32_t, 1>> numbers;
  std::vector<View<std::int32_t, 3>> ranges;
  IndexerOptions                     options;

  IndexerCall(Level level, const IndexerInputs<Element>& in, const Mask& mask = {}, IndexerOptions wanted = {})
      : query(in_space(in.query)),
        key(in_space(in.key)),
        weights(in_space(in.weights)),
        query_scale(in_space(in.query_scale)),
        key_scale(in_space(in.key_scale)),
        options(std::move(wanted)) {
    options.level     = level;
    const auto number = [&](const std::vector<std::int32_t>& values) { return numbers.emplace_back(in_space(row(values))); };
    if (in.scaled) {
      options.query_scale = query_scale;
      options.key_scale   = key_scale;
    }
    if (mask.packed()) options.sequences = {.cu_seqlens_q = number(mask.cu_seqlens_q), .cu_seqlens_k = number(mask.cu_seqlens_k)};
    if (mask.range) {
      options.legal_keys = Tributary::KeyRange{ranges.emplace_back(in_space(*mask.range))};
    } else if (mask.ratio > 0) {
      Tributary::RatioCausal causal{.ratio = mask.ratio, .query_offset = mask.query_offset};
      if (!mask.query_offsets.empty()) causal.query_offsets = number(mask.query_offsets);
      options.legal_keys = causal;
    }
  }

  Array<float, 3> score(std::int64_t columns) const {
    const auto scores =
        in_space(Array<float, 3>({static_cast<std::int64_t>(query.extent(0)), static_cast<std::int64_t>(query.extent(1)), columns}, 7.0f));
    Tributary::indexer_score(Space{}, query, key, weights, scores, options);
    return from_space<3>(scores);
  }
  Rows topk(std::int64_t top_k) const {
    Rows       rows(static_cast<std::int64_t>(query.extent(0)), static_cast<std::int64_t>(query.extent(1)), top_k);
    const auto indices = in_space(rows.indices);
    const auto scores  = in_space(rows.scores);
    Tributary::indexer_topk(Space{}, query, key, weights, indices, scores, options);
    rows.indices = from_space<3>(indices);
    rows.scores  = from_space<3>(scores);
    return rows;
  }
};

/// Whatever index arrays say is legal for one batch entry: it is a key that exists, with its score, and padding is at the end.
template <class Element>
void expect_keys_that_exist(const IndexerCall<Element>& call, std::int64_t top_k) {
  const auto keys   = static_cast<std::int64_t>(call.key.extent(1));
  const Rows rows   = call.topk(top_k);
  const auto scores = call.score(keys);
  for (std::int64_t t = 0; t < rows.indices.extents[1]; ++t)
    for (std::int64_t j = 0; j < top_k; ++j) {
      const std::int32_t index = rows.indices(0, t, j);
      ASSERT_TRUE(-1 <= index && index < keys);
      ASSERT_TRUE(index == -1 ? rows.scores(0, t, j) == -infinity : rows.scores(0, t, j) == scores(0, t, index));
      ASSERT_TRUE(j == 0 || index == -1 || rows.indices(0, t, j - 1) != -1);
    }
}

/// Both operators against the brute force, bit for bit: for inputs whose scores are exact.
template <class Element>
void expect_exact(Level level, const IndexerInputs<Element>& in, const Mask& mask, const std::vector<std::int64_t>& top_ks,
                  const IndexerOptions& options = {}) {
  SCOPED_TRACE(text(in.shape()));
  const std::int64_t         keys     = in.shape().keys;
  const auto                 expected = expected_scores(in, mask, keys);
  const IndexerCall<Element> call(level, in, mask, options);
  EXPECT_TRUE(same_bits(call.score(keys), expected)) << "(indexer_score)";
  for (const auto top_k : top_ks)
    EXPECT_TRUE(same_rows(call.topk(top_k), expected_indexer_topk(expected, mask, keys, top_k, options.order))) << "k " << top_k;
}

}  // namespace TributaryTest
