// The ops of libenginewright_trt, each of which has an adapter file.
#pragma once

#include "hosts/tensorrt/operation.h"

namespace ew::trt {

Op paged_attention();
Op kvarn_attention();
Op depth_mix();
Op split_qkv();
Op greedy_sample();
Op clp_emit();

}  // namespace ew::trt
