// Fields: what an engine keeps of a node, and what is said of those that are wrong.
#include "check.h"
#include "examples.h"

using namespace host;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

namespace {

// The message about a plugin that is not made.
std::string refusal(const std::string& op, const std::vector<Field>& fields) {
  return create(op, fields) == nullptr ? ew_trt_error() : "made";
}

std::string refusal(const std::string& op, const std::vector<PluginField>& fields) {
  nvinfer1::PluginFieldCollection collection;
  collection.nbFields = static_cast<std::int32_t>(fields.size());
  collection.fields = fields.data();
  const std::unique_ptr<nvinfer1::IPluginV3> made(
      find_creator(op)->createPlugin("node", &collection, nvinfer1::TensorRTPhase::kBUILD));
  return made == nullptr ? ew_trt_error() : "made";
}

}  // namespace

TEST(every_field_survives_the_engine) {
  for (const Example& one : examples(DataType::kHALF)) {
    const auto plugin = create(one.op, one.fields);
    CHECK(plugin != nullptr);
    CHECK_EQUAL(serialized_text(*plugin), one.serialized);
    const auto again = deserialized(one.op, *plugin);
    CHECK(again != nullptr);
    CHECK_EQUAL(serialized_text(*again), one.serialized);
    CHECK_EQUAL(std::string(build(*again).getTimingCacheID()), std::string(build(*plugin).getTimingCacheID()));
  }
}

TEST(clones_are_equal) {
  for (const Example& one : examples(DataType::kHALF)) {
    const auto plugin = create(one.op, one.fields);
    const std::unique_ptr<nvinfer1::IPluginV3> clone(plugin->clone());
    CHECK(clone != nullptr && clone != plugin);
    CHECK_EQUAL(serialized_text(*clone), one.serialized);
    CHECK_EQUAL(std::string(build(*clone).getMetadataString()), std::string(build(*plugin).getMetadataString()));
    CHECK(!outputs_of(*clone, one.inputs).empty());
    Recorder recorder;
    Context context(&recorder);
    const std::unique_ptr<nvinfer1::IPluginV3> attached(runtime(*plugin).attachToContext(&context));
    CHECK(attached != nullptr);
    CHECK_EQUAL(serialized_text(*attached), one.serialized);
  }
}

TEST(the_timing_cache_tells_attributes_apart) {
  const Example one = example("paged");
  const auto id = [&](const std::vector<Field>& fields) {
    return std::string(build(*create(one.op, fields)).getTimingCacheID());
  };
  CHECK_EQUAL(id(one.fields), std::string("PagedAttention 1 of enginewright ") + ew_trt_version() +
                                  ": layer=1 scale=0x1p-3 window=9 softcap=0x1p-1 kv_bits=16 present=127");
  for (const Field& other : {field("window", 10), field("layer", 0), field("scale", 0.1f), field("present", 0xff)})
    CHECK(id(with(one.fields, other)) != id(one.fields));
}

TEST(fields_that_are_missing_or_unknown_are_named) {
  CHECK_EQUAL(refusal("PagedAttention", without(example("paged").fields, "layer")),
              "PagedAttention: layer: got no attribute, expected an int");
  CHECK_EQUAL(refusal("KVarNAttention", without(example("kvarn").fields, "scale")),
              "KVarNAttention: scale: got no attribute, expected a float");
  CHECK_EQUAL(refusal("SplitQkv", without(example("split_plain").fields, "value_dim")),
              "SplitQkv: value_dim: got no attribute, expected an int");
  CHECK_EQUAL(refusal("DepthMix", without(example("depth").fields, "scale")),
              "DepthMix: scale: got no attribute, expected a float");
  CHECK_EQUAL(refusal("ClpEmit", without(example("clp").fields, "tau")),
              "ClpEmit: tau: got no attribute, expected a float");
  CHECK_EQUAL(refusal("DepthMix", with(example("depth").fields, field("scales", 1.0f))),
              "DepthMix: scales: got an unknown attribute, expected one of scale, present");
  CHECK_EQUAL(refusal("GreedySample", {field("k", 1)}),
              "GreedySample: k: got an unknown attribute, expected one of present");
  CHECK_EQUAL(refusal("DepthMix", {field("scale", 1.0f), field("scale", 2.0f)}),
              "DepthMix: scale: got two attributes of this name, expected one");
}

TEST(fields_of_another_type_are_named) {
  CHECK_EQUAL(refusal("PagedAttention", with(example("paged").fields, field("layer", 1.0f))),
              "PagedAttention: layer: got a float, expected an int");
  CHECK_EQUAL(refusal("PagedAttention", with(example("paged").fields, field("scale", 1))),
              "PagedAttention: scale: got an int, expected a float");
  const double wide = 1.0;
  CHECK_EQUAL(refusal("DepthMix", std::vector<PluginField>{{"scale", &wide, PluginFieldType::kFLOAT64, 1}}),
              "DepthMix: scale: got field type 2, expected a float");
  const float two[] = {1.0f, 2.0f};
  CHECK_EQUAL(refusal("DepthMix", std::vector<PluginField>{{"scale", two, PluginFieldType::kFLOAT32, 2}}),
              "DepthMix: scale: got 2 numbers of type float, expected a float");
  CHECK_EQUAL(refusal("DepthMix", std::vector<PluginField>{{"scale", nullptr, PluginFieldType::kFLOAT32, 1}}),
              "DepthMix: scale: got no data, expected a float");
  CHECK_EQUAL(refusal("DepthMix", std::vector<PluginField>{{nullptr, two, PluginFieldType::kFLOAT32, 1}}),
              "DepthMix: fields: got one without a name, expected one of scale, present");
  const std::int64_t large = std::int64_t{1} << 32, small = 3;
  CHECK_EQUAL(refusal("GreedySample", std::vector<PluginField>{{"present", &large, PluginFieldType::kINT64, 1}}),
              "GreedySample: present: got 4294967296, expected an int of 32 bits");
  CHECK_EQUAL(refusal("ClpEmit", std::vector<PluginField>{{"k", &small, PluginFieldType::kINT64, 1},
                                                          {"tau", two, PluginFieldType::kFLOAT32, 1}}),
              "made");
  CHECK(find_creator("DepthMix")->createPlugin("node", nullptr, nvinfer1::TensorRTPhase::kBUILD) == nullptr);
  CHECK_EQUAL(std::string(ew_trt_error()), "DepthMix: fields: got a null pointer, expected the node's attributes");
}

TEST(fields_out_of_range_are_named) {
  const auto say = [](const std::string& name, Field wrong) {
    const Example one = example(name);
    return refusal(one.op, with(one.fields, wrong));
  };
  CHECK_EQUAL(say("paged", field("layer", -1)), "PagedAttention: layer: got -1, expected 0 to 65536");
  CHECK_EQUAL(say("paged", field("kv_bits", 8)), "PagedAttention: kv_bits: got 8, expected 16 or 32");
  CHECK_EQUAL(say("kvarn", field("k_bits", 3)), "KVarNAttention: k_bits: got 3, expected 2, 4 or 8");
  CHECK_EQUAL(say("kvarn", field("robust", 2)), "KVarNAttention: robust: got 2, expected 0 or 1");
  CHECK_EQUAL(say("split_plain", field("kv_heads", 0)), "SplitQkv: kv_heads: got 0, expected 1 to 65536");
  CHECK_EQUAL(say("split_plain", field("epsilon", -1.0f)), "SplitQkv: epsilon: got -1.000000, expected 0 or more");
  CHECK_EQUAL(say("depth", field("scale", 1e30f * 1e30f)), "DepthMix: scale: got inf, expected a finite number");
  CHECK_EQUAL(say("clp", field("k", 17)), "ClpEmit: k: got 17, expected 2 to 16");
  CHECK_EQUAL(say("paged", field("present", 0x77)),
              "PagedAttention: present: got 119, expected the bit of input 3, tiles, which is required");
  CHECK_EQUAL(say("paged", field("present", 0x100)),
              "PagedAttention: present: got 256, expected a mask of the op's 8 inputs, below 256");
  CHECK_EQUAL(say("paged", field("present", -2)),
              "PagedAttention: present: got -2, expected a mask of the op's 8 inputs, below 256");
}

TEST(attributes_of_the_parser_are_passed_over) {
  const float scale = 1.0f;
  const std::vector<PluginField> fields = {{"plugin_version", "1", PluginFieldType::kCHAR, 2},
                                           {"scale", &scale, PluginFieldType::kFLOAT32, 1},
                                           {"plugin_namespace", "enginewright", PluginFieldType::kCHAR, 13}};
  CHECK_EQUAL(refusal("DepthMix", fields), "made");
}

TEST(messages_reach_the_logger) {
  Logger logger;
  CHECK(create("DepthMix", {}) == nullptr);
  CHECK_EQUAL(logger.messages.size(), 1u);
  CHECK_EQUAL(logger.messages[0], "DepthMix: scale: got no attribute, expected a float");
}
