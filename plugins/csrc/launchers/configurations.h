// The one table of instantiated configurations; all others are refused with the list of supported ones.
#pragma once

// Head sizes (of queries and keys; of values) of PagedAttention.
#define EW_PAGED_ATTENTION_DIMS(X) \
  X(32, 32)                        \
  X(64, 64)                        \
  X(80, 80)                        \
  X(96, 96)                        \
  X(128, 128)                      \
  X(256, 256)

// Head sizes of KVarNAttention, and bits of its keys' and values' codes.
#define EW_KVARN_DIMS(X) \
  X(32)                  \
  X(64)                  \
  X(128)                 \
  X(256)
#define EW_KVARN_BITS(X) \
  X(2, 2)                \
  X(4, 2)                \
  X(4, 4)                \
  X(8, 8)

// Head sizes of DepthMix: multiples of the one up to the other.
#define EW_DEPTH_MIX_DIM_STEP 8
#define EW_DEPTH_MIX_MOST_DIM 512
#define EW_DEPTH_MIX_MOST_SOURCES 64

// The most rows, classes and heads that ClpEmit takes; any size of states, hidden layers and vocabularies.
#define EW_CLP_MOST_ROWS 1024
#define EW_CLP_MOST_CLASSES 256
#define EW_CLP_MOST_EXTRA 15

// Inputs of one scale of Int4Linear.
#define EW_INT4_BLOCKS(X) \
  X(16)                   \
  X(32)                   \
  X(64)                   \
  X(128)

// Values of one index in each list, as text: for messages.
#define EW_TEXT(x) #x

namespace ew::cuda {

const char* configurations_json();

}  // namespace ew::cuda
