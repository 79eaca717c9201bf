"""A second image judge, so that a result need not rest on the judge that was also the reward (docs/judge.md).

It answers the same four questions from other evidence, and imports nothing of the first judge but the Protocol and the
KScore formulae: the backdrop is named by the picture's outer frame (`frame`), copies are counted as connected
components (`copies`), identity is decided against the reference pictures of the world and their look-alikes by
gradient-orientation and hue histograms (`likeness`), lettering is read glyph by glyph (`glyphs`). The ground-truth
picture is not looked at.
"""

from genevolve.judge.second.judge import SecondJudge, references_of

__all__ = ["SecondJudge", "references_of"]
