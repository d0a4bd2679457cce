// Checks that the attention ops share.
#pragma once

#include <string>

#include "cpu/attention/attention_args.h"

namespace ew {

// The first thing wrong with query_starts; empty when there is none.
std::string check_starts(const AttentionArgs& args);

}  // namespace ew
