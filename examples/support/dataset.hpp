#pragma once
// The labelled data that the training examples read, as their publishers ship it.

#include <filesystem>
#include <string>
#include <vector>

#include "sequences.hpp"

namespace example {

struct Texts {
  std::vector<std::string> texts, labels;
};

/// A table of Orange (.tab): three header lines, then category and text, separated by a tab. Throws FileError that
/// names file and line for a line of another form or an empty text.
Texts read_tab(const std::filesystem::path& file);

/// A CSV file with a header line, whose fields may be quoted and hold line ends; the columns are named. Throws
/// FileError that names file and line.
Texts read_text_csv(const std::filesystem::path& file, const std::string& text_column,
                    const std::string& label_column);

/// Texts with numbers for labels.
struct LabelledTexts {
  std::vector<std::string> classes;  // in alphabetical order
  std::vector<std::string> train, test;
  std::vector<int> train_labels, test_labels;
};

/// Numbers the classes of the training texts. Throws FileError naming the test text whose class has none, and for
/// less than two classes.
LabelledTexts number_classes(Texts train, Texts test);

/// Splits at random, one part of `test_part` for testing.
std::pair<Texts, Texts> split(Texts all, double test_part, unsigned seed);

/// Images of digits, one line each: 28 x 28 grey values 0 to 255, then the digit. Throws FileError naming the line.
struct Digits {
  Rows<float> pixels;  // [images, 784] in [0, 1]
  std::vector<int> labels;
};
Digits read_digits(const std::filesystem::path& file);

/// The 16 patches of 7 x 7 pixels of the images `which`, token 0 before them. `shift_x`, `shift_y` per image, or
/// none.
Sequences patches_of(const Digits& digits, const std::vector<std::size_t>& which, Random* shifts = nullptr);

}  // namespace example
