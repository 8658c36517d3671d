"""What every room may use and what knows no model: errors, kinds of numbers, files, words, messages."""
