#include <numeric>

#include "CapturedGraph.hpp"
#include "KokkosEvents.hpp"
#include "indexer/IndexerHopperCase.hpp"

// The Hopper level of the indexer: shapes that it takes, against the same brute force as every level's.  In builds without that level
// there is nothing here.

namespace TributaryTest {
namespace {

#if defined(TRIBUTARY_ENABLE_SM90)

class IndexerHopper : public HopperTest {};

template <class Element>
void shapes_from_the_edges() {
  SCOPED_TRACE(seed_text());
  Random random(1);
  // tiles of 8 or 16 queries and 64 keys; buffers of 7168 and 10240 candidates
  const std::vector<std::pair<std::int64_t, std::int64_t>> rows_and_keys = {{1, 1},    {7, 63},   {8, 64},   {9, 65},   {17, 128},
                                                                            {16, 193}, {15, 127}, {33, 700}, {5, 2053}, {1, 5000}};
  for (const auto& [heads, head_dim] : dimensions)
    for (const auto& [queries, keys] : rows_and_keys) {
      const IndexerShape shape{queries % 3 == 0 ? 2 : 1, queries, keys, heads, head_dim};
      expect_exact_every_way(integer_inputs<Element>(random, shape), {}, {1, 64, 192, std::min<std::int64_t>(keys, 2048), 512});
    }
  for (const IndexerShape& shape :
       {IndexerShape{1, 3, 0, 64, 128}, {2, 3, 0, 32, 64}, {2, 0, 9, 32, 64}, {0, 3, 9, 64, 64}, {1, 0, 0, 32, 128}})
    expect_exact_every_way(integer_inputs<Element>(random, shape), {}, {1, 5});
}

TEST_F(IndexerHopper, Bfloat16Shapes) { shapes_from_the_edges<bfloat16_t>(); }
TEST_F(IndexerHopper, HalfShapes) { shapes_from_the_edges<half_t>(); }
TEST_F(IndexerHopper, Float8Shapes) { shapes_from_the_edges<float8_e4m3_t>(); }

template <class Element>
void random_shapes_and_masks(std::uint32_t stream, int count) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (int i = 0; i < count; ++i) {
    const auto& [heads, head_dim] = random.any_of(dimensions);
    const IndexerShape shape{random.integer(1, 3), random.integer(1, 60), random.integer(0, 900), heads, head_dim};
    Mask               mask;
    switch (random.integer(0, 3)) {
      case 0: mask.range = random_range(random, shape); break;
      case 1: break;
      default:
        mask.ratio        = random.integer<std::int32_t>(1, 5);
        mask.query_offset = random.integer<std::int32_t>(0, 2000);
        if (random.coin())
          for (std::int64_t b = 0; b < shape.batch; ++b) mask.query_offsets.push_back(random.integer<std::int32_t>(0, 900));
    }
    expect_exact(
        level, integer_inputs<Element>(random, shape), mask, {random.integer(1, 64), random.integer(1, 1000)},
        {.order = random.coin() ? TopkOrder::by_score : TopkOrder::by_index, .key_splits = random.coin() ? few : random.integer(1, 5)});
  }
}

TEST_F(IndexerHopper, RandomShapesAndMasksBfloat16) { random_shapes_and_masks<bfloat16_t>(2, 16); }
TEST_F(IndexerHopper, RandomShapesAndMasksHalf) { random_shapes_and_masks<half_t>(3, 8); }
TEST_F(IndexerHopper, RandomShapesAndMasksFloat8) { random_shapes_and_masks<float8_e4m3_t>(4, 16); }

/// Every team takes many items after each other, from long rows to short ones.
template <class Element>
void many_items_a_team(std::uint32_t stream, std::int64_t heads) {
  SCOPED_TRACE(seed_text());
  Random     random(stream);
  const auto in = integer_inputs<Element>(random, {1, 9001, 4500, heads, 64});
  for (const Mask& mask : {Mask{.ratio = 2}, Mask{}}) {
    const IndexerCall<Element> hopper(level, in, mask), portable(Level::portable, in, mask);
    for (const std::int64_t k : {1, 300, 2048}) EXPECT_TRUE(same_rows(hopper.topk(k), portable.topk(k))) << "k " << k;
  }
}

TEST_F(IndexerHopper, ManyItemsATeamBfloat16) { many_items_a_team<bfloat16_t>(15, 64); }
TEST_F(IndexerHopper, ManyItemsATeamFloat8) { many_items_a_team<float8_e4m3_t>(16, 32); }

TEST_F(IndexerHopper, PackedSequences) {
  SCOPED_TRACE(seed_text());
  Random random(5);
  for (int i = 0; i < 10; ++i) {
    const auto& [heads, head_dim] = random.any_of(dimensions);
    Mask mask{.ratio = random.integer<std::int32_t>(0, 3), .query_offset = random.integer<std::int32_t>(0, 60)};
    mask.cu_seqlens_q = mask.cu_seqlens_k = {0};
    for (int b = 0; b < 6; ++b) {
      mask.cu_seqlens_q.push_back(mask.cu_seqlens_q.back() + random.integer<std::int32_t>(0, 21));
      mask.cu_seqlens_k.push_back(mask.cu_seqlens_k.back() + random.integer<std::int32_t>(0, 150));
      if (i % 2 == 0 && mask.ratio > 0) mask.query_offsets.push_back(random.integer<std::int32_t>(0, 90));
    }
    // rows and keys after the last sequence belong to none
    const IndexerShape shape{1, mask.cu_seqlens_q.back() + 2, mask.cu_seqlens_k.back() + 3, heads, head_dim};
    expect_exact(level, integer_inputs<bfloat16_t>(random, shape), mask, {1, 40, 200}, {.key_splits = random.integer(0, 2)});
  }
}

TEST_F(IndexerHopper, HostileIndexArraysAreNeverFollowed) {
  SCOPED_TRACE(seed_text());
  Random                          random(6);
  const std::vector<std::int32_t> hostile = {-2147483647 - 1, -5, -1, 0, 1, 17, 40, 41, 60, 61, 1 << 30, 2147483647};
  const auto                      in      = integer_inputs<bfloat16_t>(random, {1, 40, 60, 64, 64});
  for (int i = 0; i < 15; ++i) {
    Mask mask{.ratio = random.integer<std::int32_t>(0, 2)};
    for (int b = 0; b < 5; ++b) {
      mask.cu_seqlens_q.push_back(random.any_of(hostile));
      mask.cu_seqlens_k.push_back(random.any_of(hostile));
      if (b > 0 && mask.ratio > 0) mask.query_offsets.push_back(random.any_of(hostile));
    }
    const IndexerCall<bfloat16_t> call(level, in, mask, {.key_splits = random.integer(0, 3)});
    expect_keys_that_exist(call, 70);
  }
}

TEST_F(IndexerHopper, WarpgroupsTakeTurnsAtAnyNumberOfKeyTiles) {
  SCOPED_TRACE(seed_text());
  Random random(19);
  for (std::int64_t tiles = 1; tiles <= 13; ++tiles) {
    const auto in       = integer_inputs<bfloat16_t>(random, {1, 1 + tiles % 4, 64 * tiles - 3, 64, 128});
    const auto expected = expected_scores(in, {}, in.shape().keys);
    for (const std::int64_t splits : {0, 1, 2, 5}) {
      const IndexerCall<bfloat16_t> call(level, in, {}, {.key_splits = splits});
      EXPECT_TRUE(same_bits(call.score(in.shape().keys), expected)) << tiles << " tiles, splits " << splits;
    }
  }
}

/// More work items than SMs: a team goes from tiles with queries for one warpgroup to tiles with queries for both.
TEST_F(IndexerHopper, TilesWithFewAndWithManyQueriesFollowOneAnother) {
  SCOPED_TRACE(seed_text());
  Random     random(20);
  const auto in       = integer_inputs<bfloat16_t>(random, {60, 12, 450, 64, 64});
  const Mask mask     = {.ratio = 1, .query_offset = 435};
  const auto expected = expected_scores(in, mask, 450);
  for (const std::int64_t splits : {1, 2, 3, 7})
    EXPECT_TRUE(same_bits(IndexerCall<bfloat16_t>(level, in, mask, {.key_splits = splits}).score(450), expected)) << splits << " splits";
}

std::vector<std::int32_t> visiting_order(std::int32_t tiles) {
  std::int32_t drop = 0;
  while ((tiles >> drop) > 7) ++drop;
  const std::int32_t period = ((tiles + (1 << drop) - 1) >> drop) << drop;
  auto               stride = std::max(1, static_cast<std::int32_t>(0.6180339887f * static_cast<float>(period)));
  while (std::gcd(stride, period) != 1) ++stride;
  std::vector<std::int32_t> order;
  for (std::int32_t at = 0; static_cast<std::int32_t>(order.size()) < tiles; at = (at + stride) % period)
    if (at < tiles) order.push_back(at);
  return order;
}

template <class Element>
void orders_that_fill_the_buffers(std::int64_t heads, std::int64_t head_dim) {
  SCOPED_TRACE(seed_text());
  Random             random(7);
  const std::int32_t keys = 30000, tiles = (keys + 63) / 64;
  using Values = std::vector<std::int32_t>;
  Values ascending(keys), descending(keys), equal(keys, 77), sixteen(keys), shuffled(keys), worst(keys), half_crowded(keys);
  for (std::int32_t s = 0; s < keys; ++s) ascending[s] = s, descending[s] = keys - s, sixteen[s] = random.integer<std::int32_t>(0, 15) * 16;
  shuffled = ascending;
  for (std::int32_t s = keys - 1; s > 0; --s) std::swap(shuffled[s], shuffled[random.integer<std::size_t>(0, s)]);
  for (std::int32_t s = 0; s < keys; ++s) half_crowded[s] = s % 32 == 0 ? 1000 + s / 32 : s % 64;
  // the tiles visited later score higher: every key beats the ones before
  const auto   order = visiting_order(tiles);
  std::int32_t next  = 0;
  for (const std::int32_t tile : order)
    for (std::int32_t s = tile * 64; s < std::min(keys, (tile + 1) * 64); ++s) worst[s] = next++;
  int number = 0;
  for (const Values* const values : {&ascending, &descending, &equal, &sixteen, &shuffled, &worst, &half_crowded}) {
    SCOPED_TRACE("values " + std::to_string(number++));
    const auto in = inputs_with_scores<Element>(*values, 17, heads, head_dim);
    for (const std::int64_t splits : {few, fused}) {
      const IndexerCall<Element> call(level, in, {}, {.key_splits = splits});
      for (const std::int64_t k : {1, 100, 512, 1024, 2048})
        EXPECT_TRUE(same_rows(call.topk(k), expected_of(*values, 17, k))) << "k " << k << ", splits " << splits;
      const IndexerCall<Element> by_index(level, in, {}, {.order = TopkOrder::by_index, .key_splits = splits});
      for (const std::int64_t k : {512, 2048})
        EXPECT_TRUE(same_rows(by_index.topk(k), expected_of(*values, 17, k, TopkOrder::by_index)))
            << "by index, k " << k << ", splits " << splits;
    }
    const IndexerCall<Element> split(level, in, {}, {.key_splits = 3});
    EXPECT_TRUE(same_rows(split.topk(300), expected_of(*values, 17, 300))) << "split";
  }
}

TEST_F(IndexerHopper, OrdersThatFillTheBuffersBfloat16) { orders_that_fill_the_buffers<bfloat16_t>(64, 128); }
TEST_F(IndexerHopper, OrdersThatFillTheBuffersFloat8) { orders_that_fill_the_buffers<float8_e4m3_t>(64, 128); }
TEST_F(IndexerHopper, OrdersThatFillTheBuffers32Heads) { orders_that_fill_the_buffers<bfloat16_t>(32, 64); }

TEST_F(IndexerHopper, NanAndInfinity) {
  SCOPED_TRACE(seed_text());
  Random random(8);
  for (const auto& [heads, head_dim] : dimensions) {
    auto in = integer_inputs<bfloat16_t>(random, {1, 20, 600, heads, head_dim});
    for (int i = 0; i < 60; ++i)
      in.key(0, random.integer(0, 599), random.integer(0, head_dim - 1)) =
          bfloat16_t(random.any_of(std::vector<float>{nan, infinity, -infinity}));
    for (int i = 0; i < 6; ++i)
      in.query(0, random.integer(0, 19), random.integer(0, heads - 1), random.integer(0, head_dim - 1)) =
          bfloat16_t(random.any_of(std::vector<float>{nan, infinity, -infinity}));
    in.weights(0, 3, 0) = nan;
    in.weights(0, 4, 1) = infinity;
    // a NaN's bits are its own: top-k alone is compared
    const auto expected = expected_scores(in, {}, 600);
    for (const std::int64_t splits : {few, fused})
      for (const std::int64_t k : {40, 600})
        EXPECT_TRUE(
            same_rows(IndexerCall<bfloat16_t>(level, in, {}, {.key_splits = splits}).topk(k), expected_indexer_topk(expected, {}, 600, k)))
            << "k " << k << ", splits " << splits;
  }
  for (const std::int64_t queries : {1, 3, 6}) {  // many, among many keys
    auto in = integer_inputs<half_t>(random, {1, queries, 20000, 64, 64});
    for (int i = 0; i < 9000; ++i)
      in.key(0, random.integer(0, 19999), random.integer(0, 63)) = half_t(random.any_of(std::vector<float>{nan, infinity, -infinity}));
    const auto expected = expected_scores(in, {}, 20000);
    for (const std::int64_t k : {1, 512, 2048})
      EXPECT_TRUE(same_rows(IndexerCall<half_t>(level, in).topk(k), expected_indexer_topk(expected, {}, 20000, k))) << "k " << k;
  }
  auto       in   = integer_inputs<float8_e4m3_t>(random, {1, 9, 5000, 64, 128});
  const auto some = [&] { return random.integer(0, 4999); };
  for (int i = 0; i < 4900; ++i) in.key(0, some(), 0).bits = 0x7f;  // nearly every key is NaN
  const auto expected = expected_scores(in, {}, 5000);
  for (const std::int64_t splits : {few, fused})
    for (const std::int64_t k : {64, 2048})
      EXPECT_TRUE(same_rows(IndexerCall<float8_e4m3_t>(level, in, {}, {.key_splits = splits}).topk(k),
                            expected_indexer_topk(expected, {}, 5000, k)))
          << "k " << k << ", splits " << splits;
}

TEST_F(IndexerHopper, ScoresUpToInfinityBesideNegativeOnes) {
  SCOPED_TRACE(seed_text());
  Random             random(15);
  const float        weight = 0x1p120f;  // 2^8 times it is infinite
  const IndexerShape shape{1, 9, 700, 64, 128};
  auto               in = integer_inputs<bfloat16_t>(random, shape);
  for (auto* values : {&in.query.values, &in.key.values}) std::fill(values->begin(), values->end(), bfloat16_t(0.0f));
  std::fill(in.weights.values.begin(), in.weights.values.end(), 0.0f);
  for (std::int64_t t = 0; t < 9; ++t)
    for (const int head : {0, 1}) {
      in.query(0, t, head, head) = bfloat16_t(1.0f);
      in.weights(0, t, head)     = head == 0 ? weight : -weight;
    }
  for (std::int64_t s = 0; s < 700; ++s)
    in.key(0, s, random.integer(0, 3) == 0 ? 1 : 0) =
        bfloat16_t(random.any_of(std::vector<float>{0.0f, 1.0f, 100.0f, 128.0f, 150.0f, 200.0f, 255.0f, 256.0f}));
  // under the second mask legal keys of score -infinity come before the padding
  for (const Mask& mask : {Mask{}, Mask{.ratio = 1, .query_offset = 290}}) {
    const auto scores = expected_scores(in, mask, 700);
    for (const TopkOrder order : {TopkOrder::by_score, TopkOrder::by_index})
      for (const std::int64_t splits : {few, fused})
        for (const std::int64_t k : {1, 16, 33, 100, 300, 512})
          EXPECT_TRUE(same_rows(IndexerCall<bfloat16_t>(level, in, mask, {.order = order, .key_splits = splits}).topk(k),
                                expected_indexer_topk(scores, mask, 700, k, order)))
              << "k " << k << ", splits " << splits;
  }
}

TEST_F(IndexerHopper, ScoresAreCloseToTheFormula) {
  for (const auto& [heads, head_dim] : dimensions)
    for (const Mask& mask : {Mask{}, Mask{.ratio = 1, .query_offset = 60}}) {
      expect_close<bfloat16_t>(level, {2, 9, 130, heads, head_dim}, mask, 40);
      expect_close<half_t>(level, {1, 17, 257, heads, head_dim}, mask, 40);
    }
}

/// FP8 products are added up in fewer bits than float's.  An H100 is off by 2^-15.8 of the sum of magnitudes here.
TEST_F(IndexerHopper, Float8ScoresAreCloseToTheFormula) {
  SCOPED_TRACE(seed_text());
  Random random(9);
  double worst = 0;
  for (const auto& [heads, head_dim] : dimensions) {
    const IndexerShape shape{1, 9, 300, heads, head_dim};
    const auto         in     = normal_inputs<float8_e4m3_t>(random, shape);
    const auto         scores = IndexerCall<float8_e4m3_t>(level, in).score(300);
    for (std::int64_t t = 0; t < 9; ++t)
      for (std::int64_t s = 0; s < 300; ++s) {
        double magnitude = 0;
        for (std::int64_t h = 0; h < heads; ++h) {
          double dot = 0;
          for (std::int64_t d = 0; d < head_dim; ++d)
            dot += std::abs(static_cast<double>(static_cast<float>(in.query(0, t, h, d))) * static_cast<float>(in.key(0, s, d)));
          magnitude += std::abs(in.weights(0, t, h)) * in.query_scale(0, t, h) * in.key_scale(0, s) * dot;
        }
        worst = std::max(worst, std::abs(scores(0, t, s) - indexer_formula(in, 0, t, s)) / magnitude);
      }
  }
  EXPECT_LE(worst, 0x1p-14);
}

template <class Element>
void neither_splits_nor_batches_change_a_bit() {
  SCOPED_TRACE(seed_text());
  Random     random(10);
  const auto in     = normal_inputs<Element>(random, {2, 37, 3000, 64, 128});
  const Mask mask   = {.ratio = 1, .query_offset = 2900};
  const Rows rows   = IndexerCall<Element>(level, in, mask, {.key_splits = 1}).topk(200);
  const auto scores = IndexerCall<Element>(level, in, mask).score(3000);
  EXPECT_TRUE(same_rows(rows, expected_indexer_topk(scores, mask, 3000, 200)));
  for (const std::int64_t splits : {0, 2, 7, 40})
    EXPECT_TRUE(same_rows(IndexerCall<Element>(level, in, mask, {.key_splits = splits}).topk(200), rows)) << splits << " splits";
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(same_rows(IndexerCall<Element>(level, in, mask, {.key_splits = 1}).topk(200), rows));
  for (const std::int64_t t : {0, 8, 36}) {
    IndexerInputs<Element> one({1, 1, 3000, 64, 128});
    for (std::int64_t h = 0; h < 64; ++h) {
      one.weights(0, 0, h) = in.weights(1, t, h);
      if constexpr (one.scaled) one.query_scale(0, 0, h) = in.query_scale(1, t, h);
      for (std::int64_t d = 0; d < 128; ++d) one.query(0, 0, h, d) = in.query(1, t, h, d);
    }
    for (std::int64_t s = 0; s < 3000; ++s) {
      if constexpr (one.scaled) one.key_scale(0, s) = in.key_scale(1, s);
      for (std::int64_t d = 0; d < 128; ++d) one.key(0, s, d) = in.key(1, s, d);
    }
    const Rows alone = IndexerCall<Element>(level, one, {.ratio = 1, .query_offset = static_cast<std::int32_t>(2900 + t)}).topk(200);
    for (std::int64_t i = 0; i < 200; ++i) {
      ASSERT_EQ(rows.indices(1, t, i), alone.indices(0, 0, i));
      ASSERT_EQ(bits_of(rows.scores(1, t, i)), bits_of(alone.scores(0, 0, i)));
    }
  }
}
TEST_F(IndexerHopper, NeitherSplitsNorBatchesChangeABitOfBfloat16) { neither_splits_nor_batches_change_a_bit<bfloat16_t>(); }
TEST_F(IndexerHopper, NeitherSplitsNorBatchesChangeABitOfFloat8) { neither_splits_nor_batches_change_a_bit<float8_e4m3_t>(); }

TEST_F(IndexerHopper, StridedViews) {
  SCOPED_TRACE(seed_text());
  Random                        random(11);
  const auto                    wide = integer_inputs<bfloat16_t>(random, {2, 20, 150, 65, 136});
  const IndexerCall<bfloat16_t> call(level, wide);
  const Kokkos::pair            rows(1, 19), keys(3, 143), heads(1, 65), dims(8, 136);
  IndexerInputs<bfloat16_t>     in({2, 18, 140, 64, 128});
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t t = 0; t < 18; ++t)
      for (std::int64_t h = 0; h < 64; ++h) {
        in.weights(b, t, h) = wide.weights(b, t + 1, h + 1);
        for (std::int64_t d = 0; d < 128; ++d) in.query(b, t, h, d) = wide.query(b, t + 1, h + 1, d + 8);
      }
    for (std::int64_t s = 0; s < 140; ++s)
      for (std::int64_t d = 0; d < 128; ++d) in.key(b, s, d) = wide.key(b, s + 3, d + 8);
  }
  const auto expected = expected_indexer_topk(expected_scores(in, {}, 140), {}, 140, 50);
  for (const std::int64_t splits : {few, fused}) {
    auto options       = call.options;
    options.key_splits = splits;
    const View<std::int32_t, 3> all_indices("indices", 2, 20, 60);
    const View<float, 3>        all_scores("scores", 2, 20, 60);
    Kokkos::deep_copy(all_indices, -9);
    const auto chosen  = Kokkos::pair(4, 54);
    const auto indices = Kokkos::subview(all_indices, Kokkos::ALL, rows, chosen);
    Tributary::indexer_topk(Space{}, Kokkos::subview(call.query, Kokkos::ALL, rows, heads, dims),
                            Kokkos::subview(call.key, Kokkos::ALL, keys, dims), Kokkos::subview(call.weights, Kokkos::ALL, rows, heads),
                            indices, Kokkos::subview(all_scores, Kokkos::ALL, rows, chosen), options);
    const auto got = from_space<3>(all_indices);
    for (std::int64_t b = 0; b < 2; ++b)
      for (std::int64_t t = 0; t < 20; ++t)
        for (std::int64_t j = 0; j < 60; ++j) {
          const bool inside = t >= 1 && t < 19 && j >= 4 && j < 54;
          ASSERT_EQ(got(b, t, j), inside ? expected.indices(b, t - 1, j - 4) : -9) << "splits " << splits;
        }
  }
}

TEST_F(IndexerHopper, WhatItCannotTakeIsRefusedAndLeftToThePortableLevel) {
  Random     random(12);
  const auto refused = [&](const auto& in, std::int64_t top_k, std::string_view why) {
    using Element = typename std::remove_cvref_t<decltype(in.key.values)>::value_type;
    expect_refusal([&] { IndexerCall<Element>(level, in).topk(top_k); }, {"indexer_topk", "no Hopper level", why});
    const auto [batch, queries, keys, heads, head_dim] = in.shape();
    EXPECT_TRUE(same_rows(IndexerCall<Element>(Level::automatic, in).topk(top_k),
                          expected_indexer_topk(expected_scores(in, {}, keys), {}, keys, top_k)));
  };
  refused(integer_inputs<bfloat16_t>(random, {1, 3, 50, 16, 64}), 5, "16");
  refused(integer_inputs<bfloat16_t>(random, {1, 3, 50, 64, 96}), 5, "96");
  refused(integer_inputs<float>(random, {1, 3, 50, 64, 64}), 5, "float");
  refused(integer_inputs<bfloat16_t>(random, {1, 3, 50, 64, 64}), 2049, "2049");
  const auto                    wide = integer_inputs<bfloat16_t>(random, {1, 3, 50, 64, 129});
  const IndexerCall<bfloat16_t> call(level, wide);
  const auto                    part = [](const auto& view) {
    if constexpr (std::remove_cvref_t<decltype(view)>::rank() == 4)
      return Kokkos::subview(view, Kokkos::ALL, Kokkos::ALL, Kokkos::ALL, Kokkos::pair(1, 129));
    else
      return Kokkos::subview(view, Kokkos::ALL, Kokkos::ALL, Kokkos::pair(1, 129));
  };
  const View<std::int32_t, 3> indices("indices", 1, 3, 5);
  expect_refusal(
      [&] { Tributary::indexer_topk(Space{}, part(call.query), part(call.key), call.weights, indices, std::nullopt, call.options); },
      {"indexer_topk", "no Hopper level", "16 bytes"});
  // The same query three times.
  const auto                    one = integer_inputs<bfloat16_t>(random, {1, 1, 50, 64, 64});
  const IndexerCall<bfloat16_t> single(level, one);
  const Kokkos::View<bfloat16_t****, Kokkos::LayoutStride, Kokkos::Device<Space, Memory>> repeated(
      single.query.data(), Kokkos::LayoutStride(1, 64 * 64, 3, 0, 64, 64, 64, 1));
  expect_refusal(
      [&] {
        Tributary::indexer_topk(Space{}, repeated, single.key, View<float, 3>("weights", 1, 3, 64), indices, std::nullopt, single.options);
      },
      {"indexer_topk", "no Hopper level", "query has a stride of 0 over 3 entries"});
}

TEST_F(IndexerHopper, WithAWorkspaceOnlyTheCallersInstanceIsUsed) {
  const Space                 exec = another_instance();
  Random                      random(13);
  const auto                  in = integer_inputs<bfloat16_t>(random, {1, 50, 4000, 64, 128});
  const View<std::int32_t, 3> indices("indices", 1, 50, 64);
  const View<float, 3>        scores("scores", 1, 50, 4000);
  for (const std::int64_t splits : {0, 1, 3}) {
    const IndexerCall<bfloat16_t> call(level, in, {.ratio = 1, .query_offset = 3000}, {.key_splits = splits});
    const View<std::byte, 1>      workspace(
             "workspace", Tributary::indexer_topk_workspace_size(exec, call.query, call.key, call.weights, indices, std::nullopt, call.options));
    expect_stays_on_instance(
        exec, [&] { Tributary::indexer_topk(exec, call.query, call.key, call.weights, indices, std::nullopt, call.options, workspace); });
    expect_stays_on_instance(exec,
                             [&] { Tributary::indexer_score(exec, call.query, call.key, call.weights, scores, call.options, workspace); });
  }
}

TEST_F(IndexerHopper, TheWorkspaceIsBoundedWhateverTheQueriesAndKeys) {
  // extents alone matter: Views of no memory
  const auto bytes = [](std::int64_t queries, std::int64_t keys, std::int64_t top_k) {
    const Kokkos::View<bfloat16_t***, Kokkos::LayoutRight, Memory, Kokkos::MemoryUnmanaged>  query(nullptr, queries, 64, 128);
    const Kokkos::View<bfloat16_t**, Kokkos::LayoutRight, Memory, Kokkos::MemoryUnmanaged>   key(nullptr, keys, 128);
    const Kokkos::View<float**, Kokkos::LayoutRight, Memory, Kokkos::MemoryUnmanaged>        weights(nullptr, queries, 64);
    const Kokkos::View<std::int32_t**, Kokkos::LayoutRight, Memory, Kokkos::MemoryUnmanaged> indices(nullptr, queries, top_k);
    return Tributary::indexer_topk_workspace_size(Space{}, query, key, weights, indices, std::nullopt, {.level = level});
  };
  EXPECT_EQ(bytes(4096, 1024, 512), bytes(1048576, 262144, 512));
  // where queries are few the scores are stored, in 32 MiB at most
  EXPECT_LT(bytes(1, 262144, 512), 2'000'000u);
  for (const std::int64_t top_k : {1, 512, 2048})
    for (const auto& [queries, keys] : std::vector<std::pair<std::int64_t, std::int64_t>>{
             {1, 262144}, {16, 262144}, {32, 262144}, {1, 8000000}, {132, 63000}, {528, 15000}, {528, 7}, {528, 0}})
      EXPECT_LT(bytes(queries, keys, top_k), 48'000'000u) << queries << " queries, " << keys << " keys, k " << top_k;
  EXPECT_LT(bytes(1048576, 262144, 512), 64'000'000u);
  EXPECT_LT(bytes(1048576, 262144, 1024), 64'000'000u);
  EXPECT_LT(bytes(1048576, 262144, 2048), 90'000'000u);
}

void expect_replays_read_the_inputs(std::int64_t splits, std::int64_t queries) {
  SCOPED_TRACE("splits " + std::to_string(splits) + ", " + std::to_string(queries) + " queries");
  Random                        random(14);
  const IndexerShape            shape{1, queries, 3000, 64, 128};
  const Space                   exec = another_instance();
  const IndexerCall<bfloat16_t> call(level, integer_inputs<bfloat16_t>(random, shape), {.ratio = 1, .query_offset = 2000},
                                     {.key_splits = splits});
  const View<std::int32_t, 3>   indices("indices", 1, queries, 100);
  const View<float, 3>          scores("scores", 1, queries, 100);
  const View<std::byte, 1>      workspace(
           "workspace", Tributary::indexer_topk_workspace_size(exec, call.query, call.key, call.weights, indices, scores, call.options));
  const auto run = [&] { Tributary::indexer_topk(exec, call.query, call.key, call.weights, indices, scores, call.options, workspace); };
  const CapturedGraph graph(exec, run);
  for (int i = 0; i < 3; ++i) {
    const auto in = integer_inputs<bfloat16_t>(random, shape);
    Kokkos::deep_copy(call.query, in_space(in.query));
    Kokkos::deep_copy(call.key, in_space(in.key));
    Kokkos::deep_copy(call.weights, in_space(in.weights));
    graph.launch();
    const Mask mask{.ratio = 1, .query_offset = 2000};
    const auto expected = expected_indexer_topk(expected_scores(in, mask, 3000), mask, 3000, 100);
    EXPECT_EQ(from_space<3>(indices).values, expected.indices.values);
    EXPECT_EQ(from_space<3>(scores).values, expected.scores.values);
  }
}

TEST_F(IndexerHopper, ACapturedCallReadsTheInputsOfItsReplay) {
  for (const std::int64_t queries : {1, 3, 6, 40}) expect_replays_read_the_inputs(few, queries);
  expect_replays_read_the_inputs(2, 40);
}

#endif

}  // namespace
}  // namespace TributaryTest
