#pragma once
// attention_balancer: attention kernels that tell where the attention went, and a balancer that turns it into a
// normalised share of a budget for each input.

#include "attention_balancer/attention.hpp"
#include "attention_balancer/balance.hpp"
