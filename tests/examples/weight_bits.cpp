#include "support/weight_bits.hpp"

#include <filesystem>
#include <numeric>
#include <random>

#include "support/catch.hpp"
#include "support/errors.hpp"

using attention_balancer::Index;
using attention_balancer::execute::Levels;
using example::BitRule;

namespace {

/// Features whose inputs differ by factors of ten.
example::BitCase small_case() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  example::BitCase one;
  one.name = "made up";
  one.weight = example::Matrix::NullaryExpr(12, 40, [&] { return normal(random); });
  one.inputs = example::Matrix::NullaryExpr(50, 12, [&] { return normal(random); });
  for (Eigen::Index i = 0; i < 12; ++i) {
    const float size = static_cast<float>(std::pow(10, 0.2 * static_cast<double>(i)));
    one.inputs.col(i) *= size;
    one.energy.push_back(static_cast<double>(size) * static_cast<double>(size));
  }
  return one;
}

}  // namespace

TEST_CASE("weight bits: every rule spends what there is, and marginal loses least") {
  const auto one = small_case();
  CHECK(one.sensitivity()[3] == Approx(one.energy[3]).epsilon(0.7));
  for (const auto levels : {Levels::asymmetric, Levels::symmetric, Levels::centred}) {
    std::vector<double> errors;
    for (const auto rule : {BitRule::uniform, BitRule::saliency, BitRule::marginal, BitRule::measured}) {
      INFO(example::to_string(rule));
      const auto bits = example::allot_bits(one, rule, 3, 8, levels);
      CHECK(std::accumulate(bits.begin(), bits.end(), Index(0)) == 36);
      for (const Index b : bits) CHECK((b >= 0 && b <= 8));
      errors.push_back(example::output_error(one, bits, levels));
      CHECK(errors.back() > 0);
      CHECK(errors.back() < 1);
    }
    CHECK(errors[2] < errors[0]);
    CHECK(errors[3] < errors[0]);
    CHECK(errors[2] < errors[1]);
  }
  const auto all = example::allot_bits(one, BitRule::uniform, 8, 8, Levels::centred);
  CHECK(all == std::vector<Index>(12, 8));
  CHECK_THROWS_AS(example::allot_bits(one, BitRule::marginal, 9, 8, Levels::centred),
                  attention_balancer::BudgetError);
}

TEST_CASE("weight bits: the encoder's matrices", "[model]") {
  const std::filesystem::path model = ATTENTION_BALANCER_MODEL_DIR;
  if (!std::filesystem::exists(model / "model.safetensors")) return;
  std::string text;
  for (int i = 0; i < 40; ++i) text += "The cat sat on the mat, and the dog lay beside it. ";
  const auto cases = example::encoder_bit_cases(model, text);
  REQUIRE(cases.size() == 15);
  CHECK(cases[0].name == "layer 1 query");
  CHECK(cases[0].weight.rows() == 384);
  CHECK(cases[0].energy.size() == 384);
  CHECK(cases[0].inputs.rows() > 64);
  // Without bits the output is far off; with 8 it is nearly the same.
  CHECK(example::output_error(cases[2], std::vector<Index>(384, 8), Levels::centred) < 1e-3);
  CHECK(example::output_error(cases[2], std::vector<Index>(384, 0), Levels::centred) > 0.5);
  CHECK_THROWS_AS(example::encoder_bit_cases(model, "too short"), example::FileError);
}
