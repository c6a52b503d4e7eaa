#pragma once
#include "sm90/attention/gradient_scores.cuh"
#include "sm90/attention/gradient_tile.cuh"
#include "sm90/ptx/barrier.cuh"
#include "sm90/ptx/stmatrix.cuh"
#include "sm90/ptx/wgmma.cuh"

// What a math warp does whichever way the warpgroups divide a block's work: products, words that warps share, and what leaves its
// registers. Offsets are of the team's scratch.

namespace Tributary::Impl::SM90 {

template <class Tile>
class GradientWarp {
 public:
  using Element = typename Tile::Element;

  __device__ GradientWarp(const AttentionBackwardCall& call, GradientShared<Tile>& shared, unsigned char* scratch, int warp, int lane)
      : call_(call), shared_(shared), scratch_(scratch), warp_(warp), lane_(lane) {}

 protected:
  // Elements of a thread: of scores, and of sums of its warpgroup's columns of the gradients of keys or values.
  static constexpr int columns = Tile::wide ? Tile::dim / 2 : Tile::dim, count = Tile::queries / 2, sums = columns / 2;

  __device__ int group() const { return warp_ / 4; }
  /// The first of the warp's 16 keys among the team's.
  __device__ int first_row() const { return (Tile::wide ? warp_ % 4 : warp_) * 16; }

  /// Calls differentiate(piece) for the team's pieces.
  template <class Differentiate>
  __device__ void for_each_piece(const Differentiate& differentiate) const {
    for (RingPosition<2> piece_at;; piece_at.next()) {
      ptx::mbarrier_wait(&shared_.piece_full[piece_at.slot], piece_at.round);
      const GradientPiece& piece = shared_.pieces[piece_at.slot];
      if (piece.batch < 0) break;
      differentiate(piece);
      release(&shared_.piece_empty[piece_at.slot]);
    }
  }

  template <class... Barriers>
  __device__ void release(Barriers*... barriers) const {
    __syncwarp();
    if (lane_ == 0) (ptx::mbarrier_arrive(barriers), ...);
  }
  /// wgmma wants whole warps.
  template <int Stages>
  __device__ void wait(std::uint64_t (&barriers)[Stages], const RingPosition<Stages>& at) const {
    ptx::mbarrier_wait(&barriers[at.slot], at.round);
    __syncwarp();
  }
  __device__ bool cleans() const { return has_rows_to_clean(call_.problem); }
  __device__ void wait_for_keys() {
    ptx::mbarrier_wait(cleans() ? &shared_.keys_clean : &shared_.keys_full, keys_round_);
    keys_round_ ^= 1;
  }
  __device__ void wait_for_queries(const RingPosition<Tile::query_stages>& at) const {
    wait(cleans() ? shared_.queries_clean : shared_.queries_full, at);
  }
  __device__ void wait_for_grad_out(const RingPosition<Tile::grad_out_stages>& at) const {
    wait(cleans() ? shared_.grad_out_clean : shared_.grad_out_full, at);
  }

  __device__ static int queries_at(int slot) { return Tile::queries_offset + slot * Tile::query_bytes; }
  __device__ static int grad_out_at(int slot) { return Tile::grad_out_offset + slot * Tile::query_bytes; }
  __device__ static int scores_at(int slot) { return Tile::scores_offset + slot * Tile::score_bytes; }

  __device__ std::uint32_t address(int offset) const { return ptx::shared_address(scratch_) + static_cast<std::uint32_t>(offset); }

  // Products are issued, not waited for.  Descriptors count in units of 16 bytes.

  /// products (+)= 64 rows of keys or values x rows of queries or gradients of outputs, so many panels of both.
  template <int Panels = Tile::panels>
  __device__ void multiply_rows(float (&products)[count], int rows, int query_rows, bool adds = false) const {
    const std::uint64_t a = ptx::matrix_descriptor<128>(address(rows)), b = ptx::matrix_descriptor<128>(address(query_rows));
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Panels * panel_columns / 16; ++step) {
      const int panel = step / 4, in_panel = step % 4 * 2;
      ptx::Wgmma<Element, Tile::queries>::issue(products, a + static_cast<std::uint64_t>(panel * (Tile::key_panel_bytes / 16) + in_panel),
                                                b + static_cast<std::uint64_t>(panel * (Tile::query_panel_bytes / 16) + in_panel),
                                                adds || step != 0);
    }
    ptx::wgmma_commit_group();
  }

  /// sum += words, a row a key, x the warpgroup's columns of rows of queries or gradients of outputs, which begin there.
  __device__ void multiply_across(float (&sum)[sums], const std::uint32_t (&words)[count / 2], int query_columns) const {
    const std::uint64_t b = ptx::transposed_descriptor(address(query_columns), Tile::query_panel_bytes);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Tile::queries / 16; ++step)
      ptx::WgmmaRegisterA<Element, columns>::issue(sum, words + 4 * step,
                                                   b + static_cast<std::uint64_t>(step * (16 * panel_row_bytes / 16)));
    ptx::wgmma_commit_group();
  }

  /// sum = gradients of the scores of all keys with 64 queries x a panel of keys.
  __device__ void multiply_keys(float (&sum)[32], int scores, int panel) const {
    const std::uint64_t a = ptx::transposed_descriptor(address(scores), Tile::key_panel_bytes);
    const std::uint64_t b = ptx::transposed_descriptor(address(Tile::keys_offset + panel * Tile::key_panel_bytes), Tile::key_panel_bytes);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Tile::keys / 16; ++step) {
      const auto across = static_cast<std::uint64_t>(step * (16 * panel_row_bytes / 16));
      ptx::WgmmaAcross<Element, 64>::issue(sum, a + across, b + across, step != 0);
    }
    ptx::wgmma_commit_group();
  }

  /// Words of this thread's scores to where they are shared from `scores` on, each where `word` says, four an instruction.
  __device__ void store_words(int scores, const std::uint32_t (&words)[count / 2]) const {
    const int           row   = first_row() + lane_ % 16;  // of this lane's eight queries, the first ones or the next ones
    const std::uint32_t place = static_cast<std::uint32_t>((row * panel_row_bytes + (row & 7) * 16) ^ (lane_ / 16 * 16));
#pragma unroll
    for (int i = 0; i < count / 2; i += 4) {
      const std::uint32_t to = address(scores) + i / 16 * Tile::key_panel_bytes + (place ^ (i / 4 % 4 * 32));
      ptx::stmatrix(to, words[i], words[i + 1], words[i + 2], words[i + 3]);
    }
  }

  /// Where word i of this thread's scores lies in what is shared from `scores` on, a multiple of 1024, swizzled as the copy engine would:
  /// eight places, the others lie further by the same for all threads.
  __device__ std::uint32_t* word(int scores, int i) const {
    const int row = first_row() + lane_ / 4, n = i / 2;  // n: which eight queries
    const int at = (row * panel_row_bytes + (row & 7) * 16 + lane_ % 4 * 4) ^ (n % 8 * 16);
    return reinterpret_cast<std::uint32_t*>(scratch_ + scores + n / 8 * Tile::key_panel_bytes + i % 2 * (8 * panel_row_bytes) + at);
  }
  /// The warpgroup's parts of the gradient of queries for the warp that adds them up, in the order of registers, each through a slot.
  template <int Count>
  __device__ void hand_over(const float (&sum)[Count], int adder) {
    constexpr int parts = Count / 32;
    static_assert(parts * Tile::groups == Tile::slots);
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      const int slot = group() * parts + part;
      ptx::mbarrier_wait(&shared_.sums_empty[slot], sums_round_ ^ 1);
      auto* const to = reinterpret_cast<float4*>(scratch_ + Tile::sums_offset) + slot * (gradient_part_floats / 4) + warp_ % 4 * 32 + lane_;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int first = 32 * part + 4 * i;
        to[i * 128]     = {sum[first], sum[first + 1], sum[first + 2], sum[first + 3]};
      }
      ptx::fence_proxy_async();
      release(&shared_.sums_full[adder][slot]);
    }
    sums_round_ ^= 1;
  }

  /// Gradients of a piece's keys and values.
  __device__ void store(const GradientPiece& piece, const float (&grad_key)[sums], const float (&grad_value)[sums],
                        float                value_factor) const {
    store(piece, call_.grad_key, grad_key, call_.problem.scale, call_.problem.head_dim);
    store(piece, call_.grad_value, grad_value, value_factor, call_.problem.value_dim);
  }

  /// The warpgroup's columns of one of them.
  __device__ void store(const GradientPiece& piece, const GradientOutput& to, const float (&sum)[sums], float factor,
                        std::int32_t all_columns) const {
    const int first_column = Tile::wide ? group() * columns : 0;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row() + lane_ / 4 + 8 * r;
      if (row >= piece.keys) continue;
      const std::int64_t at = piece.batch * to.strides[0] + (piece.key_row + row) * to.strides[1] + piece.key_head * to.strides[2];
#pragma unroll
      for (int n = 0; n < columns / 8; ++n)
        store_pair<Element>(to.is_float ? ElementType::float32 : element_type<Element>(), to.data, at,
                            first_column + 8 * n + 2 * (lane_ % 4), all_columns, sum[4 * n + 2 * r] * factor,
                            sum[4 * n + 2 * r + 1] * factor);
    }
  }

  const AttentionBackwardCall& call_;
  GradientShared<Tile>&        shared_;
  unsigned char*               scratch_;
  const int                    warp_, lane_;

 private:
  std::uint32_t keys_round_ = 0, sums_round_ = 0;
};

}  // namespace Tributary::Impl::SM90
