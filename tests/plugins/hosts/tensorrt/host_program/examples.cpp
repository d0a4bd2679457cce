#include "examples.h"

#include <algorithm>
#include <stdexcept>

using host::DataType;
using host::field;
using host::Field;
using host::Tensor;

namespace {

constexpr DataType kFloat = DataType::kFLOAT, kInt8 = DataType::kINT8, kInt32 = DataType::kINT32,
                   kInt64 = DataType::kINT64, kHalf = DataType::kHALF;
constexpr std::int64_t kTokens = 7, kRows = 3, kLayers = 2, kPool = 5, kWidth = 4;
constexpr std::int64_t kTileBytes = 128 * (64 + 64) * 2;

std::vector<Tensor> activations(DataType type, std::int64_t dim) {
  return {{type, {kTokens, 6, dim}}, {type, {kTokens, 2, dim}}, {type, {kTokens, 2, dim}}};
}

Example paged(DataType type, bool sinks) {
  Example made;
  made.name = sinks ? "paged_sinks" : "paged";
  made.op = "PagedAttention";
  made.fields = {field("layer", 1), field("scale", 0.125f), field("window", 9), field("softcap", 0.5f)};
  if (!sinks) made.fields.push_back(field("present", 0x7f));
  made.inputs = activations(type, 64);
  for (const Tensor& one : {Tensor{kInt8, {kPool, kTileBytes}}, Tensor{kInt32, {kRows + 1}},
                            Tensor{kInt32, {kLayers, kRows, 2}}, Tensor{kInt32, {kLayers, kRows, 2, kWidth}}})
    made.inputs.push_back(one);
  if (sinks) made.inputs.push_back({kFloat, {6}});
  made.outputs = {{type, {kTokens, 6, 64}}, {kInt8, {kPool, kTileBytes}}};
  made.aliases = {-1, 3};
  made.serialized =
      "layer=1 scale=0x1p-3 window=9 softcap=0x1p-1 kv_bits=16 present=" + std::string(sinks ? "-1" : "127") +
      " multiprocessors=4";
  return made;
}

Example kvarn(DataType type) {
  constexpr std::int64_t dim = 32, slots = 4, record = 128 * dim * 6 / 8 + 2 * (2 * dim + 128) + 2 * (dim + 256);
  Example made;
  made.name = "kvarn";
  made.op = "KVarNAttention";
  made.fields = {field("layer", 0), field("scale", 0.25f), field("iterations", 3), field("robust", 1)};
  made.inputs = activations(type, dim);
  const Tensor exact{kHalf, {slots, 2, 2, 2 * 128 * dim}}, pool{kInt8, {kPool, record}};
  for (const Tensor& one :
       {pool, exact, Tensor{kInt32, {kRows + 1}}, Tensor{kInt32, {kLayers, kRows, 2}},
        Tensor{kInt32, {kLayers, kRows, 2, kWidth}}, Tensor{kInt32, {kRows}}, Tensor{kInt32, {2, kLayers, kRows, 2}}})
    made.inputs.push_back(one);
  made.outputs = {{type, {kTokens, 6, dim}}, pool, exact};
  made.aliases = {-1, 3, 4};
  made.serialized =
      "layer=0 scale=0x1p-2 window=0 softcap=0x0p+0 k_bits=4 v_bits=2 iterations=3 robust=1 rotate_values=1 present=-1 "
      "multiprocessors=4";
  return made;
}

Example split(DataType type, bool rotated, bool normalised) {
  Example made;
  made.name = rotated ? "split_rotated" : normalised ? "split_normalised" : "split_plain";
  made.op = "SplitQkv";
  made.fields = {field("query_heads", 4), field("kv_heads", 2), field("head_dim", 16), field("value_dim", 8)};
  made.fields.push_back(field("present", 1 + (rotated ? 6 : 0) + (normalised ? 24 : 0)));
  made.inputs = {{type, {1, kTokens, 6 * 16 + 2 * 8}}};
  for (int i = 0; i < 2 && rotated; ++i) made.inputs.push_back({type, {1, kTokens, 5}});
  for (int i = 0; i < 2 && normalised; ++i) made.inputs.push_back({type, {16}});
  made.outputs = {{type, {kTokens, 4, 16}}, {type, {kTokens, 2, 16}}, {type, {kTokens, 2, 8}}};
  made.aliases = {-1, -1, -1};
  made.serialized = "query_heads=4 kv_heads=2 head_dim=16 value_dim=8 epsilon=0x1.0c6f7ap-20 present=" +
                    std::to_string(made.fields.back().integer) + " multiprocessors=4";
  return made;
}

Example depth(DataType type) {
  Example made;
  made.name = "depth";
  made.op = "DepthMix";
  made.fields = {field("scale", -0.5f)};
  made.inputs = {{type, {kTokens, 6, 16}}, {type, {kTokens, 2, 16}}, {type, {kTokens, 2, 8}}};
  for (int i = 0; i < 4; ++i) made.inputs.push_back(made.inputs[static_cast<std::size_t>(1 + i % 2)]);
  made.outputs = {{type, {kTokens, 2, 8}}};
  made.aliases = {-1};
  made.serialized = "scale=-0x1p-1 present=-1 multiprocessors=4";
  return made;
}

Example greedy() {
  return {
      "greedy", "GreedySample", {}, {{kFloat, {kRows, 50}}}, {{kInt64, {kRows}}}, {-1}, "present=-1 multiprocessors=4"};
}

Example clp(DataType type, bool codes) {
  Example made;
  made.name = codes ? "clp_codes" : "clp";
  made.op = "ClpEmit";
  made.fields = {field("k", 3), field("tau", 0.75f), field("present", codes ? 0xf7f : 0xff)};
  made.inputs = {{type, {kRows, 16}}, {kInt64, {kRows}}, {kFloat, {4, 16}}, {kFloat, {4}},
                 {type, {2, 24, 16}}, {type, {2, 24}},   {type, {2, 90}}};
  if (codes)
    for (const Tensor& one :
         {Tensor{kInt8, {2, 90, 24}}, Tensor{kFloat, {2, 90}}, Tensor{kInt64, {kRows}}, Tensor{kInt32, {kRows + 1}}})
      made.inputs.push_back(one);
  else
    made.inputs.push_back({type, {2, 90, 24}});
  made.outputs = {{kInt64, {kRows, 3}}, {kInt64, {kRows}}};
  made.aliases = {-1, -1};
  made.serialized = "k=3 tau=0x1.8p-1 activation=0 residual=0 present=" + std::to_string(made.fields[2].integer) +
                    " multiprocessors=4";
  return made;
}

}  // namespace

std::vector<Example> examples(DataType type) {
  return {paged(type, false),       paged(type, true), kvarn(type), split(type, false, false), split(type, true, false),
          split(type, false, true), depth(type),       greedy(),    clp(type, false),          clp(type, true)};
}

Example example(const std::string& name) {
  for (Example& one : examples(kHalf))
    if (one.name == name) return one;
  throw std::logic_error("no example " + name);
}

std::vector<Field> without(std::vector<Field> fields, const std::string& name) {
  fields.erase(std::remove_if(fields.begin(), fields.end(), [&](const Field& one) { return name == one.name; }),
               fields.end());
  return fields;
}

std::vector<Field> with(std::vector<Field> fields, Field field) {
  fields = without(fields, field.name);
  fields.push_back(field);
  return fields;
}
