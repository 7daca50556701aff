// Each thing that can be wrong with the tensors and the policies of a call: the error names the argument, and neither
// the output nor the evidence is touched.

#include "support/check.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using support::Index;
using support::Layout;
using support::Tensor;

/// A good call, of which each case spoils one thing.
struct Call {
  std::vector<float> memory = std::vector<float>(4000, 0.5f);
  ab::TensorView<float> q = ab::bhsd(memory.data(), 2, 4, 5, 3), k = ab::bhsd(memory.data() + 200, 2, 2, 6, 3),
                        v = ab::bhsd(memory.data() + 400, 2, 2, 6, 7), out = ab::bhsd(memory.data() + 600, 2, 4, 5, 7);
  ab::Evidence<float> evidence;

  /// Runs a call that must throw Error with a message that contains all of `words`.
  template <class Error, class... P>
  void refuses(const char* words, const P&... policies) {
    // Something to be kept.
    const std::vector<float> small{1, 2, 3};
    const auto view = ab::bhsd(small.data(), 1, 1, 3, 1);
    ab::attention_evidence(view, view, ab::observe(evidence));
    const ab::Evidence<float> evidence_before = evidence;
    const std::vector<float> before = memory;
    INFO(words);
    CHECK_THROWS_AS(ab::attention(q, k, v, out, policies..., ab::observe(evidence)), Error);
    CHECK_THROWS_WITH(ab::attention(q, k, v, out, policies..., ab::observe(evidence)), ContainsSubstring(words));
    CHECK_THROWS_WITH(ab::attention(q, k, v, out, policies...), ContainsSubstring(words));
    CHECK(memory == before);
    CHECK(support::same_bits(evidence, evidence_before));
  }
  template <class Error, class... P>
  void evidence_refuses(const char* words, const P&... policies) {
    refuses<Error>(words, policies...);
    const ab::Evidence<float> evidence_before = evidence;
    CHECK_THROWS_AS(ab::attention_evidence(q, k, policies..., ab::observe(evidence)), Error);
    CHECK_THROWS_WITH(ab::attention_evidence(q, k, policies..., ab::observe(evidence)), ContainsSubstring(words));
    CHECK(support::same_bits(evidence, evidence_before));
  }
};

constexpr Index most = std::numeric_limits<Index>::max();

}  // namespace

TEST_CASE("the good call is good", "[bad input]") {
  Call call;
  CHECK_NOTHROW(ab::attention(call.q, call.k, call.v, call.out, ab::observe(call.evidence)));
}

TEST_CASE("sizes that do not fit", "[bad input]") {
  Call call;
  SECTION("batch of k") { call.k.batch = 1, call.evidence_refuses<ab::ShapeError>("k.batch is 1"); }
  SECTION("batch of v") { call.v.batch = 1, call.refuses<ab::ShapeError>("v.batch is 1"); }
  SECTION("batch of out") { call.out.batch = 1, call.refuses<ab::ShapeError>("out.batch is 1"); }
  SECTION("heads") {
    call.k.heads = call.v.heads = 3;
    call.evidence_refuses<ab::ShapeError>("q.heads is 4");
    call.refuses<ab::ShapeError>("k.heads = 3");
  }
  SECTION("more heads of keys than of queries") {
    call.k.heads = call.v.heads = 8;
    call.evidence_refuses<ab::ShapeError>("q.heads is 4");
  }
  SECTION("heads of v") { call.v.heads = 1, call.refuses<ab::ShapeError>("v.heads is 1"); }
  SECTION("heads of out") { call.out.heads = 2, call.refuses<ab::ShapeError>("out.heads is 2"); }
  SECTION("length of v") { call.v.length = 5, call.refuses<ab::ShapeError>("v.length is 5"); }
  SECTION("length of out") { call.out.length = 4, call.refuses<ab::ShapeError>("out.length is 4"); }
  SECTION("dim of k") { call.k.dim = 2, call.evidence_refuses<ab::ShapeError>("k.dim is 2"); }
  SECTION("dim of out") { call.out.dim = 6, call.refuses<ab::ShapeError>("out.dim is 6"); }
  SECTION("no batch of q") { call.q.batch = 0, call.evidence_refuses<ab::ShapeError>("must equal q.batch = 0"); }
  SECTION("no heads") { call.q.heads = 0, call.evidence_refuses<ab::ShapeError>("q.heads is 0"); }
  SECTION("no heads of keys") { call.k.heads = 0, call.evidence_refuses<ab::ShapeError>("k.heads is 0"); }
  SECTION("no queries but outputs") { call.q.length = 0, call.refuses<ab::ShapeError>("must equal q.length = 0"); }
  SECTION("no features") { call.q.dim = 0, call.evidence_refuses<ab::ShapeError>("q.dim is 0"); }
  SECTION("no values") { call.v.dim = call.out.dim = 0, call.refuses<ab::ShapeError>("v.dim is 0"); }
  SECTION("negative") {
    for (Index ab::TensorView<float>::*size :
         {&ab::TensorView<float>::batch, &ab::TensorView<float>::heads, &ab::TensorView<float>::length,
          &ab::TensorView<float>::dim}) {
      Call spoiled;
      spoiled.q.*size = -1;
      spoiled.evidence_refuses<ab::ShapeError>("is -1");
      Call other;
      other.out.*size = -3;
      other.refuses<ab::ShapeError>("is -3");
    }
  }
}

TEST_CASE("null data with a size", "[bad input]") {
  Call call;
  SECTION("q") { call.q.data = nullptr, call.evidence_refuses<ab::ShapeError>("q.data is null"); }
  SECTION("k") { call.k.data = nullptr, call.evidence_refuses<ab::ShapeError>("k.data is null"); }
  SECTION("v") { call.v.data = nullptr, call.refuses<ab::ShapeError>("v.data is null"); }
  SECTION("out") { call.out.data = nullptr, call.refuses<ab::ShapeError>("out.data is null"); }
}

TEST_CASE("sizes and strides that overflow", "[bad input]") {
  Call call;
  SECTION("elements") {
    call.q.batch = call.k.batch = call.v.batch = call.out.batch = most / 2;
    call.q.batch_stride = 0;
    call.evidence_refuses<ab::ShapeError>("q.");
  }
  SECTION("elements of contiguous memory") {  // evaluated by the compiler, which refuses what is undefined
    static constexpr auto q = ab::bhsd<const float>(nullptr, 1, 2, Index(1) << 61, 4);
    static constexpr auto k = ab::bshd<const float>(nullptr, 1, Index(1) << 61, 2, 4);
    static_assert(q.length == k.length);
    call.q.length = q.length;
    call.evidence_refuses<ab::ShapeError>("q.length is 2305843009213693952");
  }
  SECTION("addresses") {
    for (const Index stride : {most, most / 2, -most, -most / 3, std::numeric_limits<Index>::min()}) {
      Call spoiled;
      spoiled.k.length_stride = stride;
      spoiled.evidence_refuses<ab::ShapeError>("k.length stride");
    }
  }
  SECTION("addresses by several axes") {
    call.v.batch_stride = call.v.head_stride = call.v.length_stride = call.v.dim_stride = most / 32;
    call.refuses<ab::ShapeError>("v.");
  }
  SECTION("positions past 2^24") {
    const Index long_length = (Index(1) << 24) + 1;
    call.k.length = call.v.length = long_length, call.k.length_stride = call.v.length_stride = 0;
    call.evidence_refuses<ab::ShapeError>("k.length is 16777217");
    Call other;
    other.q.length = other.out.length = long_length, other.q.length_stride = 0;
    ab::Evidence<float> evidence;
    CHECK_THROWS_WITH(ab::attention_evidence(other.q, other.k, ab::observe(evidence)),
                      ContainsSubstring("q.length is 16777217"));
  }
  SECTION("scratch memory that cannot be") {
    // Broadcast features: the elements exist, what a block of them takes does not fit an address.
    call.q.dim = call.k.dim = Index(1) << 56, call.q.dim_stride = call.k.dim_stride = 0;
    ab::Evidence<float> evidence;
    CHECK_THROWS(ab::attention_evidence(call.q, call.k, ab::observe(evidence)));
    call.q.dim = call.k.dim = Index(1) << 59;
    CHECK_THROWS(ab::attention_evidence(call.q, call.k, ab::observe(evidence)));
  }
}

TEST_CASE("an output that overlaps", "[bad input]") {
  Call call;
  SECTION("q itself") {
    call.v.dim = 3, call.out = call.q;
    call.refuses<ab::ShapeError>("memory of q");
  }
  SECTION("the last element of k") {
    call.out.data = &call.k(1, 1, 5, 2);
    call.v.data = call.memory.data() + 2000;
    call.refuses<ab::ShapeError>("memory of k");
  }
  SECTION("the first element of v") {
    call.out.data = call.v.data - (call.out.size() - 1);
    call.k.data = call.memory.data() + 2000, call.q.data = call.memory.data() + 3000;
    call.refuses<ab::ShapeError>("memory of v");
  }
  SECTION("itself: rows") { call.out.length_stride = 6, call.refuses<ab::ShapeError>("out"); }
  SECTION("itself: broadcast heads") { call.out.head_stride = 0, call.refuses<ab::ShapeError>("out"); }
  SECTION("itself: features of stride 0") { call.out.dim_stride = 0, call.refuses<ab::ShapeError>("out"); }
}

TEST_CASE("an output beside its inputs is accepted", "[bad input]") {
  support::Random random(51);
  // One buffer of token rows [q | k | v | out], each of `heads` heads of 4: none overlaps another.
  for (const Index heads : {1, 3}) {
    for (const Index batch : {1, 2}) {
      const Index width = heads * 4, tokens = 9;
      std::vector<float> rows(static_cast<std::size_t>(batch * tokens * 4 * width));
      for (auto& x : rows) x = static_cast<float>(random.uniform(-1, 1));
      auto part = [&](Index which) {
        return ab::TensorView<float>{rows.data() + which * width, batch,     heads, tokens, 4,
                                     tokens * 4 * width,          4, 4 * width, 1};
      };
      support::Tensor<double> expected(Layout::bhsd, batch, heads, tokens, 4);
      ab::reference::attention(part(0), part(1), part(2), expected.view());
      INFO("heads " << heads << ", batch " << batch);
      CHECK_NOTHROW(ab::attention(part(0), part(1), part(2), part(3)));
      double worst = 0;
      for (Index b = 0; b < batch; ++b)
        for (Index h = 0; h < heads; ++h)
          for (Index i = 0; i < tokens; ++i)
            for (Index c = 0; c < 4; ++c)
              worst = std::max(worst, std::fabs(static_cast<double>(part(3)(b, h, i, c)) - expected(b, h, i, c)));
      CHECK(worst < 1e-5);
    }
  }
  // Back to back.
  std::vector<float> memory(48, 1.0f);
  const auto q = ab::bhsd(memory.data(), 1, 1, 3, 4), k = ab::bhsd(memory.data() + 12, 1, 1, 3, 4),
             v = ab::bhsd(memory.data() + 24, 1, 1, 3, 4), out = ab::bhsd(memory.data() + 36, 1, 1, 3, 4);
  CHECK_NOTHROW(ab::attention(q, k, v, out));
  CHECK_NOTHROW(ab::attention(out, k, v, q));
  // Even rows in, odd rows out, from the last to the first.
  std::vector<float> both(2 * 5 * 4, 0.5f);
  ab::TensorView<float> even{both.data(), 1, 1, 5, 4, 0, 0, 8, 1};
  ab::TensorView<float> odd{both.data() + 36, 1, 1, 5, 4, 0, 0, -8, 1};
  CHECK_NOTHROW(ab::attention(even, even, even, odd));
  // Even columns in, odd columns out.
  ab::TensorView<float> left{both.data(), 1, 1, 5, 4, 0, 0, 8, 2};
  ab::TensorView<float> right{both.data() + 1, 1, 1, 5, 4, 0, 0, 8, 2};
  CHECK_NOTHROW(ab::attention(left, left, left, right));
}

TEST_CASE("policies that do not fit", "[bad input]") {
  using F = std::vector<float>;
  Call call;
  const F three{1, 2, 3}, six(6), four(4);
  std::vector<unsigned char> bytes(1000, 1);
  SECTION("slopes") { call.evidence_refuses<ab::ShapeError>("score::Alibi", ab::score::Alibi(three)); }
  SECTION("sinks") {
    call.evidence_refuses<ab::ShapeError>("normalize::Sink", ab::normalize::Sink(three));
    for (const float bad : {std::nanf(""), HUGE_VALF}) {
      const F logits{0, 1, bad, 0};
      call.evidence_refuses<ab::InputError>("head 2", ab::normalize::Sink(logits));
    }
  }
  SECTION("key bias") {
    call.evidence_refuses<ab::ShapeError>("score::KeyBias length is 3", ab::score::KeyBias(three));
    call.evidence_refuses<ab::ShapeError>("score::KeyBias.batch is 3",
                                          ab::score::KeyBias(ab::bhsd(six.data(), 3, 1, 1, 6)));
    call.evidence_refuses<ab::ShapeError>("score::KeyBias.heads is 2",
                                          ab::score::KeyBias(ab::bhsd(six.data(), 1, 2, 1, 6)));
    call.evidence_refuses<ab::ShapeError>("score::KeyBias view length is 5",
                                          ab::score::KeyBias(ab::bhsd(six.data(), 1, 1, 5, 6)));
    call.evidence_refuses<ab::ShapeError>("score::KeyBias.data is null",
                                          ab::score::KeyBias(ab::bhsd(static_cast<const float*>(nullptr), 1, 1, 1, 6)));
  }
  SECTION("bias") {
    call.evidence_refuses<ab::ShapeError>("score::Bias.dim is 3", ab::score::Bias(ab::bhsd(six.data(), 1, 1, 1, 3)));
    call.evidence_refuses<ab::ShapeError>("score::Bias.length is 4", ab::score::Bias(ab::bhsd(six.data(), 1, 1, 4, 1)));
    call.evidence_refuses<ab::ShapeError>("score::Bias.heads is 3", ab::score::Bias(ab::bhsd(six.data(), 1, 3, 1, 1)));
    call.evidence_refuses<ab::ShapeError>("score::Bias.batch is 0", ab::score::Bias(ab::bhsd(six.data(), 0, 1, 1, 1)));
    call.evidence_refuses<ab::ShapeError>("score::Bias.data is null",
                                          ab::score::Bias(ab::bhsd(static_cast<const float*>(nullptr), 1, 1, 1, 1)));
  }
  SECTION("scale and softcap") {
    for (const float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
      call.evidence_refuses<ab::InputError>("score::Scale", ab::score::Scale<float>{bad});
      call.evidence_refuses<ab::InputError>("score::Softcap", ab::score::Softcap<float>{bad});
    }
    call.evidence_refuses<ab::InputError>("score::Softcap", ab::score::Softcap<float>{-1.0f});
  }
  SECTION("lengths") {
    const std::vector<Index> one{3}, past{6, 7}, negative{-1, 6};
    const std::vector<std::int32_t> past32{6, 7};
    call.evidence_refuses<ab::ShapeError>("mask::KeyLengths number", ab::mask::KeyLengths(one));
    call.evidence_refuses<ab::ShapeError>("batch item 1 is 7", ab::mask::KeyLengths(past));
    call.evidence_refuses<ab::ShapeError>("batch item 1 is 7", ab::mask::KeyLengths(past32));
    call.evidence_refuses<ab::ShapeError>("batch item 0 is -1", ab::mask::KeyLengths(negative));
  }
  SECTION("window") {
    call.evidence_refuses<ab::InputError>("mask::Window left", ab::mask::Window{-2, 0});
    call.evidence_refuses<ab::InputError>("mask::Window right", ab::mask::Window{0, -5});
  }
  SECTION("boolean") {
    const auto* const bad = static_cast<const unsigned char*>(nullptr);
    call.evidence_refuses<ab::ShapeError>("mask::Boolean.dim is 5",
                                          ab::mask::Boolean(ab::bhsd(bytes.data(), 1, 1, 5, 5)));
    call.evidence_refuses<ab::ShapeError>("mask::Boolean.length is 6",
                                          ab::mask::Boolean(ab::bhsd(bytes.data(), 1, 1, 6, 6)));
    call.evidence_refuses<ab::ShapeError>("mask::Boolean.data is null", ab::mask::Boolean(ab::bhsd(bad, 1, 1, 5, 6)));
  }
  SECTION("blocks") {
    const auto good = ab::bhsd(bytes.data(), 1, 1, 3, 2);  // of 2 x 3
    CHECK_NOTHROW(ab::attention(call.q, call.k, call.v, call.out, ab::mask::Blocks(good, 2, 3)));
    call.evidence_refuses<ab::ShapeError>("mask::Blocks query_block is 0", ab::mask::Blocks(good, 0, 3));
    call.evidence_refuses<ab::ShapeError>("mask::Blocks key_block is -1", ab::mask::Blocks(good, 2, -1));
    call.evidence_refuses<ab::ShapeError>("mask::Blocks length is 3", ab::mask::Blocks(good, 1, 3));
    call.evidence_refuses<ab::ShapeError>("mask::Blocks dim is 2", ab::mask::Blocks(good, 2, 7));
    call.evidence_refuses<ab::ShapeError>("mask::Blocks batch is 3",
                                          ab::mask::Blocks(ab::bhsd(bytes.data(), 3, 1, 3, 2), 2, 3));
    call.evidence_refuses<ab::ShapeError>("mask::Blocks heads is 2",
                                          ab::mask::Blocks(ab::bhsd(bytes.data(), 1, 2, 3, 2), 2, 3));
  }
  SECTION("query weights") {
    CHECK_THROWS_WITH(ab::attention(call.q, call.k, call.v, call.out,
                                    ab::observe(call.evidence, ab::QueryWeights::of(three))),
                      ContainsSubstring("QueryWeights::of"));
    CHECK_THROWS_AS(ab::attention_evidence(call.q, call.k, ab::observe(call.evidence, ab::QueryWeights::of(six))),
                    ab::ShapeError);
    CHECK(call.evidence.batch() == 0);
  }
}
