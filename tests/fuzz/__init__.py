"""Hostile bytes: every reader of bytes that somebody else wrote, held to what it promises.

A target is a module here with one function, `fuzz(data)`. It gives the bytes to a reader and asserts what holds for any
bytes: that the reader raises its documented errors alone, that cuts change nothing, that what is accepted has the form
that the rest of the program relies on. `targets` lists them all. The same functions are run in three ways:

- over the committed inputs, seeds and regressions (`test_corpus`);
- over inputs that Hypothesis makes from those (`test_mutations`);
- by atheris, guided by coverage, as long as one likes (`make fuzz`; `__main__`). What makes a target fail there is kept
  under tests/data/corpus, so that `test_corpus` fails until it is mended.
"""
