#pragma once

/// \file
/// All of Tributary's operators.

#include "Tributary_Attention.hpp"
#include "Tributary_Config.hpp"
#include "Tributary_Indexer.hpp"
#include "Tributary_Level.hpp"
#include "Tributary_Quantize.hpp"
#include "Tributary_Reference.hpp"
#include "Tributary_Sequences.hpp"
#include "Tributary_Topk.hpp"
#include "Tributary_Types.hpp"
