// The table of configurations as JSON, for tests and messages.
#include <initializer_list>
#include <string>
#include <utility>

#include "launchers/configurations.h"

namespace ew::cuda {
namespace {

std::string pair(int a, int b) { return "[" + std::to_string(a) + "," + std::to_string(b) + "]"; }

std::string list() {
  std::string dims, kvarn_dims, bits, blocks;
  const auto join = [](std::string& to, const std::string& item) { to += (to.empty() ? "" : ",") + item; };
#define EW_ADD(a, b) join(dims, pair(a, b));
  EW_PAGED_ATTENTION_DIMS(EW_ADD)
#undef EW_ADD
#define EW_ADD(a) join(kvarn_dims, std::to_string(a));
  EW_KVARN_DIMS(EW_ADD)
#undef EW_ADD
#define EW_ADD(a, b) join(bits, pair(a, b));
  EW_KVARN_BITS(EW_ADD)
#undef EW_ADD
#define EW_ADD(a) join(blocks, std::to_string(a));
  EW_INT4_BLOCKS(EW_ADD)
#undef EW_ADD
  const auto sizes = [](std::initializer_list<std::pair<const char*, int>> named) {
    std::string text;
    for (const auto& [name, size] : named)
      text += (text.empty() ? "\"" : ",\"") + std::string(name) + "\":" + std::to_string(size);
    return "{" + text + "}";
  };
  return "{\"PagedAttention\":{\"dims\":[" + dims + "]},\"KVarNAttention\":{\"dims\":[" + kvarn_dims + "],\"bits\":[" +
         bits + "]},\"DepthMix\":" + sizes({{"dim_step", EW_DEPTH_MIX_DIM_STEP}, {"most_dim", EW_DEPTH_MIX_MOST_DIM}}) +
         ",\"ClpEmit\":" +
         sizes({{"most_rows", EW_CLP_MOST_ROWS},
                {"most_classes", EW_CLP_MOST_CLASSES},
                {"most_extra", EW_CLP_MOST_EXTRA}}) +
         ",\"Int4Linear\":{\"blocks\":[" + blocks + "]}}";
}

}  // namespace

const char* configurations_json() {
  static const std::string text = list();
  return text.c_str();
}

}  // namespace ew::cuda
