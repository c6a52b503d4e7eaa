#include "EmulatedAttention.hpp"

namespace TributaryTest::Emulator {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

}  // namespace

AttentionData::AttentionData(const EmulatedOptions& options, Random& random)
    : o(options),
      query_strides(o.layout, o.batch, o.queries, o.heads, o.head_dim),
      key_strides(o.layout, o.batch, o.keys, o.key_heads, o.head_dim),
      value_strides(o.layout, o.batch, o.keys, o.key_heads, o.shared_values ? o.head_dim : o.value_dim),
      query_scale(o, o.queries, o.heads, random),
      key_scale(o, o.keys, o.key_heads, random),
      value_scale(o, o.keys, o.key_heads, random),
      query(o.e4m3(), query_strides.size),
      key(o.e4m3(), key_strides.size),
      own_value(o.e4m3(), o.shared_values ? 0 : value_strides.size),
      value(o.shared_values ? key : own_value),
      key_keep(o.key_keep ? o.batch * o.keys : 0),
      keep(o.keep ? o.queries * o.keys : 0),
      additive_mask(o.additive_mask ? mask_extent(0) * mask_extent(1) * mask_extent(2) * mask_columns() : 0),
      alibi(std::max(o.sequences, o.batch) * o.heads),
      relative_bias(o.buckets * o.heads),
      sink(o.heads),
      bucket(2 * max_distance + 1),
      cu_seqlens_q(o.sequences + 1),
      cu_seqlens_k(o.sequences + 1) {
  fill(query, query_strides, o.queries, o.heads, o.head_dim, o.sharpness, 0, random, &query_scale);
  fill(key, key_strides, o.keys, o.key_heads, o.head_dim, 1, 0, random, &key_scale);
  if (!o.shared_values) fill(own_value, value_strides, o.keys, o.key_heads, o.value_dim, 1, 0.25f, random, &value_scale);
  AttentionProblem& p = problem;
  p.type              = o.type;
  p.batch             = o.batch;
  p.queries           = o.queries;
  p.keys              = o.keys;
  p.heads             = o.heads;
  p.key_heads         = o.key_heads;
  p.head_dim          = o.head_dim;
  p.value_dim         = o.value_dim;
  p.query             = query.data();
  p.key               = key.data();
  p.value             = value.data();
  std::copy_n(query_strides.of, 3, p.query_strides);
  std::copy_n(key_strides.of, 3, p.key_strides);
  std::copy_n(value_strides.of, 3, p.value_strides);
  if (o.e4m3()) {
    p.query_scale = query_scale.in_problem();
    p.key_scale   = key_scale.in_problem();
    p.value_scale = value_scale.in_problem();
  }
  p.scale          = static_cast<float>(1 / std::sqrt(static_cast<double>(o.head_dim)));
  p.softcap        = o.softcap;
  p.left           = o.left;
  p.right          = o.right;
  p.deterministic  = o.deterministic;
  p.aligned_at_end = !o.offsets;
  if (o.offsets) {
    p.query_offset = random.below(300);
    p.key_offset   = random.below(300);
  }
  if (o.dropout > 0) {
    p.has_dropout       = true;
    p.dropout_threshold = static_cast<std::uint32_t>(std::min(std::floor(o.dropout * 0x1p32), 0x1p32 - 1));
    p.dropout_offset    = 7;
    p.dropout_seed      = 0x123456789abcdefu;
    p.dropout_scale     = o.dropout < 1 ? 1 / (1 - o.dropout) : 0.0f;
  }
  set_packed(random);
  set_masks(random);
}

void AttentionData::set_packed(Random& random) {
  problem.packed.sequences = o.batch;
  if (o.sequences == 0) return;
  problem.packed = {cu_seqlens_q.data(), cu_seqlens_k.data(), o.sequences};
  for (std::int32_t& offset : cu_seqlens_q) offset = random.below(o.queries + 1);
  for (std::int32_t& offset : cu_seqlens_k) offset = random.below(o.keys + 1);
  std::sort(cu_seqlens_q.begin(), cu_seqlens_q.end());
  std::sort(cu_seqlens_k.begin(), cu_seqlens_k.end());
  for (int i = 0; i < o.queries; ++i)
    for (int h = 0; h < o.heads && sequence_of(i).queries == 0; ++h) spoil(query, query_strides.at(0, i, h), o.head_dim, random);
  for (int j = 0; j < o.keys; ++j)
    for (int h = 0; h < o.key_heads && sequence_of(j, true).queries == 0; ++h) {
      spoil(key, key_strides.at(0, j, h), o.head_dim, random);
      spoil(value, value_strides.at(0, j, h), o.value_dim, random);
    }
}

void AttentionData::set_masks(Random& random) {
  AttentionProblem& p = problem;
  if (o.key_keep) {
    p.key_keep        = key_keep.data();
    p.key_keep_stride = o.keys;
    for (int b = 0; b < o.batch; ++b)
      for (int j = 0; j < o.keys; ++j) {
        key_keep[b * o.keys + j] = random.uniform() < 0.7 ? static_cast<std::uint8_t>(1 + random.below(255)) : 0;
        for (int h = 0; h < o.key_heads && key_keep[b * o.keys + j] == 0; ++h) {
          spoil(key, key_strides.at(b, j, h), o.head_dim, random);
          spoil(value, value_strides.at(b, j, h), o.value_dim, random);
        }
      }
  }
  if (o.keep) {  // the same for all batch entries and heads
    p.keep            = keep.data();
    p.keep_columns    = o.keys;
    p.keep_strides[2] = o.keys;
    for (std::uint8_t& kept : keep) kept = random.uniform() < 0.6;
  }
  if (o.additive_mask) {
    p.additive_mask           = additive_mask.data();
    p.additive_mask_columns   = mask_columns();
    const std::int64_t of_row = mask_columns(), of_head = mask_extent(2) * of_row;
    p.additive_mask_strides[0] = o.mask_of_batch ? mask_extent(1) * of_head : 0;
    p.additive_mask_strides[1] = o.mask_of_heads ? of_head : 0;
    p.additive_mask_strides[2] = o.mask_of_queries ? of_row : 0;
    for (float& added : additive_mask) added = random.one_in(5) ? -std::numeric_limits<float>::infinity() : random.normal();
  }
  for (float& slope : alibi) slope = static_cast<float>(0.1 * random.uniform());
  for (float& bias : relative_bias) bias = random.normal();
  for (float& score : sink) score = 3 * random.normal();
  for (std::int32_t& number : bucket) number = random.below(o.buckets);
  if (o.alibi) {
    p.alibi_slopes = alibi.data();
    p.alibi_stride = o.heads;
  }
  if (o.relative_bias) {
    p.relative_bias        = relative_bias.data();
    p.relative_bias_stride = o.heads;
    p.buckets              = o.buckets;
    p.max_distance         = max_distance;
  }
  if (o.sink) p.sink = sink.data();
}

AttentionData::Sequence AttentionData::sequence_of(int row, bool of_key) const {
  if (o.sequences == 0) return {0, 0, o.queries, 0, o.keys};
  const auto& offsets = of_key ? cu_seqlens_k : cu_seqlens_q;
  for (int s = 0; s < o.sequences; ++s)
    if (offsets[s] <= row && row < offsets[s + 1])
      return {s, cu_seqlens_q[s], cu_seqlens_q[s + 1] - cu_seqlens_q[s], cu_seqlens_k[s], cu_seqlens_k[s + 1] - cu_seqlens_k[s]};
  return {};
}

AttentionData::Row AttentionData::row_of(int b, int i, int h) const {
  Row row{.sequence = sequence_of(i), .score = {}, .slope = {}, .factor = {}};
  if (o.sequences == 0) row.sequence.number = b;
  const Sequence&    s        = row.sequence;
  const int          number   = i - s.first_query;
  const std::int64_t position = number + (o.offsets ? problem.query_offset - problem.key_offset : s.keys - s.queries);
  const auto         q        = query_row(b, i, h);
  double             most = -infinity, sum = 0;
  for (int j = 0; j < s.keys; ++j) {
    const int  at     = s.first_key + j;
    const bool hidden = (o.left >= 0 && j < position - o.left) || (o.right >= 0 && j > position + o.right) ||
                        (o.key_keep && key_keep[b * o.keys + at] == 0) || (o.keep && keep[i * o.keys + j] == 0);
    double score = -infinity, slope = 1, factor = 1;
    if (!hidden) {
      score        = 0;
      const auto k = key_row(b, at, key_head(h));
      for (std::size_t d = 0; d < k.size(); ++d) score += q[d] * k[d];
      score *= problem.scale;
      if (o.softcap > 0) {
        const double capped = std::tanh(score / o.softcap);
        score               = o.softcap * capped;
        slope               = 1 - capped * capped;
      }
      const auto distance = relative(s, i, j);
      if (o.alibi) score -= double{alibi[s.number * o.heads + h]} * std::fabs(static_cast<double>(distance));
      if (o.relative_bias) score += relative_bias[bucket_of(distance) * o.heads + h];
      if (o.additive_mask && j < mask_columns()) score += additive_mask[mask_row(b, i, h) * mask_columns() + j];
    }
    if (o.dropout > 0) {
      const std::int64_t of_key = problem.key_offset + j;
      const auto         words  = Tributary::Impl::philox(problem.dropout_seed, static_cast<std::uint32_t>(of_key / 4),
                                                          static_cast<std::uint32_t>(problem.query_offset + number),
                                                          static_cast<std::uint32_t>(s.number * o.heads + h), problem.dropout_offset);
      factor                    = words.word[of_key % 4] >= problem.dropout_threshold ? problem.dropout_scale : 0;
    }
    row.score.push_back(score);
    row.slope.push_back(slope);
    row.factor.push_back(factor);
    most = std::max(most, score);
  }
  for (const double score : row.score)
    if (score != -infinity) sum += std::exp(score - most);
  if (sum > 0) row.log_sum_exp = most + std::log(sum);
  return row;
}

}  // namespace TributaryTest::Emulator
