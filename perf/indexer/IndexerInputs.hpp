#pragma once
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>

#include "common/random.hpp"
#include "indexer/IndexerShape.hpp"

// Inputs on a CUDA device; perf/peers/device_inputs.py draws the same.

namespace Tributary::Benchmark {

#ifdef KOKKOS_ENABLE_CUDA

/// The order of a query's scores along the keys.  All but random come from keys that are multiples of one vector.
enum class ScoreOrder { random, ascending, descending, equal, sixteen };

constexpr const char* name_of(ScoreOrder order) {
  switch (order) {
    case ScoreOrder::ascending: return "ascending";
    case ScoreOrder::descending: return "descending";
    case ScoreOrder::equal: return "equal";
    case ScoreOrder::sixteen: return "sixteen";
    default: return "random";
  }
}

/// The multiple that is key s.
struct KeyMultiple {
  ScoreOrder    order;
  std::uint64_t keys;

  KOKKOS_INLINE_FUNCTION float operator()(std::uint64_t s) const {
    switch (order) {
      case ScoreOrder::ascending: return static_cast<float>(s + 1) / static_cast<float>(keys);
      case ScoreOrder::descending: return static_cast<float>(keys - s) / static_cast<float>(keys);
      case ScoreOrder::sixteen: return static_cast<float>(1 + s * 7 % 16) * 0.0625f;
      default: return 1.0f;
    }
  }
};

// e4m3: values fill the range, +-448, and scales bring them back.
template <class Element>
constexpr float largest = std::is_same_v<Element, float8_e4m3_t> ? float8_e4m3_t::largest : 1.0f;

template <class Element>
struct QueryValue {
  KOKKOS_INLINE_FUNCTION float operator()(std::uint64_t i) const { return random_value(1, i) * largest<Element>; }
};

template <class Element>
struct KeyValue {
  KeyMultiple   multiple;
  std::uint64_t head_dim;

  KOKKOS_INLINE_FUNCTION float operator()(std::uint64_t i) const {
    if (multiple.order == ScoreOrder::random) return random_value(2, i) * largest<Element>;
    const float value = random_value(2, i % head_dim) * largest<Element>;
    return std::is_same_v<Element, float8_e4m3_t> ? value : value * multiple(i / head_dim);
  }
};

/// Where multiples order the scores, no score may be negative.
struct WeightValue {
  ScoreOrder                   order;
  KOKKOS_INLINE_FUNCTION float operator()(std::uint64_t i) const {
    const float value = random_value(3, i);
    return order == ScoreOrder::random || value > 0 ? value : -value;
  }
};

struct QueryScaleValue {
  KOKKOS_INLINE_FUNCTION float operator()(std::uint64_t i) const {
    return (1.0f + 0.5f * random_value(4, i)) * (1.0f / float8_e4m3_t::largest);
  }
};

struct KeyScaleValue {
  KeyMultiple                  multiple;
  KOKKOS_INLINE_FUNCTION float operator()(std::uint64_t s) const {
    return (multiple.order == ScoreOrder::random ? 1.0f + 0.5f * random_value(5, s) : multiple(s)) * (1.0f / float8_e4m3_t::largest);
  }
};

template <class Element>
struct IndexerInputs {
  using Exec                   = Kokkos::Cuda;
  static constexpr bool scaled = std::is_same_v<Element, float8_e4m3_t>;

  Array<Element***, Exec> query;
  Array<Element**, Exec>  key;
  Array<float**, Exec>    weights, query_scale;
  Array<float*, Exec>     key_scale;

  IndexerInputs(const IndexerShape& shape, ScoreOrder order) {
    const KeyMultiple multiple{order, static_cast<std::uint64_t>(shape.keys)};
    const auto        head_dim = static_cast<std::uint64_t>(shape.head_dim);
    query                      = filled<Element***, Exec>("query", QueryValue<Element>{}, shape.queries, shape.heads, shape.head_dim);
    key                        = filled<Element**, Exec>("key", KeyValue<Element>{multiple, head_dim}, shape.keys, shape.head_dim);
    weights                    = filled<float**, Exec>("weights", WeightValue{order}, shape.queries, shape.heads);
    if (!scaled) return;
    query_scale = filled<float**, Exec>("query_scale", QueryScaleValue{}, shape.queries, shape.heads);
    key_scale   = filled<float*, Exec>("key_scale", KeyScaleValue{multiple}, shape.keys);
  }

  IndexerOptions options(const IndexerShape& shape, Level level) const {
    IndexerOptions options = shape.options();
    options.level          = level;
    if (scaled) {
      options.query_scale = query_scale;
      options.key_scale   = key_scale;
    }
    return options;
  }
};

#endif

}  // namespace Tributary::Benchmark
