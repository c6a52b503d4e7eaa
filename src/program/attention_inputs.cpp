#include "attention_inputs.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "options.hpp"

namespace Tributary::Program {

namespace {

constexpr std::int64_t largest_int32 = std::numeric_limits<std::int32_t>::max();

[[noreturn]] void refuse(const std::string& reason) { throw std::invalid_argument(reason); }

std::int64_t integer_at(const InputFile& file, std::int64_t i) {
  return file->type() == NpyType::int64 ? stored_at<std::int64_t>(file->data(), i) : stored_at<std::int32_t>(file->data(), i);
}

void require_shape(const InputFile& file, std::initializer_list<Shape> allowed) {
  if (std::find(allowed.begin(), allowed.end(), file->shape()) != allowed.end()) return;
  std::string list;
  for (const Shape& shape : allowed) list += (list.empty() ? "" : " or ") + to_string(shape);
  refuse(file.path() + ": has shape " + to_string(file->shape()) + ", expected " + list);
}

/// As NumPy broadcasts: dimensions of one and missing first ones fit all.
void require_broadcastable(const InputFile& file, const Shape& full, bool any_columns) {
  const Shape& shape = file->shape();
  bool         fits  = !shape.empty() && shape.size() <= full.size() && (any_columns || shape.back() == full.back());
  for (std::size_t d = 1; fits && d < shape.size(); ++d) {
    const auto extent = shape[shape.size() - 1 - d];
    fits              = extent == 1 || extent == full[full.size() - 1 - d];
  }
  if (!fits)
    refuse(file.path() + ": has shape " + to_string(shape) + ", expected " + to_string(full) +
           ", with 1 or nothing in place of any but the last");
}

/// Of a window: "L,R".
std::pair<std::int64_t, std::int64_t> window_of(const std::string& text) {
  std::array<std::int64_t, 2> sides{};
  const char *at = text.data(), *const end = text.data() + text.size();
  bool good = true;
  for (std::size_t i = 0; i < sides.size() && good; ++i) {
    const auto [next, error] = std::from_chars(at, end, sides[i]);
    good = error == std::errc() && sides[i] >= -1 && sides[i] <= largest_int32 && (i == 0 ? next != end && *next == ',' : next == end);
    at   = next + 1;
  }
  if (!good) throw CLI::ValidationError("--window", "'" + text + "' is not a window: expected L,R, each from -1 (no limit) to 2147483647");
  return {sides[0], sides[1]};
}

}  // namespace

void AttentionInputs::add(CLI::App& app) {
  query.add(app, "--query", "Queries [S, H, D] or [B, S, H, D], float32 or float16", "Q.npy")->required();
  key.add(app, "--key", "Keys [T, G, D] or [B, T, G, D]; G divides H, query head h uses key head h / (H/G)", "K.npy")->required();
  value.add(app, "--value", "Values [T, G, E] or [B, T, G, E]", "V.npy")->required();
  auto* const query_offset =
      app.add_option("--query-offset", options.query_offset,
                     "The queries are a stretch of a longer sequence that begins at this position, which replaces T - S wherever positions "
                     "count: --causal, --window, --alibi, --relative-bias, rotary embedding; dropout counts queries from it")
          ->type_name("N");
  app.add_option("--key-offset", options.key_offset, "Likewise the keys: j counts from it (default 0)")
      ->type_name("N")
      ->needs(query_offset);
  app.add_flag("--causal", options.causal, "Key j is legal for query i iff j <= i + T - S");
  app.add_option_function<std::string>(
         "--window", [this](const std::string& text) { std::tie(options.window_left, options.window_right) = window_of(text); },
         "Only keys from i + T - S - L to i + T - S + R; -1: no limit.  Write it with =, --window=128,0")
      ->type_name("L,R");
  keep_mask.add(app, "--keep-mask", "Pairs that take part: bool or uint8, broadcast to [B, H, S, T]", "M.npy");
  key_keep.add(app, "--key-keep", "Keys that take part: bool or uint8 [T] or [B, T]", "M.npy");
  additive_mask.add(app, "--additive-mask", "Added to the scores, broadcast to [B, H, S, T]; -inf hides a pair", "A.npy");
  alibi.add(app, "--alibi", "Slopes [H] or [B, H]: -slope * |i + T - S - j| is added", "S.npy");
  sink.add(app, "--sink", "[H]: exp(sink) joins the denominator only", "S.npy");
  app.add_option("--softcap", options.softcap, "Scores become C * tanh(score / C)")->type_name("C");
  app.add_option("--scale", options.scale, "What products are multiplied with (default 1/sqrt(D))")->type_name("X");

  auto* const rope =
      app.add_option("--rope-dims", options.rotary.dims, "Components of each query and key head that turn with its position; even")
          ->check(CLI::Range(std::int32_t{2}, std::numeric_limits<std::int32_t>::max()))
          ->type_name("N");
  app.add_option("--rope-base", options.rotary.base, "Pair r turns by position * BASE^(-2r/N) (default 10000)")
      ->type_name("BASE")
      ->needs(rope);
  add_choice(app, "--rope-style", "What turns together: half (default; r and r + N/2) or interleaved (2r and 2r + 1)", options.rotary.style,
             {{"half", RotaryStyle::half}, {"interleaved", RotaryStyle::interleaved}});
  app.get_option("--rope-style")->needs(rope);
  app.add_flag("--rope-dims-last", options.rotary.last, "The last N components instead of the first")->needs(rope);
  auto* const both =
      rope_positions.add(app, "--rope-positions", "Positions [S] or [B, S] of queries and keys alike (default i + T - S and j)", "P.npy");
  both->needs(rope);
  rope_query_positions.add(app, "--rope-query-positions", "Of queries alone", "P.npy")->needs(rope)->excludes(both);
  rope_key_positions.add(app, "--rope-key-positions", "Of keys alone, [T] or [B, T]", "P.npy")->needs(rope)->excludes(both);

  auto* const table =
      relative_bias.add(app, "--relative-bias", "Table [buckets, H], added by the bucket of the distance (T5's rule)", "TABLE.npy");
  app.add_option("--relative-bias-max-distance", options.relative_bias.max_distance,
                 "From where on all distances share a bucket (default 128)")
      ->check(CLI::Range(std::int32_t{1}, std::int32_t{1} << 24))
      ->type_name("N")
      ->needs(table);
  app.add_flag_callback(
         "--relative-bias-unidirectional", [this] { options.relative_bias.bidirectional = false; },
         "All buckets for keys behind the query, as in a decoder")
      ->needs(table);

  auto* const packed = cu_seqlens_q.add(app, "--cu-seqlens-q", "Packed sequences: the first query of each, and S; int32 or int64", "C.npy");
  packed->needs(cu_seqlens_k.add(app, "--cu-seqlens-k", "Likewise of keys, and T", "C.npy")->needs(packed))->excludes(query_offset);

  // an unsigned option would take -1 as 2^64 - 1
  const CLI::Validator not_negative(
      [](const std::string& given) { return given.starts_with('-') ? given + " is negative" : std::string(); }, "");
  auto* const dropout = app.add_option("--dropout", options.dropout.probability, "Probability that a weight is dropped (Philox4x32-10)")
                            ->check(CLI::Range(0.0, 1.0))
                            ->type_name("P");
  app.add_option("--seed", options.dropout.seed, "Of dropout, 64 bits (default 0)")->check(not_negative)->type_name("N")->needs(dropout);
  app.add_option("--dropout-offset", options.dropout.offset, "Another mask of the same seed, 32 bits (default 0)")
      ->type_name("N")
      ->needs(dropout);
  add_dtype(app, "query, key and value", "scaled by 128 rows of a head; outputs only, no rotation", dtype);
  add_level(app, options.level);
}

void AttentionInputs::check() {
  if (!std::isfinite(options.softcap) || options.softcap < 0) refuse("--softcap must be 0 (none) or a positive finite number");
  if (options.scale && !std::isfinite(*options.scale)) refuse("--scale must be a finite number");
  if (!std::isfinite(options.dropout.probability)) refuse("--dropout must be a number from 0 to 1");
  if (dtype == ElementType::float8_e4m3) {
    if (options.rotary.dims > 0) refuse("--dtype e4m3 does not go with --rope-dims: rotate before rounding to e4m3");
    if (grad_output.given()) refuse("--dtype e4m3 does not go with --grad-output: there are no gradients for it");
  }
  for (InputFile* file : {&query, &key, &value, &grad_output, &additive_mask, &alibi, &sink, &relative_bias})
    file->open({NpyType::float32, NpyType::float16});
  for (InputFile* file : {&keep_mask, &key_keep}) file->open({NpyType::boolean, NpyType::uint8});
  for (InputFile* file : {&rope_positions, &rope_query_positions, &rope_key_positions, &cu_seqlens_q, &cu_seqlens_k})
    file->open({NpyType::int32, NpyType::int64});
  check_shapes();
  check_offsets();
  check_sequences();
  check_masks();
  check_biases();
  check_rotary();
  if (grad_output.given()) require_shape(grad_output, {out_shape()});
}

void AttentionInputs::check_shapes() {
  const Layout layout{"query", "S, H, D"};
  batched = require_layout(*query, layout);
  require_layout(*key, {"key", "T, G, D"}, *query, layout);
  require_layout(*value, {"value", "T, G, E"}, *query, layout);
  batch     = query.batch(3);
  queries   = query.extent(2);
  keys      = key.extent(2);
  heads     = query.extent(1);
  key_heads = key.extent(1);
  head_dim  = query.extent(0);
  value_dim = value.extent(0);
  require_extent(*key, 0, head_dim, "head dimension", query.path());
  require_extent(*value, 1, key_heads, "heads", key.path());
  require_extent(*value, 2, keys, "keys", key.path());
  constexpr std::int64_t most = 65536;  // the library's own limits
  for (const auto& [file, number, what] : {std::tuple{&query, heads, "heads"},
                                           {&query, head_dim, "components a head"},
                                           {&value, value_dim, "components a head"},
                                           {&key, key_heads, "heads"}})
    if (number < 1 || number > most)
      refuse(file->path() + ": has " + std::to_string(number) + " " + what + ", expected 1 to " + std::to_string(most));
  if (heads % key_heads != 0)
    refuse(query.path() + ": has " + std::to_string(heads) + " heads, expected a multiple of the " + std::to_string(key_heads) + " of " +
           key.path());
  if (queries > largest_int32 || keys > largest_int32) refuse("more than 2147483647 queries or keys");
}

void AttentionInputs::check_offsets() const {
  constexpr std::int64_t end = largest_int32 + 1;
  for (const auto& [name, offset, first, rows, what] :
       {std::tuple{"--query-offset", options.query_offset.value_or(0), -end, queries, "queries"},
        {"--key-offset", options.key_offset, std::int64_t{0}, keys, "keys"}})
    if (offset < first || offset > end - rows)
      refuse(std::string(name) + " is " + std::to_string(offset) + ", expected " + std::to_string(first) + " to " +
             std::to_string(end - rows) + " with " + std::to_string(rows) + " " + what);
}

void AttentionInputs::check_sequences() {
  if (!cu_seqlens_q.given()) return;
  if (batched) refuse(query.path() + ": has a batch dimension; packed sequences go with query [S, H, D]");
  for (const auto& [file, rows, what] : {std::tuple{&cu_seqlens_q, queries, "queries"}, {&cu_seqlens_k, keys, "keys"}}) {
    require_rank(**file, 1, "cu_seqlens [sequences + 1]");
    const auto entries = (*file)->shape()[0];
    if (entries < 1) refuse(file->path() + ": is empty, expected sequences + 1 entries");
    std::int64_t last = 0;
    for (std::int64_t i = 0; i < entries; ++i) {
      const auto entry = integer_at(*file, i);
      if (entry < last || entry > rows)
        refuse(file->path() + ": has entry " + std::to_string(entry) + ", expected ascending numbers from 0 to the " +
               std::to_string(rows) + " " + what);
      last = entry;
    }
  }
  require_shape(cu_seqlens_k, {cu_seqlens_q->shape()});
}

void AttentionInputs::check_masks() {
  if (key_keep.given()) require_shape(key_keep, {batched ? Shape{batch, keys} : Shape{keys}});
  // in packed sequences a column is a key's number in its sequence
  for (const InputFile* mask : {&keep_mask, &additive_mask})
    if (mask->given()) require_broadcastable(*mask, {batch, heads, queries, keys}, cu_seqlens_q.given());
}

void AttentionInputs::check_biases() const {
  if (alibi.given()) require_shape(alibi, {{heads}, {sequences(), heads}});
  if (sink.given()) require_shape(sink, {{heads}});
  if (!relative_bias.given()) return;
  require_rank(*relative_bias, 2, "table [buckets, H]");
  require_extent(*relative_bias, 0, heads, "heads", query.path());
  const auto& [table, max_distance, bidirectional] = options.relative_bias;
  const auto buckets                               = relative_bias->shape()[0];
  if (buckets < 2 || buckets > 1024 || (bidirectional && buckets % 2 != 0))
    refuse(relative_bias.path() + ": has " + std::to_string(buckets) + " buckets, expected 2 to 1024" +
           (bidirectional ? ", an even number" : ""));
  const auto single = (bidirectional ? buckets / 2 : buckets) / 2;
  if (max_distance <= single)
    refuse("--relative-bias-max-distance must exceed the " + std::to_string(single) + " buckets of a single distance each");
}

void AttentionInputs::check_rotary() {
  const auto& rotary = options.rotary;
  if (rotary.dims % 2 != 0 || rotary.dims > head_dim)
    refuse("--rope-dims is " + std::to_string(rotary.dims) + ", expected an even number up to the head dimension " +
           std::to_string(head_dim));
  if (!std::isfinite(rotary.base) || rotary.base <= 0) refuse("--rope-base must be a positive finite number");
  if (rope_positions.given() && queries != keys)
    refuse("--rope-positions names the positions of queries and keys alike, but there are " + std::to_string(queries) + " queries and " +
           std::to_string(keys) + " keys; give --rope-query-positions and --rope-key-positions");
  for (const auto& [file, rows] : {std::pair{&rope_positions, queries}, {&rope_query_positions, queries}, {&rope_key_positions, keys}}) {
    if (!file->given()) continue;
    if (batched)
      require_shape(*file, {{rows}, {batch, rows}});
    else
      require_shape(*file, {{rows}});
    for (std::int64_t i = 0; i < elements((*file)->shape()); ++i) {
      const auto position = integer_at(*file, i);
      if (position < -largest_int32 || position > largest_int32)
        refuse(file->path() + ": has position " + std::to_string(position) + ", beyond 2^31 - 1");
    }
  }
}

std::int64_t AttentionInputs::sequences() const { return cu_seqlens_q.given() ? cu_seqlens_q->shape()[0] - 1 : batch; }

Shape AttentionInputs::out_shape() const { return batched ? Shape{batch, queries, heads, value_dim} : Shape{queries, heads, value_dim}; }

Shape AttentionInputs::lse_shape() const { return batched ? Shape{batch, heads, queries} : Shape{heads, queries}; }

std::optional<double> AttentionInputs::legal_pairs() const {
  if (keep_mask.given() || key_keep.given() || additive_mask.given()) return std::nullopt;
  const std::int64_t left = options.window_left, right = options.causal ? 0 : options.window_right;
  const auto         of_sequence = [&](std::int64_t rows, std::int64_t columns) {
    // of the first query among the keys that are here
    const std::int64_t first = options.query_offset ? *options.query_offset - options.key_offset : columns - rows;
    double             pairs = 0;
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t position = first + i;
      const std::int64_t begin    = left < 0 ? 0 : std::max<std::int64_t>(position - left, 0),
                         end      = right < 0 ? columns : std::min(position + right + 1, columns);
      pairs += static_cast<double>(std::max<std::int64_t>(end - begin, 0));
    }
    return pairs;
  };
  if (!cu_seqlens_q.given()) return static_cast<double>(batch) * of_sequence(queries, keys);
  double pairs = 0;
  for (std::int64_t s = 0; s < sequences(); ++s)
    pairs += of_sequence(integer_at(cu_seqlens_q, s + 1) - integer_at(cu_seqlens_q, s),
                         integer_at(cu_seqlens_k, s + 1) - integer_at(cu_seqlens_k, s));
  return pairs;
}

nlohmann::ordered_json AttentionInputs::shapes() const {
  nlohmann::ordered_json shapes;
  for (const auto& [name, file] :
       std::initializer_list<std::pair<const char*, const InputFile*>>{{"query", &query},
                                                                       {"key", &key},
                                                                       {"value", &value},
                                                                       {"keep_mask", &keep_mask},
                                                                       {"key_keep", &key_keep},
                                                                       {"additive_mask", &additive_mask},
                                                                       {"alibi", &alibi},
                                                                       {"sink", &sink},
                                                                       {"relative_bias", &relative_bias},
                                                                       {"rope_positions", &rope_positions},
                                                                       {"rope_query_positions", &rope_query_positions},
                                                                       {"rope_key_positions", &rope_key_positions},
                                                                       {"cu_seqlens_q", &cu_seqlens_q},
                                                                       {"cu_seqlens_k", &cu_seqlens_k},
                                                                       {"grad_output", &grad_output}})
    if (file->given()) shapes[name] = (*file)->shape();
  shapes["output"] = out_shape();
  return shapes;
}

nlohmann::ordered_json AttentionInputs::options_report() const {
  using Json         = nlohmann::ordered_json;
  const auto& rotary = options.rotary;
  Json        report{{"dtype", name_of(dtype)}, {"causal", options.causal}, {"window", {options.window_left, options.window_right}}};
  report["query_offset"]  = options.query_offset ? Json(*options.query_offset) : Json(nullptr);
  report["key_offset"]    = options.key_offset;
  report["scale"]         = options.scale.value_or(static_cast<float>(1 / std::sqrt(static_cast<double>(head_dim))));
  report["softcap"]       = options.softcap;
  report["rope"]          = rotary.dims == 0 ? Json(nullptr)
                                             : Json{{"dims", rotary.dims},
                                           {"base", rotary.base},
                                           {"style", rotary.style == RotaryStyle::half ? "half" : "interleaved"},
                                           {"last", rotary.last}};
  report["relative_bias"] = relative_bias.given() ? Json{{"max_distance", options.relative_bias.max_distance},
                                                         {"bidirectional", options.relative_bias.bidirectional}}
                                                  : Json(nullptr);
  report["dropout"] = {{"probability", options.dropout.probability}, {"seed", options.dropout.seed}, {"offset", options.dropout.offset}};
  return report;
}

}  // namespace Tributary::Program
