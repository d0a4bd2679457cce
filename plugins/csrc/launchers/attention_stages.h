// The stages of attention as the launchers of both ops call them; kernels/attention/attention.cuh describes each.
#pragma once

#include "generated/calls/attention.h"
#include "kernels/attention/attention.cuh"
#include "launchers/refuse.h"

namespace ew::cuda {

// The split of a call, by its sizes alone: lengths are in device memory.
struct AttentionPlan {
  int parts;            // of each row's context, when decoding
  int decoded_queries;  // the most that a decoded row may have
  bool has_prefill;     // whether a row may have more
};

AttentionPlan plan_attention(const EwAttention& call);

// The checks that both ops share, and the part of the view that both fill in the same way; `op`: for messages.
void check_attention(const char* op, const EwAttention& call);
AttentionView view_of(const EwAttention& call);

// The factor that prepared queries carry.
float query_factor(const EwAttention& call);

DecodeParts take_parts(Workspace& workspace, const EwAttention& call, const AttentionPlan& plan);

// Bits of the codes in view.tiles: 16 and 16 where they are tiles of halves.
struct TileBits {
  int keys = 16, values = 16;
};

void decode(const char* op, const AttentionView& view, TileBits bits, const DecodeParts& parts, void* stream);
void prefill(const char* op, const AttentionView& view, TileBits bits, void* stream);
// rotate_values: outputs are turned back by Hadamard.
void finish(const char* op, const AttentionView& view, const DecodeParts& parts, bool rotate_values, void* stream);

struct Encoding {
  TileBits bits;
  int iterations;
  bool robust;
};

void store(const AttentionView& view, const Encoding& encoding, void* stream);

}  // namespace ew::cuda
