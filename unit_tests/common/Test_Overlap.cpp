#include <bitset>
#include <cstdint>

#include "Support.hpp"
#include "common/check.hpp"

// Which arrays overlap.

namespace TributaryTest {
namespace {

using Tributary::Impl::Footprint;
using Tributary::Impl::footprint;
using Tributary::Impl::overlap;
using Tributary::Impl::Tensor;

char room[1024];

using Bytes = std::bitset<sizeof room>;

Footprint random_footprint(Random& random) {
  Footprint made;
  made.begin         = room + random.integer(0, 60);
  made.element_bytes = std::int64_t{1} << random.integer(0, 2);
  made.rank          = random.integer(0, 4);
  for (int d = 0; d < made.rank; ++d) made.extents[d] = random.integer(2, 4), made.strides[d] = random.integer(1, 24);
  return made;
}

Bytes bytes_of(const Footprint& of, int d = 0, std::int64_t at = 0) {
  Bytes bytes;
  if (d < of.rank) {
    for (std::int64_t k = 0; k < of.extents[d]; ++k) bytes |= bytes_of(of, d + 1, at + k * of.strides[d]);
  } else {
    for (std::int64_t byte = 0; byte < of.element_bytes; ++byte) bytes.set(static_cast<std::size_t>(of.begin - room + at + byte));
  }
  return bytes;
}

TEST(Overlap, IsThatOfTheBytes) {
  SCOPED_TRACE(seed_text());
  Random random(400);
  int    apart = 0;
  for (int n = 0; n < 20000; ++n) {
    const Footprint a = random_footprint(random), b = random_footprint(random);
    const bool      expected = (bytes_of(a) & bytes_of(b)).any();
    ASSERT_EQ(overlap(a, b), expected) << n;
    ASSERT_EQ(overlap(b, a), expected) << n;
    apart += expected ? 0 : 1;
  }
  EXPECT_GT(apart, 2000);
}

/// Part `which` of [2, 1000, 3, 4, 64], moved by so many floats.
Footprint part(int which, std::int64_t moved = 0) {
  Tensor<float, 4> tensor;
  tensor.data                   = reinterpret_cast<float*>(std::uintptr_t{1} << 40) + which * 256 + moved;
  const std::int64_t extents[4] = {2, 1000, 4, 64}, strides[4] = {768000, 768, 64, 1};
  for (int d = 0; d < 4; ++d) tensor.extents[d] = extents[d], tensor.strides[d] = strides[d];
  return footprint(tensor, sizeof(float));
}

TEST(Overlap, RowsOfOneArrayMayLieBetweenThoseOfAnother) {
  for (int one = 0; one < 3; ++one)
    for (int other = 0; other < 3; ++other) {
      EXPECT_EQ(overlap(part(one), part(other)), one == other);
      if (other == one + 1) {
        EXPECT_TRUE(overlap(part(one), part(other, -1)));
        EXPECT_TRUE(overlap(part(one, 1), part(other)));
      }
    }
}

TEST(Overlap, NothingOverlapsNothing) {
  EXPECT_FALSE(overlap(Footprint{}, part(0)));
  EXPECT_FALSE(overlap(part(0), Footprint{}));
  Tensor<float, 4> empty;
  empty.data = reinterpret_cast<float*>(room);
  for (int d = 0; d < 4; ++d) empty.extents[d] = d, empty.strides[d] = 1;
  EXPECT_FALSE(overlap(footprint(empty, 4), footprint(empty, 4)));
}

TEST(Overlap, IsAssumedWhereTheSearchWouldBeLong) {
  // even places here and odd ones there, which no range of places shows
  Footprint even, odd;
  even.begin         = room;
  odd.begin          = room + 1;
  even.element_bytes = odd.element_bytes = 1;
  even.rank = odd.rank             = 4;
  const std::int64_t strides[2][4] = {{20002, 20014, 20054, 20066}, {20078, 20098, 20126, 20134}};
  for (int d = 0; d < 4; ++d) {
    even.extents[d] = odd.extents[d] = 1000;
    even.strides[d]                  = strides[0][d];
    odd.strides[d]                   = strides[1][d];
  }
  EXPECT_TRUE(overlap(even, odd));
}

}  // namespace
}  // namespace TributaryTest
