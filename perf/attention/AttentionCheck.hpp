#pragma once
#include <Tributary_Reference.hpp>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "attention/AttentionCalls.hpp"
#include "common/device.hpp"

// Results on a CUDA device against the reference, on a few rows of the first and the last head: a wrong result is not timed.

namespace Tributary::Benchmark {

#ifdef KOKKOS_ENABLE_CUDA

using Rows = std::pair<std::int64_t, std::int64_t>;

template <class Element>
using HostHeads = Array<Element***, Kokkos::HostSpace>;

/// Some rows of some heads, or of one.
template <class View>
auto rows_of(const View& array, const Rows& rows, const Rows& heads) {
  return Kokkos::subview(array, rows, heads, Kokkos::ALL);
}
template <class View>
auto rows_of(const View& array, const Rows& rows, std::int64_t head) {
  return rows_of(array, rows, Rows(head, head + 1));
}
/// The same of LSE, or of scales.
template <class View>
auto lse_of(const View& lse, const Rows& rows, const Rows& heads) {
  return Kokkos::subview(lse, heads, rows);
}
template <class View>
auto lse_of(const View& lse, const Rows& rows, std::int64_t head) {
  return lse_of(lse, rows, Rows(head, head + 1));
}

/// The keys that a query sees.
inline Rows keys_of(const AttentionShape& shape, std::int64_t query) {
  return {shape.causal ? std::max<std::int64_t>(query + 1 - shape.window, 0) : 0, shape.causal ? query + 1 : shape.length};
}

/// Throws where a row differs from the reference by more than rounding of weights and results to 16 bits explains; `off` is what it may
/// differ by, of the row's largest number.
template <class Result, class Expected>
void require_close(const char* name, const Result& result, const Expected& expected, double off = 0.03) {
  double error = 0, largest = 0;
  for (std::size_t d = 0; d < expected.size(); ++d) {
    const auto wanted = static_cast<double>(static_cast<float>(expected(0, 0, d)));
    largest           = std::max(largest, std::abs(wanted));
    error             = std::max(error, std::abs(static_cast<double>(static_cast<float>(result(0, 0, d))) - wanted));
  }
  if (!(error <= off * largest)) throw std::runtime_error(std::string("wrong result: a row of ") + name);
}

/// Calls function(row, head) for those that are checked.
template <class Function>
void for_each_sample(const AttentionShape& shape, const Function& function) {
  for (const std::int64_t head : {std::int64_t{0}, shape.heads - 1})
    for (const std::int64_t row : {std::int64_t{0}, shape.length / 3, shape.length - 1}) function(row, head);
}

template <class Element>
void require_right(const AttentionShape& shape, const ForwardCall<Element, Kokkos::Cuda>& call) {
  const auto query = on_host(call.query), key = on_host(call.key), value = on_host(call.value), out = on_host(call.out);
  for_each_sample(shape, [&](std::int64_t i, std::int64_t head) {
    const Rows             row(i, i + 1);
    const Rows             keys = keys_of(shape, i);
    const HostHeads<float> expected("expected", 1, 1, shape.head_dim);
    Reference::attention_forward(rows_of(query, row, head), rows_of(key, keys, shape.key_head(head)),
                                 rows_of(value, keys, shape.key_head(head)), expected, std::nullopt);
    require_close("out", rows_of(out, row, head), expected);
  });
}

/// Weights are rounded to e4m3, by 2^-4 at the most; over thousands of keys that is a few hundredths of a sum of random values.
inline void require_right(const AttentionShape& shape, const E4m3ForwardCall<Kokkos::Cuda>& call) {
  const auto query = on_host(call.query), key = on_host(call.key), value = on_host(call.value);
  const auto query_scale = on_host(call.query_scale), key_scale = on_host(call.key_scale), value_scale = on_host(call.value_scale);
  const auto out = on_host(call.out);
  for_each_sample(shape, [&](std::int64_t i, std::int64_t head) {
    const Rows             row(i, i + 1), keys(0, keys_of(shape, i).second);  // blocks of scales begin at the first key: no window
    const Rows             block(i / attention_scale_rows, i / attention_scale_rows + 1);
    const Rows             blocks(0, (keys.second + attention_scale_rows - 1) / attention_scale_rows);
    const HostHeads<float> expected("expected", 1, 1, shape.head_dim);
    const auto             of_query = lse_of(query_scale, block, head), of_key = lse_of(key_scale, blocks, head),
               of_value = lse_of(value_scale, blocks, head);
    AttentionOptions options;
    options.query_scale = of_query;
    options.key_scale   = of_key;
    options.value_scale = of_value;
    Reference::attention_forward(rows_of(query, row, head), rows_of(key, keys, head), rows_of(value, keys, head), expected, std::nullopt,
                                 options);
    require_close("out", rows_of(out, row, head), expected, 0.15);
  });
}

template <class Element>
void require_right(const AttentionShape& shape, const BackwardCall<Element, Kokkos::Cuda>& call) {
  require_right(shape, call.forward);
  const auto query = on_host(call.forward.query), key = on_host(call.forward.key), value = on_host(call.forward.value),
             out = on_host(call.forward.out), grad_out = on_host(call.grad_out), grad_query = on_host(call.grad_query),
             grad_key = on_host(call.grad_key), grad_value = on_host(call.grad_value);
  const auto lse      = on_host(call.forward.lse);
  const auto expected = [&](const Rows& rows, const Rows& keys, const Rows& heads, std::int64_t key_head) {
    struct {
      HostHeads<Element> query, key, value;
    } gradients{HostHeads<Element>("query", rows.second - rows.first, heads.second - heads.first, shape.head_dim),
                HostHeads<Element>("key", keys.second - keys.first, 1, shape.head_dim),
                HostHeads<Element>("value", keys.second - keys.first, 1, shape.head_dim)};
    Reference::attention_backward(rows_of(query, rows, heads), rows_of(key, keys, key_head), rows_of(value, keys, key_head),
                                  rows_of(out, rows, heads), lse_of(lse, rows, heads), rows_of(grad_out, rows, heads), gradients.query,
                                  gradients.key, gradients.value);
    return gradients;
  };
  // A query's gradient needs all of its keys, a key's all of the queries that see it, of every head of its group.
  for_each_sample(shape, [&](std::int64_t i, std::int64_t head) {
    const std::int64_t key_head = shape.key_head(head), group = shape.heads / shape.key_heads;
    const Rows         row(i, i + 1), heads(key_head * group, (key_head + 1) * group);
    const Rows         keys = keys_of(shape, i);
    const Rows         queries(shape.causal ? i : 0, shape.causal ? std::min(i + shape.window, shape.length) : shape.length);
    // a causal query 0 sees one key: its weight is 1, whatever the query
    if (keys.second > 1)
      require_close("grad_query", rows_of(grad_query, row, head), expected(row, keys, Rows(head, head + 1), key_head).query);
    const auto of_key = expected(queries, row, heads, key_head);
    require_close("grad_key", rows_of(grad_key, row, key_head), of_key.key);
    require_close("grad_value", rows_of(grad_value, row, key_head), of_key.value);
  });
}

#endif

}  // namespace Tributary::Benchmark
