"""What a formula calls where the textbook form is too slow, too big or too inexact."""
