// Which instruction set runs. Files in CMake's ATK_ISA_SOURCES are compiled once for each set, with -DATK_ISA=<name>;
// each defines one table of kernels in `namespace atk::ATK_ISA`. The widest set this chip has is chosen at run time.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace atk {

enum class Isa { scalar, avx2, avx512, avx512bf16 };

Isa isa();
std::string isa_name();

// The sets compiled in and usable on this chip, narrowest first.
std::vector<std::string> usable_isas();

// Forces a set for the whole process (tests and benches); raises atk::Error for one that is not usable.
void set_isa(std::string_view name);

}  // namespace atk

// ATK_DECLARE_ISA_TABLE(Table, name) in a header declares the tables `const Table atk::<isa>::name` and
// `const Table& atk::name()`, the one to use now. The ISA source defines it:
//   namespace atk::ATK_ISA { extern const Table name = {...}; }
#if ATK_X86
#define ATK_DECLARE_ISA_TABLE(Table, name) \
  namespace atk::scalar {                  \
  extern const Table name;                 \
  }                                        \
  namespace atk::avx2 {                    \
  extern const Table name;                 \
  }                                        \
  namespace atk::avx512 {                  \
  extern const Table name;                 \
  }                                        \
  namespace atk::avx512bf16 {              \
  extern const Table name;                 \
  }                                        \
  namespace atk {                          \
  inline const Table& name() {             \
    switch (isa()) {                       \
      case Isa::avx512bf16:                \
        return avx512bf16::name;           \
      case Isa::avx512:                    \
        return avx512::name;               \
      case Isa::avx2:                      \
        return avx2::name;                 \
      case Isa::scalar:                    \
        break;                             \
    }                                      \
    return scalar::name;                   \
  }                                        \
  }
#else
#define ATK_DECLARE_ISA_TABLE(Table, name) \
  namespace atk::scalar {                  \
  extern const Table name;                 \
  }                                        \
  namespace atk {                          \
  inline const Table& name() {             \
    return scalar::name;                   \
  }                                        \
  }
#endif
