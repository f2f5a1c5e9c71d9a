"""The one exception whose message is written for the user."""


class InputError(ValueError):
    """Bad input, told in one sentence: what is wrong, where, and what is allowed.

    `launch.py` prints the sentence and exits with 1; every other exception is a bug and keeps its traceback.
    """
