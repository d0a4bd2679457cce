// Puts a block of a KVarN record into shared memory as halves: background copies bring its codes into their own stage,
// one block ahead; then the block's threads turn them into the chunks of prefill_tile.cuh.
//
// A code becomes a half exactly: 1024 + code has the bits 0x6400 + code. (code * a + b) * c is a fused product and a
// product of halves, two at a time. Each rounds by 2^-11 at most, as the result would anyway, and as the weights of the
// values do. Scales are read from the record itself: 128 tokens share them, so they are in the first cache.
//
//   stage   key codes [dim][pieces] and value codes [tokens][dim], in pieces of 16 bytes as in the record. The keys'
//           pieces are swizzled: a channel has 1 to 4 of them, each with key_piece_tokens tokens, at most 64 in a stage
#pragma once

#include "kernels/attention/prefill_tile.cuh"
#include "layout/kvarn_record.h"

namespace ew {

// The number of halves of the block in a piece of 16 bytes of a channel's codes, and of pieces a channel.
template <class Shape, int kBits>
struct KeyPieces {
  static constexpr int codes = 128 / kBits;  // in 16 bytes
  static constexpr int tokens = codes < Shape::tokens ? codes : Shape::tokens;
  static constexpr int count = Shape::tokens / tokens;
};

// Pairs of halves that are the 8 codes in the lowest 8 kBits bits of words: (0, 1), (2, 3), ...
template <int kBits>
EW_DEVICE void codes_as_halves(const std::uint32_t* words, std::uint32_t (&pairs)[4]) {
  constexpr std::uint32_t kOffset = 0x64006400u;  // 1024, twice
  if constexpr (kBits == 8) {
    EW_UNROLL
    for (int i = 0; i < 4; ++i) pairs[i] = byte_permute(words[i / 2], kOffset, i % 2 == 0 ? 0x5150 : 0x5352);
  } else {
    // codes 0 to 3 in the lower 16 bits, 4 to 7 in the upper ones; then codes i and i + 4 come together
    const std::uint32_t word = kBits == 4 ? words[0] : byte_permute(words[0], 0, 0x4140);
    constexpr std::uint32_t kMask = ((1u << kBits) - 1) * 0x00010001u;
    std::uint32_t apart[4];
    EW_UNROLL
    for (int i = 0; i < 4; ++i) apart[i] = ((word >> (i * kBits)) & kMask) | kOffset;
    EW_UNROLL
    for (int i = 0; i < 2; ++i) {
      pairs[i] = byte_permute(apart[2 * i], apart[2 * i + 1], 0x5410);
      pairs[i + 2] = byte_permute(apart[2 * i], apart[2 * i + 1], 0x7632);
    }
  }
  EW_UNROLL
  for (int i = 0; i < 4; ++i) pairs[i] = half2_sub(pairs[i], kOffset);
}

EW_DEVICE std::uint32_t twice(std::uint16_t half) { return pack_halves(half, half); }

// 8 elements of a row: a and b are the row's, twice; c: of the 8 columns.
template <int kBits>
EW_DEVICE Words4 decoded(const std::uint32_t* words, std::uint32_t a, std::uint32_t b, const std::uint16_t* c) {
  const Words4 columns = *reinterpret_cast<const Words4*>(c);
  std::uint32_t pairs[4];
  codes_as_halves<kBits>(words, pairs);
  Words4 result;
  EW_UNROLL
  for (int i = 0; i < 4; ++i) result.x[i] = half2_mul(half2_fma(pairs[i], a, b), columns.x[i]);
  return result;
}

// Starts copies of the codes of a block from `slot` on.
template <class Shape, int kBits>
EW_DEVICE void stage_keys(const CodedSide& side, int slot, unsigned char* to) {
  using Pieces = KeyPieces<Shape, kBits>;
  const unsigned char* from = side.codes + slot * kBits / 8 / 16 * 16;
  EW_ROLLED
  for (int i = thread_index(); i < Shape::dim * Pieces::count; i += kPrefillThreads) {
    const int channel = i / Pieces::count, piece = i % Pieces::count;
    copy_async_16(to + 16 * swizzled<Pieces::count>(channel, piece), from + channel * (16 * kBits) + 16 * piece);
  }
}

template <class Shape, int kBits>
EW_DEVICE void stage_values(const CodedSide& side, int slot, unsigned char* to) {
  constexpr int kRow = Shape::dim * kBits / 8;
  EW_ROLLED
  for (int i = thread_index(); i < Shape::tokens * kRow / 16; i += kPrefillThreads)
    copy_async_16(to + 16 * i, side.codes + slot * kRow + 16 * i);
}

// Turns the staged codes of the block into keys. Neighbouring threads have neighbouring channels: no bank conflicts.
template <class Shape, int kBits>
EW_DEVICE void decode_keys(const CodedSide& side, int slot, const unsigned char* stage, unsigned char* to) {
  using Pieces = KeyPieces<Shape, kBits>;
  EW_ROLLED
  for (int i = thread_index(); i < Shape::dim * Pieces::count; i += kPrefillThreads) {
    const int channel = i % Shape::dim, piece = i / Shape::dim;
    const Words4 words = *reinterpret_cast<const Words4*>(stage + 16 * swizzled<Pieces::count>(channel, piece));
    const std::uint32_t a = twice(side.a[channel]), b = twice(side.b[channel]);
    const bool is_upper = Pieces::tokens < Pieces::codes && slot % Pieces::codes != 0;  // the piece's upper half
    EW_UNROLL
    for (int octet = 0; octet < Pieces::tokens / kChunk; ++octet) {
      const int bit = octet * kChunk * kBits;
      std::uint32_t mine[2] = {words.x[bit / 32] >> (bit % 32), words.x[(bit / 32 + 1) % 4]};
      if (is_upper) mine[0] = words.x[(bit / 32 + 2) % 4] >> (bit % 32);
      const int place = piece * (Pieces::tokens / kChunk) + octet;
      *reinterpret_cast<Words4*>(to + 16 * key_chunk<Shape>(channel, place)) =
          decoded<kBits>(mine, a, b, side.c + slot + kChunk * place);
    }
  }
}

template <class Shape, int kBits>
EW_DEVICE void decode_octet_of_values(const CodedSide& side, int slot, const unsigned char* stage, int at,
                                      unsigned char* to) {
  constexpr int kRow = Shape::dim / kChunk;
  const int token = at / kRow, octet = at % kRow;
  std::uint32_t words[2] = {};
  if constexpr (kBits == 2)
    words[0] = reinterpret_cast<const std::uint16_t*>(stage)[at];
  else
    words[0] = reinterpret_cast<const std::uint32_t*>(stage)[at * kBits / 4];
  if constexpr (kBits == 8) words[1] = reinterpret_cast<const std::uint32_t*>(stage)[2 * at + 1];
  const std::uint32_t a = twice(side.a[slot + token]), b = twice(side.b[slot + token]);
  *reinterpret_cast<Words4*>(to + 16 * swizzled<kRow>(token, octet)) =
      decoded<kBits>(words, a, b, side.c + kChunk * octet);
}

template <class Shape, int kBits>
EW_DEVICE void decode_values(const CodedSide& side, int slot, const unsigned char* stage, unsigned char* to) {
  constexpr int kCount = Shape::tokens * Shape::dim / kChunk / kPrefillThreads;
  constexpr int kTogether = Shape::dim > 128 ? 1 : kCount;  // queries and sums of large heads leave few registers
  EW_ROLLED
  for (int first = 0; first < kCount; first += kTogether) {
    EW_UNROLL
    for (int i = 0; i < kTogether; ++i)
      decode_octet_of_values<Shape, kBits>(side, slot, stage, (first + i) * kPrefillThreads + thread_index(), to);
  }
}

// The bits are known at run time: one kernel a head size serves all of them.
#define EW_FOR_BITS(bits, call) \
  switch (bits) {               \
    case 2: {                   \
      constexpr int kBits = 2;  \
      call;                     \
      break;                    \
    }                           \
    case 4: {                   \
      constexpr int kBits = 4;  \
      call;                     \
      break;                    \
    }                           \
    default: {                  \
      constexpr int kBits = 8;  \
      call;                     \
    }                           \
  }

// A stage of `bytes`: values' codes are key_bytes after the keys'.
struct StageSizes {
  int key_bytes, bytes;
};

template <class Shape>
EW_DEVICE void stage_record(const Record& record, int slot, unsigned char* keys, unsigned char* values) {
  EW_FOR_BITS(record.keys.bits, (stage_keys<Shape, kBits>(record.keys, slot, keys)))
  EW_FOR_BITS(record.values.bits, (stage_values<Shape, kBits>(record.values, slot, values)))
}

template <class Shape>
EW_DEVICE void decode_record(const Record& record, int slot, const unsigned char* keys, const unsigned char* values,
                             unsigned char* to) {
  EW_FOR_BITS(record.keys.bits, (decode_keys<Shape, kBits>(record.keys, slot, keys, to)))
  EW_FOR_BITS(record.values.bits, (decode_values<Shape, kBits>(record.values, slot, values, to + Shape::key_bytes)))
}

#undef EW_FOR_BITS

}  // namespace ew
