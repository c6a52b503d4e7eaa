#include "attention/attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>

#include "common/check.hpp"

namespace Tributary::Impl {

namespace {

constexpr std::int64_t farthest  = std::int64_t{1} << 33;
constexpr std::int64_t int32_max = std::numeric_limits<std::int32_t>::max();

// What stands for an array that is given, has no element, and so no address; never read.
constexpr std::uint8_t no_element = 0;

// [B|1, Hq|1, Sq|1, columns]
template <class T>
void require_broadcast_extents(std::string_view function, std::string_view name, const Tensor<T, 4>& given, const std::int64_t (&full)[3],
                               std::int64_t columns) {
  bool fits = given.extents[3] == columns;
  for (int d = 0; d < 3; ++d) fits = fits && (given.extents[d] == full[d] || given.extents[d] == 1);
  require(fits, "{}: {} is {}, expected {} or 1 in place of any but the last", function, name, extents_text(given),
          extents_text({full[0], full[1], full[2], columns}));
}

template <class T, int Rank>
std::int64_t broadcast_stride(const Tensor<T, Rank>& tensor, int dimension) {
  return tensor.extents[dimension] == 1 ? 0 : tensor.strides[dimension];
}

// The shapes of query, key and value.
void check_shapes(std::string_view f, const AttentionArguments& in) {
  const auto [batch, queries, heads, head_dim]      = in.query.extents;
  const auto [key_batch, keys, key_heads, key_dims] = in.key.extents;
  require(key_dims == head_dim, "{}: key has head dimension {}, query has {}", f, key_dims, head_dim);
  require(key_batch == batch, "{}: key has batch {}, query has batch {}", f, key_batch, batch);
  require_extents(f, "value", in.value, {batch, keys, key_heads, in.value.extents[3]});
  require(head_dim >= 1 && head_dim <= 65536, "{}: the head dimension is {}, expected 1 ... 65536", f, head_dim);
  require(in.value.extents[3] >= 1 && in.value.extents[3] <= 65536, "{}: value has head dimension {}, expected 1 ... 65536", f,
          in.value.extents[3]);
  require(heads >= 1 && heads <= 65536, "{}: query has {} heads, expected 1 ... 65536", f, heads);
  require(key_heads >= 1 && heads % key_heads == 0, "{}: query has {} heads, expected a multiple of the {} key heads", f, heads, key_heads);
  require(batch * queries <= int32_max, "{}: there are {} query rows, expected at most 2^31 - 1", f, batch * queries);
  require(batch * keys <= int32_max, "{}: there are {} key rows, expected at most 2^31 - 1", f, batch * keys);
}

// The number of sequences.
std::int64_t check_sequences(std::string_view f, const AttentionArguments& in) {
  const PackedSequences& packed = in.options->sequences;
  require(packed.cu_seqlens_q.given() == packed.cu_seqlens_k.given(), "{}: packed sequences need both cu_seqlens_q and cu_seqlens_k", f);
  if (!packed.cu_seqlens_q.given()) return in.query.extents[0];
  require(in.query.extents[0] == 1, "{}: packed sequences go with query [S,H,D], key and value [T,H,D]; the batch is {}", f,
          in.query.extents[0]);
  require(in.cu_seqlens_q.extents[0] >= 1, "{}: cu_seqlens_q is empty, expected sequences + 1 entries", f);
  require(in.cu_seqlens_q.extents[0] == in.cu_seqlens_k.extents[0], "{}: cu_seqlens_q has {} entries, cu_seqlens_k has {}", f,
          in.cu_seqlens_q.extents[0], in.cu_seqlens_k.extents[0]);
  return in.cu_seqlens_q.extents[0] - 1;
}

// Offsets within int32, as everything that counts keys and queries.
void check_offsets(std::string_view f, const AttentionArguments& in) {
  const AttentionOptions& options    = *in.options;
  const std::int64_t      key_offset = options.key_offset;
  require(options.query_offset.has_value() || key_offset == 0, "{}: key_offset is {}, but query_offset is not given", f, key_offset);
  if (!options.query_offset) return;
  require(!options.sequences.cu_seqlens_q.given(),
          "{}: query_offset is given together with packed sequences, whose positions count within each", f);
  const std::int64_t query_offset = *options.query_offset, last_query = int32_max + 1 - in.query.extents[1],
                     last_key = int32_max + 1 - in.key.extents[1];
  require(query_offset >= -int32_max - 1 && query_offset <= last_query, "{}: query_offset is {}, expected -2^31 ... {}", f, query_offset,
          last_query);
  require(key_offset >= 0 && key_offset <= last_key, "{}: key_offset is {}, expected 0 ... {}", f, key_offset, last_key);
}

void check_masks(std::string_view f, const AttentionArguments& in) {
  const AttentionOptions& options              = *in.options;
  const auto [batch, queries, heads, head_dim] = in.query.extents;
  const std::int64_t keys                      = in.key.extents[1];
  const bool         packed                    = options.sequences.cu_seqlens_q.given();
  require(options.window_left >= -1, "{}: window_left is {}, expected -1 (no limit) or more", f, options.window_left);
  require(options.window_right >= -1, "{}: window_right is {}, expected -1 (no limit) or more", f, options.window_right);
  if (options.key_keep.given()) require_extents(f, "key_keep", in.key_keep, {batch, keys});
  if (options.keep.given()) require_broadcast_extents(f, "keep", in.keep, {batch, heads, queries}, packed ? in.keep.extents[3] : keys);
  if (options.additive_mask.given())
    require_broadcast_extents(f, "additive_mask", in.additive_mask, {batch, heads, queries}, packed ? in.additive_mask.extents[3] : keys);
}

void check_biases(std::string_view f, const AttentionArguments& in, std::int64_t sequences) {
  const AttentionOptions& options = *in.options;
  const std::int64_t      heads   = in.query.extents[2];
  require(!options.scale || std::isfinite(*options.scale), "{}: scale is {}, expected a finite number", f, options.scale.value_or(0));
  require(std::isfinite(options.softcap) && options.softcap >= 0, "{}: softcap is {}, expected 0 (none) or a positive finite number", f,
          options.softcap);
  if (options.alibi_slopes.given())
    require(in.alibi_slopes.extents[1] == heads && (in.alibi_slopes.extents[0] == 1 || in.alibi_slopes.extents[0] == sequences),
            "{}: alibi_slopes is {}, expected {} or {}", f, extents_text(in.alibi_slopes), extents_text({heads}),
            extents_text({sequences, heads}));
  if (options.sink.given()) require_extents(f, "sink", in.sink, {heads});
  if (!options.relative_bias.table.given()) return;

  const std::int64_t buckets       = in.relative_bias.extents[0];
  const bool         bidirectional = options.relative_bias.bidirectional;
  require(in.relative_bias.extents[1] == heads, "{}: relative_bias.table is {}, expected {}", f, extents_text(in.relative_bias),
          extents_text({buckets, heads}));
  require(buckets >= 2 && buckets <= most_relative_buckets, "{}: relative_bias.table has {} buckets, expected 2 ... {}", f, buckets,
          most_relative_buckets);
  require(!bidirectional || buckets % 2 == 0, "{}: relative_bias.table has {} buckets, expected an even number for a bidirectional bias", f,
          buckets);
  const std::int64_t single = (bidirectional ? buckets / 2 : buckets) / 2;
  require(options.relative_bias.max_distance <= (1 << 24), "{}: relative_bias.max_distance is {}, expected at most 2^24", f,
          options.relative_bias.max_distance);
  require(options.relative_bias.max_distance > single,
          "{}: relative_bias.max_distance is {}, expected more than the {} buckets of a single distance each", f,
          options.relative_bias.max_distance, single);
}

void check_rotary(std::string_view f, const AttentionArguments& in) {
  const RotaryEmbedding& rotary = in.options->rotary;
  const std::int64_t     batch = in.query.extents[0], queries = in.query.extents[1], head_dim = in.query.extents[3];
  require(rotary.dims >= 0 && rotary.dims <= head_dim && rotary.dims % 2 == 0,
          "{}: rotary.dims is {}, expected an even number from 0 to {}", f, rotary.dims, head_dim);
  const auto require_dims = [&](bool given, std::string_view name) {
    require(!given || rotary.dims > 0, "{}: {} is given, but rotary.dims is 0", f, name);
  };
  require_dims(rotary.cosine.given(), "rotary.cosine");
  require_dims(rotary.sine.given(), "rotary.sine");
  require_dims(rotary.query_positions.given(), "rotary.query_positions");
  require_dims(rotary.key_positions.given(), "rotary.key_positions");

  require(rotary.cosine.given() == rotary.sine.given(), "{}: rotary.{} is given without rotary.{}", f,
          rotary.cosine.given() ? "cosine" : "sine", rotary.cosine.given() ? "sine" : "cosine");
  if (rotary.cosine.given()) {
    const std::int64_t positions = in.cosine.extents[0];
    require(positions >= 1, "{}: rotary.cosine has no position, expected 1 or more", f);
    require_extents(f, "rotary.cosine", in.cosine, {positions, rotary.dims / 2});
    require_extents(f, "rotary.sine", in.sine, {positions, rotary.dims / 2});
  }
  require(std::isfinite(rotary.base) && rotary.base > 0, "{}: rotary.base is {}, expected a positive finite number", f, rotary.base);

  const auto require_positions = [&](bool given, std::string_view name, const Tensor<const std::int32_t, 2>& positions, std::int64_t rows) {
    require(!given || (positions.extents[1] == rows && (positions.extents[0] == 1 || positions.extents[0] == batch)),
            "{}: {} is {}, expected {} or {}", f, name, extents_text(positions), extents_text({rows}), extents_text({batch, rows}));
  };
  require_positions(rotary.query_positions.given(), "rotary.query_positions", in.query_positions, queries);
  require_positions(rotary.key_positions.given(), "rotary.key_positions", in.key_positions, in.key.extents[1]);
}

void check_dropout(std::string_view f, const AttentionArguments& in, std::int64_t sequences) {
  const double probability = in.options->dropout.probability;
  require(probability >= 0 && probability <= 1, "{}: dropout.probability is {}, expected 0 ... 1", f, probability);
  require(probability == 0 || sequences * in.query.extents[2] <= std::numeric_limits<std::uint32_t>::max(),
          "{}: dropout with {} sequences of {} heads, expected fewer than 2^32 heads in all", f, sequences, in.query.extents[2]);
}

// Scales of e4m3, one a block of rows.
void check_scales(std::string_view f, const AttentionArguments& in) {
  const AttentionOptions& options              = *in.options;
  const auto [batch, queries, heads, head_dim] = in.query.extents;
  const bool e4m3                              = in.type == ElementType::float8_e4m3;
  for (const auto& [name, option, scale, rows, row_heads] :
       {std::tuple{"query_scale", &options.query_scale, &in.query_scale, queries, heads},
        std::tuple{"key_scale", &options.key_scale, &in.key_scale, in.key.extents[1], in.key.extents[2]},
        std::tuple{"value_scale", &options.value_scale, &in.value_scale, in.key.extents[1], in.key.extents[2]}}) {
    require(!e4m3 || option->given(), "{}: float8_e4m3 inputs need {}", f, name);
    require(e4m3 || !option->given(), "{}: {} goes with float8_e4m3 inputs only", f, name);
    if (e4m3) require_extents(f, name, *scale, {batch, row_heads, (rows + attention_scale_rows - 1) / attention_scale_rows});
  }
  // A rotated value can pass what its block's scale leaves room for.
  require(!e4m3 || options.rotary.dims == 0, "{}: rotary embedding does not go with float8_e4m3 inputs; rotate before they are quantised",
          f);
}

using NamedFootprint = std::pair<std::string_view, Footprint>;

void check_overlaps(std::string_view f, const AttentionArguments& in, std::initializer_list<NamedFootprint> outputs) {
  const NamedFootprint inputs[] = {{"query", footprint(in.query, element_size(in.type))},
                                   {"key", footprint(in.key, element_size(in.type))},
                                   {"value", footprint(in.value, element_size(in.type))},
                                   {"key_keep", footprint(in.key_keep, 1)},
                                   {"keep", footprint(in.keep, 1)},
                                   {"additive_mask", footprint(in.additive_mask, sizeof(float))},
                                   {"alibi_slopes", footprint(in.alibi_slopes, sizeof(float))},
                                   {"relative_bias.table", footprint(in.relative_bias, sizeof(float))},
                                   {"sink", footprint(in.sink, sizeof(float))},
                                   {"rotary.cosine", footprint(in.cosine, sizeof(float))},
                                   {"rotary.sine", footprint(in.sine, sizeof(float))},
                                   {"rotary.query_positions", footprint(in.query_positions, sizeof(std::int32_t))},
                                   {"rotary.key_positions", footprint(in.key_positions, sizeof(std::int32_t))},
                                   {"cu_seqlens_q", footprint(in.cu_seqlens_q, sizeof(std::int32_t))},
                                   {"cu_seqlens_k", footprint(in.cu_seqlens_k, sizeof(std::int32_t))},
                                   {"query_scale", footprint(in.query_scale, sizeof(float))},
                                   {"key_scale", footprint(in.key_scale, sizeof(float))},
                                   {"value_scale", footprint(in.value_scale, sizeof(float))}};
  for (auto output = outputs.begin(); output != outputs.end(); ++output) {
    for (const auto& [name, input] : inputs) require_disjoint(f, output->first, output->second, name, input);
    for (auto other = outputs.begin(); other != output; ++other)
      require_disjoint(f, output->first, output->second, other->first, other->second);
  }
}

RotaryProblem rotary_problem(const AttentionArguments& in) {
  const RotaryEmbedding& rotary = in.options->rotary;
  return {.dims                  = rotary.dims,
          .first                 = rotary.last ? static_cast<std::int32_t>(in.query.extents[3]) - rotary.dims : 0,
          .interleaved           = rotary.style == RotaryStyle::interleaved,
          .base                  = rotary.base,
          .cosine                = in.cosine.data,
          .sine                  = in.sine.data,
          .cosine_stride         = in.cosine.strides[0],
          .sine_stride           = in.sine.strides[0],
          .positions             = in.cosine.extents[0],
          .query_positions       = in.query_positions.data,
          .key_positions         = in.key_positions.data,
          .query_position_stride = broadcast_stride(in.query_positions, 0),
          .key_position_stride   = broadcast_stride(in.key_positions, 0)};
}

}  // namespace

std::vector<std::int32_t> bucket_first_distances(std::int32_t buckets, std::int32_t max_distance) {
  const std::int32_t        single = buckets / 2;
  std::vector<std::int32_t> first(static_cast<std::size_t>(buckets));
  // The rule's logarithm; whole numbers stay whole whatever the rounding of log.
  const auto bucket = [&](std::int32_t distance) {
    const double share = std::log(static_cast<double>(distance) / single) / std::log(static_cast<double>(max_distance) / single);
    return single + static_cast<std::int32_t>(std::floor(share * (buckets - single) + 1e-9));
  };
  std::int32_t distance = 0;
  for (std::int32_t b = 0; b < buckets; ++b) {
    if (b <= single) {
      distance = b;
    } else {
      const double inverse =
          single * std::pow(static_cast<double>(max_distance) / single, static_cast<double>(b - single) / (buckets - single));
      distance = std::max(distance, static_cast<std::int32_t>(inverse) - 1);
      while (bucket(distance) < b) ++distance;
    }
    first[static_cast<std::size_t>(b)] = distance;
  }
  return first;
}

std::pair<AttentionProblem, RotaryProblem> check_attention(std::string_view function, const AttentionArguments& in,
                                                           std::initializer_list<std::pair<std::string_view, Footprint>> outputs) {
  check_shapes(function, in);
  const std::int64_t sequences = check_sequences(function, in);
  check_offsets(function, in);
  check_masks(function, in);
  check_biases(function, in, sequences);
  check_rotary(function, in);
  check_dropout(function, in, sequences);
  check_scales(function, in);
  check_overlaps(function, in, outputs);

  const AttentionOptions& options              = *in.options;
  const auto [batch, queries, heads, head_dim] = in.query.extents;
  const double dropped                         = options.dropout.probability;
  const auto   scales                          = [](const Tensor<const float, 3>& scale) {
    return BlockScales{.data = scale.data, .strides = {scale.strides[0], scale.strides[1]}};
  };
  const AttentionProblem problem{
      .type          = in.type,
      .batch         = batch,
      .queries       = queries,
      .keys          = in.key.extents[1],
      .heads         = static_cast<std::int32_t>(heads),
      .key_heads     = static_cast<std::int32_t>(in.key.extents[2]),
      .head_dim      = static_cast<std::int32_t>(head_dim),
      .value_dim     = static_cast<std::int32_t>(in.value.extents[3]),
      .query         = in.query.data,
      .key           = in.key.data,
      .value         = in.value.data,
      .query_strides = {in.query.strides[0], in.query.strides[1], in.query.strides[2]},
      .key_strides   = {in.key.strides[0], in.key.strides[1], in.key.strides[2]},
      .value_strides = {in.value.strides[0], in.value.strides[1], in.value.strides[2]},
      .query_scale   = scales(in.query_scale),
      .key_scale     = scales(in.key_scale),
      .value_scale   = scales(in.value_scale),
      .scale         = options.scale ? *options.scale : static_cast<float>(1 / std::sqrt(static_cast<double>(head_dim))),
      .softcap       = options.softcap,
      // beyond the distance of any two positions, and sums with one still fit
      .left                  = std::min(options.window_left, farthest),
      .right                 = options.causal ? 0 : std::min(options.window_right, farthest),
      .key_keep              = in.key_keep.data,
      .keep                  = options.keep.given() && !in.keep ? &no_element : in.keep.data,
      .additive_mask         = in.additive_mask.data,
      .key_keep_stride       = in.key_keep.strides[0],
      .keep_strides          = {broadcast_stride(in.keep, 0), broadcast_stride(in.keep, 1), broadcast_stride(in.keep, 2)},
      .additive_mask_strides = {broadcast_stride(in.additive_mask, 0), broadcast_stride(in.additive_mask, 1),
                                broadcast_stride(in.additive_mask, 2)},
      .keep_columns          = in.keep.extents[3],
      .additive_mask_columns = in.additive_mask.extents[3],
      .alibi_slopes          = in.alibi_slopes.data,
      .relative_bias         = in.relative_bias.data,
      .sink                  = in.sink.data,
      .alibi_stride          = broadcast_stride(in.alibi_slopes, 0),
      .relative_bias_stride  = in.relative_bias.strides[0],
      .buckets               = static_cast<std::int32_t>(in.relative_bias.extents[0]),
      .max_distance          = options.relative_bias.max_distance,
      .bidirectional         = options.relative_bias.bidirectional,
      .has_dropout           = dropped > 0,
      .dropout_threshold     = static_cast<std::uint32_t>(std::min(std::floor(dropped * 0x1p32), 0x1p32 - 1)),  // 2^32: dropout_scale is 0
      .dropout_offset        = options.dropout.offset,
      .dropout_seed          = options.dropout.seed,
      .dropout_scale         = dropped < 1 ? static_cast<float>(1 / (1 - dropped)) : 0,
      .packed                = {in.cu_seqlens_q.data, in.cu_seqlens_k.data, sequences},
      .deterministic         = options.deterministic,
      .aligned_at_end        = !options.query_offset,
      .query_offset          = options.query_offset.value_or(0),
      .key_offset            = options.key_offset};
  return {problem, rotary_problem(in)};
}

std::pair<AttentionProblem, RotaryProblem> check_attention_forward(const AttentionForwardArguments& arguments) {
  constexpr std::string_view f                                              = "attention_forward";
  const auto& [in, out_type, out, lse, has_lse, previous_out, previous_lse] = arguments;
  const auto checked = check_attention(f, in, {{"out", footprint(out, element_size(out_type))}, {"lse", footprint(lse, sizeof(float))}});

  const auto [batch, queries, heads, head_dim] = in.query.extents;
  const std::int64_t value_dim                 = in.value.extents[3];
  require_extents(f, "out", out, {batch, queries, heads, value_dim});
  require_distinct_elements(f, "out", out);
  if (has_lse) require_extents(f, "lse", lse, {batch, heads, queries});
  require_distinct_elements(f, "lse", lse);

  const AttentionState& previous = in.options->previous;
  require(previous.out.given() == previous.lse.given(), "{}: previous.{} is given without previous.{}", f,
          previous.out.given() ? "out" : "lse", previous.out.given() ? "lse" : "out");
  if (previous.out.given()) {
    require_extents(f, "previous.out", previous_out, {batch, queries, heads, value_dim});
    require_extents(f, "previous.lse", previous_lse, {batch, heads, queries});
    // Without an offset these count positions from the end of this call's keys, which is not where they lie among all keys.
    const AttentionOptions& o = *in.options;
    for (const auto& [name, given] :
         {std::pair{"causal", o.causal}, std::pair{"window_left", o.window_left >= 0}, std::pair{"window_right", o.window_right >= 0},
          std::pair{"alibi_slopes", o.alibi_slopes.given()}, std::pair{"relative_bias", o.relative_bias.table.given()},
          std::pair{"dropout", o.dropout.probability > 0},
          std::pair{"rotary without positions",
                    o.rotary.dims > 0 && !(o.rotary.query_positions.given() && o.rotary.key_positions.given())}})
      require(!given || o.query_offset.has_value(),
              "{}: previous is given together with {}, which depends on where this call's keys lie among all; expected a query_offset", f,
              name);
    for (const auto& [output_name, output] :
         {NamedFootprint{"out", footprint(out, element_size(out_type))}, NamedFootprint{"lse", footprint(lse, sizeof(float))}}) {
      require_disjoint(f, output_name, output, "previous.out", footprint(previous_out, sizeof(float)));
      require_disjoint(f, output_name, output, "previous.lse", footprint(previous_lse, sizeof(float)));
    }
  }
  return checked;
}

std::pair<AttentionProblem, RotaryProblem> check_attention_backward(const AttentionBackwardArguments& arguments) {
  constexpr std::string_view                  f       = "attention_backward";
  const AttentionArguments&                   in      = arguments.inputs;
  const AttentionGradients&                   wanted  = *arguments.gradients;
  const std::int64_t                          size    = element_size(in.type);
  const std::initializer_list<NamedFootprint> outputs = {
      {"grad_query", footprint(arguments.grad_query, size)},
      {"grad_key", footprint(arguments.grad_key, size)},
      {"grad_value", footprint(arguments.grad_value, size)},
      {"the gradient of additive_mask", footprint(arguments.grad_additive_mask, sizeof(float))},
      {"the gradient of alibi_slopes", footprint(arguments.grad_alibi_slopes, sizeof(float))},
      {"the gradient of relative_bias", footprint(arguments.grad_relative_bias, sizeof(float))},
      {"the gradient of sink", footprint(arguments.grad_sink, sizeof(float))}};
  const auto checked = check_attention(f, in, outputs);

  const AttentionState& previous = in.options->previous;
  require(!previous.out.given() && !previous.lse.given(), "{}: previous is given, which goes with attention_forward only", f);
  const auto [batch, queries, heads, head_dim] = in.query.extents;
  require_extents(f, "out", arguments.out, {batch, queries, heads, in.value.extents[3]});
  require_extents(f, "grad_out", arguments.grad_out, {batch, queries, heads, in.value.extents[3]});
  require_extents(f, "lse", arguments.lse, {batch, heads, queries});
  if (wanted.lse.given()) require_extents(f, "the gradient of lse", arguments.grad_lse, {batch, heads, queries});

  const auto check_gradient = [&](std::string_view name, const auto& gradient, std::string_view input_name, const auto& input,
                                  bool input_given) {
    require(input_given, "{}: {} is wanted, but {} is not given", f, name, input_name);
    require_extents(f, name, gradient, input.extents);
    require_distinct_elements(f, name, gradient);
  };
  check_gradient("grad_query", arguments.grad_query, "query", in.query, true);
  check_gradient("grad_key", arguments.grad_key, "key", in.key, true);
  check_gradient("grad_value", arguments.grad_value, "value", in.value, true);
  const AttentionOptions& options = *in.options;
  if (wanted.additive_mask.given())
    check_gradient("the gradient of additive_mask", arguments.grad_additive_mask, "additive_mask", in.additive_mask,
                   options.additive_mask.given());
  if (wanted.alibi_slopes.given())
    check_gradient("the gradient of alibi_slopes", arguments.grad_alibi_slopes, "alibi_slopes", in.alibi_slopes,
                   options.alibi_slopes.given());
  if (wanted.relative_bias.given())
    check_gradient("the gradient of relative_bias", arguments.grad_relative_bias, "relative_bias.table", in.relative_bias,
                   options.relative_bias.table.given());
  if (wanted.sink.given()) check_gradient("the gradient of sink", arguments.grad_sink, "sink", in.sink, options.sink.given());

  const std::int64_t   out_size = element_size(arguments.out_type);
  const NamedFootprint inputs[] = {{"out", footprint(arguments.out, out_size)},
                                   {"grad_out", footprint(arguments.grad_out, out_size)},
                                   {"lse", footprint(arguments.lse, sizeof(float))},
                                   {"the gradient of lse", footprint(arguments.grad_lse, sizeof(float))}};
  for (const auto& [output_name, output] : outputs)
    for (const auto& [name, input] : inputs) require_disjoint(f, output_name, output, name, input);
  return checked;
}

void check_attention_merge(const AttentionMergeArguments& arguments) {
  constexpr std::string_view f                                      = "attention_merge";
  const auto& [states, sink, has_sink, out_type, out, lse, has_lse] = arguments;
  const auto [batch, queries, heads, value_dim]                     = out.extents;
  require(batch * queries <= int32_max, "{}: there are {} query rows, expected at most 2^31 - 1", f, batch * queries);
  require(!states.empty() && states.size() <= 8, "{}: {} states are given, expected 1 ... 8", f, states.size());
  if (has_lse) require_extents(f, "lse", lse, {batch, heads, queries});
  if (has_sink) require_extents(f, "sink", sink, {heads});
  require_distinct_elements(f, "out", out);
  require_distinct_elements(f, "lse", lse);

  const NamedFootprint outputs[] = {{"out", footprint(out, element_size(out_type))}, {"lse", footprint(lse, sizeof(float))}};
  require_disjoint(f, "lse", outputs[1].second, "out", outputs[0].second);
  for (const auto& [name, output] : outputs) require_disjoint(f, name, output, "sink", footprint(sink, sizeof(float)));
  // A row is read whole before it is written, so an output may be a state's own array; overlapping it any other way may not.
  const auto same = []<int Rank>(const void* data, const auto& output, const Tensor<const float, Rank>& input) {
    return data == input.data && std::equal(input.strides, input.strides + Rank, output.strides);
  };
  for (std::size_t s = 0; s < states.size(); ++s) {
    const std::string out_name = "out of state " + std::to_string(s), lse_name = "lse of state " + std::to_string(s);
    require_extents(f, out_name, states[s].out, {batch, queries, heads, value_dim});
    require_extents(f, lse_name, states[s].lse, {batch, heads, queries});
    const Footprint state_out = footprint(states[s].out, sizeof(float)), state_lse = footprint(states[s].lse, sizeof(float));
    if (out_type != ElementType::float32 || !same(out.data, out, states[s].out))
      require_disjoint(f, "out", outputs[0].second, out_name, state_out);
    if (!same(lse.data, lse, states[s].lse)) require_disjoint(f, "lse", outputs[1].second, lse_name, state_lse);
    require_disjoint(f, "out", outputs[0].second, lse_name, state_lse);
    require_disjoint(f, "lse", outputs[1].second, out_name, state_out);
  }
}

}  // namespace Tributary::Impl
