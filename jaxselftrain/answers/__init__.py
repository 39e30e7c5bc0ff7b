"""Takes the text of a response, gives its final answer (`extract`) and the answer's canonical key (`answer_key`)."""

from jaxselftrain.answers.extraction import compile_pattern, extract
from jaxselftrain.answers.keys import answer_key, is_opaque, matches

__all__ = ["answer_key", "compile_pattern", "extract", "is_opaque", "matches"]
