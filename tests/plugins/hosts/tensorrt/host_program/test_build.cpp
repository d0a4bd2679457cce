// A builder's questions to a plugin, for every op: outputs, formats, aliases.
#include "check.h"
#include "examples.h"

using namespace host;

namespace {

constexpr DataType kActivations[] = {DataType::kHALF, DataType::kBF16};

bool same(const std::vector<Tensor>& one, const std::vector<Tensor>& other) {
  if (one.size() != other.size()) return false;
  for (std::size_t i = 0; i < one.size(); ++i)
    if (one[i].type != other[i].type || one[i].dims != other[i].dims) return false;
  return true;
}

// Runs `body` with every example and its plugin.
template <class Body>
void for_each_example(Body body) {
  for (DataType type : kActivations)
    for (const Example& one : examples(type)) {
      const auto plugin = create(one.op, one.fields);
      if (plugin == nullptr) throw check::Failed(one.name + ": " + ew_trt_error());
      try {
        body(one, *plugin);
      } catch (const check::Failed& failed) {
        throw check::Failed(one.name + ": " + failed.what());
      }
    }
}

}  // namespace

TEST(outputs_have_the_declared_types_and_sizes) {
  for_each_example([](const Example& one, nvinfer1::IPluginV3& plugin) {
    CHECK_EQUAL(build(plugin).getNbOutputs(), static_cast<int>(one.outputs.size()));
    CHECK(same(outputs_of(plugin, one.inputs), one.outputs));
  });
}

TEST(the_one_combination_of_types_is_taken) {
  for_each_example([](const Example& one, nvinfer1::IPluginV3& plugin) {
    CHECK_EQUAL(first_refused(plugin, one.inputs, one.outputs), -1);
    CHECK_EQUAL(build(plugin).getFormatCombinationLimit(), 1);
    CHECK_EQUAL(build(plugin).getNbTactics(), 0);
  });
}

TEST(each_single_wrong_type_is_refused) {
  for_each_example([](const Example& one, nvinfer1::IPluginV3& plugin) {
    for (std::size_t i = 0; i < one.inputs.size() + one.outputs.size(); ++i)
      for (int number = 0; number <= static_cast<int>(DataType::kINT4); ++number) {
        Example wrong = one;
        Tensor& changed = i < one.inputs.size() ? wrong.inputs[i] : wrong.outputs[i - one.inputs.size()];
        if (changed.type == static_cast<DataType>(number)) continue;
        changed.type = static_cast<DataType>(number);
        const int refused = first_refused(plugin, wrong.inputs, wrong.outputs);
        // another type of activations may be right as such, and then disagrees with those after it
        CHECK(refused >= static_cast<int>(i) || (refused == -1 && one.inputs.size() + one.outputs.size() == 1));
        const bool is_activation = changed.type == DataType::kHALF || changed.type == DataType::kBF16;
        CHECK(refused == static_cast<int>(i) || (i == 0 && is_activation && refused > 0));
      }
  });
}

TEST(formats_that_are_not_linear_are_refused) {
  for_each_example([](const Example& one, nvinfer1::IPluginV3& plugin) {
    std::vector<Tensor> all = one.inputs;
    all.insert(all.end(), one.outputs.begin(), one.outputs.end());
    for (std::size_t i = 0; i < all.size(); ++i) {
      auto descs = profile_of(all, all);
      descs[i].desc.format = nvinfer1::TensorFormat::kCHW2;
      CHECK(!build(plugin).supportsFormatCombination(static_cast<int>(i), descs.data(),
                                                     static_cast<int>(one.inputs.size()),
                                                     static_cast<int>(one.outputs.size())));
    }
  });
}

TEST(outputs_alias_the_declared_inputs) {
  for_each_example([](const Example& one, nvinfer1::IPluginV3& plugin) {
    for (std::size_t i = 0; i < one.aliases.size(); ++i)
      CHECK_EQUAL(build(plugin).getAliasedInput(static_cast<int>(i)), one.aliases[i]);
    CHECK_EQUAL(build(plugin).getAliasedInput(static_cast<int>(one.aliases.size())), -1);
    CHECK_EQUAL(build(plugin).getAliasedInput(-1), -1);
  });
}

TEST(capabilities_are_of_the_versions_that_tensorrt_knows) {
  for_each_example([](const Example& one, nvinfer1::IPluginV3& plugin) {
    CHECK_EQUAL(std::string(core(plugin).getPluginName()), one.op);
    CHECK_EQUAL(std::string(core(plugin).getPluginVersion()), "1");
    CHECK_EQUAL(std::string(core(plugin).getPluginNamespace()), "enginewright");
    CHECK_EQUAL(std::string(core(plugin).getInterfaceInfo().kind), "PLUGIN_V3ONE_CORE");
    CHECK_EQUAL(std::string(build(plugin).getInterfaceInfo().kind), "PLUGIN_V3ONE_BUILD");
    CHECK_EQUAL(build(plugin).getInterfaceInfo().major, 2);
    CHECK_EQUAL(std::string(runtime(plugin).getInterfaceInfo().kind), "PLUGIN_V3ONE_RUNTIME");
    CHECK(plugin.getCapabilityInterface(static_cast<nvinfer1::PluginCapabilityType>(3)) == nullptr);
  });
}

TEST(types_that_the_kernels_do_not_have_are_named) {
  const Example one = example("paged");
  const auto plugin = create(one.op, one.fields);
  std::vector<Tensor> inputs = one.inputs;
  inputs[0].type = DataType::kFLOAT;
  CHECK(outputs_of(*plugin, inputs).empty());
  CHECK_EQUAL(std::string(ew_trt_error()), "PagedAttention: query: got float32, expected float16 or bfloat16");
  inputs[0].type = DataType::kBF16;
  CHECK(outputs_of(*plugin, inputs).empty());
  CHECK_EQUAL(std::string(ew_trt_error()), "PagedAttention: key: got float16, expected bfloat16");
  inputs = one.inputs;
  inputs[3].type = DataType::kUINT8;
  CHECK(outputs_of(*plugin, inputs).empty());
  CHECK_EQUAL(std::string(ew_trt_error()), "PagedAttention: tiles: got type 5, expected int8");
}

TEST(an_input_with_too_few_axes_is_named) {
  Example one = example("paged");
  const auto plugin = create(one.op, one.fields);
  one.inputs[0].dims.pop_back();
  one.inputs[2].dims.pop_back();
  CHECK(outputs_of(*plugin, one.inputs).empty());
  CHECK_EQUAL(std::string(ew_trt_error()), "PagedAttention: value: got 2 axes, expected 3 or more");
}
