"""What the page says where something went wrong: an error's own words without places on the server's disk."""

import re
import sys
import traceback

from i2v_jax.commands.ending import is_out_of_memory
from i2v_jax.errors import InputError, in_python_words

PATH = re.compile(r"(?<![\w.:/])/(?:[^/'\"\n]+/)+")
OUT_OF_MEMORY = "The device has too little memory for this. Choose a smaller size, fewer frames, or another model."
UNKNOWN = "Something went wrong on the server; what, is printed there."


def words_of(error: BaseException) -> str:
    """Returns what people are told of an error: of bad input its words, of anything else no details.

    What nobody expected is printed on the server.
    """
    if isinstance(error, InputError):
        return PATH.sub("", in_python_words(str(error)))
    if isinstance(error, Exception) and is_out_of_memory(error):
        return OUT_OF_MEMORY
    traceback.print_exception(error, file=sys.stderr)
    return UNKNOWN
